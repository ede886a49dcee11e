//! Kube-apiservers that are restarted, die or hang behind the gateway.

use std::time::Duration;

use crate::fixture::{EVERYTHING, Fixture};
use crate::load::{Load, while_writing};

/// How long an apiserver may take to stop; a kubelet gives it 30 s.
const STOP_WITHIN: Duration = Duration::from_secs(4);
/// How long an apiserver hangs.
const HANG: Duration = Duration::from_secs(4);

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
        // Both have watches again.
        std::thread::sleep(Duration::from_secs(1));
        fixture.apiservers[0].process().pause();
        std::thread::sleep(HANG);
    });
    println!("writes that were tried again: {failures:#?}");
    // Those whose watch hangs learn it from the other one.
    load.wait_until_all_is_known();
    fixture.apiservers[0].process().resume();
    load.wait_until_all_is_known();
    let slowest = load.slowest();
    load.finish();
    assert!(slowest < Duration::from_millis(2500), "{slowest:?}");
}
