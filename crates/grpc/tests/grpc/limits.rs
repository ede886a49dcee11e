//! What a client can't make the server do.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use kubewharf_grpc::ServerOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{RawClient, TestServer, eventually, framed, soon};

const PREFACE_AND_SETTINGS: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_client_is_found_by_pings() {
    let mut options = ServerOptions::default();
    options.keepalive_interval = Duration::from_millis(100);
    options.keepalive_timeout = Duration::from_millis(200);
    let server = TestServer::with(options, None).await;
    // This one answers pings, and nothing else happens on its connection.
    let client = server.client().await;
    // This one never answers.
    let mut dead = TcpStream::connect(server.address).await.unwrap();
    dead.write_all(PREFACE_AND_SETTINGS).await.unwrap();
    let begun = Instant::now();
    let mut heard = Vec::new();
    let _ = soon(dead.read_to_end(&mut heard)).await;
    assert!(begun.elapsed() >= Duration::from_millis(250), "{:?}", begun.elapsed());
    eventually("only the live one is left", || server.stats.connections_open() == 1).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(soon(client.unary("Echo", "alive")).await.unwrap(), "alive");
    assert_eq!(server.stats.connections(), 2, "the live one was never cut");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_connections_than_allowed_wait_their_turn() {
    let mut options = ServerOptions::default();
    options.connections_max = 2;
    let server = TestServer::with(options, None).await;
    let (first, second) = (server.client().await, server.client().await);
    soon(first.unary("Echo", "1")).await.unwrap();
    soon(second.unary("Echo", "2")).await.unwrap();
    let third = tokio::spawn({
        let address = server.address;
        async move {
            let mut socket = TcpStream::connect(address).await.unwrap();
            socket.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
            let mut answer = Vec::new();
            socket.read_to_end(&mut answer).await.unwrap();
            answer
        }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!third.is_finished());
    assert_eq!(server.stats.connections_open(), 2);
    drop(first);
    assert!(soon(third).await.unwrap().starts_with(b"HTTP/1.0 200"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_stops_being_served_and_others_are_not_affected() {
    let mut options = ServerOptions::default();
    options.connection_send_bytes_max = 1 << 20;
    let server = TestServer::with(options, None).await;
    // The socket of this one is never read after the handshake.
    let socket = TcpStream::connect(server.address).await.unwrap();
    let (mut send, connection) = h2::client::Builder::new()
        .initial_window_size(1 << 30)
        .initial_connection_window_size(1 << 30)
        .handshake::<_, Bytes>(StopReading { io: socket, limit: 4096 })
        .await
        .unwrap();
    let driver = tokio::spawn(async move { drop(connection.await) });
    let mut pending = Vec::new();
    for _ in 0..100 {
        send = send.ready().await.unwrap();
        let (response, mut body) = send.send_request(RawClient::request("Big").body(()).unwrap(), false).unwrap();
        body.send_data(framed(b"10").into(), true).unwrap();
        pending.push(response);
    }
    let guards = || server.seen.guards.load(Ordering::SeqCst);
    eventually("some replies wait", || guards() > 0).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    // A megabyte a reply: the first is over the limit already, and a few more may have been on their way.
    assert!(guards() <= 34, "{} replies wait", guards());
    let begun = server.stats.calls_unary();
    assert!(begun < 100, "{begun} of 100 calls were begun");
    let other = server.client().await;
    assert_eq!(soon(other.unary("Echo", "x")).await.unwrap(), "x");
    driver.abort();
    eventually("everything is given back", || guards() == 0).await;
    eventually("the connection is gone", || server.stats.connections_open() == 1).await;
    drop(pending);
}

/// What a list holds is given back, whatever its client does; nobody else notices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guarded_reply_that_its_client_does_not_take_is_given_up() {
    let mut options = ServerOptions::default();
    options.reply_stall_timeout = Duration::from_secs(2);
    let server = TestServer::with(options, None).await;
    let guards = || server.seen.guards.load(Ordering::SeqCst);
    // The connection has room for all, a stream for the beginning of each.
    let socket = TcpStream::connect(server.address).await.unwrap();
    let builder = h2::client::Builder::new().initial_connection_window_size(8 << 20).to_owned();
    let (send, connection) = builder.handshake::<_, Bytes>(socket).await.unwrap();
    let driver = tokio::spawn(async move { drop(connection.await) });
    let mut send = send.ready().await.unwrap();
    let mut begin = |method: &str, message: &[u8]| {
        let (response, mut body) = send.send_request(RawClient::request(method).body(()).unwrap(), false).unwrap();
        body.send_data(framed(message).into(), true).unwrap();
        response
    };
    let take = |body: &mut h2::RecvStream, bytes: usize| body.flow_control().release_capacity(bytes).unwrap();

    // Three of more than a stream's window: nobody takes anything of the first, little by little of the second, and the
    // third is no list but has guards as well.
    let mut stalled = soon(begin("Big", b"10")).await.unwrap().into_body();
    let mut slow = soon(begin("Big", b"3")).await.unwrap().into_body();
    let mut stream = soon(begin("Flood", b"")).await.unwrap().into_body();
    // And a watch, without any.
    let mut unguarded = soon(begin("Bidi", &[7; 100_000])).await.unwrap().into_body();
    let begun = Instant::now();
    let ended = async {
        loop {
            match stalled.data().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => return (error.reason(), begun.elapsed()),
                None => panic!("a reply without its end"),
            }
        }
    };
    let stream_ended = async {
        loop {
            match stream.data().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => return error.reason(),
                None => panic!("a stream without its end"),
            }
        }
    };
    let slow_ended = async {
        let mut read = 0;
        while let Some(piece) = slow.data().await {
            let piece = piece.unwrap();
            read += piece.len();
            // All of it takes longer than the limit.
            tokio::time::sleep(Duration::from_millis(200)).await;
            take(&mut slow, piece.len());
        }
        read
    };
    let ((reason, after), stream_reason, read) = soon(async { tokio::join!(ended, stream_ended, slow_ended) }).await;
    assert_eq!((reason, stream_reason), (Some(h2::Reason::ENHANCE_YOUR_CALM), Some(h2::Reason::ENHANCE_YOUR_CALM)));
    assert!(after >= Duration::from_millis(1900), "{after:?}");
    assert_eq!(read, 300_005);
    eventually("everything is given back", || guards() == 0).await;
    assert_eq!(server.stats.replies_stalled(), 2);
    // The watch is there yet.
    let mut read = 0;
    while read < 100_010 {
        let piece = soon(unguarded.data()).await.unwrap().unwrap();
        take(&mut unguarded, piece.len());
        read += piece.len();
    }
    assert_eq!(server.stats.connections_open(), 1);
    driver.abort();
}

/// Then not even the reset gets to the client, nor does what the socket's side has taken over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_takes_nothing_of_a_guarded_reply_ends() {
    let mut options = ServerOptions::default();
    options.reply_stall_timeout = Duration::from_millis(400);
    let server = TestServer::with(options, None).await;
    let socket = TcpStream::connect(server.address).await.unwrap();
    let (send, connection) = h2::client::Builder::new()
        .initial_window_size(1 << 30)
        .initial_connection_window_size(1 << 30)
        .handshake::<_, Bytes>(StopReading { io: socket, limit: 4096 })
        .await
        .unwrap();
    let driver = tokio::spawn(async move { drop(connection.await) });
    let mut send = send.ready().await.unwrap();
    // More than the system's buffers take.
    let (_response, mut body) = send.send_request(RawClient::request("Big").body(()).unwrap(), false).unwrap();
    body.send_data(framed(b"300").into(), true).unwrap();
    let guards = || server.seen.guards.load(Ordering::SeqCst);
    eventually("the reply waits", || guards() == 1).await;
    eventually("it is given up", || guards() == 0).await;
    eventually("and the connection", || server.stats.connections_open() == 0).await;
    driver.abort();
}

/// A socket that stops reading after some bytes.
struct StopReading {
    io: TcpStream,
    limit: usize,
}

impl tokio::io::AsyncRead for StopReading {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        if self.limit == 0 {
            return std::task::Poll::Pending;
        }
        let before = buffer.filled().len();
        let polled = std::pin::Pin::new(&mut self.io).poll_read(context, buffer);
        self.limit = self.limit.saturating_sub(buffer.filled().len() - before);
        polled
    }
}

impl tokio::io::AsyncWrite for StopReading {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_are_opened_and_reset_in_a_loop_do_not_pile_up() {
    let mut options = ServerOptions::default();
    options.calls_per_connection_max = 50;
    let server = TestServer::with(options, None).await;
    let raw = RawClient::connect(&server).await;
    let mut opened = 0;
    for _ in 0..150 {
        let Ok(mut send) = raw.send.clone().ready().await else { break };
        let Ok((response, mut body)) = send.send_request(RawClient::request("Never").body(()).unwrap(), false) else {
            break;
        };
        body.send_data(framed(b"").into(), true).unwrap();
        opened += 1;
        // The handler may have it before the reset comes.
        tokio::time::sleep(Duration::from_millis(2)).await;
        drop(response);
        body.send_reset(h2::Reason::CANCEL);
    }
    assert!(opened > 50);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let begun = server.seen.never.lock().unwrap().len();
    assert!((40..=50).contains(&begun), "{begun} handlers are occupied");
    raw.driver.abort();
    drop(raw.send);
    let client = server.client().await;
    assert_eq!(soon(client.unary("Echo", "x")).await.unwrap(), "x");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_sent_requests_take_a_bounded_amount_of_memory_and_one_can_always_end() {
    let mut options = ServerOptions::default();
    options.connection_request_bytes_max = 1 << 20;
    let server = TestServer::with(options, None).await;
    let mut raw = RawClient::connect(&server).await;
    let message = framed(&vec![7; 200_000]);
    let plain = || http::Request::post("http://x/form");
    for request in [|| RawClient::request("Echo"), || RawClient::request("Bidi"), plain] {
        let mut open = Vec::new();
        for _ in 0..20 {
            raw.send = raw.send.clone().ready().await.unwrap();
            let (response, mut body) = raw.send.send_request(request().body(()).unwrap(), false).unwrap();
            body.send_data(Bytes::copy_from_slice(&message[..100_000]), false).unwrap();
            open.push((tokio::spawn(response), body));
        }
        // What came too late is refused, and what was there first can end.
        eventually("most are refused", || open.iter().filter(|(response, _)| response.is_finished()).count() >= 10)
            .await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let (mut refused, mut ended) = (0, 0);
        for (response, mut body) in open {
            if !response.is_finished() {
                body.send_data(Bytes::copy_from_slice(&message[100_000..]), true).unwrap();
            }
            let response = soon(response).await.unwrap().unwrap();
            let status = response.headers().get("grpc-status").map(|status| status.to_str().unwrap().to_owned());
            match (response.status().as_u16(), status.as_deref()) {
                (200, None) => ended += 1,
                (200, Some("8")) | (503, None) => refused += 1,
                other => panic!("unexpected {other:?}"),
            }
        }
        assert!(ended >= 4 && refused >= 10, "{ended} ended, {refused} were refused");
    }
    // A lone one may be larger than the limit.
    let large = framed(&vec![7; 2 << 20]);
    let (_, body, _) = soon(raw.call(RawClient::request("Echo"), &[&large])).await;
    assert_eq!(body.len(), large.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_go_on_when_calls_had_to_wait_for_handlers() {
    let mut options = ServerOptions::default();
    options.calls_per_connection_max = 8;
    let server = TestServer::with(options, None).await;
    let client = server.client().await;
    let calls = (0..100).map(|_| {
        let client = client.clone();
        tokio::spawn(async move { client.unary("Later", "5").await })
    });
    for call in calls.collect::<Vec<_>>() {
        assert_eq!(soon(call).await.unwrap().unwrap(), "5");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_connection_holds_one_message_a_stream_once_it_is_full() {
    let mut options = ServerOptions::default();
    options.connection_send_bytes_max = 100_000;
    let server = TestServer::with(options, None).await;
    let client = server.client().await;
    let mut floods = Vec::new();
    for _ in 0..50 {
        floods.push(soon(client.stream("Flood", stream::empty())).await.unwrap());
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    // Nobody reads. Six messages fill the connection's share; beyond it each stream has one here, and one in the hands of
    // its handler.
    let waiting = server.seen.guards.load(Ordering::SeqCst) - 50;
    assert!(waiting <= 6 + 2 * 50, "{waiting} messages wait");
    // All at once: the client's one window for the connection is full of messages of all streams.
    let reads = floods.into_iter().map(|mut flood| {
        tokio::spawn(async move {
            for _ in 0..20 {
                assert_eq!(soon(flood.message()).await.unwrap().unwrap().len(), 16 << 10);
            }
        })
    });
    for read in reads.collect::<Vec<_>>() {
        read.await.unwrap();
    }
}
