use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kubewharf_upstream::Strategy;
use proptest::prelude::{ProptestConfig, any, prop, prop_assert_eq, prop_oneof, proptest};
use proptest::sample::select;
use proptest::strategy::Strategy as Generator;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::files::Files;
use super::*;
use crate::User;
use crate::policy::{Attributes, DegradationMode};

/// PEM texts: an authority, and a certificate that it signed with its key.
struct Pki {
    ca: String,
    certificate: String,
    key: String,
    expired: String,
    expired_key: String,
}

static PKI: LazyLock<Pki> = LazyLock::new(|| {
    let mut ca_params = CertificateParams::default();
    ca_params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().unwrap();
    let ca = ca_params.self_signed(&ca_key).unwrap().pem();
    let issuer = Issuer::new(ca_params, ca_key);
    let sign = |params: CertificateParams| {
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
    };
    let (certificate, key) = sign(CertificateParams::new(vec!["a.example.com".to_owned()]).unwrap());
    let mut old = CertificateParams::new(vec!["old.example.com".to_owned()]).unwrap();
    old.not_before = rcgen::date_time_ymd(2001, 1, 1);
    old.not_after = rcgen::date_time_ymd(2002, 2, 2);
    let (expired, expired_key) = sign(old);
    Pki { ca, certificate, key, expired, expired_key }
});

fn encoded(text: &str) -> String {
    STANDARD.encode(text)
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn with(manifest: &str) -> Self {
        let folder = Self::new();
        folder.write("a.yaml", manifest);
        folder
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn load(&self) -> load::Loaded {
        load::load(self.path(), None, &Snapshot::default())
    }

    /// The problems, with the files' names only.
    fn problems(&self) -> Vec<String> {
        let prefix = format!("{}/", self.path().display());
        self.load().problems.iter().map(|problem| problem.to_string().replace(&prefix, "")).collect()
    }

    #[track_caller]
    fn cluster(&self, name: &str) -> Arc<ClusterConfig> {
        let load::Loaded { snapshot, problems, .. } = self.load();
        let Some(snapshot) = snapshot else { panic!("{problems:#?}") };
        snapshot.cluster(name).unwrap().clone()
    }
}

/// A cluster in clear text; `spec` is further lines of its spec.
fn manifest(name: &str, spec: &str) -> String {
    let mut text = format!(
        "apiVersion: proxy.kubegateway.io/v1alpha1\nkind: UpstreamCluster\nmetadata:\n  name: {name}\nspec:\n  servers:\n  - endpoint: http://127.0.0.1:8080\n"
    );
    if !spec.contains("dispatchPolicies:") {
        text += "  dispatchPolicies:\n  - rules:\n    - {verbs: ['*'], apiGroups: ['*'], resources: ['*'], nonResourceURLs: ['*']}\n";
    }
    for line in spec.lines() {
        text += &format!("  {line}\n");
    }
    text
}

/// The spec of a cluster must have exactly this problem, about this field; warnings beside an error do not count.
#[track_caller]
fn assert_problem(spec: &str, field: &str, beginning: &str) {
    let folder = Folder::with(&manifest("a.example.com", spec));
    let mut problems = folder.load().problems;
    let worst = problems.iter().map(|problem| problem.severity).min();
    problems.retain(|problem| Some(problem.severity) == worst);
    let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
    let [problem] = &problems[..] else { panic!("{spec}\nhas other problems than {beginning}: {told:#?}") };
    assert_eq!(problem.field, field, "{told:#?}");
    assert!(problem.problem.starts_with(beginning), "{spec}\nhas not the problem {beginning}: {told:#?}");
    assert!(!problem.remedy.is_empty(), "{told:#?} does not say what to do");
    let text = fs::read_to_string(folder.path().join("a.yaml")).unwrap();
    let line = text.lines().nth(problem.line as usize - 1).unwrap();
    // The field itself, an item of it, or what is missing it.
    let mut parts = field.split(['.', '[', ']']).filter(|part| part.parse::<usize>().is_err() && !part.is_empty());
    let is_elsewhere = field.ends_with(']') || problem.problem.starts_with("is missing");
    let is_told = is_elsewhere || parts.any(|part| part != "spec" && line.contains(part));
    assert!(is_told, "line {} is {line:?}, which is not about {field}", problem.line);
}

fn decide(cluster: &ClusterConfig, verb: &str, resource: &str, user: &str) -> Option<String> {
    let info = kubewharf_kube_api::RequestInfo {
        is_resource_request: true,
        verb: verb.into(),
        resource: resource.into(),
        ..Default::default()
    };
    let user = User { name: user.to_owned(), ..User::default() };
    let attributes = Attributes { info: &info, user: &user, user_agent: "", client: [127, 0, 0, 1].into() };
    cluster.policies.decide(&attributes).map(|decision| decision.policy.name.to_string())
}

#[test]
fn manifests_of_the_original_are_read_unchanged() {
    let pki = &*PKI;
    let (ca, certificate, key) = (encoded(&pki.ca), encoded(&pki.certificate), encoded(&pki.key));
    // As kubectl prints it, with what an apiserver has added.
    let text = format!(
        r#"
apiVersion: proxy.kubegateway.io/v1alpha1
kind: UpstreamCluster
metadata:
  name: cluster-a.kubegateway.io
  creationTimestamp: "2024-01-01T00:00:00Z"
  generation: 3
  resourceVersion: "77"
  uid: 6b6a1d0e-0000-4000-8000-000000000000
  labels: {{team: infra}}
  annotations:
    proxy.kubegateway.io/feature-gates: "DenyAllRequests=true, Tracing=false"
    kubectl.kubernetes.io/last-applied-configuration: |
      {{}}
  managedFields:
  - manager: kubectl
    fieldsV1: {{f:spec: {{}}}}
spec:
  servers:
  - endpoint: https://10.0.0.1:6443
  - endpoint: https://10.0.0.2:6443
    disabled: true
  clientConfig:
    caData: {ca}
    keyData: {key}
    certData: {certificate}
    bearerToken: {token}
    qps: 1
    burst: 10
    qpsDivisor: 100
    serverName: kubernetes.default
  secureServing:
    clientCAData: {ca}
    keyData: {key}
    certData: {certificate}
    serverNames: [Cluster-A.internal, "*.a.kubegateway.io"]
  flowControl:
    flowControlSchemas:
    - name: exempt
      exempt: {{}}
    - name: list-pod
      tokenBucket: {{qps: 10, burst: 20}}
      globalTokenBucket: {{qps: 100, burst: 200}}
      strategy: globalCount
    - name: limited
      maxRequestsInflight: {{max: 1}}
      strategy: ""
  dispatchPolicies:
  - strategy: RoundRobin
    rules:
    - verbs: [list]
      apiGroups: ["*"]
      resources: [pods]
    flowControlSchemaName: list-pod
    logMode: "off"
  - rules:
    - verbs: [get, list, watch]
      apiGroups: ["*"]
      resources: ["*"]
      resourceNames: []
      users: [user-a]
      userGroups: ["system:authenticated"]
      serviceAccounts: [{{name: default, namespace: kube-system}}]
    upstreamSubset: ["https://10.0.0.1:6443"]
    flowControlSchemaName: limited
  - rules:
    - apiGroups: ['*']
      nonResourceURLs: ['*']
      resources: ['*']
      verbs: ['*']
    strategy: ""
    flowControlSchemaName: exempt
  logging:
    mode: on
status: {{}}
"#,
        token = encoded("secret-token\n"),
    );
    let folder = Folder::with(&text);
    let problems = folder.problems();
    assert!(problems.len() == 1 && problems[0].contains("gateways do not count together yet"), "{problems:#?}");
    let cluster = folder.cluster("cluster-a.kubegateway.io");
    assert!(cluster.features.deny_all_requests && !cluster.features.tracing);
    let endpoints: Vec<_> = cluster.endpoints.iter().map(|endpoint| (&*endpoint.id, endpoint.disabled)).collect();
    assert_eq!(endpoints, [("https://10.0.0.1:6443", false), ("https://10.0.0.2:6443", true)]);
    assert_eq!(cluster.client.token.as_ref().unwrap().reveal(), "secret-token");
    assert!(cluster.client.certificate.is_some() && cluster.client.roots.is_some());
    assert_eq!(cluster.client.own_requests, Some(OwnRequests { per_second: 0.01, burst: 10 }));
    assert_eq!(cluster.client.server_name.to_str(), "kubernetes.default");
    assert!(cluster.serving.certificate.is_some() && cluster.serving.client_trust.is_some());
    let limits: Vec<_> = cluster.flow_schemas.iter().map(|schema| (schema.limit, schema.global)).collect();
    let bucket = |per_second, burst| Limit::TokenBucket(TokenBucket { per_second, burst });
    assert_eq!(
        limits,
        [(Limit::Exempt, None), (bucket(10, 20), Some(bucket(100, 200))), (Limit::MaxRequestsInflight(1), None)]
    );
    let [first, second, third] = cluster.policies.policies() else { panic!() };
    assert_eq!((first.flow_schema, first.access_log), (Some(1), false));
    assert_eq!((second.subset.as_deref(), second.access_log), (Some(&["https://10.0.0.1:6443".into()][..]), true));
    assert_eq!((third.strategy, third.flow_schema, third.access_log), (Strategy::RoundRobin, Some(0), true));
    assert_eq!(decide(&cluster, "list", "pods", "anybody").as_deref(), Some("policy-0"));
    assert_eq!(decide(&cluster, "get", "pods", "user-a").as_deref(), Some("policy-2"));
    // Unlike the original, nobody without credentials is let in unless the manifest says so.
    assert!(!cluster.authentication.anonymous);
    assert_eq!(cluster.authentication.token_review.as_ref().unwrap().cache, Duration::from_secs(10));
}

#[test]
fn the_documented_misspelling_counts_and_is_told() {
    let spec = r#"
dispatchPolicies:
- rules:
  - {verbs: [list, get, watch], apiGroups: ["*"], resources: ["*"]}
  upsteamSubset:
  - http://127.0.0.1:8080
- rules:
  - {verbs: ["*"], apiGroups: ["*"], resources: ["*"]}
"#;
    assert_problem(
        spec,
        "spec.dispatchPolicies[0].upsteamSubset",
        "is upstreamSubset as the original's documentation spells it",
    );
    let cluster = Folder::with(&manifest("a.example.com", spec)).cluster("a.example.com");
    assert_eq!(cluster.policies.policies()[0].subset.as_ref().unwrap()[0], "http://127.0.0.1:8080".into());
}

#[test]
fn what_the_original_does_not_have_is_read() {
    let pki = &*PKI;
    let folder = Folder::new();
    for (name, text) in [("ca.crt", &pki.ca), ("tls.crt", &pki.certificate), ("tls.key", &pki.key)] {
        folder.write(name, text);
    }
    folder.write("token", "from-a-file\n");
    folder.write("authentication.conf", "kind: AuthenticationConfiguration\n");
    folder.write(
        "a.yaml",
        r#"
apiVersion: proxy.kubegateway.io/v1alpha1
kind: UpstreamCluster
metadata: {name: a.example.com}
spec:
  servers:
  - {endpoint: "https://10.0.0.1:6443", weight: 3}
  - {endpoint: "https://10.0.0.2:6443"}
  - {endpoint: "https://10.0.0.3:6443"}
  clientConfig: {caFile: ca.crt, certFile: tls.crt, keyFile: tls.key, tokenFile: token}
  secureServing: {certFile: tls.crt, keyFile: tls.key, clientCAFile: ca.crt}
  identityMode: requestHeader
  anonymous: yes
  discovery: {static: {}}
  authentication:
    tokenReview: {cacheSeconds: 0, failureCacheSeconds: 5, timeoutSeconds: 3, audiences: [api]}
    configurationFile: authentication.conf
  access:
    deny:
    - {verbs: ["*"], apiGroups: [""], resources: [secrets], namespaces: [kube-system], users: ["-system:*"]}
    allow:
    - {verbs: ["*"], apiGroups: ["*"], resources: ["*"], nonResourceURLs: ["*"], cidrs: [10.0.0.0/8]}
  flowControl:
    flowControlSchemas:
    - name: fair
      maxRequestsInflight: {max: 100}
      perUser: {tokenBucket: {qps: 5, burst: 10}}
  dispatchPolicies:
  - name: gray
    strategy: LeastWork
    rules:
    - {verbs: ["*"], apiGroups: ["*"], resources: ["*"], userAgents: ["kubectl/*"]}
    weights:
    - {endpoint: "https://10.0.0.3:6443", percent: 2.5}
    - {subset: ["https://10.0.0.1:6443", "https://10.0.0.2"], percent: 97.5}
    timeouts: {request: 1m, perTry: 2.5s, idle: 10m}
    maxBodyBytes: 3Mi
    flowControlSchemaName: fair
    circuitBreaker: {errorPercent: 30, window: 20s}
    degradation: {status: 429, body: later, contentType: text/html}
  - strategy: Weighted
    rules:
    - {verbs: ["*"], apiGroups: ["*"], resources: ["*"]}
"#
        .replace("https://10.0.0.2\"], percent", "https://10.0.0.2:6443\"], percent")
        .as_str(),
    );
    assert_eq!(folder.problems(), Vec::<String>::new());
    let cluster = folder.cluster("a.example.com");
    assert_eq!(cluster.client.token.as_ref().unwrap().reveal(), "from-a-file");
    assert_eq!(cluster.endpoints[0].weight, 3);
    assert_eq!(cluster.identity_mode, IdentityMode::RequestHeader);
    let review = cluster.authentication.token_review.as_ref().unwrap();
    assert_eq!((review.cache, review.timeout), (Duration::ZERO, Duration::from_secs(3)));
    assert!(cluster.authentication.anonymous);
    assert!(cluster.authentication.configuration.as_ref().unwrap().contents.starts_with(b"kind"));
    let [gray, rest] = cluster.policies.policies() else { panic!() };
    assert_eq!((&*gray.name, gray.strategy, rest.strategy), ("gray", Strategy::LeastWork, Strategy::Weighted));
    let arms = gray.weights.as_ref().unwrap().arms();
    assert_eq!((arms[0].share, arms[1].share, arms[1].endpoints.len()), (250, 9_750, 2));
    assert_eq!(gray.timeouts.per_try, Some(Duration::from_millis(2_500)));
    assert_eq!(gray.body_bytes_max, Some(3 << 20));
    let breaker = gray.circuit_breaker.unwrap();
    assert_eq!(
        (breaker.error_percent, breaker.window, breaker.open),
        (30, Duration::from_secs(20), Duration::from_secs(5))
    );
    let degradation = gray.degradation.as_ref().unwrap();
    assert_eq!((degradation.mode, degradation.status.as_u16()), (DegradationMode::UpstreamDown, 429));
    let per_user = cluster.flow_schemas[0].per_user.unwrap();
    assert_eq!(per_user.token_bucket, Some(TokenBucket { per_second: 5, burst: 10 }));
}

#[test]
fn everything_wrong_is_told_at_once_with_line_field_and_remedy() {
    let folder = Folder::with(
        r#"# a comment
apiVersion: proxy.kubegateway.io/v1alpha1
kind: UpstreamCluster
metadata:
  name: Cluster_A
spec:
  servers:
  - endpont: https://10.0.0.1:6443
  - endpoint: 10.0.0.2:6443
  - endpoint: 7
  - endpoint: https://10.0.0.4:99999
  clientConfig:
    insecure: maybe
    bearerToken: "%%%"
  dispatchPolicies:
  - strategy: roundRobin
    rules:
    - verbs: [1, get]
      apiGroups: "*"
      resources: ["*"]
    flowControlSchemaName: nothing
  flowControl:
  - name: exempt
    exempt: {}
---
apiVersion: v1
kind: ConfigMap
"#,
    );
    let expected = [
        "a.yaml:5: metadata.name: \"Cluster_A\" is no DNS name; it is the host name",
        "a.yaml:8: spec.servers[0].endpoint: is missing; write it as https://HOST:PORT",
        "a.yaml:8: spec.servers[0].endpont: is unknown; did you mean endpoint?",
        "a.yaml:9: spec.servers[1].endpoint: \"10.0.0.2:6443\" has no scheme; write it as https://HOST:PORT",
        "a.yaml:10: spec.servers[2].endpoint: is the number 7, but a text is expected; put it in quotes to make it text",
        "a.yaml:11: spec.servers[3].endpoint: \"https://10.0.0.4:99999\" has a malformed host or port; write it",
        "a.yaml:13: spec.clientConfig.insecure: is a text, but true or false is expected",
        "a.yaml:14: spec.clientConfig.bearerToken: is not base64",
        "a.yaml:16: spec.dispatchPolicies[0].strategy: \"roundRobin\" is none of RoundRobin, LeastWork, Latency, Weighted, Rendezvous; write RoundRobin",
        "a.yaml:18: spec.dispatchPolicies[0].rules[0].verbs[0]: is the number 1, but a text is expected; put it in quotes",
        "a.yaml:19: spec.dispatchPolicies[0].rules[0].apiGroups: is a text, but a list is expected",
        "a.yaml:22: spec.flowControl: is a list, but a mapping is expected",
        "a.yaml:26: apiVersion: \"v1\" is not known; write apiVersion: proxy.kubegateway.io/v1alpha1 and kind: UpstreamCluster",
        "a.yaml:21: spec.dispatchPolicies[0].flowControlSchemaName: \"nothing\" is no flow control schema",
    ];
    let problems = folder.problems();
    for line in expected {
        assert!(problems.iter().any(|problem| problem.starts_with(line)), "{line:?} is not in {problems:#?}");
    }
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
}

#[test]
fn each_error_has_its_field_and_a_remedy() {
    let policy = "dispatchPolicies:\n- rules: [{verbs: ['*'], apiGroups: ['*'], resources: ['*']}]\n  ";
    let with = |line: &str| format!("{policy}{line}");
    let schema = |line: &str| {
        format!("flowControl:\n  flowControlSchemas:\n  - name: s\n    {line}\n{}", with("flowControlSchemaName: s"))
    };
    let schemas_at = "spec.flowControl.flowControlSchemas[0]";
    let policy_at = "spec.dispatchPolicies[0]";
    for (spec, field, problem) in [
        ("dispatchPolicies: []".to_owned(), "spec.dispatchPolicies".to_owned(), "is missing"),
        ("dispatchPolicies:\n- rules: []".to_owned(), format!("{policy_at}.rules"), "is missing"),
        (
            with("upstreamSubset: ['http://127.0.0.1:1']"),
            format!("{policy_at}.upstreamSubset[0]"),
            "http://127.0.0.1:1 is not among",
        ),
        (with("upstreamSubset: [nonsense]"), format!("{policy_at}.upstreamSubset[0]"), "\"nonsense\" has no scheme"),
        (
            with("weights: [{endpoint: 'http://127.0.0.1:8080', percent: 99.5}]"),
            format!("{policy_at}.weights"),
            "the shares add up to 99.50",
        ),
        (with("weights: [{percent: 100}]"), format!("{policy_at}.weights[0]"), "names no endpoint"),
        (
            with("weights: [{endpoint: 'http://127.0.0.1:8080', percent: 101}]"),
            format!("{policy_at}.weights[0].percent"),
            "101 is no share",
        ),
        (
            with(
                "weights: [{endpoint: 'http://127.0.0.1:8080', percent: 50}, {subset: ['http://127.0.0.1:8080'], percent: 50}]",
            ),
            format!("{policy_at}.weights[1]"),
            "http://127.0.0.1:8080 has a share already",
        ),
        (with("timeouts: {request: 0s}"), format!("{policy_at}.timeouts.request"), "is 0"),
        (with("timeouts: {request: 30}"), format!("{policy_at}.timeouts.request"), "30 has no unit"),
        (with("timeouts: {idle: soon}"), format!("{policy_at}.timeouts.idle"), "\"soon\" is no length of time"),
        (with("maxBodyBytes: 3 MB"), format!("{policy_at}.maxBodyBytes"), "\"3 MB\" is no number of bytes"),
        (with("degradation: {status: 101}"), format!("{policy_at}.degradation.status"), "101 is no final HTTP status"),
        (with("degradation: {status: 204, body: x}"), format!("{policy_at}.degradation.body"), "is set, but a 204"),
        (
            with("degradation: {contentType: \"a\\nb\"}"),
            format!("{policy_at}.degradation.contentType"),
            "\"a\\nb\" can't be",
        ),
        (
            with("degradation: {mode: never}"),
            format!("{policy_at}.degradation.mode"),
            "\"never\" is none of upstreamDown, always",
        ),
        (
            with("circuitBreaker: {errorPercent: 0}"),
            format!("{policy_at}.circuitBreaker.errorPercent"),
            "0 is out of bounds",
        ),
        (with("circuitBreaker: {minRequests: 0}"), format!("{policy_at}.circuitBreaker.minRequests"), "is 0"),
        (
            with("name: a\n- rules: [{verbs: [get], apiGroups: [a], resources: [b]}]\n  name: a"),
            "spec.dispatchPolicies[1].name".to_owned(),
            "\"a\" is the name of another",
        ),
        (schema("exempt:"), schemas_at.to_owned(), "has no limit"),
        (
            schema("exempt: {}\n    tokenBucket: {qps: 1, burst: 1}"),
            format!("{schemas_at}.tokenBucket"),
            "is set, and so is exempt",
        ),
        (schema("tokenBucket: {burst: 1}"), format!("{schemas_at}.tokenBucket.qps"), "is 0 or missing"),
        (schema("tokenBucket: {qps: 5, burst: 4}"), format!("{schemas_at}.tokenBucket.burst"), "4 is less than qps"),
        (
            schema(
                "maxRequestsInflight: {max: 9}\n    globalMaxRequestsInflight: {max: 8}\n    strategy: globalAllocate",
            ),
            format!("{schemas_at}.globalMaxRequestsInflight.max"),
            "8 is less than",
        ),
        (
            schema("exempt: {}\n    globalTokenBucket: {qps: 1, burst: 1}\n    strategy: globalCount"),
            format!("{schemas_at}.tokenBucket"),
            "is missing, though there is globalTokenBucket",
        ),
        (schema("tokenBucket: {qps: 1, burst: 1}\n    perUser: {}"), format!("{schemas_at}.perUser"), "has no limit"),
        (
            schema("exempt: {}\n    perUser: {maxRequestsInflight: {max: 1}, tokenBucket: {qps: 1, burst: 1}}"),
            format!("{schemas_at}.perUser.tokenBucket"),
            "is set, and so is maxRequestsInflight",
        ),
        (
            schema("tokenBucket: {qps: 1, burst: 1}\n    strategy: global"),
            format!("{schemas_at}.strategy"),
            "\"global\" is none of local",
        ),
        ("flowControl: {flowControlSchemas: [{exempt: {}}]}".to_owned(), format!("{schemas_at}.name"), "is missing"),
        ("logging: {mode: verbose}".to_owned(), "spec.logging.mode".to_owned(), "\"verbose\" is none of on, off"),
        (
            "discovery: {dns: {name: api.internal, port: 6443, scheme: http}}".to_owned(),
            "spec.servers".to_owned(),
            "is set, but discovery",
        ),
        (
            "secureServing: {serverNames: ['*.*.x']}".to_owned(),
            "spec.secureServing.serverNames[0]".to_owned(),
            "\"*.*.x\" is no host name",
        ),
        ("secureServing: {certFile: missing.crt}".to_owned(), "spec.secureServing.certFile".to_owned(), ""),
        ("clientConfig: {qps: 5, burst: 1}".to_owned(), "spec.clientConfig.burst".to_owned(), "1 is less than qps"),
        (
            "clientConfig: {serverName: 'a b'}".to_owned(),
            "spec.clientConfig.serverName".to_owned(),
            "\"a b\" is neither",
        ),
        (
            "authentication: {tokenReview: {cacheSeconds: 601}}".to_owned(),
            "spec.authentication.tokenReview.cacheSeconds".to_owned(),
            "601 is out of bounds",
        ),
        (
            "access: {deny: [{verbs: ['*'], nonResourceURLs: ['*'], cidrs: [10.0.0.0/40]}]}".to_owned(),
            "spec.access.deny[0].cidrs[0]".to_owned(),
            "\"10.0.0.0/40\" is no block",
        ),
        ("compat: KubeGateway".to_owned(), "spec.compat".to_owned(), "\"KubeGateway\" is none of kubegateway"),
        (
            "identityMode: proxy".to_owned(),
            "spec.identityMode".to_owned(),
            "\"proxy\" is none of impersonate, requestHeader",
        ),
        ("anonymus: true".to_owned(), "spec.anonymus".to_owned(), "is unknown"),
    ] {
        assert_problem(&spec, &field, problem);
        let folder = Folder::with(&manifest("a.example.com", &spec));
        assert!(folder.load().snapshot.is_none(), "{spec}\nis no error");
    }
}

#[test]
fn each_warning_has_its_field_and_a_remedy_and_the_manifest_counts() {
    let rules = |rule: &str| format!("dispatchPolicies:\n- rules: [{rule}]");
    let rule_at = "spec.dispatchPolicies[0].rules[0]";
    let all = "{verbs: ['*'], apiGroups: ['*'], resources: ['*'], nonResourceURLs: ['*']}";
    for (spec, field, problem) in [
        (
            rules("{verbs: ['*'], apiGroups: ['*'], resources: [-pods, -deployments]}"),
            format!("{rule_at}.resources"),
            "the list matches what is none of these",
        ),
        (
            format!("compat: kubegateway\n{}", rules("{verbs: ['*'], apiGroups: ['*'], resources: [-a, -b]}")),
            format!("{rule_at}.resources"),
            "under `compat: kubegateway`",
        ),
        (
            rules("{verbs: ['*'], apiGroups: ['*'], resources: [-pods, deployments]}"),
            format!("{rule_at}.resources[0]"),
            "\"-pods\" is ignored",
        ),
        (
            rules("{verbs: ['*'], apiGroups: ['*'], resources: ['pods/*']}"),
            format!("{rule_at}.resources[0]"),
            "\"pods/*\" means no",
        ),
        (rules("{apiGroups: ['*'], resources: ['*']}"), format!("{rule_at}.verbs"), "is empty"),
        (
            rules("{verbs: ['*'], nonResourceURLs: [healthz]}"),
            format!("{rule_at}.nonResourceURLs[0]"),
            "\"healthz\" matches nothing",
        ),
        (
            rules("{verbs: ['*'], apiGroups: ['*'], resources: ['*'], serviceAccounts: [{name: a}]}"),
            format!("{rule_at}.serviceAccounts[0]"),
            "matches nothing",
        ),
        (
            format!("{}\n  flowControlSchemaName: nothing", rules(all)),
            "spec.dispatchPolicies[0].flowControlSchemaName".into(),
            "\"nothing\" is no flow control schema",
        ),
        (format!("{}\n- rules: [{all}]", rules(all)), "spec.dispatchPolicies[1]".into(), "is never reached"),
        (
            format!("{}\n  strategy: Weighted", rules(all)),
            "spec.dispatchPolicies[0].strategy".into(),
            "is Weighted, but",
        ),
        (
            format!("{}\n  degradation: {{mode: always}}", rules(all)),
            "spec.dispatchPolicies[0].degradation.mode".into(),
            "is always",
        ),
        (
            format!("{}\n  timeouts: {{perTry: 2s, request: 1s}}", rules(all)),
            "spec.dispatchPolicies[0].timeouts.perTry".into(),
            "is not less",
        ),
        (
            "flowControl: {flowControlSchemas: [{name: s, exempt: {}}]}".into(),
            "spec.flowControl.flowControlSchemas[0]".into(),
            "\"s\" is used by no policy",
        ),
        ("access: {allow: []}".into(), "spec.access.allow".into(), "is empty: nobody"),
        ("clientConfig: {insecure: true}".into(), "spec.clientConfig.insecure".into(), "is set"),
        (
            format!("clientConfig: {{bearerToken: {}}}", encoded("t")),
            "spec.clientConfig".into(),
            "has a credential, but",
        ),
        ("clientConfig: {burst: 5}".into(), "spec.clientConfig.qps".into(), "is 0, so burst"),
    ] {
        assert_problem(&spec, &field, problem);
        assert!(Folder::with(&manifest("a.example.com", &spec)).load().snapshot.is_some(), "{spec}\nis an error");
    }
}

#[test]
fn credentials_are_checked_and_never_shown() {
    let pki = &*PKI;
    let tls = |client: &str| {
        format!(
            "apiVersion: proxy.kubegateway.io/v1alpha1\nkind: UpstreamCluster\nmetadata: {{name: a.example.com}}\nspec:\n  servers: [{{endpoint: 'https://10.0.0.1:6443'}}]\n  clientConfig: {{{client}}}\n  dispatchPolicies: [{{rules: [{{verbs: ['*'], apiGroups: ['*'], resources: ['*']}}]}}]\n"
        )
    };
    let (ca, certificate, key) = (encoded(&pki.ca), encoded(&pki.certificate), encoded(&pki.key));
    let (expired, expired_key) = (encoded(&pki.expired), encoded(&pki.expired_key));
    let token = encoded("very-secret");
    for (client, expected) in [
        (format!("bearerToken: {token}"), "spec.clientConfig.caData: is missing"),
        (format!("caData: {ca}"), "spec.clientConfig: has no credential"),
        (
            format!("caData: {ca}, certData: {certificate}"),
            "spec.clientConfig.keyData: is missing, though there is certData",
        ),
        (format!("caData: {ca}, keyData: {key}"), "spec.clientConfig.certData: is missing, though there is keyData"),
        (
            format!("caData: {ca}, certData: {certificate}, keyData: {expired_key}"),
            "spec.clientConfig.certData: and its key can't be used",
        ),
        (
            format!("caData: {ca}, certData: {key}, keyData: {key}"),
            "spec.clientConfig.certData: has no PEM certificate",
        ),
        (
            format!("caData: {ca}, certData: {certificate}, keyData: {certificate}"),
            "spec.clientConfig.keyData: has no usable PEM private key",
        ),
        (
            format!("caData: {ca}, certData: {expired}, keyData: {expired_key}"),
            "spec.clientConfig.certData: has a certificate",
        ),
        (format!("caData: {token}, bearerToken: {token}"), "spec.clientConfig.caData: has no PEM certificate"),
        (
            format!("caData: {ca}, bearerToken: {token}, tokenFile: t"),
            "spec.clientConfig.tokenFile: is set, and so is bearerToken",
        ),
        (format!("caData: {ca}, bearerToken: {}", encoded("two words")), "spec.clientConfig.bearerToken: is no token"),
        (format!("caData: {ca}, tokenFile: missing"), "spec.clientConfig.tokenFile: "),
        (format!("caData: {ca}, bearerToken: very-secret"), "spec.clientConfig.bearerToken: is not base64"),
        (format!("caData: {ca}, bearerToken: {token}, keyData: [very-secret]"), "spec.clientConfig.keyData: is a list"),
    ] {
        let problems = Folder::with(&tls(&client)).problems();
        assert!(problems.len() == 1 && problems[0].contains(expected), "{expected}: {problems:#?}");
        assert!(!problems[0].contains("very-secret") && !problems[0].contains(&token), "{problems:#?}");
    }
    let good =
        Folder::with(&tls(&format!("caData: {ca}, bearerToken: {token}, certData: {certificate}, keyData: {key}")));
    let shown = format!("{:?}", good.cluster("a.example.com"));
    assert!(!shown.contains("very-secret") && !shown.contains("PRIVATE KEY"), "{shown}");
}

#[test]
fn revocation_lists_need_a_client_ca() {
    let folder = Folder::with(&manifest("a.example.com", "secureServing: {crlFile: crl.pem}"));
    folder.write("crl.pem", "nothing");
    assert!(folder.problems()[0].contains("spec.secureServing.crlFile: revokes certificates of no client CA"));
    let ca = encoded(&PKI.ca);
    folder.write(
        "a.yaml",
        &manifest("a.example.com", &format!("secureServing: {{crlFile: crl.pem, clientCAData: {ca}}}")),
    );
    assert!(folder.problems()[0].contains("spec.secureServing.crlFile: has no PEM revocation list"));
}

#[test]
fn a_file_has_several_documents_or_a_list() {
    let folder = Folder::new();
    folder.write("two.yaml", &format!("{}---\n---\n{}", manifest("a.example.com", ""), manifest("b.example.com", "")));
    let item = manifest("c.example.com", "compat: wrong").replace('\n', "\n  ");
    folder.write("list.yml", &format!("apiVersion: v1\nkind: List\nitems:\n- {item}\n"));
    folder.write("ignored.txt", "nonsense: [");
    folder.write(".hidden.yaml", "nonsense: [");
    let problems = folder.problems();
    assert_eq!(problems.len(), 1, "{problems:#?}");
    assert!(problems[0].starts_with("list.yml:14: items[0].spec.compat: \"wrong\" is none of"), "{problems:#?}");
    folder.write("list.yml", "apiVersion: proxy.kubegateway.io/v1alpha1\nkind: RateLimitCondition\nspec: {}\n");
    let load::Loaded { snapshot, problems, .. } = folder.load();
    assert_eq!(
        snapshot.unwrap().clusters().keys().map(|name| &**name).collect::<Vec<_>>(),
        ["a.example.com", "b.example.com"]
    );
    assert!(problems[0].to_string().contains("is ignored here"));
}

#[test]
fn what_is_no_yaml_or_no_file_is_told_with_its_line() {
    let folder = Folder::with("a: b\nc: [d\ne: f\n");
    assert!(folder.problems()[0].starts_with("a.yaml:"), "{:?}", folder.problems());
    folder.write("a.yaml", "a: b\na: c\n");
    assert!(folder.problems()[0].starts_with("a.yaml:2: is not YAML"), "{:?}", folder.problems());
    fs::write(folder.path().join("a.yaml"), b"a: b\nc: \xff\n").unwrap();
    assert_eq!(folder.problems(), ["a.yaml:2: is not UTF-8"]);
    fs::remove_file(folder.path().join("a.yaml")).unwrap();
    std::os::unix::fs::symlink("nowhere", folder.path().join("b.yaml")).unwrap();
    assert!(folder.problems()[0].starts_with("b.yaml: can't be read"), "{:?}", folder.problems());
    let folder = Folder::with("- a\n- b\n");
    assert!(folder.problems()[0].starts_with("a.yaml:1: apiVersion: \"\" is not known"), "{:?}", folder.problems());
}

#[test]
fn feature_gates_are_those_of_the_original() {
    let annotated = |gates: &str| {
        let text = manifest("a.example.com", "");
        Folder::with(&text.replace(
            "metadata:\n",
            &format!("metadata:\n  annotations: {{proxy.kubegateway.io/feature-gates: '{gates}'}}\n"),
        ))
    };
    let features = |gates: &str| annotated(gates).cluster("a.example.com").features;
    assert_eq!(features(""), Features::default());
    assert!(features("DenyAllRequests=true").deny_all_requests && !features("DenyAllRequests=F").deny_all_requests);
    assert!(features("AllAlpha=1,Tracing=0").close_connection_when_idle && !features("AllAlpha=1, Tracing=0").tracing);
    for (gates, problem) in
        [("DenyAll=true", "\"DenyAll\" is no feature"), ("DenyAllRequests", "is neither true nor false")]
    {
        let problems = annotated(gates).problems();
        let at = "a.yaml:4: metadata.annotations[proxy.kubegateway.io/feature-gates]: ";
        assert!(problems[0].starts_with(at) && problems[0].contains(problem), "{problems:#?}");
    }
}

#[test]
fn hosts_belong_to_clusters_by_name_and_wildcard() {
    let folder =
        Folder::with(&manifest("a.example.com", "secureServing: {serverNames: ['*.a.example.com', A.internal]}"));
    folder.write("b.yaml", &manifest("b.example.com", "secureServing: {serverNames: [exact.a.example.com]}"));
    let load::Loaded { snapshot, .. } = load::load(folder.path(), Some("b.example.com"), &Snapshot::default());
    let snapshot = snapshot.unwrap();
    let of = |authority: &str| snapshot.cluster_of_authority(authority).map(|cluster| cluster.name.to_string());
    for (authority, name) in [
        ("a.example.com", Some("a.example.com")),
        ("A.Example.COM.:6443", Some("a.example.com")),
        ("a.internal:443", Some("a.example.com")),
        ("x.a.example.com", Some("a.example.com")),
        ("exact.a.example.com", Some("b.example.com")),
        ("x.y.a.example.com", None),
        (".a.example.com", None),
        ("example.com", None),
        ("10.0.0.1:6443", Some("b.example.com")),
        ("[::1]:6443", Some("b.example.com")),
        ("", Some("b.example.com")),
        (&"A".repeat(300), None),
        ("a.example.com:x", None),
    ] {
        assert_eq!(of(authority).as_deref(), name, "{authority}");
    }
    let missing = load::load(folder.path(), Some("c.example.com"), &Snapshot::default());
    assert!(missing.problems[0].problem.contains("has no cluster c.example.com"), "{:?}", missing.problems);
}

#[test]
fn a_host_name_belongs_to_one_cluster() {
    let folder = Folder::with(&manifest("a.example.com", "secureServing: {serverNames: ['*.x', same.x]}"));
    folder.write("b.yaml", &manifest("b.example.com", "secureServing: {serverNames: ['*.X', Same.x, a.example.com]}"));
    folder.write("c.yaml", &manifest("a.example.com", ""));
    let problems = folder.problems();
    assert_eq!(problems.len(), 4, "{problems:#?}");
    for expected in [
        "b.yaml:1: spec.secureServing.serverNames: *.x is a host name of cluster a.example.com too, at a.yaml:1",
        "b.yaml:1: spec.secureServing.serverNames: same.x is a host name",
        "b.yaml:1: spec.secureServing.serverNames: a.example.com is a host name",
        "c.yaml:1: metadata.name: a.example.com is the name of the cluster at a.yaml:1 too",
    ] {
        assert!(problems.iter().any(|problem| problem.starts_with(expected)), "{expected}: {problems:#?}");
    }
}

#[test]
fn servers_come_from_a_file_whose_problems_have_its_own_lines() {
    let spec = "discovery: {file: {path: servers.list}}";
    let text = manifest("a.example.com", spec).replace("  servers:\n  - endpoint: http://127.0.0.1:8080\n", "");
    let folder = Folder::with(&text);
    folder.write(
        "servers.list",
        "- http://10.0.0.1\n- {endpoint: 'http://10.0.0.2', disabled: true}\n- nonsense\n- {endpoint: 5}\n",
    );
    let problems = folder.problems();
    assert!(problems[0].starts_with("servers.list:3: [2].endpoint: \"nonsense\" has no scheme"), "{problems:#?}");
    assert!(problems[1].starts_with("servers.list:4: [3].endpoint: is the number 5"), "{problems:#?}");
    folder.write("servers.list", "- http://10.0.0.1\n- {endpoint: 'http://10.0.0.2', disabled: true}\n");
    let cluster = folder.cluster("a.example.com");
    assert_eq!(cluster.endpoints.len(), 2);
    assert!(matches!(&cluster.discovery, Discovery::File(path) if path.ends_with("servers.list")));
    folder.write("servers.list", "['https://10.0.0.1']");
    let problems = folder.problems();
    assert!(problems.iter().any(|problem| problem.contains("spec.clientConfig: has no credential")), "{problems:#?}");
}

#[test]
fn a_dns_name_is_a_source_of_servers() {
    let text = manifest("a.example.com", "discovery: {dns: {name: API.internal, port: 6443, scheme: http}}")
        .replace("  servers:\n  - endpoint: http://127.0.0.1:8080\n", "");
    let cluster = Folder::with(&text).cluster("a.example.com");
    let expected = Discovery::Dns { name: "api.internal".into(), port: 6443, scheme: Scheme::Http };
    assert_eq!((cluster.endpoints.len(), &cluster.discovery), (0, &expected));
}

#[test]
fn long_files_and_devices_are_refused() {
    let folder = Folder::with("a: b\n");
    let mut files = Files::list(folder.path()).unwrap();
    assert_eq!(files.read(&folder.path().join("a.yaml"), 5).unwrap(), b"a: b\n");
    assert!(files.read(&folder.path().join("a.yaml"), 4).unwrap_err().to_string().contains("longer than 4 bytes"));
    assert!(files.read(Path::new("/dev/zero"), 4).is_err());
}

fn open(folder: &Folder) -> Arc<Source> {
    Source::open(SourceOptions { directory: folder.path().to_owned(), default_cluster: None, accept: None }).unwrap()
}

#[test]
fn a_bad_state_keeps_the_last_good_snapshot() {
    let folder = Folder::with(&manifest("a.example.com", ""));
    let source = open(&folder);
    let first = source.current().clone();
    assert_eq!((first.generation(), source.reload()), (1, Reload::Unchanged));
    folder.write("b.yaml", "apiVersion: nonsense");
    assert_eq!((source.reload(), source.reload()), (Reload::Refused, Reload::Refused));
    let status = source.status();
    assert!(status.failing_since.is_some() && status.errors.len() == 1 && status.failures == 2);
    assert!(Arc::ptr_eq(&first, &source.current()));
    folder.write("b.yaml", &manifest("b.example.com", ""));
    assert_eq!(source.reload(), Reload::Published(2));
    let status = source.status();
    assert!(status.failing_since.is_none() && status.errors.is_empty() && status.generation == 2);
    assert_eq!(source.current().changes_since(&first).added, ["b.example.com".into()]);
    // A folder that loses everything is a fault, not a wish.
    fs::remove_file(folder.path().join("a.yaml")).unwrap();
    fs::remove_file(folder.path().join("b.yaml")).unwrap();
    assert_eq!(source.reload(), Reload::Refused);
    assert_eq!(source.current().clusters().len(), 2);
}

#[test]
fn a_bad_folder_is_an_error_at_the_start() {
    let folder = Folder::with("apiVersion: nonsense");
    let options = |directory: PathBuf| SourceOptions { directory, default_cluster: None, accept: None };
    let error = Source::open(options(folder.path().to_owned())).unwrap_err();
    assert!(error.to_string().contains("a.yaml:1: apiVersion: \"nonsense\" is not known"), "{error}");
    let error = Source::open(options(folder.path().join("missing"))).unwrap_err();
    assert!(error.to_string().contains("missing: can't be read"), "{error}");
    assert_eq!(check(Folder::new().path(), None)[0].severity, Severity::Warning);
}

#[test]
fn what_a_reload_does_not_change_is_the_same_object() {
    let folder = Folder::with(&manifest("a.example.com", ""));
    let two = "flowControl:\n  flowControlSchemas:\n  - {name: kept, exempt: {}}\n  - {name: changed, exempt: {}}";
    folder.write("b.yaml", &manifest("b.example.com", two));
    let source = open(&folder);
    let before = source.current().clone();
    folder.write(
        "b.yaml",
        &manifest("b.example.com", &two.replace("changed, exempt: {}", "changed, tokenBucket: {qps: 1, burst: 2}")),
    );
    assert_eq!(source.reload(), Reload::Published(2));
    let after = source.current().clone();
    assert!(Arc::ptr_eq(before.cluster("a.example.com").unwrap(), after.cluster("a.example.com").unwrap()));
    let (old, new) = (before.cluster("b.example.com").unwrap(), after.cluster("b.example.com").unwrap());
    assert_ne!(old.fingerprint, new.fingerprint);
    assert!(Arc::ptr_eq(&old.endpoints[0], &new.endpoints[0]) && Arc::ptr_eq(&old.client, &new.client));
    assert!(
        Arc::ptr_eq(&old.flow_schemas[0], &new.flow_schemas[0])
            && !Arc::ptr_eq(&old.flow_schemas[1], &new.flow_schemas[1])
    );
    assert_eq!(old.policies.policies()[0].fingerprint, new.policies.policies()[0].fingerprint);
    assert_eq!(after.changes_since(&before).changed, ["b.example.com".into()]);
}

#[test]
fn a_changed_token_changes_the_client_but_not_its_connections() {
    let folder = Folder::new();
    folder.write("token", "one");
    folder.write("ca.crt", &PKI.ca);
    let text =
        manifest("a.example.com", "clientConfig: {tokenFile: token, caFile: ca.crt}").replace("http://", "https://");
    folder.write("a.yaml", &text);
    let source = open(&folder);
    let before = source.current().clone();
    folder.write("token", "two");
    assert_eq!(source.reload(), Reload::Published(2));
    let (old, new) =
        (before.cluster("a.example.com").unwrap().clone(), source.current().cluster("a.example.com").unwrap().clone());
    assert_eq!(new.client.token.as_ref().unwrap().reveal(), "two");
    assert_ne!(old.client.fingerprint, new.client.fingerprint);
    assert_eq!(old.endpoints[0].connection_fingerprint, new.endpoints[0].connection_fingerprint);
    fs::remove_file(folder.path().join("token")).unwrap();
    assert_eq!(source.reload(), Reload::Refused);
    assert_eq!(source.current().cluster("a.example.com").unwrap().client.token.as_ref().unwrap().reveal(), "two");
}

#[test]
fn a_snapshot_may_be_refused_by_who_is_to_use_it() {
    let folder = Folder::with(&manifest("a.example.com", ""));
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let accept = move |snapshot: &Arc<Snapshot>| {
        counted.fetch_add(1, Ordering::Relaxed);
        let refused = snapshot.clusters().values().find(|cluster| cluster.authentication.anonymous);
        refused
            .map(|cluster| Problem {
                severity: Severity::Error,
                file: cluster.file.to_path_buf(),
                line: cluster.line,
                field: "spec.anonymous".into(),
                problem: "is not supported".into(),
                remedy: String::new(),
            })
            .into_iter()
            .collect()
    };
    let options =
        SourceOptions { directory: folder.path().to_owned(), default_cluster: None, accept: Some(Box::new(accept)) };
    let source = Source::open(options).unwrap();
    assert_eq!((source.reload(), asked.load(Ordering::Relaxed)), (Reload::Unchanged, 1));
    folder.write("a.yaml", &manifest("a.example.com", "anonymous: true"));
    assert_eq!(source.reload(), Reload::Refused);
    assert_eq!(source.status().errors[0].field, "spec.anonymous");
    assert!(!source.current().cluster("a.example.com").unwrap().authentication.anonymous);
}

async fn next_generation(receiver: &mut tokio::sync::watch::Receiver<Arc<Snapshot>>) -> u64 {
    // Less than the time between two polls, so that events have brought it.
    tokio::time::timeout(Duration::from_secs(4), receiver.changed()).await.expect("the change is seen").unwrap();
    receiver.borrow_and_update().generation()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_watch_sees_a_mounted_config_map_change() {
    let folder = Folder::new();
    // As kubelet does it: files are links through `..data`, which is exchanged by a rename.
    let version = |number: u32, text: &str| {
        let data = folder.path().join(format!("..version-{number}"));
        fs::create_dir(&data).unwrap();
        fs::write(data.join("a.yaml"), text).unwrap();
        std::os::unix::fs::symlink(format!("..version-{number}"), folder.path().join("..data_tmp")).unwrap();
        fs::rename(folder.path().join("..data_tmp"), folder.path().join("..data")).unwrap();
    };
    version(1, &manifest("a.example.com", ""));
    std::os::unix::fs::symlink("..data/a.yaml", folder.path().join("a.yaml")).unwrap();
    let source = open(&folder);
    let mut snapshots = source.subscribe();
    let watching = tokio::spawn(source.clone().watch());
    version(2, &manifest("a.example.com", "anonymous: true"));
    assert_eq!(next_generation(&mut snapshots).await, 2);
    assert!(source.current().cluster("a.example.com").unwrap().authentication.anonymous);
    folder.write("b.yaml", &manifest("b.example.com", ""));
    assert_eq!(next_generation(&mut snapshots).await, 3);
    watching.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_watch_sees_a_named_file_elsewhere_change_and_looks_when_asked() {
    let folder = Folder::new();
    let elsewhere = Folder::new();
    let token = elsewhere.write("token", "one");
    folder.write("a.yaml", &manifest("a.example.com", &format!("clientConfig: {{tokenFile: {}}}", token.display())));
    let source = open(&folder);
    let mut snapshots = source.subscribe();
    let watching = tokio::spawn(source.clone().watch());
    elsewhere.write("token", "two");
    source.look_soon();
    assert_eq!(next_generation(&mut snapshots).await, 2);
    elsewhere.write("token", "three");
    tokio::time::timeout(Duration::from_secs(15), snapshots.changed()).await.expect("polling sees it").unwrap();
    assert_eq!(source.current().cluster("a.example.com").unwrap().client.token.as_ref().unwrap().reveal(), "three");
    watching.abort();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_manifest_makes_it_panic_and_each_refusal_has_a_reason(
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..40, select(&["", "-", "*", "[", "{", ": ", "1", "\n  ", "null"][..])), 1..4),
    ) {
        let spec = "compat: ''\nlogging: {mode: on}\naccess: {deny: [{verbs: ['*'], cidrs: [10.0.0.0/8]}]}\ndispatchPolicies:\n- rules:\n  - {verbs: ['*'], apiGroups: ['*'], resources: [-a, '*/b'], serviceAccounts: [{name: a, namespace: b}]}\n  weights: [{endpoint: 'http://127.0.0.1:8080', percent: 100}]\n  timeouts: {request: 1s}\n  maxBodyBytes: 1Mi";
        let mut text = manifest("a.example.com", spec);
        for (index, length, replacement) in cuts {
            let begin = index.index(text.len());
            text.replace_range(begin..(begin + length).min(text.len()), replacement);
        }
        let folder = Folder::with(&text);
        let load::Loaded { snapshot, problems, .. } = folder.load();
        let has_errors = problems.iter().any(|problem| problem.severity == Severity::Error);
        prop_assert_eq!(snapshot.is_none(), has_errors, "{}\n{:?}", text, problems);
        // What loads is found valid, and is the same when it is loaded again.
        prop_assert_eq!(&check(folder.path(), None), &problems, "{}", text);
        let fingerprints = |snapshot: Option<Snapshot>| -> Vec<u128> {
            snapshot.iter().flat_map(|snapshot| snapshot.clusters().values().map(|cluster| cluster.fingerprint)).collect()
        };
        prop_assert_eq!(fingerprints(snapshot), fingerprints(folder.load().snapshot), "{}", text);
    }

    #[test]
    fn no_bytes_at_all_make_it_panic(
        bytes in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..400),
            prop::collection::vec(select(&b"-:?,[]{}#&*!|>'\"%@` \n\tab0\xff"[..]), 0..200),
            (any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 1..8)).prop_map(|(index, bytes)| {
                let mut text = manifest("a.example.com", "compat: ''").into_bytes();
                let at = index.index(text.len());
                text.splice(at..at, bytes);
                text
            }),
        ],
    ) {
        let folder = Folder::new();
        fs::write(folder.path().join("a.yaml"), &bytes).unwrap();
        let load::Loaded { snapshot, problems, .. } = folder.load();
        let has_errors = problems.iter().any(|problem| problem.severity == Severity::Error);
        prop_assert_eq!(snapshot.is_none(), has_errors, "{:?}", problems);
    }
}

#[test]
fn a_cluster_of_the_largest_size_is_compiled_within_seconds() {
    use std::fmt::Write as _;
    let mut spec = "dispatchPolicies:\n".to_owned();
    for number in 0..crate::limits::RULES_MAX {
        writeln!(spec, "- rules: [{{verbs: [get], apiGroups: [g{number}], resources: [r{number}, s/{number}], users: [u{number}]}}]").unwrap();
    }
    let folder = Folder::with(&manifest("a.example.com", &spec));
    let begin = std::time::Instant::now();
    assert_eq!(folder.cluster("a.example.com").policies.policies().len(), crate::limits::RULES_MAX);
    assert!(begin.elapsed() < Duration::from_secs(20), "it took {:?}", begin.elapsed());
    spec += "- rules: [{verbs: [get], nonResourceURLs: ['*']}]\n";
    assert!(
        Folder::with(&manifest("a.example.com", &spec)).problems()[0]
            .contains("spec: has 4097 rules; use 4096 at most")
    );
}
