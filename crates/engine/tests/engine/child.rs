//! This binary again, as a process of its own with one job.

use std::env;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::{crash, full_disk, held_view, journal};

const JOB: &str = "ENGINE_TEST_JOB";
const DIRECTORY: &str = "ENGINE_TEST_DIRECTORY";

/// A job's program and arguments, to be run directly or by another program.
pub(crate) fn command_line() -> Vec<OsString> {
    let program = env::current_exe().unwrap().into_os_string();
    let arguments = ["--exact", "child::job", "--ignored", "--nocapture", "--test-threads=1"];
    [program].into_iter().chain(arguments.map(OsString::from)).collect()
}

/// Runs `line` with the job and its directory in the environment.
pub(crate) fn command(line: &[OsString], job: &str, directory: &Path) -> Command {
    let mut command = Command::new(&line[0]);
    command.args(&line[1..]).env(JOB, job).env(DIRECTORY, directory);
    command
}

#[test]
#[ignore = "a job for other tests, not a test"]
fn job() {
    let Ok(job) = env::var(JOB) else { return };
    let directory = PathBuf::from(env::var_os(DIRECTORY).unwrap());
    match job.split_once(' ').unwrap_or((&job, "")) {
        ("commit", arguments) => crash::commit(&directory, arguments),
        ("steps", "") => journal::commit_for_steps(&directory),
        ("hold", "") => held_view::hold(&directory),
        ("fill", arguments) => {
            let has_small_delta = arguments.ends_with("small");
            match arguments.starts_with("pinned") {
                false => full_disk::fill(&directory, has_small_delta),
                true => full_disk::fill_with_pages_pinned(&directory, has_small_delta),
            }
        }
        _ => panic!("no such job: {job}"),
    }
}

/// A job whose lines are read as it writes them; killed with this value.
pub(crate) struct Running {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Running {
    pub(crate) fn start(job: &str, directory: &Path) -> Self {
        let mut child = command(&command_line(), job, directory).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What follows `prefix` on the next line that begins with it; `None` at the end of the output.
    pub(crate) fn next(&mut self, prefix: &str) -> Option<String> {
        self.lines.by_ref().map_while(Result::ok).find_map(|line| line.strip_prefix(prefix).map(str::to_owned))
    }

    /// Kills the process without warning, waits for its end, and returns what it had still written.
    pub(crate) fn kill(mut self, prefix: &str) -> Vec<String> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::iter::from_fn(|| self.next(prefix)).collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already ended in most cases.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
