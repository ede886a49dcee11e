//! `/kubebrain/v1/log?from=REVISION[&to=REVISION][&wait=SECONDS]`: a page of the log of committed transactions, as JSON lines.
//!
//! The answer's header `kubebrain-next-revision` says where the next page starts; it is one above `kubebrain-newest-revision` when there
//! is no more yet. With `wait`, a request at the end of the log is answered when there is more, or then, or as soon as the server is to
//! stop. A compacted revision is answered 410 Gone.

use std::time::Duration;

use ::http::header::{HeaderName, HeaderValue};
use ::http::{Response, StatusCode};
use bytes::Bytes;

use super::http::{Query, body, failure, with_header};
use super::server::Server;
use crate::changelog::{self, LogError, PageRange};
use crate::limits::{LOG_PAGE_BYTES, LOG_WAIT_MAX};

/// The path.
pub(super) const PATH: &str = "/kubebrain/v1/log";
/// Where the next page starts.
const NEXT: HeaderName = HeaderName::from_static("kubebrain-next-revision");
/// The newest revision as the page was read.
const NEWEST: HeaderName = HeaderName::from_static("kubebrain-newest-revision");
const JSON_LINES: HeaderValue = HeaderValue::from_static("application/x-ndjson");

pub(super) async fn serve(server: &Server, query: &Query<'_>) -> Response<Bytes> {
    let number = |name: &'static str, default: i64| match query.first(name) {
        None => Ok(default),
        Some(text) => text.parse::<i64>().map_err(|_| format!("parameter {name}: {text:?} is not a whole number")),
    };
    let (from, to, wait) = match (number("from", 0), number("to", i64::MAX), number("wait", 0)) {
        (Ok(from), Ok(to), Ok(wait)) => (from, to, wait),
        (Err(why), ..) | (_, Err(why), _) | (.., Err(why)) => return failure(StatusCode::BAD_REQUEST, &why),
    };
    let wait = Duration::from_secs(wait.max(0).cast_unsigned()).min(LOG_WAIT_MAX);
    if from <= to {
        tokio::select! {
            biased;
            () = server.store.published().hub().reached(from) => {}
            () = tokio::time::sleep(wait) => {}
            () = server.stopping.requested() => {}
        }
    }
    let store = server.store.clone();
    let read = tokio::task::spawn_blocking(move || {
        let snapshot = store.snapshot()?;
        changelog::read(snapshot.as_ref(), PageRange { from, to, bytes: LOG_PAGE_BYTES })
    })
    .await;
    match read {
        Ok(Ok(page)) => {
            let response = body(StatusCode::OK, JSON_LINES, page.lines);
            with_header(with_header(response, NEXT, page.next.into()), NEWEST, page.newest.into())
        }
        Ok(Err(error @ LogError::Compacted { .. })) => failure(StatusCode::GONE, &error.to_string()),
        Ok(Err(error @ LogError::Engine(_))) => failure(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
        Err(error) => failure(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}
