//! Streaming calls.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use tokio::sync::mpsc;
use tonic::Code;

use crate::support::{RawClient, TestServer, eventually, framed, soon};

fn channel() -> (mpsc::Sender<Bytes>, impl futures_util::Stream<Item = Bytes> + Send + 'static) {
    let (sender, receiver) = mpsc::channel(16);
    let stream =
        stream::unfold(
            receiver,
            |mut receiver| async move { receiver.recv().await.map(|message| (message, receiver)) },
        );
    (sender, stream)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_send_in_turn_and_the_end_is_ok() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let (sender, requests) = channel();
    sender.send(Bytes::from_static(b"0")).await.unwrap();
    let mut replies = soon(client.stream("Bidi", requests)).await.unwrap();
    for turn in 0..100 {
        let reply = soon(replies.message()).await.unwrap().unwrap();
        assert_eq!(reply, format!("echo:{turn}").as_bytes());
        sender.send(Bytes::from(format!("{}", turn + 1))).await.unwrap();
    }
    drop(sender);
    assert_eq!(soon(replies.message()).await.unwrap().unwrap(), "echo:100");
    assert!(soon(replies.message()).await.unwrap().is_none());
    assert_eq!(*server.seen.request_ends.lock().unwrap(), [None]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_message_passes_both_ways_through_small_windows() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let message = Bytes::from((0..1_900_000).map(|at| (at % 251) as u8).collect::<Vec<_>>());
    let requests = stream::iter([message.clone(), message.clone(), message.clone()]);
    let mut replies = soon(client.stream("Bidi", requests)).await.unwrap();
    for _ in 0..3 {
        let reply = soon(replies.message()).await.unwrap().unwrap();
        assert_eq!(reply.len(), message.len() + 5);
        assert!(reply[5..] == message[..]);
    }
    assert!(soon(replies.message()).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_slows_only_itself_and_its_memory_is_bounded() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let mut flood = soon(client.stream("Flood", stream::empty())).await.unwrap();
    soon(flood.message()).await.unwrap();
    // The client reads no more: what was sent stops growing.
    let sent = || server.seen.flood_bytes.load(Ordering::SeqCst);
    let mut before = sent();
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        if sent() == before {
            break;
        }
        before = sent();
    }
    assert!(server.seen.flood_waiting_max.load(Ordering::SeqCst) <= 256 << 10);
    assert!(before < 8 << 20, "{before} bytes were taken from the handler");
    // Another stream of the same connection is not held up.
    let mut other = soon(client.stream("Bidi", stream::iter([Bytes::from_static(b"x")]))).await.unwrap();
    assert_eq!(soon(other.message()).await.unwrap().unwrap(), "echo:x");
    assert_eq!(soon(client.unary("Echo", "y")).await.unwrap(), "y");
    // And the slow one goes on when its client does.
    let mut read = 0;
    while read < 20 << 20 {
        read += soon(flood.message()).await.unwrap().unwrap().len();
    }
    drop(flood);
    eventually("the handler sees the reset", || server.seen.closed.load(Ordering::SeqCst)).await;
    eventually("every guard is dropped", || server.seen.guards.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_sees_that_its_client_cancelled() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let replies = soon(client.stream("Wait", stream::empty())).await.unwrap();
    assert!(!server.seen.closed.load(Ordering::SeqCst));
    drop(replies);
    eventually("the handler sees the reset", || server.seen.closed.load(Ordering::SeqCst)).await;
    eventually("no call is open", || server.stats.calls_open() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_sees_that_its_client_went_away() {
    let server = TestServer::start().await;
    let mut raw = RawClient::connect(&server).await;
    let mut open = Vec::new();
    for (method, first) in [("Wait", None), ("Bidi", Some(framed(b"a")))] {
        let request = RawClient::request(method).body(()).unwrap();
        let (response, mut body) = raw.send.send_request(request, false).unwrap();
        if let Some(first) = first {
            body.send_data(first.into(), false).unwrap();
        }
        open.push((soon(response).await.unwrap(), body));
    }
    raw.driver.abort();
    eventually("the sink is closed", || server.seen.closed.load(Ordering::SeqCst)).await;
    eventually("the requests end with an error", || {
        server.seen.request_ends.lock().unwrap().iter().flatten().count() == 1
    })
    .await;
    eventually("the connection is closed", || server.stats.connections_open() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_with_an_oversize_message_fails_alone() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let long = Bytes::from(vec![0; (2 << 20) + 1]);
    let status = match soon(client.stream("Bidi", stream::iter([long]))).await {
        Ok(mut replies) => soon(replies.message()).await.unwrap_err(),
        Err(status) => status,
    };
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.message(), "grpc: received message larger than max (2097153 vs. 2097152)");
    assert_eq!(soon(client.unary("Echo", "on")).await.unwrap(), "on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_share_a_connection() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let mut streams = Vec::new();
    for _ in 0..1000 {
        let (sender, requests) = channel();
        sender.send(Bytes::from_static(b"hello")).await.unwrap();
        streams.push((sender, soon(client.stream("Bidi", requests)).await.unwrap()));
    }
    assert_eq!(server.stats.calls_open(), 1000);
    for (sender, replies) in &mut streams {
        assert_eq!(soon(replies.message()).await.unwrap().unwrap(), "echo:hello");
        sender.send(Bytes::from_static(b"again")).await.unwrap();
        assert_eq!(soon(replies.message()).await.unwrap().unwrap(), "echo:again");
    }
    drop(streams);
    eventually("no call is open", || server.stats.calls_open() == 0).await;
}
