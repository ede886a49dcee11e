use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use kubewharf_foundation::clock::ManualClock;
use parking_lot::Mutex;
use proptest::prelude::*;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    Ed25519KeyPair, KeyPair,
};
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::configuration::{ClaimMapping, ExtraMapping, ExtraSource};
use super::fetch::Fetched;
use super::*;
use crate::http_client::HttpError;
use crate::limits::{JWT_EXPIRY_LEEWAY, JWT_FETCH_INTERVAL_MIN, JWT_REFRESH_MAX};

const ISSUER: &str = "https://issuer.example.com";
const NOW: u64 = 1_800_000_000;

fn now() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(NOW))
}

fn encoded(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A key that signs tokens.
enum Signer {
    Ec(EcdsaKeyPair, &'static str),
    Ed(Ed25519KeyPair),
}

impl Signer {
    fn ec(algorithm: &'static EcdsaSigningAlgorithm, name: &'static str) -> Self {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("a key");
        Self::Ec(EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).expect("a key"), name)
    }

    fn es256() -> Self {
        Self::ec(&ECDSA_P256_SHA256_FIXED_SIGNING, "ES256")
    }

    fn ed() -> Self {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("a key");
        Self::Ed(Ed25519KeyPair::from_pkcs8(document.as_ref()).expect("a key"))
    }

    fn algorithm(&self) -> &'static str {
        match self {
            Self::Ec(_, name) => name,
            Self::Ed(_) => "EdDSA",
        }
    }

    fn sign(&self, message: &str) -> Vec<u8> {
        let message = message.as_bytes();
        match self {
            Self::Ec(key, _) => key.sign(&SystemRandom::new(), message).expect("signed").as_ref().to_vec(),
            Self::Ed(key) => key.sign(message).as_ref().to_vec(),
        }
    }

    fn jwk(&self, id: &str) -> Value {
        match self {
            Self::Ec(key, name) => {
                let (x, y) = key.public_key().as_ref()[1..].split_at(if *name == "ES256" { 32 } else { 48 });
                let curve = if *name == "ES256" { "P-256" } else { "P-384" };
                json!({"kty": "EC", "crv": curve, "kid": id, "use": "sig", "x": encoded(x), "y": encoded(y)})
            }
            Self::Ed(key) => {
                json!({"kty": "OKP", "crv": "Ed25519", "kid": id, "alg": "EdDSA", "x": encoded(key.public_key())})
            }
        }
    }

    fn token(&self, id: &str, claims: &Value) -> String {
        let header = json!({"alg": self.algorithm(), "kid": id, "typ": "JWT"});
        let signed = format!("{}.{}", encoded(header.to_string()), encoded(claims.to_string()));
        let signature = self.sign(&signed);
        format!("{signed}.{}", encoded(signature))
    }
}

/// An issuer's documents, which tests change.
#[derive(Default)]
struct Documents {
    keys: Mutex<Option<Vec<Value>>>,
    discovery: Mutex<Option<Value>>,
    fetched: AtomicUsize,
    max_age: Option<Duration>,
    /// If there is one, the keys come when it says so.
    gate: Option<Arc<Notify>>,
}

impl Documents {
    fn with(keys: Vec<Value>) -> Arc<Self> {
        Arc::new(Self { keys: Mutex::new(Some(keys)), ..Self::default() })
    }

    fn keys_fetched(&self) -> usize {
        self.fetched.load(Ordering::SeqCst)
    }
}

impl Fetch for Documents {
    fn fetch<'a>(&'a self, url: &'a str) -> BoxFuture<'a, Result<Fetched, FetchError>> {
        async move {
            let document = if url == format!("{ISSUER}/.well-known/openid-configuration") {
                let usual = json!({"issuer": ISSUER, "jwks_uri": format!("{ISSUER}/keys")});
                self.discovery.lock().clone().unwrap_or(usual)
            } else {
                assert_eq!(url, format!("{ISSUER}/keys"));
                self.fetched.fetch_add(1, Ordering::SeqCst);
                if let Some(gate) = &self.gate {
                    gate.notified().await;
                }
                match &*self.keys.lock() {
                    Some(keys) => json!({"keys": keys}),
                    None => return Err(FetchError::Status(http::StatusCode::BAD_GATEWAY)),
                }
            };
            Ok(Fetched { body: Bytes::from(document.to_string()), max_age: self.max_age })
        }
        .boxed()
    }
}

fn settings() -> IssuerSettings {
    let mapping = |claim: &str, prefix: &str| ClaimMapping { claim: claim.into(), prefix: prefix.into() };
    let extra = |key: &str, source| ExtraMapping { key: key.into(), source };
    IssuerSettings {
        url: ISSUER.into(),
        discovery_url: format!("{ISSUER}/.well-known/openid-configuration"),
        certificate_authority: None,
        audiences: vec!["kubernetes".into(), "gateway".into()],
        username: mapping("sub", "oidc:"),
        groups: Some(mapping("groups", "oidc:")),
        uid: Some("uid".into()),
        extra: vec![
            extra("example.org/tenant", ExtraSource::Path(vec!["tenant".into(), "id".into()])),
            extra("example.org/team", ExtraSource::Claim { claim: "team".into(), prefix: "t-".into() }),
            extra("example.org/origin", ExtraSource::Literal("oidc".into())),
        ],
        required_claims: vec![("hd".into(), "example.com".into())],
    }
}

fn claims() -> Value {
    json!({
        "iss": ISSUER, "aud": "gateway", "exp": NOW + 600, "nbf": NOW, "iat": NOW, "jti": "id 1",
        "sub": "jane", "uid": "4711", "groups": ["dev", "ops"], "hd": "example.com",
        "tenant": {"id": "acme"}, "team": ["red", ""],
    })
}

/// Claims that differ in one; null takes it out.
fn but(claim: &str, value: Value) -> Value {
    let mut claims = claims();
    let object = claims.as_object_mut().expect("an object");
    if value.is_null() {
        object.remove(claim)
    } else {
        object.insert(claim.into(), value)
    };
    claims
}

fn authenticators(documents: &Arc<Documents>, clock: &ManualClock) -> Arc<JwtAuthenticators> {
    let fetch = |_: &IssuerSettings| Ok(documents.clone() as Arc<dyn Fetch>);
    JwtAuthenticators::new(&[settings()], Arc::new(clock.clone()), &fetch).expect("authenticators")
}

async fn name_of(authenticators: &JwtAuthenticators, token: &str) -> Result<String, String> {
    match authenticators.authenticate(token, now()).await {
        JwtOutcome::Verified { user, .. } => Ok(user.name),
        JwtOutcome::Refused(error) => Err(format!("refused: {error}")),
        JwtOutcome::Unavailable(problem) => Err(format!("unavailable: {problem}")),
        JwtOutcome::NotOurs => Err("not ours".into()),
    }
}

#[tokio::test]
async fn a_good_token_of_each_kind_is_a_user() {
    let signers = [Signer::es256(), Signer::ec(&ECDSA_P384_SHA384_FIXED_SIGNING, "ES384"), Signer::ed()];
    let keys = signers.iter().map(|signer| signer.jwk(signer.algorithm())).collect();
    let authenticators = authenticators(&Documents::with(keys), &ManualClock::default());
    for signer in &signers {
        let token = signer.token(signer.algorithm(), &claims());
        let JwtOutcome::Verified { user, lifetime } = authenticators.authenticate(&token, now()).await else {
            panic!("{} is not accepted", signer.algorithm());
        };
        assert_eq!(lifetime, Duration::from_secs(600) + JWT_EXPIRY_LEEWAY);
        let expected = User {
            name: "oidc:jane".into(),
            uid: "4711".into(),
            groups: vec!["oidc:dev".into(), "oidc:ops".into()],
            extra: vec![
                ("authentication.kubernetes.io/credential-id".into(), vec!["JTI=id 1".into()]),
                ("example.org/tenant".into(), vec!["acme".into()]),
                ("example.org/team".into(), vec!["t-red".into()]),
                ("example.org/origin".into(), vec!["oidc".into()]),
            ],
        };
        assert_eq!(user, expected);
    }
}

#[tokio::test]
async fn claims_that_are_not_as_they_must_be_are_refused() {
    let signer = Signer::ed();
    let authenticators = authenticators(&Documents::with(vec![signer.jwk("k")]), &ManualClock::default());
    let leeway = JWT_EXPIRY_LEEWAY.as_secs();
    for (claims, problem) in [
        (but("exp", json!(NOW - leeway)), "expired"),
        (but("exp", Value::Null), "no claim \"exp\""),
        (but("exp", json!("tomorrow")), "\"exp\" is not a number"),
        (but("nbf", json!(NOW + 61)), "future"),
        (but("iat", json!(NOW + 61)), "future"),
        (but("aud", json!("other")), "audience"),
        (but("aud", json!(["other", 7])), "audience"),
        (but("aud", Value::Null), "no claim \"aud\""),
        (but("sub", Value::Null), "no claim \"sub\""),
        (but("sub", json!("")), "names nobody"),
        (but("sub", json!(7)), "\"sub\" is not a string"),
        (but("uid", Value::Null), "no claim \"uid\""),
        (but("groups", json!({"a": 1})), "\"groups\" is not"),
        (but("groups", json!(["a", 1])), "\"groups\" is not"),
        (but("hd", json!("example.org")), "must be \"example.com\""),
        (but("hd", Value::Null), "no claim \"hd\""),
        (but("tenant", json!({})), "no claim \"tenant.id\""),
        (but("tenant", json!({"id": 7})), "\"tenant.id\" is not"),
    ] {
        let error = name_of(&authenticators, &signer.token("k", &claims)).await.expect_err(problem);
        assert!(error.starts_with("refused") && error.contains(problem), "{claims}: {error}");
    }
    for claims in [
        but("exp", json!(NOW - leeway + 1)),
        but("exp", json!(NOW as f64 + 0.5)),
        but("nbf", json!(NOW + 60)),
        but("nbf", Value::Null),
        but("iat", Value::Null),
        but("aud", json!(["x", "kubernetes"])),
        but("groups", Value::Null),
        but("groups", json!("dev")),
        but("team", Value::Null),
    ] {
        let name = name_of(&authenticators, &signer.token("k", &claims)).await;
        assert_eq!(name, Ok("oidc:jane".into()), "{claims}");
    }
    let mut distributed = but("groups", Value::Null);
    distributed["_claim_names"] = json!({"groups": "src1"});
    let error = name_of(&authenticators, &signer.token("k", &distributed)).await.expect_err("where are they?");
    assert!(error.contains("distributed"), "{error}");
}

#[tokio::test]
async fn an_address_is_a_name_only_if_it_is_verified() {
    let signer = Signer::ed();
    let documents = Documents::with(vec![signer.jwk("k")]);
    let by_email =
        IssuerSettings { username: ClaimMapping { claim: "email".into(), prefix: String::new() }, ..settings() };
    let fetch = |_: &IssuerSettings| Ok(documents.clone() as Arc<dyn Fetch>);
    let authenticators =
        JwtAuthenticators::new(&[by_email], Arc::new(ManualClock::default()), &fetch).expect("authenticators");
    for (verified, good) in [(Value::Null, true), (json!(true), true), (json!(false), false), (json!("true"), false)] {
        let mut claims = but("email_verified", verified.clone());
        claims["email"] = json!("jane@example.com");
        let name = name_of(&authenticators, &signer.token("k", &claims)).await;
        assert_eq!(name.is_ok(), good, "{verified}: {name:?}");
    }
}

#[tokio::test]
async fn forged_tokens_are_refused() {
    let (signer, stranger) = (Signer::es256(), Signer::es256());
    let documents = Documents::with(vec![signer.jwk("k")]);
    let authenticators = authenticators(&documents, &ManualClock::default());
    let good = signer.token("k", &claims());
    assert_eq!(name_of(&authenticators, &good).await, Ok("oidc:jane".into()));
    let parts: Vec<&str> = good.split('.').collect();
    let with_header = |header: Value| format!("{}.{}.{}", encoded(header.to_string()), parts[1], parts[2]);
    let admin = but("sub", json!("admin"));
    for (forged, problem) in [
        (stranger.token("k", &claims()), "no key"),
        (stranger.token("other", &claims()), "no key"),
        (format!("{}.{}.{}", parts[0], encoded(admin.to_string()), parts[2]), "no key"),
        (format!("{}.{}.", parts[0], parts[1]), "no key"),
        (format!("{}.{}.{}", parts[0], parts[1], encoded([0; 64])), "no key"),
        (with_header(json!({"alg": "none"})), "none"),
        (with_header(json!({"alg": "HS256", "kid": "k"})), "HS256"),
        (with_header(json!({"alg": "ES256", "kid": "k", "crit": ["exp"]})), "critical"),
        (with_header(json!({"alg": "ES256", "kid": "k", "b64": false})), "critical"),
        (with_header(json!({"kid": "k"})), "header"),
        (format!("{}.{}.{}=", parts[0], parts[1], parts[2]), "header"),
    ] {
        let error = name_of(&authenticators, &forged).await.expect_err("forged");
        assert!(error.starts_with("refused") && error.contains(problem), "{forged}: {error}");
    }
    assert!(documents.keys_fetched() <= 2, "forgeries do not make the gateway fetch");
}

#[tokio::test]
async fn tokens_of_others_are_not_ours() {
    let signer = Signer::ed();
    let documents = Documents::with(vec![signer.jwk("k")]);
    let authenticators = authenticators(&documents, &ManualClock::default());
    for token in [
        signer.token("k", &but("iss", json!("https://kubernetes.default.svc"))),
        signer.token("k", &but("iss", json!(format!("{ISSUER}/")))),
        signer.token("k", &but("iss", Value::Null)),
        signer.token("k", &json!("jane")),
        "abcdef.0123456789abcdef".into(),
        "opaque".into(),
        "a.b.c".into(),
        String::new(),
        format!("{}.d", signer.token("k", &claims())),
        format!(".{}.x", encoded(claims().to_string())),
        signer.token("k", &but("sub", json!("j".repeat(100_000)))),
    ] {
        assert_eq!(name_of(&authenticators, &token).await, Err("not ours".into()), "{token:.100}");
    }
    assert_eq!(documents.keys_fetched(), 0, "and nothing is fetched for them");
}

#[tokio::test]
async fn a_new_key_is_found_when_a_token_names_it_but_not_at_any_rate() {
    let (old, new) = (Signer::es256(), Signer::ed());
    let documents = Documents::with(vec![old.jwk("old")]);
    let clock = ManualClock::default();
    let authenticators = authenticators(&documents, &clock);
    let (old_token, new_token) = (old.token("old", &claims()), new.token("new", &claims()));
    name_of(&authenticators, &old_token).await.expect("the first key");
    *documents.keys.lock() = Some(vec![old.jwk("old"), new.jwk("new")]);
    for number in 0..50 {
        name_of(&authenticators, &new.token(&number.to_string(), &claims())).await.expect_err("unknown");
    }
    assert_eq!(documents.keys_fetched(), 1, "it has only just been looked at");
    clock.advance(JWT_FETCH_INTERVAL_MIN);
    name_of(&authenticators, &new_token).await.expect("the new key");
    assert_eq!(documents.keys_fetched(), 2);
    for number in 0..50 {
        name_of(&authenticators, &new.token(&number.to_string(), &claims())).await.expect_err("unknown");
    }
    assert_eq!(documents.keys_fetched(), 2);
    name_of(&authenticators, &old_token).await.expect("the old key is there still");
}

#[tokio::test]
async fn a_key_that_the_issuer_has_withdrawn_is_forgotten() {
    let signer = Signer::ed();
    let documents = Documents::with(vec![signer.jwk("k")]);
    let clock = ManualClock::default();
    let authenticators = authenticators(&documents, &clock);
    let token = signer.token("k", &claims());
    name_of(&authenticators, &token).await.expect("a good key");
    *documents.keys.lock() = Some(vec![Signer::ed().jwk("k")]);
    clock.advance(JWT_REFRESH_MAX);
    // The first token after that is still judged by the old keys, and has the new ones fetched.
    name_of(&authenticators, &token).await.expect("the old key");
    tokio::time::timeout(Duration::from_secs(10), async {
        while name_of(&authenticators, &token).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it is forgotten");
}

#[tokio::test]
async fn an_issuer_that_is_down_costs_nobody_the_keys_that_are_known() {
    let signer = Signer::ed();
    let documents = Documents::with(vec![signer.jwk("k")]);
    let clock = ManualClock::default();
    let authenticators = authenticators(&documents, &clock);
    let token = signer.token("k", &claims());
    name_of(&authenticators, &token).await.expect("a good key");
    *documents.keys.lock() = None;
    clock.advance(Duration::from_secs(100_000));
    for _ in 0..3 {
        name_of(&authenticators, &token).await.expect("the last good keys");
        tokio::task::yield_now().await;
    }
    clock.advance(JWT_FETCH_INTERVAL_MIN);
    let unknown = name_of(&authenticators, &signer.token("new", &claims())).await.expect_err("not known");
    assert!(unknown.starts_with("unavailable"), "it may be a new key: {unknown}");
    let forged = name_of(&authenticators, &Signer::ed().token("k", &claims())).await.expect_err("forged");
    assert!(forged.starts_with("refused"), "{forged}");
}

#[tokio::test]
async fn without_keys_a_token_can_not_be_judged() {
    let signer = Signer::ed();
    let documents = Arc::new(Documents::default());
    let clock = ManualClock::default();
    let authenticators = authenticators(&documents, &clock);
    let token = signer.token("k", &claims());
    for _ in 0..5 {
        let error = name_of(&authenticators, &token).await.expect_err("no keys");
        assert!(error.starts_with("unavailable") && error.contains("502"), "{error}");
    }
    assert_eq!(documents.keys_fetched(), 1);
    *documents.keys.lock() = Some(vec![signer.jwk("k")]);
    clock.advance(JWT_FETCH_INTERVAL_MIN);
    name_of(&authenticators, &token).await.expect("keys at last");
}

#[tokio::test]
async fn discovery_must_be_of_the_issuer_and_name_keys_at_a_safe_place() {
    for (discovery, problem) in [
        (json!({"issuer": "https://evil.example.com", "jwks_uri": "https://a/keys"}), "evil.example.com"),
        (json!({"issuer": ISSUER, "jwks_uri": "http://a/keys"}), "https://"),
        (json!({"issuer": ISSUER}), "jwks_uri"),
        (json!("hello"), "discovery document"),
    ] {
        let signer = Signer::ed();
        let documents = Documents::with(vec![signer.jwk("k")]);
        *documents.discovery.lock() = Some(discovery);
        let authenticators = authenticators(&documents, &ManualClock::default());
        let error = name_of(&authenticators, &signer.token("k", &claims())).await.expect_err("unusable");
        assert!(error.contains(problem), "{error}");
        assert_eq!(documents.keys_fetched(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_herd_fetches_the_keys_once_and_a_client_that_leaves_does_not_stop_it() {
    let signer = Signer::ed();
    let gate = Arc::new(Notify::new());
    let keys = Mutex::new(Some(vec![signer.jwk("k")]));
    let documents = Arc::new(Documents { keys, gate: Some(gate.clone()), ..Documents::default() });
    let authenticators = authenticators(&documents, &ManualClock::default());
    let token = signer.token("k", &claims());
    let herd: Vec<_> = (0..50)
        .map(|_| {
            let (authenticators, token) = (authenticators.clone(), token.clone());
            tokio::spawn(async move { name_of(&authenticators, &token).await })
        })
        .collect();
    while documents.keys_fetched() == 0 {
        tokio::task::yield_now().await;
    }
    for (number, task) in herd.iter().enumerate() {
        if number % 2 == 0 {
            task.abort();
        }
    }
    gate.notify_one();
    for (number, task) in herd.into_iter().enumerate() {
        let outcome = task.await;
        if number % 2 == 1 {
            assert_eq!(outcome.expect("no panic"), Ok("oidc:jane".into()));
        }
    }
    assert_eq!(documents.keys_fetched(), 1);
}

#[tokio::test]
async fn a_reload_keeps_the_keys_of_issuers_that_have_not_changed() {
    let signer = Signer::ed();
    let documents = Documents::with(vec![signer.jwk("k")]);
    let fetch = |_: &IssuerSettings| Ok(documents.clone() as Arc<dyn Fetch>);
    let first = authenticators(&documents, &ManualClock::default());
    first.prefetch();
    let token = signer.token("k", &claims());
    name_of(&first, &token).await.expect("a good key");
    assert!(Arc::ptr_eq(&first, &first.update(&[settings()], &fetch).expect("an update")));
    let other = IssuerSettings { url: "https://other.example.com".into(), ..settings() };
    let second = first.update(&[settings(), other.clone()], &fetch).expect("an update");
    name_of(&second, &token).await.expect("a good key");
    assert_eq!(documents.keys_fetched(), 1);
    let changed = IssuerSettings { audiences: vec!["other".into()], ..settings() };
    let third = second.update(&[changed, other], &fetch).expect("an update");
    name_of(&third, &token).await.expect_err("for another audience");
    assert_eq!(documents.keys_fetched(), 2);
}

/// The real thing: discovery and keys over TLS.
#[tokio::test]
async fn documents_come_over_https_from_a_trusted_server_only() {
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;

    let server = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let mut config = rustls::ServerConfig::builder_with_provider(crate::authentication::x509::provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(
            vec![server.cert.der().clone()],
            rustls_pki_types::PrivateKeyDer::try_from(server.signing_key.serialize_der()).expect("a key"),
        )
        .expect("a pair");
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let serving = tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.expect("a connection");
            let Ok(stream) = acceptor.accept(socket).await else { continue };
            let answer = service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                assert_eq!(request.headers()["host"].to_str().expect("text").split(':').next(), Some("localhost"));
                let (status, body) = match request.uri().path() {
                    "/document" => (200, "{}".to_owned()),
                    "/long" => (200, "x".repeat(crate::limits::JWT_FETCH_BYTES_MAX + 1)),
                    _ => (404, String::new()),
                };
                http::Response::builder()
                    .status(status)
                    .header("cache-control", "max-age=77")
                    .body(http_body_util::Full::new(Bytes::from(body)))
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        }
    });
    let fetch = HttpsFetch::new(Some(&server.cert.pem())).expect("an authority");
    let url = |path: &str| format!("https://localhost:{port}/{path}");
    let document = fetch.fetch(&url("document")).await.expect("a document");
    assert_eq!(document, Fetched { body: Bytes::from_static(b"{}"), max_age: Some(Duration::from_secs(77)) });
    assert!(matches!(fetch.fetch(&url("missing")).await, Err(FetchError::Status(http::StatusCode::NOT_FOUND))));
    assert!(matches!(fetch.fetch(&url("long")).await, Err(FetchError::Http(HttpError::Body { .. }))));
    assert!(matches!(fetch.fetch("http://localhost/").await, Err(FetchError::Url)));
    let stranger = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let other = HttpsFetch::new(Some(&stranger.cert.pem())).expect("an authority");
    assert!(matches!(other.fetch(&url("document")).await, Err(FetchError::Http(HttpError::Connect(_)))));
    assert!(HttpsFetch::new(Some("")).is_err());
    serving.abort();
}

proptest! {
    #[test]
    fn no_token_makes_it_fail(
        parts in proptest::collection::vec(prop_oneof!["[A-Za-z0-9_-]{0,20}", any::<String>()], 0..5),
        claims in "\\{(\"iss\":\"https://issuer.example.com\"|\"a\":[0-9]+)\\}",
    ) {
        for token in [parts.join("."), format!("x.{}.y", encoded(claims))] {
            if let Some(token) = claims::Token::parse(&token) {
                let _ = token.signature();
                let _ = token.user(&settings(), now());
            }
        }
    }
}
