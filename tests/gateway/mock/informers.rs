//! Watches that begin again where they ended, as those of client-go's reflectors do, and tell what would have made a
//! reflector list everything again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use http::{HeaderMap, Method, StatusCode};
use tokio::task::JoinSet;

use super::client::Connection;
use super::{Mock, Texts};
use crate::fixture::wait;

/// A reflector lists again after a watch that was shorter and had no event.
const SHORT: Duration = Duration::from_secs(1);
/// How long a reflector waits before it lists again, at least. After a watch that ended well, it begins the next at once.
const PAUSE: Duration = Duration::from_millis(800);

/// The watches.
pub(crate) struct Informers {
    tally: Arc<Tally>,
    tasks: JoinSet<()>,
}

struct Tally {
    /// Requests for a watch.
    begun: AtomicU64,
    /// The last revision that each has seen.
    seen: Vec<AtomicU64>,
    /// What makes a reflector list again.
    relists: Texts,
}

/// What became of all watches.
#[derive(Debug)]
pub(crate) struct Report {
    /// Watches that were begun, those that followed one that had ended too.
    pub(crate) begun: u64,
    /// What would have made reflectors list again.
    pub(crate) relists: BTreeMap<String, u64>,
}

impl Informers {
    /// Begins that many watches over so many connections, and waits until all of them are there.
    pub(crate) fn start(mock: &Mock, count: usize, connections: usize) -> Self {
        let revision = mock.etcd.revision();
        let tally = Arc::new(Tally {
            begun: AtomicU64::new(0),
            seen: (0..count).map(|_| AtomicU64::new(revision)).collect(),
            relists: Texts::default(),
        });
        let connections = mock.runtime.block_on(mock.connector().connect_many(connections));
        let mut tasks = JoinSet::new();
        for place in 0..count {
            let connection = connections[place % connections.len()].clone();
            tasks.spawn_on(follow(connection, place, tally.clone()), mock.runtime.handle());
        }
        wait("all watches are there", || {
            mock.apiservers.iter().map(|one| one.control.watches.now()).sum::<u64>() == count as u64
        });
        Self { tally, tasks }
    }

    /// Waits until every one of them has seen everything.
    pub(crate) fn wait_until_all_is_known(&self, mock: &Mock) {
        let revision = mock.etcd.revision();
        wait("all is known to all", || {
            // Whoever lists again knows all at once, so there would be nothing to wait for.
            let relists = self.tally.relists.counts();
            assert_eq!(relists, [].into());
            self.tally.seen.iter().all(|seen| seen.load(SeqCst) >= revision)
        });
    }

    /// Ends them.
    pub(crate) fn finish(mut self, mock: &Mock) -> Report {
        mock.runtime.block_on(self.tasks.shutdown());
        Report { begun: self.tally.begun.load(SeqCst), relists: self.tally.relists.counts() }
    }
}

async fn follow(connection: Connection, place: usize, tally: Arc<Tally>) {
    loop {
        let begun = Instant::now();
        let before = tally.seen[place].load(SeqCst);
        match watch(&connection, place, &tally).await {
            Ok(()) if begun.elapsed() >= SHORT || tally.seen[place].load(SeqCst) > before => continue,
            Ok(()) => tally.relists.add("a watch ended at once and without an event"),
            Err(error) => tally.relists.add(error),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// One watch, to its end.
async fn watch(connection: &Connection, place: usize, tally: &Tally) -> Result<(), String> {
    let seen = &tally.seen[place];
    let revision = seen.load(SeqCst);
    let target = format!(
        "/api/v1/namespaces/team/configmaps?watch=true&allowWatchBookmarks=true&resourceVersion={revision}&timeoutSeconds=600"
    );
    tally.begun.fetch_add(1, SeqCst);
    let mut response = connection.begin(Method::GET, &target, &HeaderMap::new(), None).await?;
    if response.status() != StatusCode::OK {
        return Err(format!("a watch was answered with {}", response.status()));
    }
    let mut half = Vec::new();
    while let Some(piece) = response.body_mut().data().await {
        let piece = piece.map_err(|error| format!("a watch broke off: {error}"))?;
        let _ = response.body_mut().flow_control().release_capacity(piece.len());
        half.extend_from_slice(&piece);
        while let Some(end) = half.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = half.drain(..=end).collect();
            let told = revision_of(&line).ok_or("what came is no event")?;
            let expected = seen.load(SeqCst) + 1;
            if told != expected {
                return Err(format!("events were lost or came twice: {told} instead of {expected}"));
            }
            seen.store(told, SeqCst);
        }
    }
    if half.is_empty() { Ok(()) } else { Err("a watch ended within an event".to_owned()) }
}

fn revision_of(line: &[u8]) -> Option<u64> {
    let (_, rest) = std::str::from_utf8(line).ok()?.split_once("\"resourceVersion\":\"")?;
    rest.split('"').next()?.parse().ok()
}
