//! Circuit breakers: after many failures nothing is tried for a while, then a little, then all again.
//!
//! Invariant: only the outcomes of requests that the present state let through count, so a late failure of the bad
//! times does not open a circuit that has closed since. While the circuit is closed, no lock is taken.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{Refusal, RefusedBy};

/// Pieces of the sliding window: it moves by one of them at a time.
const PIECES: u64 = 10;

/// When a circuit opens, and when it closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerSettings {
    /// How long an outcome counts.
    pub window: Duration,
    /// Percentage of failures that opens the circuit.
    pub failure_percent: u32,
    /// Outcomes within the window below which no percentage does.
    pub requests_min: u32,
    /// How long the circuit stays open at least; up to a quarter more is added at random, so that circuits do not close
    /// in step.
    pub open: Duration,
    /// Requests that are let through after that. If all of them succeed, the circuit closes; if one fails, it opens
    /// again.
    pub probes: u32,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(10),
            failure_percent: 50,
            requests_min: 20,
            open: Duration::from_secs(5),
            probes: 3,
        }
    }
}

/// How a request ended, as far as the circuit goes. A request that ended for another reason, such as the client's
/// leave, has no outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The other side did its part.
    Success,
    /// It did not.
    Failure,
}

/// What a circuit does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// All requests pass.
    Closed,
    /// None does.
    Open,
    /// Some do, as probes.
    HalfOpen,
}

/// A circuit breaker.
#[derive(Debug)]
pub struct Breaker {
    settings: BreakerSettings,
    origin: Instant,
    /// When probes may begin, in nanoseconds since the origin; 0 while the circuit is closed.
    open_until_ns: AtomicU64,
    /// The number of the present state: each change makes a new one.
    generation: AtomicU64,
    /// Outcomes by the time's piece: see [`Piece`].
    pieces: [AtomicU64; PIECES as usize],
    /// Taken for each change of state, and for probes.
    probes: Mutex<Probes>,
}

#[derive(Debug)]
struct Probes {
    in_flight: u32,
    succeeded: u32,
    /// State of the random numbers, of which no quality is asked.
    random: u64,
}

/// Outcomes of one piece of time, as they are in one word.
#[derive(Clone, Copy, Default)]
struct Piece {
    /// The piece's number, in 24 bits.
    number: u64,
    total: u64,
    failures: u64,
}

impl Piece {
    const NUMBER_MASK: u64 = (1 << 24) - 1;
    const COUNT_MASK: u64 = (1 << 20) - 1;

    fn unpack(word: u64) -> Self {
        Self { number: word >> 40, total: word >> 20 & Self::COUNT_MASK, failures: word & Self::COUNT_MASK }
    }

    fn pack(self) -> u64 {
        self.number << 40 | self.total << 20 | self.failures
    }

    fn add(mut self, number: u64, outcome: Outcome) -> Self {
        if self.number != number & Self::NUMBER_MASK {
            self = Self { number: number & Self::NUMBER_MASK, ..Self::default() };
        }
        if self.total == Self::COUNT_MASK {
            // Their ratio is what counts.
            self.total /= 2;
            self.failures /= 2;
        }
        self.total += 1;
        self.failures += u64::from(outcome == Outcome::Failure);
        self
    }
}

/// The leave to send one request, to be told its outcome. Dropped without one, it counts for nothing.
#[derive(Debug)]
#[must_use = "a breaker learns from outcomes alone"]
pub struct Permit {
    breaker: Arc<Breaker>,
    generation: u64,
    probe: bool,
    told: bool,
}

impl Permit {
    /// Tells how the request ended.
    pub fn record(mut self, outcome: Outcome, now: Instant) {
        self.told = true;
        let now = self.breaker.elapsed_ns(now);
        if self.probe {
            self.breaker.probed(self.generation, Some(outcome), now);
        } else {
            self.breaker.count(self.generation, outcome, now);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.probe && !self.told {
            // Another may probe in its place.
            self.breaker.probed(self.generation, None, 0);
        }
    }
}

impl Breaker {
    /// A closed circuit. The seed makes its random numbers differ from others'.
    #[must_use]
    pub fn new(settings: BreakerSettings, seed: u64) -> Arc<Self> {
        Arc::new(Self {
            settings,
            origin: Instant::now(),
            open_until_ns: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            pieces: [const { AtomicU64::new(0) }; PIECES as usize],
            probes: Mutex::new(Probes { in_flight: 0, succeeded: 0, random: seed | 1 }),
        })
    }

    /// Its settings.
    #[must_use]
    pub fn settings(&self) -> &BreakerSettings {
        &self.settings
    }

    /// What it does now.
    #[must_use]
    pub fn state(&self, now: Instant) -> BreakerState {
        match self.open_until_ns.load(Ordering::Acquire) {
            0 => BreakerState::Closed,
            until_ns if self.elapsed_ns(now) < until_ns => BreakerState::Open,
            _ => BreakerState::HalfOpen,
        }
    }

    /// Asks leave for one request.
    ///
    /// # Errors
    ///
    /// If the circuit is open, or there are probes enough.
    pub fn try_pass(self: &Arc<Self>, now: Instant) -> Result<Permit, Refusal> {
        let permit = |probe, generation| Permit { breaker: self.clone(), generation, probe, told: false };
        // Read first: a permit of a state that ends meanwhile counts for nothing.
        let generation = self.generation.load(Ordering::Acquire);
        if self.open_until_ns.load(Ordering::Acquire) == 0 {
            return Ok(permit(false, generation));
        }
        let mut probes = self.probes.lock();
        let generation = self.generation.load(Ordering::Acquire);
        let until_ns = self.open_until_ns.load(Ordering::Acquire);
        if until_ns == 0 {
            return Ok(permit(false, generation));
        }
        let now_ns = self.elapsed_ns(now);
        let refusal = |left_ns| Err(Refusal::after(Duration::from_nanos(left_ns), RefusedBy::Breaker));
        if now_ns < until_ns {
            return refusal(until_ns - now_ns);
        }
        if probes.in_flight + probes.succeeded >= self.settings.probes.max(1) {
            // Probes that hang must not keep the circuit from closing: after a while others try.
            if now_ns - until_ns < self.open_ns() {
                return refusal(0);
            }
            self.begin(&mut probes, now_ns);
        }
        let generation = self.generation.load(Ordering::Acquire);
        probes.in_flight += 1;
        Ok(permit(true, generation))
    }

    /// Never 0, which means closed.
    fn elapsed_ns(&self, now: Instant) -> u64 {
        (now.saturating_duration_since(self.origin).as_nanos() as u64).max(1)
    }

    fn count(&self, generation: u64, outcome: Outcome, now_ns: u64) {
        if self.generation.load(Ordering::Acquire) != generation {
            return;
        }
        let number = now_ns / self.piece_ns();
        let piece = &self.pieces[(number % PIECES) as usize];
        let add = |word| Some(Piece::unpack(word).add(number, outcome).pack());
        let _ = piece.fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
        // A success opens nothing.
        if outcome == Outcome::Failure && self.is_failing(number) {
            let mut probes = self.probes.lock();
            if self.generation.load(Ordering::Acquire) == generation {
                self.open(&mut probes, now_ns);
            }
        }
    }

    fn is_failing(&self, number: u64) -> bool {
        let (mut total, mut failures) = (0, 0);
        for number in number.saturating_sub(PIECES - 1)..=number {
            let piece = Piece::unpack(self.pieces[(number % PIECES) as usize].load(Ordering::Acquire));
            if piece.number == number & Piece::NUMBER_MASK {
                total += piece.total;
                failures += piece.failures;
            }
        }
        total >= u64::from(self.settings.requests_min)
            && failures * 100 >= total * u64::from(self.settings.failure_percent)
    }

    fn piece_ns(&self) -> u64 {
        (self.settings.window.as_nanos() as u64 / PIECES).max(1)
    }

    fn probed(&self, generation: u64, outcome: Option<Outcome>, now_ns: u64) {
        let mut probes = self.probes.lock();
        if self.generation.load(Ordering::Acquire) != generation {
            return;
        }
        probes.in_flight -= 1;
        match outcome {
            None => {}
            Some(Outcome::Failure) => self.open(&mut probes, now_ns),
            Some(Outcome::Success) => {
                probes.succeeded += 1;
                if probes.succeeded >= self.settings.probes.max(1) {
                    self.begin(&mut probes, 0);
                }
            }
        }
    }

    fn open(&self, probes: &mut Probes, now_ns: u64) {
        // Xorshift, by Marsaglia.
        probes.random ^= probes.random << 13;
        probes.random ^= probes.random >> 7;
        probes.random ^= probes.random << 17;
        let more_ns = probes.random % (self.open_ns() / 4).max(1);
        self.begin(probes, now_ns.saturating_add(self.open_ns()).saturating_add(more_ns));
    }

    fn open_ns(&self) -> u64 {
        (self.settings.open.as_nanos() as u64).max(1)
    }

    /// Begins a state, with nothing counted.
    fn begin(&self, probes: &mut Probes, open_until_ns: u64) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        for piece in &self.pieces {
            piece.store(0, Ordering::Release);
        }
        (probes.in_flight, probes.succeeded) = (0, 0);
        self.open_until_ns.store(open_until_ns, Ordering::Release);
    }
}

/// What a breaker is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BreakerKey {
    /// The policy.
    pub policy: String,
    /// The endpoint; `None` for all endpoints of the policy together.
    pub endpoint: Option<String>,
}

/// All breakers of a cluster.
#[derive(Debug, Default)]
pub struct Breakers {
    breakers: HashMap<BreakerKey, Arc<Breaker>>,
}

impl Breakers {
    /// Closed circuits.
    #[must_use]
    pub fn new(settings: impl IntoIterator<Item = (BreakerKey, BreakerSettings)>) -> Self {
        Self::default().update(settings)
    }

    /// The breakers of a new state of the configuration. One whose settings have not changed is the same object.
    #[must_use]
    pub fn update(&self, settings: impl IntoIterator<Item = (BreakerKey, BreakerSettings)>) -> Self {
        let seeds = RandomState::new();
        let breakers = settings
            .into_iter()
            .map(|(key, settings)| {
                let breaker = match self.breakers.get(&key) {
                    Some(breaker) if breaker.settings == settings => breaker.clone(),
                    _ => Breaker::new(settings, seeds.hash_one(&key)),
                };
                (key, breaker)
            })
            .collect();
        Self { breakers }
    }

    /// One breaker, for a policy to keep.
    #[must_use]
    pub fn get(&self, key: &BreakerKey) -> Option<&Arc<Breaker>> {
        self.breakers.get(key)
    }
}

#[cfg(test)]
#[path = "breaker_tests.rs"]
mod tests;
