//! Requests at a steady rate, however long the answers take, none of which is sent twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use http::StatusCode;
use tokio::task::{JoinHandle, JoinSet};

use super::client::Connection;
use super::{Mock, Texts};

/// Requests that change nothing, of every kind that is told apart on the way.
const TARGETS: [&str; 5] = [
    "/api/v1/namespaces/team/configmaps/settings",
    "/api/v1/namespaces/team/pods?limit=500",
    "/api/v1/nodes",
    "/version",
    "/apis/apps/v1/namespaces/team/deployments/web/status",
];
/// Time between two looks at how many requests are due.
const TICK: Duration = Duration::from_millis(2);

/// The requests.
pub(crate) struct Requests {
    tally: Arc<Tally>,
    sends: JoinHandle<()>,
}

#[derive(Default)]
struct Tally {
    stops: AtomicBool,
    sent: AtomicU64,
    answered: AtomicU64,
    slowest_us: AtomicU64,
    failures: Texts,
}

/// What became of all requests.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) sent: u64,
    pub(crate) answered: u64,
    /// Those that were not answered with 200 and a whole body.
    pub(crate) failures: BTreeMap<String, u64>,
}

impl Requests {
    /// Begins with so many a second, over so many connections.
    pub(crate) fn start(mock: &Mock, rate: u64, connections: usize) -> Self {
        let tally: Arc<Tally> = Arc::default();
        let connections = mock.runtime.block_on(mock.connector().connect_many(connections));
        let sends = mock.runtime.spawn(send(rate, connections, tally.clone()));
        Self { tally, sends }
    }

    pub(crate) fn sent(&self) -> u64 {
        self.tally.sent.load(SeqCst)
    }

    /// The longest that a request took which ended since this was asked the last time.
    pub(crate) fn slowest_since_asked(&self) -> Duration {
        Duration::from_micros(self.tally.slowest_us.swap(0, SeqCst))
    }

    /// Ends, once all that were sent are answered.
    pub(crate) fn finish(self, mock: &Mock) -> Report {
        self.tally.stops.store(true, SeqCst);
        mock.runtime.block_on(self.sends).expect("no panic");
        let tally = self.tally;
        Report {
            sent: tally.sent.load(SeqCst),
            answered: tally.answered.load(SeqCst),
            failures: tally.failures.counts(),
        }
    }
}

async fn send(rate: u64, connections: Vec<Connection>, tally: Arc<Tally>) {
    let begun = Instant::now();
    let mut ticks = tokio::time::interval(TICK);
    let mut requests = JoinSet::new();
    while !tally.stops.load(SeqCst) {
        ticks.tick().await;
        let due = (begun.elapsed().as_secs_f64() * rate as f64) as u64;
        while tally.sent.load(SeqCst) < due {
            let number = tally.sent.fetch_add(1, SeqCst) as usize;
            let connection = connections[number % connections.len()].clone();
            requests.spawn(ask(connection, TARGETS[number / connections.len() % TARGETS.len()], tally.clone()));
        }
        while requests.try_join_next().is_some() {}
    }
    while requests.join_next().await.is_some() {}
}

async fn ask(connection: Connection, target: &'static str, tally: Arc<Tally>) {
    let begun = Instant::now();
    match connection.get(target).await {
        Ok((StatusCode::OK, _)) => drop(tally.answered.fetch_add(1, SeqCst)),
        Ok((status, body)) => {
            tally.failures.add(format!("{status}: {}", String::from_utf8_lossy(&body[..body.len().min(300)])));
        }
        Err(error) => tally.failures.add(error),
    }
    let took_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    tally.slowest_us.fetch_max(took_us, SeqCst);
}
