//! Connections.
//!
//! Job: one connection to an address, made when it is first needed and made anew once it has failed, with TLS if there are files for it.
//!
//! Invariant: one caller at a time connects, and an address that has just failed is not tried again at once, however many want it. The files are
//! read for each connection, as they may have been replaced.

use std::path::PathBuf;
use std::time::Duration;

use kubewharf_engine::Cause;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::{text, unavailable};
use crate::url::TlsFiles;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Servers end connections that are pinged more often.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an address that has failed is left alone.
const REST: Duration = Duration::from_millis(50);
/// What may be under way before it is taken: a page of a scan, and several.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// Makes connections.
#[derive(Debug)]
pub(crate) struct Connector {
    pub(crate) tls: Option<TlsFiles>,
}

impl Connector {
    async fn connect(&self, address: &str) -> Result<Channel, String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
            .map_err(|error| text(&error))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        if let Some(tls) = &self.tls {
            endpoint = endpoint.tls_config(config(tls)?).map_err(|error| text(&error))?;
        }
        endpoint.connect().await.map_err(|error| text(&error))
    }
}

fn config(tls: &TlsFiles) -> Result<ClientTlsConfig, String> {
    let read = |path: &PathBuf| std::fs::read(path).map_err(|error| format!("can't read {}: {error}", path.display()));
    let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(&tls.ca)?));
    if let Some((cert, key)) = &tls.identity {
        config = config.identity(Identity::from_pem(read(cert)?, read(key)?));
    }
    Ok(config)
}

/// A connection to one address.
#[derive(Debug)]
pub(crate) struct Line {
    address: String,
    state: Mutex<State>,
    /// Held by the one who connects.
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    channel: Option<Channel>,
    /// Grows with each connection that is given up.
    generation: u64,
    failed: Option<(Instant, String)>,
}

impl Line {
    pub(crate) fn new(address: String) -> Self {
        Self { address, state: Mutex::default(), connecting: tokio::sync::Mutex::default() }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The connection, and its generation.
    pub(crate) async fn channel(&self, connector: &Connector, deadline: Instant) -> Result<(Channel, u64), Cause> {
        let failure = |why: &str| unavailable(format!("{} can't be reached: {why}", self.address));
        if let Some(current) = self.current() {
            return Ok(current);
        }
        let Ok(_connecting) = timeout_at(deadline, self.connecting.lock()).await else {
            return Err(failure("others wait for it already"));
        };
        if let Some(current) = self.current() {
            return Ok(current);
        }
        if let Some((at, why)) = &self.state.lock().failed
            && at.elapsed() < REST
        {
            return Err(failure(why));
        }
        let within = deadline.min(Instant::now() + CONNECT_TIMEOUT);
        let connected = timeout_at(within, connector.connect(&self.address)).await;
        let mut state = self.state.lock();
        match connected.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
            Ok(channel) => {
                state.failed = None;
                state.channel = Some(channel.clone());
                Ok((channel, state.generation))
            }
            Err(why) => {
                let error = failure(&why);
                state.failed = Some((Instant::now(), why));
                Err(error)
            }
        }
    }

    fn current(&self) -> Option<(Channel, u64)> {
        let state = self.state.lock();
        state.channel.clone().map(|channel| (channel, state.generation))
    }

    /// Gives the connection of that generation up; calls that are under way on it go on.
    pub(crate) fn give_up(&self, generation: Option<u64>) {
        let mut state = self.state.lock();
        if generation.is_none_or(|generation| generation == state.generation) {
            state.generation += 1;
            let channel = state.channel.take();
            drop(state);
            drop(channel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_that_has_failed_is_left_alone_for_a_while() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let line = Line::new(listener.local_addr().unwrap().to_string());
        drop(listener);
        let connector = Connector { tls: None };
        let deadline = Instant::now() + Duration::from_secs(10);
        let error = line.channel(&connector, deadline).await.unwrap_err();
        assert!(error.to_string().contains("can't be reached"), "{error}");
        let failed_at = line.state.lock().failed.clone().map(|(at, _)| at);
        line.channel(&connector, deadline).await.unwrap_err();
        assert_eq!(line.state.lock().failed.clone().map(|(at, _)| at), failed_at, "it was not tried again");
        // Now somebody listens there.
        let listener = tokio::net::TcpListener::bind(line.address()).await.unwrap();
        tokio::time::sleep(REST).await;
        let (_, generation) = line.channel(&connector, deadline).await.unwrap();
        line.give_up(Some(generation + 1));
        assert!(line.current().is_some(), "it is another one's failure");
        line.give_up(Some(generation));
        assert!(line.current().is_none());
        drop(listener);
    }
}
