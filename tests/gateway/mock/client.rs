//! A client's connections to the gateway: HTTP/2 over TLS, with the certificate of a user.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use kubewharf_testkit::pki::{Authority, Identity};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// What a stream may send before it is read, in bytes; as Go's clients have it.
const WINDOW_BYTES: u32 = 4 << 20;

/// Opens connections.
#[derive(Clone)]
pub(crate) struct Connector {
    address: SocketAddr,
    tls: TlsConnector,
}

/// A connection. Clones share it.
#[derive(Clone)]
pub(crate) struct Connection {
    sender: SendRequest<Bytes>,
    address: SocketAddr,
}

impl Connector {
    /// To that address, with the certificate of somebody or of nobody.
    pub(crate) fn new(address: SocketAddr, authority: &Authority, identity: Option<&Identity>) -> Self {
        let certificate = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate(authority.certificate())).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![certificate(&identity.certificate)], key).unwrap()
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Self { address, tls: TlsConnector::from(Arc::new(config)) }
    }

    /// Opens one.
    pub(crate) async fn connect(&self) -> Connection {
        let tcp = TcpStream::connect(self.address).await.expect("connected");
        tcp.set_nodelay(true).expect("set");
        let tls = self.tls.connect(ServerName::from(self.address.ip()), tcp).await.expect("a TLS session");
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .enable_push(false)
            // What h2 takes for an attack, Go's clients do not: many small frames, such as the ends of many watches.
            .max_local_error_reset_streams(None)
            .data_frame_budget(WINDOW_BYTES as usize * 4);
        let (sender, connection) = builder.handshake(tls).await.expect("HTTP/2");
        // Who uses it sees its end too.
        tokio::spawn(async move { connection.await.ok() });
        Connection { sender, address: self.address }
    }

    pub(crate) async fn connect_many(&self, count: usize) -> Vec<Connection> {
        let mut connections = Vec::with_capacity(count);
        for _ in 0..count {
            connections.push(self.connect().await);
        }
        connections
    }
}

impl Connection {
    /// Sends a request; the answer's head, or why there is none.
    pub(crate) async fn begin(
        &self,
        method: Method,
        target: &str,
        headers: &HeaderMap,
        body: Option<Bytes>,
    ) -> Result<Response<RecvStream>, String> {
        let text = |error: h2::Error| error.to_string();
        let uri = format!("https://{}{target}", self.address);
        let mut request = Request::builder().method(method).uri(uri).body(()).expect("a request");
        request.headers_mut().clone_from(headers);
        let mut sender = self.sender.clone().ready().await.map_err(text)?;
        let (response, mut stream) = sender.send_request(request, body.is_none()).map_err(text)?;
        if let Some(body) = body {
            send(&mut stream, body).await.map_err(text)?;
        }
        response.await.map_err(text)
    }

    /// A request with all of its answer.
    pub(crate) async fn ask(
        &self,
        method: Method,
        target: &str,
        headers: &HeaderMap,
        body: Option<Bytes>,
    ) -> Result<(StatusCode, Vec<u8>), String> {
        let mut response = self.begin(method, target, headers, body).await?;
        let mut all = Vec::new();
        while let Some(piece) = response.body_mut().data().await {
            let piece = piece.map_err(|error| error.to_string())?;
            let _ = response.body_mut().flow_control().release_capacity(piece.len());
            all.extend_from_slice(&piece);
        }
        Ok((response.status(), all))
    }

    pub(crate) async fn get(&self, target: &str) -> Result<(StatusCode, Vec<u8>), String> {
        self.ask(Method::GET, target, &HeaderMap::new(), None).await
    }
}

async fn send(stream: &mut SendStream<Bytes>, mut body: Bytes) -> Result<(), h2::Error> {
    loop {
        stream.reserve_capacity(body.len());
        let room = match std::future::poll_fn(|context| stream.poll_capacity(context)).await {
            Some(room) => room?,
            // The answer says why nobody wants the rest.
            None => return Ok(()),
        };
        let piece = body.split_to(room.min(body.len()));
        stream.send_data(piece, body.is_empty())?;
        if body.is_empty() {
            return Ok(());
        }
    }
}
