use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

#[tokio::test]
async fn after_a_goaway_streams_go_on_and_new_ones_go_elsewhere() {
    let server = Server::start().await;
    let upstream = Upstream::new(settings(&[&server]));
    let endpoint = only(&upstream);
    let mut watch = headers(&endpoint, Class::Short, "/watch/50").await;
    server.go_away();
    for _ in 0..20 {
        get(&endpoint, "/").await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(read(&mut watch.body).await.expect("a whole body").len(), 150);
    drop(watch);
    until("the old connection is closed", || server.open() == 1).await;
    assert_eq!(server.accepted(), 2);
    let status = &upstream.status()[0];
    assert_eq!((status.state, status.ejections), (State::Up, 0));
}

#[tokio::test]
async fn a_refused_stream_is_known_to_be_unprocessed_and_a_reset_one_is_not() {
    let server = Server::start().await;
    let upstream = Upstream::new(settings(&[&server]));
    let endpoint = only(&upstream);
    let refused = begin(&endpoint, Class::Short, "/refuse").await.response.await.expect_err("refused");
    assert_eq!((refused.failure, refused.processed), (Failure::Refused, Processed::No));
    let reset = begin(&endpoint, Class::Short, "/fail").await.response.await.expect_err("reset");
    assert_eq!((reset.failure, reset.processed), (Failure::Reset(h2::Reason::INTERNAL_ERROR), Processed::Maybe));
    assert!(reset.to_string().contains(&**endpoint.url()), "{reset}");
}

/// HTTP/2 by hand.
struct Raw {
    stream: TcpStream,
}

impl Raw {
    async fn accept(listener: &TcpListener) -> Self {
        let (mut stream, _) = listener.accept().await.expect("accepted");
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).await.expect("a preface");
        let mut raw = Self { stream };
        raw.write(4, 0, 0, &[]).await;
        raw
    }

    async fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut frame = vec![0, 0, payload.len() as u8, kind, flags];
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        self.stream.write_all(&frame).await.expect("written");
    }

    /// Reads frames until headers come; their stream. `None` at the end of the connection.
    async fn next_headers(&mut self) -> Option<u32> {
        loop {
            let mut head = [0; 9];
            self.stream.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let mut payload = vec![0; length];
            self.stream.read_exact(&mut payload).await.ok()?;
            if head[3] == 1 {
                return Some(u32::from_be_bytes([head[5], head[6], head[7], head[8]]));
            }
        }
    }

    /// `:status 200` and the end of the stream.
    async fn answer(&mut self, stream: u32) {
        self.write(1, 5, stream, &[0x88]).await;
    }
}

#[tokio::test]
async fn streams_above_the_last_of_a_goaway_are_known_to_be_unprocessed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address: Address = format!("http://{}", listener.local_addr().expect("an address")).parse().expect("a URL");
    let mut settings = settings(&[]);
    settings.endpoints = vec![EndpointSettings::new(address)];
    settings.health.interval = Duration::ZERO;
    let upstream = Upstream::new(settings);
    let endpoint = only(&upstream);
    let server = tokio::spawn(async move {
        let mut raw = Raw::accept(&listener).await;
        let mut streams = Vec::new();
        for _ in 0..3 {
            streams.push(raw.next_headers().await.expect("headers"));
        }
        // GOAWAY, last stream = the second.
        let mut payload = streams[1].to_be_bytes().to_vec();
        payload.extend_from_slice(&[0; 4]);
        raw.write(7, 0, 0, &payload).await;
        raw.answer(streams[0]).await;
        // The second was taken, and is lost with the connection.
        drop(raw);
    });
    let mut exchanges = Vec::new();
    for _ in 0..3 {
        exchanges.push(begin(&endpoint, Class::Short, "/").await);
    }
    let [first, second, third] = exchanges.try_into().map_err(|_| ()).expect("three");
    let third = third.response.await.expect_err("not taken");
    assert_eq!((third.failure, third.processed), (Failure::GoingAway, Processed::No));
    assert_eq!(first.response.await.expect("answered").status(), StatusCode::OK);
    let second = second.response.await.expect_err("lost");
    assert_eq!((second.failure, second.processed), (Failure::Lost, Processed::Maybe));
    server.await.expect("no panic");
}

#[tokio::test]
async fn a_request_that_was_never_written_is_known_to_be_unprocessed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address: Address = format!("http://{}", listener.local_addr().expect("an address")).parse().expect("a URL");
    let mut settings = settings(&[]);
    settings.endpoints = vec![EndpointSettings::new(address)];
    settings.health.interval = Duration::ZERO;
    let upstream = Upstream::new(settings);
    let endpoint = only(&upstream);
    let server = tokio::spawn(async move {
        let mut raw = Raw::accept(&listener).await;
        // Windows as large as can be, and then not one byte read.
        raw.write(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]).await;
        raw.write(8, 0, 0, &[0x7f, 0, 0, 0]).await;
        raw
    });
    let long = request(&endpoint, Method::POST, "/");
    let mut long = endpoint.send(Class::Short, long, false).await.expect("sent");
    long.body.send_data(vec![0; 64 << 20].into(), false).expect("queued");
    let raw = server.await.expect("no panic");
    // Until the sockets are full.
    tokio::time::sleep(Duration::from_millis(150)).await;
    let short = request(&endpoint, Method::POST, "/");
    let short = endpoint.send(Class::Short, short, true).await.expect("queued");
    tokio::time::sleep(Duration::from_millis(20)).await;
    drop(raw);
    let error = long.response.await.expect_err("lost");
    assert_eq!((error.failure, error.processed), (Failure::Lost, Processed::Maybe));
    let error = short.response.await.expect_err("lost");
    assert_eq!((error.failure, error.processed), (Failure::Lost, Processed::No));
}

#[tokio::test]
async fn a_killed_endpoint_is_out_at_once_and_comes_back_by_itself() {
    let (one, other) = (Server::start().await, Server::start().await);
    let upstream = Upstream::new(settings(&[&one, &other]));
    warm(&upstream).await;
    let endpoint = only(&upstream);
    let pending = begin(&endpoint, Class::Short, "/hang").await;
    let mut watch = headers(&endpoint, Class::Watch, "/watch").await;
    one.kill().await;
    let error = pending.response.await.expect_err("lost");
    assert_eq!((error.failure, error.processed), (Failure::Lost, Processed::Maybe));
    read(&mut watch.body).await.expect_err("a watch that is lost is not ended quietly");
    assert!(!endpoint.is_available());
    let error = endpoint.send(Class::Short, request(&endpoint, Method::GET, "/"), true).await.map(|_| ());
    assert!(matches!(error, Err(SendError::Dial { .. })), "{error:?}");
    for _ in 0..20 {
        let picked = upstream.pick(Strategy::RoundRobin, None, &[], "").expect("one");
        assert_eq!(picked.address(), &other.address);
    }
    let status = &upstream.status()[0];
    assert!(matches!(status.state, State::Unreachable) && !status.reason.is_empty(), "{status:?}");
    tokio::time::sleep(Duration::from_millis(1200)).await;
    one.restart().await;
    until("it is back", || upstream.status()[0].state == State::Up).await;
    let status = &upstream.status()[0];
    assert!(status.in_rotation && status.share_percent < 100, "{status:?}");
    assert_eq!(get(&endpoint, "/").await.0, StatusCode::OK);
}

#[tokio::test]
async fn an_idle_connection_that_the_endpoint_closes_costs_nobody_anything() {
    let server = Server::start().await;
    let upstream = Upstream::new(settings(&[&server]));
    warm(&upstream).await;
    server.kill().await;
    server.restart().await;
    let endpoint = only(&upstream);
    // The close may not have been seen yet, and the dial may have met the endpoint before it was back. Neither leaves a
    // doubt.
    until_answered(&endpoint).await;
}

async fn until_answered(endpoint: &Arc<Endpoint>) {
    for _ in 0..100 {
        let request = request(endpoint, Method::POST, "/");
        if let Ok(exchange) = endpoint.send(Class::Short, request, true).await {
            match exchange.response.await {
                Ok(response) => return assert_eq!(response.status(), StatusCode::OK),
                Err(error) => assert_eq!(error.processed, Processed::No, "{error}"),
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no answer");
}

#[tokio::test]
async fn a_hung_endpoint_is_known_within_a_second_and_what_can_wait_survives() {
    let (one, other) = (Server::start().await, Server::start().await);
    let upstream = Upstream::new(settings(&[&one, &other]));
    warm(&upstream).await;
    let endpoint = only(&upstream);
    let mut watch = headers(&endpoint, Class::Watch, "/watch").await;
    one.freeze();
    let frozen_at = Instant::now();
    let repeatable = begin(&endpoint, Class::Short, "/").await;
    let unique = begin(&endpoint, Class::Short, "/slow/1").await;
    let error = repeatable.response.abandon_when_hung(Some(|| true)).await.expect_err("hung");
    let known_after = frozen_at.elapsed();
    assert_eq!((error.failure, error.processed), (Failure::Hung, Processed::Maybe));
    assert!(known_after < Duration::from_millis(1500), "{known_after:?}");
    assert!(!endpoint.is_available());
    assert_eq!(upstream.status()[0].state, State::Hung);
    for _ in 0..10 {
        let picked = upstream.pick(Strategy::LeastWork, None, &[], "").expect("one");
        assert_eq!(picked.address(), &other.address);
    }
    one.thaw();
    assert_eq!(unique.response.await.expect("answered after all").status(), StatusCode::OK);
    assert!(watch.body.data().await.is_some_and(|data| data.is_ok()));
    until("it is back", || endpoint.is_available()).await;
    assert_eq!(get(&endpoint, "/").await.0, StatusCode::OK);
    assert_eq!(upstream.status()[0].connections_lost, 0);
}

#[tokio::test]
async fn a_hung_endpoint_is_waited_for_while_there_is_no_other() {
    let server = Server::start().await;
    let upstream = Upstream::new(settings(&[&server]));
    warm(&upstream).await;
    let endpoint = only(&upstream);
    let begun = begin(&endpoint, Class::Short, "/stall/100").await;
    let mut body = begun.response.await.expect("a response").into_body();
    server.freeze();
    let only_id = [endpoint.id()];
    let elsewhere = || upstream.has_another(None, &only_id);
    let exchange = begin(&endpoint, Class::Short, "/").await;
    let response = exchange.response.abandon_when_hung(Some(elsewhere));
    let beginning = begun.lease.beginning(&mut body, 1000, elsewhere);
    let thaws = async {
        until("it is known", || upstream.status()[0].state == State::Hung).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.thaw();
    };
    let (response, beginning, ()) =
        tokio::join!(response, tokio::time::timeout(Duration::from_secs(2), beginning), thaws);
    assert_eq!(response.expect("answered after all").status(), StatusCode::OK);
    // The rest of that answer never comes.
    assert!(beginning.is_err(), "{beginning:?}");
}

#[tokio::test]
async fn the_beginning_of_an_answer_is_all_of_a_short_one_and_little_of_a_long_one() {
    const MAX: usize = 16 << 10;
    let server = Server::start().await;
    let upstream = Upstream::new(settings(&[&server]));
    let endpoint = only(&upstream);
    for length in [0, 5, MAX, MAX + 1, 1_000_000] {
        let exchange = begin(&endpoint, Class::Short, &format!("/bytes/{length}")).await;
        let mut body = exchange.response.await.expect("a response").into_body();
        let pieces = exchange.lease.beginning(&mut body, MAX, || true).await.expect("a beginning");
        let begun: usize = pieces.iter().map(Bytes::len).sum();
        assert!(begun >= length.min(MAX) && begun <= MAX + (64 << 10), "{begun} of {length}");
        assert_eq!(body.is_end_stream(), begun == length);
        body.flow_control().release_capacity(begun).expect("released");
        assert_eq!(begun + read(&mut body).await.expect("the rest").len(), length);
    }
}

#[tokio::test]
async fn an_answer_whose_endpoint_hangs_or_dies_behind_its_head_is_given_up() {
    for length in [0, 100] {
        let server = Server::start().await;
        let upstream = Upstream::new(settings(&[&server]));
        warm(&upstream).await;
        let endpoint = only(&upstream);
        let path = format!("/stall/{length}");
        let exchange = begin(&endpoint, Class::Short, &path).await;
        let mut body = exchange.response.await.expect("a response").into_body();
        server.freeze();
        let frozen_at = Instant::now();
        let error = exchange.lease.beginning(&mut body, 1000, || true).await.expect_err("hung");
        let known_after = frozen_at.elapsed();
        assert_eq!((error.failure, error.processed), (Failure::Hung, Processed::Maybe));
        assert!(known_after < Duration::from_millis(1500), "{known_after:?}");
        server.thaw();
        until("it is back", || endpoint.is_available()).await;
        let exchange = begin(&endpoint, Class::Short, &path).await;
        let mut body = exchange.response.await.expect("a response").into_body();
        server.kill().await;
        let error = exchange.lease.beginning(&mut body, 1000, || true).await.expect_err("lost");
        assert_eq!((error.failure, error.processed), (Failure::Lost, Processed::Maybe));
    }
}

#[tokio::test]
async fn a_connection_that_stays_silent_is_cut_in_the_end() {
    let server = Server::start().await;
    let mut settings = settings(&[&server]);
    settings.pool.cut_timeout = Duration::from_millis(1500);
    settings.pool.keepalive_interval = Duration::from_millis(300);
    let upstream = Upstream::new(settings);
    warm(&upstream).await;
    let endpoint = only(&upstream);
    // Nobody waits for a response: only the keepalive can find it out.
    let mut watch = headers(&endpoint, Class::Watch, "/watch").await;
    server.freeze();
    read(&mut watch.body).await.expect_err("cut");
    assert_eq!(upstream.status()[0].state, State::Hung);
    until("the hung connections are gone", || upstream.status()[0].connections[1] == 0).await;
}

#[tokio::test]
async fn a_slow_answer_is_no_hang() {
    let server = Server::start().await;
    let upstream = Upstream::new(settings(&[&server]));
    warm(&upstream).await;
    let endpoint = only(&upstream);
    let exchange = begin(&endpoint, Class::Short, "/slow/2500").await;
    let response = exchange.response.abandon_when_hung(Some(|| true)).await.expect("an answer");
    assert_eq!(response.status(), StatusCode::OK);
    let status = &upstream.status()[0];
    assert_eq!((status.hangs, status.ejections, status.connections_lost), (0, 0, 0));
}

#[tokio::test]
async fn an_endpoint_that_never_finishes_its_handshake_does_not_hold_requests_long() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address: Address = format!("http://{}", listener.local_addr().expect("an address")).parse().expect("a URL");
    let mut settings = settings(&[]);
    settings.endpoints = vec![EndpointSettings::new(address)];
    settings.pool.wait_max = Duration::from_millis(400);
    let upstream = Upstream::new(settings);
    let endpoint = only(&upstream);
    let error = endpoint.send(Class::Short, request(&endpoint, Method::GET, "/"), true).await.map(|_| ());
    assert!(matches!(error, Err(SendError::Wait { .. })), "{error:?}");
    assert_eq!(upstream.status()[0].state, State::Unreachable);
}

#[tokio::test]
async fn connections_that_are_closed_as_soon_as_they_are_open_leave_nothing_behind() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address: Address = format!("http://{}", listener.local_addr().expect("an address")).parse().expect("a URL");
    let mut settings = settings(&[]);
    settings.endpoints = vec![EndpointSettings::new(address)];
    let upstream = Upstream::new(settings);
    let endpoint = only(&upstream);
    let server = tokio::spawn(async move {
        loop {
            drop(Raw::accept(&listener).await);
        }
    });
    for _ in 0..20 {
        let sent = endpoint.send(Class::Short, request(&endpoint, Method::GET, "/"), true).await;
        if let Ok(exchange) = sent {
            exchange.response.await.expect_err("never answered");
        }
    }
    server.abort();
    until("no connection is left", || upstream.status()[0].connections == [0; 3]).await;
    assert_eq!(upstream.status()[0].state, State::Unreachable);
    assert_eq!(upstream.status()[0].short_in_flight, 0);
}

#[tokio::test]
async fn at_least_half_of_the_endpoints_that_answer_stay_and_the_least_bad_are_taken() {
    let servers = [Server::start().await, Server::start().await, Server::start().await, Server::start().await];
    let mut settings = settings(&servers.each_ref());
    settings.health.interval = Duration::from_millis(50);
    let upstream = Upstream::new(settings.clone());
    warm(&upstream).await;
    for server in &servers[1..] {
        server.control.ready.store(500, Ordering::SeqCst);
    }
    until("three are not ready", || upstream.status().iter().filter(|one| one.state == State::NotReady).count() == 3)
        .await;
    let in_rotation = || upstream.status().iter().filter(|one| one.in_rotation).count();
    assert_eq!(in_rotation(), 2);
    assert!(upstream.status()[0].in_rotation);
    // One that can't be reached is of no use to anyone.
    servers[0].kill().await;
    until("it is out", || !upstream.status()[0].in_rotation).await;
    assert_eq!(in_rotation(), 2);
    for server in &servers[1..] {
        server.control.ready.store(429, Ordering::SeqCst);
    }
    until("one probe too many is no failure", || in_rotation() == 3).await;
}

#[tokio::test]
async fn an_endpoint_that_fails_requests_is_out_for_a_while_though_its_probe_is_well() {
    let servers = [Server::start().await, Server::start().await];
    let mut settings = settings(&servers.each_ref());
    settings.health.interval = Duration::from_millis(20);
    settings.health.ejection_min = Duration::from_millis(600);
    let upstream = Upstream::new(settings);
    warm(&upstream).await;
    let endpoint = only(&upstream);
    for outcome in [Outcome::Answered, Outcome::Unavailable, Outcome::Deadline, Outcome::Answered] {
        endpoint.report(outcome);
    }
    assert!(endpoint.is_available());
    endpoint.report(Outcome::Unavailable);
    assert!(!endpoint.is_available());
    assert!(upstream.status()[0].reason.contains("503"), "{}", upstream.status()[0].reason);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!endpoint.is_available());
    until("it is back", || endpoint.is_available()).await;
    assert_eq!(upstream.status()[0].ejections, 1);
    // The other one can't be ejected while this one is.
    let other = upstream.endpoints()[1].clone();
    for _ in 0..3 {
        endpoint.report(Outcome::Deadline);
        other.report(Outcome::Deadline);
    }
    assert_eq!(upstream.status().iter().filter(|one| one.in_rotation).count(), 1);
}
