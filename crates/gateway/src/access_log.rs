//! The access log: one JSON object a line for each request that is logged.
//!
//! Invariant: no request waits for it. Lines go through a bounded queue to a thread that writes them; what does not fit is counted and left out.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::limits::ACCESS_LOG_LINES_MAX;
use crate::record::{Line, Record};

/// Where the access log goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AccessLogTarget {
    /// Nowhere.
    #[default]
    Off,
    /// To the standard output.
    Stdout,
    /// To the end of a file.
    File(PathBuf),
}

/// Takes lines.
pub(crate) struct AccessLog {
    lines: Option<SyncSender<Vec<u8>>>,
    dropped: AtomicU64,
}

#[derive(Serialize)]
struct Entry<'a> {
    time_ms: u128,
    client: &'a str,
    cluster: &'a str,
    policy: &'a str,
    rule: usize,
    method: &'a str,
    target: &'a str,
    verb: &'a str,
    user: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    impersonator: &'a str,
    user_agent: &'a str,
    audit_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    trace_id: &'a str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<&'a str>,
    tries: u32,
    head_us: u128,
    total_us: u128,
    answer_bytes: u64,
    end: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
}

impl AccessLog {
    /// Starts the writer.
    ///
    /// # Errors
    /// If the file can't be opened, or there is no thread.
    pub(crate) fn start(target: &AccessLogTarget) -> io::Result<Arc<Self>> {
        let out: Box<dyn Write + Send> = match target {
            AccessLogTarget::Off => return Ok(Arc::new(Self { lines: None, dropped: AtomicU64::new(0) })),
            AccessLogTarget::Stdout => Box::new(io::stdout()),
            AccessLogTarget::File(path) => Box::new(File::options().create(true).append(true).open(path)?),
        };
        let (lines, queue) = sync_channel(ACCESS_LOG_LINES_MAX);
        std::thread::Builder::new().name("access-log".to_owned()).spawn(move || write_all(&queue, out))?;
        Ok(Arc::new(Self { lines: Some(lines), dropped: AtomicU64::new(0) }))
    }

    /// Whether there is one.
    pub(crate) fn is_on(&self) -> bool {
        self.lines.is_some()
    }

    /// Lines that were left out because the writer was too slow.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(crate) fn write(&self, record: &Record, line: &Line) {
        let Some(lines) = &self.lines else { return };
        let now = Instant::now();
        let entry = Entry {
            time_ms: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis(),
            client: &line.client,
            cluster: &line.cluster,
            policy: &line.policy,
            rule: record.rule,
            method: &line.method,
            target: &line.target,
            verb: record.verb,
            user: &line.user,
            impersonator: &line.impersonator,
            user_agent: &line.user_agent,
            audit_id: &line.audit_id,
            trace_id: &line.trace_id,
            status: record.status,
            endpoint: record.endpoint.as_deref(),
            tries: record.tries,
            head_us: record.head.unwrap_or(now).duration_since(record.begun).as_micros(),
            total_us: now.duration_since(record.begun).as_micros(),
            answer_bytes: record.answer_bytes,
            end: record.end(),
            reason: &line.reason,
        };
        let mut text = serde_json::to_vec(&entry).expect("texts and numbers are JSON");
        text.push(b'\n');
        if lines.try_send(text).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn write_all(queue: &Receiver<Vec<u8>>, out: Box<dyn Write + Send>) {
    let mut out = BufWriter::new(out);
    let mut fails = false;
    while let Ok(line) = queue.recv() {
        let mut result = out.write_all(&line);
        // What is there already goes out together.
        while let (Ok(()), Ok(line)) = (&result, queue.try_recv()) {
            result = out.write_all(&line);
        }
        if let Err(error) = result.and_then(|()| out.flush()) {
            if !fails {
                tracing::error!(%error, "the access log can't be written");
            }
            fails = true;
        } else {
            fails = false;
        }
    }
}
