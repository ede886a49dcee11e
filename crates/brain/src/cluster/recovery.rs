//! An engine that has lost what it had confirmed, as the failover to a standby that lags does: nobody writes until an operator says so.
//!
//! Whoever notices it begins an epoch in which nobody may lead, so that members that are started again know it too. What was lost stays lost;
//! [`recover`] makes sure that no client takes the store for what it was: revisions go on far above all that were ever told, and everything
//! below is compacted, so that each watch and each list begins anew.
//!
//! Invariant: no revision that was told before the loss is given to another change.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use kubewharf_engine::{Batch, Cause, Engine, EngineError, Head, Operation, Reserve, Table};
use kubewharf_etcd_api::etcdserverpb::PutRequest;

use super::reign::begin_epoch;
use super::rows::{self, Leadership};
use crate::meta;
use crate::mvcc::{Bounds, Evaluator, Overlay, Revisions, SnapshotRows, Writer};
use crate::store::{new_reign, random_u64};
use crate::watch::EventsBuilder;

/// How far revisions jump: more than a store can have given out beyond what is left of it.
const REVISIONS: i64 = 1_000_000_000;
/// The key that tells when the store was recovered. It is written so that the newest revision is that of a change, as everywhere else.
const KEY: &[u8] = b"kubebrain/recovered";
/// How often another process may be faster.
const ATTEMPTS_MAX: usize = 16;

/// Why a store is not recovered.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The store has not lost anything that anybody has noticed.
    #[error("no member has stopped it: there is nothing to recover")]
    NotHalted,
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The outcome is unknown, or another process was faster.
    #[error("{0}; try again")]
    Commit(kubewharf_engine::CommitError),
}

/// What members tell that may not serve.
pub(super) fn refusal(halted: &str) -> String {
    format!("{halted}; `kubewharf brain recover` makes the store usable again, without what is lost")
}

/// Begins an epoch in which nobody may lead. Blocks.
pub(super) fn halt(engine: &dyn Engine, why: &str) -> Result<(), String> {
    let mut failure = String::new();
    for _ in 0..ATTEMPTS_MAX {
        let found = engine.snapshot().and_then(|snapshot| {
            let head = snapshot.head()?;
            Ok((head, rows::leadership(snapshot.as_ref(), head.epoch)?))
        });
        let (head, leadership) = found.map_err(|error| error.to_string())?;
        if !leadership.halted.is_empty() {
            return Ok(());
        }
        let halted = Leadership { epoch: head.epoch + 1, halted: why.to_owned(), ..Leadership::default() };
        match begin_epoch(engine, head, &halted, None) {
            Ok(_) => return Ok(()),
            Err(why) => failure = why,
        }
    }
    Err(failure)
}

/// Refuses a store in which nobody may lead.
pub(crate) fn check(engine: &dyn Engine) -> Result<(), EngineError> {
    let snapshot = engine.snapshot()?;
    let leadership = rows::leadership(snapshot.as_ref(), snapshot.head()?.epoch)?;
    if leadership.halted.is_empty() { Ok(()) } else { Err(Cause::Unavailable(refusal(&leadership.halted)).into()) }
}

/// Lets members lead again in a store that has lost what it had confirmed, and gives its new revision. Blocks.
///
/// # Errors
/// When nobody has noticed a loss, or the engine fails.
pub fn recover(engine: &dyn Engine) -> Result<i64, RecoverError> {
    let snapshot = engine.snapshot()?;
    let found = snapshot.head()?;
    if rows::leadership(snapshot.as_ref(), found.epoch)?.halted.is_empty() {
        return Err(RecoverError::NotHalted);
    }
    let revision = found.revision + REVISIONS;
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (mut overlay, mut events) = (Overlay::default(), EventsBuilder::default());
    // Nothing below is left to be read.
    let revisions = Revisions { newest: revision - 1, compacted: revision - 1 };
    let rows = SnapshotRows(snapshot.as_ref());
    let time_ms = u64::try_from(time.as_millis()).unwrap_or_default();
    let mut writer = Writer::new(&rows, None, &mut overlay, &mut events, revisions, time_ms);
    let put = PutRequest { key: KEY.into(), value: time.as_secs().to_string().into(), ..PutRequest::default() };
    let bounds = Bounds { keys: 16, row_bytes: 1 << 20, response_bytes: 1 << 20 };
    let written = Evaluator::writer(&mut writer, revisions, bounds).put(&put);
    written.map_err(|refusal| EngineError::from(Cause::Corrupt(format!("{KEY:?} can't be written: {refusal:?}"))))?;
    overlay.put(Table::Meta, meta::COMPACTED, meta::encode_revision(revision));
    let leadership = Leadership { epoch: found.epoch + 1, ..Leadership::default() };
    overlay.put(Table::Meta, meta::LEADER, rows::encode(&leadership));
    overlay.put(Table::Meta, meta::PREVIOUS, Bytes::copy_from_slice(&found.encode()));
    let operations: Vec<Operation> = overlay.to_operations();
    let next = Head { revision, ..new_reign(found, random_u64()) };
    engine
        .commit(&Batch { expected: found, next, operations, reserve: Reserve::Whole })
        .map_err(RecoverError::Commit)?;
    Ok(revision)
}
