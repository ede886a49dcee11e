//! What a store says of itself: made once, and checked at each opening.
//!
//! Invariant: the head and the store's own row are written by one transaction, so a store is whole or not there. Of several processes that make it
//! at once one succeeds, and the others find what it has made.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use bytes::Bytes;
use kubewharf_engine::{Cause, Head};
use tokio::time::Instant;

use crate::client::{Backoff, Mutations, Reader, Transaction, Use};
use crate::commit::{put, stored_head};
use crate::error::OpenError;
use crate::{Shared, Tikv};

/// What keys and rows look like. A store of a newer one is refused.
const FORMAT: u32 = 1;
const FORMAT_BYTES: usize = size_of::<u32>();

/// The store's own row.
pub(crate) fn about(is_whole: bool) -> Bytes {
    let mut row = FORMAT.to_le_bytes().to_vec();
    row.push(u8::from(is_whole));
    row.into()
}

/// The format, and whether the store is whole.
fn read_about(row: &[u8]) -> Option<(u32, bool)> {
    let (format, is_whole) = row.split_first_chunk::<FORMAT_BYTES>()?;
    Some((u32::from_le_bytes(*format), is_whole == [1]))
}

/// Makes the store if it is not there, and checks it if it is.
pub(crate) fn ensure(engine: &Tikv) -> Result<(), OpenError> {
    let (deadline, shared) = (engine.read_deadline(), engine.shared.clone());
    let found = engine.run(deadline, async move { Box::pin(find_or_make(&shared, deadline)).await })?;
    let schema = || engine.shared.options.schema.clone();
    match read_about(&found) {
        Some((FORMAT, true)) => Ok(()),
        Some((FORMAT, false)) => Err(OpenError::HalfRestored { schema: schema() }),
        Some((found, _)) => Err(OpenError::Format { schema: schema(), found, supported: FORMAT }),
        None => Err(Cause::Corrupt(format!("TiKV: what the store {} says of itself is damaged", schema())).into()),
    }
}

/// The store's own row.
async fn find_or_make(shared: &Shared, deadline: Instant) -> Result<Bytes, Cause> {
    let mut backoff = Backoff::new(deadline);
    loop {
        match attempt(shared, deadline).await {
            Ok(Some(found)) => return Ok(found),
            // It is read in any case: what was written may have been written by another.
            Ok(None) => {}
            Err(failure) => backoff.wait(Duration::ZERO, failure).await?,
        }
    }
}

/// Reads the store's own row; writes it and the head if it is not there.
async fn attempt(shared: &Shared, deadline: Instant) -> Result<Option<Bytes>, Cause> {
    let incarnation = u128::from(RandomState::new().hash_one(0)) << 64;
    let head = Head { epoch: 1, seq: 1, revision: 1, batch_id: incarnation | 1 };
    let keys = &shared.keys;
    let mutations =
        Mutations::from([put(keys.head(), crate::key::stored(&head.encode())), put(keys.store(), about(true))]);
    let transaction = Transaction::begin(shared.client.clone(), mutations, deadline).await?;
    let found = transaction.reader().get(&[keys.store()], deadline).await?.pop();
    if let Some((_, found)) = found.filter(|(_, row)| !row.is_empty()) {
        return Ok(Some(found));
    }
    transaction.commit(shared.allows_one_phase, deadline).await?;
    tracing::info!(schema = shared.options.schema, "a store was made in TiKV");
    Ok(None)
}

/// The head as it is now, for whoever is about to change what the store says of itself.
pub(crate) fn head(engine: &Tikv) -> Result<Head, Cause> {
    let (deadline, shared) = (engine.read_deadline(), engine.shared.clone());
    engine.run(deadline, async move { read_head(&shared, deadline).await })
}

/// The head as it is now.
pub(crate) async fn read_head(shared: &Shared, deadline: Instant) -> Result<Head, Cause> {
    let now = shared.client.timestamp(deadline).await?;
    let reader = Reader::new(shared.client.clone(), Use::Urgent, now);
    stored_head(reader.get(&[shared.keys.head()], deadline).await?.pop())
}

#[cfg(test)]
mod tests {
    use kubewharf_engine::Batch;

    use super::*;

    #[test]
    fn what_a_store_says_of_itself_is_read_as_it_was_written() {
        for is_whole in [false, true] {
            assert_eq!(read_about(&about(is_whole)), Some((FORMAT, is_whole)));
        }
        assert_eq!(read_about(&[2, 0, 0, 0, 1, 7]), Some((2, false)));
        assert_eq!(read_about(b"abc"), None);
    }
    /// In the cluster that the tests of the crate use.
    #[test]
    fn what_another_version_left_is_refused() {
        let Some(place) = kubewharf_testkit::tikv::Tikv::from_environment() else { return };
        let options = crate::Options { schema: place.schema, ..crate::Options::new(place.url) };
        let engine = Tikv::open(options.clone()).unwrap();
        let write_about = |row: &'static [u8]| {
            let expected = head(&engine).unwrap();
            let next = Head { seq: expected.seq + 1, ..expected };
            let batch = Batch { expected, next, ..Batch::default() };
            crate::commit::apply(&engine, &batch, Some(Bytes::from_static(row))).unwrap();
        };
        write_about(&[2, 0, 0, 0, 1]);
        let error = Tikv::open(options.clone()).map(|_| ()).unwrap_err();
        assert_eq!(error, OpenError::Format { schema: options.schema.clone(), found: 2, supported: 1 });
        write_about(b"?");
        let error = Tikv::open(options).map(|_| ()).unwrap_err();
        assert!(matches!(&error, OpenError::Failed(failed) if failed.is_corrupt()), "{error}");
    }
}
