//! Lists: in pages at one revision, or whole.

use std::cell::RefCell;
use std::time::Instant;

use anyhow::{Result, ensure};
use bytes::Bytes;
use kubewharf_etcd_api::Method;

use super::Bench;
use crate::brain::keys::PREFIX;
use crate::brain::measure::{Measured, Meter, Plan, Turn, run_loop};
use crate::brain::requests::{self, KeyValue, header_revision};
use crate::client::Connection;
use crate::histogram::Histogram;
use crate::wire::Pieces;

/// Bytes of replies that may be on their way at a time, about; it bounds how many lists run at once.
const REPLY_BYTES_IN_FLIGHT: u64 = 32 << 20;
/// Lists at a time, however small their pages: more clients than that do not list one resource at once.
const WALKS_IN_FLIGHT_MAX: u64 = 8;

/// A list that is under way.
#[derive(Debug, Clone, Default)]
struct Walk {
    /// The revision of the first page, at which all others are read; 0 before that.
    revision: i64,
    /// Keys read so far.
    read: u64,
    /// The last key.
    last: Vec<u8>,
    /// How many there are in all.
    total: u64,
}

impl Walk {
    fn new(total: u64) -> Self {
        Self { total, ..Self::default() }
    }

    /// Reads the next page of that many keys (0: all), checks it, and returns how many it has.
    async fn page(&mut self, connection: &Connection, prefix: &[u8], limit: u64) -> Result<u64> {
        // What comes next begins behind the last key: there is none between it and the same with a zero byte.
        let start =
            if self.read == 0 { Bytes::copy_from_slice(prefix) } else { [&self.last[..], &[0]].concat().into() };
        let request = requests::list(prefix, start, limit as i64, self.revision);
        let left = self.total - self.read;
        let expected = if limit == 0 { left } else { left.min(limit) };
        let (mut pieces, mut keys, mut revision, mut count, mut more) = (Pieces::default(), 0, 0, 0, false);
        let each = |piece: Bytes| {
            pieces.push(&piece, |number, value| {
                match number {
                    1 => revision = header_revision(value)?,
                    2 => {
                        let kv = KeyValue::read(value)?;
                        ensure!(kv.key > &self.last[..] && kv.key.starts_with(prefix), "a list is out of order");
                        ensure!(!kv.value.is_empty(), "a listed object has no value");
                        self.last.clear();
                        self.last.extend_from_slice(kv.key);
                        keys += 1;
                    }
                    3 => more = value.number()? == 1,
                    4 => count = value.number()?,
                    _ => {}
                }
                Ok(())
            })
        };
        connection.unary_in_pieces(Method::Range, request, each).await?;
        pieces.finish()?;
        ensure!(keys == expected, "a page of {keys} keys instead of {expected}");
        ensure!(count == left, "a list that counts {count} keys where {left} are left");
        ensure!(more == (keys < left), "a page of {keys} out of {left} keys says more={more}");
        // The header tells the newest revision. Nobody writes, so that is the one of the page too.
        ensure!(self.revision == 0 || revision >= self.revision, "a page at revision {revision}");
        if self.revision == 0 {
            self.revision = revision;
        }
        self.read += keys;
        Ok(keys)
    }
}

impl Bench {
    /// Lists all objects over and over, in pages of that size (0: whole). What counts is whole walks, because the pages
    /// of one differ: a server has to count what is left behind each. Only one that takes too long is cut short.
    pub(super) async fn list_pages(&self, limit: u64) -> Result<Measured> {
        let total = self.objects.borrow().existing();
        let page_keys = if limit == 0 { total } else { limit.min(total) };
        let page_bytes = page_keys * (self.scale.key_bytes + self.scale.value_bytes) as u64;
        let in_flight = (REPLY_BYTES_IN_FLIGHT / page_bytes).clamp(1, WALKS_IN_FLIGHT_MAX) as usize;
        let operations = self.scale.listed_keys.div_ceil(total);
        let plan = Plan { operations, in_flight, time_max: self.scale.time_max };
        let latency = RefCell::new(Histogram::default());
        let begun = Instant::now();
        let walk = async |turn: Turn<'_>| {
            let mut walk = Walk::new(total);
            while walk.read < total && begun.elapsed() < plan.time_max {
                let asked = Instant::now();
                walk.page(turn.connection, PREFIX.as_bytes(), limit).await?;
                latency.borrow_mut().record(asked.elapsed());
            }
            Ok(walk.read)
        };
        let meter = Meter::start(&self.target)?;
        let done = run_loop(&self.connections, plan, walk).await?;
        let pages = latency.take();
        meter.stop(pages.total(), done.units, &pages).await
    }

    /// Lists a namespace as a watch cache does, and begins to watch where the list ends.
    pub(super) async fn list_watch(&self) -> Result<Measured> {
        let operations = self.scale.operations.div_ceil(20);
        let start = async |turn: Turn<'_>| {
            let (keys, prefix) = self.objects.borrow().namespace(turn.number);
            let mut walk = Walk::new(keys);
            while walk.read < keys {
                walk.page(turn.connection, &prefix, 10_000).await?;
            }
            let first = requests::watch(&prefix, walk.revision + 1);
            let (_requests, mut responses) = turn.connection.stream(Method::Watch, first).await?;
            super::watch::wait_until_created(&mut responses, 1).await?;
            Ok(1)
        };
        Ok(self.measure(self.plan(operations), start).await?.1)
    }
}
