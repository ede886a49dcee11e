//! Tests of the engine over a TiKV cluster, which `PD_ADDRS` names: one binary. Without it every test counts as ignored; so do those that signal
//! servers of the cluster, unless the environment names the files with their process numbers.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod commits;
mod faults;
mod fencing;
mod opening;
mod random;
mod restoring;
mod stores;
mod writer;

use std::process::ExitCode;
use std::sync::{PoisonError, RwLock};

use kubewharf_engine::conformance;
use kubewharf_testkit::cluster::{PD_PIDS_VARIABLE, STORE_PIDS_VARIABLE, Server};
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

/// Those that do something to the cluster.
const FAULTS: [Fault; 5] = [
    Fault { name: "the_safe_point_moves", test: faults::the_safe_point_moves_where_that_is_wanted, needs: None },
    Fault { name: "regions_split_and_move_under_load", test: faults::regions_split_and_move_under_load, needs: None },
    Fault {
        name: "a_table_of_many_regions_is_one_table",
        test: faults::a_table_of_many_regions_is_one_table,
        needs: None,
    },
    Fault {
        name: "pds_that_fail_are_waited_for",
        test: faults::pds_that_stand_still_or_are_killed_are_waited_for,
        needs: Some(PD_PIDS_VARIABLE),
    },
    Fault {
        name: "stores_that_fail_are_waited_for",
        test: faults::stores_that_stand_still_or_are_killed_are_waited_for,
        needs: Some(STORE_PIDS_VARIABLE),
    },
];

struct Fault {
    name: &'static str,
    test: fn(),
    /// The variable that names what it needs beside the cluster.
    needs: Option<&'static str>,
}

/// Held by those that do something to the cluster, alone, and by all others together.
static CLUSTER: RwLock<()> = RwLock::new(());

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let is_there = Place::from_environment().is_some();
    let tests = TESTS.map(|(name, test)| {
        Trial::test(name, move || {
            let _shared = CLUSTER.read().unwrap_or_else(PoisonError::into_inner);
            test();
            Ok(())
        })
        .with_ignored_flag(!is_there)
    });
    let faults = FAULTS.map(|Fault { name, test, needs }| {
        let missing = needs.filter(|variable| Server::from_environment(variable).is_empty());
        if let Some(variable) = missing.filter(|_| is_there) {
            eprintln!("not tested: {name}, as {variable} names no files with process numbers");
        }
        Trial::test(name, move || {
            let _alone = CLUSTER.write().unwrap_or_else(PoisonError::into_inner);
            test();
            Ok(())
        })
        .with_ignored_flag(!is_there || missing.is_some())
    });
    libtest_mimic::run(&arguments, tests.into_iter().chain(faults).collect()).exit_code()
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
