//! Discovery and OpenAPI for tenants: `/api`, `/apis` and what is below them down to the versions, `/openapi/v2`, `/openapi/v3`.
//!
//! Each document is the one of the apiserver behind, in the encoding that the client asks for, without what tenants do not have
//! ([`crate::kinds`]). It is held in memory, and upstream is asked whether it still is so: after [`Settings::fresh`] in the background,
//! after [`Settings::stale`] or [`Discovery::invalidate`] before it is served. If upstream does not answer, what is held is served.
//!
//! Invariant: nothing that tenants do not have is named in an answer, and a path that no tenant has is never asked for upstream.
//!
//! Who may read discovery documents the caller decides, and it calls only for `GET` and `HEAD`.

mod accept;
mod cache;
mod groups;
mod json;
mod openapi;
mod origin;
mod paths;
mod proto;
mod resources;
mod respond;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::StatusCode;
use kubewharf_kube_api::Status;
use ring::digest::{Context, SHA512};
use tokio::time::{Instant, timeout};

pub use origin::{Fetched, Origin};
pub use resources::{Gvk, Resources, ServedResource, ServedSubresource, Verbs};

use crate::limits::DOCUMENTS_BYTES_MAX;
use crate::upstream::UpstreamError;
use accept::Encoding;
use cache::{Cache, Document, Entry, Failure, Held, Key, Name, View};
use json::Edit;

/// The most that the apiserver behind may take to answer; it makes OpenAPI 2 only when it is asked for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The same when there is something to serve instead.
const ANSWER_TIMEOUT_WHILE_HELD: Duration = Duration::from_secs(5);
/// How long nobody asks again after there was no answer.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Part of every hash that is made here; another one when documents are made differently.
const TRANSFORM: &[u8] = b"kubewharf zoo 1";

/// A document is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed: {0}")]
pub(crate) struct Malformed(&'static str);

/// Why there is no document.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// The apiserver behind did not answer.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// It did not answer a moment ago, and has not been asked again.
    #[error("the apiserver did not answer a moment ago")]
    Pausing,
    /// It does not have the document.
    #[error("{path}: the apiserver has no such document")]
    Missing {
        /// The path of the document.
        path: String,
    },
    /// Its answer can't be used.
    #[error("{path}: {problem}")]
    Content {
        /// The path of the document.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl DiscoveryError {
    /// What a client is told.
    #[must_use]
    pub fn to_client(&self) -> Status {
        match self {
            Self::Upstream(error) => error.to_client(),
            Self::Pausing => Status::service_unavailable("the apiserver can't be reached; try again"),
            Self::Missing { .. } => Status::resource_not_found(),
            Self::Content { .. } => Status::internal_error("the apiserver's document can't be used"),
        }
    }
}

/// How documents are served.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Host and port at which tenants find zoo.
    pub public_address: String,
    /// For how long a document is served without asking upstream whether it still is so.
    pub fresh: Duration,
    /// For how long it is served while upstream is asked.
    pub stale: Duration,
    /// The most bytes of documents to hold, but for the aggregated ones, which are small.
    pub bytes_max: usize,
}

impl Settings {
    /// With the usual times and bounds.
    #[must_use]
    pub fn new(public_address: impl Into<String>) -> Self {
        Self {
            public_address: public_address.into(),
            fresh: Duration::from_secs(2),
            stale: Duration::from_secs(60),
            bytes_max: DOCUMENTS_BYTES_MAX,
        }
    }
}

/// Serves discovery and OpenAPI documents to tenants.
pub struct Discovery<O> {
    origin: O,
    settings: Settings,
    cache: Cache,
    snapshot: ArcSwapOption<Snapshot>,
}

/// Resources, and the documents that they are from.
struct Snapshot {
    documents: [Arc<Document>; 2],
    resources: Arc<Resources>,
}

/// How a document that is held may be used.
#[derive(PartialEq, Eq)]
enum Age {
    Fresh,
    /// While upstream is asked.
    Stale,
    /// After upstream has been asked.
    Old,
}

impl<O: Origin> Discovery<O> {
    /// Nothing is fetched yet.
    pub fn new(origin: O, settings: Settings) -> Arc<Self> {
        let cache = Cache::new(settings.bytes_max);
        Arc::new(Self { origin, settings, cache, snapshot: ArcSwapOption::empty() })
    }

    /// All resources that tenants have. They are in memory but for the first time, and may be as old as [`Settings::fresh`] after pauses.
    ///
    /// # Errors
    /// When the apiserver behind has never answered yet.
    pub async fn resources(self: &Arc<Self>) -> Result<Arc<Resources>, DiscoveryError> {
        let [api, apis] = [Name::AggregatedApi, Name::AggregatedApis].map(|name| shared(name, Encoding::Json));
        // One after the other: at the first time the second fetch finds a connection.
        let documents = [self.document(api, None, None).await?, self.document(apis, None, None).await?];
        let documents = documents.map(|held| held.document);
        if let Some(known) = &*self.snapshot.load()
            && known.documents.iter().zip(&documents).all(|(known, now)| Arc::ptr_eq(known, now))
        {
            return Ok(Arc::clone(&known.resources));
        }
        let [api, apis] = &documents;
        let resources = Resources::new(&api.body, &apis.body)
            .map_err(|error| DiscoveryError::Content { path: "/apis".to_owned(), problem: error.to_string() })?;
        let resources = Arc::new(resources);
        self.snapshot.store(Some(Arc::new(Snapshot { documents, resources: Arc::clone(&resources) })));
        Ok(resources)
    }

    /// The resources as they were known when somebody last asked for them; none if nobody has.
    #[must_use]
    pub fn known_resources(&self) -> Option<Arc<Resources>> {
        self.snapshot.load().as_ref().map(|snapshot| Arc::clone(&snapshot.resources))
    }

    /// From now on no document is served before upstream has been asked whether it still is so.
    pub fn invalidate(&self) {
        self.cache.begin_generation();
    }

    /// A document, asked for after `not_before` if that is given. Those that are not aggregated are made with `resources`.
    async fn document(
        self: &Arc<Self>,
        key: Key,
        resources: Option<&Arc<Resources>>,
        not_before: Option<Instant>,
    ) -> Result<Held, DiscoveryError> {
        let entry = self.cache.entry(&key);
        if let Some(held) = entry.held() {
            match self.age(&held, resources, not_before) {
                Age::Fresh => return Ok(held),
                Age::Stale => {
                    self.refresh(key, entry, resources.cloned());
                    return Ok(held);
                }
                Age::Old => {}
            }
        }
        self.fetch(&key, &entry, resources, not_before).await
    }

    fn age(&self, held: &Held, resources: Option<&Arc<Resources>>, not_before: Option<Instant>) -> Age {
        let age = held.checked.elapsed();
        let is_other = resources.is_some_and(|resources| *resources.fingerprint() != held.document.fingerprint);
        if is_other
            || held.generation != self.cache.generation()
            || not_before.is_some_and(|instant| held.checked < instant)
            || age > self.settings.stale
        {
            Age::Old
        } else if age > self.settings.fresh {
            Age::Stale
        } else {
            Age::Fresh
        }
    }

    fn refresh(self: &Arc<Self>, key: Key, entry: Arc<Entry>, resources: Option<Arc<Resources>>) {
        if entry.is_refreshing.swap(true, Ordering::AcqRel) {
            return;
        }
        let discovery = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = discovery.fetch(&key, &entry, resources.as_ref(), None).await {
                tracing::debug!(document = ?key.name, %error, "no newer document");
            }
            entry.is_refreshing.store(false, Ordering::Release);
        });
    }

    /// Asks upstream, unless somebody else has meanwhile.
    async fn fetch(
        &self,
        key: &Key,
        entry: &Entry,
        resources: Option<&Arc<Resources>>,
        not_before: Option<Instant>,
    ) -> Result<Held, DiscoveryError> {
        let _turn = entry.fetching.lock().await;
        let held = entry.held();
        if let Some(held) = &held
            && self.age(held, resources, not_before) == Age::Fresh
        {
            return Ok(held.clone());
        }
        let failure = entry.failure().filter(|failure| failure.at.elapsed() < RETRY_PAUSE);
        let fetched = match failure {
            Some(Failure { is_missing: true, .. }) => Err(DiscoveryError::Missing { path: upstream_path(&key.name) }),
            Some(_) => Err(DiscoveryError::Pausing),
            None => self.ask(key, held.as_ref(), resources).await,
        };
        match fetched {
            Ok(held) => {
                entry.set_failure(None);
                self.cache.hold(entry, held.clone());
                Ok(held)
            }
            Err(error) => {
                let is_missing = matches!(error, DiscoveryError::Missing { .. });
                if failure.is_none() {
                    entry.set_failure(Some(Failure { at: Instant::now(), is_missing }));
                }
                if is_missing {
                    entry.forget();
                    return Err(error);
                }
                // What was made with other resources may name what tenants no longer have.
                let held = held.filter(|held| {
                    resources.is_none_or(|resources| *resources.fingerprint() == held.document.fingerprint)
                });
                held.ok_or(error)
            }
        }
    }

    async fn ask(
        &self,
        key: &Key,
        held: Option<&Held>,
        resources: Option<&Arc<Resources>>,
    ) -> Result<Held, DiscoveryError> {
        let fingerprint = resources.map_or([0; 32], |resources| *resources.fingerprint());
        let (generation, checked) = (self.cache.generation(), Instant::now());
        let path = upstream_path(&key.name);
        let accept = upstream_accept(&key.name, key.encoding);
        let held = held.filter(|held| held.document.fingerprint == fingerprint);
        let etag = held.and_then(|held| held.document.upstream_etag.as_deref());
        let time_max = if held.is_some() { ANSWER_TIMEOUT_WHILE_HELD } else { ANSWER_TIMEOUT };
        let fetched = timeout(time_max, self.origin.get(&path, &accept, etag)).await;
        let fetched = fetched.map_err(|_| UpstreamError::Timeout(time_max))??;
        let document = match (fetched.status, held) {
            (StatusCode::NOT_MODIFIED, Some(held)) => Arc::clone(&held.document),
            (StatusCode::OK, _) => {
                let wrong = |problem: String| DiscoveryError::Content { path: path.clone(), problem };
                check_content_type(&key.name, &accept, fetched.content_type.as_deref()).map_err(wrong)?;
                let none = Resources::default();
                let resources = resources.map_or(&none, AsRef::as_ref);
                let address = &self.settings.public_address;
                let edit = transform(&key.name, key.encoding, &fetched.body, resources, address)
                    .map_err(|error| wrong(error.to_string()))?;
                let body = match edit {
                    Edit::Keep => fetched.body,
                    Edit::Replace(body) => body.into(),
                    Edit::Drop => return Err(DiscoveryError::Missing { path }),
                };
                let etag = own_etag(&key.name, &body, fetched.etag.as_deref(), &fingerprint);
                Arc::new(Document { body, etag, upstream_etag: fetched.etag, fingerprint })
            }
            // All apiservers have those that the others are made with; whoever says otherwise is none.
            (StatusCode::NOT_FOUND | StatusCode::NOT_ACCEPTABLE, _) if !key.name.is_base() => {
                return Err(DiscoveryError::Missing { path });
            }
            (status, _) => {
                return Err(DiscoveryError::Content { path, problem: format!("the apiserver answered {status}") });
            }
        };
        Ok(Held { document, checked, generation })
    }
}

/// A document as tenants have it; dropped if they don't.
fn transform(
    name: &Name,
    encoding: Encoding,
    document: &[u8],
    resources: &Resources,
    public_address: &str,
) -> Result<Edit, Malformed> {
    let document = if encoding == Encoding::Json { json::document(document)? } else { document };
    match name {
        Name::AggregatedApi | Name::AggregatedApis => groups::aggregated(document, encoding),
        Name::Api => groups::versions(document, encoding, public_address),
        Name::Apis => groups::group_list(document, encoding, resources),
        Name::Group(_) => groups::group(document, encoding, resources),
        Name::Version(group, _) => groups::resource_list(document, encoding, group),
        Name::OpenApiIndex => {
            openapi::index(document, resources, |name, hash| openapi_hash(name, hash, resources.fingerprint()))
        }
        Name::OpenApi3(_) => openapi::document(document, encoding, &openapi::V3, resources),
        Name::OpenApi2 => openapi::document(document, encoding, &openapi::V2, resources),
    }
}

fn shared(name: Name, encoding: Encoding) -> Key {
    Key { view: View::AllTenants, name, encoding }
}

fn upstream_path(name: &Name) -> String {
    match name {
        Name::AggregatedApi | Name::Api => "/api".to_owned(),
        Name::AggregatedApis | Name::Apis => "/apis".to_owned(),
        Name::Group(group) => format!("/apis/{group}"),
        Name::Version(group, version) if group.is_empty() => format!("/api/{version}"),
        Name::Version(group, version) => format!("/apis/{group}/{version}"),
        Name::OpenApiIndex => "/openapi/v3".to_owned(),
        Name::OpenApi3(name) => format!("/openapi/v3/{name}"),
        Name::OpenApi2 => "/openapi/v2".to_owned(),
    }
}

/// The parameters of a media type that ask for an aggregated document.
const AGGREGATED: &str = ";g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

fn upstream_accept(name: &Name, encoding: Encoding) -> String {
    let mut accept = media_type(name, encoding).to_owned();
    if name.is_base() {
        accept.push_str(AGGREGATED);
    }
    accept
}

fn media_type(name: &Name, encoding: Encoding) -> &'static str {
    match (encoding, name) {
        (Encoding::Json, _) => "application/json",
        (Encoding::Protobuf, Name::OpenApi2) => "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
        (Encoding::Protobuf, Name::OpenApi3(_)) => "application/com.github.proto-openapi.spec.v3.v1.0+protobuf",
        (Encoding::Protobuf, _) => "application/vnd.kubernetes.protobuf",
    }
}

/// An apiserver that does not know a form answers with another one.
fn check_content_type(name: &Name, accept: &str, content_type: Option<&str>) -> Result<(), String> {
    // Kubernetes does not say what the index is.
    if *name == Name::OpenApiIndex {
        return Ok(());
    }
    let expected = accept.split(';').next().unwrap_or_default();
    let content_type = content_type.unwrap_or_default();
    let media = content_type.split(';').next().unwrap_or_default();
    if media.trim() == expected && (!name.is_base() || content_type.contains("as=APIGroupDiscoveryList")) {
        return Ok(());
    }
    Err(format!("the apiserver answered with {content_type:?} where {accept:?} was asked for"))
}

/// The ETag of a document as tenants have it. Of OpenAPI 3 the index tells it before there is a document, so it can be told from
/// upstream's.
fn own_etag(name: &Name, body: &[u8], upstream: Option<&str>, fingerprint: &[u8; 32]) -> Option<String> {
    match name {
        Name::OpenApi3(name) => {
            let hash = upstream?.strip_prefix('"')?.strip_suffix('"')?;
            Some(format!("\"{}\"", openapi_hash(name, hash, fingerprint)))
        }
        Name::OpenApi2 | Name::AggregatedApi | Name::AggregatedApis => Some(format!("\"{}\"", hash_of(&[body]))),
        // Kubernetes gives them none.
        Name::Api | Name::Apis | Name::Group(_) | Name::Version(..) | Name::OpenApiIndex => None,
    }
}

/// The hash that stands for a document of OpenAPI 3, in both encodings.
fn openapi_hash(name: &str, upstream: &str, fingerprint: &[u8; 32]) -> String {
    hash_of(&[TRANSFORM, name.as_bytes(), upstream.as_bytes(), fingerprint])
}

/// As kube-apiserver writes hashes.
fn hash_of(parts: &[&[u8]]) -> String {
    use std::fmt::Write as _;

    let mut context = Context::new(&SHA512);
    for part in parts {
        // The length keeps the parts apart.
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    context.finish().as_ref().iter().fold(String::with_capacity(128), |mut text, byte| {
        write!(text, "{byte:02X}").expect("a string takes any text");
        text
    })
}
