//! Kube-apiservers that are restarted, die or hang behind the gateway.

use std::time::Duration;

use crate::fixture::{EVERYTHING, Fixture, wait};
use crate::load::{Load, while_writing};

/// How long an apiserver may take to stop; a kubelet gives it 30 s.
const STOP_WITHIN: Duration = Duration::from_secs(4);
/// How long it may take until it is known that an apiserver hangs, and what began before is done: a second, and some for
/// a busy machine.
const KNOWN_WITHIN: Duration = Duration::from_secs(2);
/// What no request takes that does not wait for a hanging apiserver.
const QUICK: Duration = Duration::from_millis(500);
/// How long it hangs then.
const HANG: Duration = Duration::from_secs(3);

#[test]
fn apiservers_come_and_go_and_no_request_fails_and_no_informer_lists_again() {
    let mut fixture = Fixture::start(EVERYTHING);
    let mut load = Load::start(&fixture);
    let writer = fixture.admin();
    let failures = while_writing(&writer, || {
        for apiserver in &mut fixture.apiservers {
            apiserver.process().stop(STOP_WITHIN);
            apiserver.start_again().unwrap();
        }
        for apiserver in &mut fixture.apiservers {
            apiserver.process().kill();
            apiserver.start_again().unwrap();
        }
        // All watches are at the first one, as the second one was killed last.
        wait("both are well again", || {
            fixture.gateway.endpoints().iter().all(|endpoint| endpoint["in_rotation"] == true)
        });
        let watches = |place: usize| fixture.gateway.endpoints()[place]["watch_in_flight"].as_u64().unwrap();
        assert!(watches(0) > 0, "nobody watches at the first one");
        let before = load.slowest_since_asked();
        fixture.apiservers[0].process().pause();
        std::thread::sleep(KNOWN_WITHIN);
        let until_known = load.slowest_since_asked();
        std::thread::sleep(HANG);
        let known = load.slowest_since_asked();
        println!("slowest requests: {before:?}, while an apiserver hangs {until_known:?}, once it is known {known:?}");
        assert!(
            before < KNOWN_WITHIN && until_known < KNOWN_WITHIN && known < QUICK,
            "{before:?} {until_known:?} {known:?}"
        );
    });
    println!("writes that were tried again: {failures:#?}");
    // Those whose watch hangs learn it from the other one.
    load.wait_until_all_is_known();
    fixture.apiservers[0].process().resume();
    load.wait_until_all_is_known();
    load.finish();
}
