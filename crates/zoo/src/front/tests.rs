//! Clients that are no good ones.

use std::io::{Read, Write};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use kubewharf_foundation::Shutdown;
use kubewharf_foundation::tls::ServerTls;
use kubewharf_front::{Inbound, Timeouts};
use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::pki::Authority;
use kubewharf_testkit::tls::Connection;

use super::*;
use crate::proxy::Body;

const WITHIN: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(300);
/// What begins a connection of HTTP/2: the preface and an empty SETTINGS frame.
const BEGIN: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const GOAWAY: u8 = 7;

struct Greeter;

impl Service for Greeter {
    type Body = Body;

    async fn serve(self: Arc<Self>, _request: Request<Inbound>) -> Response<Body> {
        Response::new(Body::Whole(Bytes::from_static(b"hello")))
    }

    fn unread_timeout(_: &Body) -> Option<Duration> {
        None
    }
}

struct Server {
    address: SocketAddr,
    root: String,
    shutdown: Shutdown,
    _folder: Folder,
}

impl Server {
    async fn start(connections_per_address_max: usize) -> Self {
        let folder = Folder::new("front").expect("a folder");
        let authority = Authority::new(&folder, "ca").expect("an authority");
        let identity = authority.server(&folder, "server", &["127.0.0.1"]).expect("a certificate");
        let tls = ReloadingTls::load(ServerTls::new(&identity.certificate_path, &identity.key_path)).expect("TLS");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shutdown = Shutdown::new();
        let front = Arc::new(Front {
            connect: Box::new(|_, _| Arc::new(Greeter)),
            tls,
            addresses: Addresses::new(connections_per_address_max),
            server: Arc::new(kubewharf_front::Server {
                timeouts: Timeouts { head: SHORT, idle: SHORT, ..Timeouts::default() },
                drain_timeout: SHORT,
                shutdown: shutdown.clone(),
            }),
        });
        tokio::spawn(front.listen(listener));
        Self { address, root: authority.certificate().to_owned(), shutdown, _folder: folder }
    }

    /// What comes until the server closes the connection, after something was sent.
    async fn ask(&self, protocol: &'static str, sent: &'static [u8]) -> std::io::Result<Vec<u8>> {
        let (address, root) = (self.address, self.root.clone());
        let asked = tokio::task::spawn_blocking(move || {
            let mut connection =
                Connection::open_with_root(protocol, address, &root, None, WITHIN).expect("a connection");
            connection.write_all(sent)?;
            connection.flush()?;
            let mut received = Vec::new();
            match connection.read_to_end(&mut received) {
                // Closed without a farewell of TLS.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(received),
                read => read.map(|_| received),
            }
        });
        tokio::time::timeout(WITHIN, asked).await.expect("it ends").expect("no panic")
    }
}

/// The types of the frames.
fn frame_types(mut bytes: &[u8]) -> Vec<u8> {
    let mut types = Vec::new();
    while let [a, b, c, kind, ..] = *bytes {
        types.push(kind);
        bytes = bytes.get(9 + u32::from_be_bytes([0, a, b, c]) as usize..).unwrap_or_default();
    }
    types
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_says_nothing_is_closed() {
    let server = Server::start(0).await;
    assert_eq!(server.ask("http/1.1", b"").await.expect("it is closed"), b"");
    // The server's part of the beginning, and no more than the farewell.
    let received = server.ask("h2", b"").await.expect("it is closed");
    assert!(received.len() < 200, "{received:?}");
    // Half a preface keeps nothing open either.
    server.ask("h2", &BEGIN[..10]).await.expect("it is closed");
    server.shutdown.request_now();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_for_nothing_more_is_told_to_go() {
    let server = Server::start(0).await;
    let received = server.ask("h2", BEGIN).await.expect("it is closed");
    assert!(frame_types(&received).contains(&GOAWAY), "{received:?}");
    let hello = server.ask("http/1.1", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("it is closed");
    assert!(hello.ends_with(b"hello"), "{}", String::from_utf8_lossy(&hello));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_protocol_is_the_one_that_was_agreed() {
    let server = Server::start(0).await;
    let received = server.ask("http/1.1", BEGIN).await.expect("it is closed");
    assert!(!frame_types(&received).contains(&GOAWAY) && !received.ends_with(b"hello"), "{received:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_has_so_many_connections() {
    let server = Server::start(1).await;
    let first = tokio::net::TcpStream::connect(server.address).await.expect("a connection");
    // It is accepted before the next one is.
    server.ask("h2", BEGIN).await.expect_err("it is one too many");
    drop(first);
    let until = Instant::now() + WITHIN;
    while server.ask("h2", BEGIN).await.is_err() {
        assert!(Instant::now() < until, "the place is given back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
