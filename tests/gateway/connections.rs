//! How requests and watches of many clients share few connections to mock apiservers.

use std::sync::atomic::Ordering::SeqCst;

use http::{HeaderMap, Method, StatusCode};
use tokio::task::JoinSet;

use crate::fixture::{EVERYTHING, wait};
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
