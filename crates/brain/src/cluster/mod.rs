//! Members that share one engine: who of them writes, how the others follow, and how requests find the leader.
//!
//! Members keep nothing of their own. Each follows the engine's log (`catch_up`) and so answers reads and watches; one
//! of them leads, which is to say that its committer writes. Whoever leads has begun an epoch with a commit of its own, and each
//! commit names the epoch: a leader that was replaced can't write, whatever it believes, and a read that must be
//! linearizable looks at the engine, which tells it whether it still leads. So no clock is part of safety; the time to live only
//! says how soon a silent leader is replaced.
//!
//! Invariant: at most one process publishes by a committer in an epoch, and what any member shows its clients is in the engine's log.

mod catch_up;
pub(crate) mod election;
mod flights;
mod forward;
mod link;
mod reign;
pub(crate) mod rows;
pub(crate) mod takeover;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kubewharf_etcd_api::etcdserverpb::Member;
use kubewharf_foundation::clock::{Clock, RealClock};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{Notify, mpsc, oneshot, watch as signal};
use tokio::task::AbortHandle;
use tracing::{error, info, warn};

pub(crate) use forward::{Forwarded, KEEP_ALIVE};
pub use link::PeerTls;
pub(crate) use rows::{FollowRequest, FollowResponse};

use self::catch_up::{Sighting, catch_up};
use self::election::{Election, Verdict};
use self::flights::Flights;
use self::link::{CallError, ConnectError, Link};
use crate::committer::WriteRequest;
use crate::config::AutoCompaction;
use crate::error::Error;
use crate::limits::{FOLLOW_WAIT, HAND_OVER_TIMEOUT, PEER_RETRY, UNSEEN_MAX};
use crate::mvcc::Revisions;
use crate::store::Store;

/// The path of [`FollowRequest`] on the peers' port.
pub(crate) const FOLLOW: &str = "/kubebrain.Peer/Follow";

/// What a member is told about itself.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Its name.
    pub name: String,
    /// Where other members reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
    /// How long a leader may be silent before another member replaces it.
    pub ttl: Duration,
    /// How it shows itself to other members.
    pub tls: PeerTls,
    /// Compaction without being asked, by the leader.
    pub auto_compaction: Option<AutoCompaction>,
}

/// A member.
pub struct Cluster {
    store: Arc<Store>,
    me: Member,
    options: ClusterOptions,
    flights: Flights,
    election: Mutex<Election>,
    known: signal::Sender<Known>,
    /// Wakes who waits for the election's verdict.
    nudge: Notify,
    hand_overs: mpsc::Sender<HandOver>,
    /// The members with a row, on the leader.
    roster: Mutex<BTreeMap<u64, Member>>,
    /// Leads no more.
    stopping: AtomicBool,
    /// When the engine was last seen, by the clock, in milliseconds.
    seen_ms: AtomicU64,
    /// The newest `seq` seen, and that of what is published.
    seq: AtomicU64,
    leader_changes: AtomicU64,
}

/// Who leads, and the way there.
#[derive(Clone, Default)]
pub(crate) struct Known {
    pub(crate) epoch: u64,
    pub(crate) leader: Option<Member>,
    /// The connection to it, if it is another member.
    pub(crate) link: Option<Link>,
}

/// A request to the leader to let go.
struct HandOver {
    /// Who is to follow, 0 for any.
    successor: u64,
    /// Is told when that is written.
    done: oneshot::Sender<()>,
}

fn now() -> Duration {
    Duration::from_millis(RealClock.monotonic_ms())
}

impl Cluster {
    /// A member over a store that was opened with [`Store::join`], which runs on the current tokio runtime from now on.
    #[must_use]
    pub fn start(store: Arc<Store>, options: ClusterOptions) -> Arc<Self> {
        let me = Member {
            id: store.identity().member_id,
            name: options.name.clone(),
            peer_ur_ls: options.peer_urls.clone(),
            client_ur_ls: options.client_urls.clone(),
            is_learner: false,
        };
        // Some tens of milliseconds apart, by chance.
        let patience = options.ttl / 16 * u32::try_from(me.id % 8).unwrap_or(0) / 4;
        let (hand_overs, requests) = mpsc::channel(1);
        let cluster = Arc::new(Self {
            election: Mutex::new(Election::new(options.ttl, patience)),
            store,
            me,
            options,
            flights: Flights::default(),
            known: signal::Sender::new(Known::default()),
            nudge: Notify::new(),
            hand_overs,
            roster: Mutex::default(),
            stopping: AtomicBool::new(false),
            seen_ms: AtomicU64::new(RealClock.monotonic_ms()),
            seq: AtomicU64::new(0),
            leader_changes: AtomicU64::new(0),
        });
        tokio::spawn(cluster.clone().look_out());
        tokio::spawn(cluster.clone().run(requests));
        cluster
    }

    /// Waits until whatever was confirmed to anybody before this call is published here.
    ///
    /// # Errors
    /// If the engine can't be read, or this member has been deposed and does not follow yet.
    pub async fn linearize(&self) -> Result<(), Error> {
        self.flights.join().await
    }

    /// This member's id.
    #[must_use]
    pub fn member_id(&self) -> u64 {
        self.me.id
    }

    /// The leader's id, 0 if none is known.
    #[must_use]
    pub fn leader_id(&self) -> u64 {
        self.known.borrow().leader.as_ref().map_or(0, |leader| leader.id)
    }

    /// How often another leader was seen.
    #[must_use]
    pub fn leader_changes(&self) -> u64 {
        self.leader_changes.load(Ordering::Relaxed)
    }

    /// The newest commit of which this member knows, by number.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.seq.load(Ordering::Relaxed)
    }

    /// Why this member should get no requests, if so.
    pub fn readiness(&self) -> Result<(), String> {
        if self.leader_id() == 0 {
            return Err("no leader".to_owned());
        }
        let unseen = now().saturating_sub(Duration::from_millis(self.seen_ms.load(Ordering::Relaxed)));
        if unseen > UNSEEN_MAX {
            return Err(format!("the engine was last read {} ms ago", unseen.as_millis()));
        }
        Ok(())
    }

    /// All members that have a row.
    ///
    /// # Errors
    /// If the engine can't be read.
    pub async fn members(&self) -> Result<Vec<Member>, Error> {
        let store = self.store.clone();
        let read = tokio::task::spawn_blocking(move || rows::members(store.snapshot()?.as_ref())).await;
        Ok(read.map_err(|error| Error::Unavailable(error.to_string()))??)
    }

    /// Lets another member lead, if this one does; 0 for any. Returns when that is written.
    pub(crate) async fn hand_over(&self, successor: u64) {
        let (done, written) = oneshot::channel();
        if self.store.is_leading() && self.hand_overs.send(HandOver { successor, done }).await.is_ok() {
            let _ = written.await;
        }
    }

    /// Hands over, for a process that is about to end, and waits a moment for the next leader.
    pub async fn retire(&self) {
        self.stopping.store(true, Ordering::Release);
        self.hand_over(0).await;
        let mut known = self.known.subscribe();
        let another = known.wait_for(|known| known.leader.as_ref().is_some_and(|leader| leader.id != self.me.id));
        // Nobody may be there.
        let _ = tokio::time::timeout(HAND_OVER_TIMEOUT, another).await;
    }

    /// Waits until `member` leads, or for a while.
    pub(crate) async fn leads(&self, member: u64) -> bool {
        let mut known = self.known.subscribe();
        let leads = known.wait_for(|known| known.leader.as_ref().is_some_and(|leader| leader.id == member));
        tokio::time::timeout(HAND_OVER_TIMEOUT, leads).await.is_ok()
    }

    /// Answers a follower.
    pub(crate) async fn answer_follower(&self, request: FollowRequest) -> FollowResponse {
        let mut known = self.known.subscribe();
        let leads = |known: &Known| known.epoch == request.epoch && self.is_leader_in(known);
        // It may have seen what this process has written and not taken note of yet.
        let _ = tokio::time::timeout(FOLLOW_WAIT, known.wait_for(leads)).await;
        if !leads(&self.known.borrow()) {
            return FollowResponse::default();
        }
        self.enroll(request.member);
        let published = self.store.published();
        if published.revisions().compacted == request.compacted {
            tokio::select! {
                () = published.hub().reached(request.revision + 1) => {}
                _ = known.wait_for(|known| !leads(known)) => {}
                () = tokio::time::sleep(FOLLOW_WAIT) => {}
            }
        }
        let Revisions { newest, compacted } = published.revisions();
        FollowResponse { leads: leads(&self.known.borrow()), revision: newest, compacted }
    }

    fn is_leader_in(&self, known: &Known) -> bool {
        known.leader.as_ref().is_some_and(|leader| leader.id == self.me.id) && self.store.is_leading()
    }

    /// Writes a member's row if it is not as the member says.
    fn enroll(&self, member: Option<Member>) {
        let Some(member) = member.filter(|member| member.id != 0) else { return };
        let mut roster = self.roster.lock();
        if roster.get(&member.id) != Some(&member) {
            let row: Bytes = rows::encode(&member);
            let bytes = row.len();
            let write = WriteRequest::Member { id: member.id, row: Some(row) };
            // If it fails, the next leader writes it.
            self.store.submit(write, bytes, Box::new(|_| {}));
            roster.insert(member.id, member);
        }
    }

    /// Removes a member's row; one that lives comes back.
    pub(crate) async fn remove(&self, id: u64) -> Result<bool, Error> {
        if self.roster.lock().remove(&id).is_none() {
            return Ok(false);
        }
        self.store.write(WriteRequest::Member { id, row: None }, 64).await?;
        Ok(true)
    }

    /// Looks at the engine whenever somebody asks, and often enough for the election.
    async fn look_out(self: Arc<Self>) {
        loop {
            let pause = if self.store.is_leading() { self.options.ttl } else { self.options.ttl / 8 };
            tokio::select! {
                () = self.flights.called() => {}
                () = tokio::time::sleep(pause) => {}
            }
            let served = self.flights.begin();
            let store = self.store.clone();
            let result = match tokio::task::spawn_blocking(move || catch_up(&store)).await {
                Ok(Ok(sighting)) => self.saw(sighting),
                Ok(Err(error)) => {
                    self.election.lock().saw_nothing(now());
                    Err(error.into())
                }
                Err(error) => Err(Error::Unavailable(error.to_string())),
            };
            self.flights.land(served, result);
        }
    }

    fn saw(&self, sighting: Sighting) -> Result<(), Error> {
        let Sighting { head, leadership, leads } = sighting;
        let mut election = self.election.lock();
        if let Err(lost) = election.saw(head, now()) {
            if self.store.failure().is_none() {
                error!(%lost, "this member stops serving");
                self.store.published().failed(&lost.to_string());
            }
            return Err(Error::Unavailable(lost.to_string()));
        }
        self.seen_ms.store(RealClock.monotonic_ms(), Ordering::Relaxed);
        self.seq.store(head.seq, Ordering::Relaxed);
        if let Some(leadership) = leadership {
            election.epoch_began(&leadership, self.me.id);
            drop(election);
            self.know(head.epoch, leadership.leader);
        }
        if leads == Some(false) { Err(Error::NotLeader) } else { Ok(()) }
    }

    fn know(&self, epoch: u64, leader: Option<Member>) {
        if let Some(leader) = &leader {
            self.leader_changes.fetch_add(1, Ordering::Relaxed);
            info!(epoch, leader = format!("{:x}", leader.id), name = leader.name, "there is a leader");
        }
        self.known.send_modify(|known| {
            if known.epoch < epoch || (known.epoch == epoch && known.leader.is_none()) {
                *known = Known { epoch, leader, link: None };
            }
        });
        self.nudge.notify_one();
    }

    /// Follows and leads in turns.
    async fn run(self: Arc<Self>, mut hand_overs: mpsc::Receiver<HandOver>) {
        loop {
            let expected = self.wait_for_turn().await;
            match self.begin_reign(expected).await {
                Ok(ended) => self.reign(ended, &mut hand_overs).await,
                Err(why) => {
                    info!(why, "did not take over");
                    tokio::time::sleep(PEER_RETRY / 5).await;
                }
            }
            if self.store.failure().is_some() {
                return;
            }
        }
    }

    /// Follows until it is this member's turn to lead; gives the head that it is to replace.
    async fn wait_for_turn(self: &Arc<Self>) -> kubewharf_engine::Head {
        // What is known may be old.
        self.election.lock().saw_nothing(now());
        let _ = self.flights.join().await;
        let mut known = self.known.subscribe();
        let mut following: Option<(u64, Following)> = None;
        loop {
            let current = known.borrow_and_update().clone();
            if following.as_ref().is_none_or(|(epoch, _)| *epoch != current.epoch) {
                following = current.leader.filter(|leader| leader.id != self.me.id).map(|leader| {
                    let task = tokio::spawn(self.clone().follow(leader, current.epoch));
                    (current.epoch, Following(task.abort_handle()))
                });
            }
            let verdict = self.election.lock().verdict(now());
            let until = match verdict {
                Verdict::TakeOver(head) if !self.stopping.load(Ordering::Acquire) => return head,
                Verdict::TakeOver(_) => now() + self.options.ttl,
                Verdict::Wait(until) => until,
            };
            tokio::select! {
                () = tokio::time::sleep(until.saturating_sub(now())) => {}
                _ = known.changed() => {}
                () = self.nudge.notified() => {}
            }
        }
    }

    /// Keeps a connection to the leader of an epoch until it is gone or leads no more.
    async fn follow(self: Arc<Self>, leader: Member, epoch: u64) {
        let mut failures = 0_u32;
        loop {
            match Link::connect(&leader, epoch, &self.options.tls).await {
                Ok(link) => {
                    failures = 0;
                    self.set_link(epoch, Some(&link));
                    let why = self.hear(&link).await;
                    self.set_link(epoch, None);
                    let Some(why) = why else { break };
                    info!(why, epoch, "the connection to the leader has ended");
                    if link::is_gone(&leader).await {
                        break;
                    }
                }
                Err(ConnectError::Refused) => break,
                Err(ConnectError::Other(why)) => {
                    if failures == 0 {
                        warn!(why, leader = leader.name, "can't connect to the leader");
                    }
                    failures += 1;
                }
            }
            tokio::time::sleep(PEER_RETRY).await;
        }
        info!(epoch, leader = leader.name, "the leader is gone");
        self.election.lock().leader_is_gone(epoch);
        self.nudge.notify_one();
    }

    fn set_link(&self, epoch: u64, link: Option<&Link>) {
        self.known.send_if_modified(|known| {
            let is_current = known.epoch == epoch;
            if is_current {
                known.link = link.cloned();
            }
            is_current
        });
    }

    /// Hears of news until the connection ends, and says why; `None` if the member does not lead, and nobody is known who does.
    async fn hear(&self, link: &Link) -> Option<String> {
        loop {
            let published = self.store.published().revisions();
            let request = FollowRequest {
                epoch: link.epoch,
                revision: published.newest,
                compacted: published.compacted,
                member: Some(self.me.clone()),
            };
            let answer = match link.call(FOLLOW, rows::encode(&request)).await {
                Ok(answer) => answer,
                Err(CallError::NotSent) => return Some("it is refused".to_owned()),
                Err(CallError::Broken(why)) => return Some(why),
                Err(CallError::Answer(status)) => return Some(status.to_string()),
            };
            let Ok(answer) = FollowResponse::decode(answer) else { return Some("its answer is malformed".to_owned()) };
            if !answer.leads || answer.revision > published.newest || answer.compacted > published.compacted {
                let seen = self.flights.join().await;
                if !answer.leads && seen.is_ok() {
                    return None;
                }
            }
        }
    }
}

/// A task that ends with this.
struct Following(AbortHandle);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.abort();
    }
}
