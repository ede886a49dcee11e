use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt;
use http::HeaderValue;
use http::header::AUTHORIZATION;
use kubewharf_foundation::clock::ManualClock;
use parking_lot::Mutex;
use rcgen::{CertificateParams, DnType, IsCa, Issuer, KeyPair};
use x509::ClientTrustSettings;

use super::*;

/// A cluster that knows some tokens.
#[derive(Default)]
struct Cluster {
    tokens: HashMap<&'static str, TokenVerdict>,
    asked: AtomicUsize,
    audiences: Mutex<Vec<String>>,
    down: bool,
}

impl Reviewer for Cluster {
    fn review_token<'a>(
        &'a self,
        token: &'a str,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<TokenVerdict, ReviewError>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        *self.audiences.lock() = audiences.to_vec();
        let verdict = if self.down {
            Err(ReviewError::Unavailable("no endpoint is ready".into()))
        } else {
            Ok(self.tokens.get(token).cloned().unwrap_or_default())
        };
        std::future::ready(verdict).boxed()
    }

    fn review_access<'a>(&'a self, _: AccessAttributes<'a>) -> BoxFuture<'a, Result<AccessVerdict, ReviewError>> {
        unreachable!("authentication asks for no access")
    }
}

/// The address of most clients.
const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn user(name: &str, groups: &[&str]) -> User {
    User { name: name.into(), groups: groups.iter().map(|group| (*group).into()).collect(), ..User::default() }
}

fn good(name: &str, groups: &[&str]) -> TokenVerdict {
    TokenVerdict { user: Some(user(name, groups)), ..TokenVerdict::default() }
}

fn cluster() -> Arc<Cluster> {
    let tokens = HashMap::from([
        ("good", good("jane", &["dev"])),
        ("told", good("joe", &["dev", AUTHENTICATED])),
        ("nobody", good("", &["dev"])),
        ("anonymous", good(ANONYMOUS, &[UNAUTHENTICATED])),
    ]);
    Arc::new(Cluster { tokens, ..Cluster::default() })
}

fn authenticator(settings: AuthenticationSettings, cluster: &Arc<Cluster>, clock: &ManualClock) -> Authenticator {
    Authenticator::new(settings, None, None, cluster.clone(), Arc::new(clock.clone()))
}

fn anonymous_allowed() -> AuthenticationSettings {
    let anonymous = AnonymousSettings { enabled: true, paths: Vec::new() };
    AuthenticationSettings { anonymous, ..AuthenticationSettings::default() }
}

fn bearer(token: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {token}")).expect("a value"));
    headers
}

fn websocket(token: &str) -> HeaderMap {
    use base64::Engine;
    let token = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(token);
    let protocols = format!("base64url.bearer.authorization.k8s.io.{token}, v5.channel.k8s.io");
    let mut headers = HeaderMap::new();
    headers.insert("connection", HeaderValue::from_static("Upgrade"));
    headers.insert("upgrade", HeaderValue::from_static("websocket"));
    headers.insert("sec-websocket-protocol", HeaderValue::from_str(&protocols).expect("a value"));
    headers
}

#[tokio::test]
async fn the_first_credential_that_is_good_decides_and_a_bad_one_is_never_anonymous() {
    let authenticator = authenticator(anonymous_allowed(), &cluster(), &ManualClock::default());
    // The proxy serves on several threads.
    fn on_any_thread<T: Send>(future: T) -> T {
        future
    }
    let ask = async |headers: &HeaderMap| {
        let outcome = on_any_thread(authenticator.authenticate(None, headers, "/api", CLIENT)).await;
        outcome.map(|found| (found.user.name.clone(), found.method)).map_err(|error| error.status().as_u16())
    };
    let both = |token, other| {
        let mut headers = websocket(other);
        headers.extend(bearer(token));
        headers
    };
    let jane = |method| Ok(("jane".to_owned(), method));
    assert_eq!(ask(&bearer("good")).await, jane(Method::Bearer));
    assert_eq!(ask(&websocket("good")).await, jane(Method::WebSocket));
    assert_eq!(ask(&both("bad", "good")).await, jane(Method::WebSocket), "one of two is enough");
    assert_eq!(ask(&both("good", "bad")).await, jane(Method::Bearer), "what comes later is not looked at");
    assert_eq!(ask(&both("bad", "bad")).await, Err(401));
    assert_eq!(ask(&bearer("bad")).await, Err(401));
    assert_eq!(ask(&bearer("nobody")).await, Err(401), "a user without a name is none");
    assert_eq!(ask(&HeaderMap::new()).await, Ok((ANONYMOUS.to_owned(), Method::Anonymous)));
    let mut basic = HeaderMap::new();
    basic.insert(AUTHORIZATION, HeaderValue::from_static("Basic abc"));
    assert_eq!(ask(&basic).await, Ok((ANONYMOUS.to_owned(), Method::Anonymous)), "as in kube-apiserver");
}

#[tokio::test]
async fn groups_tell_who_is_authenticated() {
    let authenticator = authenticator(anonymous_allowed(), &cluster(), &ManualClock::default());
    let groups = async |headers: HeaderMap| {
        authenticator.authenticate(None, &headers, "/", CLIENT).await.expect("a user").user.groups.clone()
    };
    assert_eq!(groups(bearer("good")).await, ["dev", AUTHENTICATED]);
    assert_eq!(groups(bearer("told")).await, ["dev", AUTHENTICATED]);
    assert_eq!(groups(bearer("anonymous")).await, [UNAUTHENTICATED]);
    assert_eq!(groups(HeaderMap::new()).await, [UNAUTHENTICATED]);
}

#[tokio::test]
async fn anonymous_requests_are_let_in_where_they_may() {
    let ask = async |anonymous: AnonymousSettings, path: &str| {
        let settings = AuthenticationSettings { anonymous, ..AuthenticationSettings::default() };
        let authenticator = authenticator(settings, &cluster(), &ManualClock::default());
        authenticator.authenticate(None, &HeaderMap::new(), path, CLIENT).await.map(|found| found.method)
    };
    let health = || AnonymousSettings { enabled: true, paths: vec!["/healthz".into(), "/readyz".into()] };
    assert_eq!(ask(health(), "/readyz").await, Ok(Method::Anonymous));
    assert_eq!(ask(health(), "/readyz/ping").await, Err(AuthenticationError::NoCredentials));
    assert_eq!(ask(AnonymousSettings::default(), "/readyz").await, Err(AuthenticationError::NoCredentials));
}

#[tokio::test]
async fn verdicts_are_remembered_for_as_long_as_is_configured() {
    let (cluster, clock) = (cluster(), ManualClock::default());
    let authenticator = authenticator(AuthenticationSettings::default(), &cluster, &clock);
    let ask = async |token| authenticator.authenticate(None, &bearer(token), "/", CLIENT).await.is_ok();
    for _ in 0..3 {
        assert!(ask("good").await && !ask("bad").await);
    }
    assert_eq!(cluster.asked.load(Ordering::SeqCst), 2);
    clock.advance(Duration::from_secs(6));
    assert!(ask("good").await && !ask("bad").await);
    assert_eq!(cluster.asked.load(Ordering::SeqCst), 3, "the refusal was over");
    clock.advance(Duration::from_secs(5));
    assert!(ask("good").await);
    assert_eq!(cluster.asked.load(Ordering::SeqCst), 4, "the success too");
}

#[tokio::test]
async fn a_cluster_that_can_not_say_refuses_nobody_for_good() {
    let clock = ManualClock::default();
    let down = Arc::new(Cluster { down: true, ..Cluster::default() });
    let before = authenticator(anonymous_allowed(), &down, &clock);
    for _ in 0..2 {
        let error = before.authenticate(None, &bearer("good"), "/", CLIENT).await.expect_err("nobody can say");
        assert_eq!(error.status(), http::StatusCode::SERVICE_UNAVAILABLE);
    }
    assert_eq!(down.asked.load(Ordering::SeqCst), 2, "that is not remembered");
    let after = before.update(anonymous_allowed(), None, None, cluster());
    after.authenticate(None, &bearer("good"), "/", CLIENT).await.expect("there is a cluster again");
}

/// A cluster that never answers.
struct Silent;

impl Reviewer for Silent {
    fn review_token<'a>(&'a self, _: &'a str, _: &'a [String]) -> BoxFuture<'a, Result<TokenVerdict, ReviewError>> {
        std::future::pending().boxed()
    }

    fn review_access<'a>(&'a self, _: AccessAttributes<'a>) -> BoxFuture<'a, Result<AccessVerdict, ReviewError>> {
        std::future::pending().boxed()
    }
}

#[tokio::test]
async fn a_cluster_that_does_not_answer_is_given_up() {
    let review_timeout = Duration::from_millis(30);
    let settings = AuthenticationSettings { review_timeout, ..AuthenticationSettings::default() };
    let clock = Arc::new(ManualClock::default());
    let authenticator = Authenticator::new(settings, None, None, Arc::new(Silent), clock);
    // More than are asked at once: waiting for one's turn counts too.
    let ask = async |number: usize, client| {
        authenticator.authenticate(None, &bearer(&number.to_string()), "/", client).await.expect_err("no answer")
    };
    let asks = (0..2 * REVIEWS_AT_ONCE_MAX).map(|number| ask(number, CLIENT));
    for error in futures_util::future::join_all(asks).await {
        assert_eq!(error, AuthenticationError::Unavailable(Arc::new(ReviewError::Timeout(review_timeout))));
    }
}

#[tokio::test]
async fn questions_that_would_wait_too_long_are_refused_and_nobody_fills_the_queue_alone() {
    let settings =
        AuthenticationSettings { review_timeout: Duration::from_secs(1), ..AuthenticationSettings::default() };
    let first = Authenticator::new(settings.clone(), None, None, Arc::new(Silent), Arc::new(ManualClock::default()));
    // A new configuration makes no new room.
    let second = first.update(settings, None, None, Arc::new(Silent));
    let mut asks = futures_util::stream::FuturesUnordered::new();
    let ask = async |number: u32, client: u32| {
        let authenticator = if number.is_multiple_of(2) { &first } else { &second };
        let token = bearer(&number.to_string());
        authenticator.authenticate(None, &token, "/", IpAddr::V4(client.into())).await.expect_err("no answer").status()
    };
    let places = u32::try_from(REVIEWS_AT_ONCE_MAX + REVIEWS_WAITING_MAX).expect("few");
    let of_one = u32::try_from(TOKENS_PER_ADDRESS_MAX).expect("few");
    // One client has its share, then many others have what is left.
    asks.extend((0..of_one + 100).map(|number| ask(number, 0)));
    asks.extend((1000..1000 + places).map(|number| ask(number, number)));
    let mut statuses = HashMap::new();
    while let Some(status) = futures_util::StreamExt::next(&mut asks).await {
        *statuses.entry(status.as_u16()).or_insert(0) += 1;
    }
    assert_eq!(statuses, HashMap::from([(503, places), (429, of_one + 100)]));
    // They have left, and their places are free.
    assert_eq!(ask(0, 0).await, http::StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_token_must_be_for_one_of_the_audiences() {
    let for_audiences = |audiences: &[&str]| TokenVerdict {
        audiences: audiences.iter().map(|audience| (*audience).into()).collect(),
        ..good("jane", &[])
    };
    let tokens = HashMap::from([
        ("ours", for_audiences(&["x", "gateway"])),
        ("theirs", for_audiences(&["x"])),
        ("none", for_audiences(&[])),
    ]);
    let cluster = Arc::new(Cluster { tokens, ..Cluster::default() });
    let settings = AuthenticationSettings { audiences: vec!["gateway".into()], ..AuthenticationSettings::default() };
    let authenticator = authenticator(settings, &cluster, &ManualClock::default());
    let ask = async |token| authenticator.authenticate(None, &bearer(token), "/", CLIENT).await.is_ok();
    assert!(ask("ours").await);
    assert_eq!(*cluster.audiences.lock(), ["gateway"]);
    assert!(!ask("theirs").await);
    assert!(!ask("none").await, "a cluster that does not know of audiences says nothing about ours");
}

#[tokio::test]
async fn a_reload_remembers_tokens_only_if_they_are_judged_alike() {
    let (cluster, clock) = (cluster(), ManualClock::default());
    let first = authenticator(AuthenticationSettings::default(), &cluster, &clock);
    first.authenticate(None, &bearer("good"), "/", CLIENT).await.expect("jane");
    let same = first.update(anonymous_allowed(), None, None, cluster.clone());
    same.authenticate(None, &bearer("good"), "/", CLIENT).await.expect("jane");
    assert_eq!(cluster.asked.load(Ordering::SeqCst), 1);
    let audiences = AuthenticationSettings { audiences: vec!["x".into()], ..AuthenticationSettings::default() };
    let other = same.update(audiences, None, None, cluster.clone());
    other.authenticate(None, &bearer("good"), "/", CLIENT).await.expect_err("not for x");
    assert_eq!(cluster.asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_certificate_comes_before_a_token_and_a_token_after_a_certificate_that_has_ended() {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).expect("a CA");
    let issuer = Issuer::new(params, key);
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "cert user");
    (params.not_before, params.not_after) = (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2030, 1, 1));
    let leaf_key = KeyPair::generate().expect("a key");
    let leaf = params.signed_by(&leaf_key, &issuer).expect("a certificate");

    let clock = ManualClock::new(0, 1_800_000_000_000);
    let trust_settings = ClientTrustSettings { authorities: ca.pem().into_bytes(), revocations: None };
    let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
    let trust = ClientTrust::new(trust_settings, now).expect("trust");
    let settings = anonymous_allowed();
    let authenticator = Authenticator::new(settings, Some(trust), None, cluster(), Arc::new(clock.clone()));
    let certificate = ClientCertificate::new(Some(&[leaf.der().clone()])).expect("there is one");
    let ask = async |headers: HeaderMap| {
        let outcome = authenticator.authenticate(Some(&certificate), &headers, "/", CLIENT).await;
        outcome.map(|found| found.user.name.clone()).map_err(|error| error.status().as_u16())
    };
    assert_eq!(ask(bearer("good")).await, Ok("cert user".into()));
    assert_eq!(ask(bearer("bad")).await, Ok("cert user".into()));
    clock.set_wall_ms(1_900_000_000_000);
    assert_eq!(ask(HeaderMap::new()).await, Err(401), "not anonymous");
    assert_eq!(ask(bearer("good")).await, Ok("jane".into()));
}
