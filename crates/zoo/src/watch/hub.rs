//! One upstream watch of a resource for all tenants' watches of it.
//!
//! A hub keeps the last events, bounded by bytes, so that a watch that comes back goes on where it was. One that is older than these has an
//! upstream watch of its own until it has caught up (see [`super`]).
//!
//! Invariant: a watcher gets each event of its tenant (and namespace) that is newer than where it joined, once and in order, or it ends. What
//! is told to it is never an event of anybody else.

use std::collections::{HashMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use kubewharf_upstream::Class;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::limits::{HUB_IDLE, OWN_ANSWER_BYTES_MAX, RING_BYTES_MAX, WATCHER_EVENTS_MAX};
use crate::names::{Names, TenantId};
use crate::rewrite::{self, Encoding, Kind};
use crate::tenant::{TENANT_LABEL, Tenant};
use crate::upstream::{Question, Upstream, UpstreamError, own_headers};

use super::frames::{Facts, Splitter, with_length};

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
    frame: Bytes,
    shown: OnceLock<Option<Bytes>>,
}

impl Event {
    fn shown(&self, watched: &Watched, names: &Names) -> Option<Bytes> {
        self.shown.get_or_init(|| watched.show(names, &self.frame)).clone()
    }
}

/// Somebody who watches.
struct Watcher {
    /// The namespace upstream; none for all.
    namespace: Option<Box<str>>,
    /// Events up to this version are not for it.
    after: u64,
    wants_bookmarks: bool,
    sender: mpsc::Sender<Bytes>,
}

/// The watchers of one tenant.
struct Group {
    tenant: Arc<Tenant>,
    watchers: Vec<Watcher>,
}

struct State {
    /// All events newer than this are in the ring.
    floor: u64,
    /// Everything up to this has been seen.
    last: u64,
    ring: VecDeque<Event>,
    ring_bytes: usize,
    groups: HashMap<TenantId, Group>,
    /// Since when nobody watches.
    idle_since: Option<Instant>,
    /// Nobody may join any more.
    is_over: bool,
}

/// A shared watch.
pub(crate) struct Hub {
    watched: Watched,
    /// The version that it began at.
    began: u64,
    state: Mutex<State>,
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
    pub(crate) events: mpsc::Receiver<Bytes>,
}

/// All hubs.
pub(crate) struct Hubs {
    upstream: Arc<Upstream>,
    tenants: Arc<crate::tenant::Tenants>,
    hubs: Mutex<HashMap<Watched, Arc<Hub>>>,
}

impl Hubs {
    pub(crate) fn new(upstream: Arc<Upstream>, tenants: Arc<crate::tenant::Tenants>) -> Arc<Self> {
        Arc::new(Self { upstream, tenants, hubs: Mutex::default() })
    }

    /// Shared watches that there are.
    pub(crate) fn count(&self) -> usize {
        self.hubs.lock().len()
    }

    /// Joins the watch at a version, which it begins at if there is none. None: it has forgotten what follows that version.
    pub(crate) fn join(self: &Arc<Self>, watched: &Watched, wish: &Wish, version: u64) -> Option<Joined> {
        let mut hubs = self.hubs.lock();
        if let Some(hub) = hubs.get(watched)
            && let Some(joined) = hub.join(wish, version)
        {
            return joined;
        }
        let hub = Arc::new(Hub {
            watched: watched.clone(),
            began: version,
            state: Mutex::new(State {
                floor: version,
                last: version,
                ring: VecDeque::new(),
                ring_bytes: 0,
                groups: HashMap::new(),
                idle_since: None,
                is_over: false,
            }),
        });
        let joined = hub.join(wish, version).flatten();
        hubs.insert(watched.clone(), hub.clone());
        let this = self.clone();
        tokio::spawn(async move { this.run(hub).await });
        joined
    }

    /// Keeps a hub's watch going for as long as anybody wants it.
    async fn run(self: Arc<Self>, hub: Arc<Hub>) {
        let mut pause = PAUSE_FIRST;
        while !hub.state.lock().is_over {
            match self.watch_once(&hub, &mut pause).await {
                Ok(()) => {}
                Err(error) if error.status() == Some(StatusCode::GONE) => {
                    tracing::info!(path = hub.watched.path, "a watch is too old to go on");
                    hub.end(Some(&error));
                }
                Err(error) => tracing::warn!(path = hub.watched.path, %error, "a watch is interrupted"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
            if hub.is_unwanted() {
                hub.end(None);
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
                        hub.end(None);
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
                hub.take(&facts, &frame, &self.tenants);
            }
        }
    }
}

impl Hub {
    /// `None`: it is over. `Some(None)`: it has forgotten what follows the version.
    #[allow(clippy::option_option, reason = "the two are told apart at the only caller")]
    fn join(&self, wish: &Wish, version: u64) -> Option<Option<Joined>> {
        let mut state = self.state.lock();
        if state.is_over {
            return None;
        }
        if version < state.floor {
            return Some(None);
        }
        let id = wish.tenant.names.id();
        let mut backlog = Vec::new();
        let from = state.ring.partition_point(|event| event.version <= version);
        for event in state.ring.range(from..) {
            if event.tenant != id || wish.namespace.as_ref().is_some_and(|namespace| **namespace != *event.namespace) {
                continue;
            }
            let Some(shown) = event.shown(&self.watched, &wish.tenant.names) else { return Some(None) };
            backlog.push(shown);
        }
        let (sender, events) = mpsc::channel(WATCHER_EVENTS_MAX);
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
        Some(Some(Joined { backlog, events }))
    }

    /// Takes an event in and hands it to those whose it is.
    fn take(&self, facts: &Facts<'_>, frame: &Bytes, tenants: &crate::tenant::Tenants) {
        let mut state = self.state.lock();
        let state = &mut *state;
        if facts.kind == "BOOKMARK" {
            state.last = state.last.max(facts.version);
            let mut shown = None;
            for group in state.groups.values_mut() {
                let names = &group.tenant.names;
                // It holds no name, so all see the same.
                let shown = shown.get_or_insert_with(|| self.watched.show(names, frame));
                group.watchers.retain(|watcher| match &*shown {
                    Some(shown) if watcher.wants_bookmarks && facts.version > watcher.after => {
                        watcher.sender.try_send(shown.clone()).is_ok()
                    }
                    _ => !watcher.sender.is_closed(),
                });
            }
            state.groups.retain(|_, group| !group.watchers.is_empty());
            return;
        }
        if facts.version <= state.last {
            return;
        }
        state.last = facts.version;
        let Some(tenant) = self.watched.owner(facts, frame, |id| tenants.by_id(id)) else { return };
        let event = Event {
            version: facts.version,
            tenant,
            namespace: facts.namespace.into(),
            frame: frame.clone(),
            shown: OnceLock::new(),
        };
        if let Some(group) = state.groups.get_mut(&tenant) {
            let names = &group.tenant.names;
            group.watchers.retain(|watcher| {
                if watcher.namespace.as_ref().is_some_and(|namespace| **namespace != *event.namespace)
                    || facts.version <= watcher.after
                {
                    return !watcher.sender.is_closed();
                }
                // One that does not keep up ends; it comes back and goes on where it was.
                event.shown(&self.watched, names).is_some_and(|shown| watcher.sender.try_send(shown).is_ok())
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
            group.watchers.retain(|watcher| !watcher.sender.is_closed());
            !group.watchers.is_empty()
        });
        if !state.groups.is_empty() {
            state.idle_since = None;
            return false;
        }
        state.idle_since.get_or_insert_with(Instant::now).elapsed() >= HUB_IDLE
    }

    /// Ends all its watchers. Those that asked for what is gone are told so; the others come back by themselves.
    fn end(&self, gone: Option<&UpstreamError>) {
        let mut state = self.state.lock();
        state.is_over = true;
        let groups = std::mem::take(&mut state.groups);
        let Some(UpstreamError::Answer { body, .. }) = gone else { return };
        for group in groups.into_values() {
            let shown = self.watched.show(&group.tenant.names, body);
            for watcher in group.watchers {
                if watcher.after <= self.began
                    && let Some(shown) = &shown
                {
                    // It ends in any case.
                    let _ = watcher.sender.try_send(shown.clone());
                }
            }
        }
    }
}
