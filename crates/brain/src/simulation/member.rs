//! A member: follows the engine's log, answers reads, and leads when it is its turn.
//!
//! It takes one input at a time, as a process takes what its sockets and timers have for it, and shares the rules of the election and of
//! a takeover with the real one.
//!
//! Invariant: while it leads, only its leader publishes; it looks at the engine once at a time, and begins no takeover meanwhile.

mod reign;

use std::time::Duration;

use kubewharf_engine::Head;

use super::clock::Clock;
use super::engine::{Row, View};
use super::history::{Answer, Request};
use super::leader::{Fate, Leader, Published};
use super::network::{Address, Demand, Happening, Input, MS, Outside, Timer};
use super::{Bug, KEYS, OpId};
use crate::cluster::election::Election;
use crate::cluster::rows;
use crate::cluster::takeover::Takeover;

/// A look under way, and the reads that wait for it.
struct Look {
    call: u64,
    reads: Vec<OpId>,
    /// The epoch in which this member led when it began.
    led: Option<u64>,
}

enum Duty {
    /// Does not know yet where the store stands.
    Starting,
    Follow,
    TakeOver {
        takeover: Takeover,
        call: u64,
    },
    /// Has begun the epoch of this head, and looks at what there is up to it, as soon as no other look is under way.
    CatchUp {
        head: Head,
        call: Option<u64>,
    },
    Lead(Box<Leader>),
}

/// Who leads in an epoch: a process, 0 for nobody.
#[derive(Clone, Copy, Default)]
struct Known {
    epoch: u64,
    process: u64,
}

/// Letting go, after the last batch.
enum LetGo {
    Look { call: u64, epoch: u64, successor: u64 },
    Commit { takeover: Takeover, call: u64 },
}

/// A process of a member.
pub(super) struct Member {
    me: Address,
    clock: Clock,
    ttl: Duration,
    election: Election,
    published: Published,
    /// The newest epoch published from.
    epoch: u64,
    /// The newest epoch of which it knows who leads.
    known: Known,
    /// Tells this process from all others.
    process: u64,
    duty: Duty,
    let_go: Option<LetGo>,
    fates: Vec<Fate>,
    look: Option<Look>,
    /// Looks so far.
    looks: u64,
    /// Reads that wait for the next look.
    waiting: Vec<OpId>,
    /// Reads that wait until a revision is published here which a look has shown.
    behind: Vec<(i64, OpId)>,
    /// What is known is too old to take over.
    must_look: bool,
    /// What a leader's cache held, for one that breaks the rules.
    kept: [Option<Row>; KEYS],
    /// It can't go on.
    pub(super) has_failed: bool,
}

/// A member's id.
fn id(member: usize) -> u64 {
    member as u64 + 1
}

impl Member {
    pub(super) fn start(me: Address, clock: Clock, ttl: Duration, outside: &mut Outside) -> Self {
        let patience = ttl / 16 * (me.member as u32 * 3 % 8) / 4;
        let mut member = Self {
            me,
            clock,
            ttl,
            election: Election::new(ttl, patience),
            published: Published::default(),
            epoch: 0,
            known: Known::default(),
            process: outside.random.next() | 1,
            duty: Duty::Starting,
            let_go: None,
            fates: Vec::new(),
            look: None,
            looks: 0,
            waiting: Vec::new(),
            behind: Vec::new(),
            must_look: true,
            kept: [None; KEYS],
            has_failed: false,
        };
        member.look(outside);
        member
    }

    pub(super) fn clock(&mut self) -> &mut Clock {
        &mut self.clock
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The newest revision that it shows its clients.
    pub(super) fn published(&self) -> i64 {
        self.published.revision
    }

    pub(super) fn is_leading(&self) -> bool {
        matches!(self.duty, Duty::Lead(_))
    }

    fn now(&self, outside: &Outside) -> Duration {
        self.clock.read(outside.now)
    }

    fn set_timer(&self, after: Duration, timer: Timer, outside: &mut Outside) {
        let at = outside.now + self.clock.stretch(after);
        outside.schedule(at, Happening::Input(self.me, Input::Timer(timer)));
    }

    pub(super) fn take(&mut self, input: Input, outside: &mut Outside) {
        match input {
            Input::Timer(Timer::Look(looks)) if looks == self.looks => self.look(outside),
            Input::Timer(Timer::Turn) => self.turn(outside),
            Input::Timer(Timer::Follow) => self.follow(outside),
            Input::Timer(Timer::Renew(epoch)) => self.renew(epoch, outside),
            Input::Timer(Timer::Again(call)) => self.again(call, outside),
            Input::Timer(Timer::Answer(id)) => self.answer_read(id, outside),
            Input::Timer(Timer::Look(_)) => {}
            Input::Request(id) => self.request(id, outside),
            Input::HandOver { successor } => {
                if let Duty::Lead(leader) = &mut self.duty {
                    leader.successor = Some(successor);
                }
            }
            Input::Gone { epoch } => {
                let Known { epoch: known, process } = self.known;
                if known == epoch && process != 0 && process != self.process {
                    self.election.leader_is_gone(epoch);
                    self.turn(outside);
                }
            }
            Input::Viewed { call, view } => self.viewed(call, view.as_deref(), outside),
            Input::Committed { call, result } => self.committed(call, result, outside),
        }
        self.finish(outside);
    }

    fn request(&mut self, id: OpId, outside: &mut Outside) {
        if !matches!(outside.history.request(id), Request::Read { .. }) {
            return match &mut self.duty {
                Duty::Lead(leader) => leader.submit(id, outside),
                _ => outside.answer(id, Answer::NotDone),
            };
        }
        match &self.duty {
            Duty::Starting => outside.answer(id, Answer::NotDone),
            Duty::Lead(_) if outside.bug == Some(Bug::ReadsWithoutLook) => self.answer_read(id, outside),
            _ => {
                self.waiting.push(id);
                self.look(outside);
            }
        }
    }

    fn answer_read(&mut self, id: OpId, outside: &mut Outside) {
        let Request::Read { key } = outside.history.request(id) else { unreachable!("only reads wait") };
        let Published { revision, rows } = self.published;
        outside.answer(id, Answer::Read { revision, row: rows[key] });
    }

    /// Looks at the engine, unless a look is under way, or a new leader reads what there is, behind which the next look waits.
    fn look(&mut self, outside: &mut Outside) {
        if self.look.is_some() || matches!(self.duty, Duty::CatchUp { .. }) {
            return;
        }
        let led = if let Duty::Lead(leader) = &self.duty { Some(leader.epoch()) } else { None };
        let after = if matches!(self.duty, Duty::Starting) { i64::MAX } else { self.published.revision };
        let call = outside.ask(self.me, Demand::View { after });
        self.look = Some(Look { call, reads: std::mem::take(&mut self.waiting), led });
    }

    fn viewed(&mut self, call: u64, view: Option<&View>, outside: &mut Outside) {
        if self.look.as_ref().is_some_and(|look| look.call == call) {
            return self.landed(view, outside);
        }
        if let Some(at) = self.fates.iter().position(|fate| fate.call == call) {
            return self.fates.swap_remove(at).settle(view, outside);
        }
        match &mut self.duty {
            Duty::CatchUp { head, call: wanted } if *wanted == Some(call) => {
                let head = *head;
                match view {
                    Some(view) => self.lead(head, view, outside),
                    None => self.stay_behind("the engine can't be read", outside),
                }
            }
            Duty::Lead(leader) => {
                if let Some(end) = leader.viewed(call, view, outside) {
                    self.end_reign(end, outside);
                }
            }
            _ => {}
        }
        self.viewed_before_letting_go(call, view, outside);
    }

    /// Takes what a look of this member shows.
    fn landed(&mut self, view: Option<&View>, outside: &mut Outside) {
        let Some(Look { reads, led, .. }) = self.look.take() else { return };
        let shown = match view {
            None => {
                self.election.saw_nothing(self.now(outside));
                None
            }
            Some(view) => self.saw(view, led, outside),
        };
        for id in reads {
            match shown {
                // A leader may see in the engine what is not confirmed to it yet, and others may have told of that.
                Some(_) if outside.bug == Some(Bug::ReadsUnconfirmed) => self.behind.push((0, id)),
                Some(revision) => self.behind.push((revision, id)),
                None => outside.answer(id, Answer::NotDone),
            }
        }
        self.must_look = false;
        self.looks += 1;
        let pause = if self.is_leading() { self.ttl } else { self.ttl / 8 };
        self.set_timer(pause, Timer::Look(self.looks), outside);
        self.turn(outside);
    }

    /// Takes note of what a look shows; gives the revision that reads which came before it have to show.
    fn saw(&mut self, view: &View, led: Option<u64>, outside: &mut Outside) -> Option<i64> {
        if matches!(self.duty, Duty::Starting) {
            self.published = Published { revision: view.head.revision, rows: view.rows };
            self.duty = Duty::Follow;
        }
        if let Err(lost) = self.election.saw(view.head, self.now(outside)) {
            self.fail(&lost.to_string(), outside);
            return None;
        }
        if led.is_none() {
            let is_new = self.epoch < view.head.epoch;
            self.publish(view, outside);
            self.epoch = self.epoch.max(view.head.epoch);
            if is_new && let Ok(leadership) = rows::leadership(view, view.head.epoch) {
                if leadership.leader.is_none() {
                    let to_other = leadership.successor != 0 && leadership.successor != id(self.me.member);
                    self.election.leader_let_go(view.head.epoch, to_other);
                }
                self.know(leadership.epoch, leadership.process);
            }
        }
        led.is_none_or(|epoch| epoch == view.head.epoch).then_some(view.head.revision)
    }

    fn know(&mut self, epoch: u64, process: u64) {
        if self.known.epoch < epoch {
            self.known = Known { epoch, process };
        }
    }

    fn publish(&mut self, view: &View, outside: &mut Outside) {
        for event in &view.events {
            self.published.publish(*event, outside);
        }
        if self.published.revision != view.head.revision {
            let (head, published) = (view.head, self.published.revision);
            outside.history.fail(format!("a member is at revision {published} where the head is {head:?}"));
        }
    }

    /// The engine is said to have lost what it had confirmed, which it never does.
    fn fail(&mut self, why: &str, outside: &mut Outside) {
        outside.trace(|| format!("{} fails: {why}", self.me.member));
        // Whoever breaks these rules has cause; what clients were told is what counts then.
        if !matches!(outside.bug, Some(Bug::SeenIsApplied | Bug::ShowsUnsynced)) {
            outside.history.fail(format!("member {} says, without cause: {why}", self.me.member));
        }
        self.has_failed = true;
    }

    /// What is due after each input.
    fn finish(&mut self, outside: &mut Outside) {
        self.let_go_if_done(outside);
        if let Duty::CatchUp { call: call @ None, .. } = &mut self.duty
            && self.look.is_none()
        {
            *call = Some(outside.ask(self.me, Demand::View { after: self.published.revision }));
        }
        if !self.waiting.is_empty() {
            self.look(outside);
        }
        while let Some(at) = self.behind.iter().position(|(revision, _)| *revision <= self.published.revision) {
            let (_, id) = self.behind.swap_remove(at);
            let pause = Duration::from_micros(outside.random.below(2 * MS));
            self.set_timer(pause, Timer::Answer(id), outside);
        }
    }
}
