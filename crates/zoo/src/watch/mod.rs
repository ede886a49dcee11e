//! Watches: of all that a resource has through one shared upstream watch, of what a selector picks through one of its own.
//!
//! Invariant: a watch ends rather than leaving an event out. One that ends without an error can be resumed at the last version that it told,
//! here or at another zoo: versions are the apiserver's own.

mod frames;
mod hub;
mod queue;

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Response};
use kubewharf_front::places::Place;
use kubewharf_kube_api::Status;
use kubewharf_upstream::Class;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::kinds::Outcome;
use crate::limits::{ANSWER_BYTES_MAX, WATCH_LASTS};
use crate::list::Listed;
use crate::names::TenantId;
use crate::proxy::{Asked, Body, Broken, Media, Wanted, failed, media_of};
use crate::rewrite::{Encoding, Kind};
use crate::upstream::{Answer, Question};

pub(crate) use frames::{Facts, Splitter};
pub(crate) use hub::Hubs;
use hub::{Joined, Watched, Wish};
use queue::Receiver;

/// Where a watch's events come from.
enum Source {
    /// An upstream watch of its own, which it keeps.
    Own(Box<Own>),
    /// An upstream watch of its own until the shared one has what follows.
    CatchingUp(Box<Own>),
    /// The shared watch.
    Shared(Receiver),
}

/// An upstream watch of its own.
struct Own {
    answer: Answer,
    splitter: Splitter,
    _place: Place<TenantId>,
}

/// A watch of a client.
struct Watch {
    hubs: Arc<Hubs>,
    watched: Watched,
    wish: Wish,
    /// What goes out before anything that is still to come.
    queue: VecDeque<Bytes>,
    source: Source,
    /// Nothing is still to come.
    is_over: bool,
    ends: Pin<Box<Sleep>>,
    _place: Place<TenantId>,
}

impl Asked {
    /// Answers a watch.
    pub(crate) async fn watch(
        &self,
        wanted: &Wanted<'_>,
        kind: Kind,
        accept: &str,
    ) -> Result<Response<Body>, Box<Status>> {
        if wanted.outcome == Outcome::OwnCluster {
            self.proxy.tenants.ensure_all(&self.tenant).await.map_err(|error| failed(&error))?;
        }
        let place = self.proxy.hubs.enter(&self.tenant)?;
        let query = wanted.query;
        let namespace = (wanted.outcome == Outcome::Namespaced && !wanted.is_for_all_namespaces())
            .then(|| self.names().inward(&wanted.info.namespace).into_boxed_str());
        let wish =
            Wish { tenant: self.tenant.clone(), namespace, wants_bookmarks: query.is_true("allowWatchBookmarks") };
        let watched = Watched {
            path: resource_path(wanted),
            encoding: Encoding::Json,
            is_namespaced: wanted.resource.namespaced,
            kind,
        };
        let has = |name| query.get(name).is_some_and(|value| !value.is_empty());
        let version = query.get("resourceVersion").unwrap_or_default();
        let begins = query.get("sendInitialEvents").map(|_| query.is_true("sendInitialEvents"));
        let matched = query.get("resourceVersionMatch").unwrap_or_default();
        // What is not well-formed goes the long way, on which the apiserver says so.
        let is_plain = match begins {
            Some(true) => matched == "NotOlderThan" && wish.wants_bookmarks,
            Some(false) => matched == "NotOlderThan" && !matches!(&*version, "" | "0"),
            None => matched.is_empty(),
        };
        let is_number = version.is_empty() || version.parse::<u64>().is_ok();
        let encoding = shared_encoding(accept);
        let is_shared =
            is_plain && is_number && !["fieldSelector", "labelSelector", "continue", "limit"].into_iter().any(has);
        let Some(encoding) = encoding.filter(|_| is_shared && wanted.info.name.is_empty()) else {
            return self.watch_alone(wanted, watched, wish, accept, place).await;
        };
        let watched = Watched { encoding, ..watched };
        let ends = self.ends(wanted);
        let mut queue = VecDeque::new();
        let with_objects = begins == Some(true) || (begins.is_none() && matches!(&*version, "" | "0"));
        let version = if with_objects {
            let media = match encoding {
                Encoding::Json => "application/json",
                Encoding::Protobuf => "application/vnd.kubernetes.protobuf",
            };
            let _turn = self.turn(wanted).await?;
            match self.gather(wanted, kind, media).await? {
                Listed::Failure(whole) => return self.answer(kind, whole),
                Listed::List { first, more, version, .. } => {
                    let (api_version, kind_name) = (api_version(wanted), wanted.resource.kind);
                    for object in std::iter::once(&first).chain(&more).flat_map(crate::list::List::objects) {
                        queue.push_back(frames::added(encoding, &api_version, kind_name, &object));
                    }
                    if begins == Some(true) {
                        queue.push_back(frames::initial_end(encoding, &api_version, kind_name, &version));
                    }
                    version
                }
            }
        } else {
            version.into_owned()
        };
        let version: u64 = version.parse().map_err(|_| Box::new(Status::internal_error("no version can be read")))?;
        let hubs = self.proxy.hubs.clone();
        let joined = if with_objects {
            // The list is zoo's own, and its version upstream's.
            hubs.join(&watched, &wish, version)
        } else {
            hubs.join_asked(&watched, &wish, version).await
        };
        let source = match joined {
            Some(Joined { backlog, events }) => {
                queue.extend(backlog);
                Source::Shared(events)
            }
            None => match self.catch_up(&watched, &wish, version).await? {
                Ok(own) => Source::CatchingUp(Box::new(own)),
                Err(failure) => return self.answer(kind, failure),
            },
        };
        let content_type = match encoding {
            Encoding::Json => "application/json",
            Encoding::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        };
        let ends = Box::pin(sleep_until(ends));
        let watch = Watch { hubs, watched, wish, queue, source, is_over: false, ends, _place: place };
        Ok(watch.into_response(HeaderValue::from_static(content_type)))
    }

    pub(crate) fn ends(&self, wanted: &Wanted<'_>) -> Instant {
        let seconds = wanted.query.get("timeoutSeconds").and_then(|seconds| seconds.parse::<u64>().ok());
        let lasts = match seconds.filter(|seconds| *seconds > 0) {
            Some(seconds) => Duration::from_secs(seconds.min(7 * 24 * 3600)),
            // Not all at once.
            None => {
                WATCH_LASTS
                    + WATCH_LASTS
                        .mul_f64(f64::from(RandomState::new().build_hasher().finish() as u32) / f64::from(u32::MAX))
            }
        };
        Instant::now() + lasts
    }

    /// A watch that is upstream what it is here.
    async fn watch_alone(
        &self,
        wanted: &Wanted<'_>,
        mut watched: Watched,
        wish: Wish,
        accept: &str,
        place: Place<TenantId>,
    ) -> Result<Response<Body>, Box<Status>> {
        let own_place = self.proxy.hubs.enter_own(&self.tenant)?;
        let target = wanted.upstream_in(self.names(), wish.namespace.as_deref(), true, |name, _| {
            (name == "pretty").then(String::new)
        })?;
        let headers = self.upstream_headers(Some(accept));
        let question = Question { method: Method::GET, target, headers, body: Bytes::new(), class: Class::Watch };
        let answer = self.proxy.upstream.send(&question).await.map_err(|error| failed(&error))?;
        if !answer.status.is_success() {
            let whole = answer.whole(ANSWER_BYTES_MAX).await.map_err(|error| failed(&error))?;
            return self.answer(watched.kind, whole);
        }
        if media_of(&answer.headers) == Media::Protobuf {
            watched.encoding = Encoding::Protobuf;
        }
        let content_type = answer.headers.get(CONTENT_TYPE).cloned();
        let splitter = Splitter::new(watched.encoding);
        let source = Source::Own(Box::new(Own { answer, splitter, _place: own_place }));
        let ends = Box::pin(sleep_until(self.ends(wanted) + Duration::from_secs(60)));
        let (hubs, queue) = (self.proxy.hubs.clone(), VecDeque::new());
        let watch = Watch { hubs, watched, wish, queue, source, is_over: false, ends, _place: place };
        Ok(watch.into_response(content_type.unwrap_or(HeaderValue::from_static("application/json"))))
    }

    /// An upstream watch from a version that the shared one has forgotten, or does not know.
    async fn catch_up(
        &self,
        watched: &Watched,
        wish: &Wish,
        version: u64,
    ) -> Result<Result<Own, crate::upstream::Whole>, Box<Status>> {
        let place = self.proxy.hubs.enter_own(&self.tenant)?;
        let path = match &wish.namespace {
            Some(namespace) => {
                let (group, resource) = watched.path.rsplit_once('/').expect("it is a path");
                format!("{group}/namespaces/{namespace}/{resource}")
            }
            None => watched.path.clone(),
        };
        let mut target = format!("{path}?watch=true&allowWatchBookmarks=true&resourceVersion={version}");
        if !watched.is_namespaced {
            target +=
                &format!("&labelSelector={}%3D{}", crate::tenant::TENANT_LABEL.replace('/', "%2F"), self.names().uid());
        }
        let question = Question {
            method: Method::GET,
            target,
            headers: watched.accept(),
            body: Bytes::new(),
            class: Class::Watch,
        };
        let answer = self.proxy.upstream.send(&question).await.map_err(|error| failed(&error))?;
        if answer.status.is_success() {
            return Ok(Ok(Own { answer, splitter: Splitter::new(watched.encoding), _place: place }));
        }
        Ok(Err(answer.whole(ANSWER_BYTES_MAX).await.map_err(|error| failed(&error))?))
    }
}

impl Stream for Watch {
    type Item = Result<Bytes, Broken>;

    /// The next events, as many as there are.
    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.ends.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        loop {
            if let Some(piece) = queue::piece(&mut this.queue) {
                return Poll::Ready(Some(Ok(piece)));
            }
            if this.is_over {
                return Poll::Ready(None);
            }
            match &mut this.source {
                Source::Shared(events) => return events.poll_piece(context).map(|piece| piece.map(Ok)),
                Source::Own(own) | Source::CatchingUp(own) => match own.answer.poll_piece(context) {
                    Poll::Ready(Ok(Some(piece))) => this.is_over = !this.take(&piece),
                    // An upstream watch that broke off ends this one, which its client resumes.
                    Poll::Ready(_) => this.is_over = true,
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
    }
}

impl Watch {
    fn into_response(self, content_type: HeaderValue) -> Response<Body> {
        let mut response = Response::new(Body::streams(self));
        response.headers_mut().insert(CONTENT_TYPE, content_type);
        response.headers_mut().insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        response
    }

    /// Takes a piece of an upstream watch; false when this is the end.
    fn take(&mut self, piece: &[u8]) -> bool {
        let is_catching_up = matches!(self.source, Source::CatchingUp(_));
        if let Source::Own(own) | Source::CatchingUp(own) = &mut self.source {
            own.splitter.push(piece);
        }
        loop {
            let (Source::Own(own) | Source::CatchingUp(own)) = &mut self.source else { return true };
            let frame = match own.splitter.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => return true,
                Err(error) => {
                    tracing::error!(%error, path = self.watched.path, "a watch ends");
                    return false;
                }
            };
            let Ok(facts) = Facts::of(self.watched.encoding, &frame) else { return false };
            let is_told = match facts.kind {
                "ERROR" => true,
                "BOOKMARK" => self.wish.wants_bookmarks,
                _ => self.is_own(&facts, &frame),
            };
            if is_told {
                match self.watched.show(&self.wish.tenant.names, &frame) {
                    Some(shown) => self.queue.push_back(shown),
                    None => return false,
                }
            }
            if !is_catching_up || facts.version == 0 || facts.kind == "ERROR" {
                continue;
            }
            let joined = if facts.kind == "BOOKMARK" {
                // Upstream is there itself, so the shared watch may begin here.
                self.hubs.join(&self.watched, &self.wish, facts.version)
            } else {
                self.hubs.rejoin(&self.watched, &self.wish, facts.version)
            };
            if let Some(Joined { backlog, events }) = joined {
                self.queue.extend(backlog);
                self.source = Source::Shared(events);
                return true;
            }
        }
    }

    /// Whether an event of an upstream watch of its own is for this tenant.
    fn is_own(&self, facts: &Facts<'_>, frame: &[u8]) -> bool {
        let own = self.wish.tenant.names.id();
        if facts.name.is_empty() && facts.namespace.is_empty() {
            // A table: its rows tell.
            return rows_are_own(frame, own, self.watched.is_namespaced);
        }
        self.watched.owner(facts, frame, |_| Some(self.wish.tenant.clone())) == Some(own)
    }
}

/// A watch in JSON that goes upstream by itself, whose events look different here; after these first ones.
pub(crate) fn reshaped(
    answer: Answer,
    first: Vec<Bytes>,
    places: [Place<TenantId>; 2],
    reshape: impl Fn(&[u8]) -> Option<Bytes> + Send + 'static,
) -> Response<Body> {
    let state = (answer, Splitter::new(Encoding::Json), VecDeque::from(first), reshape);
    let pieces = futures_util::stream::unfold(
        (state, places),
        |((mut answer, mut splitter, mut queue, reshape), places)| async {
            loop {
                if let Some(piece) = queue::piece(&mut queue) {
                    return Some((Ok(piece), ((answer, splitter, queue, reshape), places)));
                }
                // Whatever ends it upstream, or can't be shown, ends it here.
                splitter.push(&answer.piece().await.ok()??);
                while let Some(frame) = splitter.next().ok()? {
                    queue.push_back(reshape(&frame)?);
                }
            }
        },
    );
    let mut response = Response::new(Body::streams(pieces));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Whether all rows of an event that is a table are of this tenant's objects.
fn rows_are_own(frame: &[u8], own: TenantId, is_namespaced: bool) -> bool {
    let Some(rows) = crate::scan::find(frame, &["object", "rows"]) else { return false };
    crate::scan::elements(frame, rows.start).all(|row| {
        let row = &frame[row];
        let field = if is_namespaced { "namespace" } else { "name" };
        let name = crate::scan::text(row, &["object", "metadata", field]).unwrap_or_default();
        TenantId::split(name).is_some_and(|(id, _)| id == own)
    })
}

/// The encoding of a watch that can be shared: what the client wants first, as objects.
fn shared_encoding(accept: &str) -> Option<Encoding> {
    let first = accept.split(',').next()?.trim();
    match first.split(';').next()?.trim() {
        "application/json" if !first.contains("as=") => Some(Encoding::Json),
        "application/vnd.kubernetes.protobuf" if !first.contains("as=") => Some(Encoding::Protobuf),
        _ => None,
    }
}

/// The path of all objects of the resource.
fn resource_path(wanted: &Wanted<'_>) -> String {
    let info = wanted.info;
    if info.api_group.is_empty() {
        format!("/api/{}/{}", info.api_version, info.resource)
    } else {
        format!("/apis/{}/{}/{}", info.api_group, info.api_version, info.resource)
    }
}

fn api_version(wanted: &Wanted<'_>) -> String {
    let info = wanted.info;
    if info.api_group.is_empty() {
        info.api_version.to_string()
    } else {
        format!("{}/{}", info.api_group, info.api_version)
    }
}
