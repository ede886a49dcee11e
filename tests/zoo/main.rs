//! Tests of KubeZoo as its users run it: the program in front of a real kube-apiserver, and real clients of it.
//!
//! A plain kube-apiserver is the oracle: what it answers, a tenant must be answered, but for ids, times and the deviations
//! that COMPAT.md lists. The clusters start with the first test that needs them and are shared by all.
//!
//! Arguments are those of any test program: `cargo test -p kubewharf-tests --test zoo -- kubectl/rbac` runs one group of
//! operations. `KUBEWHARF_ZOO_SUBJECT=plain` puts a second plain kube-apiserver in the tenant's place: then nothing may
//! differ, or the comparison is wrong.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod attacks;
mod control;
mod crash;
mod fixture;
mod oracle;
mod pods;
mod taint;

use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};

use fixture::World;

fn main() {
    let mut arguments = Arguments::from_args();
    // Groups list what is in the whole cluster, so they run one after the other. Each keeps two cores busy by itself.
    arguments.test_threads = Some(1);
    let world = Arc::new(World::new());
    let mut trials = oracle::trials(&world);
    trials.extend(attacks::trials(&world));
    trials.extend(pods::trials(&world));
    trials.extend(taint::trials(&world));
    trials.push(Trial::test("crash/clients_go_on_and_no_tenant_stays_half_made", || {
        crash::clients_go_on_and_no_tenant_stays_half_made();
        Ok(())
    }));
    trials.push(Trial::test("control/several_zoos_have_one_leader_and_tell_what_they_do", || {
        control::several_zoos_have_one_leader_and_tell_what_they_do();
        Ok(())
    }));
    let conclusion = libtest_mimic::run(&arguments, trials);
    // The folders of the clusters stay when their owner panics.
    assert!(!conclusion.has_failed(), "{} tests failed\n{}", conclusion.num_failed, oracle::failures());
}
