//! A client of TiKV clusters: what the engine needs, and nothing more.
//!
//! Job: timestamps, reads at one, optimistic transactions, and what to do about locks of others ([`locks`]). PD is asked for timestamps ([`tso`]) and
//! for where keys are ([`pd`], [`regions`], [`stores`]), and the leaders of regions for the rest.
//!
//! Invariant: each call has a deadline, until which it is tried again where that changes nothing, and no longer. What is remembered of the cluster
//! is bounded, and corrected by the cluster's answers.

mod channel;
mod codec;
mod locks;
mod pd;
mod read;
mod region_error;
mod regions;
mod rpc;
mod stores;
mod transaction;
mod tso;

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use kubewharf_engine::Cause;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

pub(crate) use locks::Status;
pub(crate) use read::{Page, Reader};
pub(crate) use transaction::{Mutations, Transaction};
pub(crate) use tso::LOGICAL_BITS;

use self::channel::Connector;
use self::locks::Locks;
use self::pd::Pd;
use self::region_error::Missed;
use self::regions::{Region, Regions};
use self::rpc::{Failure, RegionRpc};
use self::stores::Stores;
use self::tso::Oracle;
use crate::generated::keyspacepb::{KeyspaceState, LoadKeyspaceRequest};
use crate::generated::kvrpcpb::ApiVersion;
use crate::generated::pdpb::{
    GetRegionRequest, ScanRegionsRequest, UpdateGcSafePointRequest, UpdateServiceGcSafePointRequest,
};
use crate::url::Target;

/// How long the first attempt at anything may take.
pub(crate) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);
pub(crate) const PAUSE_MIN: Duration = Duration::from_millis(10);
pub(crate) const PAUSE_MAX: Duration = Duration::from_millis(500);
/// How often the time of an attempt is doubled.
const ATTEMPT_DOUBLINGS_MAX: u32 = 3;
/// How long PD is asked at a time where a store is: of one that is gone it never says.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(1);
/// Who moves the cluster's safe point, as PD knows it.
const GC_SERVICE: &[u8] = b"gc_worker";
/// Attempts that may follow each other at once.
const AT_ONCE_MAX: u32 = 3;
/// Regions that are asked for at once: who needs one mostly needs the next ones too.
const REGIONS_AHEAD: i32 = 16;
/// Transactions whose last locks are taken away while nobody waits.
const FINISHING_MAX: usize = 8;
/// Of an error's text, what is told at most.
const TEXT_BYTES_MAX: usize = 400;
/// With API version 2, what keys of transactions begin with, before the keyspace's id of three bytes.
const KEYSPACE_MODE: u8 = b'x';
const KEYSPACE_ID_MAX: u32 = (1 << 24) - 1;

/// What a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Commits, and views that others wait for.
    Urgent,
    /// Views of clients.
    Views,
}

/// A cluster.
pub(crate) struct Client {
    connector: Arc<Connector>,
    pd: Arc<Pd>,
    oracle: Oracle,
    regions: Regions,
    stores: Stores,
    locks: Locks,
    /// For each transaction whose last locks may be taken away while nobody waits.
    finishing: Arc<Semaphore>,
    /// Those transactions, as far as they are committed.
    finishing_now: Mutex<HashSet<u64>>,
    /// The keyspace's id, if the store is in one.
    keyspace: OnceLock<u32>,
}

impl Client {
    /// A client of that cluster, on the runtime of the caller. Nothing is asked yet.
    pub(crate) fn new(target: &Target, connections_for_views: usize) -> Self {
        let connector = Arc::new(Connector { tls: target.tls.clone() });
        let pd = Arc::new(Pd::new(connector.clone(), target.endpoints.clone()));
        Self {
            oracle: Oracle::start(pd.clone()),
            connector,
            pd,
            regions: Regions::default(),
            stores: Stores::new(connections_for_views),
            locks: Locks::default(),
            finishing: Arc::new(Semaphore::new(FINISHING_MAX)),
            finishing_now: Mutex::default(),
            keyspace: OnceLock::new(),
        }
    }

    /// Looks for the cluster, and in it for the keyspace; gives what all its keys begin with.
    pub(crate) async fn enter(&self, keyspace: Option<&str>, deadline: Instant) -> Result<Vec<u8>, Cause> {
        let Some(name) = keyspace else {
            self.pd.leader(deadline).await?;
            return Ok(Vec::new());
        };
        let unusable = |why: &str| Cause::Io(format!("TiKV: the keyspace {name} {why}"));
        let answer = self.pd.ask(LoadKeyspaceRequest { header: None, name: name.to_owned() }, deadline).await?;
        let keyspace = answer.keyspace.ok_or_else(|| unusable("is not there"))?;
        if keyspace.state() != KeyspaceState::Enabled || keyspace.id > KEYSPACE_ID_MAX {
            return Err(unusable("is not in use"));
        }
        let id = *self.keyspace.get_or_init(|| keyspace.id);
        let [_, id @ ..] = id.to_be_bytes();
        Ok([&[KEYSPACE_MODE][..], &id].concat())
    }

    /// Connects anew to everything when it is next needed.
    pub(crate) fn renew(&self) {
        self.pd.renew();
        self.stores.renew();
    }

    /// A timestamp above all that were given before.
    pub(crate) async fn timestamp(&self, deadline: Instant) -> Result<u64, Cause> {
        self.oracle.timestamp(deadline).await
    }

    /// Tells the cluster that nobody will read as of earlier than that; gives the point that holds, which is earlier where others (backups, change
    /// feeds) still need it so.
    pub(crate) async fn move_safe_point(&self, safe_point: u64, deadline: Instant) -> Result<u64, Cause> {
        let request = UpdateServiceGcSafePointRequest {
            header: None,
            service_id: Bytes::from_static(GC_SERVICE),
            ttl: i64::MAX,
            safe_point,
        };
        let safe_point = self.pd.ask(request, deadline).await?.min_safe_point.min(safe_point);
        let answer = self.pd.ask(UpdateGcSafePointRequest { header: None, safe_point }, deadline).await?;
        Ok(answer.new_safe_point)
    }

    fn set_finishing(&self, transaction: u64, is_finishing: bool) {
        let mut now = self.finishing_now.lock();
        if is_finishing {
            now.insert(transaction);
        } else {
            now.remove(&transaction);
        }
    }

    /// Whether the last locks of a transaction of this process are being taken away.
    fn is_finishing(&self, transaction: u64) -> bool {
        self.finishing_now.lock().contains(&transaction)
    }

    /// The region that holds a key.
    async fn region(&self, key: &[u8], deadline: Instant) -> Result<Arc<Region>, Cause> {
        if let Some(region) = self.regions.holding(key) {
            return Ok(region);
        }
        let mut backoff = Backoff::new(deadline);
        loop {
            let start_key = codec::encode_bound(key);
            let request = ScanRegionsRequest { header: None, start_key, limit: REGIONS_AHEAD, end_key: Bytes::new() };
            let answer = self.pd.ask(request, deadline).await?;
            let mut found = None;
            // Backwards, so that those that matter are not forgotten for others.
            for listed in answer.regions.iter().rev() {
                let region = listed.region.as_ref().and_then(|region| Region::new(region, listed.leader));
                if let Some(region) = region {
                    found = Some(self.regions.insert(region));
                }
            }
            match found.filter(|region| region.holds(key)) {
                Some(region) => return Ok(region),
                // Between a split and PD's hearing of all parts.
                None => backoff.wait(Duration::ZERO, unavailable("PD knows no region of a key")).await?,
            }
        }
    }

    /// The region of the keys just before that one.
    async fn region_before(&self, key: &[u8], deadline: Instant) -> Result<Arc<Region>, Cause> {
        if let Some(region) = self.regions.before(key) {
            return Ok(region);
        }
        let mut backoff = Backoff::new(deadline);
        loop {
            // PD tells the region before that of a key, which may have these keys too.
            let holding = self.region(key, deadline).await?;
            if holding.start < key {
                return Ok(holding);
            }
            let request = GetRegionRequest { header: None, region_key: codec::encode(key) };
            let answer = self.pd.ask(request, deadline).await?;
            let region = answer.region.as_ref().and_then(|region| Region::new(region, answer.leader));
            match region.filter(|region| region.start < key && (region.end.is_empty() || key <= region.end)) {
                Some(region) => return Ok(self.regions.insert(region)),
                None => {
                    self.regions.forget(&holding);
                    backoff.wait(Duration::ZERO, unavailable("PD knows no region before a key")).await?;
                }
            }
        }
    }

    /// Sends a request to the leader of a region, once.
    async fn send<R: RegionRpc>(
        &self,
        what_for: Use,
        region: &Region,
        mut request: R,
        backoff: &Backoff,
    ) -> Result<R::Answer, Missed> {
        let timeout = backoff.attempt_timeout();
        let within = backoff.deadline.min(Instant::now() + timeout);
        let context = request.context();
        context.region_id = region.id;
        context.region_epoch = Some(region.epoch);
        context.peer = Some(region.leader);
        context.is_retry_request = backoff.attempts > 0;
        context.max_execution_duration_ms = timeout.as_millis() as u64;
        if let Some(keyspace) = self.keyspace.get() {
            context.set_api_version(ApiVersion::V2);
            context.keyspace_id = *keyspace;
        }
        let id = region.leader.store_id;
        let again = |cause| Missed::again(cause, Duration::ZERO);
        let lookup_deadline = within.min(Instant::now() + LOOKUP_TIMEOUT);
        let store = self.stores.get(id, &self.pd, lookup_deadline).await.map_err(|cause| {
            self.regions.forget(region);
            again(cause)
        })?;
        let line = store.line(what_for);
        let (channel, generation) = line.channel(&self.connector, within).await.map_err(|cause| {
            // It may be elsewhere, and somebody else may lead by now.
            self.stores.forget(id);
            self.regions.forget(region);
            again(cause)
        })?;
        let mut answer = rpc::unary(channel, request, within).await.map_err(|failure| {
            if !matches!(failure, Failure::Refused(_)) {
                line.give_up(Some(generation));
            }
            self.regions.forget(region);
            Missed::Lost(unavailable(format!("{}: {failure}", line.address())))
        })?;
        match R::region_error(&mut answer) {
            None => Ok(answer),
            Some(error) => Err(self.missed(region, error)),
        }
    }

    /// Sends a request that is for one key until the leader of its region answers.
    async fn send_for_key<R: RegionRpc>(
        &self,
        what_for: Use,
        key: &[u8],
        request: R,
        deadline: Instant,
    ) -> Result<R::Answer, Cause> {
        let mut backoff = Backoff::new(deadline);
        loop {
            let region = self.region(key, deadline).await?;
            match self.send(what_for, &region, request.clone(), &backoff).await {
                Ok(answer) => return Ok(answer),
                Err(missed) => backoff.after(missed).await?,
            }
        }
    }
}

/// Pauses between attempts: ever longer ones, until the deadline.
pub(crate) struct Backoff {
    pause: Duration,
    deadline: Instant,
    /// Attempts that have failed.
    attempts: u32,
    /// Attempts in a row without a pause.
    at_once: u32,
}

impl Backoff {
    pub(crate) fn new(deadline: Instant) -> Self {
        Self { pause: PAUSE_MIN, deadline, attempts: 0, at_once: 0 }
    }

    /// How long the next attempt may take: what is slow has more time each time, and what stands still is not waited for at first.
    fn attempt_timeout(&self) -> Duration {
        ATTEMPT_TIMEOUT * (1 << self.attempts.min(ATTEMPT_DOUBLINGS_MAX))
    }

    /// Waits before the next attempt; fails with the last one's failure when there is no time for another.
    pub(crate) async fn wait(&mut self, at_least: Duration, failure: Cause) -> Result<(), Cause> {
        let pause = self.pause.max(at_least);
        if Instant::now() + pause >= self.deadline {
            return Err(failure);
        }
        tracing::debug!(%failure, "TiKV is asked again");
        self.attempts += 1;
        sleep(pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Ok(())
    }

    async fn after(&mut self, missed: Missed) -> Result<(), Cause> {
        match missed {
            // Two peers may each take the other for the leader.
            Missed::AtOnce(_) if self.at_once < AT_ONCE_MAX => {
                self.at_once += 1;
                self.attempts += 1;
                Ok(())
            }
            Missed::AtOnce(cause) | Missed::Lost(cause) => self.after_pause(Duration::ZERO, cause).await,
            Missed::Again { cause, at_least } => self.after_pause(at_least, cause).await,
            Missed::Failed(cause) => Err(cause),
        }
    }

    async fn after_pause(&mut self, at_least: Duration, failure: Cause) -> Result<(), Cause> {
        self.at_once = 0;
        self.wait(at_least, failure).await
    }
}

/// The cluster, or the part of it that was asked, does not do what was asked now.
pub(crate) fn unavailable(why: impl fmt::Display) -> Cause {
    Cause::Unavailable(shortened(format!("TiKV: {why}")))
}

/// A text, which may hold keys and be long, in short.
fn shortened(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        text.push('…');
    }
    text
}

/// An error with its causes: the first one alone says little.
fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_and_end_with_the_deadline() {
        let begun = Instant::now();
        let mut backoff = Backoff::new(begun + Duration::from_secs(5));
        let mut pauses = Vec::new();
        let mut last = begun;
        let failure = loop {
            if let Err(failure) = backoff.wait(Duration::ZERO, unavailable(pauses.len())).await {
                break failure;
            }
            pauses.push(last.elapsed().as_millis() / 10 * 10);
            last = Instant::now();
        };
        assert_eq!(pauses[..7], [10, 20, 40, 80, 160, 320, 500]);
        assert_eq!(backoff.attempt_timeout(), ATTEMPT_TIMEOUT * 8);
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert_eq!(failure, unavailable(pauses.len()), "the last one's failure");
        let mut backoff = Backoff::new(Instant::now() + Duration::from_secs(5));
        backoff.wait(Duration::from_secs(1), unavailable("")).await.unwrap();
        assert!(last.elapsed() >= Duration::from_secs(1));
        assert_eq!(backoff.after(Missed::Failed(unavailable("x"))).await, Err(unavailable("x")));
        assert_eq!(backoff.after(Missed::AtOnce(unavailable("x"))).await, Ok(()));
        sleep(Duration::from_secs(9)).await;
        while backoff.at_once < AT_ONCE_MAX {
            assert_eq!(backoff.after(Missed::AtOnce(unavailable("x"))).await, Ok(()));
        }
        assert_eq!(backoff.after(Missed::AtOnce(unavailable("x"))).await, Err(unavailable("x")));
    }

    #[test]
    fn errors_are_told_in_short() {
        let Cause::Unavailable(text) = unavailable("ü".repeat(1000)) else { panic!("it is unavailable") };
        assert!(text.len() < TEXT_BYTES_MAX + 20 && text.ends_with('…'));
    }
}
