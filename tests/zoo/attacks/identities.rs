//! Who is taken for whom at the tenants' listener.

use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::http::Client;
use kubewharf_testkit::pki::Authority;

use super::{Findings, SELF_REVIEWS, Scene, parsed, self_review, username};

pub(super) fn nobody_else_is_let_in(scene: &Scene, findings: &mut Findings) {
    let tenant = &scene.attacker;
    let folder = Folder::new("forged").unwrap();
    let host = &scene.zoo().cluster.apiserver;
    // Of an authority that calls itself as zoo's does.
    let forger = Authority::new(&folder, "kubewharf-zoo").unwrap();
    let forged = forger.client(&folder, "admin", "system:masters").unwrap();
    let clients =
        [("nobody", None), ("the host's administrator", Some(host.admin())), ("a forged certificate", Some(&forged))];
    for (who, identity) in clients {
        let client = Client::with_root(&tenant.server, &tenant.root, identity);
        for path in [
            "/api/v1/namespaces",
            "/api/v1/namespaces/default/secrets",
            "/apis/rbac.authorization.k8s.io/v1/clusterroles",
        ] {
            // It may end the handshake as well.
            let Ok(answer) = client.request("GET", path, &[], b"") else { continue };
            findings.check(matches!(answer.status, 401 | 403), || format!("{who}: GET {path}: {}", answer.status));
            findings.check(scene.found_in(&answer).is_none(), || format!("{who}: GET {path}: {}", parsed(&answer)));
        }
    }
    let client = Client::with_root(&tenant.server, &tenant.root, None);
    for token in ["nonsense", "", "a.b.c", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9."] {
        let bearer = format!("Bearer {token}");
        let answer = client.request("GET", "/api/v1/namespaces", &[("authorization", &bearer)], b"").unwrap();
        findings.check(matches!(answer.status, 401 | 403), || format!("token {token}: {}", answer.status));
    }
    // A token of the host's own service accounts.
    let request = serde_json::json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    for namespace in ["kube-system".to_owned(), scene.attackers_default()] {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/default/token");
        let given = host.client().post(&path, &request).unwrap().ok().unwrap();
        let bearer = format!("Bearer {}", given["status"]["token"].as_str().unwrap());
        let answer = client.request("GET", "/api/v1/namespaces", &[("authorization", &bearer)], b"").unwrap();
        findings.check(matches!(answer.status, 401 | 403), || {
            format!("a token of the host, of {namespace}: {}", answer.status)
        });
    }
}

pub(super) fn headers_make_nobody_another(scene: &Scene, findings: &mut Findings) {
    let client = scene.attacker.client();
    let victim = scene.victim.names.prefix().to_owned() + "admin";
    let id = scene.victim.names.id().to_string();
    for headers in [
        &[("x-remote-user", "root"), ("x-remote-group", "system:masters")][..],
        &[("x-remote-user", victim.as_str()), ("x-remote-extra-tenant", id.as_str())],
        &[("x-forwarded-user", "root"), ("x-forwarded-client-cert", "Subject=\"CN=admin\"")],
        &[("ssl-client-cert", "x"), ("x-ssl-client-s-dn", "CN=admin,O=system:masters")],
        &[("x-kubewharf-tenant", id.as_str()), ("x-tenant", "victoria"), ("tenant", "victoria")],
        &[("impersonate_user", "root"), ("impersonate_group", "system:masters")],
        &[("connection", "impersonate-user, x-remote-user")],
        &[("x-original-url", "/api/v1/nodes"), ("x-http-method-override", "DELETE")],
    ] {
        let mut all = vec![("content-type", "application/json")];
        all.extend(headers);
        let answer = client.request("POST", SELF_REVIEWS, &all, &self_review()).unwrap();
        let name = username(&parsed(&answer));
        findings.check(answer.status == 201 && name == "admin", || format!("{headers:?}: {} {name}", answer.status));
        let answer = client.request("GET", "/api/v1/secrets", headers, b"").unwrap();
        findings.check(scene.found_in(&answer).is_none(), || format!("{headers:?}: {}", parsed(&answer)));
    }
}

pub(super) fn impersonation_stays_within(scene: &Scene, findings: &mut Findings) {
    let client = scene.attacker.client();
    let (theirs, own) = (scene.victim.names.inward("admin"), scene.attacker.names.inward("admin"));
    let account = format!("system:serviceaccount:{}:default", scene.victims_default());
    let accounts = format!("system:serviceaccounts:{}", scene.victims_default());
    for headers in [
        &[("impersonate-user", "root"), ("impersonate-group", "system:masters")][..],
        &[("impersonate-user", "admin"), ("impersonate-group", "system:masters")],
        &[("impersonate-user", "system:admin")],
        &[("impersonate-user", "system:apiserver")],
        &[("impersonate-user", "system:kube-controller-manager")],
        &[("impersonate-user", "system:node:any"), ("impersonate-group", "system:nodes")],
        &[("impersonate-user", "system:serviceaccount:kube-system:namespace-controller")],
        &[("impersonate-user", theirs.as_str())],
        &[("impersonate-user", own.as_str())],
        &[("impersonate-user", account.as_str())],
        &[("impersonate-user", "a"), ("impersonate-group", accounts.as_str())],
        &[("impersonate-user", "a"), ("impersonate-uid", "0"), ("impersonate-extra-tenant", theirs.as_str())],
        &[("impersonate-group", "system:masters")],
        &[("impersonate-user", "")],
        &[("impersonate-user", "a\u{e4}")],
    ] {
        for path in [
            "/api/v1/namespaces",
            "/api/v1/secrets",
            "/api/v1/nodes",
            "/api/v1/namespaces/kube-system/secrets",
            "/apis/rbac.authorization.k8s.io/v1/clusterroles",
            "/apis/tenancy.kubewharf.io/v1/tenants",
        ] {
            let Ok(answer) = client.request("GET", path, headers, b"") else { continue };
            // A name that was asked for may be told.
            let mut told = String::from_utf8_lossy(&answer.body).into_owned();
            for (_, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
                told = told.replace(value, "");
            }
            findings.check(scene.needles.find(told.as_bytes()).is_none(), || {
                format!("{headers:?}: GET {path}: {told:.400}")
            });
            findings.check(answer.status < 500, || format!("{headers:?}: GET {path}: {}", answer.status));
        }
    }
}
