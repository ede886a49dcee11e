//! How requests and watches of many clients share few connections to mock apiservers.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};
use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::pki::Authority;
use tokio::task::JoinSet;

use crate::fixture::{EVERYTHING, Gateway, wait};
use crate::mock::Mock;
use crate::mock::apiserver::Apiserver;

const GET: &str = "/api/v1/namespaces/team/configmaps/settings";
const WATCH: &str = "/api/v1/namespaces/team/configmaps?watch=true";
/// Streams that are put on one connection to an apiserver.
const STREAMS: u64 = 90;

/// What `streams` streams may cost an apiserver.
fn most_connections(streams: u64) -> u64 {
    streams.div_ceil(STREAMS) + 4
}

#[track_caller]
fn assert_connections(apiserver: &Apiserver) {
    let (streams, connections) = (apiserver.control.streams.most(), apiserver.control.connections.most());
    println!("{connections} connections for {streams} streams");
    assert!(connections <= most_connections(streams), "{connections} connections for {streams} streams");
}

#[test]
fn one_connection_spreads_its_requests_evenly() {
    const REQUESTS: u64 = 3000;
    const AT_ONCE: u64 = 50;
    let mock = Mock::start(3, EVERYTHING);
    mock.runtime.block_on(async {
        let connection = mock.connector().connect().await;
        let mut tasks = JoinSet::new();
        for _ in 0..AT_ONCE {
            let connection = connection.clone();
            tasks.spawn(async move {
                for _ in 0..REQUESTS / AT_ONCE {
                    assert_eq!(connection.get(GET).await.unwrap().0, StatusCode::OK);
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    });
    let shares: Vec<u64> = mock.apiservers.iter().map(|one| one.control.requests()).collect();
    assert_eq!(shares, [REQUESTS / 3; 3]);
}

#[test]
fn five_hundred_clients_with_a_request_each_at_once_need_ten_connections_at_most() {
    const CLIENTS: usize = 500;
    let mock = Mock::start(2, EVERYTHING);
    // So that all of them are in flight together.
    mock.apiservers.iter().for_each(|one| one.control.delay_ms.store(1000, SeqCst));
    mock.runtime.block_on(async {
        let clients = mock.connector().connect_many(CLIENTS).await;
        let mut tasks = JoinSet::new();
        for client in clients {
            tasks.spawn(async move { assert_eq!(client.get(GET).await.unwrap().0, StatusCode::OK) });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    });
    let sum = |what: fn(&Apiserver) -> u64| mock.apiservers.iter().map(what).sum::<u64>();
    let streams = sum(|one| one.control.streams.most());
    assert!(streams >= CLIENTS as u64 * 9 / 10, "only {streams} were in flight at once");
    let connections = sum(|one| one.control.connections.most());
    println!("{connections} connections");
    assert!(connections <= 10, "{connections}");
}

#[test]
fn ten_thousand_clients_cost_an_apiserver_as_many_connections_as_their_streams_need() {
    const CLIENTS: usize = 10_000;
    let mock = Mock::start(2, EVERYTHING);
    let watches = mock.runtime.block_on(async {
        let connector = mock.connector();
        let mut tasks = JoinSet::new();
        for _ in 0..CLIENTS / 100 {
            let connector = connector.clone();
            tasks.spawn(async move {
                let mut watches = Vec::new();
                for _ in 0..100 {
                    let client = connector.connect().await;
                    let watch = client.begin(Method::GET, WATCH, &HeaderMap::new(), None).await.unwrap();
                    assert_eq!(watch.status(), StatusCode::OK);
                    watches.push((client, watch));
                }
                watches
            });
        }
        let mut all = Vec::new();
        while let Some(watches) = tasks.join_next().await {
            all.extend(watches.unwrap());
        }
        all
    });
    assert_eq!(mock.apiservers.iter().map(|one| one.control.watches.now()).sum::<u64>(), CLIENTS as u64);
    mock.apiservers.iter().for_each(assert_connections);
    // And a request of each of them besides, long enough for all of them to be in flight together.
    mock.apiservers.iter().for_each(|one| one.control.delay_ms.store(5000, SeqCst));
    mock.runtime.block_on(async {
        let mut tasks = JoinSet::new();
        for (client, _) in &watches {
            let client = client.clone();
            tasks.spawn(async move { assert_eq!(client.get(GET).await.unwrap().0, StatusCode::OK) });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    });
    mock.apiservers.iter().for_each(assert_connections);
    drop(watches);
    wait("all watches have ended", || mock.apiservers.iter().all(|one| one.control.watches.now() == 0));
}

/// A connection to the gateway, which a load balancer passes on for that address if there is one; `None` if it is closed.
fn connect(gateway: &Gateway, passed_on_for: Option<&str>) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(gateway.address).unwrap();
    if let Some(address) = passed_on_for {
        let header = format!("PROXY TCP4 {address} 127.0.0.1 40000 {}\r\n", gateway.address.port());
        stream.write_all(header.as_bytes()).unwrap();
    }
    // The gateway says nothing before its client does.
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    match stream.read(&mut [0]) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Some(stream),
        _ => None,
    }
}

#[test]
fn an_address_has_so_many_connections_and_others_have_theirs() {
    const MAX: usize = 3;
    let folder = Folder::new("addresses").unwrap();
    let authority = Authority::new(&folder, "authority").unwrap();
    let endpoints = ["https://127.0.0.1:1".to_owned()];
    let limit = format!("--connections-per-address-max={MAX}");
    for balanced in [false, true] {
        let flags = [&*limit, if balanced { "--proxy-protocol-from=127.0.0.1" } else { "--log-level=info" }];
        let gateway = Gateway::start_with(&authority, &endpoints, EVERYTHING, &flags);
        let client = balanced.then_some("10.0.0.1");
        let mut connections: Vec<_> = (0..MAX).map(|_| connect(&gateway, client).expect("a place")).collect();
        for _ in 0..10 {
            assert!(connect(&gateway, client).is_none(), "it has as many as it may");
        }
        assert_eq!(gateway.metric("kubegateway_proxy_connections_refused_total"), 10.0);
        assert_eq!(gateway.metric("kubegateway_proxy_handshakes_failed_total"), 0.0);
        let told = gateway.process.log_text().unwrap();
        assert_eq!(told.matches("--connections-per-address-max").count(), 1, "{told}");
        if balanced {
            assert!(connect(&gateway, Some("10.0.0.2")).is_some(), "another address");
        }
        connections.pop();
        wait("the place is free", || connect(&gateway, client).is_some());
    }
}
