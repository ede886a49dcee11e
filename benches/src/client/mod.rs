//! A gRPC client that does as little as it can: one HTTP/2 connection, messages as bytes.
//!
//! It sends what etcd's Go client sends under kube-apiserver: the same headers, with a deadline on each unary call and
//! none on streams, and receive windows as large as those that client grows to. All of it runs on one thread.
//!
//! Invariant: a unary call succeeds only with one whole message and the status 0.

pub(crate) mod gather;
mod incoming;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::SendStream;
use h2::client::SendRequest;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, TE, USER_AGENT};
use http::{HeaderMap, Method as HttpMethod, Request, Uri};
use kubewharf_etcd_api::Method;
use prost::Message;
use tokio::net::TcpStream;

use gather::Gather;
use incoming::{Incoming, OneMessage};

pub use incoming::Responses;

/// What grpc-go's windows grow to at most.
const WINDOW_BYTES: u32 = 16 << 20;
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// kube-apiserver gives a request 60 s; about so much of it is left when it asks its store.
const DEADLINE_US: u32 = 59_999_000;
/// Bytes before each gRPC message: one that tells compression, four of length.
const PREFIX_BYTES: usize = 5;

/// A message as it is sent, with the gRPC prefix.
pub fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).expect("no request comes near 4 GB"));
    message.encode(&mut bytes).expect("a buffer grows as needed");
    bytes.freeze()
}

/// One connection. Must be opened and used within one [`tokio::task::LocalSet`].
pub struct Connection {
    sender: SendRequest<Bytes>,
    uris: Vec<Uri>,
    headers: HeaderMap,
    calls: Cell<u32>,
    /// Why the connection ended, if it has: a call that was cut off by that is not told.
    ended: Rc<RefCell<Option<String>>>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens there, or it is no HTTP/2 server.
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let socket = tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(address)).await??;
        socket.set_nodelay(true)?;
        let gather = Gather::new(socket);
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES).enable_push(false);
        let (sender, connection) = builder.handshake(gather.clone()).await?;
        let ended = Rc::new(RefCell::new(None));
        tokio::task::spawn_local(drive(connection, gather, ended.clone()));
        let uri = |method: &Method| format!("http://{address}{}", method.path()).parse::<Uri>();
        let uris = Method::ALL.iter().map(uri).collect::<Result<_, _>>()?;
        let headers = HeaderMap::from_iter([
            (CONTENT_TYPE, HeaderValue::from_static("application/grpc")),
            (USER_AGENT, HeaderValue::from_static("grpc-go/1.79.3")),
            (TE, HeaderValue::from_static("trailers")),
            (HeaderName::from_static("client-api-version"), HeaderValue::from_static("3.6")),
        ]);
        Ok(Self { sender, uris, headers, calls: Cell::new(0), ended })
    }

    /// Whether it has not ended, as far as is known.
    pub fn is_open(&self) -> bool {
        self.ended.borrow().is_none()
    }

    /// Calls a unary method with a [`framed`] message.
    ///
    /// # Errors
    /// When the call does not succeed.
    pub async fn unary(&self, method: Method, request: Bytes) -> Result<Bytes> {
        // Nearly every reply is one piece, and is then not copied.
        let mut first = Bytes::new();
        let mut whole = BytesMut::new();
        let each = |piece: Bytes| {
            if first.is_empty() {
                first = piece;
            } else {
                if whole.is_empty() {
                    whole.extend_from_slice(&first);
                }
                whole.extend_from_slice(&piece);
            }
            Ok(())
        };
        self.unary_in_pieces(method, request, each).await?;
        Ok(if whole.is_empty() { first } else { whole.freeze() })
    }

    /// Calls a unary method with a [`framed`] message, and hands on the reply as it comes.
    ///
    /// # Errors
    /// When the call does not succeed, or `each` fails.
    pub async fn unary_in_pieces(
        &self,
        method: Method,
        request: Bytes,
        mut each: impl FnMut(Bytes) -> Result<()>,
    ) -> Result<()> {
        let calls = self.calls.get();
        self.calls.set(calls.wrapping_add(1));
        let mut headers = self.headers.clone();
        // What is left of the time differs from call to call, so the servers cannot remember the header.
        let timeout = HeaderValue::try_from(format!("{}u", DEADLINE_US + calls % 997))?;
        headers.insert(HeaderName::from_static("grpc-timeout"), timeout);
        let answer = async {
            let (_, mut replies) = self.start(method, headers, request, true).await?;
            let mut message = OneMessage::default();
            while let Some(piece) = replies.piece().await? {
                if let Some(piece) = message.take(piece)? {
                    each(piece)?;
                }
            }
            message.finish()
        };
        answer.await.map_err(|error| self.explain(error, method))
    }

    /// Opens a stream of both directions with its first, [`framed`] message.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn stream(&self, method: Method, first: Bytes) -> Result<(Requests, Responses)> {
        let mut headers = self.headers.clone();
        headers.insert(HeaderName::from_static("hasleader"), HeaderValue::from_static("true"));
        let begun = self.start(method, headers, first, false).await;
        let (body, replies) = begun.map_err(|error| self.explain(error, method))?;
        Ok((Requests(body), Responses::new(replies)))
    }

    async fn start(
        &self,
        method: Method,
        headers: HeaderMap,
        message: Bytes,
        last: bool,
    ) -> Result<(SendStream<Bytes>, Incoming)> {
        let mut request = Request::new(());
        *request.method_mut() = HttpMethod::POST;
        *request.uri_mut() = self.uris[method as usize].clone();
        *request.headers_mut() = headers;
        let mut sender = self.sender.clone();
        poll_fn(|context| sender.poll_ready(context)).await?;
        let (response, mut body) = sender.send_request(request, false)?;
        // The layer below keeps what the receiver's window has no room for.
        body.send_data(message, last)?;
        Ok((body, Incoming::new(response)))
    }

    fn explain(&self, error: anyhow::Error, method: Method) -> anyhow::Error {
        let error = error.context(method.path());
        match self.ended.borrow().as_deref() {
            Some(why) => error.context(format!("the connection ended: {why}")),
            None => error,
        }
    }
}

/// The sending half of a stream. Dropping both halves cancels it.
pub struct Requests(SendStream<Bytes>);

impl Requests {
    /// Sends one more [`framed`] message.
    ///
    /// # Errors
    /// When the stream has ended.
    pub fn send(&mut self, message: Bytes) -> Result<()> {
        self.0.send_data(message, false).context("the stream takes no more messages")
    }
}

/// Moves bytes between the socket and the calls until the connection ends.
async fn drive(
    mut connection: h2::client::Connection<Gather<TcpStream>, Bytes>,
    gather: Gather<TcpStream>,
    ended: Rc<RefCell<Option<String>>>,
) {
    let end = poll_fn(|context| {
        let turn = Pin::new(&mut connection).poll(context);
        // The turn may have filled the buffer, so this comes after it.
        match gather.send(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(anyhow!(error))),
            _ => turn.map_err(anyhow::Error::from),
        }
    });
    let why = end.await.map_or_else(|error| error.to_string(), |()| "closed by the server".to_owned());
    *ended.borrow_mut() = Some(why);
}
