//! The documents that are held in memory.
//!
//! Invariant: together they have at most so many bytes, but for the two that all others are made with. Of each document there is at most
//! one fetch at a time.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::Encoding;

/// A document of the apiserver behind.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Name {
    /// `/api`, with all resources of the legacy group.
    AggregatedApi,
    /// `/apis`, with all resources of all groups.
    AggregatedApis,
    /// `/api`.
    Api,
    /// `/apis`.
    Apis,
    /// `/apis/GROUP`.
    Group(Box<str>),
    /// `/api/VERSION` or `/apis/GROUP/VERSION`.
    Version(Box<str>, Box<str>),
    /// `/openapi/v3`.
    OpenApiIndex,
    /// `/openapi/v3/NAME`.
    OpenApi3(Box<str>),
    /// `/openapi/v2`.
    OpenApi2,
}

impl Name {
    /// Whether all other documents are made with it.
    pub(super) fn is_base(&self) -> bool {
        matches!(self, Self::AggregatedApi | Self::AggregatedApis)
    }
}

/// Whose view of the API a document shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum View {
    /// That of all tenants: none has anything of its own in its documents.
    AllTenants,
}

/// What a document is held by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) view: View,
    pub(super) name: Name,
    pub(super) encoding: Encoding,
}

/// A document as tenants get it.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) body: Bytes,
    /// With its quotation marks; none if upstream has none.
    pub(super) etag: Option<String>,
    pub(super) upstream_etag: Option<String>,
    /// Of the resources that it was made with ([`super::Resources`]).
    pub(super) fingerprint: [u8; 32],
}

/// A document, and since when it is known to be so.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) document: Arc<Document>,
    /// When upstream was asked last.
    pub(super) checked: Instant,
    /// The cache's generation at that time.
    pub(super) generation: u64,
}

/// That upstream gave no document.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failure {
    pub(super) at: Instant,
    /// Whether it said that it has none.
    pub(super) is_missing: bool,
}

/// The place of a document.
#[derive(Debug, Default)]
pub(super) struct Entry {
    held: Mutex<Option<Held>>,
    /// That upstream last gave no document.
    failure: Mutex<Option<Failure>>,
    used: AtomicU64,
    /// Locked during a fetch.
    pub(super) fetching: tokio::sync::Mutex<()>,
    /// Whether somebody fetches it in the background, or is about to.
    pub(super) is_refreshing: AtomicBool,
}

impl Entry {
    pub(super) fn held(&self) -> Option<Held> {
        self.held.lock().clone()
    }

    /// Forgets the document.
    pub(super) fn forget(&self) {
        *self.held.lock() = None;
    }

    pub(super) fn failure(&self) -> Option<Failure> {
        *self.failure.lock()
    }

    pub(super) fn set_failure(&self, failure: Option<Failure>) {
        *self.failure.lock() = failure;
    }

    fn bytes(&self) -> usize {
        self.held.lock().as_ref().map_or(0, |held| held.document.body.len())
    }
}

/// All documents.
#[derive(Debug)]
pub(super) struct Cache {
    entries: Mutex<HashMap<Key, Arc<Entry>>>,
    bytes_max: usize,
    /// Counts uses, to tell which entry was used last.
    uses: AtomicU64,
    generation: AtomicU64,
}

impl Cache {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { entries: Mutex::new(HashMap::new()), bytes_max, uses: AtomicU64::new(0), generation: AtomicU64::new(0) }
    }

    /// The place of a document; an empty one if it has none yet.
    pub(super) fn entry(&self, key: &Key) -> Arc<Entry> {
        let mut entries = self.entries.lock();
        let entry = match entries.get(key) {
            Some(entry) => Arc::clone(entry),
            None => Arc::clone(entries.entry(key.clone()).or_default()),
        };
        drop(entries);
        entry.used.store(self.uses.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        entry
    }

    /// Holds a document. What was not used for longest makes room for it.
    pub(super) fn hold(&self, entry: &Entry, held: Held) {
        *entry.held.lock() = Some(held);
        let mut entries = self.entries.lock();
        let mut bytes: usize =
            entries.iter().filter(|(key, _)| !key.name.is_base()).map(|(_, held)| held.bytes()).sum();
        while bytes > self.bytes_max {
            let candidates = entries.iter().filter(|(key, held)| !key.name.is_base() && held.bytes() > 0);
            let Some((key, oldest)) = candidates.min_by_key(|(_, entry)| entry.used.load(Ordering::Relaxed)) else {
                return;
            };
            bytes -= oldest.bytes();
            let key = key.clone();
            entries.remove(&key);
        }
    }

    /// A document that was asked for in an earlier generation is not known to be current.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn begin_generation(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    #[cfg(test)]
    pub(super) fn names(&self) -> Vec<Name> {
        self.entries.lock().keys().map(|key| key.name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key { view: View::AllTenants, name: Name::OpenApi3(name.into()), encoding: Encoding::Json }
    }

    fn held(bytes: usize) -> Held {
        let body = vec![b' '; bytes].into();
        let document = Document { body, etag: None, upstream_etag: None, fingerprint: [0; 32] };
        Held { document: Arc::new(document), checked: Instant::now(), generation: 0 }
    }

    #[tokio::test]
    async fn what_was_not_used_for_longest_makes_room() {
        let cache = Cache::new(100);
        for name in ["a", "b", "c"] {
            cache.hold(&cache.entry(&key(name)), held(30));
        }
        let base = Key { name: Name::AggregatedApis, ..key("") };
        cache.hold(&cache.entry(&base), held(1000));
        cache.entry(&key("a"));
        cache.hold(&cache.entry(&key("d")), held(30));
        let names = cache.names();
        assert!(!names.contains(&key("b").name) && names.contains(&key("a").name), "{names:?}");
        assert!(names.contains(&Name::AggregatedApis));
        // One that is too large for the cache is served, but not held.
        let entry = cache.entry(&key("e"));
        cache.hold(&entry, held(101));
        assert!(!cache.names().contains(&key("e").name));
        assert!(entry.held().is_some());
    }
}
