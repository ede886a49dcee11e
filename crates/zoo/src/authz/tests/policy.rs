use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::Value;

use super::{binding, cluster_role, decide, object, policy, role, user};
use crate::authz::roles::{Kind, Object};
use crate::authz::{Attributes, Policy, authorize};

#[test]
fn a_binding_grants_its_role_in_its_scope_to_its_subjects() {
    let tenant = policy(&[
        role("shop/reader", &["get,list core pods"]),
        cluster_role("node-reader", &[], &[], &["list core nodes,pods", "get url /metrics"]),
        binding("shop/b", "reader", &["User:jane", "ServiceAccount:other/web", "Group:dev"]),
        binding("shop/c", "/node-reader", &["User:kim"]),
        binding("/d", "/node-reader", &["Group:ops", "ServiceAccount:shop/web"]),
    ]);
    for (who, request, expected) in [
        ("jane", "GET /api/v1/namespaces/shop/pods", true),
        ("jane", "GET /api/v1/namespaces/shop/pods/x", true),
        ("jane", "GET /api/v1/namespaces/shop/pods/x/log", false),
        ("jane", "GET /api/v1/namespaces/other/pods", false),
        ("jane", "GET /api/v1/pods", false),
        ("x dev", "GET /api/v1/namespaces/shop/pods", true),
        ("dev", "GET /api/v1/namespaces/shop/pods", false),
        ("x jane", "GET /api/v1/namespaces/shop/pods", false),
        ("system:serviceaccount:other:web", "GET /api/v1/namespaces/shop/pods/x", true),
        ("kim", "GET /api/v1/namespaces/shop/pods", true),
        ("kim", "GET /api/v1/namespaces/shop/pods/x", false),
        ("kim", "GET /metrics", false),
        ("y ops", "GET /api/v1/namespaces/any/pods", true),
        ("y ops", "GET /api/v1/nodes", true),
        ("y ops", "GET /metrics", true),
        ("system:serviceaccount:shop:web", "GET /api/v1/nodes", true),
        ("system:serviceaccount:shop:db", "GET /api/v1/nodes", false),
    ] {
        assert_eq!(decide(&tenant, &user(who), request).allowed, expected, "{who} {request}");
    }
}

#[test]
fn the_reason_is_in_kubernetes_words() {
    let tenant = policy(&[
        role("shop/r", &["get core pods"]),
        cluster_role("c", &[], &[], &["get core pods"]),
        binding("shop/b", "r", &["User:nobody", "User:jane"]),
        binding("shop/s", "/c", &["ServiceAccount:/web"]),
        binding("/all", "/c", &["Group:\"dev\""]),
    ]);
    let pod = "GET /api/v1/namespaces/shop/pods/p";
    for (who, reason) in [
        ("jane", r#"RBAC: allowed by RoleBinding "b/shop" of Role "r" to User "jane""#),
        ("jane \"dev\"", r#"RBAC: allowed by ClusterRoleBinding "all" of ClusterRole "c" to Group "\"dev\"""#),
        (
            "system:serviceaccount:shop:web",
            r#"RBAC: allowed by RoleBinding "s/shop" of ClusterRole "c" to ServiceAccount "web/shop""#,
        ),
        ("kim", ""),
    ] {
        assert_eq!(decide(&tenant, &user(who), pod).reason.to_string(), reason);
    }
}

#[test]
fn a_role_that_is_missing_is_told_unless_another_allows() {
    let mut tenant = policy(&[binding("/a", "/gone", &["User:jane"]), binding("/b", "/gone", &["User:jane"])]);
    let pod = "GET /api/v1/namespaces/shop/pods/p";
    let reason = |tenant: &Policy| decide(tenant, &user("jane"), pod).reason.to_string();
    assert_eq!(reason(&tenant), r#"RBAC: clusterrole.rbac.authorization.k8s.io "gone" not found"#);
    tenant.insert(object(&binding("shop/b", "lost", &["User:jane"])));
    assert_eq!(
        reason(&tenant),
        concat!(
            r#"RBAC: [clusterrole.rbac.authorization.k8s.io "gone" not found, "#,
            r#"role.rbac.authorization.k8s.io "lost" not found]"#
        )
    );
    let mut odd = binding("shop/c", "lost", &["User:kim"]);
    odd["roleRef"]["kind"] = "Pod".into();
    tenant.insert(object(&odd));
    assert_eq!(
        decide(&tenant, &user("kim"), pod).reason.to_string(),
        r#"RBAC: unsupported role reference kind: "Pod""#
    );
    tenant.insert(object(&role("shop/lost", &["get core pods"])));
    assert_eq!(reason(&tenant), r#"RBAC: allowed by RoleBinding "b/shop" of Role "lost" to User "jane""#);
}

#[test]
fn a_snapshot_stays_as_it_was() {
    let mut tenant = policy(&[cluster_role("c", &[], &[], &["get core pods"]), binding("/b", "/c", &["User:jane"])]);
    let before = tenant.clone();
    tenant.remove(Kind::ClusterRoleBinding, "", "b");
    let pods = "GET /api/v1/namespaces/shop/pods/p";
    assert!(decide(&before, &user("jane"), pods).allowed);
    assert!(!decide(&tenant, &user("jane"), pods).allowed);
    tenant.remove(Kind::ClusterRole, "", "c");
    tenant.remove(Kind::ClusterRole, "", "c");
    assert!(!tenant.has_stored(Kind::ClusterRole, "", "c"));
}

#[test]
fn a_tenant_that_has_stored_nothing_costs_a_pointer() {
    assert_eq!(size_of::<Policy>(), size_of::<usize>());
}

#[test]
fn rules_are_collected_through_several_roles_and_around_a_circle() {
    let tenant = policy(&[
        cluster_role("top", &[], &["a=1", "b=1"], &["delete core ignored"]),
        cluster_role("middle", &["a=1"], &["c=1"], &[]),
        cluster_role("z-leaf", &["a=1"], &[], &["get core z"]),
        cluster_role("leaf", &["b=1", "c=1"], &[], &["get core pods", "get core z"]),
        cluster_role("ring-1", &["ring=1", "c=1"], &["ring=1"], &[]),
        cluster_role("ring-2", &["ring=1"], &["ring=1", "a=1"], &[]),
    ]);
    let rules = |name: &str| -> Vec<String> {
        tenant.cluster_role_rules(name).unwrap().to_vec().into_iter().map(|rule| rule.resources.join(",")).collect()
    };
    assert_eq!(rules("middle"), ["pods", "z"]);
    assert_eq!(rules("top"), ["pods", "z"]);
    assert_eq!(rules("ring-1"), rules("ring-2"));
    assert_eq!(rules("leaf"), ["pods", "z"]);
}

#[test]
fn a_long_chain_of_roles_that_collect_from_each_other_is_followed_to_its_end() {
    let label = |number: usize| format!("l={number}");
    let mut objects: Vec<Value> = (0..3_000)
        .map(|number| cluster_role(&format!("c{number:04}"), &[&label(number)], &[&label(number + 1)], &[]))
        .collect();
    objects.push(cluster_role("leaf", &[&label(3_000)], &[], &["get core pods"]));
    // Each selector is looked at for each role: this is beyond what a tenant may take.
    let tenant = policy(&objects);
    assert!(tenant.cluster_role_rules("c0000").unwrap().to_vec().is_empty());
    // But within it, the chain may be as long as it likes.
    let tenant = policy(&objects[2_500..]);
    assert_eq!(tenant.cluster_role_rules("c2500").unwrap().to_vec().len(), 1);
    assert_eq!(tenant.cluster_role_rules("view").unwrap().to_vec().len(), 12, "nor does it end what others collect");
}

#[test]
fn a_user_can_have_any_number_of_groups() {
    let subjects: Vec<String> = (0..2_000).map(|number| format!("Group:g{number}")).collect();
    let subjects: Vec<&str> = subjects.iter().map(String::as_str).collect();
    let tenant = policy(&[cluster_role("c", &[], &[], &["get core pods"]), binding("/b", "/c", &subjects)]);
    let mut jane = user("jane");
    jane.groups = (1_000..20_000).map(|number| format!("g{number}")).collect();
    let decision = decide(&tenant, &jane, "GET /api/v1/namespaces/shop/pods/p");
    assert_eq!(
        decision.reason.to_string(),
        r#"RBAC: allowed by ClusterRoleBinding "b" of ClusterRole "c" to Group "g1000""#
    );
}

/// Names are few, so that objects meet.
fn any_object() -> impl Strategy<Value = Value> {
    let scope = select(vec!["a", "b", ""]);
    let namespace = select(vec!["a", "b"]);
    let name = select(vec!["x", "y", "z"]);
    let labels = proptest::sample::subsequence(vec!["l=1", "l=2", "m=1"], 0..3);
    let rules = proptest::sample::subsequence(
        vec![
            "get core pods",
            "list core pods,secrets",
            "* apps *",
            "get url /metrics",
            "get * */log",
            "get core pods x",
        ],
        0..4,
    );
    let subjects = proptest::sample::subsequence(
        vec!["User:jane", "Group:dev", "ServiceAccount:/web", "ServiceAccount:a/web", "User:kim", "Group:jane"],
        0..4,
    );
    let collects = prop_oneof![2 => Just(vec![]), 1 => proptest::sample::subsequence(vec!["l=1", "m=1"], 1..3)];
    prop_oneof![
        (namespace, name.clone(), rules.clone())
            .prop_map(|(namespace, name, rules)| role(&format!("{namespace}/{name}"), &rules)),
        (name.clone(), labels, collects, rules)
            .prop_map(|(name, labels, collects, rules)| cluster_role(name, &labels, &collects, &rules)),
        (scope, name.clone(), select(vec!["x", "/x", "/y", "/z", "/view"]), subjects)
            .prop_map(|(scope, name, role, subjects)| binding(&format!("{scope}/{name}"), role, &subjects)),
    ]
}

fn key(object: &Object) -> (Kind, &str, &str) {
    (object.kind(), object.namespace(), object.name())
}

/// All that a policy decides for a few users, with the reasons.
fn decisions(policy: &Policy) -> Vec<String> {
    let users = ["jane", "kim dev", "system:serviceaccount:a:web", "jane jane dev system:authenticated"].map(user);
    let requests = [
        ("get", "", "pods", "", "x"),
        ("list", "", "pods", "", ""),
        ("get", "", "pods", "log", "x"),
        ("create", "apps", "deployments", "", ""),
        ("list", "", "secrets", "", ""),
    ];
    let mut decisions = Vec::new();
    for user in &users {
        for namespace in ["a", "b", "c", ""] {
            for (verb, api_group, resource, subresource, name) in requests {
                let asked = Attributes {
                    is_resource_request: true,
                    verb,
                    api_group,
                    resource,
                    subresource,
                    name,
                    namespace,
                    path: "",
                };
                let decision = authorize(policy, user, &asked);
                decisions.push(format!("{} {}", decision.allowed, decision.reason));
            }
            let asked = Attributes { verb: "get", path: "/metrics", namespace, ..Attributes::default() };
            decisions.push(authorize(policy, user, &asked).allowed.to_string());
            decisions.push(format!("{:?}", policy.rules_for(user, namespace)));
        }
    }
    decisions
}

proptest! {
    #[test]
    fn a_policy_does_not_depend_on_the_way_to_it(
        objects in prop::collection::vec(any_object(), 0..24),
        more in prop::collection::vec((any_object(), any::<Index>()), 0..12),
    ) {
        let objects: Vec<Object> = objects.iter().map(object).collect();
        let mut expected = Policy::of(objects.iter().cloned());

        // Others come and go between, and asking and snapshots change nothing.
        let mut steps: Vec<Object> = objects.clone();
        for (extra, place) in &more {
            steps.insert(place.index(steps.len() + 1), object(extra));
        }
        let mut other = Policy::default();
        let mut snapshots = Vec::new();
        for (number, step) in steps.into_iter().enumerate() {
            other.insert(step);
            if number % 3 == 0 {
                let snapshot = other.clone();
                snapshots.push((decisions(&snapshot), snapshot));
            }
        }
        for (extra, _) in &more {
            let extra = object(extra);
            let (kind, namespace, name) = key(&extra);
            other.remove(kind, namespace, name);
        }
        // What the extra ones replaced comes back, and in another order.
        let mut seen = std::collections::HashSet::new();
        for object in objects.iter().rev() {
            let (kind, namespace, name) = key(object);
            if seen.insert((kind, namespace.to_owned(), name.to_owned())) {
                other.insert(object.clone());
            }
        }
        prop_assert_eq!(decisions(&expected), decisions(&other));
        for (decided, snapshot) in snapshots {
            prop_assert_eq!(decided, decisions(&snapshot));
        }

        for object in &objects {
            let (kind, namespace, name) = key(object);
            expected.remove(kind, namespace, name);
        }
        prop_assert_eq!(decisions(&expected), decisions(&Policy::default()));
    }

    #[test]
    fn the_index_finds_what_a_scan_finds(objects in prop::collection::vec(any_object(), 0..24)) {
        let objects: Vec<Object> = objects.iter().map(object).collect();
        let policy = Policy::of(objects.iter().cloned());
        for user in ["jane", "kim dev", "system:serviceaccount:a:web", "x jane dev"].map(user) {
            for namespace in ["a", "b", ""] {
                let mut expected = std::collections::BTreeSet::new();
                for object in &objects {
                    let Object::Binding(found) = object else { continue };
                    let stored = policy.binding(&found.namespace, &found.name).unwrap();
                    let is_here = found.namespace.is_empty() || *found.namespace == *namespace;
                    if is_here && stored.subject_of(&user).is_some() {
                        expected.insert((found.namespace.clone(), found.name.clone()));
                    }
                }
                let grants = policy.grants(&user, namespace);
                let found: Vec<_> = grants.iter().map(|grant| (grant.binding.namespace.clone(), grant.binding.name.clone())).collect();
                prop_assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
            }
        }
    }
}
