use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;
use crate::limits::LIMITED_USERS_MAX;

const IN_FLIGHT_2: FlowLimit = FlowLimit::MaxRequestsInflight { max: 2 };

fn settings(limit: FlowLimit, per_user: FlowLimit) -> SchemaSettings {
    SchemaSettings { name: "schema".into(), limit, per_user }
}

fn schema(limit: FlowLimit, per_user: FlowLimit) -> Arc<Schema> {
    Limits::new(&[settings(limit, per_user)]).schema("schema").expect("it is there").clone()
}

#[test]
fn places_come_back_when_requests_end_or_watches_begin() {
    let schema = schema(IN_FLIGHT_2, FlowLimit::Exempt);
    let now = Instant::now();
    let first = schema.admit("a", now).expect("a place");
    let mut watch = schema.admit("b", now).expect("a place");
    let refusal = schema.admit("c", now).expect_err("full");
    assert_eq!(refusal, Refusal { retry_after_seconds: 1, by: RefusedBy::Schema });
    watch.release_now();
    assert_eq!(schema.in_flight(), 1);
    let second = schema.admit("c", now).expect("the watch's place");
    schema.admit("d", now).expect_err("full");
    drop((first, second));
    assert_eq!(schema.in_flight(), 0);
    drop(watch);
    assert_eq!(schema.in_flight(), 0, "a place comes back once");
}

#[test]
fn a_user_at_its_limit_takes_nothing_from_the_others() {
    let per_user = FlowLimit::TokenBucket { qps: 1, burst: 3 };
    let schema = schema(FlowLimit::TokenBucket { qps: 1, burst: 5 }, per_user);
    let now = Instant::now();
    let admitted = |user| schema.admit(user, now).map(drop);
    for _ in 0..3 {
        admitted("greedy").expect("within its burst");
    }
    for _ in 0..100 {
        assert_eq!(admitted("greedy").expect_err("its own limit").by, RefusedBy::User);
    }
    for _ in 0..2 {
        admitted("other").expect("the schema has two tokens left");
    }
    for _ in 0..100 {
        assert_eq!(admitted("other").expect_err("the schema's limit").by, RefusedBy::Schema);
    }
    // What the schema refused was not taken from the user either.
    let later = now + Duration::from_secs(5);
    for _ in 0..3 {
        drop(schema.admit("other", later).expect("a full bucket"));
    }
}

#[test]
fn a_refusal_tells_when_a_token_will_be_there() {
    let schema = schema(FlowLimit::TokenBucket { qps: 1, burst: 2 }, FlowLimit::Exempt);
    let start = Instant::now();
    for _ in 0..2 {
        drop(schema.admit("", start).expect("a token"));
    }
    assert_eq!(schema.admit("", start).expect_err("empty").retry_after_seconds, 1);
    schema.admit("", start + Duration::from_millis(999)).expect_err("not yet");
    drop(schema.admit("", start + Duration::from_millis(1000)).expect("a token"));
    let slow = Refusal::after(Duration::from_millis(2001), RefusedBy::Schema);
    assert_eq!(slow.retry_after_seconds, 3);
}

#[test]
fn less_than_one_a_second_is_a_limit_too() {
    let schema = schema(FlowLimit::OneEach { interval: Duration::from_secs(100), burst: 2 }, FlowLimit::Exempt);
    let start = Instant::now();
    for _ in 0..2 {
        drop(schema.admit("", start).expect("within the burst"));
    }
    assert_eq!(schema.admit("", start).expect_err("empty").retry_after_seconds, 100);
    schema.admit("", start + Duration::from_secs(99)).expect_err("not yet");
    drop(schema.admit("", start + Duration::from_secs(100)).expect("a token"));
}

#[test]
fn limits_of_zero_refuse_all() {
    let now = Instant::now();
    for limit in [
        FlowLimit::MaxRequestsInflight { max: 0 },
        FlowLimit::TokenBucket { qps: 0, burst: 5 },
        FlowLimit::TokenBucket { qps: 5, burst: 0 },
    ] {
        schema(limit, FlowLimit::Exempt).admit("", now).expect_err("zero");
    }
}

#[test]
fn a_reload_forgets_nothing_that_still_has_a_meaning() {
    let per_user = FlowLimit::MaxRequestsInflight { max: 1 };
    let limits = Limits::new(&[settings(IN_FLIGHT_2, per_user)]);
    let now = Instant::now();
    let held = limits.schema("schema").expect("there").admit("jane", now).expect("a place");

    let same = limits.update(&[settings(IN_FLIGHT_2, per_user)]);
    assert!(Arc::ptr_eq(limits.schema("schema").expect("there"), same.schema("schema").expect("there")));

    let narrower = same.update(&[settings(FlowLimit::MaxRequestsInflight { max: 1 }, per_user)]);
    let schema = narrower.schema("schema").expect("there");
    assert_eq!(schema.in_flight(), 1);
    assert_eq!(schema.admit("joe", now).expect_err("jane is still in flight").by, RefusedBy::Schema);
    assert_eq!(schema.admit("jane", now).expect_err("and known").by, RefusedBy::User);
    drop(held);
    drop(schema.admit("jane", now).expect("her place came back to the new schema"));

    let bucket = narrower.update(&[settings(FlowLimit::TokenBucket { qps: 1, burst: 1 }, FlowLimit::Exempt)]);
    drop(bucket.schema("schema").expect("there").admit("jane", now).expect("a new bucket"));
    let bucket = bucket.update(&[settings(FlowLimit::TokenBucket { qps: 1, burst: 1 }, per_user)]);
    let refusal = bucket.schema("schema").expect("there").admit("jane", now).expect_err("the bucket is empty still");
    assert_eq!(refusal.by, RefusedBy::Schema);
    assert!(bucket.update(&[]).schema("schema").is_none());
}

#[test]
fn many_users_are_bounded_and_none_in_flight_is_forgotten() {
    let schema = schema(FlowLimit::Exempt, FlowLimit::MaxRequestsInflight { max: 1 });
    let now = Instant::now();
    let held: Vec<_> = (0..500).map(|user| schema.admit(&format!("held {user}"), now).expect("first")).collect();
    for user in 0..20 * LIMITED_USERS_MAX {
        drop(schema.admit(&format!("passing {user}"), now).expect("first"));
    }
    // One more here and there, and no more with time.
    assert!(schema.users_count() <= LIMITED_USERS_MAX + LIMITED_USERS_MAX / 100, "{}", schema.users_count());
    for user in 0..held.len() {
        assert_eq!(schema.admit(&format!("held {user}"), now).expect_err("second").by, RefusedBy::User);
    }
    drop(held);
    drop(schema.admit("held 0", now).expect("free again"));
}

#[test]
fn users_in_flight_may_be_more_than_are_remembered_and_then_fewer_again() {
    let schema = schema(FlowLimit::Exempt, FlowLimit::MaxRequestsInflight { max: 1 });
    let now = Instant::now();
    let count = LIMITED_USERS_MAX * 3 / 2;
    let held: Vec<_> = (0..count).map(|user| schema.admit(&user.to_string(), now).expect("first")).collect();
    assert_eq!(schema.users_count(), count);
    assert!((0..count).all(|user| schema.admit(&user.to_string(), now).is_err()), "none is forgotten");
    drop(held);
    for user in 0..LIMITED_USERS_MAX {
        drop(schema.admit(&format!("new {user}"), now).expect("first"));
    }
    assert_eq!(schema.users_count(), LIMITED_USERS_MAX);
    assert_eq!(schema.in_flight(), 0);
}

#[test]
fn whose_bucket_is_empty_is_remembered_rather_than_whose_is_full() {
    let schema = schema(FlowLimit::Exempt, FlowLimit::TokenBucket { qps: 1, burst: 100 });
    let now = Instant::now();
    for _ in 0..100 {
        drop(schema.admit("greedy", now).expect("within its burst"));
    }
    for user in 0..10 * LIMITED_USERS_MAX {
        drop(schema.admit(&format!("passing {user}"), now).expect("first"));
    }
    assert_eq!(schema.admit("greedy", now).expect_err("still known").by, RefusedBy::User);
}

#[test]
fn threads_never_share_a_place() {
    let schema = schema(FlowLimit::MaxRequestsInflight { max: 3 }, FlowLimit::MaxRequestsInflight { max: 2 });
    let (now_in, most_in, admitted) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (schema, now_in, most_in, admitted) = (&schema, &now_in, &most_in, &admitted);
            scope.spawn(move || {
                for _ in 0..5_000 {
                    if let Ok(admission) = schema.admit(["jane", "joe"][thread % 2], Instant::now()) {
                        most_in.fetch_max(now_in.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        std::hint::spin_loop();
                        now_in.fetch_sub(1, Ordering::SeqCst);
                        admitted.fetch_add(1, Ordering::SeqCst);
                        drop(admission);
                    }
                }
            });
        }
    });
    assert!(most_in.into_inner() <= 3);
    assert!(admitted.into_inner() > 0);
    assert_eq!(schema.in_flight(), 0);
}

proptest! {
    /// Against the textbook: a number of tokens that grows with time.
    #[test]
    fn a_bucket_admits_as_a_token_bucket_does(
        qps in 1..1000_u32, burst in 1..50_u32, steps in proptest::collection::vec(0..20_000_u64, 1..200),
    ) {
        let schema = schema(FlowLimit::TokenBucket { qps, burst }, FlowLimit::Exempt);
        let mut now = Instant::now();
        let (mut tokens, mut admitted) = (f64::from(burst), 0_u32);
        let start = now;
        for step_us in steps {
            now += Duration::from_micros(step_us);
            tokens = (tokens + step_us as f64 * f64::from(qps) / 1e6).min(f64::from(burst));
            let outcome = schema.admit("", now).map(drop);
            // Rounding may decide at the very edge.
            if (tokens - 1.0).abs() > 1e-3 {
                prop_assert_eq!(outcome.is_ok(), tokens >= 1.0, "{} tokens", tokens);
            }
            if outcome.is_ok() {
                tokens -= 1.0;
                admitted += 1;
            }
            let most = f64::from(burst) + now.duration_since(start).as_secs_f64() * f64::from(qps) + 0.01;
            prop_assert!(f64::from(admitted) <= most);
        }
    }
}
