//! Unary calls.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tonic::{Code, Request};

use crate::support::{RawClient, TestServer, eventually, framed, soon};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_is_what_the_handler_sent() {
    let server = TestServer::start().await;
    let client = server.client().await;
    for len in [0, 1, 5, 250, 251, 1000, 16_379, 16_384, 70_000, 1_500_000] {
        let message = Bytes::from((0..len).map(|at| at as u8).collect::<Vec<_>>());
        assert_eq!(soon(client.unary("Echo", message.clone())).await.unwrap(), message, "{len} bytes");
    }
    eventually("every guard is dropped", || server.seen.guards.load(std::sync::atomic::Ordering::SeqCst) == 0).await;
    eventually("no call is open", || server.stats.calls_open() == 0).await;
    assert_eq!(server.stats.calls_unary(), 10);
    assert_eq!((server.stats.messages_in(), server.stats.messages_out()), (10, 10));
    // They are told at the end of a turn, when the client has its reply already.
    let bytes = || server.stats.bytes_in().min(server.stats.bytes_out());
    eventually("all bytes are told", || bytes() > 1_500_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_arrives_with_its_code_and_its_message_to_the_byte() {
    let server = TestServer::start().await;
    let client = server.client().await;
    for text in ["", "plain", "100% of \u{fc}nicode,\r\n\ttabs and \u{1f980}", "%41"] {
        let status = soon(client.unary("Fail", text.as_bytes().to_vec())).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, text));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_calls_at_once_are_answered_by_their_own_replies() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let calls = (0..1000).map(|index: usize| {
        let client = client.clone();
        tokio::spawn(async move {
            let (method, message) = match index % 3 {
                0 => ("Later", (index % 50).to_string()),
                _ => ("Echo", format!("call {index}")),
            };
            let reply = client.unary(method, message.clone()).await.unwrap();
            assert_eq!(reply, message.as_bytes());
        })
    });
    for call in calls.collect::<Vec<_>>() {
        soon(call).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_reply_of_shared_pieces_arrives_whole() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let reply = soon(client.unary("Big", "300")).await.unwrap();
    assert_eq!(reply.len(), 30_000_000);
    assert!(reply.iter().all(|&byte| byte == 7));
    eventually("the guard is dropped", || server.seen.guards.load(std::sync::atomic::Ordering::SeqCst) == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_reply_and_a_panic_are_internal_errors_of_that_call_only() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let other = tokio::spawn({
        let client = client.clone();
        async move { client.unary("Later", "200").await }
    });
    assert_eq!(soon(client.unary("Drop", "")).await.unwrap_err().code(), Code::Internal);
    assert_eq!(soon(client.unary("Panic", "")).await.unwrap_err().code(), Code::Internal);
    assert_eq!(soon(other).await.unwrap().unwrap(), "200");
    assert_eq!(server.stats.connections(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_deadline_is_answered_and_the_late_reply_is_dropped() {
    let server = TestServer::start().await;
    let client = server.client().await;
    // Not through tonic, which gives up by itself.
    let mut raw = RawClient::connect(&server).await;
    let request = RawClient::request("Never").header("grpc-timeout", "50m");
    let begun = Instant::now();
    let (_, body, status) = soon(raw.call(request, &[&framed(b"")])).await;
    assert_eq!(status.unwrap(), ("4".to_owned(), "context deadline exceeded".to_owned()));
    assert!(body.is_empty());
    assert!(begun.elapsed() >= Duration::from_millis(50));
    let late = server.seen.never.lock().unwrap().pop().unwrap();
    late.send(Ok(Bytes::from_static(b"too late").into()));
    assert_eq!(soon(client.unary("Echo", "still fine")).await.unwrap(), "still fine");
    eventually("no call is open", || server.stats.calls_open() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlines_expire_in_their_own_order() {
    let server = TestServer::start().await;
    let raw = RawClient::connect(&server).await;
    let call = |method: &'static str, timeout: &'static str| {
        let mut raw = RawClient { send: raw.send.clone(), driver: tokio::spawn(async {}) };
        tokio::spawn(async move {
            let begun = Instant::now();
            let request = RawClient::request(method).header("grpc-timeout", timeout);
            let (_, _, status) = raw.call(request, &[&framed(b"")]).await;
            assert_eq!(status.unwrap().0, "4");
            begun.elapsed()
        })
    };
    // The second is a stream whose headers are out already.
    let (long, short) = (call("Never", "600m"), call("Wait", "100m"));
    let short = soon(short).await.unwrap();
    let long = soon(long).await.unwrap();
    assert!(short >= Duration::from_millis(100) && short < Duration::from_millis(500), "{short:?}");
    assert!(long >= Duration::from_millis(600), "{long:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_handler_knows_the_surroundings_of_the_call() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let mut request = Request::new(Bytes::new());
    request.metadata_mut().insert("x-test", "yes".parse().unwrap());
    request.set_timeout(Duration::from_secs(5));
    let text = soon(client.request("Who", request)).await.unwrap();
    let expected = format!("authority={} x-test=yes deadline=true certificates=0", server.address);
    assert_eq!(text, expected.as_bytes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_path_is_unimplemented_in_the_words_of_grpc_go() {
    let server = TestServer::start().await;
    let client = server.client().await;
    for (path, text) in [
        ("/test.Test/Nothing", "unknown method Nothing for service test.Test"),
        ("/no.Service/Echo", "unknown service no.Service"),
        ("/nothing", "malformed method name: \"/nothing\""),
    ] {
        let status = soon(client.unary(path, "")).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unimplemented, text));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_the_client_gave_up_leaves_nothing_behind() {
    let server = TestServer::start().await;
    let client = server.client().await;
    for _ in 0..50 {
        let call = client.unary("Never", "");
        assert!(tokio::time::timeout(Duration::from_millis(2), call).await.is_err());
    }
    let replies = std::mem::take(&mut *server.seen.never.lock().unwrap());
    assert!(!replies.is_empty());
    for reply in replies {
        reply.send(Ok(Bytes::from_static(b"nobody listens").into()));
    }
    assert_eq!(soon(client.unary("Echo", "on")).await.unwrap(), "on");
    eventually("no call is open", || server.stats.calls_open() == 0).await;
}
