//! Gets the documents of token issuers.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{ACCEPT, CACHE_CONTROL};
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri};
use http_body_util::Full;

use crate::http_client::{HttpClient, HttpError};
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
    /// There is no answer.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The answer is no document.
    #[error("the answer is {0}, and must be 200 OK (redirections are not followed)")]
    Status(StatusCode),
}

/// Gets documents. Whoever calls bounds the time.
pub trait Fetch: Send + Sync {
    /// Gets one document.
    fn fetch<'a>(&'a self, url: &'a str) -> BoxFuture<'a, Result<Fetched, FetchError>>;
}

/// Gets documents by HTTPS.
pub struct HttpsFetch {
    client: HttpClient,
}

impl HttpsFetch {
    /// Trusts the PEM certificates of `authorities`, or those of the system; see [`HttpClient::new`].
    ///
    /// # Errors
    ///
    /// If there is nobody to trust.
    pub fn new(authorities: Option<&str>) -> Result<Self, FetchError> {
        Ok(Self { client: HttpClient::new(authorities)? })
    }

    async fn get(&self, url: &str) -> Result<Fetched, FetchError> {
        let url: Uri = url.parse().map_err(|_| FetchError::Url)?;
        if url.scheme_str() != Some("https") {
            return Err(FetchError::Url);
        }
        let mut request = Request::new(Full::default());
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/json"));
        let (head, body) = self.client.send(&url, request, JWT_FETCH_BYTES_MAX).await?.into_parts();
        if head.status != StatusCode::OK {
            return Err(FetchError::Status(head.status));
        }
        Ok(Fetched { body, max_age: max_age(&head.headers) })
    }
}

impl Fetch for HttpsFetch {
    fn fetch<'a>(&'a self, url: &'a str) -> BoxFuture<'a, Result<Fetched, FetchError>> {
        Box::pin(self.get(url))
    }
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
