//! The clients of the cluster.
//!
//! Job: a few clients, each with connections of its own, so that the pages of large scans are not in the way of commits. One that fails again and
//! again is replaced: the library does not notice by itself that a PD stands still.
//!
//! Invariant: a cluster that can't be reached is tried by one caller a client at a time, and not more often than the back-off allows, however
//! many wait. Nobody waits beyond a deadline.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use kubewharf_engine::Cause;
use parking_lot::Mutex;
use tikv_client::{Config, Error, TransactionClient};
use tokio::time::{Instant, sleep, timeout_at};

use crate::outcome;
use crate::url::Target;

/// How long one attempt at anything may take, where there can be another.
pub(crate) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);
pub(crate) const PAUSE_MIN: Duration = Duration::from_millis(10);
pub(crate) const PAUSE_MAX: Duration = Duration::from_millis(500);

/// A single request of the library's; it repeats those that have no answer, and its own back-off comes on top.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// A page of the largest rows; see the pages of scans.
const RESPONSE_BYTES_MAX: usize = 256 << 20;
/// Failures in a row that make a client be replaced.
const FAILURES_MAX: u32 = 3;

/// What a client is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Commits, and views that others wait for.
    Urgent,
    /// Views of clients.
    Views,
}

/// The clients.
pub(crate) struct Clients {
    target: Target,
    /// The first is for what is urgent.
    slots: Vec<Slot>,
    turn: AtomicUsize,
    /// Attempts to connect, each of which asks another PD.
    attempts: AtomicUsize,
}

#[derive(Default)]
struct Slot {
    current: Mutex<Current>,
    failures: AtomicU32,
    /// Held by the one caller who connects.
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Current {
    client: Option<TransactionClient>,
    generation: u64,
}

/// A client on loan.
pub(crate) struct Loan<'c> {
    pub(crate) client: TransactionClient,
    slot: &'c Slot,
    generation: u64,
}

impl Loan<'_> {
    pub(crate) fn succeeded(&self) {
        self.slot.failures.store(0, Ordering::Relaxed);
    }

    pub(crate) fn failed(&self) {
        if self.slot.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES_MAX {
            self.slot.renew(Some(self.generation));
        }
    }
}

impl Slot {
    fn current(&self) -> Option<(TransactionClient, u64)> {
        let current = self.current.lock();
        current.client.clone().map(|client| (client, current.generation))
    }

    /// Gives the client up, if it is still that one.
    fn renew(&self, generation: Option<u64>) {
        let mut current = self.current.lock();
        if generation.is_none_or(|generation| generation == current.generation) {
            current.generation += 1;
            self.failures.store(0, Ordering::Relaxed);
            let client = current.client.take();
            drop(current);
            drop(client);
        }
    }
}

impl Clients {
    pub(crate) fn new(target: Target, for_views: usize) -> Self {
        let slots = (0..=for_views.max(1)).map(|_| Slot::default()).collect();
        Self { target, slots, turn: AtomicUsize::new(0), attempts: AtomicUsize::new(0) }
    }

    /// Replaces all clients when they are next used.
    pub(crate) fn renew(&self) {
        for slot in &self.slots {
            slot.renew(None);
        }
    }

    /// A client, connected.
    pub(crate) async fn take(&self, what_for: Use, deadline: Instant) -> Result<Loan<'_>, Cause> {
        let slot = match what_for {
            Use::Urgent => &self.slots[0],
            Use::Views => &self.slots[1 + self.turn.fetch_add(1, Ordering::Relaxed) % (self.slots.len() - 1)],
        };
        if let Some((client, generation)) = slot.current() {
            return Ok(Loan { client, slot, generation });
        }
        let mut last = "others wait for it already".to_owned();
        let late = |last: &str| Cause::Unavailable(format!("TiKV can't be reached: {last}"));
        let Ok(_connecting) = timeout_at(deadline, slot.connecting.lock()).await else { return Err(late(&last)) };
        let mut pause = PAUSE_MIN;
        loop {
            if let Some((client, generation)) = slot.current() {
                return Ok(Loan { client, slot, generation });
            }
            let attempt_deadline = deadline.min(Instant::now() + ATTEMPT_TIMEOUT);
            match timeout_at(attempt_deadline, self.connect()).await {
                Ok(Ok(client)) => {
                    slot.current.lock().client = Some(client);
                    slot.failures.store(0, Ordering::Relaxed);
                    continue;
                }
                Ok(Err(error @ Error::KeyspaceNotFound(_))) => {
                    return Err(Cause::Io(format!("TiKV: {}", outcome::describe(&error))));
                }
                Ok(Err(error)) => last = outcome::describe(&error),
                Err(_) => last = format!("no PD answers within {ATTEMPT_TIMEOUT:?}"),
            }
            if Instant::now() + pause >= deadline {
                return Err(late(&last));
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn connect(&self) -> Result<TransactionClient, Error> {
        let mut config =
            Config::default().with_timeout(REQUEST_TIMEOUT).with_grpc_max_decoding_message_size(RESPONSE_BYTES_MAX);
        if let Some(tls) = &self.target.tls {
            config = config.with_security(&tls.ca, &tls.cert, &tls.key);
        }
        if let Some(keyspace) = &self.target.keyspace {
            config = config.with_keyspace(keyspace);
        }
        // One at a time: the library asks all that it is given, and waits for one that stands still. It learns the others from the one.
        let endpoints = &self.target.endpoints;
        let endpoint = &endpoints[self.attempts.fetch_add(1, Ordering::Relaxed) % endpoints.len()];
        TransactionClient::new_with_config(vec![endpoint.as_str()], config).await
    }

    /// Asks until there is an answer or the deadline has come. For what changes nothing.
    pub(crate) async fn ask<T, F>(
        &self,
        what_for: Use,
        deadline: Instant,
        question: impl Fn(TransactionClient) -> F + Send,
    ) -> Result<T, Cause>
    where
        F: Future<Output = Result<T, Error>> + Send,
    {
        let mut pause = PAUSE_MIN;
        loop {
            let loan = self.take(what_for, deadline).await?;
            let attempt_deadline = deadline.min(Instant::now() + ATTEMPT_TIMEOUT);
            let failure = match timeout_at(attempt_deadline, question(loan.client.clone())).await {
                Ok(Ok(answer)) => {
                    loan.succeeded();
                    return Ok(answer);
                }
                Ok(Err(error)) => outcome::cause(&error),
                Err(_) => no_answer(),
            };
            loan.failed();
            if Instant::now() + pause >= deadline {
                return Err(failure);
            }
            tracing::debug!(%failure, "TiKV is asked again");
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

pub(crate) fn no_answer() -> Cause {
    Cause::Unavailable("TiKV: no answer in time".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_cluster_that_is_not_there_is_tried_until_the_deadline_and_not_all_the_time() {
        // A port that nobody listens on: it is bound, but not listened at.
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let target = Target::parse(&format!("127.0.0.1:{}", socket.local_addr().unwrap().port())).unwrap();
        let clients = Clients::new(target, 2);
        let begun = Instant::now();
        for within in [300, 100] {
            let deadline = Instant::now() + Duration::from_millis(within);
            let error = clients.take(Use::Urgent, deadline).await.map(|_| ()).unwrap_err();
            assert!(error.to_string().contains("can't be reached"), "{error}");
        }
        assert!(begun.elapsed() < Duration::from_secs(5));
        let attempts = clients.attempts.load(Ordering::Relaxed);
        assert!((2..20).contains(&attempts), "it was tried {attempts} times");
    }
}
