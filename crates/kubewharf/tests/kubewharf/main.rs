//! The program as its users start it.

mod brain;
mod up;

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// The program's file.
const PROGRAM: &str = env!("CARGO_BIN_EXE_kubewharf");

/// Runs the program to its end.
fn run(arguments: &[&str]) -> Output {
    run_as(Path::new(PROGRAM), arguments)
}

/// As [`run`], under another name.
fn run_as(program: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ETCD_")) {
        command.env_remove(name);
    }
    command.args(arguments).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits until `condition` is true.
fn wait_until(what: &str, within: Duration, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < within, "not within {within:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
