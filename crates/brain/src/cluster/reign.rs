//! The time in which a member leads: how it begins, what the leader does besides writing, and how it ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use kubewharf_engine::{Engine, EngineError, Head, Operation, Table};
use tokio::sync::{mpsc, watch as signal};
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::catch_up::publish;
use super::rows::{self, Leadership};
use super::takeover::{Progress, Takeover};
use super::{Cluster, HandOver};
use crate::committer::{End, EndKind, WriteRequest};
use crate::store::{Store, random_u64};
use crate::{autocompact, compaction, lease, meta};

/// The queue's weight of a renewal.
const RENEWAL_BYTES: usize = 1;

impl Cluster {
    /// Takes over from `expected`; gives what tells of the end.
    pub(super) async fn begin_reign(self: &Arc<Self>, expected: Head) -> Result<signal::Receiver<Option<End>>, String> {
        let cluster = self.clone();
        tokio::task::spawn_blocking(move || cluster.begin(expected)).await.map_err(|error| error.to_string())?
    }

    fn begin(&self, expected: Head) -> Result<signal::Receiver<Option<End>>, String> {
        let store = &self.store;
        let leadership = Leadership {
            epoch: expected.epoch + 1,
            leader: Some(self.me.clone()),
            process: self.process,
            ..Leadership::default()
        };
        let row =
            Operation::Put { table: Table::Meta, key: meta::member_key(self.me.id), value: rows::encode(&self.me) };
        let head = begin_epoch(store.engine().as_ref(), expected, &leadership, Some(row))?;
        let (ended, end) = signal::channel(None);
        // From here on nobody else publishes.
        let mut duty = store.duty();
        let begun: Result<(), EngineError> = (|| {
            let snapshot = store.engine().snapshot()?;
            publish(store.published(), snapshot.as_ref(), head)?;
            *self.roster.lock() =
                rows::members(snapshot.as_ref())?.into_iter().map(|member| (member.id, member)).collect();
            drop(snapshot);
            let on_end = Arc::new(move |end: &End| drop(ended.send_replace(Some(end.clone()))));
            store.lead(&mut duty, head, on_end)
        })();
        if let Err(error) = begun {
            self.ended.fetch_max(head.epoch, Ordering::AcqRel);
            return Err(format!("can't lead: {error}"));
        }
        drop(duty);
        info!(epoch = head.epoch, revision = head.revision, "this member leads");
        self.know(leadership);
        Ok(end)
    }

    /// Leads until that ends, and follows then.
    pub(super) async fn reign(
        self: &Arc<Self>,
        mut ended: signal::Receiver<Option<End>>,
        hand_overs: &mut mpsc::Receiver<HandOver>,
    ) {
        let store = &self.store;
        let mut tasks = JoinSet::new();
        tasks.spawn(lease::keeper::run(store.clone()));
        tasks.spawn(compaction::run(store.clone()));
        if let Some(mode) = self.options.auto_compaction {
            tasks.spawn(autocompact::run(store.clone(), mode));
        }
        let renewing = renew(store.clone(), self.options.ttl / 4);
        let mut hand_over = None;
        tokio::select! {
            end = end_of(&mut ended) => match end.kind {
                EndKind::Deposed | EndKind::GivenUp => warn!(why = end.why, "this member leads no more"),
                EndKind::Lost => {
                    let cluster = self.clone();
                    let _ = tokio::task::spawn_blocking(move || cluster.halt(&end.why)).await;
                }
                EndKind::Poisoned => store.published().failed(&end.why),
            },
            () = renewing => {}
            request = hand_overs.recv() => {
                lease::keeper::checkpoint_all(store).await;
                hand_over = request;
            }
        }
        let epoch = store.leading_epoch().unwrap_or_default();
        tasks.shutdown().await;
        // Nobody waits for a reign that has ended.
        hand_over = hand_over.or_else(|| hand_overs.try_recv().ok());
        let cluster = self.clone();
        let successor = hand_over.as_ref().map(|request| request.successor);
        let ending = tokio::task::spawn_blocking(move || {
            cluster.store.follow();
            successor.map_or(Ok(()), |successor| cluster.let_go(epoch, successor))
        });
        if let Ok(Err(why)) = ending.await {
            warn!(why, "can't hand over: others take over when the time to live has passed");
        }
        self.ended.fetch_max(epoch, Ordering::AcqRel);
        // Followers that wait for news are told.
        self.known.send_modify(|_| {});
        self.election.lock().saw_nothing(super::now());
        self.flights.call();
        while let Some(HandOver { done, .. }) = hand_over.take().or_else(|| hand_overs.try_recv().ok()) {
            let _ = done.send(());
        }
    }

    /// Writes that nobody leads.
    fn let_go(&self, reign: u64, successor: u64) -> Result<(), String> {
        let engine = self.store.engine().as_ref();
        let head = engine.snapshot().and_then(|snapshot| snapshot.head()).map_err(|error| error.to_string())?;
        if head.epoch != reign {
            return Err("another member has taken over already".to_owned());
        }
        let leadership = Leadership { epoch: head.epoch + 1, successor, ..Leadership::default() };
        let head = begin_epoch(engine, head, &leadership, None)?;
        info!(epoch = head.epoch, "this member has let go");
        self.know(leadership);
        Ok(())
    }
}

/// Waits for the end, which the committer tells.
async fn end_of(ended: &mut signal::Receiver<Option<End>>) -> End {
    match ended.wait_for(Option::is_some).await.map(|end| end.clone()) {
        Ok(Some(end)) => end,
        _ => End { kind: EndKind::Poisoned, why: "the committer has ended".to_owned() },
    }
}

/// Commits empty batches whenever nothing else is committed for a while.
async fn renew(store: Arc<Store>, interval: Duration) {
    let commits = &store.published().commit_metrics().seconds;
    let mut seen = commits.count();
    loop {
        tokio::time::sleep(interval).await;
        let count = commits.count();
        if count == seen {
            store.submit(WriteRequest::Renew, RENEWAL_BYTES, Box::new(|_| {}));
        }
        seen = count;
    }
}

/// Commits the beginning of the epoch behind that of `expected`. Blocks.
pub(super) fn begin_epoch(
    engine: &dyn Engine,
    expected: Head,
    leadership: &Leadership,
    more: Option<Operation>,
) -> Result<Head, String> {
    let mut takeover = Takeover::new(expected, random_u64(), leadership, more);
    loop {
        match takeover.step(engine.commit(takeover.attempt())) {
            Progress::Begun(head) => return Ok(head),
            Progress::Again { after_ms } => thread::sleep(Duration::from_millis(after_ms)),
            Progress::Failed(why) => return Err(why),
        }
    }
}
