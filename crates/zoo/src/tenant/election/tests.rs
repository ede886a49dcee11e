//! Candidates at an apiserver whose messages come late, twice as late, or never.

use proptest::prelude::*;

use super::*;

/// The one lease, as an apiserver keeps it.
#[derive(Default)]
struct Server {
    lease: Option<(u64, LeaseSpec)>,
    version: u64,
}

impl Server {
    fn read(&self) -> Option<Lease> {
        let (version, spec) = self.lease.clone()?;
        let mut lease = Lease { spec, ..Lease::default() };
        lease.metadata.resource_version = version.to_string();
        Some(lease)
    }

    /// What a write answers; none for a conflict.
    fn write(&mut self, step: &Step) -> Option<Lease> {
        let spec = match (step, &self.lease) {
            (Step::Create(spec), None) => spec.clone(),
            (Step::Update { version, spec }, Some((there, _))) if *version == there.to_string() => spec.clone(),
            _ => return None,
        };
        self.version += 1;
        self.lease = Some((self.version, spec));
        self.read()
    }
}

fn at(ms: u64) -> Now {
    Now { monotonic_ms: ms, wall_ms: ms }
}

/// A whole round of which nothing gets lost.
fn round(candidate: &mut Election, server: &mut Server, ms: u64) {
    let mut step = candidate.begin(at(ms));
    if step == Step::Read {
        step = candidate.found(server.read(), at(ms));
    }
    if step == Step::Stand {
        return;
    }
    match server.write(&step) {
        Some(lease) => candidate.written(lease, ms),
        None => {
            let step = candidate.found(server.read(), at(ms));
            if let Some(lease) = server.write(&step) {
                candidate.written(lease, ms);
            }
        }
    }
}

#[test]
fn a_silent_leader_is_followed_after_its_lease_and_one_that_says_farewell_at_once() {
    let mut server = Server::default();
    let (mut one, mut other) = (Election::new("one".into()), Election::new("other".into()));
    round(&mut one, &mut server, 1_000_000);
    assert_eq!(one.until_ms(), 1_010_000);
    // The other's clock says something else altogether.
    round(&mut other, &mut server, 500);
    round(&mut other, &mut server, 15_400);
    assert_eq!((other.until_ms(), other.holder()), (0, Some("one")));
    round(&mut other, &mut server, 15_500);
    assert_eq!(other.until_ms(), 25_500);
    let spec = server.lease.clone().expect("a lease").1;
    assert_eq!((spec.lease_transitions, spec.lease_duration_seconds), (1, 15));
    assert_eq!((spec.acquire_time.as_str(), &spec.renew_time), ("1970-01-01T00:00:15.500000Z", &spec.acquire_time));
    // The first finds out when it writes at a version that is not there any more.
    round(&mut one, &mut server, 1_016_000);
    assert_eq!(one.until_ms(), 0);
    round(&mut other, &mut server, 17_500);
    let kept = server.lease.clone().expect("a lease").1;
    assert_eq!((kept.lease_transitions, kept.acquire_time), (1, spec.acquire_time), "kept, not taken anew");
    let farewell = other.release(at(18_000)).expect("it holds the lease");
    server.write(&farewell).expect("written");
    assert_eq!(other.until_ms(), 0);
    round(&mut one, &mut server, 1_018_001);
    assert_eq!(one.until_ms(), 1_028_001);
    assert_eq!(server.lease.as_ref().expect("a lease").1.lease_transitions, 2);
}

/// What a candidate waits for.
enum Waits {
    Read { answer: Option<Lease> },
    Write { step: Step, sent_ms: u64, answer: Option<Option<Lease>> },
}

proptest! {
    /// Each number is one thing that happens: who, when, and what becomes of its message.
    #[test]
    fn no_two_lead_at_the_same_time(happenings in prop::collection::vec(any::<u32>(), 1..1500)) {
        let mut server = Server::default();
        let mut candidates: Vec<_> = (0..3).map(|number| (Election::new(number.to_string()), None)).collect();
        // Writes whose sender has given up, and that may be carried out all the same.
        let mut late: Vec<Step> = Vec::new();
        let mut now_ms = 0;
        for happening in happenings {
            now_ms += u64::from(happening % 1500);
            let (who, what) = ((happening / 1500) as usize % 3, happening / 4500 % 16);
            if what == 15 && !late.is_empty() {
                let step = late.swap_remove(happening as usize % late.len());
                server.write(&step);
            }
            let (candidate, waits) = &mut candidates[who];
            let send = |step: Step, server: &mut Server| {
                // Carried out at once, and the answer is late; or later.
                let answer = (what % 2 == 0).then(|| server.write(&step));
                Waits::Write { step, sent_ms: now_ms, answer }
            };
            *waits = match waits.take() {
                None if what == 14 => {
                    if let Some(step) = candidate.release(at(now_ms)) {
                        late.push(step);
                    }
                    None
                }
                None => match candidate.begin(at(now_ms)) {
                    Step::Read => Some(Waits::Read { answer: server.read() }),
                    step => Some(send(step, &mut server)),
                },
                // The answer gets lost, or is given up.
                Some(Waits::Read { .. }) if what < 3 => None,
                Some(Waits::Write { step, answer, .. }) if what < 3 => {
                    if answer.is_none() {
                        late.push(step);
                    }
                    None
                }
                Some(Waits::Read { answer }) => match candidate.found(answer, at(now_ms)) {
                    Step::Stand => None,
                    step => Some(send(step, &mut server)),
                },
                Some(Waits::Write { step, sent_ms, answer }) => {
                    let answer = answer.unwrap_or_else(|| server.write(&step));
                    if let Some(lease) = answer {
                        candidate.written(lease, sent_ms);
                    }
                    None
                }
            };
            let leaders = candidates.iter().filter(|(candidate, _)| now_ms < candidate.until_ms()).count();
            prop_assert!(leaders <= 1, "{leaders} lead");
        }
        // When all goes well again, there is one soon.
        candidates[0].1 = None;
        for _ in 0..=(LEASE_DURATION_MS + RETRY_PERIOD_MS) / RETRY_PERIOD_MS {
            now_ms += RETRY_PERIOD_MS;
            round(&mut candidates[0].0, &mut server, now_ms);
        }
        prop_assert!(candidates[0].0.until_ms() > now_ms, "nobody leads");
    }
}
