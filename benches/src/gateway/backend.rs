//! A small kube-apiserver: answers of given lengths, watches that hear of writes, requests that are held. A process of its own.
//!
//! It listens once for each side, so that it knows whose connections it counts, and once for the benchmark, which asks for those counts
//! and tells it what to do.
//!
//! Invariant: a request is answered well only if it says who asks, in the way that its side passes that on: a proxy that forgets it
//! has no speed.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, DATE, HeaderName, HeaderValue};
use http::{HeaderMap, Request, Response, StatusCode};
use kubewharf_testkit::address::free_port;
use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::process::{Process, Spec};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::options::Side;
use super::requests;
use super::tls::{self, Certificates};
use crate::client::gather::Gather;
use crate::https::{Connection, Target};
use crate::tls::Files;

/// The first argument of the program, if it is to be this server.
pub const WORD: &str = "serve-backend";
const READY: &str = "ready";
/// What the path of a write begins with; the side follows.
const WRITE: &str = "/write/";
const READY_WITHIN: Duration = Duration::from_secs(20);
/// Streams of a connection: kube-apiserver's.
const STREAMS_MAX: u32 = 100;
/// Windows: kube-apiserver's are of about this length.
const WINDOW_BYTES: u32 = 256 << 10;
/// What a long answer is cut into.
const PIECE_BYTES: usize = 64 << 10;

/// What the process is told.
#[derive(Debug, Serialize, Deserialize)]
struct Settings {
    control: SocketAddr,
    sides: BTreeMap<Side, SocketAddr>,
    files: Files,
    list_bytes: usize,
}

/// What one side has cost the kube-apiserver.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Connections now.
    pub open: u64,
    /// The most at once since the counts were last reset.
    pub open_max: u64,
    /// Requests that are held now.
    pub held: u64,
    /// Watches now.
    pub watches: u64,
}

/// The kube-apiserver, for the benchmark.
pub struct Backend {
    // Before the folder, so that it is gone when its files are removed.
    process: Process,
    sides: BTreeMap<Side, SocketAddr>,
    control: Connection,
    /// Its certificate.
    pub files: Files,
    _folder: Folder,
}

impl Backend {
    /// Starts it on these processors.
    ///
    /// # Errors
    /// When it does not get ready.
    pub async fn start(
        parent: &Path,
        certificates: &Certificates,
        list_bytes: usize,
        processors: &str,
    ) -> Result<Self> {
        let folder = Folder::new_in(parent, "backend")?;
        let control = free_port();
        let files = certificates.server(&folder, "backend", &control.ip().to_string())?;
        let sides: BTreeMap<Side, SocketAddr> = Side::ALL.into_iter().map(|side| (side, free_port())).collect();
        let settings = Settings { control, sides: sides.clone(), files: files.clone(), list_bytes };
        let settings = folder.write("settings.json", &serde_json::to_string(&settings)?)?;
        let mut process = Spec::new("backend", "taskset", folder.path())
            .args(["-c", processors])
            .arg(std::env::current_exe()?)
            .arg(WORD)
            .arg(settings)
            .start()?;
        process.wait_for_log(READY_WITHIN, READY)?;
        let control = Connection::open(&Target::new(control, tls::HOST, certificates.client()?)).await?;
        Ok(Self { process, sides, control, files, _folder: folder })
    }

    /// The process number.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Where it listens for that side.
    pub fn address(&self, side: Side) -> SocketAddr {
        self.sides[&side]
    }

    /// What that side costs it.
    ///
    /// # Errors
    /// When it has ended.
    pub async fn counts(&self, side: Side) -> Result<Counts> {
        let text = self.control.get_bytes("/counts").await?;
        let mut all: BTreeMap<Side, Counts> = serde_json::from_slice(&text)?;
        all.remove(&side).context("a side without counts")
    }

    /// Waits until its counts of that side are so.
    ///
    /// # Errors
    /// When they do not become so.
    pub async fn wait(&self, side: Side, within: Duration, enough: impl Fn(&Counts) -> bool) -> Result<Counts> {
        let deadline = tokio::time::Instant::now() + within;
        loop {
            let counts = self.counts(side).await?;
            if enough(&counts) {
                return Ok(counts);
            }
            ensure!(tokio::time::Instant::now() < deadline, "not within {within:?}: {side:?} has {counts:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Begins to count the most anew.
    ///
    /// # Errors
    /// When it has ended.
    pub async fn reset_counts(&self) -> Result<()> {
        self.control.get_bytes("/reset").await.map(drop)
    }

    /// One write: all watchers of that side hear of it.
    ///
    /// # Errors
    /// When it has ended.
    pub async fn write(&self, side: Side) -> Result<()> {
        self.control.get_bytes(&format!("{WRITE}{}", side.label())).await.map(drop)
    }

    /// Answers the requests that are held.
    ///
    /// # Errors
    /// When it has ended.
    pub async fn release(&self) -> Result<()> {
        self.control.get_bytes("/release").await.map(drop)
    }
}

/// Serves until it is killed.
///
/// # Errors
/// When it cannot begin to.
pub fn serve(settings: &Path) -> Result<()> {
    let settings: Settings = serde_json::from_str(&std::fs::read_to_string(settings)?)?;
    kubewharf_foundation::descriptors::raise_limit()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let server = Rc::new(Server::new(&settings)?);
        for (side, address) in &settings.sides {
            let listener = TcpListener::bind(address).await?;
            spawn_local(accept(server.clone(), listener, Some(*side)));
        }
        let control = TcpListener::bind(settings.control).await?;
        println!("{READY}");
        accept(server, control, None).await;
        Ok(())
    })
}

struct Server {
    acceptor: TlsAcceptor,
    small: Bytes,
    large: Bytes,
    list: Bytes,
    event: Bytes,
    headers: HeaderMap,
    requests: Cell<u64>,
    sides: BTreeMap<Side, Rc<SideState>>,
}

#[derive(Default)]
struct SideState {
    open: Cell<u64>,
    open_max: Cell<u64>,
    held: RefCell<Vec<SendResponse<Bytes>>>,
    watches: RefCell<Vec<SendStream<Bytes>>>,
}

impl Server {
    fn new(settings: &Settings) -> Result<Self> {
        let headers = HeaderMap::from_iter([
            (CACHE_CONTROL, HeaderValue::from_static("no-cache, private")),
            (CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (DATE, HeaderValue::from_static("Thu, 01 Jan 2026 00:00:00 GMT")),
            (
                HeaderName::from_static("x-kubernetes-pf-flowschema-uid"),
                HeaderValue::from_static("5b3a6a1e-2a6f-4e0c-9d34-21f7f2a3b8ce"),
            ),
            (
                HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid"),
                HeaderValue::from_static("c0f6e8d2-7a0b-4b0e-8f57-3c1a9a7be0aa"),
            ),
        ]);
        Ok(Self {
            acceptor: TlsAcceptor::from(tls::server(&settings.files)?),
            small: requests::text(requests::SMALL_BYTES),
            large: requests::text(requests::LARGE_BYTES),
            list: requests::text(settings.list_bytes),
            event: requests::event(),
            headers,
            requests: Cell::new(0),
            sides: Side::ALL.into_iter().map(|side| (side, Rc::default())).collect(),
        })
    }

    /// A head as kube-apiserver's; the audit id differs from answer to answer.
    fn head(&self, status: StatusCode, length: Option<usize>) -> Response<()> {
        let number = self.requests.get();
        self.requests.set(number + 1);
        let mut response = Response::new(());
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.clone_from(&self.headers);
        let audit_id = format!("{number:08x}-6b1c-4c55-9f0e-{:012x}", number.wrapping_mul(0x9e37_79b9) & 0xffff_ffff);
        headers.insert(HeaderName::from_static("audit-id"), audit_id.try_into().expect("digits"));
        if let Some(length) = length {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        response
    }

    fn answer(&self, respond: &mut SendResponse<Bytes>, status: StatusCode, body: Bytes) {
        let head = self.head(status, Some(body.len()));
        // Fails only if the request was cut off.
        if let Ok(mut stream) = respond.send_response(head, body.is_empty())
            && !body.is_empty()
        {
            let _ = stream.send_data(body, true);
        }
    }

    fn counts(&self) -> BTreeMap<Side, Counts> {
        let of = |state: &SideState| Counts {
            open: state.open.get(),
            open_max: state.open_max.get(),
            held: state.held.borrow().len() as u64,
            watches: state.watches.borrow().len() as u64,
        };
        self.sides.iter().map(|(side, state)| (*side, of(state))).collect()
    }

    /// What the benchmark itself asks for.
    fn control(&self, path: &str, respond: &mut SendResponse<Bytes>) {
        let mut body = Bytes::new();
        match path {
            "/counts" => body = serde_json::to_vec(&self.counts()).expect("numbers").into(),
            "/reset" => self.sides.values().for_each(|state| state.open_max.set(state.open.get())),
            "/release" => {
                let held = self.sides.values().flat_map(|state| state.held.take());
                held.for_each(|mut respond| self.answer(&mut respond, StatusCode::OK, self.small.clone()));
            }
            _ => {
                let wanted = |side: Side| path.strip_prefix(WRITE) == Some(side.label());
                for (_, state) in self.sides.iter().filter(|(side, _)| wanted(**side)) {
                    state.watches.borrow_mut().retain_mut(|watch| watch.send_data(self.event.clone(), false).is_ok());
                }
            }
        }
        self.answer(respond, StatusCode::OK, body);
    }
}

async fn accept(server: Rc<Server>, listener: TcpListener, side: Option<Side>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let server = server.clone();
        spawn_local(async move {
            let state = side.map(|side| server.sides[&side].clone());
            if let Some(state) = &state {
                state.open.set(state.open.get() + 1);
                state.open_max.set(state.open_max.get().max(state.open.get()));
            }
            // A connection that ends ends nothing else.
            let _ = serve_connection(&server, stream, side).await;
            if let Some(state) = &state {
                state.open.set(state.open.get() - 1);
            }
        });
    }
}

async fn serve_connection(server: &Rc<Server>, stream: TcpStream, side: Option<Side>) -> Result<()> {
    stream.set_nodelay(true)?;
    let gather: Gather<TlsStream<TcpStream>> = Gather::new(server.acceptor.accept(stream).await?);
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(STREAMS_MAX)
        .initial_window_size(WINDOW_BYTES)
        .initial_connection_window_size(4 * WINDOW_BYTES)
        .max_send_buffer_size(1 << 20);
    let handshake = builder.handshake::<_, Bytes>(gather.clone());
    let mut handshake = std::pin::pin!(handshake);
    let mut connection = std::future::poll_fn(|context| {
        let turn = handshake.as_mut().poll(context);
        let _ = gather.send(context)?;
        turn.map_err(anyhow::Error::from)
    })
    .await?;
    loop {
        let next = std::future::poll_fn(|context| {
            let turn = connection.poll_accept(context);
            if turn.is_pending() {
                let _ = gather.send(context)?;
            }
            turn.map(anyhow::Ok)
        });
        let Some(next) = next.await? else { return Ok(()) };
        let (request, respond) = next?;
        handle(server, request, respond, side);
    }
}

fn handle(server: &Rc<Server>, request: Request<RecvStream>, mut respond: SendResponse<Bytes>, side: Option<Side>) {
    let path = request.uri().path();
    let Some(side) = side else { return server.control(path, &mut respond) };
    if path == "/readyz" {
        return server.answer(&mut respond, StatusCode::OK, Bytes::from_static(b"ok"));
    }
    if !is_named(request.headers(), side) {
        return server.answer(&mut respond, StatusCode::UNAUTHORIZED, Bytes::new());
    }
    let state = server.sides[&side].clone();
    let server = server.clone();
    if request.uri().query().is_some_and(|query| query.contains("watch=true")) {
        if let Ok(stream) = respond.send_response(server.head(StatusCode::OK, None), false) {
            state.watches.borrow_mut().push(stream);
        }
    } else if request.method() == http::Method::POST {
        spawn_local(async move {
            let mut body = request.into_body();
            let mut bytes = 0;
            while let Some(Ok(piece)) = body.data().await {
                bytes += piece.len();
                let _ = body.flow_control().release_capacity(piece.len());
            }
            let whole = bytes == requests::SMALL_BYTES;
            let status = if whole { StatusCode::CREATED } else { StatusCode::BAD_REQUEST };
            server.answer(&mut respond, status, server.small.clone());
        });
    } else if path == requests::LIST {
        spawn_local(async move {
            let head = server.head(StatusCode::OK, Some(server.list.len()));
            if let Ok(stream) = respond.send_response(head, false) {
                let _ = send(stream, server.list.clone()).await;
            }
        });
    } else if path.starts_with(requests::HELD) {
        state.held.borrow_mut().push(respond);
    } else if path.starts_with(requests::LARGE) {
        server.answer(&mut respond, StatusCode::OK, server.large.clone());
    } else {
        server.answer(&mut respond, StatusCode::OK, server.small.clone());
    }
}

/// Whether the request tells its user as that side passes it on.
fn is_named(headers: &HeaderMap, side: Side) -> bool {
    let has = |name: &str, value: &str| headers.get_all(name).iter().any(|found| found == value);
    match side {
        Side::Direct => true,
        Side::Haproxy => has("x-remote-user", tls::USER) && has("x-remote-group", tls::GROUP),
        Side::Gateway => has("impersonate-user", tls::USER) && has("impersonate-group", tls::GROUP),
    }
}

/// Sends a long body as fast as it is taken.
async fn send(mut stream: SendStream<Bytes>, mut body: Bytes) -> Result<()> {
    while !body.is_empty() {
        stream.reserve_capacity(body.len().min(PIECE_BYTES));
        let capacity = std::future::poll_fn(|context| stream.poll_capacity(context)).await.context("cut off")??;
        let piece = body.split_to(capacity.min(body.len()));
        stream.send_data(piece, body.is_empty())?;
    }
    Ok(())
}
