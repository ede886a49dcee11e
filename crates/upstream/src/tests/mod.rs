//! The whole module against real servers on 127.0.0.1.

mod choice;
mod failures;
mod pool;
mod server;
mod tls;
mod update;
mod upgrade;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};

use super::*;
use server::{Server, until};

/// Settings for these servers, with everything that lasts shortened.
fn settings(servers: &[&Server]) -> UpstreamSettings {
    let mut settings = UpstreamSettings::new("test");
    settings.endpoints = servers.iter().map(|server| EndpointSettings::new(server.address.clone())).collect();
    settings.pool.spread = 1;
    // The machine that runs tests may stand still for longer than any apiserver should.
    settings.pool.wait_max = Duration::from_secs(5);
    settings
}

fn only(upstream: &Upstream) -> Arc<Endpoint> {
    upstream.endpoints().first().expect("an endpoint").clone()
}

fn request(endpoint: &Endpoint, method: Method, path: &str) -> http::Request<()> {
    let uri = endpoint.uri(path.parse().expect("a path")).expect("a URI");
    http::Request::builder().method(method).uri(uri).body(()).expect("a request")
}

/// A GET whose response has not come yet.
async fn begin(endpoint: &Arc<Endpoint>, class: Class, path: &str) -> Exchange {
    endpoint.send(class, request(endpoint, Method::GET, path), true).await.expect("sent")
}

/// A response whose body has not been read yet.
struct Begun {
    body: h2::RecvStream,
    _lease: Lease,
}

async fn headers(endpoint: &Arc<Endpoint>, class: Class, path: &str) -> Begun {
    let exchange = begin(endpoint, class, path).await;
    let response = exchange.response.await.expect("a response");
    Begun { body: response.into_body(), _lease: exchange.lease }
}

async fn read(body: &mut h2::RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        all.extend_from_slice(&data);
    }
    Ok(all)
}

/// A whole GET.
async fn get(endpoint: &Arc<Endpoint>, path: &str) -> (StatusCode, Bytes) {
    let exchange = begin(endpoint, Class::Short, path).await;
    let mut response = exchange.response.await.expect("a response");
    let body = read(response.body_mut()).await.expect("a body");
    (response.status(), body.into())
}

/// Until the first probe has opened a connection.
async fn warm(upstream: &Arc<Upstream>) {
    until("all endpoints are up", || upstream.status().iter().all(|one| one.state == State::Up)).await;
}
