//! What Go clients of Kubernetes are answered: `tests/go/tenancy` writes a line of JSON for each operation.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use kubewharf_testkit::{go_program, process};
use libtest_mimic::{Failed, Trial};
use serde_json::Value;

use super::judge::{Answered, judge};
use super::normal;
use super::side::Outcome;
use crate::fixture::World;

/// The program's areas, in the order in which they run.
const AREAS: &[&str] = &[
    "lists",
    "watches",
    "informers",
    "events",
    "kinds",
    "patches",
    "subresources",
    "deletes",
    "forms",
    "http",
    "discovery",
];

/// A test for each area.
pub(super) fn trials(world: &Arc<World>) -> Vec<Trial> {
    let trial = |&area: &&'static str| {
        let world = world.clone();
        Trial::test(format!("clients/{area}"), move || compare(&world, area))
    };
    AREAS.iter().map(trial).collect()
}

/// Runs an area on both sides at once.
fn compare(world: &World, area: &str) -> Result<(), Failed> {
    let program = go_program::build("tenancy", &mut |line| eprintln!("{line}")).unwrap();
    let (oracle, subject) = world.pair();
    let (url, server) = (oracle.apiserver.url(), subject.server());
    let sides = [
        (oracle.apiserver.kubeconfig(), url.as_str(), Vec::new()),
        (subject.kubeconfig(), server.as_str(), subject.secrets()),
    ];
    let program = program.as_path();
    let [expected, found] = std::thread::scope(|scope| {
        sides
            .map(|(kubeconfig, server, secrets)| scope.spawn(move || run(program, area, kubeconfig, server, &secrets)))
            .map(|answers| answers.join().unwrap())
    });
    judge(&format!("clients/{area}"), subject, &expected?, &found?)
}

fn run(
    program: &Path,
    area: &str,
    kubeconfig: &Path,
    server: &str,
    secrets: &[String],
) -> Result<Vec<Answered>, String> {
    let begun = Instant::now();
    let mut command = Command::new(program);
    command.arg("-kubeconfig").arg(kubeconfig).arg("-areas").arg(area);
    let output = process::run(&mut command).map_err(|error| error.to_string())?;
    let took = begun.elapsed();
    let mut answers: Vec<Answered> = output.lines().map(|line| answered(line, server, secrets)).collect();
    // Nobody measures each.
    if let Some(last) = answers.last_mut() {
        last.outcome.took = took;
    }
    Ok(answers)
}

fn answered(line: &str, server: &str, secrets: &[String]) -> Answered {
    let mut value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let operation = value["operation"].take();
    let operation = operation.as_str().unwrap_or_else(|| panic!("no operation: {line}")).to_owned();
    value.as_object_mut().unwrap().remove("operation");
    let leaks = secrets.iter().any(|secret| line.contains(secret.as_str()));
    let outcome = Outcome {
        output: normal::normalise(&value.to_string(), server),
        wrong: if leaks { vec![format!("names of the upstream are seen: {line}")] } else { Vec::new() },
        ..Outcome::default()
    };
    // Operations have names; the same one may be done several times.
    Answered { place: String::new(), operation: normal::normalise(&operation, server), outcome }
}
