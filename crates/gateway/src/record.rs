//! What became of a request: counted and written down once, when its answer has ended, however it did.

use std::sync::Arc;
use std::time::Instant;

use kubewharf_front::watchdog;

use crate::access_log::AccessLog;
use crate::metrics::{Metrics, PolicyMetrics};
use crate::trace::Span;

/// Written down when it is dropped.
pub(crate) struct Record {
    pub(crate) line: Option<Box<Line>>,
    /// None if the request is not traced.
    pub(crate) span: Option<Box<Span>>,
    pub(crate) log: Arc<AccessLog>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) policy: Option<Arc<PolicyMetrics>>,
    /// The place of the rule that took the request.
    pub(crate) rule: usize,
    pub(crate) begun: Instant,
    /// When the answer's head came.
    pub(crate) head: Option<Instant>,
    pub(crate) verb: &'static str,
    pub(crate) status: u16,
    pub(crate) answer_bytes: u64,
    /// The endpoint that answered.
    pub(crate) endpoint: Option<Arc<str>>,
    pub(crate) tries: u32,
    pub(crate) is_long_running: bool,
    end: End,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Its receiver left before its end.
    Abandoned,
    Finished,
    Broke(&'static str),
}

/// What the access log has of a request besides; not made if it is not logged.
pub(crate) struct Line {
    pub(crate) client: String,
    pub(crate) cluster: Arc<str>,
    pub(crate) policy: String,
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) user: String,
    pub(crate) impersonator: String,
    pub(crate) user_agent: String,
    pub(crate) audit_id: String,
    /// Of the trace that the request belongs to; empty if there is none.
    pub(crate) trace_id: String,
    /// Why the gateway itself answered, if it did.
    pub(crate) reason: String,
}

impl Record {
    pub(crate) fn new(metrics: Arc<Metrics>, log: Arc<AccessLog>) -> Self {
        metrics.request_begun();
        Self {
            line: None,
            span: None,
            log,
            metrics,
            policy: None,
            rule: 0,
            begun: Instant::now(),
            head: None,
            verb: "",
            status: 0,
            answer_bytes: 0,
            endpoint: None,
            tries: 0,
            is_long_running: false,
            end: End::Abandoned,
        }
    }

    /// All of the answer was handed over, or all that there was before it broke.
    pub(crate) fn finished(&mut self) {
        if self.end == End::Abandoned {
            self.end = End::Finished;
        }
    }

    /// The answer broke off, and why in one word.
    pub(crate) fn broke(&mut self, why: &'static str) {
        self.end = End::Broke(why);
    }

    /// How it ended, in one word.
    pub(crate) fn end(&self) -> &'static str {
        match self.end {
            End::Abandoned => "abandoned",
            End::Finished => "finished",
            End::Broke(why) => why,
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.end == End::Abandoned
            && let Some(why) = watchdog::ending()
        {
            self.end = End::Broke(why);
        }
        self.metrics.request_ended(self);
        if let Some(line) = self.line.take() {
            self.log.write(self, &line);
        }
        if let Some(span) = self.span.take() {
            span.end(self);
        }
    }
}
