//! What happens to many requests and watches when one of two mock apiservers is restarted, dies, hangs, or fails while
//! its probe is well.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use http::{HeaderMap, Method};

use crate::fixture::{EVERYTHING, wait};
use crate::mock::Mock;
use crate::mock::informers::Informers;
use crate::mock::requests::Requests;

/// Requests a second, and the connections that they come over.
const RATE: u64 = 1000;
const CONNECTIONS: usize = 20;
const WATCHES: usize = 2000;
/// Time between two writes, which every watch sees.
const WRITE_INTERVAL: Duration = Duration::from_millis(500);
/// How long an apiserver takes to answer, so that there are requests in flight whatever happens.
const ANSWER_MS: u64 = 20;
/// Within this it must be known that an apiserver is of no use; and some for a busy machine.
const KNOWN_WITHIN: Duration = Duration::from_millis(1000 + 500);
/// How long an apiserver is away.
const AWAY: Duration = Duration::from_secs(4);
/// How long all is well in between.
const PAUSE: Duration = Duration::from_secs(1);

/// Requests and watches through a gateway to two apiservers, and the time in which something happens to these.
struct Load {
    mock: Mock,
    requests: Requests,
    informers: Informers,
}

impl Load {
    fn start() -> Self {
        let mock = Mock::start(2, EVERYTHING);
        mock.apiservers.iter().for_each(|one| one.control.delay_ms.store(ANSWER_MS, SeqCst));
        let informers = Informers::start(&mock, WATCHES, CONNECTIONS);
        let requests = Requests::start(&mock, RATE, CONNECTIONS);
        let load = Self { mock, requests, informers };
        load.pass(PAUSE);
        load
    }

    /// Lets time pass, while things are written.
    fn pass(&self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.mock.etcd.write();
            std::thread::sleep(WRITE_INTERVAL.min(end.saturating_duration_since(Instant::now())));
        }
    }

    /// As [`Load::finish_gracefully`]; some requests must have met what was wrong.
    fn finish(self) -> u64 {
        let (begun, retries) = self.finish_gracefully();
        assert!(retries > 0.0);
        begun
    }

    /// Nothing must have happened to any request, nor to a watch that its client can't mend by itself. The number of watches that were
    /// begun, and of requests that were tried again: none need be, where an apiserver says that it goes.
    fn finish_gracefully(self) -> (u64, f64) {
        self.mock.etcd.write();
        self.informers.wait_until_all_is_known(&self.mock);
        let retries = self.mock.gateway.metric("kubegateway_proxy_retries_total");
        let informers = self.informers.finish(&self.mock);
        let requests = self.requests.finish(&self.mock);
        println!("{requests:?} {informers:?}, {retries} tried again");
        assert_eq!(requests.failures, [].into());
        assert_eq!(requests.sent, requests.answered);
        assert_eq!(informers.relists, [].into());
        (informers.begun, retries)
    }
}

#[test]
fn apiservers_are_restarted_in_turn_and_no_request_fails_and_no_watch_begins_from_nothing() {
    let mut load = Load::start();
    for place in [0, 1, 0, 1] {
        load.mock.apiservers[place].stop();
        load.pass(PAUSE);
        load.mock.apiservers[place].start_again();
        load.mock.wait_until_all_are_well();
        load.pass(PAUSE);
    }
    let (begun, _) = load.finish_gracefully();
    // The second one to stop had the watches of both.
    assert!(begun >= WATCHES as u64 * 2, "{begun} watches are too few: none had to begin again");
}

#[test]
fn a_killed_apiserver_costs_no_request_and_no_list() {
    let mut load = Load::start();
    for place in [0, 1] {
        let killed = Instant::now();
        load.mock.apiservers[place].kill();
        let known = load.mock.wait_until_known(place, killed);
        println!("known after {known:?}");
        assert!(known < KNOWN_WITHIN, "{known:?}");
        load.pass(AWAY);
        load.mock.apiservers[place].start_again();
        load.mock.wait_until_all_are_well();
        load.pass(PAUSE);
    }
    let begun = load.finish();
    assert!(begun >= WATCHES as u64 * 2, "{begun} watches are too few: none was lost");
}

#[test]
fn a_hanging_apiserver_costs_no_request_and_is_left_alone_once_it_is_known() {
    let load = Load::start();
    for place in [0, 1] {
        load.requests.slowest_since_asked();
        let apiserver = &load.mock.apiservers[place];
        let frozen = Instant::now();
        apiserver.freeze();
        let known = load.mock.wait_until_known(place, frozen);
        // Those that were under way are answered elsewhere.
        std::thread::sleep(KNOWN_WITHIN);
        let until_known = load.requests.slowest_since_asked();
        load.pass(AWAY);
        let afterwards = load.requests.slowest_since_asked();
        println!("known after {known:?}; slowest requests: {until_known:?} until then, {afterwards:?} afterwards");
        assert!(known < KNOWN_WITHIN, "{known:?}");
        // Whoever still met it would wait for as long as it takes to find out.
        assert!(afterwards < known, "{afterwards:?}");
        apiserver.thaw();
        load.mock.wait_until_all_are_well();
        load.pass(PAUSE);
    }
    load.finish();
}

#[test]
fn the_only_apiserver_is_waited_for_while_it_hangs() {
    // Longer than it takes to know, and shorter than until its connections are cut.
    const HANGS: Duration = Duration::from_millis(2500);
    let mock = Mock::start(1, EVERYTHING);
    let apiserver = &mock.apiservers[0];
    apiserver.control.delay_ms.store(300, SeqCst);
    let connection = mock.runtime.block_on(mock.connector().connect());
    let request = mock.runtime.spawn(async move { connection.get("/api/v1/namespaces/team/pods/web").await });
    wait("the apiserver has the request", || apiserver.control.requests() == 1);
    apiserver.freeze();
    mock.wait_until_known(0, Instant::now());
    std::thread::sleep(HANGS);
    apiserver.thaw();
    let (status, _) = mock.runtime.block_on(request).unwrap().unwrap();
    assert_eq!(status, http::StatusCode::OK);
}

#[test]
fn an_apiserver_that_fails_while_its_probe_is_well_costs_no_request() {
    let load = Load::start();
    let control = &load.mock.apiservers[0].control;
    let before = control.requests();
    let failing = Instant::now();
    control.says.store(503, SeqCst);
    let known = load.mock.wait_until_known(0, failing);
    let until_known = control.requests() - before;
    load.pass(AWAY * 3);
    let requests = control.requests() - before;
    let sent = load.requests.sent();
    control.says.store(0, SeqCst);
    println!("known after {known:?} and {until_known} requests; {requests} requests met it");
    assert!(known < KNOWN_WITHIN, "{known:?}");
    // Now and then it is looked at again, as its probe gives no reason to give it up.
    assert!(requests < sent / 20, "{requests} of {sent} requests met it");
    load.mock.wait_until_all_are_well();
    load.finish();
}

#[test]
fn a_watch_that_is_lost_before_its_first_event_ends_well_and_not_within_its_first_second() {
    // client-go lists everything again after a shorter one.
    const SHORT: Duration = Duration::from_secs(1);
    let mut mock = Mock::start(1, EVERYTHING);
    for is_killed in [false, true] {
        let target = format!("/api/v1/pods?watch=true&resourceVersion={}", mock.etcd.revision());
        let connection = mock.runtime.block_on(mock.connector().connect());
        let headers = HeaderMap::new();
        let watch = connection.begin(Method::GET, &target, &headers, None);
        let mut watch = mock.runtime.block_on(watch).unwrap();
        let begun = Instant::now();
        if is_killed {
            mock.apiservers[0].kill();
        } else {
            mock.apiservers[0].stop();
        }
        // The end of a stream may come with a frame that has nothing else in it.
        while let Some(piece) = mock.runtime.block_on(watch.body_mut().data()) {
            assert!(piece.as_ref().is_ok_and(bytes::Bytes::is_empty), "{piece:?}");
        }
        assert!(begun.elapsed() >= SHORT, "{:?}", begun.elapsed());
        mock.apiservers[0].start_again();
        mock.wait_until_all_are_well();
    }
}

#[test]
fn retries_stay_within_their_budget_when_every_apiserver_fails() {
    const PERCENT: u64 = 20;
    const SAVED: u64 = 500;
    const A_SECOND: u64 = 10;
    let mock = Mock::start(2, EVERYTHING);
    let controls = || mock.apiservers.iter().map(|one| &one.control);
    controls().for_each(|control| control.says.store(503, SeqCst));
    let begun = Instant::now();
    let requests = Requests::start(&mock, RATE, CONNECTIONS);
    std::thread::sleep(AWAY);
    let report = requests.finish(&mock);
    let seconds = begun.elapsed().as_secs() + 1;
    let met: u64 = controls().map(|control| control.requests()).sum();
    println!("{} requests, {met} tries", report.sent);
    assert_eq!(report.answered, 0);
    assert_eq!(report.failures.values().sum::<u64>(), report.sent);
    assert!(report.failures.keys().all(|failure| failure.starts_with("503")), "{:?}", report.failures);
    assert!(met > report.sent + SAVED / 2, "hardly any was tried again: {met} tries of {}", report.sent);
    let most = report.sent + report.sent * PERCENT / 100 + SAVED + A_SECOND * seconds;
    assert!(met <= most, "{met} tries of {} requests", report.sent);
}
