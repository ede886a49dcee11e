//! Shutting down.

use std::time::{Duration, Instant};

use futures_util::stream;
use kubewharf_grpc::ServerOptions;
use tonic::Code;

use crate::support::{TestServer, soon};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_in_flight_end_streams_are_told_and_the_server_stops() {
    let mut server = TestServer::start().await;
    let client = server.client().await;
    let mut wait = soon(client.stream("Wait", stream::pending())).await.unwrap();
    let slow = tokio::spawn({
        let client = client.clone();
        async move { client.unary("Later", "300").await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    server.stop();
    assert_eq!(soon(wait.message()).await.unwrap().unwrap(), "bye");
    let status = soon(wait.message()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "draining"));
    assert_eq!(soon(slow).await.unwrap().unwrap(), "300");
    soon(&mut server.task).await.unwrap();
    assert!(tokio::net::TcpStream::connect(server.address).await.is_err(), "nobody listens any more");
    assert_eq!(server.stats.connections_open(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_does_not_end_is_cut_off_after_the_drain_timeout() {
    let mut options = ServerOptions::default();
    options.drain_timeout = Duration::from_millis(200);
    let mut server = TestServer::with(options, None).await;
    let client = server.client().await;
    let never = tokio::spawn({
        let client = client.clone();
        async move { client.unary("Never", "").await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let begun = Instant::now();
    server.stop();
    soon(&mut server.task).await.unwrap();
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(200) && took < Duration::from_secs(1), "{took:?}");
    assert!(soon(never).await.unwrap().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_does_not_hold_the_drain_up() {
    let mut server = TestServer::start().await;
    let client = server.client().await;
    soon(client.unary("Echo", "x")).await.unwrap();
    let silent = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let begun = Instant::now();
    server.stop();
    soon(&mut server.task).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1));
    drop((client, silent));
}
