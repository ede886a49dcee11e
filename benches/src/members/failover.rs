//! What happens to leaders, and for how long nothing is acknowledged then.
//!
//! At every member a write begins again and again, whatever became of those before, as a cluster's clients ask: one that waits for a
//! lost answer keeps no other from being tried. Each makes an object of its own, so that an unknown end harms none that comes later.
//!
//! Invariant: a gap ends with a write that was acknowledged. Where none was until the next fault, the gap lasts until then.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kubewharf_etcd_api::Method;
use kubewharf_testkit::members::Members;
use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::options::Options;
use crate::brain::keys::{Objects, Shape};
use crate::brain::requests::{check_txn, create};
use crate::client::Connection;

/// How long a killed leader stays away.
const AWAY: Duration = Duration::from_secs(1);
/// How long all members must have served before the next fault.
const CALM: Duration = Duration::from_secs(1);
const CALM_WITHIN: Duration = Duration::from_secs(120);
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Writes that each member must have acknowledged in that time.
const CALM_WRITES_MIN: usize = 20;
/// No client waits longer for an answer.
const ATTEMPT_WITHIN: Duration = Duration::from_secs(10);
/// Writes in flight at a member.
const IN_FLIGHT_MAX: usize = 1000;
/// Objects that are counted as those of one resource, for the form of their keys.
const OBJECTS: u64 = 100_000;

/// What happens to a leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// Nothing, for comparison.
    Nothing,
    /// Its process is killed.
    Kill,
    /// Its process stands still for a while.
    Pause,
    /// It is told to stop.
    HandOver,
}

impl Fault {
    /// All.
    pub const ALL: [Self; 4] = [Self::Nothing, Self::Kill, Self::Pause, Self::HandOver];

    /// What the tables call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Kill => "the leader is killed",
            Self::Pause => "the leader is paused",
            Self::HandOver => "the leader is told to stop",
        }
    }

    /// Lets it happen, and repairs it; says when it began.
    fn happen(self, members: &mut Members, pause: Duration) -> Result<Instant> {
        let leader = members.leader();
        let began = Instant::now();
        match self {
            Self::Nothing => std::thread::sleep(AWAY),
            Self::Kill => {
                members.process(leader).kill();
                std::thread::sleep(AWAY);
                members.start_again(leader)?;
            }
            Self::Pause => {
                members.process(leader).pause();
                std::thread::sleep(pause);
                members.process(leader).resume();
            }
            Self::HandOver => {
                members.stop(leader);
                members.start_again(leader)?;
            }
        }
        Ok(began)
    }
}

/// Lets the faults happen one after the other under load; gives for each how long nothing was acknowledged.
///
/// # Errors
/// When the members do not come back.
pub async fn run(mut members: Members, faults: &[Fault], options: &Options) -> Result<Vec<(Fault, Duration)>> {
    let pause = Duration::from_millis(options.pause_ms);
    let load = Load::start(&members.addresses(), options);
    let mut begun = Vec::new();
    load.calm().await?;
    for &fault in faults {
        // On a thread of its own: the load goes on meanwhile.
        let happening = tokio::task::spawn_blocking(move || {
            let began = fault.happen(&mut members, pause);
            (members, began)
        });
        let (back, began) = happening.await?;
        members = back;
        begun.push(began.with_context(|| format!("when {}", fault.label()))?);
        load.calm().await.with_context(|| format!("after {}", fault.label()))?;
    }
    let end = Instant::now();
    let acknowledged = load.stop();
    let ends = begun.iter().skip(1).copied().chain([end]);
    let gaps = begun.iter().zip(ends).map(|(from, until)| longest_gap(&acknowledged, *from, until));
    Ok(faults.iter().copied().zip(gaps).collect())
}

/// The longest time without an acknowledgement that ends behind `from`, or at `until`. The acknowledgements are in order.
fn longest_gap(acknowledged: &[Instant], from: Instant, until: Instant) -> Duration {
    let first = acknowledged.partition_point(|at| *at < from);
    let behind = acknowledged.partition_point(|at| *at < until);
    let mut last = first.checked_sub(1).map_or(from, |before| acknowledged[before]);
    let mut longest = Duration::ZERO;
    for at in acknowledged[first..behind].iter().copied().chain([until]) {
        longest = longest.max(at - last);
        last = at;
    }
    longest
}

/// The writes at all members.
struct Load {
    writers: Vec<Rc<Writer>>,
}

/// The writes at one.
struct Writer {
    address: SocketAddr,
    shape: Shape,
    /// Numbers of objects: the next, and what the next but one is further on.
    next: Cell<u64>,
    step: u64,
    connection: RefCell<Option<Rc<Connection>>>,
    in_flight: Cell<usize>,
    acknowledged: RefCell<Vec<Instant>>,
    last_error: RefCell<Option<String>>,
    stopped: Cell<bool>,
}

impl Load {
    fn start(addresses: &[SocketAddr], options: &Options) -> Self {
        let objects = Objects::new(OBJECTS, options.key_bytes, options.value_bytes);
        let every = Duration::from_millis(options.write_interval_ms);
        let writer = |(first, address): (usize, &SocketAddr)| {
            Rc::new(Writer {
                address: *address,
                shape: objects.shape().clone(),
                next: Cell::new(first as u64),
                step: addresses.len() as u64,
                connection: RefCell::default(),
                in_flight: Cell::default(),
                acknowledged: RefCell::default(),
                last_error: RefCell::default(),
                stopped: Cell::default(),
            })
        };
        let writers: Vec<_> = addresses.iter().enumerate().map(writer).collect();
        for writer in &writers {
            tokio::task::spawn_local(writer.clone().run(every));
        }
        Self { writers }
    }

    /// Waits until every member has acknowledged writes for a while.
    async fn calm(&self) -> Result<()> {
        let count = |writer: &Rc<Writer>| writer.acknowledged.borrow().len();
        let deadline = Instant::now() + CALM_WITHIN;
        let before: Vec<usize> = self.writers.iter().map(count).collect();
        sleep(CALM).await;
        for (writer, before) in self.writers.iter().zip(before) {
            while count(writer) < before + CALM_WRITES_MIN {
                let (address, error) = (writer.address, writer.last_error.borrow().clone().unwrap_or_default());
                ensure!(Instant::now() < deadline, "{address} acknowledges nothing any more: {error}");
                sleep(POLL_INTERVAL).await;
            }
        }
        Ok(())
    }

    /// Ends it; gives the times of all acknowledgements, in order.
    fn stop(self) -> Vec<Instant> {
        let mut acknowledged = Vec::new();
        for writer in &self.writers {
            writer.stopped.set(true);
            acknowledged.append(&mut writer.acknowledged.borrow_mut());
        }
        acknowledged.sort_unstable();
        acknowledged
    }
}

impl Writer {
    async fn run(self: Rc<Self>, every: Duration) {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.stopped.get() {
            ticks.tick().await;
            if self.in_flight.get() < IN_FLIGHT_MAX {
                self.in_flight.set(self.in_flight.get() + 1);
                tokio::task::spawn_local(self.clone().attempt());
            }
        }
    }

    async fn attempt(self: Rc<Self>) {
        match timeout(ATTEMPT_WITHIN, self.write()).await {
            Ok(Ok(())) => self.acknowledged.borrow_mut().push(Instant::now()),
            Ok(Err(error)) => *self.last_error.borrow_mut() = Some(format!("{error:#}")),
            Err(_) => *self.last_error.borrow_mut() = Some(format!("no answer within {ATTEMPT_WITHIN:?}")),
        }
        self.in_flight.set(self.in_flight.get() - 1);
    }

    async fn write(&self) -> Result<()> {
        let number = self.next.get();
        self.next.set(number + self.step);
        let request = create(self.shape.key(number), self.shape.value(number, 0, 0), 0);
        let reply = self.connection().await?.unary(Method::Txn, request).await?;
        check_txn(&reply, 1)?;
        Ok(())
    }

    async fn connection(&self) -> Result<Rc<Connection>> {
        let open = self.connection.borrow().as_ref().filter(|connection| connection.is_open()).cloned();
        if let Some(connection) = open {
            return Ok(connection);
        }
        let connection = Rc::new(Connection::open(self.address).await?);
        *self.connection.borrow_mut() = Some(connection.clone());
        Ok(connection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_spans_the_fault_and_ends_with_the_next_acknowledgement_or_the_next_fault() {
        let zero = Instant::now();
        let at = |ms| zero + Duration::from_millis(ms);
        let gap = |acknowledged: &[u64], from, until| {
            let acknowledged: Vec<Instant> = acknowledged.iter().copied().map(at).collect();
            longest_gap(&acknowledged, at(from), at(until)).as_millis()
        };
        assert_eq!(gap(&[5, 95, 400, 405, 990], 100, 410), 305);
        assert_eq!(gap(&[5, 95, 400, 405, 990], 100, 1000), 585);
        // A gap that was over before the fault is not its own.
        assert_eq!(gap(&[5, 95, 105, 110], 100, 115), 10);
        assert_eq!(gap(&[95], 100, 700), 605);
        assert_eq!(gap(&[], 100, 700), 600);
    }
}
