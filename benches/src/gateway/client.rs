//! A client of kube-apiserver: one HTTP/2 connection over TLS, with a client's certificate. All of it runs on one thread.
//!
//! Invariant: a request succeeds only with the status that was wanted, and a body of the length that its head told.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use h2::client::SendRequest;
use http::{HeaderMap, Method, StatusCode};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::requests;
use super::tls::HOST;
use crate::client::gather::Gather;

const CONNECT_WITHIN: Duration = Duration::from_secs(60);
/// Go's windows.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 30;

/// Where to connect, and as whom.
#[derive(Clone)]
pub struct Target {
    address: SocketAddr,
    host: &'static str,
    config: Arc<ClientConfig>,
}

impl Target {
    /// A server of the benchmark at that address.
    pub fn new(address: SocketAddr, config: Arc<ClientConfig>) -> Self {
        Self { address, host: HOST, config }
    }

    /// The same with another name in its certificate.
    pub fn called(self, host: &'static str) -> Self {
        Self { host, ..self }
    }
}

/// One connection. Must be opened and used within one [`tokio::task::LocalSet`].
pub struct Connection {
    sender: SendRequest<Bytes>,
    headers: HeaderMap,
    /// Why the connection ended, if it has: a request that was cut off by that is not told.
    ended: Rc<RefCell<Option<String>>>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens there, or it is not whom we trust.
    pub async fn open(target: &Target) -> Result<Self> {
        tokio::time::timeout(CONNECT_WITHIN, Self::connect(target)).await.context("connecting hangs")?
    }

    async fn connect(target: &Target) -> Result<Self> {
        let socket = TcpStream::connect(target.address).await?;
        socket.set_nodelay(true)?;
        let name = ServerName::try_from(target.host)?;
        let stream = TlsConnector::from(target.config.clone()).connect(name, socket).await?;
        let gather = Gather::new(stream);
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .enable_push(false);
        let (sender, connection) = builder.handshake(gather.clone()).await?;
        let ended = Rc::new(RefCell::new(None));
        tokio::task::spawn_local(drive(connection, gather, ended.clone()));
        Ok(Self { sender, headers: requests::headers(), ended })
    }

    /// Reads what is there.
    ///
    /// # Errors
    /// When there is nothing, or it does not all come.
    pub async fn get_bytes(&self, target: &str) -> Result<Bytes> {
        let mut whole = BytesMut::new();
        self.call(Method::GET, target, Bytes::new(), StatusCode::OK, |piece| whole.extend_from_slice(&piece)).await?;
        Ok(whole.freeze())
    }

    /// Reads what is there, and checks its length.
    ///
    /// # Errors
    /// When it is of another length.
    pub async fn get(&self, target: &str, wanted: usize) -> Result<()> {
        let mut bytes = 0;
        self.call(Method::GET, target, Bytes::new(), StatusCode::OK, |piece| bytes += piece.len()).await?;
        ensure!(bytes == wanted, "{bytes} bytes instead of {wanted}");
        Ok(())
    }

    /// Makes an object.
    ///
    /// # Errors
    /// When it is not made.
    pub async fn post(&self, target: &str, body: Bytes) -> Result<()> {
        self.call(Method::POST, target, body, StatusCode::CREATED, |_| {}).await
    }

    async fn call(
        &self,
        method: Method,
        target: &str,
        body: Bytes,
        wanted: StatusCode,
        mut each: impl FnMut(Bytes),
    ) -> Result<()> {
        let answer = async {
            let (status, mut stream) = self.start(method, target, body).await?;
            while let Some(piece) = stream.data().await {
                let piece = piece?;
                stream.flow_control().release_capacity(piece.len())?;
                each(piece);
            }
            ensure!(status == wanted, "status {status}");
            anyhow::Ok(())
        };
        answer.await.map_err(|error| self.explain(error, target))
    }

    /// Begins to watch; the events are the answer's body.
    ///
    /// # Errors
    /// When the watch is refused.
    pub async fn watch(&self, target: &str) -> Result<RecvStream> {
        let begun = self.start(Method::GET, target, Bytes::new()).await.map_err(|error| self.explain(error, target))?;
        ensure!(begun.0 == StatusCode::OK, "status {} for a watch", begun.0);
        Ok(begun.1)
    }

    async fn start(&self, method: Method, target: &str, body: Bytes) -> Result<(StatusCode, RecvStream)> {
        let request = requests::request(method, HOST, target, &self.headers)?;
        let mut sender = self.sender.clone();
        poll_fn(|context| sender.poll_ready(context)).await?;
        let (response, mut sink) = sender.send_request(request, body.is_empty())?;
        if !body.is_empty() {
            sink.send_data(body, true)?;
        }
        let (head, stream) = response.await?.into_parts();
        Ok((head.status, stream))
    }

    fn explain(&self, error: anyhow::Error, target: &str) -> anyhow::Error {
        let error = error.context(target.to_owned());
        match self.ended.borrow().as_deref() {
            Some(why) => error.context(format!("the connection ended: {why}")),
            None => error,
        }
    }
}

/// Moves bytes between the socket and the requests until the connection ends.
async fn drive(
    connection: h2::client::Connection<Gather<TlsStream<TcpStream>>, Bytes>,
    gather: Gather<TlsStream<TcpStream>>,
    ended: Rc<RefCell<Option<String>>>,
) {
    let mut connection = std::pin::pin!(connection);
    let end = poll_fn(|context| {
        let turn = connection.as_mut().poll(context);
        // The turn may have filled the buffer, so this comes after it.
        match gather.send(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(anyhow!(error))),
            _ => turn.map_err(anyhow::Error::from),
        }
    });
    let why = end.await.map_or_else(|error| error.to_string(), |()| "closed by the server".to_owned());
    *ended.borrow_mut() = Some(why);
}
