use std::sync::atomic::Ordering;

use tokio::task::JoinSet;

use super::*;

async fn herd(endpoint: &Arc<Endpoint>, size: usize, path: &'static str) {
    let mut tasks = JoinSet::new();
    for _ in 0..size {
        let endpoint = endpoint.clone();
        tasks.spawn(async move { get(&endpoint, path).await.0 });
    }
    while let Some(status) = tasks.join_next().await {
        assert_eq!(status.expect("no panic"), StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_herd_shares_its_dials() {
    let server = Server::start().await;
    let upstream = Upstream::new(settings(&[&server]));
    herd(&only(&upstream), 500, "/slow/300").await;
    assert!(server.accepted() <= 8, "{} connections for 500 requests", server.accepted());
    let peak = server.control.peak.load(Ordering::SeqCst);
    assert!(peak <= 90, "{peak} streams on a connection");
    assert_eq!(server.requests(), 500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limit_of_the_endpoint_is_kept_before_and_after_it_is_known() {
    let server = Server::with(None, 7).await;
    let upstream = Upstream::new(settings(&[&server]));
    let endpoint = only(&upstream);
    herd(&endpoint, 100, "/slow/30").await;
    herd(&endpoint, 100, "/slow/30").await;
    let peak = server.control.peak.load(Ordering::SeqCst);
    assert!(peak <= 7, "{peak} streams on a connection");
    assert_eq!(upstream.status()[0].connections_lost, 0);
}

#[tokio::test]
async fn requests_in_turn_need_one_connection_and_it_stays_while_surplus_ones_close() {
    let server = Server::start().await;
    let mut settings = settings(&[&server]);
    settings.pool.idle_timeout = Duration::from_millis(200);
    let upstream = Upstream::new(settings);
    let endpoint = only(&upstream);
    for _ in 0..50 {
        get(&endpoint, "/").await;
    }
    assert_eq!(server.accepted(), 1);
    herd(&endpoint, 300, "/slow/100").await;
    drop(headers(&endpoint, Class::Watch, "/watch/1").await);
    assert!(server.open() > 2);
    until("the surplus is closed", || server.open() == 1).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(server.open(), 1);
    let before = server.accepted();
    get(&endpoint, "/").await;
    assert_eq!(server.accepted(), before);
    assert_eq!(upstream.status()[0].connections_lost, 0);
}

#[tokio::test]
async fn classes_do_not_share_connections() {
    let server = Server::start().await;
    let upstream = Upstream::new(settings(&[&server]));
    warm(&upstream).await;
    let endpoint = only(&upstream);
    let watches = [
        headers(&endpoint, Class::Watch, "/watch").await,
        headers(&endpoint, Class::Watch, "/watch").await,
        headers(&endpoint, Class::Bulk, "/watch").await,
    ];
    let status = &upstream.status()[0];
    assert_eq!(status.connections, [1, 1, 1]);
    assert_eq!((status.short_in_flight, status.watch_in_flight, status.bulk_in_flight), (0, 2, 1));
    drop(watches);
    assert_eq!(upstream.status()[0].watch_in_flight, 0);
    until("the endpoint knows that the watches are over", || server.control.cut.load(Ordering::SeqCst) == 3).await;
}

#[tokio::test]
async fn load_is_spread_over_as_many_connections_as_there_are_threads() {
    let server = Server::start().await;
    let mut settings = settings(&[&server]);
    settings.pool.spread = 2;
    let upstream = Upstream::new(settings);
    let endpoint = only(&upstream);
    herd(&endpoint, 10, "/slow/50").await;
    assert_eq!(server.accepted(), 1);
    let streams: Vec<_> = {
        let mut streams = Vec::new();
        for _ in 0..20 {
            streams.push(begin(&endpoint, Class::Short, "/slow/500").await);
        }
        streams
    };
    until("a second connection is there", || upstream.status()[0].connections[0] == 2).await;
    drop(streams);
    assert_eq!(server.accepted(), 2);
}

#[tokio::test]
async fn readers_that_stall_do_not_block_their_siblings() {
    let server = Server::start().await;
    let upstream = Upstream::new(settings(&[&server]));
    let endpoint = only(&upstream);
    let mut stalled = Vec::new();
    for _ in 0..60 {
        stalled.push(headers(&endpoint, Class::Short, "/bytes/3000000").await);
    }
    // Each fills its window, and no more.
    tokio::time::sleep(Duration::from_millis(300)).await;
    for _ in 0..5 {
        assert_eq!(get(&endpoint, "/bytes/1000000").await.1.len(), 1_000_000);
    }
    assert_eq!(server.accepted(), 1);
    // And none is hurt by its patience.
    for one in &mut stalled {
        assert_eq!(read(&mut one.body).await.expect("a body").len(), 3_000_000);
    }
}

#[tokio::test]
async fn streams_that_are_cut_do_not_wear_out_their_connection() {
    let server = Server::start().await;
    let upstream = Upstream::new(settings(&[&server]));
    let endpoint = only(&upstream);
    // Their data is still coming when they are cut. By default, h2 ends a connection after 1024 of these.
    for _ in 0..100 {
        let mut some = Vec::new();
        for _ in 0..20 {
            some.push(headers(&endpoint, Class::Short, "/bytes/200000").await);
        }
    }
    get(&endpoint, "/").await;
    let status = &upstream.status()[0];
    assert_eq!((server.accepted(), status.connections_lost), (1, 0));
}

#[tokio::test]
async fn small_events_that_nobody_reads_do_not_end_their_connection() {
    let server = Server::start().await;
    let upstream = Upstream::new(settings(&[&server]));
    let endpoint = only(&upstream);
    let mut watches = Vec::new();
    for _ in 0..80 {
        watches.push(headers(&endpoint, Class::Watch, "/watch/300").await);
    }
    until("all is sent", || server.control.requests.load(Ordering::SeqCst) == 80).await;
    tokio::time::sleep(Duration::from_millis(1000)).await;
    for watch in &mut watches {
        assert_eq!(read(&mut watch.body).await.expect("a body").len(), 900);
    }
    assert_eq!(upstream.status()[0].connections_lost, 0);
}

#[tokio::test]
async fn a_request_that_leaves_the_queue_takes_no_stream_with_it() {
    let server = Server::with(None, 1).await;
    let mut settings = settings(&[&server]);
    settings.pool.connections_max = 1;
    settings.pool.wait_max = Duration::from_millis(300);
    let upstream = Upstream::new(settings);
    warm(&upstream).await;
    let endpoint = only(&upstream);
    let busy = begin(&endpoint, Class::Short, "/hang").await;
    let leaver = tokio::spawn({
        let endpoint = endpoint.clone();
        async move { get(&endpoint, "/").await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    leaver.abort();
    let error = endpoint.send(Class::Short, request(&endpoint, Method::GET, "/"), true).await.map(|_| ());
    assert!(matches!(error, Err(SendError::Wait { .. })), "{error:?}");
    drop(busy);
    assert_eq!(get(&endpoint, "/").await.0, StatusCode::OK);
    assert_eq!(upstream.status()[0].short_in_flight, 0);
}

#[tokio::test]
async fn bodies_go_both_ways() {
    let server = Server::start().await;
    let upstream = Upstream::new(settings(&[&server]));
    let endpoint = only(&upstream);
    let request = request(&endpoint, Method::POST, "/echo");
    let mut exchange = endpoint.send(Class::Short, request, false).await.expect("sent");
    for part in 0..4 {
        exchange.body.send_data(Bytes::from_static(b"0123456789"), part == 3).expect("queued");
    }
    let mut response = exchange.response.await.expect("a response");
    assert_eq!(read(response.body_mut()).await.expect("a body").len(), 40);
}

#[tokio::test]
async fn a_request_that_http2_forbids_is_at_fault_itself() {
    let server = Server::start().await;
    let upstream = Upstream::new(settings(&[&server]));
    warm(&upstream).await;
    let endpoint = only(&upstream);
    until("the probe is over", || endpoint.status().short_in_flight == 0).await;
    let mut request = request(&endpoint, Method::GET, "/");
    request.headers_mut().insert("connection", "close".parse().expect("a value"));
    let error = endpoint.send(Class::Short, request, true).await.map(|_| ()).expect_err("forbidden");
    assert!(error.is_request_fault(), "{error}");
    assert_eq!(upstream.status()[0].short_in_flight, 0);
}

#[tokio::test]
async fn a_body_is_read_whole_up_to_its_limit() {
    let server = Server::start().await;
    let upstream = Upstream::new(settings(&[&server]));
    let endpoint = only(&upstream);
    // More than a stream's window, so the room of what was read must be given back.
    let path = format!("/bytes/{}", 1 << 20);
    let mut begun = headers(&endpoint, Class::Short, &path).await;
    assert_eq!(read_whole(&mut begun.body, 1 << 20).await.expect("the body").len(), 1 << 20);
    let mut begun = headers(&endpoint, Class::Short, &path).await;
    let error = read_whole(&mut begun.body, (1 << 20) - 1).await.expect_err("too long");
    assert!(matches!(error, BodyError::TooLong { .. }), "{error}");
    let mut begun = headers(&endpoint, Class::Short, "/stall/10").await;
    server.kill().await;
    let error = read_whole(&mut begun.body, 10).await.expect_err("it breaks off");
    assert!(matches!(error, BodyError::Broken(_)), "{error}");
}
