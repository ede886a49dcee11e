//! Counters for the product's metrics.
//!
//! Invariant: a connection adds up its own numbers and publishes them once a turn, so that the shared cache lines are
//! not touched for every call.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// What a server has done since its start. All counters only grow, except those that say "now".
#[derive(Debug, Default)]
pub struct Stats {
    pub(crate) connections: AtomicU64,
    pub(crate) connections_open: AtomicI64,
    pub(crate) handshakes_failed: AtomicU64,
    pub(crate) calls_unary: AtomicU64,
    pub(crate) calls_streaming: AtomicU64,
    pub(crate) calls_open: AtomicI64,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    pub(crate) messages_in: AtomicU64,
    pub(crate) messages_out: AtomicU64,
    pub(crate) replies_stalled: AtomicU64,
}

impl Stats {
    /// Connections accepted.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Connections open now.
    pub fn connections_open(&self) -> u64 {
        gauge(&self.connections_open)
    }

    /// Connections that ended before they spoke HTTP (TLS errors, timeouts).
    pub fn handshakes_failed(&self) -> u64 {
        self.handshakes_failed.load(Ordering::Relaxed)
    }

    /// Unary calls begun.
    pub fn calls_unary(&self) -> u64 {
        self.calls_unary.load(Ordering::Relaxed)
    }

    /// Streaming calls begun.
    pub fn calls_streaming(&self) -> u64 {
        self.calls_streaming.load(Ordering::Relaxed)
    }

    /// Calls open now.
    pub fn calls_open(&self) -> u64 {
        gauge(&self.calls_open)
    }

    /// Bytes read from clients, framing included and TLS not.
    pub fn bytes_in(&self) -> u64 {
        self.bytes_in.load(Ordering::Relaxed)
    }

    /// Bytes written to clients, framing included and TLS not.
    pub fn bytes_out(&self) -> u64 {
        self.bytes_out.load(Ordering::Relaxed)
    }

    /// Calls that were reset because their clients took nothing of what waited for them.
    pub fn replies_stalled(&self) -> u64 {
        self.replies_stalled.load(Ordering::Relaxed)
    }

    /// gRPC messages received.
    pub fn messages_in(&self) -> u64 {
        self.messages_in.load(Ordering::Relaxed)
    }

    /// gRPC messages sent.
    pub fn messages_out(&self) -> u64 {
        self.messages_out.load(Ordering::Relaxed)
    }
}

fn gauge(value: &AtomicI64) -> u64 {
    u64::try_from(value.load(Ordering::Relaxed)).unwrap_or(0)
}

/// What one connection has counted and not yet published.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) calls_unary: u64,
    pub(crate) calls_streaming: u64,
    pub(crate) calls_ended: u64,
    pub(crate) messages_in: u64,
    pub(crate) messages_out: u64,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) replies_stalled: u64,
}

impl Tally {
    pub(crate) fn publish(&mut self, stats: &Stats) {
        let add = |counter: &AtomicU64, value: u64| {
            if value != 0 {
                counter.fetch_add(value, Ordering::Relaxed);
            }
        };
        add(&stats.calls_unary, self.calls_unary);
        add(&stats.calls_streaming, self.calls_streaming);
        add(&stats.messages_in, self.messages_in);
        add(&stats.messages_out, self.messages_out);
        add(&stats.bytes_in, self.bytes_in);
        add(&stats.bytes_out, self.bytes_out);
        add(&stats.replies_stalled, self.replies_stalled);
        let begun = self.calls_unary + self.calls_streaming;
        if begun != self.calls_ended {
            let change = begun as i64 - self.calls_ended as i64;
            stats.calls_open.fetch_add(change, Ordering::Relaxed);
        }
        *self = Self::default();
    }
}
