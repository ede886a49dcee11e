//! One side of the comparison: runs the steps of a group and keeps what came of them.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::kubernetes::Kubectl;
use regex::Regex;

use super::normal;
use super::script::{Operation, Options, Step};

/// No operation takes longer, on a busy machine either.
const OPERATION_WITHIN: Duration = Duration::from_secs(60);
/// How long one is repeated until it prints what is waited for.
const UNTIL_WITHIN: Duration = Duration::from_secs(15);
const POLL_INTERVAL: Duration = Duration::from_millis(5);
const REPEAT_INTERVAL: Duration = Duration::from_millis(100);

/// What came of an operation.
#[derive(Debug, Clone, Default)]
pub(super) struct Outcome {
    /// The exit code; -1 if it had to be ended.
    pub(super) code: i32,
    /// What is compared, normalised: the standard output.
    pub(super) output: String,
    /// And the standard error.
    pub(super) error: String,
    /// What is wrong with it whatever the other side says: lines that hold what they must not hold, and what never came.
    pub(super) wrong: Vec<String>,
    pub(super) took: Duration,
}

/// One side.
pub(super) struct Side {
    kubectl: Kubectl,
    server: String,
    secrets: Vec<String>,
    folder: Folder,
    captured: HashMap<String, String>,
    running: HashMap<String, Running>,
    count: usize,
}

/// An operation whose process may still run.
struct Running {
    child: Child,
    output: PathBuf,
    error: PathBuf,
    begun: Instant,
}

impl Side {
    /// The server that this kubeconfig names; none of the secrets may be seen in what it says.
    pub(super) fn new(kubeconfig: &Path, server: String, secrets: Vec<String>) -> Self {
        let folder = Folder::new("side").unwrap();
        let kubectl = Kubectl::new(kubeconfig, &folder).unwrap();
        for name in ["work", "io", "tmp"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        Self { kubectl, server, secrets, folder, captured: HashMap::new(), running: HashMap::new(), count: 0 }
    }

    /// Does these steps; an outcome for each operation, and for each end of one in the background.
    pub(super) fn run(&mut self, steps: &[Step]) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for step in steps {
            match step {
                Step::File { name, text } => {
                    std::fs::write(self.folder.path().join("work").join(name), self.filled(text)).unwrap();
                }
                Step::Run(operation) => outcomes.push(self.operate(operation)),
                Step::Finish { name, until, options, .. } => {
                    let mut outcome = self.finish(name, until);
                    reduce(options, &mut outcome);
                    outcomes.push(outcome);
                }
            }
        }
        // What nobody finished ends with the group.
        for (_, mut running) in self.running.drain() {
            running.end();
        }
        outcomes
    }

    /// The text with what was captured in it.
    fn filled(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (name, value) in &self.captured {
            text = text.replace(&format!("${{{name}}}"), value);
        }
        text
    }

    fn operate(&mut self, operation: &Operation) -> Outcome {
        let options = &operation.options;
        let begun = Instant::now();
        if let Some((name, ready)) = &options.background {
            let running = self.start(operation);
            while !ready.is_match(&running.printed().0) && begun.elapsed() < UNTIL_WITHIN {
                std::thread::sleep(POLL_INTERVAL);
            }
            let wrong = never_printed(ready, &running.printed().0);
            self.running.insert(name.clone(), running);
            return Outcome { took: begun.elapsed(), wrong, ..Outcome::default() };
        }
        let (code, output, error) = loop {
            let mut running = self.start(operation);
            let code = running.wait();
            let (output, error) = running.printed();
            let Some(until) = &options.until else { break (code, output, error) };
            if never_printed(until, &format!("{output}{error}")).is_empty() || begun.elapsed() > UNTIL_WITHIN {
                break (code, output, error);
            }
            std::thread::sleep(REPEAT_INTERVAL);
        };
        let mut outcome = self.outcome(code, &output, &error, begun);
        if let Some(until) = &options.until {
            outcome.wrong.extend(never_printed(until, &format!("{output}{error}")));
        }
        if let Some((name, pattern)) = &options.capture {
            let value = match pattern {
                None => Some(output.trim()),
                Some(pattern) => pattern.captures(&output).and_then(|found| found.get(1)).map(|found| found.as_str()),
            };
            match value {
                Some(value) if code == 0 => {
                    outcome.output = format!("<{name}>");
                    self.captured.insert(name.clone(), value.to_owned());
                }
                _ => outcome.wrong.push(format!("no {name} in it")),
            }
        }
        reduce(options, &mut outcome);
        outcome
    }

    fn finish(&mut self, name: &str, until: &Regex) -> Outcome {
        let mut running = self.running.remove(name).unwrap_or_else(|| panic!("{name} does not run"));
        let begun = Instant::now();
        while !until.is_match(&running.printed().0) && begun.elapsed() < UNTIL_WITHIN {
            if running.child.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        let ended = running.child.try_wait().unwrap().map(|status| status.code().unwrap_or(-1));
        running.end();
        let (output, error) = running.printed();
        // It ends by itself only when something is wrong.
        let mut outcome = self.outcome(ended.unwrap_or_default(), &output, &error, begun);
        outcome.wrong.extend(never_printed(until, &output));
        outcome
    }

    fn outcome(&self, code: i32, output: &str, error: &str, begun: Instant) -> Outcome {
        let holds = |line: &&str| self.secrets.iter().any(|secret| line.contains(secret.as_str()));
        let seen = output.lines().chain(error.lines()).filter(holds);
        let folder = self.folder.path().to_str().unwrap();
        let normal = |text: &str| normal::normalise(&text.replace(folder, "<folder>"), &self.server);
        Outcome {
            code,
            wrong: seen.map(|line| format!("names of the upstream are seen: {line}")).collect(),
            output: normal(output),
            error: normal(error),
            took: begun.elapsed(),
        }
    }

    fn start(&mut self, operation: &Operation) -> Running {
        self.count += 1;
        let folder = self.folder.path();
        let path = |kind: &str| folder.join("io").join(format!("{}-{}.{kind}", operation.line, self.count));
        let (output, error) = (path("out"), path("err"));
        let arguments: Vec<String> = operation.arguments.iter().map(|argument| self.filled(argument)).collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut command: Command = self.kubectl.command(&arguments);
        command
            .current_dir(folder.join("work"))
            // Whatever the developer has set up for kubectl is none of our business.
            .env("HOME", folder)
            .env("KUBERC", "off")
            .env("TZ", "UTC")
            // It ends before it needs to.
            .env("GOGC", "off")
            .env("TMPDIR", folder.join("tmp"))
            .stdout(File::create(&output).unwrap())
            .stderr(File::create(&error).unwrap());
        if let Some(script) = &operation.options.editor {
            command.env("KUBE_EDITOR", format!("sed -i -e '{script}'"));
        }
        if let Some(text) = &operation.input {
            let input = path("in");
            std::fs::write(&input, self.filled(text)).unwrap();
            command.stdin(File::open(&input).unwrap());
        } else {
            command.stdin(Stdio::null());
        }
        Running { child: command.spawn().unwrap(), output, error, begun: Instant::now() }
    }
}

/// Leaves of an outcome what is to be compared.
fn reduce(options: &Options, outcome: &mut Outcome) {
    if options.sorted {
        outcome.output = normal::sorted(&outcome.output);
    }
    if options.last {
        outcome.output = outcome.output.lines().next_back().unwrap_or_default().to_owned();
    }
    if options.distinct {
        let mut lines: Vec<&str> = outcome.output.lines().collect();
        lines.dedup();
        outcome.output = lines.join("\n");
    }
    if options.untold {
        outcome.code = 0;
    }
    if options.untold || options.exits {
        (outcome.output, outcome.error) = (String::new(), String::new());
    }
}

fn never_printed(pattern: &Regex, text: &str) -> Vec<String> {
    if pattern.is_match(text) { Vec::new() } else { vec![format!("never printed: {pattern}")] }
}

impl Running {
    fn wait(&mut self) -> i32 {
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            if self.begun.elapsed() > OPERATION_WITHIN {
                self.end();
                return -1;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    fn end(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }

    /// What it printed so far.
    fn printed(&self) -> (String, String) {
        let read = |path: &Path| String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
        (read(&self.output), read(&self.error))
    }
}
