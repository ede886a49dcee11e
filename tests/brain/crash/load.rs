//! Clients that write, read, renew leases and watch, through everything that happens to the store, and note it all.
//!
//! Each writer has keys of its own, so that it can say of each what it was last; some keys are everybody's. No value is
//! written twice. No client retries: an answer that does not come is noted as such.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kubewharf_etcd_api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use kubewharf_etcd_api::etcdserverpb::response_op::Response;
use kubewharf_etcd_api::etcdserverpb::watch_request::RequestUnion;
use kubewharf_etcd_api::etcdserverpb::{
    Compare, LeaseGrantRequest, LeaseKeepAliveRequest, PutRequest, ResponseHeader, TxnRequest, TxnResponse,
    WatchCreateRequest, WatchRequest,
};
use kubewharf_etcd_api::mvccpb::KeyValue;
use kubewharf_etcd_api::mvccpb::event::EventType;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use super::history::{Attempt, Change, Changes, History, Lease, Outcome, Read, Transaction, Version, Watched};
use crate::client::{Client, Operation, delete, get, put};
use crate::random::Random;

/// After this a client gives up on an answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// How long watchers may be behind at the end.
const WATCHED_WITHIN: Duration = Duration::from_secs(60);
/// Between two tries while the store is away.
const AWAY_PAUSE: Duration = Duration::from_millis(20);
/// Keys of one writer.
const OWN_KEYS: u64 = 30;
/// Keys of all writers.
const SHARED_KEYS: u64 = 10;
/// The lease of a writer: it must outlive the test.
pub(crate) const LONG_TTL_SECONDS: u64 = 5000;
const KEPT_PAUSE: Duration = Duration::from_millis(700);
/// Leases that nobody renews. A key of theirs begins with this.
const SHORT_TTL_SECONDS: u64 = 2;
const SHORT_PREFIX: &str = "short/";

/// How much load there is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) writers: u64,
    pub(crate) readers: u64,
    /// The lease that is renewed all the time: longer than the store may be away.
    pub(crate) kept_ttl_seconds: u64,
}

/// The running clients.
pub(crate) struct Load {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    watchers: Vec<JoinHandle<Watched>>,
}

/// What the clients share.
struct Shared {
    urls: Vec<String>,
    stops: AtomicBool,
    /// The watchers stop once they have this.
    last: AtomicI64,
    history: Mutex<History>,
    /// How many writes were acknowledged on each of the URLs.
    acknowledged: Vec<AtomicI64>,
    /// What calls failed with, and how often.
    failures: Mutex<BTreeMap<String, usize>>,
    /// How far each watcher is.
    watched: Vec<AtomicI64>,
}

/// What is noted of a call that the server did not take any more, as its GOAWAY says.
pub(crate) const WENT_AWAY: &str = "the server was going away and did not take the call";

/// Whether a call met a connection that was closed in good order: the server has not begun with it, and grpc-go sends it again by itself.
fn went_away(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR);
        }
        source = error.source();
    }
    false
}

impl Shared {
    /// A client; whoever has another number has another member, where there are several.
    fn client(&self, number: usize) -> Client {
        Client::new(&self.urls[number % self.urls.len()])
    }

    fn stops(&self) -> bool {
        self.stops.load(Ordering::Relaxed)
    }

    fn history(&self) -> std::sync::MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, status: &Status) {
        let (code, text) = (status.code(), if went_away(status) { WENT_AWAY } else { status.message() });
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        *failures.entry(format!("{code:?}: {text}")).or_default() += 1;
    }
}

impl Load {
    /// Starts the clients; must be called within a runtime.
    pub(crate) fn start(urls: &[String], size: Size, seed: u64) -> Self {
        let prefixes = [String::new(), String::new(), "w1/".to_owned(), "shared/".to_owned()];
        let shared = Arc::new(Shared {
            urls: urls.to_vec(),
            stops: AtomicBool::new(false),
            last: AtomicI64::new(i64::MAX),
            history: Mutex::default(),
            acknowledged: urls.iter().map(|_| AtomicI64::new(0)).collect(),
            failures: Mutex::default(),
            watched: prefixes.iter().map(|_| AtomicI64::new(0)).collect(),
        });
        let watcher = |(number, prefix)| tokio::spawn(watch(shared.clone(), number, prefix));
        let watchers = prefixes.into_iter().enumerate().map(watcher).collect();
        let mut workers = Vec::new();
        for number in 1..=size.writers {
            let random = Random::new(seed.wrapping_mul(1000) + number);
            workers.push(tokio::spawn(Writer::new(shared.clone(), number, random).run()));
        }
        for number in 0..size.readers {
            let random = Random::new(seed.wrapping_mul(1000) + 500 + number);
            workers.push(tokio::spawn(read(shared.clone(), random, size.writers)));
        }
        workers.push(tokio::spawn(keep(shared.clone(), size.kept_ttl_seconds)));
        workers.push(tokio::spawn(grant_short(shared.clone())));
        Self { shared, workers, watchers }
    }

    /// How many writes were acknowledged so far.
    pub(crate) fn acknowledged(&self) -> i64 {
        (0..self.shared.urls.len()).map(|url| self.acknowledged_at(url)).sum()
    }

    /// How many of them on the URL of that number.
    pub(crate) fn acknowledged_at(&self, url: usize) -> i64 {
        self.shared.acknowledged[url].load(Ordering::Relaxed)
    }

    /// The revision that every watcher has.
    pub(crate) fn watched(&self) -> i64 {
        self.shared.watched.iter().map(|revision| revision.load(Ordering::Relaxed)).min().unwrap_or(0)
    }

    /// What calls failed with so far, and how often.
    pub(crate) fn failures(&self) -> BTreeMap<String, usize> {
        self.shared.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the clients when the short leases have ended and the watchers have all there is.
    pub(crate) async fn finish(self) -> History {
        self.shared.stops.store(true, Ordering::Relaxed);
        for worker in self.workers {
            worker.await.expect("a client does not panic");
        }
        let mut client = self.shared.client(0);
        // What nobody renews must have ended; how late is for the store's own tests.
        let deadline = Instant::now() + Duration::from_secs(SHORT_TTL_SECONDS + 30);
        loop {
            let short = crate::client::range(SHORT_PREFIX, "short0");
            let left = client.kv.range(short).await.expect("a read").into_inner();
            if left.kvs.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "leases of {SHORT_TTL_SECONDS} s never end: {left:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // One more write, of a key of every watcher, so that each can tell that it has everything.
        let changes: Changes = ["w1/end", "shared/end"]
            .map(|key| (key.to_owned(), Change::Put { value: format!("the end of {key}").into_bytes(), lease: 0 }))
            .into();
        let began = Instant::now();
        let reply = client.kv.txn(request(None, &changes)).await.expect("a put").into_inner();
        let last = revision_of(reply.header);
        let outcome = Outcome::Applied { revision: last };
        let (name, ended) = ("the last write".to_owned(), Instant::now());
        self.shared.history().attempts.push(Attempt { name, began, ended, condition: None, changes, outcome });
        self.shared.last.store(last, Ordering::Relaxed);
        let mut watched = Vec::new();
        for watcher in self.watchers {
            let Ok(all) = tokio::time::timeout(WATCHED_WITHIN, watcher).await else {
                panic!("not each watcher got the last write, {last}: {:?}", self.shared.watched)
            };
            watched.push(all.expect("a watcher does not panic"));
        }
        let mut history = std::mem::take(&mut *self.shared.history());
        // The renewed lease may have ended since; not every watcher has waited for that.
        for watched in &mut watched {
            watched.transactions.retain(|transaction| transaction.revision <= last);
        }
        history.watched = watched;
        history
    }
}

fn revision_of(header: Option<ResponseHeader>) -> i64 {
    header.expect("replies have headers").revision
}

/// A key with its version, as a reply tells it.
pub(crate) fn keyed(kv: KeyValue) -> (String, Version) {
    (text(&kv.key), version(kv))
}

fn version(kv: KeyValue) -> Version {
    Version {
        value: kv.value.to_vec(),
        lease: kv.lease,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("the keys of the test are text")
}

/// One that writes.
struct Writer {
    shared: Arc<Shared>,
    client: Client,
    number: u64,
    random: Random,
    count: u64,
    /// The revisions of its own keys as far as it knows; 0 for those that are not there.
    known: BTreeMap<String, i64>,
    lease: i64,
}

impl Writer {
    fn new(shared: Arc<Shared>, number: u64, random: Random) -> Self {
        let client = shared.client(usize::try_from(number).expect("few writers"));
        Self { shared, client, number, random, count: 0, known: BTreeMap::new(), lease: 0 }
    }

    async fn run(mut self) {
        let id = 1_000_000 + i64::try_from(self.number).expect("few writers");
        while self.lease == 0 && !self.shared.stops() {
            if grant(&self.shared, &mut self.client, id, LONG_TTL_SECONDS).await {
                self.lease = id;
            }
        }
        while !self.shared.stops() {
            self.write().await;
        }
    }

    fn own_key(&mut self) -> String {
        format!("w{}/{:02}", self.number, self.random.below(OWN_KEYS))
    }

    /// A value that nobody else writes, of a length that varies.
    fn value(&mut self, part: u64) -> Vec<u8> {
        let mut value = format!("{}-{}-{part} ", self.number, self.count).into_bytes();
        let len = if self.random.once_in(200) { 20_000 } else { 20 + self.random.below(600) };
        value.resize(usize::try_from(len).expect("a small number"), b'.');
        value
    }

    fn put(&mut self, part: u64) -> Change {
        let lease = if self.random.once_in(5) { self.lease } else { 0 };
        Change::Put { value: self.value(part), lease }
    }

    async fn write(&mut self) {
        self.count += 1;
        let key = self.own_key();
        let known = self.known.get(&key).copied().unwrap_or(0);
        let mut changes = Changes::new();
        let mut condition = None;
        match self.random.below(10) {
            // Several keys at once, one of them everybody's; some are deleted, whether they are there or not.
            0..3 => {
                changes.insert(format!("shared/{}", self.random.below(SHARED_KEYS)), self.put(0));
                for part in 1..2 + self.random.below(6) {
                    let change = if self.random.once_in(4) { Change::Delete } else { self.put(part) };
                    changes.insert(self.own_key(), change);
                }
            }
            3..5 if known != 0 => {
                condition = Some((key.clone(), known));
                changes.insert(key, Change::Delete);
            }
            5 => drop(changes.insert(format!("shared/{}", self.random.below(SHARED_KEYS)), self.put(0))),
            // A create if the key is not there, an update if it is.
            _ => {
                condition = Some((key.clone(), known));
                changes.insert(key, self.put(0));
            }
        }
        self.attempt(condition, changes).await;
    }

    async fn attempt(&mut self, condition: Option<(String, i64)>, changes: Changes) {
        let request = request(condition.as_ref(), &changes);
        let began = Instant::now();
        let reply = tokio::time::timeout(CALL_TIMEOUT, self.client.kv.txn(request)).await;
        let ended = Instant::now();
        let outcome = match reply {
            Ok(Ok(reply)) => self.learn(condition.as_ref(), &changes, reply.into_inner(), began, ended),
            Ok(Err(status)) => {
                self.shared.failed(&status);
                // What is there is told by the next condition that does not hold.
                tokio::time::sleep(AWAY_PAUSE).await;
                Outcome::Unknown
            }
            Err(_) => {
                self.shared.failed(&Status::deadline_exceeded("no answer"));
                Outcome::Unknown
            }
        };
        if matches!(outcome, Outcome::Applied { .. }) {
            let url = usize::try_from(self.number).expect("few writers") % self.shared.urls.len();
            self.shared.acknowledged[url].fetch_add(1, Ordering::Relaxed);
        }
        let name = format!("write {} of writer {}", self.count, self.number);
        self.shared.history().attempts.push(Attempt { name, began, ended, condition, changes, outcome });
    }

    /// Takes in what a reply tells about the own keys.
    fn learn(
        &mut self,
        condition: Option<&(String, i64)>,
        changes: &Changes,
        reply: TxnResponse,
        began: Instant,
        ended: Instant,
    ) -> Outcome {
        let revision = revision_of(reply.header);
        if reply.succeeded {
            for (key, change) in changes {
                let known = if *change == Change::Delete { 0 } else { revision };
                self.known.insert(key.clone(), known);
            }
            return Outcome::Applied { revision };
        }
        let (key, _) = condition.expect("only a condition can fail");
        let Some(Response::ResponseRange(read)) = reply.responses.into_iter().next().and_then(|op| op.response) else {
            panic!("a refused write reads the key")
        };
        let found = read.kvs.into_iter().next().map(version);
        self.known.insert(key.clone(), found.as_ref().map_or(0, |found| found.mod_revision));
        self.shared.history().reads.push(Read { began, ended, key: key.clone(), revision, found });
        Outcome::Refused { revision }
    }
}

fn request(condition: Option<&(String, i64)>, changes: &Changes) -> TxnRequest {
    let compare = condition.map(|(key, revision)| Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key: key.clone().into(),
        target_union: Some(TargetUnion::ModRevision(*revision)),
        ..Compare::default()
    });
    let success = changes.iter().map(|(key, change)| match change {
        Change::Put { value, lease } => PutRequest { lease: *lease, ..put(key, value) }.op(),
        Change::Delete => delete(key).op(),
    });
    let failure = condition.map(|(key, _)| get(key).op());
    TxnRequest {
        compare: compare.into_iter().collect(),
        success: success.collect(),
        failure: failure.into_iter().collect(),
    }
}

/// Asks for a lease; says whether it was granted, now or by an earlier try whose answer was lost.
async fn grant(shared: &Shared, client: &mut Client, id: i64, ttl_seconds: u64) -> bool {
    let ttl = i64::try_from(ttl_seconds).expect("a small number");
    let asked = Instant::now();
    let reply = client.lease.lease_grant(LeaseGrantRequest { id, ttl }).await;
    let exists = |message: &str| message.contains("lease already exists");
    let granted = match &reply {
        Ok(_) => true,
        Err(status) if exists(status.message()) => true,
        Err(status) => {
            shared.failed(status);
            false
        }
    };
    {
        let mut history = shared.history();
        match history.leases.iter_mut().find(|lease| lease.id == id) {
            // The first try counts: the lease may be that old.
            Some(lease) => lease.granted |= granted,
            None => history.leases.push(Lease { id, ttl_seconds, asked, granted, renewals: Vec::new() }),
        }
    }
    if !granted {
        tokio::time::sleep(AWAY_PAUSE).await;
    }
    granted
}

/// Puts one key under a lease; `false` if the lease is not there any more.
async fn put_leased(shared: &Shared, client: &mut Client, key: String, lease: i64) -> bool {
    let value = format!("{key} of {lease}").into_bytes();
    let changes = Changes::from([(key, Change::Put { value, lease })]);
    let began = Instant::now();
    let reply = client.kv.txn(request(None, &changes)).await;
    let ended = Instant::now();
    let outcome = match reply {
        Ok(reply) => Outcome::Applied { revision: revision_of(reply.into_inner().header) },
        Err(status) if status.code() == Code::NotFound => return false,
        Err(status) => {
            shared.failed(&status);
            Outcome::Unknown
        }
    };
    let name = format!("a key of lease {lease}");
    shared.history().attempts.push(Attempt { name, began, ended, condition: None, changes, outcome });
    true
}

/// One that keeps a lease alive: it must never end.
async fn keep(shared: Arc<Shared>, ttl_seconds: u64) {
    const ID: i64 = 2_000_000;
    let mut client = shared.client(1);
    while !grant(&shared, &mut client, ID, ttl_seconds).await {
        if shared.stops() {
            return;
        }
    }
    assert!(put_leased(&shared, &mut client, "kept".to_owned(), ID).await, "a lease of {ttl_seconds} s is gone");
    while !shared.stops() {
        let asked = Instant::now();
        let requests = futures_util::stream::iter([LeaseKeepAliveRequest { id: ID }]);
        let reply = async {
            let mut replies = client.lease.lease_keep_alive(requests).await?.into_inner();
            replies.message().await
        };
        match reply.await {
            Ok(Some(reply)) => {
                assert!(reply.ttl > 0, "the kept lease has ended");
                let mut history = shared.history();
                let lease = history.leases.iter_mut().find(|lease| lease.id == ID).expect("it was granted");
                lease.renewals.push((asked, Instant::now()));
            }
            Ok(None) => {}
            Err(status) => {
                shared.failed(&status);
                tokio::time::sleep(AWAY_PAUSE).await;
                continue;
            }
        }
        tokio::time::sleep(KEPT_PAUSE).await;
    }
}

/// One that takes leases and lets them end.
async fn grant_short(shared: Arc<Shared>) {
    let mut client = shared.client(2);
    let mut id = 3_000_000;
    while !shared.stops() {
        id += 1;
        if !grant(&shared, &mut client, id, SHORT_TTL_SECONDS).await {
            continue;
        }
        for part in ["a", "b", "c"] {
            if !put_leased(&shared, &mut client, format!("{SHORT_PREFIX}{id}/{part}"), id).await {
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
}

/// One that reads single keys.
async fn read(shared: Arc<Shared>, mut random: Random, writers: u64) {
    let mut client = shared.client(usize::try_from(random.below(8)).expect("a small number"));
    while !shared.stops() {
        let key = if random.once_in(3) {
            format!("shared/{}", random.below(SHARED_KEYS))
        } else {
            format!("w{}/{:02}", 1 + random.below(writers), random.below(OWN_KEYS))
        };
        let began = Instant::now();
        match client.kv.range(get(&key)).await {
            Ok(reply) => {
                let ended = Instant::now();
                let reply = reply.into_inner();
                let revision = revision_of(reply.header);
                let found = reply.kvs.into_iter().next().map(version);
                shared.history().reads.push(Read { began, ended, key, revision, found });
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Err(status) => {
                shared.failed(&status);
                tokio::time::sleep(AWAY_PAUSE).await;
            }
        }
    }
}

/// One that watches, from the beginning, over all connections that it takes.
async fn watch(shared: Arc<Shared>, number: usize, prefix: String) -> Watched {
    let mut client = shared.client(number);
    let mut watched = Watched { prefix, transactions: Vec::new() };
    let mut next = 2;
    let is_done = |next: i64| next > shared.last.load(Ordering::Relaxed);
    while !is_done(next) {
        let requests = tonic::codegen::tokio_stream::StreamExt::chain(
            futures_util::stream::iter([create(&watched.prefix, next)]),
            futures_util::stream::pending(),
        );
        let mut responses = match client.watch.watch(requests).await {
            Ok(responses) => responses.into_inner(),
            Err(status) => {
                shared.failed(&status);
                tokio::time::sleep(AWAY_PAUSE).await;
                continue;
            }
        };
        while !is_done(next) {
            let response = match tokio::time::timeout(Duration::from_millis(500), responses.message()).await {
                Ok(Ok(Some(response))) => response,
                Ok(Ok(None)) => break,
                Ok(Err(status)) => {
                    shared.failed(&status);
                    tokio::time::sleep(AWAY_PAUSE).await;
                    break;
                }
                // It may be time to end.
                Err(_) => continue,
            };
            assert!(!response.canceled, "watcher {number} was canceled at {next}: {response:?}");
            let arrived = Instant::now();
            for event in response.events {
                let kv = event.kv.expect("an event has a key");
                let revision = kv.mod_revision;
                let key = text(&kv.key);
                let change = (event.r#type == i32::from(EventType::Put)).then(|| version(kv));
                // A new response never goes on with an old transaction, so that a split one shows as two.
                match watched.transactions.last_mut() {
                    Some(last) if last.revision == revision && last.arrived == arrived => {
                        assert!(last.changes.insert(key, change).is_none(), "two events of one key at {revision}");
                    }
                    _ => {
                        let changes = BTreeMap::from([(key, change)]);
                        watched.transactions.push(Transaction { revision, arrived, changes });
                    }
                }
                next = next.max(revision + 1);
            }
            shared.watched[number].store(next - 1, Ordering::Relaxed);
        }
    }
    watched
}

fn create(prefix: &str, start_revision: i64) -> WatchRequest {
    let (key, range_end) = if prefix.is_empty() {
        (b"\0".to_vec(), b"\0".to_vec())
    } else {
        let mut end = prefix.as_bytes().to_vec();
        *end.last_mut().expect("not empty") += 1;
        (prefix.as_bytes().to_vec(), end)
    };
    let create = WatchCreateRequest {
        key: key.into(),
        range_end: range_end.into(),
        start_revision,
        ..WatchCreateRequest::default()
    };
    WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}
