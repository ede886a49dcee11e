//! Many hours of members that share an engine, with everything that can go wrong between them, in seconds: seeded, and checked.
//!
//! The rules under test are the real ones: what becomes of a batch ([`crate::committer::Resolution`]), when to take over
//! ([`crate::cluster::election::Election`]) and how ([`crate::cluster::takeover::Takeover`]). Around them, members, network, engine and
//! clients are simulated under virtual time. [`history`] holds every answer against the engine's log. [`Bug`] breaks one rule at a
//! time, to show that the checks would notice.
//!
//! `KUBEWHARF_SIMULATION_SEED` runs a single seed and prints what happens, `KUBEWHARF_SIMULATION_SEEDS` sets how many seeds there are.
//!
//! Invariant: a run depends on its seed alone.

mod clock;
mod engine;
mod history;
mod leader;
mod member;
mod network;
mod random;
mod world;

use self::history::Counts;
use self::world::{Outcome, Plan, run};

/// How many keys there are: few, so that requests meet.
const KEYS: usize = 4;

/// A request's place in the history.
type OpId = u32;

/// A rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    /// The engine compares only the head's revision.
    ComparesRevision,
    /// The engine compares only the head's epoch and revision.
    ComparesEpochAndRevision,
    /// An old head after an attempt of unknown outcome is taken for its failure.
    OldHeadIsNotApplied,
    /// A leader that was deposed goes on with its old rows when it leads again.
    KeepsCache,
    /// One's own head is taken for success without a successor.
    SeenIsApplied,
    /// A leader answers reads without a look at the engine.
    ReadsWithoutLook,
    /// A leader answers reads with what is confirmed to it, though the engine shows more.
    ReadsUnconfirmed,
    /// A leader refuses writes, for what it has found, without a look at the engine.
    RefusesWithoutLook,
    /// The engine shows in its views what it may still lose.
    ShowsUnsynced,
}

const STEPS: u64 = 10_000;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number, not {text:?}")))
}

fn plan(seed: u64, bug: Option<Bug>, is_volatile: bool) -> Plan {
    Plan { seed, steps: STEPS, bug, is_volatile, is_traced: false }
}

/// Runs seeds, of which none may fail.
fn run_all(seeds: u64, is_volatile: bool) {
    let seeds = number("KUBEWHARF_SIMULATION_SEEDS").unwrap_or(seeds);
    let single = number("KUBEWHARF_SIMULATION_SEED");
    let begun = std::time::Instant::now();
    let (mut steps, mut took, mut counts) = (0, 0, Counts::default());
    for seed in single.map_or(0..seeds, |seed| seed..seed + 1) {
        let outcome = run(Plan { is_traced: single.is_some(), ..plan(seed, None, is_volatile) });
        if let Some(violation) = outcome.violation {
            panic!("seed {seed} after {} steps: {violation}", outcome.steps);
        }
        steps += outcome.steps;
        took += outcome.took;
        counts.add(&outcome.counts);
    }
    let rate = steps as f64 / begun.elapsed().as_secs_f64();
    if single.is_none() && seeds >= 1000 {
        let Counts { written, granted, found, read, not_done, unknown, reigns, seen, fates, given_up, undone } = counts;
        let all = [written, granted, found, read, not_done, unknown, reigns, seen, fates, given_up];
        assert!(
            all.iter().all(|&count| count > 0) && is_volatile == (undone > 0),
            "not everything happens: {counts:?}"
        );
    }
    println!("{steps} steps, {rate:.0} a second, {} s of virtual time, {counts:?}", took / network::SECOND);
}

/// Runs seeds until the bug is found; gives the outcome.
fn find(bug: Bug, is_volatile: bool, seeds: u64) -> Outcome {
    for seed in 0..seeds {
        let outcome = run(plan(seed, Some(bug), is_volatile));
        if let Some(violation) = &outcome.violation {
            println!("{bug:?} is found by seed {seed} after {} steps: {violation}", outcome.steps);
            return outcome;
        }
    }
    panic!("{bug:?} is not found by {seeds} seeds");
}

#[test]
fn clients_are_told_the_truth_whatever_happens_between_members_and_engine() {
    run_all(1000, false);
}

#[test]
fn what_an_engine_loses_that_it_has_not_confirmed_nobody_was_told() {
    run_all(1000, true);
}

#[test]
#[ignore = "minutes long"]
fn clients_are_told_the_truth_in_many_more_runs() {
    run_all(20_000, false);
    run_all(20_000, true);
}

#[test]
fn a_run_depends_on_its_seed_alone() {
    assert_eq!(run(plan(7, None, true)), run(plan(7, None, true)));
}

#[test]
fn an_engine_that_compares_only_the_revision_is_found() {
    find(Bug::ComparesRevision, false, 50);
}

#[test]
fn an_engine_that_compares_only_epoch_and_revision_is_found() {
    find(Bug::ComparesEpochAndRevision, false, 50);
}

#[test]
fn an_old_head_that_is_taken_for_a_batch_not_applied_is_found() {
    find(Bug::OldHeadIsNotApplied, false, 50);
}

#[test]
fn rows_that_are_kept_from_one_reign_to_the_next_are_found() {
    find(Bug::KeepsCache, false, 50);
}

#[test]
fn a_head_that_is_taken_for_success_without_a_successor_is_found() {
    find(Bug::SeenIsApplied, true, 200);
}

#[test]
fn a_read_without_a_look_at_the_engine_is_found() {
    find(Bug::ReadsWithoutLook, false, 50);
}

#[test]
fn a_read_of_a_leader_that_is_behind_its_followers_is_found() {
    find(Bug::ReadsUnconfirmed, false, 50);
}

#[test]
fn a_refusal_without_a_look_at_the_engine_is_found() {
    find(Bug::RefusesWithoutLook, false, 1000);
}

#[test]
fn an_engine_that_shows_what_it_may_lose_is_found() {
    find(Bug::ShowsUnsynced, true, 200);
}
