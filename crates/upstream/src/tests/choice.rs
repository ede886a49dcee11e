use std::collections::HashMap;

use proptest::prelude::{ProptestConfig, any, proptest};

use super::*;

/// An upstream whose endpoints need not exist.
fn unprobed(weights: &[u32]) -> Arc<Upstream> {
    let mut settings = UpstreamSettings::new("test");
    settings.health.interval = Duration::ZERO;
    settings.endpoints = weights
        .iter()
        .enumerate()
        .map(|(index, weight)| {
            let address = Address { https: true, host: format!("10.0.0.{index}"), port: 6443 };
            EndpointSettings { weight: *weight, ..EndpointSettings::new(address) }
        })
        .collect();
    Upstream::new(settings)
}

fn ids(upstream: &Upstream) -> Vec<EndpointId> {
    upstream.endpoints().iter().map(|endpoint| endpoint.id()).collect()
}

fn counts(upstream: &Upstream, strategy: Strategy, picks: usize) -> Vec<usize> {
    let mut counts: HashMap<EndpointId, usize> = HashMap::new();
    for _ in 0..picks {
        let picked = upstream.pick(strategy, None, &[], "").expect("one");
        *counts.entry(picked.id()).or_default() += 1;
    }
    ids(upstream).iter().map(|id| counts.get(id).copied().unwrap_or(0)).collect()
}

/// Takes an endpoint out of rotation.
fn eject(endpoint: &Arc<Endpoint>) {
    for _ in 0..3 {
        endpoint.report(Outcome::Unavailable);
    }
}

#[tokio::test]
async fn round_robin_is_exactly_even_over_those_in_rotation() {
    let upstream = unprobed(&[1, 1, 1, 1]);
    assert_eq!(counts(&upstream, Strategy::RoundRobin, 400), [100, 100, 100, 100]);
    eject(&upstream.endpoints()[1]);
    assert_eq!(counts(&upstream, Strategy::RoundRobin, 300), [100, 0, 100, 100]);
}

#[tokio::test]
async fn policies_that_alternate_do_not_take_each_others_turns() {
    let upstream = unprobed(&[1, 1, 1]);
    let ids = ids(&upstream);
    let (one, other) = (EndpointSet::new(ids[..2].to_vec()), EndpointSet::new(ids[1..].to_vec()));
    let mut seen: HashMap<EndpointId, usize> = HashMap::new();
    for _ in 0..100 {
        let picked = upstream.pick(Strategy::RoundRobin, Some(&one), &[], "").expect("one");
        *seen.entry(picked.id()).or_default() += 1;
        upstream.pick(Strategy::RoundRobin, Some(&other), &[], "").expect("one");
    }
    assert_eq!((seen[&ids[0]], seen[&ids[1]]), (50, 50));
}

#[tokio::test]
async fn weights_are_kept_in_every_stretch() {
    let upstream = unprobed(&[5, 3, 2, 0]);
    for _ in 0..20 {
        let counts = counts(&upstream, Strategy::Weighted, 100);
        for (count, wanted) in counts.iter().zip([50_usize, 30, 20, 0]) {
            assert!(count.abs_diff(wanted) <= 3, "{counts:?}");
        }
    }
}

#[tokio::test]
async fn a_subset_out_of_rotation_yields_its_least_bad_and_never_another() {
    let upstream = unprobed(&[1, 1, 1, 1, 1, 1]);
    let endpoints = upstream.endpoints();
    let all = ids(&upstream);
    let subset = EndpointSet::new(all[..2].to_vec());
    eject(&endpoints[0]);
    for strategy in
        [Strategy::RoundRobin, Strategy::LeastWork, Strategy::Latency, Strategy::Weighted, Strategy::Rendezvous]
    {
        for key in ["a", "b", "c"] {
            let picked = upstream.pick(strategy, Some(&subset), &[], key).expect("one");
            assert_eq!(picked.id(), all[1]);
        }
        // The healthy one was tried already: the bad one is better than none, and known as such.
        let last = upstream.pick(strategy, Some(&subset), &all[1..2], "").expect("one");
        assert!(last.id() == all[0] && !last.is_available());
        assert!(upstream.pick(strategy, Some(&subset), &all[..2], "").is_none());
    }
}

#[tokio::test]
async fn least_work_goes_where_least_is_in_flight_and_watches_weigh_little() {
    let upstream = unprobed(&[1, 1, 1]);
    let endpoints = upstream.endpoints();
    assert_eq!(counts(&upstream, Strategy::LeastWork, 300), [100, 100, 100]);
    (0..5).for_each(|_| endpoints[0].load().begin(Class::Watch));
    endpoints[1].load().begin(Class::Short);
    assert_eq!(counts(&upstream, Strategy::LeastWork, 10), [0, 0, 10]);
    endpoints[2].load().begin(Class::Short);
    assert_eq!(counts(&upstream, Strategy::LeastWork, 10), [10, 0, 0]);
}

#[tokio::test]
async fn the_slow_endpoint_gets_the_fewest_requests() {
    let upstream = unprobed(&[1, 1, 1]);
    let endpoints = upstream.endpoints();
    let now = std::time::Instant::now();
    for (endpoint, latency_ms) in endpoints.iter().zip([5, 5, 50]) {
        endpoint.latency().record(now - Duration::from_millis(latency_ms), now);
    }
    let counts = counts(&upstream, Strategy::Latency, 300);
    assert!(counts[2] == 0 && counts[0] > 100 && counts[1] > 100, "{counts:?}");
}

#[tokio::test]
async fn a_user_stays_where_it_is_unless_its_endpoint_goes() {
    let upstream = unprobed(&[1, 1, 1, 1]);
    let all = ids(&upstream);
    let users: Vec<String> = (0..4000).map(|number| format!("user-{number}")).collect();
    let place =
        |upstream: &Upstream, user: &str| upstream.pick(Strategy::Rendezvous, None, &[], user).expect("one").id();
    let before: Vec<_> = users.iter().map(|user| place(&upstream, user)).collect();
    for id in &all {
        let share = before.iter().filter(|place| *place == id).count();
        assert!((800..1200).contains(&share), "{share} of 4000");
    }
    // The same in another process.
    let other = unprobed(&[1, 1, 1, 1]);
    assert!(users.iter().zip(&before).all(|(user, before)| place(&other, user) == *before));
    eject(&upstream.endpoints()[2]);
    for (user, before) in users.iter().zip(&before) {
        assert!(place(&upstream, user) == *before || *before == all[2]);
    }
}

#[tokio::test]
async fn an_even_share_is_served_to_each_of_the_endpoints_on_one_client_connection() {
    let servers = [Server::start().await, Server::start().await, Server::start().await];
    let upstream = Upstream::new(settings(&servers.each_ref()));
    warm(&upstream).await;
    for _ in 0..60 {
        let endpoint = upstream.pick(Strategy::RoundRobin, None, &[], "").expect("one");
        get(&endpoint, "/").await;
    }
    assert_eq!(servers.each_ref().map(Server::requests), [20, 20, 20]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the states, the weights and the strategy: what is picked is allowed, and is in rotation if anything
    /// allowed is.
    #[test]
    fn a_pick_is_always_allowed_and_well_if_that_is_possible(
        weights in proptest::collection::vec(0u32..5, 1..8),
        bad in any::<u8>(),
        subset in any::<u8>(),
        tried in any::<u8>(),
        turns in 0usize..20,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let upstream = unprobed(&weights);
            let all = ids(&upstream);
            let chosen = |bits: u8| {
                all.iter().enumerate().filter(move |(index, _)| bits >> index & 1 == 1).map(|(_, id)| *id)
            };
            for (index, endpoint) in upstream.endpoints().iter().enumerate() {
                if bad >> index & 1 == 1 {
                    eject(endpoint);
                }
            }
            let set = EndpointSet::new(chosen(subset));
            let exclude: Vec<_> = chosen(tried).collect();
            let allowed = |endpoint: &&Arc<Endpoint>| set.contains(endpoint.id()) && !exclude.contains(&endpoint.id());
            let endpoints = upstream.endpoints();
            let any_allowed = endpoints.iter().any(|endpoint| allowed(&endpoint));
            let any_well = endpoints.iter().filter(allowed).any(|endpoint| endpoint.is_available());
            for strategy in
                [Strategy::RoundRobin, Strategy::LeastWork, Strategy::Latency, Strategy::Weighted, Strategy::Rendezvous]
            {
                for turn in 0..turns {
                    let picked = upstream.pick(strategy, Some(&set), &exclude, &turn.to_string());
                    assert_eq!(picked.is_some(), any_allowed);
                    if let Some(picked) = picked {
                        assert!(allowed(&&picked));
                        assert!(picked.is_available() || !any_well);
                    }
                }
            }
            let in_rotation = endpoints.iter().filter(|endpoint| endpoint.is_available()).count();
            assert!(in_rotation >= endpoints.len().div_ceil(2));
        });
    }
}
