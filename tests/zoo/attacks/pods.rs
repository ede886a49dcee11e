//! What a kubelet mounts in an attacker's pods: tokens that are worth nothing at the host and for other tenants.

use serde_json::{Value, json};

use super::upstream::headers;
use super::{Findings, Scene, parsed};

/// A pod with a token for this audience.
fn pod(name: &str, audience: Option<&str>) -> Value {
    let mut token = json!({"path": "token"});
    if let Some(audience) = audience {
        token["audience"] = audience.into();
    }
    json!({
        "metadata": {"name": name},
        "spec": {
            "containers": [{"name": "c", "image": "example.com/none"}],
            "volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": token}]}}],
        },
    })
}

pub(super) fn tokens_are_for_the_tenant_only(scene: &Scene, findings: &mut Findings) {
    let own = scene.attackers_default();
    let own_audience = format!("zoo:{}", scene.attacker.names.uid());
    let victims = format!("zoo:{}", scene.victim.names.uid());
    let longer = format!("{own_audience}-and-more");
    let audiences = [
        None,
        Some(""),
        Some("https://kubernetes.default.svc"),
        Some("vault"),
        Some("zoo:"),
        Some(&victims),
        Some(&longer),
    ];
    let pods = format!("/api/v1/namespaces/{own}/pods");
    let as_tenant = headers(scene);
    for (number, audience) in audiences.iter().enumerate() {
        // Through KubeZoo, where it may be refused, and as whoever writes upstream for the tenant, past it.
        let name = format!("through-{number}");
        let answer = scene.attacker.client().post("/api/v1/namespaces/default/pods", &pod(&name, *audience)).unwrap();
        findings.check(matches!(answer.status, 201 | 403), || format!("a pod with {audience:?}: {answer:?}"));
        let mut names = Vec::new();
        if answer.status == 201 {
            names.push(name);
        }
        let name = format!("past-{number}");
        let mut all: Vec<(&str, &str)> =
            as_tenant.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        all.push(("content-type", "application/json"));
        let answer = scene.host().request("POST", &pods, &all, pod(&name, *audience).to_string().as_bytes()).unwrap();
        findings.check(answer.status == 201, || format!("past KubeZoo, {audience:?}: {}", parsed(&answer)));
        if answer.status == 201 {
            names.push(name);
        }
        for name in names {
            let kept = scene.host().get(&format!("{pods}/{name}")).unwrap().ok().unwrap();
            for volume in kept["spec"]["volumes"].as_array().unwrap() {
                for source in volume["projected"]["sources"].as_array().into_iter().flatten() {
                    let Some(token) = source.get("serviceAccountToken") else { continue };
                    let given = token["audience"].as_str().unwrap_or_default();
                    let is_own =
                        given.strip_prefix(&own_audience).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'));
                    findings.check(is_own, || format!("{name}: a token for {given:?}, asked for {audience:?}"));
                    worth_nothing_elsewhere(scene, findings, given);
                }
            }
        }
    }
    // A pod that is there keeps its tokens, whatever is written over it.
    let mut kept = scene.host().get(&format!("{pods}/past-0")).unwrap().ok().unwrap();
    kept["spec"]["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"]["audience"] = victims.as_str().into();
    let mut all: Vec<(&str, &str)> = as_tenant.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    all.push(("content-type", "application/json"));
    for subresource in ["", "/status", "/resize", "/ephemeralcontainers"] {
        let path = format!("{pods}/past-0{subresource}");
        scene.host().request("PUT", &path, &all, kept.to_string().as_bytes()).unwrap();
        let after = scene.host().get(&format!("{pods}/past-0")).unwrap().ok().unwrap();
        let given = &after["spec"]["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"]["audience"];
        findings.check(*given == own_audience.as_str(), || format!("after an update of {path}: {given}"));
    }
}

/// What the host gives for an audience of the attacker's pods must be good neither there nor for the victim.
fn worth_nothing_elsewhere(scene: &Scene, findings: &mut Findings, audience: &str) {
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": [audience]},
    });
    let path = format!("/api/v1/namespaces/{}/serviceaccounts/default/token", scene.attackers_default());
    let given = scene.host().post(&path, &request).unwrap().ok().unwrap();
    let token = given["status"]["token"].as_str().unwrap();
    let bearer = format!("Bearer {token}");
    let apiserver = &scene.zoo().cluster.apiserver;
    let at_the_host =
        kubewharf_testkit::http::Client::with_root(&apiserver.url(), apiserver.authority().certificate(), None);
    let answer = at_the_host.request("GET", "/api", &[("authorization", &bearer)], b"").unwrap();
    findings.check(answer.status == 401, || format!("a token for {audience} at the host: {}", answer.status));
    for audiences in [json!([]), json!([audience]), json!(["https://kubernetes.default.svc", "vault"])] {
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "spec": {"token": token, "audiences": audiences},
        });
        let answer = scene.victim.client().post("/apis/authentication.k8s.io/v1/tokenreviews", &review).unwrap();
        findings.check(answer.body["status"]["authenticated"] != true, || {
            format!("the victim takes a token for {audience}, asking for {audiences}: {answer:?}")
        });
    }
}
