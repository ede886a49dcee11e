//! How a member's reign begins, and how it ends.

use std::time::Duration;

use kubewharf_engine::{CommitError, Head};
use kubewharf_etcd_api::etcdserverpb::Member as Peer;

use super::{Duty, LetGo, Member, id};
use crate::cluster::election::Verdict;
use crate::cluster::rows::Leadership;
use crate::cluster::takeover::{Progress, Takeover};
use crate::limits::PEER_RETRY;
use crate::simulation::engine::View;
use crate::simulation::leader::{End, Leader};
use crate::simulation::network::{Demand, Outside, Timer};
use crate::simulation::{Bug, KEYS};

impl Member {
    /// Takes over if it is this member's turn.
    pub(super) fn turn(&mut self, outside: &mut Outside) {
        let is_free = matches!(self.duty, Duty::Follow) && self.let_go.is_none();
        if !is_free || self.must_look || self.has_failed {
            return;
        }
        if self.known.process == self.process {
            // This very process has begun the epoch, and does not lead.
            self.election.leader_is_gone(self.known.epoch);
        }
        let now = self.now(outside);
        match self.election.verdict(now) {
            Verdict::Wait(until) if until.saturating_sub(now) < self.ttl / 8 => {
                self.set_timer(until.saturating_sub(now), Timer::Turn, outside);
            }
            Verdict::Wait(_) => {}
            Verdict::TakeOver(head) => {
                outside.trace(|| format!("{} takes over from {head:?}", self.me.member));
                let leader = Some(Peer { id: id(self.me.member), ..Peer::default() });
                let leadership =
                    Leadership { epoch: head.epoch + 1, leader, process: self.process, ..Leadership::default() };
                let takeover = Takeover::new(head, outside.random.next(), &leadership, None);
                let call = outside.ask(self.me, Demand::Commit(takeover.attempt().clone()));
                self.duty = Duty::TakeOver { takeover, call };
            }
        }
    }

    pub(super) fn committed(&mut self, call: u64, result: Result<(), CommitError>, outside: &mut Outside) {
        match &mut self.duty {
            Duty::TakeOver { takeover, call: wanted } if *wanted == call => match takeover.step(result) {
                Progress::Begun(head) => self.duty = Duty::CatchUp { head, call: None },
                Progress::Again { after_ms } => {
                    self.set_timer(Duration::from_millis(after_ms), Timer::Again(call), outside)
                }
                Progress::Failed(why) => self.stay_behind(&why, outside),
            },
            Duty::Lead(leader) => {
                if let Some(end) = leader.committed(call, result, &mut self.published, outside) {
                    self.end_reign(end, outside);
                }
            }
            _ => match &mut self.let_go {
                Some(LetGo::Commit { takeover, call: wanted }) if *wanted == call => match takeover.step(result) {
                    Progress::Again { after_ms } => {
                        self.set_timer(Duration::from_millis(after_ms), Timer::Again(call), outside);
                    }
                    Progress::Begun(_) | Progress::Failed(_) => {
                        outside.trace(|| format!("{} has let go or tried to", self.me.member));
                        self.let_go = None;
                        self.follow(outside);
                    }
                },
                _ => {}
            },
        }
    }

    pub(super) fn again(&mut self, call: u64, outside: &mut Outside) {
        match (&mut self.duty, &mut self.let_go) {
            (Duty::TakeOver { takeover, call: last }, _) | (_, Some(LetGo::Commit { takeover, call: last }))
                if *last == call =>
            {
                *last = outside.ask(self.me, Demand::Commit(takeover.attempt().clone()));
            }
            (Duty::Lead(leader), _) => leader.again(call, outside),
            _ => {}
        }
    }

    /// Begins to lead behind `head`.
    pub(super) fn lead(&mut self, head: Head, view: &View, outside: &mut Outside) {
        for event in &view.events {
            if event.revision <= head.revision {
                self.published.publish(*event, outside);
            }
        }
        if self.published.revision != head.revision {
            // It has followed another leader already.
            return self.stay_behind("another member has taken over already", outside);
        }
        outside.trace(|| format!("{} leads behind {head:?}", self.me.member));
        outside.history.counts.reigns += 1;
        let cache = if outside.bug == Some(Bug::KeepsCache) { self.kept } else { [None; KEYS] };
        self.epoch = self.epoch.max(head.epoch);
        self.know(head.epoch, self.process);
        self.duty = Duty::Lead(Box::new(Leader::new(self.me, head, cache)));
        self.set_timer(self.ttl / 4, Timer::Renew(head.epoch), outside);
        self.look(outside);
    }

    pub(super) fn renew(&mut self, epoch: u64, outside: &mut Outside) {
        if let Duty::Lead(leader) = &mut self.duty
            && leader.epoch() == epoch
        {
            leader.renew(outside);
            self.set_timer(self.ttl / 4, Timer::Renew(epoch), outside);
        }
    }

    pub(super) fn end_reign(&mut self, end: End, outside: &mut Outside) {
        outside.trace(|| format!("{} leads no more: {end:?}", self.me.member));
        if let Duty::Lead(leader) = std::mem::replace(&mut self.duty, Duty::Follow) {
            outside.history.counts.given_up += u64::from(end == End::GivenUp);
            self.kept = leader.cache();
            self.fates.extend(leader.end(end, outside));
        }
        if end == End::Lost {
            self.fail("the leader's head is gone", outside);
        }
        self.follow(outside);
    }

    /// Waits a little after a takeover that has failed.
    pub(super) fn stay_behind(&mut self, why: &str, outside: &mut Outside) {
        outside.trace(|| format!("{} does not take over: {why}", self.me.member));
        self.duty = Duty::Follow;
        self.must_look = true;
        self.set_timer(PEER_RETRY, Timer::Follow, outside);
    }

    /// Waits for its turn, from what a new look shows on.
    pub(super) fn follow(&mut self, outside: &mut Outside) {
        self.duty = Duty::Follow;
        self.election.saw_nothing(self.now(outside));
        self.must_look = true;
        self.look(outside);
    }

    /// Hands over once everything that was accepted is done, if somebody has asked for that.
    pub(super) fn let_go_if_done(&mut self, outside: &mut Outside) {
        if let Duty::Lead(leader) = &mut self.duty
            && let Some(successor) = leader.successor
            && leader.is_idle()
        {
            let epoch = leader.epoch();
            self.kept = leader.cache();
            self.duty = Duty::Follow;
            let call = outside.ask(self.me, Demand::View { after: i64::MAX });
            self.let_go = Some(LetGo::Look { call, epoch, successor });
        }
    }

    /// Lets go of the head that a look shows, if it is still one of the reign that has ended.
    pub(super) fn viewed_before_letting_go(&mut self, call: u64, view: Option<&View>, outside: &mut Outside) {
        let Some(LetGo::Look { call: wanted, epoch, successor }) = self.let_go else { return };
        if wanted != call {
            return;
        }
        self.let_go = None;
        let Some(view) = view.filter(|view| view.head.epoch == epoch) else { return self.follow(outside) };
        let leadership = Leadership { epoch: epoch + 1, successor, ..Leadership::default() };
        let takeover = Takeover::new(view.head, outside.random.next(), &leadership, None);
        let call = outside.ask(self.me, Demand::Commit(takeover.attempt().clone()));
        self.let_go = Some(LetGo::Commit { takeover, call });
    }
}
