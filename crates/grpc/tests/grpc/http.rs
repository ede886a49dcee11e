//! Everything that is not well-formed gRPC, on the same port.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kubewharf_grpc::{Server, ServerOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{RawClient, TestDispatch, TestServer, eventually, framed, soon};

/// Sends bytes and reads until the server closes.
async fn exchange(server: &TestServer, bytes: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    match soon(socket.read_to_end(&mut answer)).await {
        Ok(_) => {}
        // The server may close with bytes of ours unread.
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http1_requests_are_answered_one_after_the_other() {
    let server = TestServer::start().await;
    let request = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n\
        POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc";
    let answer = String::from_utf8(exchange(&server, request).await).unwrap();
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2, "{answer}");
    assert!(answer.contains("GET /health 0") && answer.ends_with("POST /echo 3"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unix_socket_is_served_like_any_other() {
    let path = std::env::temp_dir().join(format!("kubewharf-grpc-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let server = Server::new(Arc::new(TestDispatch { seen: Arc::default() }), ServerOptions::default());
    let serving = tokio::spawn(async move { server.serve(listener, None, std::future::pending()).await });
    let mut socket = tokio::net::UnixStream::connect(&path).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    socket.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    soon(socket.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.ends_with(b"GET /health 0"));
    serving.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http1_body_over_the_limit_is_refused() {
    let mut options = ServerOptions::default();
    options.request_bytes_max = 10;
    let server = TestServer::with(options, None).await;
    let request = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 11\r\nconnection: close\r\n\r\nabcdefghijk";
    let answer = String::from_utf8(exchange(&server, request).await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http1_body_that_does_not_come_is_not_waited_for() {
    let mut options = ServerOptions::default();
    options.handshake_timeout = Duration::from_millis(300);
    let server = TestServer::with(options, None).await;
    let answer = exchange(&server, b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 11\r\n\r\nabc").await;
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    eventually("the connection is gone", || server.stats.connections_open() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_http2_requests_are_answered_between_grpc_calls() {
    let server = TestServer::start().await;
    let mut raw = RawClient::connect(&server).await;
    let (response, body, _) = soon(raw.call(http::Request::get("http://x/metrics"), &[])).await;
    assert_eq!((response.status().as_u16(), &body[..]), (200, &b"GET /metrics 0"[..]));
    let (response, body, _) = soon(raw.call(http::Request::post("http://x/form"), &[b"ab", b"cd"])).await;
    assert_eq!((response.status().as_u16(), &body[..]), (200, &b"POST /form 4"[..]));
    let (_, body, _) = soon(raw.call(http::Request::get("http://x/big"), &[])).await;
    assert_eq!(body.len(), 1 << 20);
    let (response, body, _) = soon(raw.call(http::Request::head("http://x/big"), &[])).await;
    assert_eq!((response.status().as_u16(), body.len()), (200, 0));
    let (_, body, status) = soon(raw.call(RawClient::request("Echo"), &[&framed(b"x")])).await;
    assert_eq!((body, status.unwrap().0.as_str()), (framed(b"x"), "0"));
    // gRPC-Web is another protocol.
    let web = http::Request::post("http://x/test.Test/Echo").header("content-type", "application/grpc-web");
    let (_, body, _) = soon(raw.call(web, &[b"x"])).await;
    assert_eq!(body, b"POST /test.Test/Echo 1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_http2_body_over_the_limit_is_refused() {
    let mut options = ServerOptions::default();
    options.request_bytes_max = 10;
    let server = TestServer::with(options, None).await;
    let mut raw = RawClient::connect(&server).await;
    let (response, _, _) = soon(raw.call(http::Request::post("http://x/"), &[b"abcdef", b"ghijkl"])).await;
    assert_eq!(response.status(), 413);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_arrives_in_small_pieces_is_put_together() {
    let server = TestServer::start().await;
    let mut raw = RawClient::connect(&server).await;
    let message = framed(b"a message in pieces");
    let pieces: Vec<&[u8]> = message.chunks(3).collect();
    let (_, body, status) = soon(raw.call(RawClient::request("Echo"), &pieces)).await;
    assert_eq!((body, status.unwrap().0.as_str()), (message, "0"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_larger_than_the_window_may_come_in_the_smallest_pieces() {
    let server = TestServer::start().await;
    let mut raw = RawClient::connect(&server).await;
    let message = framed(&vec![7; 3 << 19]);
    let (response, mut body) = raw.send.send_request(RawClient::request("Echo").body(()).unwrap(), false).unwrap();
    for piece in message.chunks(512) {
        body.send_data(Bytes::copy_from_slice(piece), false).unwrap();
    }
    body.send_data(Bytes::new(), true).unwrap();
    assert_eq!(soon(response).await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_sent_request_does_not_hold_up_the_connection() {
    let server = TestServer::start().await;
    let mut raw = RawClient::connect(&server).await;
    let mut open = Vec::new();
    for _ in 0..100 {
        let request = RawClient::request("Echo").body(()).unwrap();
        let (response, mut body) = raw.send.send_request(request, false).unwrap();
        body.send_data(Bytes::from_static(&[0, 0, 0, 0, 9, b'h']), false).unwrap();
        open.push((response, body));
    }
    let (_, body, _) = soon(raw.call(RawClient::request("Echo"), &[&framed(b"x")])).await;
    assert_eq!(body, framed(b"x"));
    let (response, mut body) = open.pop().unwrap();
    body.send_data(Bytes::from_static(b"alf later"), true).unwrap();
    assert_eq!(soon(response).await.unwrap().status(), 200);
    drop(open);
    eventually("no call is open", || server.stats.calls_open() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_grpc_requests_get_a_status_and_the_connection_lives() {
    let server = TestServer::start().await;
    let mut raw = RawClient::connect(&server).await;
    let two = [framed(b"one"), framed(b"two")].concat();
    let long = framed(&vec![0; (2 << 20) + 1]);
    let gzip = RawClient::request("Echo").header("grpc-encoding", "gzip");
    let cases: [(http::request::Builder, &[u8], &str, &str); 7] = [
        (RawClient::request("Echo"), b"", "13", "unexpected EOF"),
        (RawClient::request("Echo"), &[0, 0, 0, 0, 5, 1], "13", "unexpected EOF"),
        (RawClient::request("Echo"), &two, "13", "a unary call has more than one request message"),
        (RawClient::request("Echo"), &[9, 0, 0, 0, 0], "13", "grpc: received unexpected payload format 9"),
        (gzip, &[1, 0, 0, 0, 0], "12", "grpc: Decompressor is not installed for grpc-encoding \"gzip\""),
        (RawClient::request("Echo"), &long[..100], "8", "grpc: received message larger than max (2097153 vs. 2097152)"),
        (RawClient::request("Echo").header("grpc-timeout", "soon"), b"", "13", "malformed grpc-timeout"),
    ];
    for (request, bytes, code, message) in cases {
        let (response, _, status) = soon(raw.call(request, &[bytes])).await;
        let (got_code, got_message) = status.unwrap();
        assert_eq!((got_code.as_str(), percent_decoded(&got_message).as_str()), (code, message));
        assert_eq!(response.status(), 200);
        if code == "12" {
            assert_eq!(response.headers()["grpc-accept-encoding"], "identity");
        }
    }
    let get = http::Request::get("http://x/test.Test/Echo").header("content-type", "application/grpc+proto");
    assert_eq!(soon(raw.call(get, &[])).await.0.status(), 405);
    let (_, body, _) = soon(raw.call(RawClient::request("Echo"), &[&framed(b"x")])).await;
    assert_eq!(body, framed(b"x"));
    assert_eq!(server.stats.connections(), 1);
}

fn percent_decoded(text: &str) -> String {
    text.replace("%25", "%")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_closes_its_own_connection_only() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let answer = exchange(&server, b"\x16\x03\x01\x00\xa5 a TLS hello on a plain port\r\n\r\n").await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"), "{answer:?}");
    // A right preface, and then frames of nonsense: GOAWAY is the last thing to hear.
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend([0xff; 200]);
    let answer = exchange(&server, &bytes).await;
    assert!(!answer.is_empty());
    assert_eq!(soon(client.unary("Echo", "on")).await.unwrap(), "on");
    eventually("the garbage is gone", || server.stats.connections_open() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_or_trickling_client_is_cut_off() {
    let mut options = ServerOptions::default();
    options.handshake_timeout = Duration::from_millis(300);
    let server = TestServer::with(options, None).await;
    let begun = Instant::now();
    assert!(exchange(&server, b"").await.is_empty());
    assert!(begun.elapsed() >= Duration::from_millis(300));
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    let begun = Instant::now();
    for byte in b"PRI * HTTP/2.0\r\n\r\nSM" {
        if socket.write_all(&[*byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut rest = Vec::new();
    let _ = soon(socket.read_to_end(&mut rest)).await;
    assert!(begun.elapsed() < Duration::from_secs(3));
    eventually("both are gone", || server.stats.connections_open() == 0).await;
    assert_eq!(server.stats.handshakes_failed(), 2);
}
