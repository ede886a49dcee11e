//! What is wrong with a manifest, where, and how to mend it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::decode::Wrong;
use super::node::{Node, Step, field_text};
use crate::limits::PROBLEMS_MAX;

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The configuration can't be used.
    Error,
    /// The configuration can be used, but is probably not what was meant.
    Warning,
}

/// Something that is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// The file.
    pub file: PathBuf,
    /// The line, from 1; 0 if the file as a whole is meant.
    pub line: u32,
    /// The field, such as `spec.servers[0].endpoint`; empty if there is none.
    pub field: String,
    /// What is wrong.
    pub problem: String,
    /// How to mend it; empty if the problem says it.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.file.display())?;
        if self.line > 0 {
            write!(formatter, ":{}", self.line)?;
        }
        if !self.field.is_empty() {
            write!(formatter, ": {}", self.field)?;
        }
        write!(formatter, ": {}", self.problem)?;
        if !self.remedy.is_empty() {
            write!(formatter, "; {}", self.remedy)?;
        }
        Ok(())
    }
}

/// All problems of one look at the configuration.
#[derive(Debug, Default)]
pub(super) struct Problems {
    list: Vec<Problem>,
    errors: usize,
}

impl Problems {
    /// Adds a problem. Behind the first [`PROBLEMS_MAX`] only their number counts.
    pub(super) fn add(&mut self, problem: Problem) {
        if problem.severity == Severity::Error {
            self.errors += 1;
        }
        if self.list.len() < PROBLEMS_MAX || (problem.severity == Severity::Error && self.errors == 1) {
            self.list.push(problem);
        }
    }

    pub(super) fn file(
        &mut self,
        severity: Severity,
        file: &Path,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(Problem {
            severity,
            file: file.to_owned(),
            line: 0,
            field: String::new(),
            problem: problem.into(),
            remedy: remedy.into(),
        });
    }

    pub(super) fn errors(&self) -> usize {
        self.errors
    }

    /// Errors first, then by file and line.
    pub(super) fn into_sorted(mut self) -> Vec<Problem> {
        self.list.sort_by(|a, b| (a.severity, &a.file, a.line, &a.field).cmp(&(b.severity, &b.file, b.line, &b.field)));
        self.list.dedup();
        self.list
    }
}

/// A field, on the way from the document's root; lives on the stack, and is made into text only for a problem.
#[derive(Clone, Copy, Debug)]
pub(super) enum At<'a> {
    Root,
    Key(&'a At<'a>, &'a str),
    Index(&'a At<'a>, usize),
}

impl<'a> At<'a> {
    pub(super) fn key(&'a self, key: &'a str) -> Self {
        At::Key(self, key)
    }

    pub(super) fn index(&'a self, index: usize) -> Self {
        At::Index(self, index)
    }

    fn steps(&self) -> Vec<Step> {
        match self {
            At::Root => Vec::new(),
            At::Key(parent, key) => {
                let mut steps = parent.steps();
                steps.push(Step::Key((*key).to_owned()));
                steps
            }
            At::Index(parent, index) => {
                let mut steps = parent.steps();
                steps.push(Step::Index(*index));
                steps
            }
        }
    }
}

/// Where problems of one document go.
pub(super) struct Report<'a> {
    pub(super) problems: &'a mut Problems,
    pub(super) file: &'a Arc<Path>,
    pub(super) document: &'a Node,
    /// Steps from the file's document to this one, which may be an item of a list.
    pub(super) base: &'a [Step],
    /// What could not be read: nothing more is said about these fields, nor about what lacks them.
    pub(super) unreadable: &'a [Vec<Step>],
}

impl Report<'_> {
    pub(super) fn error(&mut self, at: &At<'_>, problem: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Error, at, problem.into(), remedy.into());
    }

    pub(super) fn warn(&mut self, at: &At<'_>, problem: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Warning, at, problem.into(), remedy.into());
    }

    /// What could not be read.
    pub(super) fn decoded(&mut self, wrong: &[Wrong]) {
        for Wrong { steps, problem, remedy } in wrong {
            let line = self.document.line_of(steps);
            self.tell(Severity::Error, steps, line, problem.clone(), remedy.clone());
        }
    }

    fn add(&mut self, severity: Severity, at: &At<'_>, problem: String, remedy: String) {
        let (steps, line) = self.document.locate(&at.steps());
        let is_about_unreadable =
            |unreadable: &Vec<Step>| unreadable.starts_with(&steps) || steps.starts_with(unreadable);
        if self.unreadable.iter().any(is_about_unreadable) {
            return;
        }
        self.tell(severity, &steps, line, problem, remedy);
    }

    fn tell(&mut self, severity: Severity, steps: &[Step], line: u32, problem: String, remedy: String) {
        let field = field_text(self.base.iter().chain(steps));
        self.problems.add(Problem { severity, file: self.file.to_path_buf(), line, field, problem, remedy });
    }
}
