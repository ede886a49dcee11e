//! A kube-apiserver that keeps what it is sent, and has an answer to everything.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use http::{Request, Response};
use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::http::Client;
use kubewharf_testkit::pki::{Authority, Identity};
use kubewharf_testkit::tls::Connection;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

use crate::fixture::Gateway;
use crate::raw::{self, Http2};

/// The token that is robot's.
pub(crate) const TOKEN: &str = "robot-token";
/// What is answered to what has no other answer.
pub(crate) const ANSWER: &[u8] = b"seen, as far as a mock can see";
/// The path of an answer that has no end.
pub(crate) const ENDLESS: &str = "/endless";
/// Pieces of that.
const PIECE_BYTES: usize = 64 << 10;

/// A request as it came. Those for reviews and probes are not kept.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) target: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
    /// Whether it came to its proper end.
    pub(crate) is_whole: bool,
}

impl Seen {
    /// The values of a header.
    pub(crate) fn values(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(found, _)| found == name).map(|(_, value)| &**value).collect()
    }
}

/// The kube-apiserver, until it is dropped.
pub(crate) struct Mock {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    _runtime: Runtime,
}

impl Mock {
    pub(crate) fn start() -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let all = seen.clone();
        runtime.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let all = all.clone();
                // However a connection ends: what matters is what has come.
                tokio::spawn(async move { drop(serve(stream, all).await) });
            }
        });
        Self { address, seen, _runtime: runtime }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The requests so far whose path begins so.
    pub(crate) fn seen_at(&self, path: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| seen.target.starts_with(path)).collect()
    }
}

async fn serve(stream: TcpStream, all: Arc<Mutex<Vec<Seen>>>) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut first = [0; 4];
    while stream.peek(&mut first).await? < first.len() {}
    if &first != b"PRI " {
        return Ok(http1(stream, &all).await?);
    }
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(100).initial_window_size(1 << 20).initial_connection_window_size(16 << 20);
    let mut connection = builder.handshake(stream).await?;
    while let Some(request) = connection.accept().await {
        let (request, respond) = request?;
        let all = all.clone();
        tokio::spawn(async move { drop(answer(request, respond, &all).await) });
    }
    Ok(())
}

fn text(headers: &http::HeaderMap) -> Vec<(String, String)> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect()
}

async fn answer(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    all: &Mutex<Vec<Seen>>,
) -> Result<(), h2::Error> {
    let (head, mut stream) = request.into_parts();
    let target = head.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let is_kept = !target.ends_with("reviews") && target != "/readyz";
    let mut place = 0;
    if is_kept {
        let mut all = all.lock().unwrap();
        place = all.len();
        all.push(Seen { target: target.clone(), headers: text(&head.headers), ..Seen::default() });
    }
    let mut body = Vec::new();
    while let Some(piece) = stream.data().await {
        let piece = piece?;
        stream.flow_control().release_capacity(piece.len())?;
        body.extend_from_slice(&piece);
        if is_kept {
            all.lock().unwrap()[place].body.extend_from_slice(&piece);
        }
    }
    let trailers = stream.trailers().await?;
    if is_kept {
        let seen = &mut all.lock().unwrap()[place];
        seen.trailers = trailers.as_ref().map(text).unwrap_or_default();
        seen.is_whole = true;
    }
    let (status, bytes) = match review(&target, &body) {
        Some(review) => (201, Bytes::from(review.to_string())),
        None => (200, Bytes::from_static(ANSWER)),
    };
    let response = Response::builder().status(status).header("content-type", "application/json").body(()).unwrap();
    let mut sink = respond.send_response(response, false)?;
    if target != ENDLESS {
        return sink.send_data(bytes, true);
    }
    loop {
        sink.reserve_capacity(PIECE_BYTES);
        let Some(room) = std::future::poll_fn(|context| sink.poll_capacity(context)).await else { return Ok(()) };
        sink.send_data(Bytes::from(vec![b'x'; room?]), false)?;
    }
}

/// What a cluster says of a token, or of an access: nobody may impersonate anybody.
fn review(target: &str, body: &[u8]) -> Option<Value> {
    let question = || serde_json::from_slice::<Value>(body).unwrap();
    if target.ends_with("/tokenreviews") {
        let is_known = question()["spec"]["token"] == TOKEN;
        let user = if is_known { json!({"username": "robot", "groups": ["robots"]}) } else { json!({}) };
        let status = json!({"authenticated": is_known, "user": user});
        return Some(json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": status}));
    }
    target.ends_with("/subjectaccessreviews").then(|| {
        let status = json!({"allowed": false});
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "status": status})
    })
}

/// Requests for upgrades: each is agreed to, and what follows is kept as its body.
async fn http1(mut stream: TcpStream, all: &Mutex<Vec<Seen>>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head).map_err(|error| std::io::Error::new(ErrorKind::InvalidData, error))?;
    let mut lines = head.trim_end().split("\r\n");
    let target = lines.next().unwrap_or_default().split(' ').nth(1).unwrap_or_default().to_owned();
    let headers: Vec<(String, String)> = lines
        .map(|line| line.split_once(':').unwrap_or((line, "")))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let seen = Seen { target, headers, is_whole: true, ..Seen::default() };
    let protocol = seen.values("upgrade").first().copied().unwrap_or("none").to_owned();
    let place = {
        let mut all = all.lock().unwrap();
        all.push(seen);
        all.len() - 1
    };
    let agreed = format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n");
    stream.write_all(agreed.as_bytes()).await?;
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        all.lock().unwrap()[place].body.extend_from_slice(&buffer[..length]);
    }
}

/// A gateway in front of a mock, and who is known there.
pub(crate) struct Target {
    pub(crate) gateway: Gateway,
    pub(crate) mock: Mock,
    pub(crate) authority: Authority,
    /// Of the group developers.
    pub(crate) alice: Identity,
    // The files above are in it.
    _folder: Folder,
}

impl Target {
    /// For the spec see [`Gateway::start`].
    pub(crate) fn start(spec: &str, flags: &[&str]) -> Self {
        let folder = Folder::new("target").unwrap();
        let authority = Authority::new(&folder, "authority").unwrap();
        let alice = authority.client(&folder, "alice", "developers").unwrap();
        let mock = Mock::start();
        let gateway = Gateway::start_with(&authority, &[mock.url()], spec, flags);
        Self { gateway, mock, authority, alice, _folder: folder }
    }

    /// An HTTP/2 connection of alice's.
    pub(crate) fn http2(&self) -> Http2 {
        Http2::open(self.gateway.address, &self.authority, Some(&self.alice))
    }

    /// An HTTP/1.1 connection of alice's, on which nothing may be quiet for longer than that.
    pub(crate) fn http1(&self, within: Duration) -> Connection {
        Connection::open(self.gateway.address, &self.authority, &self.alice, within).unwrap()
    }

    /// What alice is answered over HTTP/1.1; see [`raw::http1`].
    pub(crate) fn answers(&self, bytes: &[u8]) -> (Vec<u16>, bool) {
        raw::http1(self.gateway.address, &self.authority, Some(&self.alice), bytes, usize::MAX)
    }

    /// The same until there is one answer, if there is any.
    pub(crate) fn first_answer(&self, bytes: &[u8]) -> Vec<u16> {
        raw::http1(self.gateway.address, &self.authority, Some(&self.alice), bytes, 1).0
    }

    /// A well-behaved client.
    pub(crate) fn client(&self) -> Client {
        Client::new(&self.gateway.url(), &self.authority, &self.alice)
    }
}
