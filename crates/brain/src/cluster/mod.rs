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
mod recovery;
mod reign;
pub(crate) mod rows;
pub(crate) mod takeover;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kubewharf_engine::{Cause, EngineError, Head, Size};
use kubewharf_etcd_api::EtcdError;
use kubewharf_etcd_api::etcdserverpb::Member;
use kubewharf_foundation::clock::{Clock, RealClock};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch as signal};
use tokio::task::AbortHandle;
use tracing::{error, info, warn};

pub(crate) use forward::{Forwarded, KEEP_ALIVE};
pub use link::PeerTls;
pub(crate) use recovery::check as check_not_halted;
pub use recovery::{RecoverError, recover};
pub(crate) use rows::{FollowRequest, FollowResponse};

use self::catch_up::{Sighting, catch_up};
use self::election::{Election, Verdict};
use self::flights::Flights;
use self::link::{CallError, Link};
use self::rows::{Leadership, Leads};
use crate::committer::WriteRequest;
use crate::config::AutoCompaction;
use crate::error::Error;
use crate::limits::{
    FOLLOW_WAIT, FORWARD_BYTES_MAX, HAND_OVER_TIMEOUT, LINEARIZE_TIMEOUT, PEER_RETRY, SHOWN_WITHIN, SIZE_INTERVAL,
    UNSEEN_MAX,
};
use crate::mvcc::Revisions;
use crate::rpc::metrics::Histogram;
use crate::store::{Store, random_u64};

/// Looks that may show less than there was before that is believed.
const SUSPICIONS_MAX: u64 = 3;

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
    /// Tells this process from others that say they are the same member.
    process: u64,
    /// The newest epoch that this process has begun and does not lead in any more.
    ended: AtomicU64,
    options: ClusterOptions,
    flights: Flights,
    /// Room for calls that are on their way to the leader: a permit a byte.
    forwarding: Semaphore,
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
    /// When there was last a connection to the leader, or this member led.
    linked_ms: AtomicU64,
    /// How much room the engine uses.
    size: Mutex<Size>,
    tasks: Mutex<Vec<AbortHandle>>,
    /// Looks in a row that have shown less than there was.
    suspicions: AtomicU64,
    /// The newest `seq` seen, and that of what is published.
    seq: AtomicU64,
    leader_changes: AtomicU64,
    look_seconds: Histogram<14>,
}

/// Who leads, and the way there.
#[derive(Clone, Default)]
pub(crate) struct Known {
    pub(crate) epoch: u64,
    pub(crate) leader: Option<Member>,
    /// The leader's process.
    process: u64,
    /// The connection to it, if it is another one.
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
        // Some milliseconds apart, by chance.
        let patience = options.ttl / 128 * u32::try_from(me.id % 8).unwrap_or(0);
        let (hand_overs, requests) = mpsc::channel(1);
        let cluster = Arc::new(Self {
            election: Mutex::new(Election::new(options.ttl, patience)),
            store,
            me,
            process: random_u64(),
            ended: AtomicU64::new(0),
            options,
            flights: Flights::default(),
            forwarding: Semaphore::new(FORWARD_BYTES_MAX),
            known: signal::Sender::new(Known::default()),
            nudge: Notify::new(),
            hand_overs,
            roster: Mutex::default(),
            stopping: AtomicBool::new(false),
            seen_ms: AtomicU64::new(RealClock.monotonic_ms()),
            // Not yet: the leader that the engine tells of may be gone.
            linked_ms: AtomicU64::new(0),
            size: Mutex::default(),
            tasks: Mutex::default(),
            suspicions: AtomicU64::new(0),
            seq: AtomicU64::new(0),
            leader_changes: AtomicU64::new(0),
            look_seconds: Histogram::doubling(0.0005),
        });
        cluster.supervise(tokio::spawn(cluster.clone().look_out()));
        cluster.supervise(tokio::spawn(cluster.clone().run(requests)));
        cluster.supervise(tokio::spawn(cluster.clone().measure()));
        cluster
    }

    /// A member whose task panics can't go on: its process is to be started again.
    fn supervise(&self, task: tokio::task::JoinHandle<()>) {
        self.tasks.lock().push(task.abort_handle());
        let store = self.store.clone();
        tokio::spawn(async move {
            if task.await.is_err_and(|error| error.is_panic()) {
                store.published().failed("a task of the member panicked");
            }
        });
    }

    /// Ends what runs in the background. Nothing is published or answered by a look after that.
    pub(crate) fn stop(&self) {
        self.tasks.lock().drain(..).for_each(|task| task.abort());
    }

    /// Waits until whatever was confirmed to anybody before this call is published here.
    ///
    /// # Errors
    /// If the engine can't be read, or this member has been deposed and does not follow yet.
    pub async fn linearize(&self) -> Result<(), Error> {
        let shown = async {
            // A leader may see in the engine what is not confirmed to it yet, and others may have told of that.
            let revision = self.flights.join().await?;
            self.store.published().hub().reached(revision).await;
            Ok(())
        };
        let timed_out = |_| Error::Api(EtcdError::Timeout);
        tokio::time::timeout(LINEARIZE_TIMEOUT, shown).await.map_err(timed_out)?
    }

    /// Waits until watches here show `revision`, but not for long.
    pub(crate) async fn shows(&self, revision: i64) {
        let published = self.store.published();
        if published.newest() < revision {
            // A leader's committer publishes it, and no look does.
            if !self.store.is_leading() {
                self.flights.call();
            }
            let _ = tokio::time::timeout(SHOWN_WITHIN, published.hub().reached(revision)).await;
        }
    }

    /// How much room the engine uses, as it was a moment ago.
    pub(crate) fn size(&self) -> Size {
        *self.size.lock()
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

    /// How long looks at the engine take.
    pub(crate) fn look_seconds(&self) -> &Histogram<14> {
        &self.look_seconds
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
        let since = |ms: &AtomicU64| now().saturating_sub(Duration::from_millis(ms.load(Ordering::Relaxed)));
        if since(&self.seen_ms) > UNSEEN_MAX {
            return Err(format!("the engine was last read {} ms ago", since(&self.seen_ms).as_millis()));
        }
        if !self.store.is_leading() && self.known.borrow().link.is_none() && since(&self.linked_ms) > UNSEEN_MAX {
            return Err(format!("no connection to the leader for {} ms", since(&self.linked_ms).as_millis()));
        }
        Ok(())
    }

    /// Waits until this member has been out of touch with the engine or the leader for some time.
    pub(crate) async fn out_of_touch(&self) {
        let patience = UNSEEN_MAX.max(self.options.ttl * 3);
        let mut since = None;
        loop {
            tokio::time::sleep(patience / 8).await;
            match (self.readiness(), since) {
                (Ok(()), _) => since = None,
                (Err(_), None) => since = Some(now()),
                (Err(_), Some(begun)) if now() - begun > patience => return,
                (Err(_), Some(_)) => {}
            }
        }
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
        let handing_over = async {
            if self.store.is_leading() && self.hand_overs.send(HandOver { successor, done }).await.is_ok() {
                let _ = written.await;
            }
        };
        let _ = tokio::time::timeout(HAND_OVER_TIMEOUT, handing_over).await;
    }

    /// Hands over, for a process that is about to end, and waits a moment for the next leader.
    pub async fn retire(&self) {
        self.stopping.store(true, Ordering::Release);
        let is_alone = self.store.is_leading() && self.roster.lock().len() <= 1;
        self.hand_over(0).await;
        if is_alone {
            return;
        }
        let mut known = self.known.subscribe();
        let another = known.wait_for(|known| known.leader.as_ref().is_some_and(|leader| leader.id != self.me.id));
        // Nobody may be there.
        let _ = tokio::time::timeout(HAND_OVER_TIMEOUT / 3, another).await;
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
        let leads = || self.leads_in(request.epoch, request.process);
        // It may have seen what this process has written and not taken note of yet.
        let _ = tokio::time::timeout(FOLLOW_WAIT, known.wait_for(|_| leads() != Leads::NotYet)).await;
        if leads() == Leads::Now {
            self.enroll(request.member);
            let published = self.store.published();
            if published.revisions().compacted <= request.compacted {
                let mut compactions = published.subscribe_compactions();
                tokio::select! {
                    () = published.hub().reached(request.revision + 1) => {}
                    _ = compactions.wait_for(|compacted| *compacted > request.compacted) => {}
                    _ = known.wait_for(|_| leads() != Leads::Now) => {}
                    () = tokio::time::sleep(FOLLOW_WAIT) => {}
                }
            }
        }
        let Revisions { newest, compacted } = self.store.published().revisions();
        FollowResponse { leads: leads().into(), revision: newest, compacted }
    }

    /// Whether this process leads in an epoch, of which somebody thinks that `process` does.
    fn leads_in(&self, epoch: u64, process: u64) -> Leads {
        if process != self.process {
            Leads::NotMe
        } else if self.store.leading_epoch() == Some(epoch) {
            Leads::Now
        } else if self.ended.load(Ordering::Acquire) >= epoch {
            Leads::NoMore
        } else {
            Leads::NotYet
        }
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
            let is_leading = self.store.is_leading();
            let pause = if is_leading { self.options.ttl.min(UNSEEN_MAX / 3) } else { self.options.ttl / 8 };
            tokio::select! {
                () = self.flights.called() => {}
                () = tokio::time::sleep(pause) => {}
            }
            let served = self.flights.begin();
            let cluster = self.clone();
            let begun = Instant::now();
            let looking = move || catch_up(&cluster.store, &mut |head| cluster.check(head));
            let result = match tokio::task::spawn_blocking(looking).await {
                Ok(Ok(sighting)) => self.saw(sighting),
                Ok(Err(error)) => {
                    self.election.lock().saw_nothing(now());
                    Err(error.into())
                }
                Err(error) => Err(Error::Unavailable(error.to_string())),
            };
            self.look_seconds.observe_time(begun.elapsed());
            self.flights.land(served, result);
        }
    }

    /// Takes note of a head, unless it shows that the engine has lost data.
    fn check(&self, head: Head) -> Result<(), EngineError> {
        let seen = self.election.lock().saw(head, now());
        let Err(lost) = seen else {
            self.suspicions.store(0, Ordering::Relaxed);
            return Ok(());
        };
        // It may be a server that was the primary once and does not know that it no longer is.
        if self.suspicions.fetch_add(1, Ordering::Relaxed) < SUSPICIONS_MAX {
            warn!(%lost, "looking once more, at the server that takes writes");
            self.store.engine().reconnect();
        } else {
            self.halt(&lost.to_string());
        }
        Err(Cause::Unavailable(lost.to_string()).into())
    }

    /// Stops this member for good, and all others: the engine has lost data. Blocks.
    pub(super) fn halt(&self, why: &str) {
        if self.store.failure().is_none() {
            error!(why, "this member stops serving, and no other may lead");
            if let Err(error) = recovery::halt(self.store.engine().as_ref(), why) {
                error!(error, "can't keep others from leading");
            }
            self.store.published().failed(&recovery::refusal(why));
        }
    }

    fn saw(&self, sighting: Sighting) -> Result<i64, Error> {
        let Sighting { head, leadership, leads } = sighting;
        self.seen_ms.store(RealClock.monotonic_ms(), Ordering::Relaxed);
        self.seq.store(head.seq, Ordering::Relaxed);
        if let Some(leadership) = leadership {
            if !leadership.halted.is_empty() {
                self.store.published().failed(&recovery::refusal(&leadership.halted));
                return Err(Error::Unavailable(leadership.halted));
            }
            if leadership.leader.is_none() {
                let to_other = leadership.successor != 0 && leadership.successor != self.me.id;
                self.election.lock().leader_let_go(head.epoch, to_other);
            }
            self.know(leadership);
            self.store.saw_epoch(head.epoch);
        }
        if leads == Some(false) { Err(Error::NotLeader) } else { Ok(head.revision) }
    }

    fn know(&self, leadership: Leadership) {
        let Leadership { epoch, leader, process, .. } = leadership;
        let is_news = self.known.send_if_modified(|known| {
            let is_news = known.epoch < epoch;
            if is_news {
                *known = Known { epoch, leader: leader.clone(), process, link: None };
            }
            is_news
        });
        if let Some(leader) = leader.filter(|_| is_news) {
            self.leader_changes.fetch_add(1, Ordering::Relaxed);
            info!(epoch, leader = format!("{:x}", leader.id), name = leader.name, "there is a leader");
        }
        self.nudge.notify_one();
    }

    /// Asks for the engine's size now and then, which takes too long for whoever wants to know it.
    async fn measure(self: Arc<Self>) {
        loop {
            let store = self.store.clone();
            if let Ok(Ok(size)) = tokio::task::spawn_blocking(move || store.engine().size()).await {
                *self.size.lock() = size;
            }
            tokio::time::sleep(SIZE_INTERVAL).await;
        }
    }

    /// Follows and leads in turns.
    async fn run(self: Arc<Self>, mut hand_overs: mpsc::Receiver<HandOver>) {
        loop {
            let expected = self.wait_for_turn().await;
            if self.store.failure().is_some() {
                return;
            }
            match self.begin_reign(expected).await {
                Ok(ended) => self.reign(ended, &mut hand_overs).await,
                Err(why) => {
                    info!(why, "did not take over");
                    tokio::time::sleep(PEER_RETRY).await;
                }
            }
            if self.store.failure().is_some() {
                return;
            }
        }
    }

    /// Follows until it is this member's turn to lead; gives the head that it is to replace.
    async fn wait_for_turn(self: &Arc<Self>) -> Head {
        // What is known may be old.
        self.election.lock().saw_nothing(now());
        let _ = self.flights.join().await;
        let mut known = self.known.subscribe();
        let mut following: Option<(u64, Following)> = None;
        loop {
            let current = known.borrow_and_update().clone();
            let current_epoch = current.epoch;
            if following.as_ref().is_none_or(|(epoch, _)| *epoch != current.epoch) {
                let is_other = current.process != self.process;
                following = current.leader.filter(|_| is_other).map(|leader| {
                    let task = tokio::spawn(self.clone().follow(leader, current.epoch, current.process));
                    (current.epoch, Following(task.abort_handle()))
                });
                if !is_other {
                    // This very process has begun the epoch, and does not lead.
                    self.election.lock().leader_is_gone(current.epoch);
                }
            }
            let verdict = self.election.lock().verdict(now());
            let until = match verdict {
                Verdict::TakeOver(head) if !self.stopping.load(Ordering::Acquire) => {
                    self.set_link(current_epoch, None);
                    return head;
                }
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

    /// Keeps a connection to the process that leads in an epoch until it is gone, or leads no more.
    async fn follow(self: Arc<Self>, leader: Member, epoch: u64, process: u64) {
        let mut failures = 0_u32;
        // Whether it was heard of in this epoch: only then is an address that refuses a sign of its end.
        let mut has_led = false;
        loop {
            match Link::connect(&leader, epoch, &self.options.tls).await {
                Ok(link) => {
                    failures = 0;
                    let ended = self.hear(&link, process, &mut has_led).await;
                    self.set_link(epoch, None);
                    match ended {
                        Heard::NoMore => break,
                        Heard::Broken(why) => info!(why, epoch, "the connection to the leader has ended"),
                    }
                }
                Err(why) => {
                    if failures == 0 {
                        warn!(why, leader = leader.name, "can't connect to the leader");
                    }
                    failures += 1;
                }
            }
            if has_led && link::is_gone(&leader).await {
                break;
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

    /// Hears of news for as long as the process leads and the connection lasts.
    async fn hear(&self, link: &Link, process: u64, has_led: &mut bool) -> Heard {
        let mut is_linked = false;
        loop {
            let published = self.store.published().revisions();
            let request = FollowRequest {
                epoch: link.epoch,
                process,
                // The first question is answered at once.
                revision: if is_linked { published.newest } else { -1 },
                compacted: published.compacted,
                member: Some(self.me.clone()),
            };
            let answer = match link.call(FOLLOW, rows::encode(&request)).await {
                Ok(answer) => answer,
                Err(CallError::NotSent) => return Heard::Broken("it is refused".to_owned()),
                Err(CallError::Broken(why)) => return Heard::Broken(why),
                Err(CallError::Answer(status)) => return Heard::Broken(status.to_string()),
            };
            let Ok(answer) = FollowResponse::decode(answer) else {
                return Heard::Broken("its answer is malformed".to_owned());
            };
            match answer.leads() {
                Leads::NotMe => return Heard::Broken("another process answers in its place".to_owned()),
                Leads::NotYet => continue,
                Leads::NoMore => {
                    // Most likely somebody else is to, or does, and the engine tells.
                    let _ = self.flights.join().await;
                    return Heard::NoMore;
                }
                Leads::Now => {}
            }
            if !is_linked {
                (is_linked, *has_led) = (true, true);
                self.set_link(link.epoch, Some(link));
            }
            self.linked_ms.store(RealClock.monotonic_ms(), Ordering::Relaxed);
            let is_behind = answer.revision > published.newest || answer.compacted > published.compacted;
            if is_behind && self.flights.join().await.is_err() {
                tokio::time::sleep(PEER_RETRY).await;
            }
        }
    }
}

/// How a connection to the leader has ended.
enum Heard {
    /// The process says that it leads no more.
    NoMore,
    /// The connection did not last.
    Broken(String),
}

/// A task that ends with this.
struct Following(AbortHandle);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.abort();
    }
}
