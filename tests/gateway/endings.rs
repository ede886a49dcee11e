//! How answers end for their clients, and what is written down of it.

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
