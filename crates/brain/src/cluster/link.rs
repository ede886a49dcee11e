//! A member's connection to the leader: how writes get there, and how news come back.
//!
//! Invariant: a call is sent once. What is known not to have been sent is told apart from what may have been.

use std::error::Error as _;
use std::io;
use std::path::PathBuf;

use bytes::{Buf, BufMut, Bytes};
use http::uri::PathAndQuery;
use kubewharf_etcd_api::etcdserverpb::Member;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};

use crate::limits::{PEER_CONNECT_TIMEOUT, PEER_PING_INTERVAL, PEER_PING_TIMEOUT};

/// Files with which a member shows itself to others and knows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerTls {
    /// This member's certificate, PEM.
    pub cert_file: Option<PathBuf>,
    /// Its key, PEM.
    pub key_file: Option<PathBuf>,
    /// The authorities of other members' certificates, PEM.
    pub trusted_ca_file: Option<PathBuf>,
}

/// An open connection to a member.
#[derive(Clone)]
pub(crate) struct Link {
    /// The epoch in which it leads.
    pub(crate) epoch: u64,
    channel: Channel,
}

/// Why a call has no answer of the other side's.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The other side's answer.
    Answer(Status),
    /// The call was certainly not sent.
    NotSent,
    /// The call may have been sent.
    Broken(String),
}

impl Link {
    /// Connects to a member that leads in `epoch`, at the first of its URLs that takes a connection; or says why there is none.
    pub(crate) async fn connect(member: &Member, epoch: u64, tls: &PeerTls) -> Result<Self, String> {
        let mut failure = "it has no URL for peers (--initial-advertise-peer-urls)".to_owned();
        for url in &member.peer_ur_ls {
            match connect(url, tls).await {
                Ok(channel) => return Ok(Self { epoch, channel }),
                Err(why) => failure = format!("{url}: {why}"),
            }
        }
        Err(failure)
    }

    /// Makes a call with a message that is encoded already; gives the encoded answer.
    pub(crate) async fn call(&self, path: &'static str, message: Bytes) -> Result<Bytes, CallError> {
        let mut grpc =
            Grpc::new(self.channel.clone()).max_decoding_message_size(usize::MAX).max_encoding_message_size(usize::MAX);
        if let Err(error) = grpc.ready().await {
            // The connection is gone, and no new one was to be had.
            return Err(if is_refused(&error) { CallError::NotSent } else { CallError::Broken(text(&error)) });
        }
        let answer = grpc.unary(Request::new(message), PathAndQuery::from_static(path), Raw).await;
        match answer {
            Ok(response) => Ok(response.into_inner()),
            // Statuses of the other side come without a cause.
            Err(status) if status.source().is_none() => Err(CallError::Answer(status)),
            Err(status) if is_refused(&status) => Err(CallError::NotSent),
            Err(status) => Err(CallError::Broken(last_cause(&status))),
        }
    }
}

async fn connect(url: &str, tls: &PeerTls) -> Result<Channel, String> {
    let other = |error: &dyn std::error::Error| text(error);
    let mut endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(|error| other(&error))?
        .connect_timeout(PEER_CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PEER_PING_INTERVAL)
        .keep_alive_timeout(PEER_PING_TIMEOUT)
        .keep_alive_while_idle(true);
    if url.starts_with("https:") {
        endpoint = endpoint.tls_config(client_tls(tls)?).map_err(|error| other(&error))?;
    }
    endpoint.connect().await.map_err(|error| other(&error))
}

/// Reads the files anew for each connection, as they may have been replaced.
fn client_tls(tls: &PeerTls) -> Result<ClientTlsConfig, String> {
    let read = |path: &PathBuf| std::fs::read(path).map_err(|error| format!("can't read {}: {error}", path.display()));
    let mut config = ClientTlsConfig::new();
    if let Some(path) = &tls.trusted_ca_file {
        config = config.ca_certificate(Certificate::from_pem(read(path)?));
    }
    if let (Some(certificate), Some(key)) = (&tls.cert_file, &tls.key_file) {
        config = config.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    Ok(config)
}

/// Whether nobody listens at the member's addresses any more, which attempts of one's own tell: all of them are refused.
pub(crate) async fn is_gone(member: &Member) -> bool {
    let mut refusals = 0;
    for url in &member.peer_ur_ls {
        let Ok(addresses) = addresses(url).await else { return false };
        for address in addresses {
            let connecting = tokio::net::TcpStream::connect(address);
            match tokio::time::timeout(PEER_CONNECT_TIMEOUT, connecting).await {
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => refusals += 1,
                _ => return false,
            }
        }
    }
    refusals > 0
}

async fn addresses(url: &str) -> io::Result<Vec<std::net::SocketAddr>> {
    let wrong = || io::Error::from(io::ErrorKind::InvalidInput);
    let uri: http::Uri = url.parse().map_err(|_| wrong())?;
    let host = uri.host().ok_or_else(wrong)?.trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().ok_or_else(wrong)?;
    Ok(tokio::net::lookup_host((host, port)).await?.collect())
}

fn is_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The cause behind all others, which says what has happened.
fn last_cause(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}

/// An error with its causes: the first one alone says little.
fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Messages as they are.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_refused_connection_proves_that_a_process_is_gone() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let member = Member { peer_ur_ls: vec![url], ..Member::default() };
        assert!(!is_gone(&member).await);
        assert!(!is_gone(&Member::default()).await);
        drop(listener);
        assert!(is_gone(&member).await);
        assert!(Link::connect(&member, 1, &PeerTls::default()).await.is_err());
    }
}
