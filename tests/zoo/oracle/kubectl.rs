//! What kubectl prints, group by group.

use std::sync::Arc;

use libtest_mimic::{Failed, Trial};

use super::judge::{Answered, judge};
use super::script::{self, Step};
use super::side::Side;
use crate::fixture::World;

/// The groups in the order in which they run. The first ones list what is in the whole cluster.
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
    ("tokens", include_str!("operations/tokens.txt")),
    ("network", include_str!("operations/network.txt")),
    ("quota", include_str!("operations/quota.txt")),
    ("events", include_str!("operations/events.txt")),
    ("rbac", include_str!("operations/rbac.txt")),
    ("reviews", include_str!("operations/reviews.txt")),
    ("discovery", include_str!("operations/discovery.txt")),
    ("errors", include_str!("operations/errors.txt")),
    ("system", include_str!("operations/system.txt")),
];

/// What is out of reach. These groups run if [`TO_COME_VARIABLE`] is set, to see how far it is.
const TO_COME: &[(&str, &str)] = &[
    // Tenants have no volumes, definitions of kinds, classes, policies or nodes of their own yet: what comes first is refused, and what comes
    // next waits for it.
    ("storage", include_str!("operations/storage.txt")),
    ("crds", include_str!("operations/crds.txt")),
    ("cluster", include_str!("operations/cluster.txt")),
    ("nodes", include_str!("operations/nodes.txt")),
    // Tenants have no Secrets with tokens that last for ever.
    ("lasting-tokens", include_str!("operations/lasting-tokens.txt")),
    // How soon controllers get to it decides what is told.
    ("late", include_str!("operations/late.txt")),
];
const TO_COME_VARIABLE: &str = "KUBEWHARF_ZOO_TO_COME";

/// A test for each group.
pub(super) fn trials(world: &Arc<World>) -> Vec<Trial> {
    let trial = |&(group, text): &(&'static str, &'static str)| {
        let world = world.clone();
        Trial::test(format!("kubectl/{group}"), move || compare(&world, group, text))
    };
    let to_come = if std::env::var_os(TO_COME_VARIABLE).is_some() { TO_COME } else { &[] };
    GROUPS.iter().chain(to_come).map(trial).collect()
}

/// Runs a group on both sides at once.
fn compare(world: &World, group: &str, text: &str) -> Result<(), Failed> {
    let (oracle, subject) = world.pair();
    let steps = script::parse(text);
    let plain = Side::new(oracle.apiserver.kubeconfig(), oracle.apiserver.url(), Vec::new());
    let judged = Side::new(subject.kubeconfig(), subject.server(), subject.secrets());
    let steps = steps.as_slice();
    let answers = std::thread::scope(|scope| {
        [plain, judged].map(|mut side| scope.spawn(move || side.run(steps))).map(|outcomes| outcomes.join().unwrap())
    });
    let [expected, found] = answers.map(|outcomes| {
        let told = told(steps).zip(outcomes);
        told.map(|((place, operation), outcome)| Answered { place, operation, outcome }).collect::<Vec<_>>()
    });
    judge(&format!("kubectl/{group}"), subject, &expected, &found)
}

/// What is done in each step that has an outcome: where it is written, and what.
fn told(steps: &[Step]) -> impl Iterator<Item = (String, String)> {
    steps.iter().filter_map(|step| match step {
        Step::File { .. } => None,
        Step::Run(operation) => Some((operation.line.to_string(), format!("kubectl {}", operation.text))),
        Step::Finish { line, name, .. } => Some((line.to_string(), format!("the end of {name}"))),
    })
}
