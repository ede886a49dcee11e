//! What clients have asked and been answered, and whether that is true.
//!
//! Invariant: a request is placed in the order of the log between its invocation and its answer, or the run has failed. The floor of a
//! request is the newest revision of which anybody had been told when it was invoked: it must see at least that.

use super::engine::{Engine, Event, Row};
use super::random::mix;
use super::{KEYS, OpId};

/// What a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Adds itself to the value of a key.
    Append { key: usize },
    /// The same, if the key was last changed at this revision.
    Swap { key: usize, expected: i64 },
    /// Writes without a revision.
    Grant,
    /// Reads a key, linearizably.
    Read { key: usize },
}

/// What it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Written, at this revision.
    Written {
        revision: i64,
    },
    Granted,
    /// Not written: this was found instead of what was expected.
    Found {
        row: Row,
    },
    /// What a key held as of a revision.
    Read {
        revision: i64,
        row: Row,
    },
    /// Certainly not done.
    NotDone,
    /// Nobody knows.
    Unknown,
}

#[derive(Clone, Copy, Debug)]
struct Op {
    request: Request,
    floor: i64,
    answer: Option<Answer>,
}

/// All requests and answers of a run.
#[derive(Default)]
pub(super) struct History {
    ops: Vec<Op>,
    /// The newest revision of which any client was told.
    pub(super) floor: i64,
    /// The newest revision that any member has published.
    published: i64,
    pub(super) counts: Counts,
    /// The first thing that is not true.
    pub(super) violation: Option<String>,
}

/// What was answered how often, and what members did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) written: u64,
    pub(super) granted: u64,
    pub(super) found: u64,
    pub(super) read: u64,
    pub(super) not_done: u64,
    pub(super) unknown: u64,
    pub(super) reigns: u64,
    pub(super) seen: u64,
    pub(super) fates: u64,
    pub(super) given_up: u64,
    pub(super) undone: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: &Self) {
        let Self { written, granted, found, read, not_done, unknown, reigns, seen, fates, given_up, undone } = other;
        self.written += written;
        self.granted += granted;
        self.found += found;
        self.read += read;
        self.not_done += not_done;
        self.unknown += unknown;
        self.reigns += reigns;
        self.seen += seen;
        self.fates += fates;
        self.given_up += given_up;
        self.undone += undone;
    }
}

/// The value that a write leaves, which tells of all writes of the key in order.
pub(super) fn appended(value: u64, id: OpId) -> u64 {
    mix(value ^ (u64::from(id) + 1) << 20)
}

impl History {
    pub(super) fn fail(&mut self, why: String) {
        self.violation.get_or_insert(why);
    }

    pub(super) fn invoke(&mut self, request: Request) -> OpId {
        self.ops.push(Op { request, floor: self.floor, answer: None });
        (self.ops.len() - 1) as OpId
    }

    pub(super) fn request(&self, id: OpId) -> Request {
        self.ops[id as usize].request
    }

    pub(super) fn answered(&self, id: OpId) -> Option<Answer> {
        self.ops[id as usize].answer
    }

    /// Takes note of an answer and checks what can be checked at once.
    pub(super) fn answer(&mut self, id: OpId, answer: Answer, engine: &Engine) {
        let Op { request, floor, answer: earlier } = self.ops[id as usize];
        if let Some(earlier) = earlier {
            return self.fail(format!("request {id} {request:?} was answered {earlier:?} and then {answer:?}"));
        }
        self.ops[id as usize].answer = Some(answer);
        let newest = engine.log().last().map_or(1, |event| event.revision);
        let (told, is_true) = match answer {
            Answer::Written { revision } => {
                self.counts.written += 1;
                (revision, revision > floor && at(engine, revision).is_some_and(|event| event.id == id))
            }
            Answer::Read { revision, row } => {
                self.counts.read += 1;
                let Request::Read { key } = request else { unreachable!("a read is asked for") };
                (revision, revision >= floor && revision <= newest && row == as_of(engine, key, revision))
            }
            Answer::Found { row } => {
                self.counts.found += 1;
                let Request::Swap { key, expected } = request else { unreachable!("a swap is asked for") };
                (row.modified, row.modified != expected && was_so(engine, key, row, floor))
            }
            Answer::Granted => {
                self.counts.granted += 1;
                (0, engine.grants().contains(&id))
            }
            Answer::NotDone => {
                self.counts.not_done += 1;
                (0, true)
            }
            Answer::Unknown => {
                self.counts.unknown += 1;
                (0, true)
            }
        };
        if !is_true {
            self.fail(format!("request {id} {request:?}, invoked at {floor}, is answered {answer:?} at {newest}"));
        }
        self.floor = self.floor.max(told);
    }

    /// A member shows its clients this change, behind `published`.
    pub(super) fn publish(&mut self, published: i64, event: Event, engine: &Engine) {
        if event.revision != published + 1 {
            self.fail(format!("a member at revision {published} publishes {event:?}"));
        }
        if at(engine, event.revision) != Some(&event) {
            self.fail(format!("a member publishes {event:?}, and the log says {:?}", at(engine, event.revision)));
        }
        self.published = self.published.max(event.revision);
    }

    /// The engine has lost something: nobody must have been told of it.
    pub(super) fn check_loss(&mut self, engine: &Engine) {
        let newest = engine.log().last().map_or(1, |event| event.revision);
        if self.floor > newest || self.published > newest {
            let (floor, published) = (self.floor, self.published);
            self.fail(format!("the engine is back at {newest}, clients were told of {floor}, watchers of {published}"));
        }
    }

    /// Compares the whole log with all answers.
    pub(super) fn check(&mut self, engine: &Engine) {
        if let Some(broken) = &engine.broken {
            self.fail(broken.clone());
        }
        let mut times = vec![0_u32; self.ops.len()];
        let mut rows = [Row::default(); KEYS];
        for event in engine.log() {
            times[event.id as usize] += 1;
            let row = &mut rows[event.key];
            let request = self.request(event.id);
            let fits = match request {
                Request::Append { key } => key == event.key,
                Request::Swap { key, expected } => key == event.key && row.modified == expected,
                Request::Grant | Request::Read { .. } => false,
            };
            if !fits || event.value != appended(row.value, event.id) {
                self.fail(format!("{event:?} of {request:?} is written upon {row:?}"));
            }
            *row = Row { modified: event.revision, value: event.value };
        }
        for &id in engine.grants() {
            times[id as usize] += 1;
        }
        for (id, times) in times.into_iter().enumerate() {
            let Op { request, answer, .. } = self.ops[id];
            let is_true = match answer {
                Some(Answer::Written { revision }) => {
                    times == 1 && at(engine, revision).is_some_and(|event| event.id as usize == id)
                }
                Some(Answer::Granted) => times == 1,
                Some(Answer::Unknown) | None => times <= 1,
                Some(Answer::NotDone | Answer::Found { .. } | Answer::Read { .. }) => times == 0,
            };
            if !is_true {
                self.fail(format!("request {id} {request:?}, answered {answer:?}, was carried out {times} times"));
            }
        }
    }
}

fn at(engine: &Engine, revision: i64) -> Option<&Event> {
    engine.log().get(usize::try_from(revision - 2).ok()?)
}

/// What a key held as of a revision.
fn as_of(engine: &Engine, key: usize, revision: i64) -> Row {
    let log = engine.log();
    let last = log[..log.len().min((revision - 1) as usize)].iter().rev().find(|event| event.key == key);
    last.map_or(Row::default(), |event| Row { modified: event.revision, value: event.value })
}

/// Whether a key held this at `floor` or later.
fn was_so(engine: &Engine, key: usize, row: Row, floor: i64) -> bool {
    let newest = engine.log().last().map_or(1, |event| event.revision);
    let wanted = row.modified.max(1);
    let mut later = engine.log().iter().skip((wanted - 1) as usize);
    wanted <= newest
        && as_of(engine, key, wanted) == row
        && later.find(|event| event.key == key).is_none_or(|next| next.revision > floor)
}
