//! What lies between the members and the engine: virtual time, the messages under way, and what happens to them.
//!
//! Invariant: a request that the network calls refused never reaches the engine; any other may, at any time and twice, whatever its
//! sender was told.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use kubewharf_engine::{Batch, Cause, CommitError};

use super::engine::{Engine, View};
use super::history::{Answer, History};
use super::random::Random;
use super::{Bug, OpId};

pub(super) const MS: u64 = 1000;
pub(super) const SECOND: u64 = 1000 * MS;

/// A process: a member from one start to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) member: usize,
    /// Counts its starts; `None` for whichever is there.
    pub(super) start: Option<u32>,
}

/// What a process takes, one at a time.
#[derive(Debug)]
pub(super) enum Input {
    /// What became of a commit.
    Committed {
        call: u64,
        result: Result<(), CommitError>,
    },
    /// What a look shows; `None` if it has failed.
    Viewed {
        call: u64,
        view: Option<Box<View>>,
    },
    Timer(Timer),
    /// A client's.
    Request(OpId),
    /// The operator wants another leader.
    HandOver {
        successor: u64,
    },
    /// A member's process that led in this epoch seems to be gone.
    Gone {
        epoch: u64,
    },
}

/// What a process has set itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timer {
    /// To look at the engine, unless there was a look since.
    Look(u64),
    /// To see whether it is its turn to lead.
    Turn,
    /// To look anew whether it is.
    Follow,
    /// To show that it leads, in this epoch.
    Renew(u64),
    /// To commit again what was committed in this call.
    Again(u64),
    /// To answer a read.
    Answer(OpId),
}

/// What is asked of the engine.
#[derive(Debug)]
pub(super) enum Demand {
    Commit(Arc<Batch>),
    /// A look, with the log behind this revision.
    View {
        after: i64,
    },
}

/// What happens next.
#[derive(Debug)]
pub(super) enum Happening {
    /// A request reaches the engine.
    Arrival {
        from: Address,
        call: u64,
        deadline: u64,
        demand: Demand,
    },
    /// A process gets something to do.
    Input(Address, Input),
    /// A client asks the next question.
    Think(usize),
    /// A client waits no longer.
    GiveUp(usize, OpId),
    Restart(usize),
    /// Something bad.
    Calamity,
}

struct Scheduled {
    at: u64,
    order: u64,
    what: Happening,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        Reverse((self.at, self.order)).cmp(&Reverse((other.at, other.order)))
    }
}

/// How bad the network is, in thousandths of the messages; times in microseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    pub(super) lost: u64,
    pub(super) refused: u64,
    pub(super) doubled: u64,
    pub(super) slow: u64,
    /// How long a caller waits for the engine's answer.
    pub(super) patience: u64,
}

/// Everything outside of the members.
pub(super) struct Outside {
    pub(super) now: u64,
    pub(super) random: Random,
    pub(super) engine: Engine,
    pub(super) history: History,
    pub(super) weather: Weather,
    pub(super) bug: Option<Bug>,
    /// Until when the engine can't be reached.
    pub(super) outage_until: u64,
    /// Whether an engine may lose commits that it has not confirmed.
    pub(super) is_volatile: bool,
    /// When it has them safe in any case.
    safe_at: u64,
    /// Whether the faults have ended.
    pub(super) is_calm: bool,
    /// Whether to print what happens.
    pub(super) is_traced: bool,
    /// Requests answered since the clients were told.
    pub(super) answered: Vec<OpId>,
    queue: BinaryHeap<Scheduled>,
    order: u64,
    calls: u64,
}

impl Outside {
    pub(super) fn new(random: Random, weather: Weather, bug: Option<Bug>, is_volatile: bool, is_traced: bool) -> Self {
        Self {
            now: 0,
            random,
            engine: Engine::new(bug),
            history: History::default(),
            weather,
            bug,
            outage_until: 0,
            is_volatile,
            safe_at: 0,
            is_calm: false,
            is_traced,
            answered: Vec::new(),
            queue: BinaryHeap::new(),
            order: 0,
            calls: 0,
        }
    }

    pub(super) fn schedule(&mut self, at: u64, what: Happening) {
        self.order += 1;
        self.queue.push(Scheduled { at, order: self.order, what });
    }

    /// Goes on to what happens next.
    pub(super) fn next(&mut self) -> Option<Happening> {
        let Scheduled { at, what, .. } = self.queue.pop()?;
        self.now = at;
        Some(what)
    }

    pub(super) fn trace(&self, text: impl FnOnce() -> String) {
        if self.is_traced {
            eprintln!("{:>12} {}", self.now, text());
        }
    }

    pub(super) fn answer(&mut self, id: OpId, answer: Answer) {
        self.trace(|| format!("request {id} {:?} is answered {answer:?}", self.history.request(id)));
        self.history.answer(id, answer, &self.engine);
        self.answered.push(id);
    }

    /// Asks the engine; gives the number of the call, under which the answer comes.
    pub(super) fn ask(&mut self, from: Address, demand: Demand) -> u64 {
        self.calls += 1;
        let call = self.calls;
        let deadline = self.now + self.weather.patience;
        let is_commit = matches!(demand, Demand::Commit(_));
        let is_out = self.now < self.outage_until;
        if is_commit && self.happens(if is_out { 500 } else { self.weather.refused }) {
            let cause = Cause::Unavailable("refused".to_owned());
            let input = Input::Committed { call, result: Err(CommitError::NotApplied(cause)) };
            let at = deadline.min(self.now + self.delay());
            self.schedule(at, Happening::Input(from, input));
        } else if is_out || self.happens(self.weather.lost) {
            self.time_out(from, call, deadline, is_commit);
        } else {
            let at = self.now + self.delay();
            if let Demand::Commit(batch) = &demand
                && self.happens(self.weather.doubled)
            {
                let twin = Demand::Commit(batch.clone());
                let late = at + self.random.magnitude(MS, 120 * SECOND);
                self.schedule(late, Happening::Arrival { from, call: 0, deadline: 0, demand: twin });
            }
            if at > deadline {
                // The caller gives up before that.
                self.time_out(from, call, deadline, is_commit);
                self.schedule(at, Happening::Arrival { from, call: 0, deadline: 0, demand });
            } else {
                self.schedule(at, Happening::Arrival { from, call, deadline, demand });
            }
        }
        call
    }

    /// A request reaches the engine. The caller of call 0 does not wait for it any more.
    pub(super) fn arrive(&mut self, from: Address, call: u64, deadline: u64, demand: Demand) {
        let is_commit = matches!(demand, Demand::Commit(_));
        let reply_at = self.now + self.delay();
        let is_replied = call != 0 && reply_at <= deadline && !self.happens(self.weather.lost);
        if self.now < self.outage_until {
            if call != 0 {
                self.time_out(from, call, deadline, is_commit);
            }
            return;
        }
        if self.is_volatile {
            if self.now >= self.safe_at {
                self.engine.sync();
            }
            if !self.engine.may_lose() {
                self.safe_at = self.now + self.random.magnitude(10 * MS, 10 * SECOND);
            }
        }
        let input = match demand {
            Demand::Commit(batch) => {
                let loosely = self.is_volatile && !is_replied && self.random.chance(800);
                let result = self.engine.commit(&batch, loosely);
                Input::Committed { call, result }
            }
            Demand::View { after } => Input::Viewed { call, view: Some(Box::new(self.engine.view(after))) },
        };
        if is_replied {
            self.schedule(reply_at, Happening::Input(from, input));
        } else if call != 0 {
            self.time_out(from, call, deadline, is_commit);
        }
    }

    fn time_out(&mut self, from: Address, call: u64, deadline: u64, is_commit: bool) {
        let input = if is_commit {
            let cause = Cause::Unavailable("no answer".to_owned());
            Input::Committed { call, result: Err(CommitError::Unknown(cause)) }
        } else {
            Input::Viewed { call, view: None }
        };
        // Some connections break at once.
        let at = if self.random.chance(300) { self.now + self.delay() } else { deadline };
        self.schedule(at.clamp(self.now, deadline.max(self.now)), Happening::Input(from, input));
    }

    /// Whether a fault happens.
    fn happens(&mut self, per_mille: u64) -> bool {
        !self.is_calm && self.random.chance(per_mille)
    }

    /// How long a message is under way.
    pub(super) fn delay(&mut self) -> u64 {
        if self.happens(self.weather.slow) {
            self.random.magnitude(5 * MS, 180 * SECOND)
        } else {
            self.random.between(100, 2 * MS)
        }
    }
}
