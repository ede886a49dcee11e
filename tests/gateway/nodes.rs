//! Kubelets through the gateway: a node may do what is its own, and no more, as kube-apiserver's authorizer for nodes and
//! its admission see them; and a new one gets in by its bootstrap token.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, Method, StatusCode};
use kubewharf_testkit::http::Client;
use kubewharf_testkit::pki;
use serde_json::{Value, json};
use tokio::runtime::Builder;

use crate::fixture::{EVERYTHING, Fixture, wait};
use crate::mock::client::Connector;

const NODES: &str = "/api/v1/nodes";
const PODS: &str = "/api/v1/namespaces/default/pods";
const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const MERGE: &str = "application/merge-patch+json";

fn start() -> Fixture {
    // Modes of authorization add up.
    let flags =
        ["--authorization-mode=Node", "--enable-admission-plugins=NodeRestriction", "--enable-bootstrap-token-auth"];
    Fixture::start_with(EVERYTHING, &flags)
}

fn create(admin: &Client, path: &str, object: &Value) {
    admin.post(path, object).unwrap().ok().unwrap();
}

fn object(api_version: &str, kind: &str, name: &str) -> Value {
    json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name}})
}

/// A node with one pod on it that uses one secret.
fn populate(admin: &Client, node: &str) {
    create(admin, NODES, &object("v1", "Node", node));
    create(admin, SECRETS, &object("v1", "Secret", &format!("secret-of-{node}")));
    let mut pod = object("v1", "Pod", &format!("pod-of-{node}"));
    pod["spec"] = json!({
        "nodeName": node,
        "containers": [{"name": "main", "image": "none"}],
        "volumes": [{"name": "secret", "secret": {"secretName": format!("secret-of-{node}")}}],
    });
    create(admin, PODS, &pod);
}

#[test]
fn a_node_gets_what_is_its_own_and_nothing_else() {
    let fixture = start();
    let admin = fixture.admin();
    for node in ["a", "b"] {
        populate(&admin, node);
    }
    let kubelet = fixture.client(&fixture.user("system:node:a", "system:nodes"));
    let status = |answer: kubewharf_testkit::Result<kubewharf_testkit::http::Answer>| answer.unwrap().status;
    // The authorizer learns of pods by and by, each kube-apiserver for itself.
    for _ in 0..2 {
        wait("the node may get its pod's secret", || status(kubelet.get(&format!("{SECRETS}/secret-of-a"))) == 200);
    }
    for (path, expected) in [
        (format!("{SECRETS}/secret-of-b"), 403),
        (format!("{NODES}/a"), 200),
        (format!("{NODES}/b"), 403),
        (NODES.to_owned(), 403),
        (format!("{PODS}/pod-of-a"), 200),
        ("/api/v1/pods?fieldSelector=spec.nodeName%3Da".to_owned(), 200),
        ("/api/v1/pods?fieldSelector=spec.nodeName%3Db".to_owned(), 403),
        ("/api/v1/pods".to_owned(), 403),
    ] {
        assert_eq!(status(kubelet.get(&path)), expected, "{path}");
    }
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    for (path, expected) in [
        (format!("{NODES}/a/status"), 200),
        (format!("{NODES}/b/status"), 403),
        (format!("{PODS}/pod-of-a/status"), 200),
        (format!("{PODS}/pod-of-b/status"), 403),
    ] {
        assert_eq!(status(kubelet.patch(&path, MERGE, &ready)), expected, "{path}");
    }
    let label = json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}});
    assert_eq!(status(kubelet.patch(&format!("{NODES}/a"), MERGE, &label)), 403, "a node may not call itself that");
    let lease = |name| object("coordination.k8s.io/v1", "Lease", name);
    assert_eq!(status(kubelet.post(LEASES, &lease("a"))), 201);
    assert_eq!(status(kubelet.post(LEASES, &lease("b"))), 403);
    let watch = kubelet.watch("/api/v1/pods?watch=1&fieldSelector=spec.nodeName%3Da").unwrap();
    assert_eq!(watch.event(Duration::from_secs(10))["object"]["metadata"]["name"], "pod-of-a");
    // The group alone makes no node.
    let stranger = fixture.client(&fixture.user("mallory", "system:nodes"));
    assert_eq!(status(stranger.get(&format!("{SECRETS}/secret-of-a"))), 403);
    assert_eq!(status(stranger.get(&format!("{NODES}/a"))), 403);
}

#[test]
fn a_new_node_asks_for_its_certificate_with_a_bootstrap_token() {
    let fixture = start();
    let admin = fixture.admin();
    let mut token = object("v1", "Secret", "bootstrap-token-abcdef");
    token["type"] = "bootstrap.kubernetes.io/token".into();
    token["stringData"] = json!({
        "token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true",
    });
    create(&admin, "/api/v1/namespaces/kube-system/secrets", &token);
    let mut binding = object("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "bootstrap");
    binding["roleRef"] =
        json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node-bootstrapper"});
    binding["subjects"] =
        json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:bootstrappers"}]);
    create(&admin, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding);

    let mut request = object("certificates.k8s.io/v1", "CertificateSigningRequest", "node-a");
    request["spec"] = json!({
        "request": STANDARD.encode(pki::certificate_request("system:node:a", "system:nodes").unwrap()),
        "signerName": "kubernetes.io/kube-apiserver-client-kubelet",
        "usages": ["digital signature", "client auth"],
    });
    let ask = |token: &str| {
        let connector = Connector::new(fixture.gateway.address, fixture.apiservers[0].authority(), None);
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
        headers.insert(CONTENT_TYPE, "application/json".parse().unwrap());
        let body = request.to_string().into();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let (status, body) = runtime.block_on(async {
            connector.connect().await.ask(Method::POST, REQUESTS, &headers, Some(body)).await.unwrap()
        });
        (status, String::from_utf8_lossy(&body).into_owned())
    };
    assert_eq!(ask("abcdef.fedcba9876543210").0, StatusCode::UNAUTHORIZED);
    // The kube-apiservers know a new secret, and a new binding, after a moment.
    wait("the token is known", || ask("abcdef.0123456789abcdef").0 == StatusCode::CREATED);
    let asked = admin.get(&format!("{REQUESTS}/node-a")).unwrap().ok().unwrap();
    assert_eq!(asked["spec"]["username"], "system:bootstrap:abcdef", "{asked:#}");
    assert!(asked["spec"]["groups"].as_array().unwrap().contains(&json!("system:bootstrappers")), "{asked:#}");
}
