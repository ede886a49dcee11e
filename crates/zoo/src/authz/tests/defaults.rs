use serde_json::{Value, json};

use super::{binding, cluster_role, decide, object, policy, user};
use crate::authz::Policy;
use crate::authz::defaults::{Shown, names, to_json};
use crate::authz::roles::Kind;

fn shown(policy: &Policy, kind: Kind, namespace: &str, name: &str) -> Value {
    serde_json::from_slice(&to_json(policy, kind, namespace, name, Shown::default()).unwrap()).unwrap()
}

#[test]
fn every_cluster_has_its_default_roles() {
    let tenant = Policy::default();
    let jane = user("jane dev system:authenticated");
    let anonymous = user("system:anonymous system:unauthenticated");
    let nobody = user("jane");
    let dns = user("system:serviceaccount:kube-system:kube-dns system:serviceaccounts");
    let reviews = "POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    for (user, request, expected) in [
        (&jane, reviews, true),
        (&jane, "POST /apis/authentication.k8s.io/v1/selfsubjectreviews", true),
        (&jane, "POST /apis/authorization.k8s.io/v1/subjectaccessreviews", false),
        (&jane, "GET /apis/apps/v1", true),
        (&jane, "GET /openapi/v3", true),
        (&jane, "GET /version", true),
        (&jane, "GET /metrics", false),
        (&jane, "GET /api/v1/namespaces", false),
        (&anonymous, "GET /version/", true),
        (&anonymous, "GET /healthz", true),
        (&anonymous, "GET /healthz/etcd", false),
        (&anonymous, "GET /api", false),
        (&anonymous, reviews, false),
        (&nobody, "GET /version", false),
        (&dns, "GET /api/v1/endpoints", true),
        (&dns, "GET /.well-known/openid-configuration", true),
        (&user("jane system:monitoring"), "GET /metrics", true),
        (&user("system:kube-scheduler"), "GET /api/v1/pods", true),
        (&user("root system:masters"), "DELETE /api/v1/namespaces/kube-system", true),
    ] {
        assert_eq!(decide(&tenant, user, request).allowed, expected, "{user:?} {request}");
    }
    let reader = user("system:serviceaccount:kube-system:bootstrap-signer");
    assert!(decide(&tenant, &reader, "GET /api/v1/namespaces/kube-public/configmaps").allowed);
    assert!(!decide(&tenant, &reader, "GET /api/v1/namespaces/default/configmaps").allowed);
}

#[test]
fn edit_has_what_view_has_and_admin_what_edit_has() {
    let tenant = policy(&[
        binding("shop/a", "/admin", &["User:ann"]),
        binding("shop/e", "/edit", &["User:eve"]),
        binding("shop/v", "/view", &["User:vic"]),
    ]);
    let may = |user_name: &str, request: &str| decide(&tenant, &user(user_name), request).allowed;
    for (request, expected) in [
        ("GET /api/v1/namespaces/shop/pods", [true, true, true]),
        ("GET /api/v1/namespaces/shop/secrets", [true, true, false]),
        ("POST /apis/apps/v1/namespaces/shop/deployments", [true, true, false]),
        ("POST /apis/rbac.authorization.k8s.io/v1/namespaces/shop/roles", [true, false, false]),
        ("PUT /api/v1/namespaces/shop/resourcequotas/q", [false, false, false]),
        ("GET /api/v1/namespaces/shop", [true, true, true]),
        ("GET /api/v1/namespaces/other/pods", [false, false, false]),
        ("GET /api/v1/pods", [false, false, false]),
    ] {
        assert_eq!(["ann", "eve", "vic"].map(|user| may(user, request)), expected, "{request}");
    }
}

#[test]
fn a_tenants_own_cluster_role_adds_to_the_defaults() {
    let label = "rbac.authorization.k8s.io/aggregate-to-view=true";
    let widgets = cluster_role("widgets-view", &[label], &[], &["get shop.example widgets"]);
    let mut tenant = policy(&[widgets, binding("shop/e", "/edit", &["User:eve"])]);
    let request = "GET /apis/shop.example/v1/namespaces/shop/widgets/w";
    assert!(decide(&tenant, &user("eve"), request).allowed, "edit has it from view");
    let admin = shown(&tenant, Kind::ClusterRole, "", "admin");
    assert!(admin["rules"].as_array().unwrap().contains(&super::rule_as_shown("get shop.example widgets")));
    let other = policy(&[binding("shop/e", "/edit", &["User:eve"])]);
    assert!(!decide(&other, &user("eve"), request).allowed, "no other tenant has it");

    tenant.remove(Kind::ClusterRole, "", "widgets-view");
    assert!(!decide(&tenant, &user("eve"), request).allowed);
}

#[test]
fn a_stored_object_takes_the_place_of_a_default_until_it_is_removed() {
    let mut tenant = Policy::default();
    let jane = user("jane system:authenticated");
    let version = "GET /version";
    assert!(decide(&tenant, &jane, version).allowed);
    for name in ["system:public-info-viewer", "system:discovery"] {
        tenant.insert(object(&binding(&format!("/{name}"), &format!("/{name}"), &[])));
        assert!(to_json(&tenant, Kind::ClusterRoleBinding, "", name, Shown::default()).is_none());
    }
    assert!(!decide(&tenant, &jane, version).allowed);
    tenant.remove(Kind::ClusterRoleBinding, "", "system:discovery");
    assert!(decide(&tenant, &jane, version).allowed);

    tenant.insert(object(&cluster_role("system:discovery", &[], &[], &["get url /version"])));
    assert!(!decide(&tenant, &jane, "GET /api").allowed);
    let listed: Vec<_> = names(&tenant, Kind::ClusterRole).into_iter().map(|(_, name)| name).collect();
    assert!(listed.contains(&"system:basic-user") && !listed.contains(&"system:discovery"));
    tenant.remove(Kind::ClusterRole, "", "system:discovery");
    assert!(decide(&tenant, &jane, "GET /api").allowed);
}

#[test]
fn nobody_can_be_kept_from_being_a_master() {
    let tenant =
        policy(&[cluster_role("cluster-admin", &[], &[], &[]), binding("/cluster-admin", "/cluster-admin", &[])]);
    let decision = decide(&tenant, &user("root system:masters"), "GET /api/v1/secrets");
    assert!(decision.allowed);
    assert_eq!(decision.reason.to_string(), "");
}

#[test]
fn a_default_is_shown_as_an_object_of_the_api() {
    let tenant = Policy::default();
    assert_eq!(
        String::from_utf8(
            to_json(
                &tenant,
                Kind::ClusterRole,
                "",
                "view",
                Shown { uid: "u", resource_version: "7", creation_timestamp: "2026-01-02T03:04:05Z" }
            )
            .unwrap()
        )
        .unwrap()
        .split(r#""rules":"#)
        .next()
        .unwrap(),
        concat!(
            r#"{"kind":"ClusterRole","apiVersion":"rbac.authorization.k8s.io/v1","metadata":{"name":"view","uid":"u","#,
            r#""resourceVersion":"7","creationTimestamp":"2026-01-02T03:04:05Z","#,
            r#""labels":{"kubernetes.io/bootstrapping":"rbac-defaults","#,
            r#""rbac.authorization.k8s.io/aggregate-to-edit":"true"},"#,
            r#""annotations":{"rbac.authorization.kubernetes.io/autoupdate":"true"}},"#
        )
    );
    assert_eq!(
        shown(&tenant, Kind::RoleBinding, "kube-system", "system::leader-locking-kube-scheduler"),
        json!({
            "kind": "RoleBinding", "apiVersion": "rbac.authorization.k8s.io/v1",
            "metadata": {
                "name": "system::leader-locking-kube-scheduler", "namespace": "kube-system",
                "labels": { "kubernetes.io/bootstrapping": "rbac-defaults" },
                "annotations": { "rbac.authorization.kubernetes.io/autoupdate": "true" },
            },
            "subjects": [
                { "kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "system:kube-scheduler" },
                { "kind": "ServiceAccount", "name": "kube-scheduler", "namespace": "kube-system" },
            ],
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "system::leader-locking-kube-scheduler",
            },
        })
    );
    let discovery = shown(&tenant, Kind::ClusterRole, "", "system:discovery");
    assert_eq!(discovery["rules"][0]["nonResourceURLs"][0], "/api");
    assert_eq!(
        shown(&tenant, Kind::ClusterRole, "", "admin")["aggregationRule"]["clusterRoleSelectors"][0],
        json!({
            "matchLabels": { "rbac.authorization.k8s.io/aggregate-to-admin": "true" }
        })
    );
}

#[test]
fn what_is_shown_is_what_is_decided_by() {
    // A tenant that stores each default as it is shown is granted the same as one that stores nothing.
    let bare = Policy::default();
    let mut stored = Policy::default();
    for kind in Kind::ALL {
        let all = names(&bare, kind);
        assert_eq!(
            all.len(),
            match kind {
                Kind::Role | Kind::RoleBinding => 7,
                Kind::ClusterRole => 31,
                _ => 12,
            }
        );
        for (namespace, name) in all {
            stored.insert(object(&shown(&bare, kind, namespace, name)));
        }
        assert_eq!(names(&stored, kind).len(), 0);
    }
    for user in ["a system:masters", "a system:authenticated", "a system:unauthenticated", "system:kube-scheduler"] {
        let user = super::user(user);
        assert_eq!(bare.rules_for(&user, "kube-system"), stored.rules_for(&user, "kube-system"), "{user:?}");
    }
    for name in ["admin", "edit", "view"] {
        let rules = |policy: &Policy| {
            policy.cluster_role_rules(name).unwrap().to_vec().into_iter().cloned().collect::<Vec<_>>()
        };
        assert_eq!(rules(&bare), rules(&stored));
    }
}
