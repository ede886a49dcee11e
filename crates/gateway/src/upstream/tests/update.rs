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
    upstream.set_endpoints(vec![EndpointSettings::new(other.address.clone())]);
    assert_eq!(get(&only(&upstream), "/").await.0, StatusCode::OK);
    assert_eq!(other.control.authorization.lock().as_deref(), Some("Bearer kept"));
    until("the old connection is closed", || one.open() == 0).await;
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
