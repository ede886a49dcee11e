//! Compares what two sides answered, takes known deviations out, and reports the rest.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use kubewharf_testkit::tools::workspace;
use libtest_mimic::Failed;

use super::deviations::{self, Deviation};
use super::difference::difference;
use super::side::Outcome;
use crate::fixture::Subject;

/// How much of a group's differences a failed test prints; the whole is in a file.
const SHOWN_BYTES_MAX: usize = 24 << 10;

/// How much of them is told once more in the end.
const RECALLED_BYTES_MAX: usize = 2 << 10;

static FAILURES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// What a deviation says instead of an answer if only one side came to the operation.
const ONLY_PLAIN: &str = "only the plain cluster came to this";
const ONLY_TENANT: &str = "only the tenant came to this";

/// An operation, and what came of it.
#[derive(Debug, Clone)]
pub(super) struct Answered {
    /// Where it is written, or which one it is.
    pub(super) place: String,
    pub(super) operation: String,
    pub(super) outcome: Outcome,
}

/// Compares, prints how many are alike, and writes both the plain side's answers and the differences into `target/zoo`.
pub(super) fn judge(group: &str, subject: &Subject, expected: &[Answered], found: &[Answered]) -> Result<(), Failed> {
    let known: Vec<_> = match subject {
        Subject::Tenant(_) => deviations::of(group).collect(),
        Subject::Plain(_) => Vec::new(),
    };
    let (held, report) = compare(group, expected, found, &known);
    let sum = |side: &[Answered]| side.iter().map(|answered| answered.outcome.took).sum::<Duration>();
    let slowest = |side: &[Answered]| side.iter().map(|answered| answered.outcome.took).max().unwrap_or_default();
    let summary = format!(
        "{held} of {} operations alike; {:.1?} and {:.1?}, the slowest {:.1?} and {:.1?}",
        expected.len(),
        sum(expected),
        sum(found),
        slowest(expected),
        slowest(found)
    );
    println!("{summary}");
    std::fs::write(report_path(group, "answers"), transcript(expected)).unwrap();
    let path = report_path(group, "differences");
    std::fs::write(&path, &report).unwrap();
    if report.is_empty() {
        return Ok(());
    }
    let beginning = |bytes_max: usize| &report[..report.floor_char_boundary(bytes_max)];
    FAILURES.lock().unwrap().push(format!("{group}: {summary}\n{}", beginning(RECALLED_BYTES_MAX)));
    Err(format!("{summary}\nall differences: {}\n\n{}", path.display(), beginning(SHOWN_BYTES_MAX)).into())
}

/// How the differences of each group begin that has some, once more: after a long run they stand far above its end.
pub(crate) fn failures() -> String {
    FAILURES.lock().unwrap().join("\n")
}

/// How many are alike, and what is not.
fn compare(group: &str, expected: &[Answered], found: &[Answered], known: &[&Deviation]) -> (usize, String) {
    let mut met = vec![false; known.len()];
    let mut report = String::new();
    let mut held = 0;
    // By place and operation: when one side goes another way, what comes after it is still compared with its own.
    let mut others: HashMap<(&str, &str), Vec<&Outcome>> = HashMap::new();
    for answered in found.iter().rev() {
        others.entry((&answered.place, &answered.operation)).or_default().push(&answered.outcome);
    }
    let mut take = |answered| others.get_mut(&key(answered)).and_then(Vec::pop);
    for answered in expected {
        let Answered { place, operation, outcome } = answered;
        let mut text = match take(answered) {
            None => match known.iter().position(|it| it.answer == ONLY_PLAIN && operation.contains(it.operation)) {
                Some(place) => {
                    met[place] = true;
                    String::new()
                }
                None => format!("    {ONLY_PLAIN}\n"),
            },
            Some(other) => {
                let mut text = differences(outcome, other);
                let answer = format!("{}{}", other.output, other.error);
                if !text.is_empty()
                    && let Some(place) = known.iter().position(|it| it.matches(operation, &answer))
                {
                    met[place] = true;
                    text = String::new();
                }
                other.wrong.iter().for_each(|wrong| writeln!(text, "    {wrong}").unwrap());
                text
            }
        };
        outcome.wrong.iter().for_each(|wrong| writeln!(text, "    (on the plain cluster) {wrong}").unwrap());
        if text.is_empty() {
            held += 1;
        } else {
            writeln!(report, "{group}:{place}: {operation}\n{text}").unwrap();
        }
    }
    for answered in found {
        if others.get_mut(&key(answered)).and_then(Vec::pop).is_some() {
            let Answered { place, operation, outcome } = answered;
            let known = known.iter().position(|it| it.answer == ONLY_TENANT && operation.contains(it.operation));
            match known {
                Some(place) if outcome.wrong.is_empty() => met[place] = true,
                _ => writeln!(report, "{group}:{place}: {operation}\n    {ONLY_TENANT}\n").unwrap(),
            }
        }
    }
    let must_be_met = |deviation: &Deviation| deviation.group != deviations::ANY;
    for (deviation, _) in known.iter().zip(&met).filter(|(deviation, met)| !**met && must_be_met(deviation)) {
        writeln!(report, "a deviation that is none any more: {}", deviation.describe()).unwrap();
    }
    (held, report)
}

fn key(answered: &Answered) -> (&str, &str) {
    (&answered.place, &answered.operation)
}

fn differences(expected: &Outcome, found: &Outcome) -> String {
    let mut text = String::new();
    if expected.code != found.code {
        writeln!(text, "    exit code {} instead of {}", found.code, expected.code).unwrap();
    }
    text.push_str(&difference(&expected.output, &found.output));
    text.push_str(&difference(&expected.error, &found.error));
    text
}

/// What was answered, for a look at what is compared.
fn transcript(answers: &[Answered]) -> String {
    let mut text = String::new();
    for Answered { place, operation, outcome: Outcome { code, output, error, took, .. } } in answers {
        writeln!(text, "{place}: {operation} => {code} after {took:.1?}\n{output}{error}").unwrap();
    }
    text
}

fn report_path(group: &str, kind: &str) -> PathBuf {
    let path = workspace().unwrap().join("target/zoo").join(format!("{group}.{kind}.txt"));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    path
}

/// The comparison finds what is wrong, in each part of an outcome, and takes for a deviation only what is one.
pub(super) fn self_test() {
    let answered =
        |outcome: &Outcome| Answered { place: "1".to_owned(), operation: "get a".to_owned(), outcome: outcome.clone() };
    let fine = Outcome { output: "a\n".to_owned(), ..Outcome::default() };
    let judged = |found: &[Outcome], known: &[&Deviation]| {
        let found: Vec<_> = found.iter().map(answered).collect();
        compare("broken", &[answered(&fine)], &found, known)
    };
    assert_eq!(judged(std::slice::from_ref(&fine), &[]), (1, String::new()));
    let other = Outcome { output: "b\n".to_owned(), ..fine.clone() };
    assert_eq!(judged(std::slice::from_ref(&other), &[]), (0, "broken:1: get a\n    - a\n    + b\n\n".to_owned()));
    let fails = |found: &[Outcome], text: &str| {
        let (_, report) = judged(found, &[]);
        assert!(report.contains(text), "{report}");
    };
    fails(&[Outcome { code: 1, ..fine.clone() }], "exit code 1 instead of 0");
    fails(&[Outcome { error: "Warning".to_owned(), ..fine.clone() }], "+ Warning");
    fails(&[Outcome { wrong: vec!["kzabc-a".to_owned()], ..fine.clone() }], "kzabc-a");
    fails(&[], "only the plain cluster came to this");
    fails(&[fine.clone(), fine.clone()], "only the tenant came to this");
    let known = Deviation { group: "broken", operation: "get", answer: "b", reason: "because" };
    assert_eq!(judged(std::slice::from_ref(&other), &[&known]), (1, String::new()));
    let (_, report) = judged(std::slice::from_ref(&fine), &[&known]);
    assert!(report.contains("a deviation that is none any more: broken: get"), "{report}");
    let only = |answer| Deviation { group: "broken", operation: "get", answer, reason: "because" };
    assert_eq!(judged(&[], &[&only(ONLY_PLAIN)]), (1, String::new()));
    assert!(!judged(&[], &[&only("b")]).1.is_empty(), "a deviation of an answer is none of its absence");
    assert_eq!(judged(&[fine.clone(), fine.clone()], &[&only(ONLY_TENANT)]), (1, String::new()));
    let leaks = Outcome { wrong: vec!["kzabc-a".to_owned()], ..other };
    assert_eq!(judged(&[leaks], &[&known]).0, 0, "a deviation excuses no leak");
}
