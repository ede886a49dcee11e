//! One upstream watch of a resource for all tenants' watches of it.
//!
//! A hub keeps the last events, bounded by bytes, so that a watch that comes back goes on where it was. One that is older than these, or newer
//! than anything that upstream has told, has an upstream watch of its own until it has caught up (see [`super`]).
//!
//! Invariant: a hub begins and goes on at versions that upstream has told, never at one that a client has.
//!
//! Invariant: a watcher gets each event of its tenant (and namespace) that is newer than where it joined, once and in order, or it ends. What
//! is told to it is never an event of anybody else.

use std::collections::{HashMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use kubewharf_front::places::{Place, Places};
use kubewharf_kube_api::Status;
use kubewharf_upstream::Class;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::limits::{
    HUB_IDLE, HUB_LOOKS_BACK, OWN_ANSWER_BYTES_MAX, OWN_WATCHES_PER_TENANT_MAX, RING_BYTES_MAX, WATCH_RETRY_SECONDS,
    WATCHES_PER_TENANT_MAX,
};
use crate::names::{Names, TenantId};
use crate::rewrite::{self, Encoding, Kind};
use crate::scan;
use crate::tenant::{TENANT_LABEL, Tenant};
use crate::upstream::{Question, Upstream, UpstreamError, own_headers};

use super::frames::{Facts, Splitter, with_length};
use super::queue::{Receiver, Sender, queue};

/// First pause before a watch that ended is begun again; it doubles while that fails.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
/// Longest such pause.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What is watched: all objects of a resource, in one encoding.
#[derive(Clone)]
pub(crate) struct Watched {
    /// Path of the resource, such as `/api/v1/pods`.
    pub(crate) path: String,
    pub(crate) encoding: Encoding,
    pub(crate) is_namespaced: bool,
    /// The kind of the objects.
    pub(crate) kind: Kind,
}

impl PartialEq for Watched {
    fn eq(&self, other: &Self) -> bool {
        // The path says the rest.
        (&self.path, self.encoding) == (&other.path, other.encoding)
    }
}

impl Eq for Watched {}

impl Hash for Watched {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.path.hash(state);
    }
}

impl Watched {
    /// Whose an event is; none if it is no tenant's, or none of a tenant's business.
    pub(crate) fn owner(
        &self,
        facts: &Facts<'_>,
        frame: &[u8],
        uid: impl Fn(TenantId) -> Option<Arc<Tenant>>,
    ) -> Option<TenantId> {
        if self.is_namespaced {
            return TenantId::split(facts.namespace).map(|(id, _)| id);
        }
        let (id, _) = TenantId::split(facts.name)?;
        // The name says whose it is; the label, that it is not the host's own.
        let tenant = uid(id)?;
        memchr::memmem::find(frame, tenant.names.uid().as_bytes()).map(|_| id)
    }

    /// What a request upstream for it accepts.
    pub(crate) fn accept(&self) -> HeaderMap {
        let mut headers = own_headers("application/json");
        if self.encoding == Encoding::Protobuf {
            let protobuf = HeaderValue::from_static("application/vnd.kubernetes.protobuf");
            headers.insert(http::header::ACCEPT, protobuf);
        }
        headers
    }

    /// An event as its tenant sees it, as it goes to the client; none if it can't be shown.
    pub(crate) fn show(&self, names: &Names, frame: &[u8]) -> Option<Bytes> {
        let mut shown = Vec::with_capacity(frame.len() + 4);
        let rewritten = rewrite::watch_event(self.encoding, self.kind, names, frame, &mut shown);
        if let Err(error) = rewritten {
            tracing::error!(%error, path = self.path, "an event can't be rewritten; its watch ends");
            return None;
        }
        if self.encoding == Encoding::Json {
            return Some(shown.into());
        }
        let mut framed = Vec::with_capacity(shown.len() + 4);
        with_length(&mut framed, &shown);
        Some(framed.into())
    }
}

/// An event that is kept.
struct Event {
    version: u64,
    tenant: TenantId,
    namespace: Box<str>,
    /// As it came: few watches come back to an event, and what each tenant sees of it would take as much memory again.
    frame: Bytes,
}

/// Somebody who watches.
struct Watcher {
    /// The namespace upstream; none for all.
    namespace: Option<Box<str>>,
    /// Events up to this version are not for it.
    after: u64,
    wants_bookmarks: bool,
    sender: Sender,
}

/// The watchers of one tenant.
struct Group {
    tenant: Arc<Tenant>,
    watchers: Vec<Watcher>,
}

struct State {
    /// The version that was read when the watch began; none before.
    began: Option<u64>,
    /// Versions up to this one are known to be there: upstream has told them.
    known: u64,
    /// All events newer than this are in the ring.
    floor: u64,
    /// Everything up to this has been seen.
    last: u64,
    ring: VecDeque<Event>,
    ring_bytes: usize,
    groups: HashMap<TenantId, Group>,
    /// Since when nobody watches.
    idle_since: Option<Instant>,
    /// Whether any event was taken in.
    has_taken: bool,
    /// Nobody may join any more.
    is_over: bool,
}

/// A shared watch.
pub(crate) struct Hub {
    watched: Watched,
    state: Mutex<State>,
    /// Held while the newest version is read.
    reading: tokio::sync::Mutex<()>,
    /// How often that was begun.
    reads: AtomicU64,
}

/// Who wants to watch what.
pub(crate) struct Wish {
    pub(crate) tenant: Arc<Tenant>,
    /// The namespace upstream; none for all.
    pub(crate) namespace: Option<Box<str>>,
    pub(crate) wants_bookmarks: bool,
}

/// A place among the watchers.
pub(crate) struct Joined {
    /// What has happened already.
    pub(crate) backlog: Vec<Bytes>,
    /// What happens; it ends when the watch does.
    pub(crate) events: Receiver,
}

/// Why a watch can't join a hub at its version.
#[derive(Debug, PartialEq, Eq)]
enum Apart {
    /// The hub has ended.
    Over,
    /// It has forgotten what follows, or can't show it.
    Old,
    /// It has not begun, or does not know whether there is this version.
    Unknown,
}

/// All hubs.
pub(crate) struct Hubs {
    upstream: Arc<Upstream>,
    tenants: Arc<crate::tenant::Tenants>,
    hubs: Mutex<HashMap<Watched, Arc<Hub>>>,
    /// Each tenant's watches.
    watches: Arc<Places<TenantId>>,
    /// Those that each have one upstream.
    own_watches: Arc<Places<TenantId>>,
}

impl Hubs {
    pub(crate) fn new(upstream: Arc<Upstream>, tenants: Arc<crate::tenant::Tenants>) -> Arc<Self> {
        Arc::new(Self {
            upstream,
            tenants,
            hubs: Mutex::default(),
            watches: Places::new(WATCHES_PER_TENANT_MAX),
            own_watches: Places::new(OWN_WATCHES_PER_TENANT_MAX),
        })
    }

    /// Shared watches that there are.
    pub(crate) fn count(&self) -> usize {
        self.hubs.lock().values().filter(|hub| hub.state.lock().began.is_some()).count()
    }

    /// A tenant's place for one more watch.
    pub(crate) fn enter(&self, tenant: &Tenant) -> Result<Place<TenantId>, Box<Status>> {
        let message = "the tenant has as many watches as it may; try again";
        let full = || Box::new(Status::too_many_requests(message, WATCH_RETRY_SECONDS));
        self.watches.enter(tenant.names.id()).ok_or_else(full)
    }

    /// Its place for one that has one upstream.
    pub(crate) fn enter_own(&self, tenant: &Tenant) -> Result<Place<TenantId>, Box<Status>> {
        let message = "the tenant has as many watches with selectors, or of old versions, as it may; try again";
        let full = || Box::new(Status::too_many_requests(message, WATCH_RETRY_SECONDS));
        self.own_watches.enter(tenant.names.id()).ok_or_else(full)
    }

    /// Joins the watch at a version that upstream has just told, with which it begins if it has not. None: it has forgotten what follows.
    pub(crate) fn join(self: &Arc<Self>, watched: &Watched, wish: &Wish, version: u64) -> Option<Joined> {
        loop {
            let hub = self.hub(watched);
            self.learn(&hub, version);
            match hub.join(wish, version) {
                Ok(joined) => return Some(joined),
                Err(Apart::Over) => {}
                Err(_) => return None,
            }
        }
    }

    /// Joins the watch at the version of an event that upstream has told, if the watch is there and knows what follows.
    pub(crate) fn rejoin(&self, watched: &Watched, wish: &Wish, version: u64) -> Option<Joined> {
        let hub = self.hubs.lock().get(watched)?.clone();
        {
            let mut state = hub.state.lock();
            state.known = state.known.max(version);
        }
        hub.join(wish, version).ok()
    }

    /// Joins the watch at a client's version, once it is known that there is this version. None: it is too old, or there is none such yet.
    pub(crate) async fn join_asked(self: &Arc<Self>, watched: &Watched, wish: &Wish, version: u64) -> Option<Joined> {
        loop {
            let hub = self.hub(watched);
            let reads = hub.reads.load(Ordering::SeqCst);
            match hub.join(wish, version) {
                Ok(joined) => return Some(joined),
                Err(Apart::Over) => continue,
                Err(Apart::Old) => return None,
                Err(Apart::Unknown) => {}
            }
            let _reading = hub.reading.lock().await;
            // One that was begun after this watch came tells this one too.
            if hub.reads.load(Ordering::SeqCst) == reads {
                hub.reads.fetch_add(1, Ordering::SeqCst);
                match self.read_version(watched).await {
                    Ok(newest) => self.learn(&hub, newest),
                    // The watch that it gets of its own tells the client.
                    Err(error) => tracing::debug!(path = watched.path, %error, "the newest version can't be read"),
                }
            }
            match hub.join(wish, version) {
                Ok(joined) => return Some(joined),
                Err(Apart::Over) => {}
                Err(_) => return None,
            }
        }
    }

    /// The hub, which may have to begin yet.
    fn hub(&self, watched: &Watched) -> Arc<Hub> {
        let mut hubs = self.hubs.lock();
        if let Some(hub) = hubs.get(watched)
            && !hub.state.lock().is_over
        {
            return hub.clone();
        }
        let hub = Arc::new(Hub::new(watched.clone()));
        hubs.insert(watched.clone(), hub.clone());
        hub
    }

    /// Takes in that upstream has this version.
    fn learn(self: &Arc<Self>, hub: &Arc<Hub>, version: u64) {
        if hub.learn(version) {
            let (this, hub) = (self.clone(), hub.clone());
            tokio::spawn(async move { this.run(hub).await });
        }
    }

    /// The newest version upstream.
    async fn read_version(&self, watched: &Watched) -> Result<u64, UpstreamError> {
        const PARTIAL: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
        let mut headers = own_headers("application/json");
        headers.insert(http::header::ACCEPT, HeaderValue::from_static(PARTIAL));
        let target = format!("{}?limit=1", watched.path);
        let question = Question { method: Method::GET, target, headers, body: Bytes::new(), class: Class::Short };
        let answer = self.upstream.send(&question).await?.whole(OWN_ANSWER_BYTES_MAX).await?;
        let path = question.target;
        if !answer.status.is_success() {
            return Err(UpstreamError::Answer { method: Method::GET, path, status: answer.status, body: answer.body });
        }
        let version = scan::text(&answer.body, &["metadata", "resourceVersion"]).and_then(|text| text.parse().ok());
        version.ok_or_else(|| UpstreamError::Content { path, problem: "it has no version".to_owned() })
    }

    /// Keeps a hub's watch going for as long as anybody wants it.
    async fn run(self: Arc<Self>, hub: Arc<Hub>) {
        let mut pause = PAUSE_FIRST;
        while !hub.state.lock().is_over {
            match self.watch_once(&hub, &mut pause).await {
                Ok(()) => {}
                Err(error) if error.status() == Some(StatusCode::GONE) => {
                    if hub.begin_later() {
                        continue;
                    }
                    tracing::info!(path = hub.watched.path, "a watch is too old to go on");
                    hub.end();
                }
                // The resource itself is gone; its clients learn it when they come back.
                Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => hub.end(),
                Err(error) => tracing::warn!(path = hub.watched.path, %error, "a watch is interrupted"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
            if hub.is_unwanted() {
                hub.end();
            }
        }
        let mut hubs = self.hubs.lock();
        if hubs.get(&hub.watched).is_some_and(|present| Arc::ptr_eq(present, &hub)) {
            hubs.remove(&hub.watched);
        }
    }

    async fn watch_once(&self, hub: &Hub, pause: &mut Duration) -> Result<(), UpstreamError> {
        let watched = &hub.watched;
        let version = hub.state.lock().last;
        let mut target = format!("{}?watch=true&allowWatchBookmarks=true&resourceVersion={version}", watched.path);
        if !watched.is_namespaced {
            target += &format!("&labelSelector={}", TENANT_LABEL.replace('/', "%2F"));
        }
        let headers = watched.accept();
        let question = Question { method: Method::GET, target, headers, body: Bytes::new(), class: Class::Watch };
        let mut answer = self.upstream.send(&question).await?;
        if !answer.status.is_success() {
            let status = answer.status;
            let body = answer.whole(OWN_ANSWER_BYTES_MAX).await?.body;
            return Err(UpstreamError::Answer { method: Method::GET, path: question.target, status, body });
        }
        let mut splitter = Splitter::new(watched.encoding);
        let mut look = tokio::time::interval(HUB_IDLE / 4);
        loop {
            let piece = tokio::select! {
                piece = answer.piece() => piece?,
                _ = look.tick() => {
                    if hub.is_unwanted() {
                        hub.end();
                        return Ok(());
                    }
                    continue;
                }
            };
            let Some(piece) = piece else { return Ok(()) };
            splitter.push(&piece);
            let broken = |problem: String| UpstreamError::Content { path: watched.path.clone(), problem };
            while let Some(frame) = splitter.next().map_err(|error| broken(error.to_string()))? {
                let facts = Facts::of(watched.encoding, &frame).map_err(|error| broken(error.to_string()))?;
                if facts.kind == "ERROR" {
                    // Whatever it is, to begin again tells whether the watch can go on.
                    let is_expired = memchr::memmem::find(&frame, b"Expired").is_some();
                    let status = if is_expired { StatusCode::GONE } else { StatusCode::INTERNAL_SERVER_ERROR };
                    return Err(UpstreamError::Answer {
                        method: Method::GET,
                        path: watched.path.clone(),
                        status,
                        body: frame,
                    });
                }
                *pause = PAUSE_FIRST;
                hub.take(&facts, &frame, |id| self.tenants.by_id(id));
            }
        }
    }
}

impl Hub {
    fn new(watched: Watched) -> Self {
        let state = State {
            began: None,
            known: 0,
            floor: 0,
            last: 0,
            ring: VecDeque::new(),
            ring_bytes: 0,
            groups: HashMap::new(),
            idle_since: None,
            has_taken: false,
            is_over: false,
        };
        Self { watched, state: Mutex::new(state), reading: tokio::sync::Mutex::default(), reads: AtomicU64::new(0) }
    }

    /// Takes in that upstream has told this version; true when the watch is to begin.
    fn learn(&self, version: u64) -> bool {
        let mut state = self.state.lock();
        state.known = state.known.max(version);
        if state.is_over || state.began.is_some() {
            return false;
        }
        state.began = Some(version);
        // Zero would mean any version.
        state.floor = version.saturating_sub(HUB_LOOKS_BACK).max(1);
        state.last = state.floor;
        true
    }

    /// Begins at the version that was read, because upstream has forgotten what was before; false if it has begun already. Those that joined
    /// at an older one end.
    fn begin_later(&self) -> bool {
        let mut state = self.state.lock();
        let Some(version) = state.began.filter(|version| !state.has_taken && state.last < *version) else {
            return false;
        };
        (state.floor, state.last) = (version, version);
        state.groups.retain(|_, group| {
            group.watchers.retain(|watcher| watcher.after >= version);
            !group.watchers.is_empty()
        });
        true
    }

    fn join(&self, wish: &Wish, version: u64) -> Result<Joined, Apart> {
        let mut state = self.state.lock();
        if state.is_over {
            return Err(Apart::Over);
        }
        if state.began.is_none() || version > state.known {
            return Err(Apart::Unknown);
        }
        if version < state.floor {
            return Err(Apart::Old);
        }
        let id = wish.tenant.names.id();
        let mut backlog = Vec::new();
        let from = state.ring.partition_point(|event| event.version <= version);
        for event in state.ring.range(from..) {
            if event.tenant != id || wish.namespace.as_ref().is_some_and(|namespace| **namespace != *event.namespace) {
                continue;
            }
            backlog.push(self.watched.show(&wish.tenant.names, &event.frame).ok_or(Apart::Old)?);
        }
        let (sender, events) = queue();
        let after = version.max(state.last);
        let watcher =
            Watcher { namespace: wish.namespace.clone(), after, wants_bookmarks: wish.wants_bookmarks, sender };
        state
            .groups
            .entry(id)
            .or_insert_with(|| Group { tenant: wish.tenant.clone(), watchers: Vec::new() })
            .watchers
            .push(watcher);
        state.idle_since = None;
        Ok(Joined { backlog, events })
    }

    /// Takes an event in and hands it to those whose it is.
    fn take(&self, facts: &Facts<'_>, frame: &Bytes, tenant: impl Fn(TenantId) -> Option<Arc<Tenant>>) {
        let mut wakers = Vec::new();
        self.take_in(&mut self.state.lock(), facts, frame, tenant, &mut wakers);
        // Without the lock, which they may need.
        wakers.into_iter().for_each(Waker::wake);
    }

    fn take_in(
        &self,
        state: &mut State,
        facts: &Facts<'_>,
        frame: &Bytes,
        tenant: impl Fn(TenantId) -> Option<Arc<Tenant>>,
        wakers: &mut Vec<Waker>,
    ) {
        state.known = state.known.max(facts.version);
        state.has_taken = true;
        // One that does not keep up ends; it comes back and goes on where it was.
        let mut send = |watcher: &Watcher, shown: &Bytes| {
            let sent = watcher.sender.send(shown.clone());
            sent.map(|waker| wakers.extend(waker)).is_ok()
        };
        if facts.kind == "BOOKMARK" {
            state.last = state.last.max(facts.version);
            let mut shown = None;
            for group in state.groups.values_mut() {
                let names = &group.tenant.names;
                // It holds no name, so all see the same.
                let shown = shown.get_or_insert_with(|| self.watched.show(names, frame));
                group.watchers.retain(|watcher| match &*shown {
                    Some(shown) if watcher.wants_bookmarks && facts.version > watcher.after => send(watcher, shown),
                    _ => !watcher.sender.is_abandoned(),
                });
            }
            state.groups.retain(|_, group| !group.watchers.is_empty());
            return;
        }
        if facts.version <= state.last {
            return;
        }
        state.last = facts.version;
        let Some(tenant) = self.watched.owner(facts, frame, tenant) else { return };
        let event = Event { version: facts.version, tenant, namespace: facts.namespace.into(), frame: frame.clone() };
        if let Some(group) = state.groups.get_mut(&tenant) {
            let names = &group.tenant.names;
            let mut shown = None;
            group.watchers.retain(|watcher| {
                if watcher.namespace.as_ref().is_some_and(|namespace| **namespace != *event.namespace)
                    || facts.version <= watcher.after
                {
                    return !watcher.sender.is_abandoned();
                }
                let shown = shown.get_or_insert_with(|| self.watched.show(names, frame));
                shown.as_ref().is_some_and(|shown| send(watcher, shown))
            });
            if group.watchers.is_empty() {
                state.groups.remove(&tenant);
            }
        }
        state.ring_bytes += event.frame.len() + 256;
        state.ring.push_back(event);
        while state.ring_bytes > RING_BYTES_MAX {
            let Some(oldest) = state.ring.pop_front() else { break };
            state.ring_bytes -= oldest.frame.len() + 256;
            state.floor = oldest.version;
        }
    }

    /// Whether nobody has watched for a while.
    fn is_unwanted(&self) -> bool {
        let mut state = self.state.lock();
        state.groups.retain(|_, group| {
            group.watchers.retain(|watcher| !watcher.sender.is_abandoned());
            !group.watchers.is_empty()
        });
        if !state.groups.is_empty() {
            state.idle_since = None;
            return false;
        }
        state.idle_since.get_or_insert_with(Instant::now).elapsed() >= HUB_IDLE
    }

    /// Ends all its watchers, which come back by themselves. Those that then ask for what is gone are told so by upstream.
    fn end(&self) {
        let mut state = self.state.lock();
        state.is_over = true;
        let groups = std::mem::take(&mut state.groups);
        drop(state);
        drop(groups);
    }
}

#[cfg(test)]
mod tests;
