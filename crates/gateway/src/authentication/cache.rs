//! Remembers for some seconds what was decided about a secret, and decides once for a herd that asks at the same time.
//!
//! Invariants: no secret is kept, only its keyed hash, whose key is made at random and never leaves the process; a
//! failure to decide is never remembered; refusals can't push out successes, so a flood of bad tokens costs the good
//! ones nothing.

use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use kubewharf_foundation::clock::Clock;
use parking_lot::Mutex;
use ring::hmac;
use ring::rand::SystemRandom;

use super::ReviewError;
use crate::User;
use crate::limits::{VERDICT_SHARDS, VERDICTS_MAX};

/// What was decided: who it is, or why not. The reason is for logs; a client is not told it.
pub type Verdict = Result<Arc<User>, Arc<str>>;

/// How long, and how many, verdicts are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerdictTimes {
    /// How long a success is. Zero: not at all. A right that was taken away works on for as long.
    pub success_ttl: Duration,
    /// How long a refusal is. Zero: not at all.
    pub failure_ttl: Duration,
    /// How many successes are, and how many refusals, at most.
    pub entries_max: usize,
}

impl Default for VerdictTimes {
    fn default() -> Self {
        Self { success_ttl: Duration::from_secs(10), failure_ttl: Duration::from_secs(5), entries_max: VERDICTS_MAX }
    }
}

/// A fresh verdict.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The verdict.
    pub verdict: Verdict,
    /// When it ends at the latest, if before the cache would forget it: a token may expire.
    pub lifetime_max: Option<Duration>,
}

impl From<Verdict> for Decision {
    fn from(verdict: Verdict) -> Self {
        Self { verdict, lifetime_max: None }
    }
}

/// The keyed hash of a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerdictKey([u8; 32]);

impl VerdictKey {
    fn word(&self, index: usize) -> u64 {
        let mut word = [0; 8];
        word.copy_from_slice(&self.0[8 * index..8 * index + 8]);
        u64::from_le_bytes(word)
    }
}

impl Hash for VerdictKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.word(0));
    }
}

/// A key is as good as random to everybody who does not know the process's own key, so a piece of it is a hash.
#[derive(Default)]
struct PieceHasher(u64);

impl Hasher for PieceHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are written as one word");
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }
}

type KeyMap<V> = HashMap<VerdictKey, V, BuildHasherDefault<PieceHasher>>;

/// Makes a key of several texts, so that no two lists of texts make the same one.
pub struct KeyBuilder(hmac::Context);

impl KeyBuilder {
    /// Adds a text.
    pub fn text(&mut self, text: &str) {
        self.count(text.len());
        self.0.update(text.as_bytes());
    }

    /// Adds a number, such as that of the texts that follow.
    pub fn count(&mut self, count: usize) {
        self.0.update(&(count as u64).to_le_bytes());
    }

    /// Adds all that is known of a user.
    pub fn user(&mut self, user: &User) {
        self.text(&user.name);
        self.text(&user.uid);
        self.count(user.groups.len());
        for group in &user.groups {
            self.text(group);
        }
        self.count(user.extra.len());
        for (key, values) in &user.extra {
            self.text(key);
            self.count(values.len());
            for value in values {
                self.text(value);
            }
        }
    }

    /// The key.
    pub fn finish(self) -> VerdictKey {
        let tag = self.0.sign();
        let mut key = [0; 32];
        key.copy_from_slice(tag.as_ref());
        VerdictKey(key)
    }
}

/// Entries of two ages. When the young ones are many or old, they become the old ones, and those are forgotten at once:
/// eviction costs nothing by the entry.
struct Generations<V> {
    young: KeyMap<(V, u64)>,
    old: KeyMap<(V, u64)>,
    rotated_ms: u64,
}

impl<V> Default for Generations<V> {
    fn default() -> Self {
        Self { young: KeyMap::default(), old: KeyMap::default(), rotated_ms: 0 }
    }
}

impl<V> Generations<V> {
    fn get(&self, key: &VerdictKey, now_ms: u64) -> Option<&V> {
        [&self.young, &self.old]
            .into_iter()
            .filter_map(|entries| entries.get(key))
            .find(|(_, until_ms)| *until_ms > now_ms)
            .map(|(value, _)| value)
    }

    /// Returns what was forgotten, to be dropped when the lock is no longer held.
    fn insert(&mut self, key: VerdictKey, value: V, now_ms: u64, lifetime_ms: u64, bounds: Bounds) -> KeyMap<(V, u64)> {
        let mut forgotten = KeyMap::default();
        let aged = now_ms.saturating_sub(self.rotated_ms) >= bounds.ttl_ms;
        if aged || self.young.len() >= bounds.young_max {
            forgotten = std::mem::replace(&mut self.old, std::mem::take(&mut self.young));
            self.rotated_ms = now_ms;
        }
        self.young.insert(key, (value, now_ms.saturating_add(lifetime_ms)));
        forgotten
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

/// When the young become old: at this number, or at this age.
#[derive(Clone, Copy)]
struct Bounds {
    young_max: usize,
    ttl_ms: u64,
}

type Outcome = Result<Verdict, Arc<ReviewError>>;
type Flight = Shared<BoxFuture<'static, Outcome>>;

#[derive(Default)]
struct Shard {
    successes: Generations<Arc<User>>,
    failures: Generations<Arc<str>>,
    /// Decisions under way. They live as long as somebody waits for them, so that a client that hangs up leaves no work
    /// behind.
    flights: KeyMap<(u64, WeakShared<BoxFuture<'static, Outcome>>)>,
}

impl Shard {
    fn get(&self, key: &VerdictKey, now_ms: u64) -> Option<Verdict> {
        if let Some(user) = self.successes.get(key, now_ms) {
            return Some(Ok(user.clone()));
        }
        self.failures.get(key, now_ms).map(|reason| Err(reason.clone()))
    }
}

/// The verdicts of one cluster of one kind.
pub struct VerdictCache {
    shards: Box<[Mutex<Shard>]>,
    key: hmac::Key,
    times: VerdictTimes,
    clock: Arc<dyn Clock>,
    flights_begun: AtomicU64,
}

impl std::fmt::Debug for VerdictCache {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("VerdictCache").field("times", &self.times).finish_non_exhaustive()
    }
}

impl VerdictCache {
    /// An empty cache with a key of its own.
    #[must_use]
    pub fn new(times: VerdictTimes, clock: Arc<dyn Clock>) -> Arc<Self> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .expect("the operating system's random numbers have been available since it booted");
        Arc::new(Self {
            shards: std::iter::repeat_with(Mutex::default).take(VERDICT_SHARDS).collect(),
            key,
            times,
            clock,
            flights_begun: AtomicU64::new(0),
        })
    }

    /// The times that it was made with.
    #[must_use]
    pub fn times(&self) -> VerdictTimes {
        self.times
    }

    /// Begins a key.
    #[must_use]
    pub fn key_builder(&self) -> KeyBuilder {
        KeyBuilder(hmac::Context::with_key(&self.key))
    }

    /// The key of a single secret.
    #[must_use]
    pub fn key(&self, secret: &str) -> VerdictKey {
        let mut builder = self.key_builder();
        builder.text(secret);
        builder.finish()
    }

    /// What is remembered. Takes one lock for a moment, and allocates nothing.
    #[must_use]
    pub fn get(&self, key: &VerdictKey) -> Option<Verdict> {
        let now_ms = self.clock.monotonic_ms();
        self.shard(key).lock().get(key, now_ms)
    }

    /// What is remembered, or else is decided now, once for all that ask at the same time. When all of them have gone
    /// away, so has the decision that was under way.
    ///
    /// # Errors
    ///
    /// That of `decide`, for all that have waited; the next one decides anew.
    pub async fn get_or_decide<F>(self: &Arc<Self>, key: VerdictKey, decide: impl FnOnce() -> F + Send) -> Outcome
    where
        F: Future<Output = Result<Decision, ReviewError>> + Send + 'static,
    {
        match self.join(key, decide) {
            Ok(verdict) => Ok(verdict),
            Err(flight) => flight.await,
        }
    }

    /// A verdict, or the decision to wait for. What is remembered and what is under way are looked at under one lock,
    /// so that there is no moment at which a second decision could begin.
    fn join<F>(self: &Arc<Self>, key: VerdictKey, decide: impl FnOnce() -> F) -> Result<Verdict, Flight>
    where
        F: Future<Output = Result<Decision, ReviewError>> + Send + 'static,
    {
        let now_ms = self.clock.monotonic_ms();
        let mut shard = self.shard(&key).lock();
        if let Some(verdict) = shard.get(&key, now_ms) {
            return Ok(verdict);
        }
        if let Some(flight) = shard.flights.get(&key).and_then(|(_, flight)| flight.upgrade()) {
            return Err(flight);
        }
        let decision = decide();
        let id = self.flights_begun.fetch_add(1, Ordering::Relaxed);
        let landing = Landing { cache: self.clone(), key, id };
        let flight = async move {
            let outcome = decision.await.map_err(Arc::new);
            landing.land(outcome)
        }
        .boxed()
        .shared();
        let weak = flight.downgrade().expect("it has not been polled yet");
        shard.flights.insert(key, (id, weak));
        Err(flight)
    }

    fn shard(&self, key: &VerdictKey) -> &Mutex<Shard> {
        // Another piece of the key than the maps use.
        &self.shards[(key.word(1) % VERDICT_SHARDS as u64) as usize]
    }

    fn remember(&self, shard: &mut Shard, key: VerdictKey, decision: &Decision) -> Forgotten {
        let now_ms = self.clock.monotonic_ms();
        let ttl = if decision.verdict.is_ok() { self.times.success_ttl } else { self.times.failure_ttl };
        let lifetime = decision.lifetime_max.map_or(ttl, |lifetime_max| lifetime_max.min(ttl));
        if lifetime.is_zero() {
            return Forgotten::default();
        }
        let lifetime_ms = lifetime.as_millis() as u64;
        let young_max = (self.times.entries_max / (2 * VERDICT_SHARDS)).max(1);
        let bounds = Bounds { young_max, ttl_ms: ttl.as_millis() as u64 };
        match &decision.verdict {
            Ok(user) => {
                let successes = shard.successes.insert(key, user.clone(), now_ms, lifetime_ms, bounds);
                Forgotten { _successes: successes, ..Forgotten::default() }
            }
            Err(reason) => {
                let failures = shard.failures.insert(key, reason.clone(), now_ms, lifetime_ms, bounds);
                Forgotten { _failures: failures, ..Forgotten::default() }
            }
        }
    }

    #[cfg(test)]
    fn sizes(&self) -> (usize, usize, usize) {
        self.shards.iter().fold((0, 0, 0), |(successes, failures, flights), shard| {
            let shard = shard.lock();
            (successes + shard.successes.len(), failures + shard.failures.len(), flights + shard.flights.len())
        })
    }
}

/// Entries on their way out, which are dropped without a lock.
#[derive(Default)]
struct Forgotten {
    _successes: KeyMap<(Arc<User>, u64)>,
    _failures: KeyMap<(Arc<str>, u64)>,
}

/// Ends a flight: with an outcome, or because nobody waits any more.
struct Landing {
    cache: Arc<VerdictCache>,
    key: VerdictKey,
    id: u64,
}

impl Landing {
    fn land(self, outcome: Result<Decision, Arc<ReviewError>>) -> Outcome {
        let mut forgotten = Forgotten::default();
        if let Ok(decision) = &outcome {
            let mut shard = self.cache.shard(&self.key).lock();
            forgotten = self.cache.remember(&mut shard, self.key, decision);
            // Under the same lock: who comes next finds the verdict.
            self.leave(&mut shard);
        }
        drop(forgotten);
        outcome.map(|decision| decision.verdict)
    }

    /// Takes the flight off the list, unless another has taken its place since.
    fn leave(&self, shard: &mut Shard) {
        if shard.flights.get(&self.key).is_some_and(|(id, _)| *id == self.id) {
            shard.flights.remove(&self.key);
        }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.leave(&mut self.cache.shard(&self.key).lock());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use kubewharf_foundation::clock::ManualClock;
    use proptest::prelude::*;
    use tokio::sync::{Barrier, Notify};

    use super::*;

    fn cache(clock: &ManualClock) -> Arc<VerdictCache> {
        VerdictCache::new(VerdictTimes::default(), Arc::new(clock.clone()))
    }

    fn user(name: &str) -> Arc<User> {
        Arc::new(User { name: name.to_owned(), ..User::default() })
    }

    async fn decide(cache: &Arc<VerdictCache>, secret: &str, decision: Decision) -> Outcome {
        cache.get_or_decide(cache.key(secret), || async move { Ok(decision) }).await
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_herd_with_one_new_token_decides_once() {
        let cache = cache(&ManualClock::default());
        let decisions = Arc::new(AtomicUsize::new(0));
        let start = Arc::new(Barrier::new(200));
        let tasks: Vec<_> = (0..200)
            .map(|_| {
                let (cache, decisions, start) = (cache.clone(), decisions.clone(), start.clone());
                tokio::spawn(async move {
                    start.wait().await;
                    let key = cache.key("token");
                    cache
                        .get_or_decide(key, || async move {
                            decisions.fetch_add(1, Ordering::SeqCst);
                            tokio::time::sleep(Duration::from_millis(50)).await;
                            Ok(Decision::from(Ok(user("jane"))))
                        })
                        .await
                        .expect("decided")
                        .expect("allowed")
                })
            })
            .collect();
        let mut users = Vec::new();
        for task in tasks {
            users.push(task.await.expect("no panic"));
        }
        assert_eq!(decisions.load(Ordering::SeqCst), 1);
        assert!(users.iter().all(|user| Arc::ptr_eq(user, &users[0])), "all share one user");
        assert_eq!(cache.sizes(), (1, 0, 0), "remembered, and no flight is left");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn the_first_to_ask_may_leave_without_harm_to_the_others() {
        let cache = cache(&ManualClock::default());
        let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let key = cache.key("token");
        let first = tokio::spawn({
            let (cache, begun, go) = (cache.clone(), begun.clone(), go.clone());
            async move {
                cache
                    .get_or_decide(key, || async move {
                        begun.notify_one();
                        go.notified().await;
                        Ok(Decision::from(Ok(user("jane"))))
                    })
                    .await
            }
        });
        begun.notified().await;
        let second = tokio::spawn({
            let cache = cache.clone();
            async move { cache.get_or_decide(key, || async { unreachable!("one is under way") }).await }
        });
        while cache.shards.iter().all(|shard| {
            shard.lock().flights.values().all(|(_, flight)| {
                flight.upgrade().and_then(|flight| flight.strong_count()).is_none_or(|count| count < 3)
            })
        }) {
            tokio::task::yield_now().await;
        }
        first.abort();
        assert!(first.await.is_err());
        go.notify_one();
        assert_eq!(second.await.expect("no panic").expect("decided"), Ok(user("jane")));
    }

    #[tokio::test]
    async fn a_decision_that_nobody_waits_for_is_dropped_and_forgotten() {
        struct Dropped(Arc<AtomicUsize>);
        impl Drop for Dropped {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let cache = cache(&ManualClock::default());
        let drops = Arc::new(AtomicUsize::new(0));
        for secret in 0..100 {
            let dropped = Dropped(drops.clone());
            let asked = cache.get_or_decide(cache.key(&secret.to_string()), || async move {
                let _dropped = dropped;
                std::future::pending().await
            });
            assert!(asked.now_or_never().is_none());
        }
        assert_eq!(drops.load(Ordering::SeqCst), 100);
        assert_eq!(cache.sizes(), (0, 0, 0));
    }

    #[tokio::test]
    async fn successes_refusals_and_failures_are_kept_as_long_as_they_should() {
        let clock = ManualClock::default();
        let cache = cache(&clock);
        decide(&cache, "good", Ok(user("jane")).into()).await.expect("decided").expect("allowed");
        decide(&cache, "bad", Err("unknown".into()).into()).await.expect("decided").expect_err("refused");
        let short = Decision { verdict: Ok(user("joe")), lifetime_max: Some(Duration::from_secs(3)) };
        decide(&cache, "short", short).await.expect("decided").expect("allowed");
        let failing = || async { Err(ReviewError::Unavailable("no endpoint".into())) };
        cache.get_or_decide(cache.key("lost"), failing).await.expect_err("not decided");

        let remembered = |secret: &str| cache.get(&cache.key(secret)).map(|verdict| verdict.is_ok());
        let all = || ["good", "bad", "short", "lost"].map(remembered);
        assert_eq!(all(), [Some(true), Some(false), Some(true), None]);
        clock.advance(Duration::from_millis(3_000));
        assert_eq!(all(), [Some(true), Some(false), None, None]);
        clock.advance(Duration::from_millis(2_000));
        assert_eq!(all(), [Some(true), None, None, None]);
        clock.advance(Duration::from_millis(4_999));
        assert_eq!(all(), [Some(true), None, None, None]);
        clock.advance(Duration::from_millis(1));
        assert_eq!(all(), [None; 4]);
        // Memory of the past goes when something new comes, twice.
        for secret in ["new", "newer"] {
            clock.advance(Duration::from_secs(10));
            decide(&cache, secret, Ok(user("jane")).into()).await.expect("decided").expect("allowed");
        }
    }

    #[tokio::test]
    async fn a_ttl_of_zero_remembers_nothing() {
        let times =
            VerdictTimes { success_ttl: Duration::ZERO, failure_ttl: Duration::ZERO, ..VerdictTimes::default() };
        let cache = VerdictCache::new(times, Arc::new(ManualClock::default()));
        decide(&cache, "good", Ok(user("jane")).into()).await.expect("decided").expect("allowed");
        decide(&cache, "bad", Err("unknown".into()).into()).await.expect("decided").expect_err("refused");
        assert_eq!(cache.sizes(), (0, 0, 0));
    }

    #[tokio::test]
    async fn a_flood_of_bad_tokens_is_bounded_and_leaves_the_good_ones() {
        let times = VerdictTimes { entries_max: 4096, ..VerdictTimes::default() };
        let cache = VerdictCache::new(times, Arc::new(ManualClock::default()));
        decide(&cache, "good", Ok(user("jane")).into()).await.expect("decided").expect("allowed");
        for number in 0..20_000 {
            decide(&cache, &format!("bad {number}"), Err("unknown".into()).into())
                .await
                .expect("decided")
                .expect_err("no");
        }
        let (successes, failures, flights) = cache.sizes();
        assert_eq!((successes, flights), (1, 0));
        assert!((2048..=4096).contains(&failures), "{failures}");
        assert!(cache.get(&cache.key("good")).is_some());
    }

    #[test]
    fn two_caches_hash_a_secret_differently() {
        let clock = ManualClock::default();
        assert_ne!(cache(&clock).key("token"), cache(&clock).key("token"));
    }

    proptest! {
        #[test]
        fn keys_of_different_lists_of_texts_differ(
            one in proptest::collection::vec("[ab]{0,3}", 0..4),
            other in proptest::collection::vec("[ab]{0,3}", 0..4),
        ) {
            thread_local! {
                static CACHE: Arc<VerdictCache> = cache(&ManualClock::default());
            }
            let key = |texts: &[String]| CACHE.with(|cache| {
                let mut builder = cache.key_builder();
                for text in texts {
                    builder.text(text);
                }
                builder.finish()
            });
            prop_assert_eq!(key(&one) == key(&other), one == other);
        }
    }
}
