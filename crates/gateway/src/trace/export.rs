//! Takes ended spans to the collector.
//!
//! Invariant: requests wait neither for the queue nor for who empties it, and what waits is bounded. A span leaves the queue once, and is
//! then sent until the collector has taken or refused it, or the tries are used up.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body_util::Full;
use kubewharf_foundation::Shutdown;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use serde::Deserialize;
use tokio::sync::Notify;

use super::{Span, TraceError, TraceOptions, TracesEndpoint, otlp};
use crate::http_client::HttpClient;
use crate::ids::random_u128;
use crate::limits::{
    SPANS_EXPORT_ANSWER_BYTES_MAX, SPANS_EXPORT_INTERVAL, SPANS_EXPORT_PAUSE_FIRST, SPANS_EXPORT_PAUSE_MAX,
    SPANS_EXPORT_TIMEOUT, SPANS_EXPORT_TRIES_MAX, SPANS_PER_EXPORT_MAX, SPANS_WAITING_MAX,
};

/// Spans that have ended.
#[derive(Default)]
pub(super) struct Queue {
    spans: Mutex<VecDeque<Box<Span>>>,
    /// There is one where was none, or enough to go. Not told of each one: that would wake the exporter for every request.
    changed: Notify,
}

impl Queue {
    /// False if there is no room.
    pub(super) fn push(&self, span: Box<Span>) -> bool {
        let mut spans = self.spans.lock();
        if spans.len() >= SPANS_WAITING_MAX {
            return false;
        }
        spans.push_back(span);
        let length = spans.len();
        drop(spans);
        if length == 1 || length == SPANS_PER_EXPORT_MAX {
            self.changed.notify_one();
        }
        true
    }

    pub(super) fn len(&self) -> usize {
        self.spans.lock().len()
    }

    /// The oldest ones, as many as go together.
    #[expect(clippy::vec_box, reason = "they leave the queue as they are, and the lock soon")]
    pub(super) fn take(&self) -> Vec<Box<Span>> {
        let mut spans = self.spans.lock();
        let count = spans.len().min(SPANS_PER_EXPORT_MAX);
        spans.drain(..count).collect()
    }
}

/// Sends spans, a batch after the other.
pub(crate) struct Exporter {
    client: HttpClient,
    endpoint: TracesEndpoint,
    service_name: String,
    queue: Arc<Queue>,
    dropped: Counter,
    /// The last batch was lost, and that has been told.
    fails: bool,
}

/// Why a batch was not taken.
struct Failure {
    problem: String,
    /// It may be taken later.
    is_passing: bool,
    /// When, if the collector says so.
    retry_after: Option<Duration>,
}

/// What a collector says that has taken a batch.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Answer {
    partial_success: PartialSuccess,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PartialSuccess {
    /// A text, as JSON has it of such numbers, or a number, as some write it.
    rejected_spans: serde_json::Value,
    error_message: String,
}

impl Exporter {
    pub(super) fn new(options: &TraceOptions, queue: Arc<Queue>, dropped: Counter) -> Result<Self, TraceError> {
        let client = match &options.authorities {
            _ if !options.endpoint.is_https() => HttpClient::without_tls(),
            None => HttpClient::new(None)?,
            Some(path) => {
                let pem =
                    std::fs::read_to_string(path).map_err(|source| TraceError::File { path: path.clone(), source })?;
                HttpClient::new(Some(&pem))?
            }
        };
        let (endpoint, service_name) = (options.endpoint.clone(), options.service_name.clone());
        Ok(Self { client, endpoint, service_name, queue, dropped, fails: false })
    }

    /// Sends what there is until `stop` is requested, and then what is left, once. Whoever stops it bounds the time.
    pub(crate) async fn run(mut self, stop: Shutdown) {
        loop {
            let spans = self.gather(&stop).await;
            if spans.is_empty() {
                return;
            }
            self.deliver(&spans, &stop).await;
        }
    }

    /// The next batch; empty if it is time to stop, and nothing is left.
    async fn gather(&self, stop: &Shutdown) -> Vec<Box<Span>> {
        while self.queue.len() == 0 && !stop.is_requested() {
            tokio::select! {
                () = self.queue.changed.notified() => {}
                () = stop.requested() => {}
            }
        }
        let due = tokio::time::sleep(SPANS_EXPORT_INTERVAL);
        tokio::pin!(due);
        while self.queue.len() < SPANS_PER_EXPORT_MAX && !stop.is_requested() {
            tokio::select! {
                () = self.queue.changed.notified() => {}
                () = stop.requested() => {}
                () = &mut due => break,
            }
        }
        self.queue.take()
    }

    async fn deliver(&mut self, spans: &[Box<Span>], stop: &Shutdown) {
        let body = Bytes::from(otlp::export(&self.service_name, spans));
        let mut pause = SPANS_EXPORT_PAUSE_FIRST;
        let mut tries = 0;
        let failure = loop {
            tries += 1;
            let failure = match tokio::time::timeout(SPANS_EXPORT_TIMEOUT, self.send(body.clone())).await {
                Ok(Ok(answer)) => return self.delivered(&answer),
                Ok(Err(failure)) => failure,
                Err(_) => Failure::passing("the collector does not answer"),
            };
            // At the end, the spans behind these are worth more than another try.
            if !failure.is_passing || tries >= SPANS_EXPORT_TRIES_MAX || stop.is_requested() {
                break failure;
            }
            let wait = failure.retry_after.unwrap_or_else(|| jittered(pause)).min(SPANS_EXPORT_PAUSE_MAX);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.requested() => {}
            }
            pause *= 2;
        };
        self.dropped.inc_by(spans.len() as u64);
        // Once, until it works again: it may fail for long.
        if !std::mem::replace(&mut self.fails, true) {
            tracing::warn!(endpoint = %self.endpoint.0, problem = failure.problem, "spans are lost");
        }
    }

    /// The answer of a collector that has taken the spans.
    async fn send(&self, body: Bytes) -> Result<Bytes, Failure> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let user_agent = concat!("kubegateway/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(user_agent));
        let answer = self.client.send(&self.endpoint.0, request, SPANS_EXPORT_ANSWER_BYTES_MAX).await;
        let (head, body) = answer.map_err(Failure::passing)?.into_parts();
        if head.status.is_success() {
            return Ok(body);
        }
        // By the OTLP specification.
        let is_passing = matches!(
            head.status,
            StatusCode::TOO_MANY_REQUESTS
                | StatusCode::BAD_GATEWAY
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT
        );
        let problem = format!("the collector answers {}", head.status);
        Err(Failure { problem, is_passing, retry_after: retry_after(&head.headers, SystemTime::now()) })
    }

    fn delivered(&mut self, answer: &[u8]) {
        if std::mem::replace(&mut self.fails, false) {
            tracing::info!(endpoint = %self.endpoint.0, "spans are taken again");
        }
        // Whatever else it says, it has taken them.
        let PartialSuccess { rejected_spans, error_message } =
            serde_json::from_slice::<Answer>(answer).unwrap_or_default().partial_success;
        let rejected = rejected_spans.as_u64().or_else(|| rejected_spans.as_str()?.parse().ok()).unwrap_or(0);
        if rejected > 0 {
            self.dropped.inc_by(rejected);
            tracing::debug!(rejected, problem = error_message, "the collector refuses spans");
        }
    }
}

impl Failure {
    fn passing(problem: impl ToString) -> Self {
        Self { problem: problem.to_string(), is_passing: true, retry_after: None }
    }
}

/// Half of the pause, and a part of the other half.
fn jittered(pause: Duration) -> Duration {
    let half = pause / 2;
    let part = u64::try_from(random_u128() % half.as_nanos().max(1)).unwrap_or(0);
    half + Duration::from_nanos(part)
}

/// Seconds, or a date (RFC 9110, section 10.2.3).
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
#[path = "export_tests.rs"]
mod tests;
