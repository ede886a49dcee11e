//! Gets the documents of token issuers.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{ACCEPT, CACHE_CONTROL, CONNECTION, HOST};
use http::{HeaderMap, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::authentication::x509::provider;
use crate::limits::JWT_FETCH_BYTES_MAX;

/// A document, and how long its owner says that it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The document.
    pub body: Bytes,
    /// The `max-age` of its `Cache-Control`; zero if that is `no-cache` or `no-store`.
    pub max_age: Option<Duration>,
}

/// Why there is no document.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The URL is not what it should be.
    #[error("the URL is not https://HOST[:PORT]/PATH")]
    Url,
    /// There is no way there.
    #[error("can't connect: {0}")]
    Connect(std::io::Error),
    /// The exchange failed.
    #[error("HTTP: {0}")]
    Http(#[from] hyper::Error),
    /// The answer is no document.
    #[error("the answer is {0}, and must be 200 OK (redirections are not followed)")]
    Status(StatusCode),
    /// The answer broke off, or is longer than a document may be.
    #[error("the answer can't be read, or is longer than {JWT_FETCH_BYTES_MAX} bytes: {0}")]
    Body(String),
    /// Nobody is trusted.
    #[error("certificate authorities: {0}")]
    Authorities(String),
}

/// Gets documents. Whoever calls bounds the time.
pub trait Fetch: Send + Sync {
    /// Gets one document.
    fn fetch<'a>(&'a self, url: &'a str) -> BoxFuture<'a, Result<Fetched, FetchError>>;
}

/// Gets documents by HTTPS: one connection and one HTTP/1.1 request each, no proxies, no redirections.
pub struct HttpsFetch {
    tls: TlsConnector,
}

/// Where systems keep the certificates of the authorities that they trust; the first that is there counts.
const SYSTEM_AUTHORITIES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

impl HttpsFetch {
    /// Trusts the PEM certificates of `authorities`, or those of the system: of the file that `SSL_CERT_FILE` names, or
    /// the usual one.
    ///
    /// # Errors
    ///
    /// If there is nobody to trust.
    pub fn new(authorities: Option<&str>) -> Result<Self, FetchError> {
        let roots = match authorities {
            Some(pem) => {
                let mut roots = RootCertStore::empty();
                for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                    let certificate = certificate.map_err(|error| FetchError::Authorities(error.to_string()))?;
                    roots.add(certificate).map_err(|error| FetchError::Authorities(error.to_string()))?;
                }
                roots
            }
            None => system_authorities()?,
        };
        if roots.is_empty() {
            return Err(FetchError::Authorities("there is no certificate".into()));
        }
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| FetchError::Authorities(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { tls: TlsConnector::from(Arc::new(config)) })
    }

    async fn get(&self, url: &str) -> Result<Fetched, FetchError> {
        let uri: Uri = url.parse().map_err(|_| FetchError::Url)?;
        let (Some("https"), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return Err(FetchError::Url) };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned()).map_err(|_| FetchError::Url)?;
        let socket =
            TcpStream::connect((host, authority.port_u16().unwrap_or(443))).await.map_err(FetchError::Connect)?;
        let stream = self.tls.connect(name, socket).await.map_err(FetchError::Connect)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let request = Request::get(path)
            .header(HOST, authority.as_str())
            .header(ACCEPT, "application/json")
            .header(CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|_| FetchError::Url)?;
        let exchange = async move {
            let (head, body) = sender.send_request(request).await?.into_parts();
            if head.status != StatusCode::OK {
                return Err(FetchError::Status(head.status));
            }
            let body = Limited::new(body, JWT_FETCH_BYTES_MAX).collect().await;
            let body = body.map_err(|error| FetchError::Body(error.to_string()))?.to_bytes();
            Ok(Fetched { body, max_age: max_age(&head.headers) })
        };
        // How the connection ends is nobody's concern once the document is there.
        tokio::pin!(connection);
        tokio::pin!(exchange);
        tokio::select! {
            biased;
            fetched = &mut exchange => fetched,
            _ = &mut connection => exchange.await,
        }
    }
}

impl Fetch for HttpsFetch {
    fn fetch<'a>(&'a self, url: &'a str) -> BoxFuture<'a, Result<Fetched, FetchError>> {
        Box::pin(self.get(url))
    }
}

fn system_authorities() -> Result<RootCertStore, FetchError> {
    let named = std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty()).map(std::path::PathBuf::from);
    let usual = || SYSTEM_AUTHORITIES.iter().map(std::path::PathBuf::from).find(|path| path.exists());
    let path = named.or_else(usual).ok_or_else(|| {
        FetchError::Authorities(
            "this system has none where they usually are; set certificateAuthority, or SSL_CERT_FILE".into(),
        )
    })?;
    let pem = std::fs::read(&path).map_err(|error| FetchError::Authorities(format!("{}: {error}", path.display())))?;
    let mut roots = RootCertStore::empty();
    // A system has some that are too old to be understood; that is no reason to trust none.
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok));
    Ok(roots)
}

/// What `Cache-Control` says of how long a document holds.
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let mut age = None;
    for value in headers.get_all(CACHE_CONTROL) {
        for directive in value.to_str().unwrap_or_default().split(',') {
            let directive = directive.trim().to_ascii_lowercase();
            if directive == "no-store" || directive == "no-cache" {
                return Some(Duration::ZERO);
            }
            if let Some(seconds) = directive.strip_prefix("max-age=") {
                age = seconds.trim_matches('"').parse().ok().map(Duration::from_secs);
            }
        }
    }
    age
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_control_tells_how_long_a_document_holds() {
        for (value, seconds) in [
            ("public, max-age=300", Some(300)),
            ("Max-Age=\"60\"", Some(60)),
            ("no-store, max-age=300", Some(0)),
            ("max-age=soon", None),
            ("public", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CACHE_CONTROL, value.parse().expect("a value"));
            assert_eq!(max_age(&headers), seconds.map(Duration::from_secs), "{value:?}");
        }
        assert_eq!(max_age(&HeaderMap::new()), None);
    }
}
