//! A small HTTP/1.1 client for what the gateway itself asks of others than kube-apiservers: token issuers, and the collector of its traces.
//!
//! Invariant: one connection and one request each, no proxies, no redirections; an answer is never longer in memory than its reader allows.
//! Whoever asks bounds the time.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONNECTION, HOST};
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use kubewharf_upstream::SYSTEM_ROOTS;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::authentication::x509::provider;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The URL is not one that can be asked.
    #[error("the URL is not SCHEME://HOST[:PORT]/PATH with a scheme that is allowed here")]
    Url,
    /// There is no way there.
    #[error("can't connect: {0}")]
    Connect(std::io::Error),
    /// The exchange failed.
    #[error("HTTP: {0}")]
    Http(#[from] hyper::Error),
    /// The answer broke off, or is too long.
    #[error("the answer can't be read, or is longer than {bytes_max} bytes: {problem}")]
    Body {
        /// How long it may be.
        bytes_max: usize,
        /// Why it can't be read.
        problem: String,
    },
    /// Nobody is trusted.
    #[error("certificate authorities: {0}")]
    Authorities(String),
}

/// Asks by HTTPS, and by HTTP if it is so made.
pub struct HttpClient {
    /// None if it asks by HTTP alone.
    tls: Option<TlsConnector>,
}

impl HttpClient {
    /// Trusts the PEM certificates of `authorities`, or those of the system: of the file that `SSL_CERT_FILE` names, or
    /// the usual one.
    ///
    /// # Errors
    ///
    /// If there is nobody to trust.
    pub fn new(authorities: Option<&str>) -> Result<Self, HttpError> {
        let roots = match authorities {
            Some(pem) => {
                let mut roots = RootCertStore::empty();
                for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                    let certificate = certificate.map_err(|error| HttpError::Authorities(error.to_string()))?;
                    roots.add(certificate).map_err(|error| HttpError::Authorities(error.to_string()))?;
                }
                roots
            }
            None => system_authorities()?,
        };
        if roots.is_empty() {
            return Err(HttpError::Authorities("there is no certificate".into()));
        }
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| HttpError::Authorities(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { tls: Some(TlsConnector::from(Arc::new(config))) })
    }

    /// One that asks by HTTP alone, and so needs nobody to trust.
    #[must_use]
    pub fn without_tls() -> Self {
        Self { tls: None }
    }

    /// Sends a request to a URL, which the request need not name; the whole answer, of any status.
    ///
    /// # Errors
    ///
    /// If the URL can't be asked, the exchange failed, or the answer has more than `bytes_max` bytes.
    pub async fn send(
        &self,
        url: &Uri,
        mut request: Request<Full<Bytes>>,
        bytes_max: usize,
    ) -> Result<Response<Bytes>, HttpError> {
        let authority = url.authority().ok_or(HttpError::Url)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let target = url.path_and_query().map_or("/", |target| target.as_str());
        *request.uri_mut() = target.parse().map_err(|_| HttpError::Url)?;
        let headers = request.headers_mut();
        headers.insert(HOST, HeaderValue::from_str(authority.as_str()).map_err(|_| HttpError::Url)?);
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        let connect = async |port| TcpStream::connect((host, port)).await.map_err(HttpError::Connect);
        match (url.scheme_str(), &self.tls) {
            (Some("https"), Some(tls)) => {
                let name = ServerName::try_from(host.to_owned()).map_err(|_| HttpError::Url)?;
                let socket = connect(authority.port_u16().unwrap_or(443)).await?;
                let stream = tls.connect(name, socket).await.map_err(HttpError::Connect)?;
                exchange(stream, request, bytes_max).await
            }
            (Some("http"), None) => {
                exchange(connect(authority.port_u16().unwrap_or(80)).await?, request, bytes_max).await
            }
            _ => Err(HttpError::Url),
        }
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
    bytes_max: usize,
) -> Result<Response<Bytes>, HttpError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async move {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, bytes_max).collect().await;
        let body = body.map_err(|error| HttpError::Body { bytes_max, problem: error.to_string() })?.to_bytes();
        Ok(Response::from_parts(head, body))
    };
    // How the connection ends is nobody's concern once the answer is there.
    tokio::pin!(connection);
    tokio::pin!(exchange);
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        _ = &mut connection => exchange.await,
    }
}

fn system_authorities() -> Result<RootCertStore, HttpError> {
    let named = std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty()).map(PathBuf::from);
    let usual = || SYSTEM_ROOTS.iter().map(PathBuf::from).find(|path| path.exists());
    let path = named.or_else(usual).ok_or_else(|| {
        HttpError::Authorities("this system has none where they usually are; name them, or set SSL_CERT_FILE".into())
    })?;
    let pem = std::fs::read(&path).map_err(|error| HttpError::Authorities(format!("{}: {error}", path.display())))?;
    let mut roots = RootCertStore::empty();
    // A system has some that are too old to be understood; that is no reason to trust none.
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok));
    Ok(roots)
}
