//! Makes an engine fail as one behind a network does.
//!
//! Invariant: what a commit returns is true by the contract of [`CommitError`]: `NotApplied` was not and will not be applied, `Unknown`
//! may have been or may be, `Ok` is. Only [`super::Memory::roll_back`] breaks a promise.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use parking_lot::Mutex;

use crate::{Batch, Cause, CommitError, Engine, EngineError, Limits, Size, Snapshot, Table};

/// What happens to one commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: the engine's own answer.
    None,
    /// Refused before it reaches the engine: `NotApplied` with this cause.
    Refuse(Cause),
    /// The request is lost: `Unknown`, and never applied.
    LoseRequest,
    /// The reply is lost: `Unknown`, whatever the engine answered.
    LoseReply,
    /// `Unknown`, and the request reaches the engine right before the given later commit does (1 is the next one), or when
    /// [`Faulty::deliver_postponed`] is called. If the head has moved by then, the engine fences it.
    Postpone {
        /// How many commits later.
        commits: u32,
    },
    /// The engine's own answer, and the same request reaches the engine once more, like a postponed one.
    Duplicate {
        /// How many commits later.
        commits: u32,
    },
    /// The engine's own answer, but later.
    Delay(Duration),
    /// Applied if the fence matches, but the caller's process can't go on: `Fatal`.
    Die(Cause),
    /// The engine's code panics instead of answering; not applied.
    Panic,
}

/// What became of a postponed or duplicated request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The request.
    pub batch: Batch,
    /// The engine's answer, which its sender never saw.
    pub answer: Result<(), CommitError>,
}

/// An engine with faults: first those of the script, then those drawn at random, if a seed was given.
pub struct Faulty<E> {
    inner: E,
    plan: Mutex<Plan>,
}

struct Plan {
    script: VecDeque<Fault>,
    random: Option<Random>,
    postponed: Vec<(u32, Batch)>,
    deliveries: Vec<Delivery>,
}

struct Random {
    state: u64,
    percent: u8,
}

impl Random {
    /// xorshift64*: small, and the same on every machine.
    fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn fault(&mut self) -> Fault {
        if (self.next() >> 32) % 100 >= u64::from(self.percent) {
            return Fault::None;
        }
        let detail = self.next() >> 32;
        let commits = (detail / 8 % 4) as u32 + 1;
        match detail % 8 {
            0 => Fault::Refuse(Cause::Unavailable("simulated: refused".into())),
            1 | 2 => Fault::LoseRequest,
            3 | 4 => Fault::LoseReply,
            5 => Fault::Postpone { commits },
            6 => Fault::Duplicate { commits },
            _ => Fault::Delay(Duration::from_millis(detail / 8 % 5)),
        }
    }
}

impl<E: Engine> Faulty<E> {
    /// No faults until some are scripted.
    pub fn new(inner: E) -> Self {
        let plan = Plan { script: VecDeque::new(), random: None, postponed: Vec::new(), deliveries: Vec::new() };
        Self { inner, plan: Mutex::new(plan) }
    }

    /// Random faults in `percent` of the commits; the same seed draws the same faults. Never [`Fault::Die`] or [`Fault::Panic`].
    pub fn seeded(inner: E, seed: u64, percent: u8) -> Self {
        let faulty = Self::new(inner);
        // A state of zero would stay zero.
        faulty.plan.lock().random = Some(Random { state: seed | 1 << 63, percent });
        faulty
    }

    /// Appends faults for the next commits, one each.
    pub fn script(&self, faults: impl IntoIterator<Item = Fault>) {
        self.plan.lock().script.extend(faults);
    }

    /// Ends the random faults; postponed requests stay.
    pub fn calm(&self) {
        self.plan.lock().random = None;
    }

    /// Lets every postponed request reach the engine now, in the order of sending.
    pub fn deliver_postponed(&self) {
        let mut plan = self.plan.lock();
        let due = std::mem::take(&mut plan.postponed);
        self.deliver(&mut plan, due.into_iter().map(|(_, batch)| batch));
    }

    /// What became of the postponed requests so far, in the order of arrival.
    pub fn deliveries(&self) -> Vec<Delivery> {
        self.plan.lock().deliveries.clone()
    }

    /// The engine itself, without faults.
    pub fn inner(&self) -> &E {
        &self.inner
    }

    fn deliver(&self, plan: &mut Plan, batches: impl Iterator<Item = Batch>) {
        for batch in batches {
            let answer = self.inner.commit(&batch);
            plan.deliveries.push(Delivery { batch, answer });
        }
    }

    /// Lets what is due arrive, and names the fault of this commit.
    fn begin_commit(&self) -> Fault {
        let mut plan = self.plan.lock();
        let mut due = Vec::new();
        let mut later = Vec::new();
        for (commits, batch) in plan.postponed.drain(..) {
            match commits {
                0 | 1 => due.push(batch),
                _ => later.push((commits - 1, batch)),
            }
        }
        plan.postponed = later;
        self.deliver(&mut plan, due.into_iter());
        match plan.script.pop_front() {
            Some(fault) => fault,
            None => plan.random.as_mut().map_or(Fault::None, Random::fault),
        }
    }

    fn postpone(&self, commits: u32, batch: &Batch) {
        self.plan.lock().postponed.push((commits, batch.clone()));
    }
}

fn unknown(text: &str) -> CommitError {
    CommitError::Unknown(Cause::Unavailable(format!("simulated: {text}")))
}

impl<E: Engine> Engine for Faulty<E> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn snapshot(&self) -> Result<Box<dyn Snapshot + '_>, EngineError> {
        self.inner.snapshot()
    }

    fn snapshot_with(&self, wanted: &[(Table, &[u8])]) -> Result<Box<dyn Snapshot + '_>, EngineError> {
        self.inner.snapshot_with(wanted)
    }

    fn commit(&self, batch: &Batch) -> Result<(), CommitError> {
        match self.begin_commit() {
            Fault::None => self.inner.commit(batch),
            Fault::Refuse(cause) => Err(CommitError::NotApplied(cause)),
            Fault::LoseRequest => Err(unknown("the request was lost")),
            Fault::LoseReply => {
                // Whether it was applied is what the caller does not learn.
                let _ = self.inner.commit(batch);
                Err(unknown("the reply was lost"))
            }
            Fault::Postpone { commits } => {
                self.postpone(commits, batch);
                Err(unknown("the request is late"))
            }
            Fault::Duplicate { commits } => {
                let answer = self.inner.commit(batch);
                self.postpone(commits, batch);
                answer
            }
            Fault::Delay(delay) => {
                std::thread::sleep(delay);
                self.inner.commit(batch)
            }
            Fault::Die(cause) => {
                let _ = self.inner.commit(batch);
                Err(CommitError::Fatal(cause))
            }
            Fault::Panic => panic!("simulated: the engine panics"),
        }
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn size(&self) -> Result<Size, EngineError> {
        self.inner.size()
    }

    fn backup(&self, target: &Path) -> Result<(), EngineError> {
        self.inner.backup(target)
    }

    fn reads_may_wait(&self) -> bool {
        self.inner.reads_may_wait()
    }
}
