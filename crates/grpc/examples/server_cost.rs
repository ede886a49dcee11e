//! What a small unary call, and a message to many streams, cost the server in CPU time: this crate against tonic, from
//! one run.
//!
//! Each server is a child process that tells its own CPU time. For calls, the client keeps a number of them in flight over
//! some connections; for streams, the server sends events to all of them at a steady pace.
//! `cargo run --release --example server_cost [seconds a case]`, or for a profiler's sake one case:
//! `server_cost case kubewharf Later 16 4`.

#![allow(missing_docs, clippy::unwrap_used)]

use std::convert::Infallible;
use std::future::Future;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes};
use kubewharf_grpc::*;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const REQUEST_BYTES: usize = 100;
const REPLY_BYTES: usize = 600;
const IN_FLIGHT: usize = 64;
static REPLY: [u8; REPLY_BYTES] = [7; REPLY_BYTES];
const EVENT_BYTES: usize = 600;
const STREAMS: usize = 1000;
/// Every pause, so many events go to all streams.
const EVENTS_A_BURST: usize = 4;
const PAUSE: Duration = Duration::from_millis(40);

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("serve") => serve(&arguments[2]),
        Some("case") => {
            let target = Target::start(&arguments[2]);
            eprintln!("server process {}", target.child.id());
            let connections = arguments[4].parse().unwrap();
            let seconds = arguments[5].parse().unwrap();
            let (rate, cpu) = match arguments[3].as_str() {
                "Later" => run(target.address, "Later", connections, seconds),
                "Inline" => run(target.address, "Inline", connections, seconds),
                _ => watch(target.address, connections, seconds),
            };
            println!("{rate:.0} calls/s, {cpu:.2} \u{b5}s");
        }
        seconds => measure(seconds.map_or(4.0, |text| text.parse().expect("seconds a case"))),
    }
}

// ---- servers ----

/// CPU time of this process in microseconds.
fn cpu_us() -> u64 {
    let mut total = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let path = task.unwrap().path().join("schedstat");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        total += text.split(' ').next().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    }
    total / 1000
}

struct Bench {
    /// Where the method "later" leaves its replies, for another thread to send in batches.
    later: mpsc::Sender<UnaryReply>,
    watchers: Arc<Mutex<Vec<ResponseSink>>>,
}

impl Dispatch for Bench {
    fn route(&self, path: &str) -> Route {
        match path {
            "/bench.Bench/Inline" => Route::Unary(MethodId(0)),
            "/bench.Bench/Later" => Route::Unary(MethodId(1)),
            "/bench.Bench/Cpu" => Route::Unary(MethodId(2)),
            "/bench.Bench/Watch" => Route::Streaming(MethodId(3)),
            _ => Route::UnknownMethod,
        }
    }

    fn unary(&self, method: MethodId, _: CallContext, message: Bytes, reply: UnaryReply) {
        match method.0 {
            0 => {
                assert_eq!(message.len(), REQUEST_BYTES);
                reply.send(Ok(Reply::from(REPLY.to_vec())));
            }
            1 => self.later.send(reply).unwrap(),
            _ => reply.send(Ok(Reply::from(cpu_us().to_be_bytes().to_vec()))),
        }
    }

    fn stream(&self, _: MethodId, _: CallContext, _: RequestStream, responses: ResponseSink) {
        self.watchers.lock().unwrap().push(responses);
    }
}

fn serve(which: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{}", listener.local_addr().unwrap());
        if which == "tonic" {
            let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
            tonic::transport::Server::builder().add_service(TonicBench).serve_with_incoming(incoming).await.unwrap();
        } else {
            let (later, replies) = mpsc::channel::<UnaryReply>();
            std::thread::spawn(move || {
                while let Ok(first) = replies.recv() {
                    let _batch = WakeBatch::new();
                    first.send(Ok(Reply::from(REPLY.to_vec())));
                    for reply in replies.try_iter().take(256) {
                        reply.send(Ok(Reply::from(REPLY.to_vec())));
                    }
                }
            });
            let watchers = Arc::new(Mutex::new(Vec::<ResponseSink>::new()));
            let publish_to = watchers.clone();
            std::thread::spawn(move || {
                loop {
                    std::thread::sleep(PAUSE);
                    let _batch = WakeBatch::new();
                    for _ in 0..EVENTS_A_BURST {
                        let (head, event) = (Bytes::from_static(b"head"), Bytes::from(vec![7; EVENT_BYTES]));
                        publish_to
                            .lock()
                            .unwrap()
                            .retain(|sink| sink.try_send(Reply::from_pieces([head.clone(), event.clone()])).is_ok());
                    }
                }
            });
            let server = Server::new(Arc::new(Bench { later, watchers }), ServerOptions::default());
            server.serve(listener, None, std::future::pending()).await;
        }
    });
}

#[derive(Clone)]
struct TonicBench;

impl tonic::server::NamedService for TonicBench {
    const NAME: &'static str = "bench.Bench";
}

struct TonicReply(bool);

impl tonic::server::UnaryService<Bytes> for TonicReply {
    type Response = Bytes;
    type Future = std::future::Ready<Result<tonic::Response<Bytes>, tonic::Status>>;

    fn call(&mut self, _: tonic::Request<Bytes>) -> Self::Future {
        let reply = if self.0 { cpu_us().to_be_bytes().to_vec() } else { REPLY.to_vec() };
        std::future::ready(Ok(tonic::Response::new(Bytes::from(reply))))
    }
}

impl tonic::codegen::Service<http::Request<tonic::body::Body>> for TonicBench {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let service = TonicReply(request.uri().path() == "/bench.Bench/Cpu");
        Box::pin(async move { Ok(tonic::server::Grpc::new(RawCodec).unary(service, request).await) })
    }
}

#[derive(Clone, Copy, Default)]
struct RawCodec;

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

// ---- client ----

struct Target {
    child: Child,
    address: SocketAddr,
}

impl Target {
    fn start(which: &str) -> Self {
        let program = std::env::current_exe().unwrap();
        let mut child = Command::new(program).args(["serve", which]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, address: line.trim().parse().unwrap() }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

type Client = h2::client::SendRequest<Bytes>;

async fn connect(address: SocketAddr) -> Client {
    let socket = tokio::net::TcpStream::connect(address).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let (send, connection) =
        h2::client::Builder::new().initial_connection_window_size(8 << 20).handshake(socket).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    send.ready().await.unwrap()
}

async fn call(client: &mut Client, method: &'static str, message: Bytes) -> Bytes {
    let request = http::Request::post(format!("http://bench.example:2379/bench.Bench/{method}"))
        .header("content-type", "application/grpc")
        .header("user-agent", "grpc-go/1.79.3")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (response, mut body) = client.send_request(request, false).unwrap();
    body.send_data(message, true).unwrap();
    let mut body = response.await.unwrap().into_body();
    let mut reply = Bytes::new();
    while let Some(piece) = body.data().await {
        let piece = piece.unwrap();
        let _ = body.flow_control().release_capacity(piece.len());
        reply = if reply.is_empty() { piece } else { [reply, piece].concat().into() };
    }
    let trailers = body.trailers().await.unwrap().unwrap();
    assert_eq!(trailers["grpc-status"], "0");
    reply.slice(5..)
}

fn framed(message: &[u8]) -> Bytes {
    let mut framed = vec![0];
    framed.extend((message.len() as u32).to_be_bytes());
    framed.extend(message);
    framed.into()
}

/// Calls a second and CPU microseconds of the server a call.
fn run(address: SocketAddr, method: &'static str, connections: usize, seconds: f64) -> (f64, f64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let done = Arc::new(AtomicU64::new(0));
    runtime.block_on(async {
        let mut control = connect(address).await;
        let message = framed(&[1; REQUEST_BYTES]);
        for connection in 0..connections {
            let client = connect(address).await;
            let share = IN_FLIGHT / connections + usize::from(connection < IN_FLIGHT % connections);
            for _ in 0..share {
                let (mut client, done, message) = (client.clone(), done.clone(), message.clone());
                tokio::spawn(async move {
                    loop {
                        let reply = call(&mut client, method, message.clone()).await;
                        assert_eq!(reply.len(), REPLY_BYTES);
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        }
        let mut cpu = async || {
            let reply = call(&mut control, "Cpu", framed(b"")).await;
            u64::from_be_bytes(reply[..].try_into().unwrap())
        };
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (cpu_before, done_before, begun) = (cpu().await, done.load(Ordering::Relaxed), Instant::now());
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        let (cpu_after, done_after, took) = (cpu().await, done.load(Ordering::Relaxed), begun.elapsed());
        let calls = (done_after - done_before) as f64;
        (calls / took.as_secs_f64(), (cpu_after - cpu_before) as f64 / calls)
    })
}

/// Messages a second and CPU microseconds of the server a message, for streams over some connections.
fn watch(address: SocketAddr, connections: usize, seconds: f64) -> (f64, f64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let done = Arc::new(AtomicU64::new(0));
    runtime.block_on(async {
        let mut control = connect(address).await;
        for connection in 0..connections {
            let client = connect(address).await;
            for _ in 0..STREAMS / connections + usize::from(connection < STREAMS % connections) {
                let (mut client, done) = (client.clone().ready().await.unwrap(), done.clone());
                let request = http::Request::post("http://bench.example:2379/bench.Bench/Watch")
                    .header("content-type", "application/grpc")
                    .body(())
                    .unwrap();
                let (response, body) = client.send_request(request, false).unwrap();
                tokio::spawn(async move {
                    let _body = body;
                    let mut body = response.await.unwrap().into_body();
                    let mut bytes = 0;
                    while let Some(Ok(piece)) = body.data().await {
                        let _ = body.flow_control().release_capacity(piece.len());
                        bytes += piece.len();
                        done.fetch_add((bytes / (EVENT_BYTES + 9)) as u64, Ordering::Relaxed);
                        bytes %= EVENT_BYTES + 9;
                    }
                });
            }
        }
        let mut cpu = async || {
            let reply = call(&mut control, "Cpu", framed(b"")).await;
            u64::from_be_bytes(reply[..].try_into().unwrap())
        };
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (cpu_before, done_before, begun) = (cpu().await, done.load(Ordering::Relaxed), Instant::now());
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        let (cpu_after, done_after, took) = (cpu().await, done.load(Ordering::Relaxed), begun.elapsed());
        let messages = (done_after - done_before) as f64;
        (messages / took.as_secs_f64(), (cpu_after - cpu_before) as f64 / messages)
    })
}

fn measure(seconds: f64) {
    println!("{REQUEST_BYTES} B request, {REPLY_BYTES} B reply, {IN_FLIGHT} in flight; server CPU in \u{b5}s a call");
    println!("{:<22}{:>12}{:>12}{:>12}", "server", "connections", "calls/s", "CPU \u{b5}s");
    for (which, method) in [("kubewharf", "Inline"), ("kubewharf", "Later"), ("tonic", "Inline")] {
        for connections in [1, 4, 16, 64] {
            let target = Target::start(which);
            let (rate, cpu) = run(target.address, method, connections, seconds);
            println!("{:<22}{connections:>12}{rate:>12.0}{cpu:>12.2}", format!("{which} {method}"));
        }
    }
    println!("\n{EVENT_BYTES} B events to {STREAMS} streams; server CPU in \u{b5}s a delivered event");
    for connections in [1, 16] {
        let target = Target::start("kubewharf");
        let (rate, cpu) = watch(target.address, connections, seconds);
        println!("{:<22}{connections:>12}{rate:>12.0}{cpu:>12.2}", "kubewharf Watch");
    }
}
