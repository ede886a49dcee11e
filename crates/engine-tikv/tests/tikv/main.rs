//! Tests of the engine over a TiKV cluster, which `PD_ADDRS` names: one binary. Without it every test counts as ignored.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod commits;
mod fencing;
mod opening;
mod restoring;
mod stores;
mod writer;

use std::process::ExitCode;

use kubewharf_engine::conformance;
use kubewharf_testkit::tikv::Tikv as Place;
use libtest_mimic::{Arguments, Trial};

const TESTS: [(&str, fn()); 13] = [
    ("tikv_conforms", tikv_conforms),
    ("tikv_conforms_with_two_phases", tikv_conforms_with_two_phases),
    ("a_deposed_process_is_fenced", fencing::a_deposed_process_is_fenced_and_sees_what_the_new_one_wrote),
    ("engines_that_race_take_turns_and_lose_nothing", fencing::engines_that_race_take_turns_and_lose_nothing),
    ("large_batches_race_and_one_wins", fencing::large_batches_race_and_one_wins),
    ("an_empty_place_is_opened_by_many_at_once", opening::an_empty_place_is_opened_by_many_at_once),
    ("a_cluster_that_is_not_there_is_an_error", opening::a_cluster_that_is_not_there_is_an_error),
    ("one_pd_that_is_away_is_passed_over", opening::one_pd_that_is_away_is_passed_over),
    ("a_caller_within_a_runtime_is_no_trouble", commits::a_caller_within_a_runtime_is_no_trouble),
    ("batches_of_all_sizes_are_applied", commits::batches_of_all_sizes_are_applied),
    ("every_outcome_is_settled", writer::every_outcome_is_settled_whatever_happens_to_the_cluster),
    ("a_store_moves_between_engines_by_its_backup", restoring::a_store_moves_between_engines_by_its_backup),
    ("a_damaged_backup_leaves_a_store_that_is_refused", restoring::a_damaged_backup_leaves_a_store_that_is_refused),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let is_there = Place::from_environment().is_some();
    let trials = TESTS.map(|(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
        .with_ignored_flag(!is_there)
    });
    libtest_mimic::run(&arguments, trials.into()).exit_code()
}

fn tikv_conforms() {
    let scratch = tempfile::tempdir().unwrap();
    conformance::run(&|| Box::new(stores::TikvStore::new(stores::options())), scratch.path());
}

/// Small batches too.
fn tikv_conforms_with_two_phases() {
    let scratch = tempfile::tempdir().unwrap();
    let make = || stores::TikvStore::new(stores::with_parameter(stores::options(), "one_phase=false"));
    conformance::run(&|| Box::new(make()), scratch.path());
}
