//! Directly at the apiserver behind zoo: with the identity that zoo writes with for a tenant, with a tenant's own
//! credential, and with the tokens that the host gives to a tenant's service accounts.

use serde_json::{Value, json};

use super::{Findings, HOST_NAMESPACE, SELF_REVIEWS, Scene, parsed, self_review};

/// The headers that make a request one of the attacker's, as the role bindings in its namespace tell.
pub(super) fn headers(scene: &Scene) -> Vec<(String, String)> {
    let path = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings", scene.attackers_default());
    let bindings = scene.host().get(&path).unwrap().ok().unwrap();
    let mut headers = vec![("impersonate-user".to_owned(), scene.attacker.names.inward("admin"))];
    for binding in bindings["items"].as_array().unwrap() {
        for subject in binding["subjects"].as_array().into_iter().flatten() {
            let name = subject["name"].as_str().unwrap();
            match subject["kind"].as_str().unwrap() {
                "Group" => headers.push(("impersonate-group".to_owned(), name.to_owned())),
                "User" => headers[0].1 = name.to_owned(),
                _ => {}
            }
        }
    }
    headers
}

pub(super) fn reaches_nothing_else(scene: &Scene, findings: &mut Findings) {
    let headers = headers(scene);
    let host = scene.host();
    let own = scene.attackers_default();
    let ask = |method: &str, path: &str, body: Option<&Value>| {
        let content = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let mut all: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        all.push(("content-type", content));
        let body = body.map(Value::to_string).unwrap_or_default();
        host.request(method, path, &all, body.as_bytes()).unwrap()
    };
    // It is the right identity: it can do what it is for.
    let map = json!({"metadata": {"name": "by-identity"}});
    let answer = ask("POST", &format!("/api/v1/namespaces/{own}/configmaps"), Some(&map));
    findings
        .check(answer.status == 201, || format!("{headers:?} can't write in its own namespace: {}", parsed(&answer)));

    let labels = json!({"metadata": {"labels": {"attacked": "yes"}}});
    let no_label = json!({"metadata": {"labels": {"tenancy.kubewharf.io/tenant": null}}});
    let role =
        json!({"metadata": {"name": "attack"}, "rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]});
    let binding = json!({
        "metadata": {"name": "attack"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": headers[0].1}],
    });
    let token = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let name = json!({"metadata": {"name": "attack"}});
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let tenancy = "/apis/tenancy.kubewharf.io/v1";
    let mut requests: Vec<(&str, String, Option<&Value>)> = Vec::new();
    for namespace in
        [scene.victims_default(), "kube-system".to_owned(), "default".to_owned(), HOST_NAMESPACE.to_owned()]
    {
        let space = format!("/api/v1/namespaces/{namespace}");
        for resource in ["secrets", "configmaps", "pods", "serviceaccounts", "services", "events", "resourcequotas"] {
            requests.push(("GET", format!("{space}/{resource}"), None));
            requests.push(("GET", format!("{space}/{resource}?watch=1&timeoutSeconds=1"), None));
            requests.push(("DELETE", format!("{space}/{resource}?dryRun=All"), None));
        }
        for (marker, name) in [(&scene.victims, "secrets"), (&scene.hosts, "secrets")] {
            requests.push(("GET", format!("{space}/{name}/{marker}"), None));
            requests.push(("PATCH", format!("{space}/{name}/{marker}"), Some(&labels)));
        }
        requests.push(("POST", format!("{space}/configmaps"), Some(&map)));
        requests.push(("POST", format!("{space}/serviceaccounts/default/token"), Some(&token)));
        requests.push(("POST", format!("{rbac}/namespaces/{namespace}/rolebindings"), Some(&binding)));
        requests.push(("POST", format!("{rbac}/namespaces/{namespace}/roles"), Some(&role)));
        requests.push(("GET", space.clone(), None));
        requests.push(("PATCH", space.clone(), Some(&labels)));
        requests.push(("DELETE", format!("{space}?dryRun=All"), None));
        requests.push(("GET", format!("{space}/pods/x/exec?command=a"), None));
        requests.push(("GET", format!("{space}/services/x/proxy/"), None));
    }
    for resource in
        ["secrets", "configmaps", "pods", "namespaces", "nodes", "serviceaccounts", "persistentvolumes", "events"]
    {
        requests.push(("GET", format!("/api/v1/{resource}"), None));
        requests.push(("GET", format!("/api/v1/{resource}?watch=1&timeoutSeconds=1"), None));
    }
    let own_space = format!("/api/v1/namespaces/{own}");
    requests.extend([
        // Its own namespace belongs to it, but what the namespace says of it does not.
        ("PATCH", own_space.clone(), Some(&no_label)),
        ("PATCH", own_space.clone(), Some(&labels)),
        ("DELETE", format!("{own_space}?dryRun=All"), None),
        ("PUT", format!("{own_space}/finalize"), Some(&name)),
        ("POST", format!("{rbac}/namespaces/{own}/rolebindings?dryRun=All"), Some(&binding)),
        ("POST", format!("{rbac}/namespaces/{own}/roles?dryRun=All"), Some(&role)),
        ("DELETE", format!("{rbac}/namespaces/{own}/rolebindings?dryRun=All"), None),
        ("POST", "/api/v1/namespaces".to_owned(), Some(&name)),
        ("POST", "/api/v1/nodes".to_owned(), Some(&name)),
        ("POST", format!("{rbac}/clusterroles"), Some(&role)),
        ("POST", format!("{rbac}/clusterrolebindings"), Some(&binding)),
        ("GET", format!("{rbac}/clusterroles"), None),
        ("PATCH", format!("{rbac}/clusterroles/cluster-admin"), Some(&labels)),
        ("GET", format!("{tenancy}/tenants"), None),
        ("GET", format!("{tenancy}/tenants/mallory"), None),
        ("GET", format!("{tenancy}/tenants/victoria"), None),
        ("PATCH", format!("{tenancy}/tenants/mallory"), Some(&labels)),
        ("PATCH", format!("{tenancy}/tenants/mallory/status"), Some(&labels)),
        ("DELETE", format!("{tenancy}/tenants/victoria?dryRun=All"), None),
        ("POST", format!("{tenancy}/tenants"), Some(&name)),
        ("GET", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions".to_owned(), None),
        ("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions".to_owned(), Some(&name)),
        ("GET", "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations".to_owned(), None),
        ("POST", "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations".to_owned(), Some(&name)),
        ("GET", "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies".to_owned(), None),
        ("POST", "/apis/apiregistration.k8s.io/v1/apiservices".to_owned(), Some(&name)),
        ("POST", "/apis/storage.k8s.io/v1/storageclasses".to_owned(), Some(&name)),
        ("POST", "/apis/scheduling.k8s.io/v1/priorityclasses".to_owned(), Some(&name)),
        ("POST", "/apis/certificates.k8s.io/v1/certificatesigningrequests".to_owned(), Some(&name)),
        ("POST", "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas".to_owned(), Some(&name)),
        ("GET", "/api/v1/nodes/x/proxy/metrics".to_owned(), None),
        ("GET", "/metrics".to_owned(), None),
        ("GET", "/debug/pprof/".to_owned(), None),
        ("GET", "/logs/".to_owned(), None),
        ("GET", "/configz".to_owned(), None),
    ]);
    for (method, path, body) in requests {
        let answer = ask(method, &path, body);
        findings.check(answer.status == 403, || {
            format!("upstream, {method} {path}: {} instead of 403: {:.300}", answer.status, parsed(&answer).to_string())
        });
    }
}

pub(super) fn credentials_are_worth_nothing(scene: &Scene, findings: &mut Findings) {
    let apiserver = &scene.zoo().cluster.apiserver;
    let root = apiserver.authority().certificate();
    let with_certificate =
        kubewharf_testkit::http::Client::with_root(&apiserver.url(), root, Some(&scene.attacker.identity));
    let without = kubewharf_testkit::http::Client::with_root(&apiserver.url(), root, None);
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let answer = scene.attacker.client().post(path, &request).unwrap();
    let token = answer.body["status"]["token"].as_str().unwrap_or_default().to_owned();
    findings.check(!token.is_empty(), || format!("the attacker gets no token of its own: {answer:?}"));
    let bearer = format!("Bearer {token}");
    let own = scene.attackers_default();
    for path in
        ["/api/v1/namespaces", "/api/v1/namespaces/kube-system/secrets", &format!("/api/v1/namespaces/{own}/secrets")]
    {
        // A server may end the handshake as well.
        if let Ok(answer) = with_certificate.get(path) {
            findings
                .check(answer.status == 401 || answer.status == 403, || format!("certificate, GET {path}: {answer:?}"));
        }
        let answer = without.request("GET", path, &[("authorization", &bearer)], b"").unwrap();
        findings.check(answer.status == 401, || format!("token of zoo, GET {path}: {}", answer.status));
    }
    if let Ok(answer) =
        with_certificate.request("POST", SELF_REVIEWS, &[("content-type", "application/json")], &self_review())
    {
        let name = super::username(&parsed(&answer));
        findings
            .check(matches!(name.as_str(), "" | "system:anonymous"), || format!("the certificate is {name} upstream"));
    }
}

pub(super) fn service_accounts_reach_nothing_else(scene: &Scene, findings: &mut Findings) {
    // In the tenant they may do everything there is.
    let binding = json!({
        "metadata": {"name": "all-accounts"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [
            {"kind": "ServiceAccount", "name": "default", "namespace": "default"},
            {"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "system:serviceaccounts"},
        ],
    });
    let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    let answer = scene.attacker.client().post(bindings, &binding).unwrap();
    findings.check(matches!(answer.status, 201 | 409), || format!("a tenant can't bind its accounts: {answer:?}"));
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let own = scene.attackers_default();
    let path = format!("/api/v1/namespaces/{own}/serviceaccounts/default/token");
    // The host gives such a token to each pod of the tenant's.
    let given = scene.host().post(&path, &request).unwrap().ok().unwrap();
    let bearer = format!("Bearer {}", given["status"]["token"].as_str().unwrap());
    let apiserver = &scene.zoo().cluster.apiserver;
    let client =
        kubewharf_testkit::http::Client::with_root(&apiserver.url(), apiserver.authority().certificate(), None);
    for path in [
        "/api/v1/namespaces".to_owned(),
        "/api/v1/secrets".to_owned(),
        "/api/v1/nodes".to_owned(),
        "/api/v1/namespaces/kube-system/secrets".to_owned(),
        format!("/api/v1/namespaces/{HOST_NAMESPACE}/secrets"),
        format!("/api/v1/namespaces/{}/secrets", scene.victims_default()),
        "/apis/tenancy.kubewharf.io/v1/tenants".to_owned(),
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings".to_owned(),
        "/metrics".to_owned(),
    ] {
        let answer = client.request("GET", &path, &[("authorization", &bearer)], b"").unwrap();
        findings.check(matches!(answer.status, 401 | 403), || format!("token of a pod, GET {path}: {}", answer.status));
    }
}
