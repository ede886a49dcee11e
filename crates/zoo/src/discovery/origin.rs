//! Where the documents come from.

use std::future::Future;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use kubewharf_upstream::Class;

use crate::limits::DOCUMENT_BYTES_MAX;
use crate::upstream::{Question, Upstream, UpstreamError, own_headers};

/// An answer of the apiserver behind.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// Its status.
    pub status: StatusCode,
    /// The document's hash, as the header has it: with quotation marks.
    pub etag: Option<String>,
    /// What the document is, as the header has it.
    pub content_type: Option<String>,
    /// The document, not compressed.
    pub body: Bytes,
}

/// Answers requests for documents: the apiserver behind, asked by zoo itself.
pub trait Origin: Send + Sync + 'static {
    /// Asks for a document.
    ///
    /// # Errors
    /// When there is no answer; one that is an error is none.
    fn get(
        &self,
        path_and_query: &str,
        accept: &str,
        if_none_match: Option<&str>,
    ) -> impl Future<Output = Result<Fetched, UpstreamError>> + Send;
}

impl Origin for std::sync::Arc<Upstream> {
    async fn get(
        &self,
        path_and_query: &str,
        accept: &str,
        if_none_match: Option<&str>,
    ) -> Result<Fetched, UpstreamError> {
        let mut headers = own_headers("application/json");
        headers.remove(CONTENT_TYPE);
        let value = |text: &str| {
            HeaderValue::from_str(text)
                .map_err(|error| UpstreamError::Content { path: path_and_query.to_owned(), problem: error.to_string() })
        };
        headers.insert(ACCEPT, value(accept)?);
        if let Some(etag) = if_none_match {
            headers.insert(IF_NONE_MATCH, value(etag)?);
        }
        let target = path_and_query.to_owned();
        let question = Question { method: Method::GET, target, headers, body: Bytes::new(), class: Class::Short };
        let answer = self.send(&question).await?.whole(DOCUMENT_BYTES_MAX).await?;
        let text = |name, headers: &HeaderMap| Some(headers.get(name)?.to_str().ok()?.to_owned());
        Ok(Fetched {
            status: answer.status,
            etag: text(ETAG, &answer.headers),
            content_type: text(CONTENT_TYPE, &answer.headers),
            body: answer.body,
        })
    }
}
