//! TLS: client certificates, protocols, and certificates that change under open connections.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use kubewharf_grpc::{ServerOptions, TlsSource};
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::crypto::ring::default_provider;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::Request;
use tonic::codegen::Service;
use tonic::transport::{Endpoint, Uri};

use crate::support::{Client, TestServer, soon};

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

type Issued = (CertificateDer<'static>, PrivateKeyDer<'static>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    fn issue(&self, name: &str) -> Issued {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        (certificate, PrivatePkcs8KeyDer::from(key.serialize_der()).into())
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        roots
    }

    fn server(&self, name: &str) -> Arc<ServerConfig> {
        let provider = Arc::new(default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()), provider.clone())
            .allow_unauthenticated()
            .build()
            .unwrap();
        let (certificate, key) = self.issue(name);
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }

    fn client(&self, certificate: Option<Issued>, alpn: &[&str]) -> TlsConnector {
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots());
        let mut config = match certificate {
            Some((certificate, key)) => builder.with_client_auth_cert(vec![certificate], key).unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }
}

async fn connect(server: &TestServer, tls: &TlsConnector) -> tokio_rustls::client::TlsStream<TcpStream> {
    let socket = TcpStream::connect(server.address).await.unwrap();
    tls.connect(ServerName::try_from("localhost").unwrap(), socket).await.unwrap()
}

/// Gives tonic one connection that was made already.
struct Connected(Option<tokio_rustls::client::TlsStream<TcpStream>>);

impl Service<Uri> for Connected {
    type Response = hyper_util::rt::TokioIo<tokio_rustls::client::TlsStream<TcpStream>>;
    type Error = std::io::Error;
    type Future = std::future::Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let stream = self.0.take().ok_or(std::io::Error::other("connects once"));
        std::future::ready(stream.map(hyper_util::rt::TokioIo::new))
    }
}

async fn client(server: &TestServer, tls: &TlsConnector) -> Client {
    let stream = connect(server, tls).await;
    let endpoint = Endpoint::from_static("http://localhost");
    Client { channel: endpoint.connect_with_connector(Connected(Some(stream))).await.unwrap() }
}

fn changing(config: Arc<ServerConfig>) -> (Arc<Mutex<Arc<ServerConfig>>>, TlsSource) {
    let current = Arc::new(Mutex::new(config));
    let source = current.clone();
    (current, Arc::new(move || source.lock().clone()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_pass_through_tls_and_the_handler_sees_the_client_certificate() {
    let ca = Authority::new();
    let (_, source) = changing(ca.server("one"));
    let server = TestServer::with(ServerOptions::default(), Some(source)).await;
    for (certificate, seen) in [(None, "certificates=0"), (Some(ca.issue("alice")), "certificates=1")] {
        let client = client(&server, &ca.client(certificate, &["h2"])).await;
        let text = soon(client.request("Who", Request::new(Bytes::new()))).await.unwrap();
        assert!(String::from_utf8_lossy(&text).contains(seen), "{text:?}");
        let message = Bytes::from(vec![5; 1_000_000]);
        assert_eq!(soon(client.unary("Echo", message.clone())).await.unwrap(), message);
        assert_eq!(soon(client.unary("Big", "50")).await.unwrap().len(), 5_000_000);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_alpn_the_first_bytes_decide() {
    let ca = Authority::new();
    let (_, source) = changing(ca.server("one"));
    let server = TestServer::with(ServerOptions::default(), Some(source)).await;
    let client = client(&server, &ca.client(None, &[])).await;
    assert_eq!(soon(client.unary("Echo", "x")).await.unwrap(), "x");
    for alpn in [&[][..], &["http/1.1"]] {
        let mut stream = connect(&server, &ca.client(None, alpn)).await;
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        soon(stream.read_to_end(&mut answer)).await.unwrap();
        assert!(answer.ends_with(b"GET /health 0"), "{}", String::from_utf8_lossy(&answer));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_is_for_new_connections_and_old_ones_live_on() {
    let ca = Authority::new();
    let (current, source) = changing(ca.server("one"));
    let server = TestServer::with(ServerOptions::default(), Some(source)).await;
    let tls = ca.client(None, &["h2"]);
    let served = |stream: &tokio_rustls::client::TlsStream<TcpStream>| {
        stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
    };
    let old = client(&server, &tls).await;
    let before = served(&connect(&server, &tls).await);
    assert_eq!(served(&connect(&server, &tls).await), before);
    *current.lock() = ca.server("two");
    assert_ne!(served(&connect(&server, &tls).await), before);
    assert_eq!(soon(old.unary("Echo", "still here")).await.unwrap(), "still here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_handshake_is_counted_and_harmless() {
    let ca = Authority::new();
    let (_, source) = changing(ca.server("one"));
    let server = TestServer::with(ServerOptions::default(), Some(source)).await;
    let mut plain = TcpStream::connect(server.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = soon(plain.read_to_end(&mut answer)).await;
    assert!(!answer.starts_with(b"HTTP"));
    let socket = TcpStream::connect(server.address).await.unwrap();
    let stranger = Authority::new();
    let name = ServerName::try_from("localhost").unwrap();
    assert!(stranger.client(None, &["h2"]).connect(name, socket).await.is_err());
    crate::support::eventually("both are counted", || server.stats.handshakes_failed() == 2).await;
    let client = client(&server, &ca.client(None, &["h2"])).await;
    assert_eq!(soon(client.unary("Echo", "x")).await.unwrap(), "x");
}
