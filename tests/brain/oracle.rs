//! The same requests to a real etcd and to KubeBrain: every reply must be the same but for ids and times.
//!
//! A scenario ([`recorder`]) runs on both stores ([`pair`]) from the same revision; all replies, refusals with their
//! codes and texts included, are compared as a whole ([`normal`] says what is left out). What KubeBrain answers
//! differently on purpose is listed in [`deviations`]. With `KUBEWHARF_TEST_STORE=etcd` etcd is compared with itself,
//! which shows what a scenario leaves to chance.

mod deviations;
mod leases;
mod normal;
mod others;
mod pair;
mod random;
mod reads;
mod recorder;
mod txns;
mod watches;
mod watching;
mod writes;

use std::process::Command;

use kubewharf_testkit::process;
use kubewharf_testkit::store::STORE_VARIABLE;

/// Runs these tests once more in a process of their own, on another kind of store.
fn on(store: &str) {
    let program = std::env::current_exe().expect("this program has a file");
    let mut tests = Command::new(program);
    let output = process::run(tests.args(["oracle::", "--skip=oracle::over_"]).env(STORE_VARIABLE, store));
    let output = output.expect("the tests pass");
    assert!(output.contains("test result: ok") && !output.contains(" 0 passed"), "{output}");
}

#[test]
fn over_postgresql_all_is_answered_as_by_etcd_too() {
    on("postgres");
}

#[test]
fn over_postgresql_a_follower_answers_all_as_etcd_does_too() {
    on("follower");
}
