//! The same operations on a plain cluster and in a tenant: whatever kubectl prints and however it ends must be equal.

mod deviations;
mod difference;
mod normal;
mod script;
mod side;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use libtest_mimic::{Failed, Trial};

use crate::fixture::{Subject, World};
use script::Step;
use side::{Outcome, Side};

/// How much of a group's differences a failed test prints; the whole is in a file.
const SHOWN_BYTES_MAX: usize = 24 << 10;

/// The group of the comparison's own test.
const SELF_TEST: &str = "broken";

/// The groups in the order in which they run.
const GROUPS: &[(&str, &str)] = &[
    ("namespaces", include_str!("operations/namespaces.txt")),
    ("namespaced", include_str!("operations/namespaced.txt")),
    ("selectors", include_str!("operations/selectors.txt")),
    ("paging", include_str!("operations/paging.txt")),
    ("watching", include_str!("operations/watching.txt")),
    ("apply", include_str!("operations/apply.txt")),
    ("changes", include_str!("operations/changes.txt")),
    ("deleting", include_str!("operations/deleting.txt")),
    ("generators", include_str!("operations/generators.txt")),
    ("workloads", include_str!("operations/workloads.txt")),
    ("pods", include_str!("operations/pods.txt")),
    ("network", include_str!("operations/network.txt")),
    ("quota", include_str!("operations/quota.txt")),
    ("events", include_str!("operations/events.txt")),
    ("storage", include_str!("operations/storage.txt")),
    ("rbac", include_str!("operations/rbac.txt")),
    ("reviews", include_str!("operations/reviews.txt")),
    ("tokens", include_str!("operations/tokens.txt")),
    ("crds", include_str!("operations/crds.txt")),
    ("discovery", include_str!("operations/discovery.txt")),
    ("errors", include_str!("operations/errors.txt")),
    ("cluster", include_str!("operations/cluster.txt")),
    ("nodes", include_str!("operations/nodes.txt")),
    ("system", include_str!("operations/system.txt")),
];

/// A test for each group, and those of the comparison itself.
pub(crate) fn trials(world: &Arc<World>) -> Vec<Trial> {
    let mut trials = vec![
        Trial::test("comparison/script", passed(script::self_test)),
        Trial::test("comparison/normal", passed(normal::self_test)),
        Trial::test("comparison/difference", passed(difference::self_test)),
        Trial::test("comparison/deviations", passed(deviations::self_test)),
        Trial::test("comparison/broken", passed(a_broken_answer_is_found)),
    ];
    trials.extend(GROUPS.iter().map(|&(group, text)| {
        let world = world.clone();
        Trial::test(format!("kubectl/{group}"), move || compare(&world, group, text))
    }));
    trials
}

fn passed(test: fn()) -> impl FnOnce() -> Result<(), Failed> + Send {
    move || {
        test();
        Ok(())
    }
}

/// Runs a group on both sides.
fn compare(world: &World, group: &str, text: &str) -> Result<(), Failed> {
    let (oracle, subject) = world.pair();
    let steps = script::parse(text);
    let plain = Side::new(oracle.apiserver.kubeconfig(), oracle.apiserver.url(), Vec::new());
    let judged = Side::new(subject.kubeconfig(), subject.server(), subject.secrets());
    let steps = steps.as_slice();
    let [expected, found] = std::thread::scope(|scope| {
        [plain, judged].map(|mut side| scope.spawn(move || side.run(steps))).map(|outcomes| outcomes.join().unwrap())
    });
    std::fs::write(report_path(&format!("{group}.answers")), transcript(steps, &expected)).unwrap();
    let known: Vec<_> = match subject {
        Subject::Tenant(_) => deviations::of(group).collect(),
        Subject::Plain(_) => Vec::new(),
    };
    judge(group, steps, &expected, &found, &known)
}

/// What is done in each step that has an outcome: its line and its text.
fn told(steps: &[Step]) -> impl Iterator<Item = (usize, &str)> {
    steps.iter().filter_map(|step| match step {
        Step::File { .. } => None,
        Step::Run(operation) => Some((operation.line, operation.text.as_str())),
        Step::Finish { line, name, .. } => Some((*line, name.as_str())),
    })
}

/// What the plain cluster answered, for a look at what is compared.
fn transcript(steps: &[Step], outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    for ((line, operation), outcome) in told(steps).zip(outcomes) {
        let Outcome { code, output, error, took, .. } = outcome;
        writeln!(text, "{line}: kubectl {operation} => {code} after {took:.1?}\n{output}{error}").unwrap();
        for wrong in &outcome.wrong {
            writeln!(text, "WRONG: {wrong}").unwrap();
        }
    }
    text
}

/// Compares what came of a group's steps, and writes the differences into a file.
fn judge(
    group: &str,
    steps: &[Step],
    expected: &[Outcome],
    found: &[Outcome],
    known: &[&deviations::Deviation],
) -> Result<(), Failed> {
    let mut met = vec![false; known.len()];
    let mut report = String::new();
    let (mut count, mut held) = (0, 0);
    for (((line, operation), expected), found) in told(steps).zip(expected).zip(found) {
        count += 1;
        let mut text = differences(expected, found);
        let answer = format!("{}{}", found.output, found.error);
        if !text.is_empty()
            && let Some(place) = known.iter().position(|it| it.matches(operation, &answer))
        {
            met[place] = true;
            text = String::new();
        }
        let both = expected.wrong.iter().map(|it| format!("(plain) {it}")).chain(found.wrong.iter().cloned());
        for wrong in both {
            writeln!(text, "    {wrong}").unwrap();
        }
        if text.is_empty() {
            held += 1;
        } else {
            writeln!(report, "{group}:{line}: kubectl {operation}\n{text}").unwrap();
        }
    }
    for (deviation, _) in known.iter().zip(&met).filter(|(_, met)| !**met) {
        writeln!(report, "a deviation that is none any more: {}", deviation.describe()).unwrap();
    }
    let slowest = |outcomes: &[Outcome]| outcomes.iter().map(|outcome| outcome.took).max().unwrap_or_default();
    let total = |outcomes: &[Outcome]| outcomes.iter().map(|outcome| outcome.took).sum::<std::time::Duration>();
    let summary = format!(
        "{group}: {held} of {count} operations alike; {:.1?} and {:.1?}, the slowest {:.1?} and {:.1?}",
        total(expected),
        total(found),
        slowest(expected),
        slowest(found)
    );
    if group != SELF_TEST {
        println!("{summary}");
    }
    if report.is_empty() {
        return Ok(());
    }
    let path = report_path(group);
    std::fs::write(&path, &report).unwrap();
    let mut shown = SHOWN_BYTES_MAX.min(report.len());
    while !report.is_char_boundary(shown) {
        shown -= 1;
    }
    Err(format!("{summary}\nall differences: {}\n\n{}", path.display(), &report[..shown]).into())
}

fn report_path(group: &str) -> PathBuf {
    let folder = kubewharf_testkit::tools::workspace().unwrap().join("target/zoo");
    std::fs::create_dir_all(&folder).unwrap();
    folder.join(format!("{group}.txt"))
}

fn differences(expected: &Outcome, found: &Outcome) -> String {
    let mut text = String::new();
    if expected.code != found.code {
        writeln!(text, "    exit code {} instead of {}", found.code, expected.code).unwrap();
    }
    text.push_str(&difference::difference(&expected.output, &found.output));
    text.push_str(&difference::difference(&expected.error, &found.error));
    text
}

/// The comparison finds what is wrong, in each part of an outcome, and takes a deviation for one only where it is one.
fn a_broken_answer_is_found() {
    let steps = script::parse("$ get a\n");
    let fine = Outcome { output: "a\n".to_owned(), ..Outcome::default() };
    let judged = |found: Outcome| {
        judge(SELF_TEST, &steps, std::slice::from_ref(&fine), &[found], &[])
            .err()
            .map(|it| it.message().unwrap().to_owned())
    };
    assert_eq!(judged(fine.clone()), None);
    let found = judged(Outcome { output: "b\n".to_owned(), ..fine.clone() }).unwrap();
    assert!(found.contains("    - a\n    + b\n") && found.contains("broken:1: kubectl get a"), "{found}");
    assert!(judged(Outcome { code: 1, ..fine.clone() }).unwrap().contains("exit code 1 instead of 0"));
    assert!(judged(Outcome { error: "Warning".to_owned(), ..fine.clone() }).unwrap().contains("+ Warning"));
    let wrong = Outcome { wrong: vec!["kzabc-a".to_owned()], ..fine.clone() };
    assert!(judged(wrong).unwrap().contains("kzabc-a"));
}
