//! How answers end for their clients, and what is written down of it.

use std::process::Command;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, Method, Response, StatusCode};

use crate::fixture::{EVERYTHING, wait};
use crate::mock::Mock;
use crate::mock::apiserver::LOG_LINE;

/// Requests something with GET on a connection of its own, until the answer's head is there.
fn begin(mock: &Mock, target: &str) -> Response<RecvStream> {
    let headers = HeaderMap::new();
    let answer = mock.runtime.block_on(async {
        let connection = mock.connector().connect().await;
        connection.begin(Method::GET, target, &headers, None).await.unwrap()
    });
    assert_eq!(answer.status(), StatusCode::OK);
    answer
}

/// The next piece that is not empty; `None` at the end.
fn next(mock: &Mock, answer: &mut Response<RecvStream>) -> Option<Result<Bytes, h2::Error>> {
    let body = answer.body_mut();
    mock.runtime.block_on(async {
        loop {
            match body.data().await {
                // The end of a stream may come with a frame that has nothing else in it.
                Some(Ok(piece)) if piece.is_empty() => {}
                piece => return piece,
            }
        }
    })
}

/// How the only request of that path has ended, in the words of the access log.
fn end_of(mock: &Mock, path: &str) -> String {
    let mut end = String::new();
    wait("the request is logged", || {
        let lines = mock.gateway.access_log();
        let mut ends = lines.iter().filter(|line| line["target"].as_str().unwrap().starts_with(path));
        ends.next().is_some_and(|line| {
            line["end"].as_str().unwrap().clone_into(&mut end);
            true
        })
    });
    end
}

#[test]
fn an_answer_with_trailers_is_complete() {
    const TARGET: &str = "/api/v1/namespaces/team/services/web/proxy/trailers";
    let mock = Mock::start(1, EVERYTHING);
    let mut answer = begin(&mock, TARGET);
    while let Some(piece) = next(&mock, &mut answer) {
        piece.unwrap();
    }
    let trailers = mock.runtime.block_on(std::future::poll_fn(|context| answer.body_mut().poll_trailers(context)));
    assert_eq!(trailers.unwrap().unwrap()["checksum"], "42");
    assert_eq!(end_of(&mock, TARGET), "finished");
    assert_eq!(mock.gateway.metric("kubegateway_proxy_apiserver_request_terminations_total"), 0.0);
}

#[test]
fn a_log_that_is_followed_breaks_off_when_its_apiserver_dies() {
    const LOG: &str = "/api/v1/namespaces/team/pods/web/log";
    let mut mock = Mock::start(1, EVERYTHING);
    let mut answer = begin(&mock, &format!("{LOG}?follow=true"));
    assert_eq!(next(&mock, &mut answer).unwrap().unwrap(), LOG_LINE);
    mock.apiservers[0].kill();
    // A clean end would say that there is no more.
    let error = next(&mock, &mut answer).expect("the log has not ended").expect_err("the log broke off");
    assert!(error.is_reset(), "{error}");
    assert_eq!(end_of(&mock, LOG), "lost");
}

#[test]
fn a_watch_whose_apiserver_dies_within_an_event_ends_well_and_not_within_its_first_second() {
    // client-go lists everything again after a shorter one, and after one that is reset.
    const SHORT: Duration = Duration::from_secs(1);
    let mut mock = Mock::start(1, EVERYTHING);
    let target = format!("/api/v1/pods?watch=true&resourceVersion={}", mock.etcd.revision());
    mock.apiservers[0].control.halves.store(true, SeqCst);
    let begun = Instant::now();
    let mut watch = begin(&mock, &target);
    mock.etcd.write();
    let half = next(&mock, &mut watch).unwrap().unwrap();
    assert!(!half.ends_with(b"\n"), "{half:?}");
    mock.apiservers[0].kill();
    assert!(next(&mock, &mut watch).is_none(), "it ends, and is not reset");
    assert!(begun.elapsed() >= SHORT, "{:?}", begun.elapsed());
    assert_eq!(end_of(&mock, &target), "lost");
}

#[test]
fn a_gateway_that_stops_ends_its_watches_well_one_after_another_and_lets_all_else_go_on() {
    const WATCHES: usize = 40;
    // The gateways of these tests have five seconds to stop.
    const LAST: Duration = Duration::from_millis(2500 + 500);
    const TARGET: &str = "/api/v1/namespaces/team/pods?limit=500";
    let mut mock = Mock::start(1, EVERYTHING);
    let watch = format!("/api/v1/namespaces/team/configmaps?watch=true&resourceVersion={}", mock.etcd.revision());
    let mut watches: Vec<_> = (0..WATCHES).map(|_| begin(&mock, &watch)).collect();
    mock.etcd.write();
    for watch in &mut watches {
        assert!(next(&mock, watch).unwrap().is_ok());
    }
    let mut log = begin(&mock, "/api/v1/namespaces/team/pods/web/log?follow=true");
    assert_eq!(next(&mock, &mut log).unwrap().unwrap(), LOG_LINE);
    let control = &mock.apiservers[0].control;
    control.delay_ms.store(3500, SeqCst);
    let before = control.requests();
    let connection = mock.runtime.block_on(mock.connector().connect());
    let slow = mock.runtime.spawn({
        let connection = connection.clone();
        async move { connection.get(TARGET).await }
    });
    wait("the slow request is there", || control.requests() > before);
    let pid = mock.gateway.process.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let begun = Instant::now();
    let ends = watches.into_iter().map(|mut watch| {
        mock.runtime.spawn(async move {
            while let Some(piece) = watch.body_mut().data().await {
                assert!(piece.as_ref().is_ok_and(Bytes::is_empty), "{piece:?}");
            }
            begun.elapsed()
        })
    });
    let ends: Vec<_> = ends.collect();
    // GOAWAY comes first, so that no further request does.
    let refused = mock.runtime.block_on(async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        connection.get(TARGET).await
    });
    refused.expect_err("the connection takes no further request");
    let mut ends: Vec<_> = ends.into_iter().map(|end| mock.runtime.block_on(end).unwrap()).collect();
    ends.sort_unstable();
    println!("{ends:?}");
    assert!(ends[0] >= Duration::from_millis(200) && ends[WATCHES - 1] < LAST, "{ends:?}");
    assert!(ends[WATCHES * 3 / 4] - ends[WATCHES / 4] > Duration::from_millis(300), "all at once: {ends:?}");
    let (status, _) = mock.runtime.block_on(slow).unwrap().unwrap();
    assert_eq!(status, StatusCode::OK);
    assert!(begun.elapsed() > Duration::from_millis(3000), "{:?}", begun.elapsed());
    next(&mock, &mut log).expect("the log has not ended").expect_err("the log breaks off");
    assert!(begun.elapsed() > Duration::from_millis(4500), "{:?}", begun.elapsed());
    assert!(mock.gateway.process.wait_for_end(Duration::from_secs(5)).is_some_and(|status| status.success()));
    assert_eq!(end_of(&mock, &watch), "drained");
}
