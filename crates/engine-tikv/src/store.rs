//! What a store says of itself: made once, and checked at each opening.
//!
//! Invariant: the head and the store's own row are written by one transaction, so a store is whole or not there. Of several processes that make it
//! at once one succeeds, and the others find what it has made.

use std::hash::{BuildHasher, RandomState};

use kubewharf_engine::{Cause, Head};
use tikv_client::{CheckLevel, Error, TransactionClient, TransactionOptions};
use tokio::time::{Instant, sleep, timeout_at};

use crate::clients::{ATTEMPT_TIMEOUT, PAUSE_MAX, PAUSE_MIN, Use, no_answer};
use crate::commit::stored_head;
use crate::error::OpenError;
use crate::outcome;
use crate::{Shared, Tikv};

/// What keys and rows look like. A store of a newer one is refused.
const FORMAT: u32 = 1;
const FORMAT_BYTES: usize = size_of::<u32>();

/// The store's own row.
pub(crate) fn about(is_whole: bool) -> Vec<u8> {
    let mut row = FORMAT.to_le_bytes().to_vec();
    row.push(u8::from(is_whole));
    row
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
async fn find_or_make(shared: &Shared, deadline: Instant) -> Result<Vec<u8>, Cause> {
    let mut pause = PAUSE_MIN;
    loop {
        let loan = shared.clients.take(Use::Urgent, deadline).await?;
        let attempt_deadline = deadline.min(Instant::now() + ATTEMPT_TIMEOUT);
        let failure = match timeout_at(attempt_deadline, attempt(shared, &loan.client)).await {
            Ok(Ok(Some(found))) => {
                loan.succeeded();
                return Ok(found);
            }
            // It is read in any case: what was written may have been written by another.
            Ok(Ok(None)) => continue,
            Ok(Err(error)) => outcome::cause(&error),
            Err(_) => no_answer(),
        };
        loan.failed();
        if Instant::now() + pause >= deadline {
            return Err(failure);
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Reads the store's own row; writes it and the head if it is not there.
async fn attempt(shared: &Shared, client: &TransactionClient) -> Result<Option<Vec<u8>>, Error> {
    let options = TransactionOptions::new_optimistic().drop_check(CheckLevel::None);
    let mut transaction = client.begin_with_options(options).await?;
    let found = transaction.get(shared.keys.store()).await?;
    if let Some(found) = found.filter(|row| !row.is_empty()) {
        return Ok(Some(found));
    }
    let incarnation = u128::from(RandomState::new().hash_one(0)) << 64;
    let head = Head { epoch: 1, seq: 1, revision: 1, batch_id: incarnation | 1 };
    transaction.put(shared.keys.head(), crate::key::stored(&head.encode())).await?;
    transaction.put(shared.keys.store(), about(true)).await?;
    transaction.commit().await?;
    tracing::info!(schema = shared.options.schema, "a store was made in TiKV");
    Ok(None)
}

/// The head as it is now, for whoever is about to change what the store says of itself.
pub(crate) fn head(engine: &Tikv) -> Result<Head, Cause> {
    let (deadline, shared) = (engine.read_deadline(), engine.shared.clone());
    engine.run(deadline, async move {
        let head_key = shared.keys.head();
        let question = |client: TransactionClient| {
            let head_key = head_key.clone();
            async move {
                let now = client.current_timestamp().await?;
                client.snapshot(now, crate::commit::read_options()).get(head_key).await
            }
        };
        stored_head(shared.clients.ask(Use::Urgent, deadline, question).await?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_store_says_of_itself_is_read_as_it_was_written() {
        for is_whole in [false, true] {
            assert_eq!(read_about(&about(is_whole)), Some((FORMAT, is_whole)));
        }
        assert_eq!(read_about(&[2, 0, 0, 0, 1, 7]), Some((2, false)));
        assert_eq!(read_about(b"abc"), None);
    }
}
