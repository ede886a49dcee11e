use proptest::prelude::*;

use super::*;

const SETTINGS: BreakerSettings = BreakerSettings {
    window: Duration::from_secs(10),
    failure_percent: 50,
    requests_min: 4,
    open: Duration::from_secs(8),
    probes: 2,
};

fn request(breaker: &Arc<Breaker>, outcome: Outcome, now: Instant) {
    breaker.try_pass(now).expect("let through").record(outcome, now);
}

/// A circuit that has opened at this time.
fn opened() -> (Arc<Breaker>, Instant) {
    let breaker = Breaker::new(SETTINGS, 7);
    let now = Instant::now();
    for _ in 0..4 {
        request(&breaker, Outcome::Failure, now);
    }
    assert_eq!(breaker.state(now), BreakerState::Open);
    (breaker, now)
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn it_opens_at_the_rate_of_failures_and_not_before_there_are_enough() {
    let breaker = Breaker::new(SETTINGS, 1);
    let now = Instant::now();
    for _ in 0..3 {
        request(&breaker, Outcome::Failure, now);
    }
    assert_eq!(breaker.state(now), BreakerState::Closed, "three are too few");
    for _ in 0..4 {
        request(&breaker, Outcome::Success, now);
    }
    assert_eq!(breaker.state(now), BreakerState::Closed, "3 of 7");
    request(&breaker, Outcome::Failure, now);
    assert_eq!(breaker.state(now), BreakerState::Open, "4 of 8");
    let refusal = breaker.try_pass(now).expect_err("open");
    assert_eq!(refusal.by, RefusedBy::Breaker);
    assert!((8..=10).contains(&refusal.retry_after_seconds), "{refusal:?}");
}

#[test]
fn failures_that_have_left_the_window_are_forgotten() {
    let breaker = Breaker::new(SETTINGS, 1);
    let start = Instant::now();
    for _ in 0..3 {
        request(&breaker, Outcome::Failure, start);
    }
    let later = start + 11 * SECOND;
    for _ in 0..3 {
        request(&breaker, Outcome::Failure, later);
    }
    assert_eq!(breaker.state(later), BreakerState::Closed, "never four within the window");
    request(&breaker, Outcome::Failure, later + 5 * SECOND);
    assert_eq!(breaker.state(later + 5 * SECOND), BreakerState::Open);
}

#[test]
fn after_a_while_probes_decide() {
    for (second_probe, state) in [(Outcome::Success, BreakerState::Closed), (Outcome::Failure, BreakerState::Open)] {
        let (breaker, start) = opened();
        let now = start + 11 * SECOND;
        assert_eq!(breaker.state(now), BreakerState::HalfOpen);
        let first = breaker.try_pass(now).expect("a probe");
        let second = breaker.try_pass(now).expect("a probe");
        assert_eq!(breaker.try_pass(now).expect_err("two are enough").retry_after_seconds, 1);
        first.record(Outcome::Success, now);
        breaker.try_pass(now).expect_err("the second must decide");
        second.record(second_probe, now);
        assert_eq!(breaker.state(now), state);
    }
}

#[test]
fn a_probe_without_an_outcome_lets_another_one_try() {
    let (breaker, start) = opened();
    let now = start + 11 * SECOND;
    let probes = [breaker.try_pass(now).expect("a probe"), breaker.try_pass(now).expect("a probe")];
    drop(probes);
    for _ in 0..2 {
        request(&breaker, Outcome::Success, now);
    }
    assert_eq!(breaker.state(now), BreakerState::Closed);
}

#[test]
fn probes_that_hang_do_not_keep_the_circuit_open_for_ever() {
    let (breaker, start) = opened();
    let now = start + 11 * SECOND;
    let hanging = [breaker.try_pass(now).expect("a probe"), breaker.try_pass(now).expect("a probe")];
    breaker.try_pass(now + 5 * SECOND).expect_err("they may still answer");
    let now = now + 9 * SECOND;
    request(&breaker, Outcome::Success, now);
    let [first, _second] = hanging;
    first.record(Outcome::Failure, now);
    assert_eq!(breaker.state(now), BreakerState::HalfOpen, "too late to count");
    request(&breaker, Outcome::Success, now);
    assert_eq!(breaker.state(now), BreakerState::Closed);
}

#[test]
fn outcomes_of_a_state_that_has_ended_count_for_nothing() {
    let breaker = Breaker::new(SETTINGS, 1);
    let start = Instant::now();
    let late: Vec<_> = (0..20).map(|_| breaker.try_pass(start).expect("closed")).collect();
    for _ in 0..4 {
        request(&breaker, Outcome::Failure, start);
    }
    let now = start + 11 * SECOND;
    let late_probe = breaker.try_pass(now).expect("a probe");
    request(&breaker, Outcome::Failure, now);
    let now = now + 11 * SECOND;
    for _ in 0..2 {
        request(&breaker, Outcome::Success, now);
    }
    assert_eq!(breaker.state(now), BreakerState::Closed);
    late_probe.record(Outcome::Failure, now);
    for permit in late {
        permit.record(Outcome::Failure, now);
    }
    assert_eq!(breaker.state(now), BreakerState::Closed);
}

#[test]
fn circuits_that_opened_together_do_not_close_together() {
    let waits: std::collections::HashSet<u64> = (0..100_u64)
        .map(|seed| {
            let breaker = Breaker::new(SETTINGS, seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let now = Instant::now();
            for _ in 0..4 {
                request(&breaker, Outcome::Failure, now);
            }
            breaker.open_until_ns.load(Ordering::Relaxed) - breaker.elapsed_ns(now)
        })
        .inspect(|wait_ns| assert!((8_000_000_000..=10_000_000_000).contains(wait_ns), "{wait_ns}"))
        .collect();
    assert!(waits.len() > 40, "{}", waits.len());
}

#[test]
fn a_reload_keeps_the_breakers_that_have_not_changed() {
    let key = |endpoint: &str| BreakerKey { policy: "p".into(), endpoint: Some(endpoint.into()) };
    let breakers = Breakers::new([(key("a"), SETTINGS), (key("b"), SETTINGS)]);
    let other = BreakerSettings { probes: 9, ..SETTINGS };
    let updated = breakers.update([(key("a"), SETTINGS), (key("b"), other)]);
    let same = |endpoint| {
        let (old, new) = (breakers.get(&key(endpoint)), updated.get(&key(endpoint)));
        Arc::ptr_eq(old.expect("there"), new.expect("there"))
    };
    assert!(same("a") && !same("b"));
    assert!(updated.update([]).get(&key("a")).is_none());
}

#[test]
fn threads_count_every_outcome() {
    let settings = BreakerSettings { failure_percent: 100, window: Duration::from_secs(3600), ..SETTINGS };
    let breaker = Breaker::new(settings, 1);
    let now = Instant::now();
    // With a success among them, they are never all failures.
    request(&breaker, Outcome::Success, now);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..10_000).for_each(|_| request(&breaker, Outcome::Failure, now)));
        }
    });
    let piece = Piece::unpack(breaker.pieces[0].load(Ordering::Relaxed));
    assert_eq!((piece.total, piece.failures), (40_001, 40_000));
}

proptest! {
    #[test]
    fn a_word_holds_a_piece(number in any::<u64>(), outcomes in proptest::collection::vec(any::<bool>(), 0..50)) {
        let mut word = Piece { number: 1, total: 3, failures: 2 }.pack();
        let number = number | 2;
        for &failed in &outcomes {
            let outcome = if failed { Outcome::Failure } else { Outcome::Success };
            word = Piece::unpack(word).add(number, outcome).pack();
        }
        let piece = Piece::unpack(word);
        if !outcomes.is_empty() {
            prop_assert_eq!(piece.number, number & Piece::NUMBER_MASK);
            prop_assert_eq!(piece.total, outcomes.len() as u64);
            prop_assert_eq!(piece.failures, outcomes.iter().filter(|failed| **failed).count() as u64);
        }
    }

    #[test]
    fn a_full_piece_keeps_its_ratio(failures in 0..=Piece::COUNT_MASK) {
        let full = Piece { number: 5, total: Piece::COUNT_MASK, failures };
        let next = Piece::unpack(full.add(5, Outcome::Success).pack());
        prop_assert!(next.total > Piece::COUNT_MASK / 2 && next.failures <= failures / 2);
    }

    /// The circuit is never open without enough failures, and closes again whatever has been.
    #[test]
    fn every_history_ends_closed_if_all_goes_well(steps in proptest::collection::vec((0..4_000_u64, 0..3_u8), 0..200)) {
        let breaker = Breaker::new(SETTINGS, 3);
        let mut now = Instant::now();
        let mut failures = 0;
        for (step_ms, what) in steps {
            now += Duration::from_millis(step_ms);
            if let Ok(permit) = breaker.try_pass(now) {
                match what {
                    0 => permit.record(Outcome::Success, now),
                    1 => { failures += 1; permit.record(Outcome::Failure, now) }
                    _ => drop(permit),
                }
            }
            prop_assert!(failures >= 1 || breaker.state(now) == BreakerState::Closed);
        }
        now += 20 * SECOND;
        for _ in 0..2 {
            request(&breaker, Outcome::Success, now);
        }
        prop_assert_eq!(breaker.state(now), BreakerState::Closed);
    }
}
