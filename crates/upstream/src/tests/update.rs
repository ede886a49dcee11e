use super::*;

#[tokio::test]
async fn a_removed_endpoint_ends_with_its_streams_and_the_others_notice_nothing() {
    let (gone, stays) = (Server::start().await, Server::start().await);
    let upstream = Upstream::new(settings(&[&gone, &stays]));
    warm(&upstream).await;
    let endpoint = only(&upstream);
    let mut watch = headers(&endpoint, Class::Watch, "/watch/60").await;
    let pending = begin(&endpoint, Class::Short, "/slow/300").await;
    upstream.update(settings(&[&stays]));
    assert_eq!(upstream.endpoints().len(), 1);
    assert_eq!(pending.response.await.expect("answered").status(), StatusCode::OK);
    drop((pending.body, pending.lease));
    assert_eq!(read(&mut watch.body).await.expect("a whole body").len(), 180);
    until("only the watch's connection is left", || gone.open() == 1).await;
    drop(watch);
    until("its connections are closed", || gone.open() == 0).await;
    assert_eq!(get(&only(&upstream), "/").await.0, StatusCode::OK);
    assert_eq!(stays.accepted(), 1);
    // Picked before it was removed: still served, and nothing remains.
    assert_eq!(get(&endpoint, "/").await.0, StatusCode::OK);
    drop(endpoint);
    until("its connections are closed again", || gone.open() == 0).await;
}

#[tokio::test]
async fn an_update_that_changes_nothing_about_an_endpoint_keeps_its_connections() {
    let (one, other) = (Server::start().await, Server::start().await);
    let upstream = Upstream::new(settings(&[&one]));
    warm(&upstream).await;
    let before = only(&upstream);
    let mut new = settings(&[&other, &one]);
    new.endpoints[1].weight = 7;
    new.health.interval = Duration::from_secs(1);
    upstream.update(new);
    warm(&upstream).await;
    let after = upstream.endpoints()[1].clone();
    assert!(Arc::ptr_eq(&before, &after));
    assert_eq!((after.status().weight, one.accepted()), (7, 1));
}

#[tokio::test]
async fn a_new_token_goes_with_the_next_request() {
    let server = Server::start().await;
    let mut settings = settings(&[&server]);
    let upstream = Upstream::new(settings.clone());
    let endpoint = only(&upstream);
    for token in [None, Some("first"), Some("second"), None] {
        settings.bearer_token = token.map(|token| BearerToken::new(token).expect("a token"));
        upstream.update(settings.clone());
        get(&endpoint, "/").await;
        assert_eq!(*server.control.authorization.lock(), token.map(|token| format!("Bearer {token}")));
    }
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn discovery_replaces_endpoints_and_nothing_else() {
    let (one, other) = (Server::start().await, Server::start().await);
    let mut settings = settings(&[&one]);
    settings.bearer_token = Some(BearerToken::new("kept").expect("a token"));
    let upstream = Upstream::new(settings);
    upstream.finder().found(vec![EndpointSettings::new(other.address.clone())]);
    assert_eq!(get(&only(&upstream), "/").await.0, StatusCode::OK);
    assert_eq!(other.control.authorization.lock().as_deref(), Some("Bearer kept"));
    until("the old connection is closed", || one.open() == 0).await;
}

/// The endpoint of that number.
fn numbered(port: u16) -> EndpointSettings {
    EndpointSettings::new(Address { https: false, host: "127.0.0.1".to_owned(), port })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_discovery_finds_is_not_lost_while_the_rest_changes() {
    // Nobody listens there, and nobody is asked whether somebody does.
    let quiet = |weight: u32| {
        let mut settings = UpstreamSettings::new("test");
        settings.health.interval = Duration::ZERO;
        settings.health.failures_max = weight;
        settings
    };
    let upstream = Upstream::new(quiet(0));
    let finder = upstream.finder();
    let is_over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let changes = std::thread::spawn({
        let (upstream, is_over, runtime) = (upstream.clone(), is_over.clone(), tokio::runtime::Handle::current());
        move || {
            let _inside = runtime.enter();
            for number in 1.. {
                upstream.update_all_but_endpoints(quiet(number));
                if is_over.load(std::sync::atomic::Ordering::SeqCst) {
                    return;
                }
            }
        }
    });
    for port in 1..2000 {
        finder.found(vec![numbered(port)]);
        assert_eq!(upstream.settings().endpoints, [numbered(port)]);
    }
    is_over.store(true, std::sync::atomic::Ordering::SeqCst);
    changes.join().expect("no panic");
}

#[tokio::test]
async fn what_was_looked_up_for_the_configuration_before_is_not_brought_back() {
    let mut settings = UpstreamSettings::new("test");
    let upstream = Upstream::new(settings.clone());
    let before = upstream.finder();
    settings.endpoints = vec![numbered(2)];
    upstream.update(settings.clone());
    before.found(vec![numbered(1)]);
    assert_eq!(upstream.settings().endpoints, [numbered(2)]);
    // Also where the other configuration begins with what there is.
    let between = upstream.finder();
    upstream.update(settings);
    between.found(vec![numbered(1)]);
    assert_eq!(upstream.settings().endpoints, [numbered(2)]);
    upstream.finder().found(vec![numbered(3)]);
    assert_eq!(upstream.settings().endpoints, [numbered(3)]);
}

#[tokio::test]
async fn a_disabled_endpoint_gets_nothing_until_it_is_enabled() {
    let (one, other) = (Server::start().await, Server::start().await);
    let mut settings = settings(&[&one, &other]);
    settings.endpoints[0].disabled = true;
    let upstream = Upstream::new(settings.clone());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(one.accepted(), 0);
    let other_only = EndpointSet::new([one.address.id()]);
    assert!(upstream.pick(Strategy::RoundRobin, Some(&other_only), &[], "").is_none());
    settings.endpoints[0].disabled = false;
    upstream.update(settings);
    warm(&upstream).await;
    assert!(upstream.pick(Strategy::RoundRobin, Some(&other_only), &[], "").is_some());
}

#[tokio::test]
async fn nothing_remains_of_an_upstream_that_is_dropped() {
    let server = Server::start().await;
    let upstream = Upstream::new(settings(&[&server]));
    warm(&upstream).await;
    let endpoint = Arc::downgrade(&only(&upstream));
    let mut watch = headers(&only(&upstream), Class::Watch, "/watch/30").await;
    drop(upstream);
    assert_eq!(read(&mut watch.body).await.expect("a whole body").len(), 90);
    drop(watch);
    until("all connections are closed", || server.open() == 0).await;
    until("the endpoint is gone", || endpoint.upgrade().is_none()).await;
}
