//! What follows from a commit that failed. Pure.
//!
//! A failure says little: messages are repeated, so a conflict can be with the transaction's own first attempt, and
//! what was given up may still arrive. So after any failure two things are asked for: that the transaction be *settled*, which means that its
//! primary row, the head, is found committed or is marked so that it never can be; and, if it was not committed, the head as it is then.
//!
//! Invariant: `NotApplied` only of a transaction that was settled before the expected head was seen. `Fenced` only by a head that took this
//! batch's place. All else is unknown: the batch is sent again, and the head tells.

use kubewharf_engine::{Batch, Cause, Head};

/// What became of the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is durable.
    Applied,
    /// This head is stored instead, and nothing was changed.
    Fenced(Head),
    /// Nothing was changed, and nothing will be.
    NotApplied(Cause),
    /// Either may be.
    Unknown(Cause),
}

/// Sorts a failed commit. `is_settled` is whether the transaction was settled before `found`, the head, was read.
pub(crate) fn verdict(batch: &Batch, failure: Cause, is_settled: bool, found: Option<Head>) -> Verdict {
    let Some(found) = found else { return Verdict::Unknown(failure) };
    if found == batch.next {
        return Verdict::Applied;
    }
    if found == batch.expected {
        return if is_settled { Verdict::NotApplied(failure) } else { Verdict::Unknown(failure) };
    }
    // Each commit is one step, so two heads with one number are alternatives: where the other is, this one never was.
    if found.seq == batch.next.seq && batch.next.seq == batch.expected.seq.wrapping_add(1) {
        return Verdict::Fenced(found);
    }
    // The batch may have been applied before what came then.
    Verdict::Unknown(failure)
}

/// Whether the same request would fail again whenever it is sent.
pub(crate) fn is_permanent(cause: &Cause) -> bool {
    matches!(cause, Cause::TooLarge(_) | Cause::NoSpace(_) | Cause::Corrupt(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPECTED: Head = Head { epoch: 3, seq: 7, revision: 10, batch_id: 70 };
    const NEXT: Head = Head { epoch: 3, seq: 8, revision: 11, batch_id: 71 };

    fn sort(is_settled: bool, found: Option<Head>) -> Verdict {
        let batch = Batch { expected: EXPECTED, next: NEXT, ..Batch::default() };
        verdict(&batch, Cause::Unavailable("why".to_owned()), is_settled, found)
    }

    fn is_unknown(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Unknown(_))
    }

    #[test]
    fn a_batch_whose_head_is_there_is_applied_whatever_the_error_said() {
        for is_settled in [false, true] {
            assert_eq!(sort(is_settled, Some(NEXT)), Verdict::Applied);
        }
    }

    #[test]
    fn an_old_head_proves_something_only_of_a_settled_transaction() {
        assert!(is_unknown(&sort(false, Some(EXPECTED))));
        assert!(matches!(sort(true, Some(EXPECTED)), Verdict::NotApplied(Cause::Unavailable(why)) if why == "why"));
        for is_settled in [false, true] {
            assert!(is_unknown(&sort(is_settled, None)), "without a head nothing is known");
        }
    }

    #[test]
    fn a_head_in_this_one_s_place_fences_and_a_later_one_hides_what_came_before() {
        let alternative = Head { epoch: 4, batch_id: 5, ..NEXT };
        let later = Head { seq: 9, batch_id: 72, ..NEXT };
        let earlier = Head { seq: 6, batch_id: 69, ..EXPECTED };
        for is_settled in [false, true] {
            assert_eq!(sort(is_settled, Some(alternative)), Verdict::Fenced(alternative));
            assert!(is_unknown(&sort(is_settled, Some(later))));
            assert!(is_unknown(&sort(is_settled, Some(earlier))));
        }
        // Where the number does not go up by one, it says nothing.
        let batch = Batch { expected: EXPECTED, next: Head { seq: 100, ..NEXT }, ..Batch::default() };
        let found = Head { batch_id: 5, ..batch.next };
        assert!(is_unknown(&verdict(&batch, Cause::Io(String::new()), true, Some(found))));
    }

    #[test]
    fn what_can_never_be_taken_is_not_sent_again() {
        let text = String::new;
        assert!(is_permanent(&Cause::TooLarge(text())) && is_permanent(&Cause::NoSpace(text())));
        assert!(!is_permanent(&Cause::Unavailable(text())));
    }
}
