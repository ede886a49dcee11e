//! A server with a method for each thing that is tested, and a tonic client that sends bytes.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use kubewharf_grpc::*;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Streaming};

const METHODS: [(&str, Route); 11] = [
    ("Echo", Route::Unary(MethodId(0))),
    ("Fail", Route::Unary(MethodId(1))),
    ("Later", Route::Unary(MethodId(2))),
    ("Never", Route::Unary(MethodId(3))),
    ("Drop", Route::Unary(MethodId(4))),
    ("Panic", Route::Unary(MethodId(5))),
    ("Big", Route::Unary(MethodId(6))),
    ("Who", Route::Unary(MethodId(7))),
    ("Bidi", Route::Streaming(MethodId(8))),
    ("Flood", Route::Streaming(MethodId(9))),
    ("Wait", Route::Streaming(MethodId(10))),
];

/// What the handlers of a test server have seen.
#[derive(Default)]
pub struct Seen {
    pub never: Mutex<Vec<UnaryReply>>,
    pub flood_bytes: AtomicUsize,
    pub flood_waiting_max: AtomicUsize,
    pub closed: AtomicBool,
    pub guards: AtomicUsize,
    pub request_ends: Mutex<Vec<Option<Status>>>,
}

pub struct TestDispatch {
    pub seen: Arc<Seen>,
}

/// Counts the guards that live.
pub struct Guard(Arc<Seen>);

impl Guard {
    pub fn new(seen: &Arc<Seen>) -> Self {
        seen.guards.fetch_add(1, Ordering::SeqCst);
        Self(seen.clone())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.guards.fetch_sub(1, Ordering::SeqCst);
    }
}

fn number(message: &[u8]) -> usize {
    std::str::from_utf8(message).expect("text").parse().expect("a number")
}

impl Dispatch for TestDispatch {
    fn route(&self, path: &str) -> Route {
        let Some(method) = path.strip_prefix("/test.Test/") else { return Route::UnknownService };
        METHODS.iter().find(|(name, _)| *name == method).map_or(Route::UnknownMethod, |(_, route)| *route)
    }

    fn unary(&self, method: MethodId, context: CallContext, message: Bytes, reply: UnaryReply) {
        let seen = self.seen.clone();
        match method.0 {
            0 => reply.send(Ok(Reply::from(message).with_guard(Guard::new(&seen)))),
            1 => {
                let text = String::from_utf8(message.to_vec()).expect("text");
                reply.send(Err(Status::new(Code::FailedPrecondition, text)));
            }
            2 => {
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(number(&message) as u64));
                    reply.send(Ok(Reply::from(message)));
                });
            }
            3 => seen.never.lock().unwrap().push(reply),
            4 => drop(reply),
            5 => panic!("as the test asked"),
            6 => {
                let piece = Bytes::from(vec![7; 100_000]);
                let count = number(&message);
                let pieces = std::iter::repeat_n(piece, count);
                reply.send(Ok(Reply::from_pieces(pieces).with_guard(Guard::new(&seen))));
            }
            7 => {
                let text = format!(
                    "authority={} x-test={} deadline={} certificates={}",
                    context.authority(),
                    context.metadata("x-test").unwrap_or("-"),
                    context.deadline().is_some(),
                    context.peer().certificates().len(),
                );
                reply.send(Ok(Reply::from(text.into_bytes())));
            }
            _ => unreachable!("not a unary method"),
        }
    }

    fn stream(&self, method: MethodId, _: CallContext, mut requests: RequestStream, responses: ResponseSink) {
        let seen = self.seen.clone();
        match method.0 {
            8 => drop(tokio::spawn(async move {
                loop {
                    match requests.next().await {
                        Some(Ok(message)) => {
                            let head = Bytes::from_static(b"echo:");
                            if responses.send(Reply::from_pieces([head, message])).await.is_err() {
                                return;
                            }
                        }
                        Some(Err(status)) => {
                            seen.request_ends.lock().unwrap().push(Some(status.clone()));
                            return responses.finish(status);
                        }
                        None => {
                            seen.request_ends.lock().unwrap().push(None);
                            return responses.finish(Status::ok());
                        }
                    }
                }
            })),
            9 => drop(tokio::spawn(async move {
                let piece = Bytes::from(vec![1; 16 << 10]);
                let guard = Guard::new(&seen);
                loop {
                    let reply = Reply::from_pieces([piece.clone()]).with_guard(Guard::new(&seen));
                    if responses.send(reply).await.is_err() {
                        break;
                    }
                    seen.flood_bytes.fetch_add(piece.len(), Ordering::SeqCst);
                    seen.flood_waiting_max.fetch_max(responses.waiting_bytes(), Ordering::SeqCst);
                }
                drop(guard);
                seen.closed.store(true, Ordering::SeqCst);
            })),
            10 => drop(tokio::spawn(async move {
                responses.start();
                tokio::select! {
                    biased;
                    () = responses.closed() => seen.closed.store(true, Ordering::SeqCst),
                    () = responses.draining() => {
                        responses.send(Reply::from(Bytes::from_static(b"bye"))).await.expect("still open");
                        responses.finish(Status::new(Code::Unavailable, "draining"));
                    }
                }
            })),
            _ => unreachable!("not a streaming method"),
        }
    }

    fn http(&self, request: http::Request<Bytes>, _: Arc<Peer>) -> HttpFuture {
        Box::pin(async move {
            let text = format!("{} {} {}", request.method(), request.uri().path(), request.body().len());
            let mut response = http::Response::new(Bytes::from(text));
            if request.uri().path() == "/big" {
                *response.body_mut() = Bytes::from(vec![b'x'; 1 << 20]);
            }
            response
        })
    }
}

/// A server that runs until it is told to stop.
pub struct TestServer {
    pub address: SocketAddr,
    pub seen: Arc<Seen>,
    pub stats: Arc<Stats>,
    stop: Option<oneshot::Sender<()>>,
    pub task: JoinHandle<()>,
}

impl TestServer {
    pub async fn start() -> Self {
        Self::with(ServerOptions::default(), None).await
    }

    pub async fn with(options: ServerOptions, tls: Option<TlsSource>) -> Self {
        let seen = Arc::new(Seen::default());
        let server = Server::new(Arc::new(TestDispatch { seen: seen.clone() }), options);
        let stats = server.stats();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            server
                .serve(listener, tls, async {
                    let _ = stopped.await;
                })
                .await;
        });
        Self { address, seen, stats, stop: Some(stop), task }
    }

    /// Begins the drain.
    pub fn stop(&mut self) {
        drop(self.stop.take());
    }

    pub async fn client(&self) -> Client {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        Client { channel: endpoint.connect().await.unwrap() }
    }
}

/// Calls methods of the test server with bytes.
#[derive(Clone)]
pub struct Client {
    pub channel: Channel,
}

impl Client {
    pub async fn unary(&self, method: &str, message: impl Into<Bytes>) -> Result<Bytes, tonic::Status> {
        self.request(method, Request::new(message.into())).await
    }

    pub async fn request(&self, method: &str, request: Request<Bytes>) -> Result<Bytes, tonic::Status> {
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(usize::MAX);
        grpc.ready().await.unwrap();
        Ok(grpc.unary(request, path(method), RawCodec).await?.into_inner())
    }

    pub async fn stream<S>(&self, method: &str, requests: S) -> Result<Streaming<Bytes>, tonic::Status>
    where
        S: futures_util::Stream<Item = Bytes> + Send + 'static,
    {
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(usize::MAX);
        grpc.ready().await.unwrap();
        Ok(grpc.streaming(Request::new(requests), path(method), RawCodec).await?.into_inner())
    }
}

fn path(method: &str) -> PathAndQuery {
    let path = if method.starts_with('/') { method.to_owned() } else { format!("/test.Test/{method}") };
    path.parse().unwrap()
}

/// Messages are bytes.
#[derive(Clone, Copy, Default)]
pub struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = tonic::Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), tonic::Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = tonic::Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, tonic::Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// Waits until a condition holds; fails the test after five seconds.
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..500 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within five seconds: {what}");
}

/// Fails the test if the future takes more than ten seconds.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("within ten seconds")
}

/// A client that decides about every frame itself.
pub struct RawClient {
    pub send: h2::client::SendRequest<Bytes>,
    pub driver: JoinHandle<()>,
}

impl RawClient {
    pub async fn connect(server: &TestServer) -> Self {
        let socket = tokio::net::TcpStream::connect(server.address).await.unwrap();
        let (send, connection) = h2::client::handshake(socket).await.unwrap();
        let driver = tokio::spawn(async move { drop(connection.await) });
        Self { send: send.ready().await.unwrap(), driver }
    }

    pub fn request(method: &str) -> http::request::Builder {
        http::Request::post(format!("http://test/test.Test/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
    }

    /// Sends a request whose body is these pieces, and returns the response, its body and the status (from wherever).
    pub async fn call(
        &mut self,
        request: http::request::Builder,
        pieces: &[&[u8]],
    ) -> (http::Response<()>, Vec<u8>, Option<(String, String)>) {
        let (response, mut body) = self.send.send_request(request.body(()).unwrap(), false).unwrap();
        for piece in pieces {
            body.send_data(Bytes::copy_from_slice(piece), false).unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The server may have answered and reset already.
        let _ = body.send_data(Bytes::new(), true);
        let (parts, mut body) = response.await.unwrap().into_parts();
        let mut collected = Vec::new();
        while let Some(piece) = body.data().await {
            let piece = piece.unwrap();
            body.flow_control().release_capacity(piece.len()).unwrap();
            collected.extend_from_slice(&piece);
        }
        let trailers = body.trailers().await.unwrap().unwrap_or_else(|| parts.headers.clone());
        let text = |name: &str| trailers.get(name).map(|value| value.to_str().unwrap().to_owned());
        let status = text("grpc-status").map(|status| (status, text("grpc-message").unwrap_or_default()));
        (http::Response::from_parts(parts, ()), collected, status)
    }
}

/// A gRPC message with its prefix.
pub fn framed(message: &[u8]) -> Vec<u8> {
    let mut framed = vec![0];
    framed.extend((message.len() as u32).to_be_bytes());
    framed.extend(message);
    framed
}
