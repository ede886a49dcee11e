//! Brings what is published here up to what others have written into the shared engine.
//!
//! Invariant: what a follower publishes is what the log says, each revision once and in order. A leader's process publishes by its
//! committer alone: here it only learns whether it still leads.

use std::ops::{Bound, ControlFlow};

use kubewharf_engine::{Direction, EngineError, Head, Snapshot, Table};

use super::rows::{self, Leadership};
use crate::limits::CATCH_UP_BYTES;
use crate::mvcc::{Change, ChangeSink, Position, Revisions};
use crate::store::{Duty, Published, Store, compacted};
use crate::watch::EventsBuilder;

/// What a look at the engine shows.
#[derive(Clone, Debug)]
pub(crate) struct Sighting {
    pub(crate) head: Head,
    /// Who leads in the head's epoch, if the store does not know of that epoch yet. Who takes note of this tells the store.
    pub(crate) leadership: Option<Leadership>,
    /// For a process that leads: whether the engine knows that too.
    pub(crate) leads: Option<bool>,
}

/// Looks at the engine and publishes what is new there, if `check` has nothing against the head. Blocks.
pub(crate) fn catch_up(
    store: &Store,
    check: &mut dyn FnMut(Head) -> Result<(), EngineError>,
) -> Result<Sighting, EngineError> {
    let duty = store.duty();
    let snapshot = store.engine().urgent_snapshot()?;
    let head = snapshot.head()?;
    check(head)?;
    if let Duty::Lead { epoch } = *duty {
        return Ok(Sighting { head, leadership: None, leads: Some(epoch == head.epoch) });
    }
    let is_new = store.epoch() < head.epoch;
    let leadership = if is_new { Some(rows::leadership(snapshot.as_ref(), head.epoch)?) } else { None };
    publish(store.published(), snapshot.as_ref(), head)?;
    Ok(Sighting { head, leadership, leads: None })
}

/// Publishes what the snapshot has up to `head` and beyond what is published. Whoever calls this has the duty to.
pub(crate) fn publish(published: &Published, snapshot: &dyn Snapshot, head: Head) -> Result<(), EngineError> {
    let compacted = compacted(snapshot)?;
    let known = published.revisions();
    let mut at = Position { revision: known.newest, sub: 0 };
    if compacted > known.newest + 1 {
        // What is below is gone. The compacted revision itself is there.
        published.hub().skip(compacted - 1);
        at.revision = compacted - 1;
    }
    if at.revision < head.revision {
        let mut events = EventsBuilder::default();
        let mut failed: Result<(), EngineError> = Ok(());
        let start = Position { revision: at.revision + 1, sub: 0 }.key();
        let bounds = (Bound::Included(&start[..]), Bound::Unbounded);
        snapshot.scan(Table::Log, bounds, Direction::Forward, &mut |key, row| {
            let read = Position::from_key(key)
                .and_then(|position| position.behind(at))
                .and_then(|position| Ok((position, Change::decode(position, row)?)));
            let (position, change) = match read {
                Ok(read) => read,
                Err(cause) => {
                    failed = Err(cause.into());
                    return ControlFlow::Break(());
                }
            };
            if position.revision > head.revision {
                return ControlFlow::Break(());
            }
            if position.sub == 0 && events.bytes() >= CATCH_UP_BYTES {
                let revisions = Revisions { newest: at.revision, compacted: compacted.min(at.revision) };
                published.publish(revisions, std::mem::take(&mut events), &[]);
            }
            at = position;
            events.change(position, &change);
            ControlFlow::Continue(())
        })?;
        failed?;
        if at.revision != head.revision {
            return Err(Position::missing(at.revision + 1).into());
        }
        published.publish(Revisions { newest: head.revision, compacted }, events, &[]);
    } else if compacted != known.compacted {
        published.publish(Revisions { newest: known.newest, compacted }, EventsBuilder::default(), &[]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kubewharf_engine::Engine;
    use kubewharf_engine::memory::Memory;

    use super::super::takeover::Takeover;
    use super::*;
    use crate::StoreOptions;

    #[test]
    fn a_look_whose_result_nobody_notes_leaves_the_news_of_a_leader_to_the_next_one() {
        let engine = Arc::new(Memory::new());
        let store = Store::join(engine.clone(), StoreOptions::default(), "a").unwrap();
        let found = engine.snapshot().unwrap().head().unwrap();
        let leadership = Leadership { epoch: found.epoch + 1, process: 7, ..Leadership::default() };
        engine.commit(Takeover::new(found, 5, &leadership, None).attempt()).unwrap();
        for _ in 0..2 {
            assert_eq!(catch_up(&store, &mut |_| Ok(())).unwrap().leadership, Some(leadership.clone()));
        }
        store.saw_epoch(leadership.epoch);
        assert_eq!(catch_up(&store, &mut |_| Ok(())).unwrap().leadership, None);
    }
}
