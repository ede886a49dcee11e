//! When a member may take over: the pure part, without clocks and I/O.
//!
//! A leader shows that it lives by commits, each of which moves the head, empty ones if there is nothing to write. A member that has
//! seen the same head for the time to live takes over, by a commit that expects that very head. So the time to live is only about how soon
//! that happens: whatever clocks do, of two who write one is fenced.
//!
//! Invariant: a takeover expects the head that the verdict names, and none is named that an engine which has lost data shows.

use std::time::Duration;

use kubewharf_engine::Head;

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing before this time, unless something is seen.
    Wait(Duration),
    /// Take over, expecting this head.
    TakeOver(Head),
}

/// An engine shows less than it has shown before, or something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the engine has lost acknowledged data: its head was {newest:?} and is {found:?}")]
pub(crate) struct Lost {
    newest: Head,
    found: Head,
}

/// What a member knows of the leader.
#[derive(Debug)]
pub(crate) struct Election {
    /// How long a head stays the same before somebody takes over.
    ttl: Duration,
    /// What this member waits beyond others.
    patience: Duration,
    seen: Option<Seen>,
    /// The leader of this epoch is gone for certain.
    gone: Option<u64>,
    /// The leader of this epoch has let go, and somebody else is to take over.
    passed_over: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    head: Head,
    since: Duration,
}

impl Election {
    /// Knows nothing yet. `patience` keeps members from all trying at once.
    pub(crate) fn new(ttl: Duration, patience: Duration) -> Self {
        Self { ttl, patience, seen: None, gone: None, passed_over: None }
    }

    /// Takes note of a head that was read before `now`.
    pub(crate) fn saw(&mut self, head: Head, now: Duration) -> Result<(), Lost> {
        match self.seen {
            Some(Seen { head: newest, .. }) if newest == head => return Ok(()),
            // Each of them only grows, and `seq` does with every commit.
            Some(Seen { head: newest, .. })
                if head.seq <= newest.seq || head.epoch < newest.epoch || head.revision < newest.revision =>
            {
                return Err(Lost { newest, found: head });
            }
            _ => {}
        }
        self.seen = Some(Seen { head, since: now });
        Ok(())
    }

    /// The engine can't be read: nobody knows whether the leader lives, and it may be without the engine as well.
    pub(crate) fn saw_nothing(&mut self, now: Duration) {
        if let Some(seen) = &mut self.seen {
            seen.since = now;
        }
    }

    /// The process that led in this epoch is gone: its address refuses connections.
    pub(crate) fn leader_is_gone(&mut self, epoch: u64) {
        self.gone = self.gone.max(Some(epoch));
    }

    /// The leader of this epoch has let go; `to_other` if it named another member.
    pub(crate) fn leader_let_go(&mut self, epoch: u64, to_other: bool) {
        if to_other {
            self.passed_over = self.passed_over.max(Some(epoch));
        } else {
            self.leader_is_gone(epoch);
        }
    }

    /// What follows.
    pub(crate) fn verdict(&self, now: Duration) -> Verdict {
        let Some(Seen { head, since }) = self.seen else { return Verdict::Wait(now + self.ttl) };
        if self.gone.is_some_and(|epoch| epoch >= head.epoch) {
            return Verdict::TakeOver(head);
        }
        let wait = match self.passed_over {
            // The one that was named has had its chance after a fraction of that.
            Some(epoch) if epoch >= head.epoch => self.ttl / 4,
            _ => self.ttl,
        };
        let due = since + wait + self.patience;
        if due <= now { Verdict::TakeOver(head) } else { Verdict::Wait(due) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_millis(1000);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn head(epoch: u64, seq: u64) -> Head {
        Head { epoch, seq, revision: 1, batch_id: u128::from(seq) }
    }

    fn election() -> Election {
        Election::new(TTL, ms(50))
    }

    #[test]
    fn a_head_that_stays_the_same_for_the_time_to_live_is_taken_over() {
        let mut election = election();
        election.saw(head(1, 1), ms(0)).unwrap();
        election.saw(head(1, 1), ms(900)).unwrap();
        assert_eq!(election.verdict(ms(900)), Verdict::Wait(ms(1050)));
        election.saw(head(1, 2), ms(1000)).unwrap();
        assert_eq!(election.verdict(ms(1100)), Verdict::Wait(ms(2050)), "each commit is a sign of life");
        assert_eq!(election.verdict(ms(2050)), Verdict::TakeOver(head(1, 2)));
    }

    #[test]
    fn a_time_in_which_the_engine_is_silent_does_not_count_against_the_leader() {
        let mut election = election();
        election.saw(head(1, 1), ms(0)).unwrap();
        election.saw_nothing(ms(5000));
        election.saw(head(1, 1), ms(5100)).unwrap();
        assert_eq!(election.verdict(ms(5100)), Verdict::Wait(ms(6050)));
    }

    #[test]
    fn a_leader_that_is_gone_for_certain_is_not_waited_for() {
        let mut election = election();
        election.saw(head(3, 10), ms(0)).unwrap();
        election.leader_is_gone(2);
        assert_eq!(election.verdict(ms(1)), Verdict::Wait(ms(1050)), "that was an earlier one");
        election.leader_is_gone(3);
        assert_eq!(election.verdict(ms(1)), Verdict::TakeOver(head(3, 10)));
        election.saw(head(4, 11), ms(2)).unwrap();
        assert_eq!(election.verdict(ms(3)), Verdict::Wait(ms(1052)), "somebody else was faster");
    }

    #[test]
    fn a_leader_that_lets_go_is_followed_at_once_by_the_one_that_it_names() {
        let (mut named, mut other) = (election(), election());
        for election in [&mut named, &mut other] {
            election.saw(head(3, 10), ms(0)).unwrap();
        }
        named.leader_let_go(3, false);
        other.leader_let_go(3, true);
        assert_eq!(named.verdict(ms(0)), Verdict::TakeOver(head(3, 10)));
        assert_eq!(other.verdict(ms(0)), Verdict::Wait(ms(300)));
        assert_eq!(other.verdict(ms(300)), Verdict::TakeOver(head(3, 10)), "the one named does not come");
    }

    #[test]
    fn an_engine_that_goes_back_has_lost_data() {
        for lost in [head(3, 9), head(2, 11), Head { batch_id: 0, ..head(3, 10) }, head(4, 10), head(4, 9)] {
            let mut election = election();
            election.saw(head(3, 10), ms(0)).unwrap();
            assert!(election.saw(lost, ms(1)).is_err(), "{lost:?}");
            assert_eq!(election.verdict(ms(5000)), Verdict::TakeOver(head(3, 10)), "which the engine will refuse");
        }
    }
}
