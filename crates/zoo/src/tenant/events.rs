//! A watch of zoo's own: one event after another, each a JSON object.
//!
//! Invariant: an event is handed on whole or not at all; asking for the next one may be broken off and loses none.

use bytes::Bytes;
use http::Method;
use kubewharf_upstream::Class;
use serde::Deserialize;

use crate::limits::OWN_ANSWER_BYTES_MAX;
use crate::rewrite::Encoding;
use crate::upstream::{Answer, Question, Upstream, UpstreamError, own_headers};
use crate::watch::Splitter;

/// A watch.
pub(crate) struct Events {
    path: String,
    answer: Answer,
    splitter: Splitter,
}

/// An event.
#[derive(Deserialize)]
pub(crate) struct Event<'a> {
    #[serde(rename = "type")]
    pub(crate) kind: &'a str,
    #[serde(borrow)]
    pub(crate) object: &'a serde_json::value::RawValue,
}

impl Events {
    /// Of what is at a path, from a version on.
    ///
    /// # Errors
    /// When the apiserver refuses, or can't be asked.
    pub(crate) async fn open(upstream: &Upstream, path: &str, version: &str) -> Result<Self, UpstreamError> {
        let target = format!("{path}?watch=true&allowWatchBookmarks=true&resourceVersion={version}");
        let headers = own_headers("application/json");
        let question = Question { method: Method::GET, target, headers, body: Bytes::new(), class: Class::Watch };
        let answer = upstream.send(&question).await?;
        if !answer.status.is_success() {
            let status = answer.status;
            let body = answer.whole(OWN_ANSWER_BYTES_MAX).await?.body;
            return Err(UpstreamError::Answer { method: Method::GET, path: question.target, status, body });
        }
        Ok(Self { path: path.to_owned(), answer, splitter: Splitter::new(Encoding::Json) })
    }

    /// The next event, to be read as [`Event`]; none at the watch's end.
    ///
    /// # Errors
    /// When it breaks off, or an event is too long.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        loop {
            if let Some(line) = self.splitter.next().map_err(|error| self.wrong(&error))? {
                return Ok(Some(line));
            }
            match self.answer.piece().await? {
                Some(piece) => self.splitter.push(&piece),
                None => return Ok(None),
            }
        }
    }

    /// That an event is not what it should be.
    pub(crate) fn wrong(&self, problem: &dyn std::fmt::Display) -> UpstreamError {
        UpstreamError::Content { path: self.path.clone(), problem: problem.to_string() }
    }
}
