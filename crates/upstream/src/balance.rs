//! Which endpoint a request goes to.
//!
//! Invariant: a choice allocates nothing, takes no lock, and is made from endpoints in rotation while there is one that
//! fits. If none is left, the least bad one that fits is given rather than none.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::endpoint::Endpoint;
use crate::limits::{LATENCY_DECAY, REQUEST_WORK, WATCH_WORK};
use crate::settings::Class;

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// One after the other.
    #[default]
    RoundRobin,
    /// The one with the least in flight, for its weight.
    LeastWork,
    /// Of two that are drawn, the one that promises the sooner answer.
    Latency,
    /// In proportion to the weights.
    Weighted,
    /// Always the same one for the same key, in every process, as long as it is in rotation.
    Rendezvous,
}

/// The identity of an endpoint: a hash of its URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId(u64);

impl EndpointId {
    /// The identity of the endpoint with this URL, `scheme://host:port`.
    #[must_use]
    pub fn of_url(url: &str) -> Self {
        Self(hash(url.as_bytes()))
    }
}

/// Some endpoints of a cluster, as a dispatch policy names them. It has its own turn, so that policies that share
/// endpoints do not take each other's.
#[derive(Debug, Default)]
pub struct EndpointSet {
    ids: Box<[EndpointId]>,
    turn: Turn,
}

impl EndpointSet {
    /// A set of these endpoints. They need not exist yet, or any more.
    #[must_use]
    pub fn new(ids: impl IntoIterator<Item = EndpointId>) -> Self {
        let mut ids: Vec<_> = ids.into_iter().collect();
        ids.sort_unstable();
        ids.dedup();
        Self { ids: ids.into(), turn: Turn::default() }
    }

    /// Whether it is one of them.
    #[must_use]
    pub fn contains(&self, id: EndpointId) -> bool {
        if self.ids.len() <= 8 { self.ids.contains(&id) } else { self.ids.binary_search(&id).is_ok() }
    }
}

/// Counts choices.
#[derive(Debug, Default)]
pub(crate) struct Turn(AtomicU64);

impl Turn {
    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// The question: which of `endpoints` that are in `filter` and not in `exclude`?
pub(crate) struct Choice<'a> {
    pub(crate) endpoints: &'a [Arc<Endpoint>],
    pub(crate) filter: Option<&'a EndpointSet>,
    pub(crate) exclude: &'a [EndpointId],
    /// The turn if there is no filter.
    pub(crate) turn: &'a Turn,
}

impl<'a> Choice<'a> {
    pub(crate) fn pick(&self, strategy: Strategy, key: &str) -> Option<&'a Arc<Endpoint>> {
        let count = self.fit().count();
        if count == 0 {
            return self.least_bad();
        }
        let turn = self.filter.map_or(self.turn, |set| &set.turn).next();
        let chosen = match strategy {
            Strategy::RoundRobin => self.round_robin(turn, count),
            Strategy::LeastWork => self.least_work(turn, count),
            Strategy::Latency => self.soonest(turn, count),
            Strategy::Weighted => {
                self.in_proportion(turn, |endpoint| u64::from(endpoint.weight()) * u64::from(endpoint.share()))
            }
            Strategy::Rendezvous => self.rendezvous(key),
        };
        // The states can change while we look, so that less fit than were counted.
        chosen.or_else(|| self.fit().next()).or_else(|| self.least_bad())
    }

    fn allowed(&self) -> impl Iterator<Item = &'a Arc<Endpoint>> {
        self.endpoints.iter().filter(|endpoint| {
            !endpoint.is_disabled()
                && self.filter.is_none_or(|set| set.contains(endpoint.id()))
                && !self.exclude.contains(&endpoint.id())
        })
    }

    fn fit(&self) -> impl Iterator<Item = &'a Arc<Endpoint>> {
        self.allowed().filter(|endpoint| endpoint.rank() == 0)
    }

    fn least_bad(&self) -> Option<&'a Arc<Endpoint>> {
        self.allowed().min_by_key(|endpoint| endpoint.rank())
    }

    fn nth(&self, index: u64) -> Option<&'a Arc<Endpoint>> {
        self.fit().nth(usize::try_from(index).ok()?)
    }

    fn round_robin(&self, turn: u64, count: usize) -> Option<&'a Arc<Endpoint>> {
        if self.fit().any(|endpoint| endpoint.share() < 256) {
            return self.in_proportion(turn, |endpoint| u64::from(endpoint.share()));
        }
        self.nth(turn % count as u64)
    }

    fn least_work(&self, turn: u64, count: usize) -> Option<&'a Arc<Endpoint>> {
        // Begins at another one each time, so that equals take turns.
        let begin = usize::try_from(turn % count as u64).unwrap_or(0);
        let in_turn = self.fit().skip(begin).chain(self.fit().take(begin));
        // (work + 1) / weight, without the division.
        in_turn
            .map(|endpoint| (endpoint, work(endpoint) + REQUEST_WORK, share_of_weight(endpoint)))
            .reduce(|best, next| {
                let better = u128::from(next.1) * u128::from(best.2) < u128::from(best.1) * u128::from(next.2);
                if better { next } else { best }
            })
            .map(|(endpoint, ..)| endpoint)
    }

    fn soonest(&self, turn: u64, count: usize) -> Option<&'a Arc<Endpoint>> {
        if count == 1 {
            return self.nth(0);
        }
        let count = count as u64;
        let random = mix(turn);
        let first = random % count;
        let second = (first + 1 + (random >> 32) % (count - 1)) % count;
        let (first, second) = (self.nth(first)?, self.nth(second)?);
        let cost = |endpoint: &Endpoint| {
            let in_flight = work(endpoint) as f64 / REQUEST_WORK as f64;
            endpoint.latency().now_nanos() * (in_flight + 1.0) / share_of_weight(endpoint) as f64
        };
        Some(if cost(second) < cost(first) { second } else { first })
    }

    /// The endpoint at the next point of a sequence that fills all weights evenly (multiples of the golden ratio): any
    /// number of choices in a row comes close to the proportions, without any state but the turn.
    fn in_proportion(&self, turn: u64, weight: impl Fn(&Endpoint) -> u64) -> Option<&'a Arc<Endpoint>> {
        let total: u64 = self.fit().map(|endpoint| weight(endpoint)).sum();
        if total == 0 {
            return self.nth(turn % self.fit().count().max(1) as u64);
        }
        let point = turn.wrapping_mul(GOLDEN);
        let mut left = ((u128::from(point) * u128::from(total)) >> 64) as u64;
        self.fit().find(|endpoint| {
            let weight = weight(endpoint);
            let found = left < weight;
            left = left.saturating_sub(weight);
            found
        })
    }

    /// Weighted rendezvous hashing: each endpoint draws a number that key and identity determine, and the best one
    /// wins. If one goes, only its own keys move.
    fn rendezvous(&self, key: &str) -> Option<&'a Arc<Endpoint>> {
        let key = hash(key.as_bytes());
        let draw = |endpoint: &Endpoint| {
            // In (0, 1): the upper 53 bits, and never 0.
            let uniform = ((mix(key ^ endpoint.id().0) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
            // Without slow start: keys that move twice are worse than a cold endpoint.
            f64::from(endpoint.weight()) / -uniform.ln()
        };
        self.fit()
            .map(|endpoint| (endpoint, draw(endpoint)))
            .reduce(|best, next| if next.1 > best.1 { next } else { best })
            .map(|(endpoint, _)| endpoint)
    }
}

fn work(endpoint: &Endpoint) -> u64 {
    let load = endpoint.load();
    let requests = u64::from(load.streams(Class::Short)) + u64::from(load.streams(Class::Bulk));
    requests * REQUEST_WORK + u64::from(load.streams(Class::Watch)) * WATCH_WORK
}

/// Never 0: an endpoint without weight is the last choice, not an impossible one.
fn share_of_weight(endpoint: &Endpoint) -> u64 {
    u64::from(endpoint.weight()) * u64::from(endpoint.share()) + 1
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// FNV-1a, then [`mix`]. The same everywhere and for ever: all processes must agree. Not for keys that an adversary may
/// choose to collide: who picks their own endpoint gains nothing.
fn hash(bytes: &[u8]) -> u64 {
    let fnv = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    mix(fnv)
}

/// The finalizer of SplitMix64: every bit of the result depends on every bit of the input.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(GOLDEN);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Time to a response's headers: rises at once with a slow answer, falls slowly with quick ones and with time ("peak
/// EWMA"). With time, because an endpoint that was slow once gets few requests that could prove otherwise.
///
/// The two numbers are not written together. A reader between the two writes is wrong by one sample, which does not
/// matter.
#[derive(Debug)]
pub(crate) struct Latency {
    begin: Instant,
    /// Bits of an `f64`.
    nanos: AtomicU64,
    /// When it was written, in nanoseconds since `begin`.
    at_nanos: AtomicU64,
}

impl Latency {
    pub(crate) fn new(begin: Instant) -> Self {
        Self { begin, nanos: AtomicU64::new(0), at_nanos: AtomicU64::new(0) }
    }

    /// An answer that came at `now` to a request of `since`.
    pub(crate) fn record(&self, since: Instant, now: Instant) {
        let sample = now.saturating_duration_since(since);
        let at = u64::try_from(now.saturating_duration_since(self.begin).as_nanos()).unwrap_or(u64::MAX);
        let before_at = self.at_nanos.swap(at, Ordering::Relaxed);
        let before = f64::from_bits(self.nanos.load(Ordering::Relaxed));
        let sample = sample.as_nanos() as f64;
        let after = if sample >= before {
            sample
        } else {
            let kept = decay(at.saturating_sub(before_at));
            before * kept + sample * (1.0 - kept)
        };
        self.nanos.store(after.to_bits(), Ordering::Relaxed);
    }

    fn now_nanos(&self) -> f64 {
        let now = u64::try_from(self.begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let passed = now.saturating_sub(self.at_nanos.load(Ordering::Relaxed));
        f64::from_bits(self.nanos.load(Ordering::Relaxed)) * decay(passed)
    }

    pub(crate) fn now(&self) -> Duration {
        Duration::from_nanos(self.now_nanos() as u64)
    }
}

fn decay(passed_nanos: u64) -> f64 {
    (-(passed_nanos as f64) / LATENCY_DECAY.as_nanos() as f64).exp()
}
