//! The fault layer: each fault does what it says, and never what the contract forbids.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kubewharf_engine::conformance::{get, head, next_batch, put};
use kubewharf_engine::memory::{Fault, Faulty, Memory};
use kubewharf_engine::{Batch, Cause, CommitError, Engine, Head, Table};

fn batch(engine: &dyn Engine, value: &str) -> Batch {
    next_batch(engine, vec![put(Table::Meta, "k", value)])
}

fn stored(engine: &dyn Engine) -> Option<String> {
    get(engine, Table::Meta, b"k").map(|value| String::from_utf8(value).unwrap())
}

#[test]
fn a_refused_request_leaves_no_trace() {
    let engine = Faulty::new(Memory::new());
    let cause = Cause::NoSpace("simulated".into());
    engine.script([Fault::Refuse(cause.clone())]);
    let before = head(&engine);
    let refused = batch(&engine, "a");
    assert_eq!(engine.commit(&refused), Err(CommitError::NotApplied(cause)));
    assert_eq!((head(&engine), stored(&engine)), (before, None));
    // The script is over.
    assert_eq!(engine.commit(&refused), Ok(()));
}

#[test]
fn a_lost_request_and_a_lost_reply_look_the_same_to_the_sender() {
    let engine = Faulty::new(Memory::new());
    engine.script([Fault::LoseRequest, Fault::LoseReply]);
    let sent = batch(&engine, "a");
    assert!(matches!(engine.commit(&sent), Err(CommitError::Unknown(_))));
    assert_eq!(stored(&engine), None);
    assert!(matches!(engine.commit(&sent), Err(CommitError::Unknown(_))));
    assert_eq!(stored(&engine), Some("a".into()));
    // Sending it again settles it: the head is its own.
    assert_eq!(engine.commit(&sent), Err(CommitError::Fenced(sent.next)));
}

#[test]
fn a_postponed_request_is_applied_late_unless_the_head_has_moved() {
    let engine = Faulty::new(Memory::new());
    engine.script([Fault::Postpone { commits: 1 }]);
    let late = batch(&engine, "late");
    assert!(matches!(engine.commit(&late), Err(CommitError::Unknown(_))));
    assert_eq!(stored(&engine), None);
    // The next request on the same head comes behind the late one, and loses.
    let next = batch(&engine, "next");
    assert_eq!(engine.commit(&next), Err(CommitError::Fenced(late.next)));
    assert_eq!(stored(&engine), Some("late".into()));

    engine.script([Fault::Postpone { commits: 2 }]);
    let later = batch(&engine, "later");
    assert!(matches!(engine.commit(&later), Err(CommitError::Unknown(_))));
    let between = batch(&engine, "between");
    assert_eq!(engine.commit(&between), Ok(()));
    engine.deliver_postponed();
    assert_eq!(stored(&engine), Some("between".into()));
    let answers: Vec<_> = engine.deliveries().into_iter().map(|delivery| delivery.answer).collect();
    assert_eq!(answers, [Ok(()), Err(CommitError::Fenced(between.next))]);
}

#[test]
fn a_request_that_arrives_after_a_takeover_is_fenced() {
    let engine = Arc::new(Faulty::new(Memory::new()));
    engine.script([Fault::Postpone { commits: u32::MAX }]);
    let deposed = batch(&*engine, "from the deposed");
    assert!(matches!(engine.commit(&deposed), Err(CommitError::Unknown(_))));
    let mut takeover = batch(&*engine, "from the new one");
    takeover.next.epoch += 1;
    assert_eq!(engine.commit(&takeover), Ok(()));
    engine.deliver_postponed();
    assert_eq!(stored(&*engine), Some("from the new one".into()));
    let delivery = engine.deliveries().pop().unwrap();
    assert_eq!((delivery.batch, delivery.answer), (deposed, Err(CommitError::Fenced(takeover.next))));
}

#[test]
fn a_duplicate_changes_nothing() {
    let engine = Faulty::new(Memory::new());
    engine.script([Fault::Duplicate { commits: 1 }]);
    let first = batch(&engine, "first");
    assert_eq!(engine.commit(&first), Ok(()));
    let second = batch(&engine, "second");
    assert_eq!(engine.commit(&second), Ok(()));
    assert_eq!(stored(&engine), Some("second".into()));
    assert_eq!(engine.deliveries().len(), 1);
    assert_eq!(engine.deliveries()[0].answer, Err(CommitError::Fenced(first.next)));
}

#[test]
fn a_delay_only_delays_and_a_death_may_have_applied() {
    let engine = Faulty::new(Memory::new());
    engine.script([Fault::Delay(Duration::from_millis(30)), Fault::Die(Cause::Io("simulated".into()))]);
    let begun = Instant::now();
    assert_eq!(engine.commit(&batch(&engine, "slow")), Ok(()));
    assert!(begun.elapsed() >= Duration::from_millis(30));
    assert_eq!(engine.commit(&batch(&engine, "last")), Err(CommitError::Fatal(Cause::Io("simulated".into()))));
    assert_eq!(stored(&engine), Some("last".into()));
}

#[test]
fn a_roll_back_shows_as_a_head_that_is_behind() {
    let engine = Faulty::new(Memory::with_history(10));
    assert_eq!(engine.commit(&batch(&engine, "kept")), Ok(()));
    let kept = head(&engine);
    assert_eq!(engine.commit(&batch(&engine, "lost")), Ok(()));
    let confirmed = head(&engine);
    assert_eq!(engine.inner().roll_back(1), Some(kept));
    assert_eq!(stored(&engine), Some("kept".into()));
    let next = Head { seq: confirmed.seq + 1, ..confirmed };
    let unaware = Batch { expected: confirmed, next, ..Batch::default() };
    assert_eq!(engine.commit(&unaware), Err(CommitError::Fenced(kept)));
}

/// A writer that retries until it knows, as a leader does, loses and repeats nothing under random faults.
#[test]
fn outcomes_can_be_settled_under_random_faults() {
    const BATCHES: u64 = 400;
    let outcomes = |seed| {
        let engine = Faulty::seeded(Memory::new(), seed, 60);
        let mut sent = Vec::new();
        for _ in 0..BATCHES {
            let mut batch = next_batch(&engine, vec![]);
            batch.operations = vec![put(Table::Log, batch.next.seq.to_be_bytes(), batch.next.batch_id.to_be_bytes())];
            loop {
                let outcome = engine.commit(&batch);
                sent.push(outcome.clone());
                match outcome {
                    Ok(()) => break,
                    // One's own first attempt.
                    Err(CommitError::Fenced(head)) if head == batch.next => break,
                    Err(CommitError::NotApplied(_) | CommitError::Unknown(_)) => {}
                    Err(other) => panic!("{other}"),
                }
            }
        }
        engine.calm();
        engine.deliver_postponed();
        assert_eq!(head(&engine).seq, 1 + BATCHES, "each batch exactly once");
        assert!(engine.deliveries().iter().any(|delivery| delivery.answer.is_ok()), "late requests did arrive");
        assert!(engine.deliveries().iter().any(|delivery| delivery.answer.is_err()), "and were fenced");
        let kinds: Vec<_> =
            sent.iter().map(|outcome| outcome.as_ref().map_err(std::mem::discriminant).copied()).collect();
        kinds
    };
    assert_eq!(outcomes(1), outcomes(1), "a seed draws the same faults");
    assert_ne!(outcomes(1), outcomes(2));
}
