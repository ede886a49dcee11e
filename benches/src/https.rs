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
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, USER_AGENT};
use http::{Method, Request, StatusCode, Uri};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::client::gather::Gather;

const CONNECT_WITHIN: Duration = Duration::from_secs(60);
/// Go's windows.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 30;
/// As client-go's.
const AGENT: HeaderValue = HeaderValue::from_static("controller/v1.36.3 (linux/amd64) kubernetes/0123456");
/// How much of an answer that was not wanted an error shows.
const SHOWN_BYTES: usize = 400;

/// The media type of JSON.
pub const JSON: &str = "application/json";

/// Where to connect, and as whom.
#[derive(Clone)]
pub struct Target {
    address: SocketAddr,
    host: &'static str,
    config: Arc<ClientConfig>,
}

impl Target {
    /// A server at that address, with that name in its certificate.
    pub fn new(address: SocketAddr, host: &'static str, config: Arc<ClientConfig>) -> Self {
        Self { address, host, config }
    }
}

/// A request.
#[derive(Debug, Clone)]
pub struct Ask<'a> {
    /// What is done.
    pub method: Method,
    /// Path and query.
    pub target: &'a str,
    /// The media types of the answer that the client can read.
    pub accept: &'static str,
    /// Whether it can read gzip. client-go can; kube-apiserver then packs answers from 128 KiB on.
    pub takes_gzip: bool,
    /// Who it is for, if not who has connected.
    pub user: Option<&'a str>,
    /// The media type of the body.
    pub content_type: &'static str,
    /// The body.
    pub body: Bytes,
}

impl<'a> Ask<'a> {
    /// A read, in JSON.
    pub fn get(target: &'a str) -> Self {
        Self::with(Method::GET, target, JSON, Bytes::new())
    }

    /// A request with a body of that type, and an answer in JSON.
    pub fn with(method: Method, target: &'a str, content_type: &'static str, body: Bytes) -> Self {
        Self { method, target, accept: JSON, takes_gzip: false, user: None, content_type, body }
    }

    /// The same, answered in one of these media types.
    pub fn accepting(self, accept: &'static str) -> Self {
        Self { accept, ..self }
    }

    /// The same, perhaps answered in gzip.
    pub fn packed(self) -> Self {
        Self { takes_gzip: true, ..self }
    }

    /// The same, on behalf of that user.
    pub fn acting_as(self, user: &'a str) -> Self {
        Self { user: Some(user), ..self }
    }

    fn head(&self, host: &str) -> http::Result<Request<()>> {
        let mut request = Request::new(());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = Uri::builder().scheme("https").authority(host).path_and_query(self.target).build()?;
        let headers = request.headers_mut();
        if !self.body.is_empty() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
            headers.insert(CONTENT_LENGTH, HeaderValue::from(self.body.len()));
        }
        headers.insert(ACCEPT, HeaderValue::from_static(self.accept));
        if self.takes_gzip {
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        }
        if let Some(user) = self.user {
            headers.insert("impersonate-user", HeaderValue::from_str(user)?);
        }
        headers.insert(USER_AGENT, AGENT);
        Ok(request)
    }
}

/// One connection. Must be opened and used within one [`tokio::task::LocalSet`].
pub struct Connection {
    sender: SendRequest<Bytes>,
    host: &'static str,
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
        Ok(Self { sender, host: target.host, ended })
    }

    /// Reads what is there.
    ///
    /// # Errors
    /// When there is nothing, or it does not all come.
    pub async fn get_bytes(&self, target: &str) -> Result<Bytes> {
        self.expect(StatusCode::OK, &Ask::get(target).packed()).await
    }

    /// Reads what is there, and checks its length.
    ///
    /// # Errors
    /// When it is of another length.
    pub async fn get(&self, target: &str, wanted: usize) -> Result<()> {
        let mut bytes = 0;
        let status = self.ask(&Ask::get(target).packed(), |piece| bytes += piece.len()).await?;
        ensure!(status == StatusCode::OK, "{target}: status {status}");
        ensure!(bytes == wanted, "{bytes} bytes instead of {wanted}");
        Ok(())
    }

    /// Makes an object.
    ///
    /// # Errors
    /// When it is not made.
    pub async fn post(&self, target: &str, body: Bytes) -> Result<()> {
        self.expect(StatusCode::CREATED, &Ask::with(Method::POST, target, JSON, body).packed()).await.map(drop)
    }

    /// The body of the answer.
    ///
    /// # Errors
    /// When the answer has another status, or does not all come.
    pub async fn expect(&self, wanted: StatusCode, ask: &Ask<'_>) -> Result<Bytes> {
        // Nearly every answer is one piece, and is then not copied.
        let mut first = Bytes::new();
        let mut whole = BytesMut::new();
        let status = self
            .ask(ask, |piece| {
                if first.is_empty() {
                    first = piece;
                } else {
                    if whole.is_empty() {
                        whole.extend_from_slice(&first);
                    }
                    whole.extend_from_slice(&piece);
                }
            })
            .await?;
        let body = if whole.is_empty() { first } else { whole.freeze() };
        let shown = String::from_utf8_lossy(&body[..body.len().min(SHOWN_BYTES)]);
        ensure!(status == wanted, "{} {}: status {status}: {shown}", ask.method, ask.target);
        Ok(body)
    }

    /// Asks, and hands on the answer's body as it comes.
    ///
    /// # Errors
    /// When the answer does not all come.
    pub async fn ask(&self, ask: &Ask<'_>, mut each: impl FnMut(Bytes)) -> Result<StatusCode> {
        let answer = async {
            let (status, mut stream) = self.start(ask).await?;
            while let Some(piece) = stream.data().await {
                let piece = piece?;
                stream.flow_control().release_capacity(piece.len())?;
                each(piece);
            }
            anyhow::Ok(status)
        };
        answer.await.map_err(|error| self.explain(error, ask.target))
    }

    /// Begins to watch; the events are the answer's body.
    ///
    /// # Errors
    /// When the watch is refused.
    pub async fn watch(&self, target: &str) -> Result<RecvStream> {
        let begun = self.start(&Ask::get(target).packed()).await.map_err(|error| self.explain(error, target))?;
        ensure!(begun.0 == StatusCode::OK, "{target}: status {} for a watch", begun.0);
        Ok(begun.1)
    }

    async fn start(&self, ask: &Ask<'_>) -> Result<(StatusCode, RecvStream)> {
        let request = ask.head(self.host)?;
        let mut sender = self.sender.clone();
        poll_fn(|context| sender.poll_ready(context)).await?;
        let (response, mut sink) = sender.send_request(request, ask.body.is_empty())?;
        if !ask.body.is_empty() {
            sink.send_data(ask.body.clone(), true)?;
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
