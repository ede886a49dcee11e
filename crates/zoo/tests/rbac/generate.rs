//! Clusters to compare by: few names and words, so that what is made up meets.

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Value, json};

pub(crate) const NAMESPACES: [&str; 3] = ["a", "b", "kube-system"];
const NAMES: [&str; 4] = ["x", "y", "z", "view"];
const VERBS: [&str; 4] = ["get", "list", "create", "*"];
const GROUPS: [&str; 4] = ["", "apps", "authentication.k8s.io", "*"];
const RESOURCES: [&str; 10] =
    ["pods", "pods/log", "jobs", "*/log", "*", "pods/*", "*/*", "", "*/", "selfsubjectreviews"];
const OBJECTS: [&str; 4] = ["x", "y", "", "*"];
const URLS: [&str; 8] = ["/a", "/a/*", "/a/b", "/a**", "*", "/", "", "/a*/b"];

/// What impersonation is about: verbs, groups, resources and names.
const IMPERSONATE_VERBS: [&str; 6] = [
    "impersonate",
    "impersonate:user-info",
    "impersonate-on:user-info:get",
    "impersonate:serviceaccount",
    "impersonate-on:serviceaccount:get",
    "impersonate:arbitrary-node",
];
const IMPERSONATE_MORE_VERBS: [&str; 4] = [
    "impersonate-on:arbitrary-node:get",
    "impersonate:associated-node",
    "impersonate-on:associated-node:get",
    "impersonate-on:user-info:list",
];
const IMPERSONATE_RESOURCES: [&str; 9] =
    ["users", "groups", "uids", "userextras/a.b/c", "userextras/*", "serviceaccounts", "nodes", "pods", "*"];
const IMPERSONATE_NAMES: [&str; 8] = ["jane", "dev", "web", "n", "v", "*", "system:masters", "u"];

fn some(of: &'static [&'static str], least: usize, most: usize) -> impl Strategy<Value = Vec<&'static str>> {
    subsequence(of, least..=most)
}

/// A rule; validation would refuse some, but what is stored may be older than the validation.
pub(crate) fn rule() -> impl Strategy<Value = Value> {
    let names = prop_oneof![3 => Just(vec![]), 1 => some(&OBJECTS, 1, 2)];
    let lists = (some(&VERBS, 0, 2), some(&GROUPS, 1, 2), some(&RESOURCES, 1, 3), names, some(&URLS, 1, 3));
    (0..10, lists).prop_map(|(kind, (verbs, groups, resources, names, urls))| match kind {
        0..7 => json!({ "verbs": verbs, "apiGroups": groups, "resources": resources, "resourceNames": names }),
        7..9 => json!({ "verbs": verbs, "nonResourceURLs": urls }),
        _ => json!({
            "verbs": verbs, "apiGroups": groups, "resources": resources, "resourceNames": names, "nonResourceURLs": urls,
        }),
    })
}

/// A rule for impersonation.
fn impersonating_rule() -> impl Strategy<Value = Value> {
    let names = prop_oneof![2 => Just(vec![]), 1 => some(&IMPERSONATE_NAMES, 2, 7)];
    let verbs = (some(&IMPERSONATE_VERBS, 1, 6), some(&IMPERSONATE_MORE_VERBS, 0, 4));
    (verbs, some(&GROUPS, 1, 4), some(&IMPERSONATE_RESOURCES, 2, 9), names).prop_map(
        |((verbs, more), groups, resources, names)| {
            let verbs = [verbs, more].concat();
            json!({ "verbs": verbs, "apiGroups": groups, "resources": resources, "resourceNames": names })
        },
    )
}

fn subject() -> impl Strategy<Value = Value> {
    let kind = select(vec!["User", "Group", "ServiceAccount", "ServiceAccount", "Node"]);
    let name = select(vec!["jane", "kim", "dev", "web", "system:authenticated", "system:serviceaccount:a:web"]);
    (kind, name, select(vec!["", "a", "b", "a:web"]))
        .prop_map(|(kind, name, namespace)| json!({ "kind": kind, "name": name, "namespace": namespace }))
}

fn object(rule: BoxedStrategy<Value>) -> impl Strategy<Value = Value> {
    let rules = prop::collection::vec(rule, 0..5);
    let labels = subsequence(vec!["one", "two"], 0..2);
    let collects = prop_oneof![3 => Just(vec![]), 1 => subsequence(vec!["one", "two"], 1..2)];
    let subjects = prop::collection::vec(subject(), 0..4);
    let role = select(vec![
        "Role/x",
        "Role/y",
        "Role/z",
        "ClusterRole/x",
        "ClusterRole/y",
        "ClusterRole/z",
        "ClusterRole/view",
        "ClusterRole/gone",
        "Role/gone",
        "Odd/x",
    ]);
    (0..8, select(NAMESPACES.to_vec()), select(NAMES.to_vec()), rules, (labels, collects), (subjects, role)).prop_map(
        |(kind, namespace, name, rules, (labels, collects), (subjects, role))| {
            let local = json!({ "name": name, "namespace": namespace });
            let (role_kind, role) = role.split_once('/').unwrap();
            let role = json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": role_kind, "name": role });
            match kind {
                0 => json!({ "kind": "Role", "metadata": local, "rules": rules }),
                1..3 => {
                    let pairs = |labels: Vec<&str>| -> Value {
                        labels.into_iter().map(|label| (label.to_owned(), json!("true"))).collect()
                    };
                    let mut role = json!({
                        "kind": "ClusterRole", "metadata": { "name": name, "labels": pairs(labels) }, "rules": rules,
                    });
                    if !collects.is_empty() {
                        role["aggregationRule"] =
                            json!({ "clusterRoleSelectors": [{ "matchLabels": pairs(collects) }] });
                    }
                    role
                }
                3..6 => json!({ "kind": "RoleBinding", "metadata": local, "subjects": subjects, "roleRef": role }),
                _ => json!({
                    "kind": "ClusterRoleBinding", "metadata": { "name": name }, "subjects": subjects, "roleRef": role,
                }),
            }
        },
    )
}

/// A cluster's own objects.
pub(crate) fn cluster() -> impl Strategy<Value = Vec<Value>> {
    prop::collection::vec(object(rule().boxed()), 0..20)
}

/// A cluster in which some may impersonate others.
pub(crate) fn impersonating_cluster() -> impl Strategy<Value = Vec<Value>> {
    let others = prop::collection::vec(object(impersonating_rule().boxed()), 0..8);
    (prop::collection::vec(impersonating_rule(), 1..4), others).prop_map(|(rules, mut objects)| {
        let subject = |name: &str| json!({ "kind": "User", "name": name });
        objects.push(json!({ "kind": "ClusterRole", "metadata": { "name": "main" }, "rules": rules }));
        objects.push(json!({
            "kind": "ClusterRoleBinding", "metadata": { "name": "main" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "main" },
            "subjects": [subject("jane"), subject("system:serviceaccount:a:web")],
        }));
        objects
    })
}

/// A user, as Kubernetes' `user.DefaultInfo`.
pub(crate) fn user() -> impl Strategy<Value = Value> {
    let name = select(vec!["jane", "kim", "system:serviceaccount:a:web", "system:kube-scheduler", "system:anonymous"]);
    let groups = subsequence(
        vec!["dev", "system:authenticated", "system:unauthenticated", "system:serviceaccounts", "system:masters"],
        0..3,
    );
    let node = select(vec!["", "n", "m"]);
    (name, groups, node).prop_map(|(name, groups, node)| {
        let extra =
            if node.is_empty() { json!({}) } else { json!({ "authentication.kubernetes.io/node-name": [node] }) };
        json!({ "Name": name, "Groups": groups, "Extra": extra })
    })
}

/// What is asked for, as Kubernetes' `authorizer.AttributesRecord`.
pub(crate) fn attributes() -> impl Strategy<Value = Value> {
    let verb = select(vec!["get", "list", "create", "delete", "*", ""]);
    let group = select(vec!["", "apps", "authentication.k8s.io", "rbac.authorization.k8s.io", "*"]);
    let resource = select(vec!["pods", "jobs", "selfsubjectreviews", "pods/log", "secrets", "*", ""]);
    let subresource = select(vec!["", "", "log", "status", "*"]);
    let name = select(vec!["", "x", "y", "other", "*"]);
    let namespace = select(vec!["", "a", "b", "c", "kube-system"]);
    let path = select(vec!["/a", "/a/", "/a/b", "/ab", "/", "", "/a*/b", "/version", "/api/v1", "/metrics"]);
    (0..5, verb, group, resource, subresource, name, (namespace, path)).prop_map(
        |(kind, verb, group, resource, subresource, name, (namespace, path))| {
            if kind == 0 {
                json!({ "Verb": verb, "Path": path, "ResourceRequest": false })
            } else {
                json!({
                    "Verb": verb, "APIGroup": group, "Resource": resource, "Subresource": subresource, "Name": name,
                    "Namespace": namespace, "ResourceRequest": true,
                })
            }
        },
    )
}

/// Headers of a request, as in Go.
pub(crate) fn headers() -> impl Strategy<Value = Vec<(String, String)>> {
    let user = select(vec![
        "",
        "jane",
        "kim",
        "system:anonymous",
        "system:serviceaccount:a:web",
        "system:serviceaccount:a:-",
        "system:node:n",
        "system:node:m",
        "\"<q>\"",
    ]);
    let groups = prop::collection::vec(
        select(vec!["dev", "ops", "", "system:masters", "system:authenticated", "system:unauthenticated"]),
        0..6,
    );
    let uid = select(vec!["", "", "", "u", "w"]);
    // One key only, for Go has several in no order.
    let extra = prop_oneof![
        3 => Just(vec![]),
        1 => (select(vec!["A.b%2fc", "scopes", "-", "%2f", "a.b%2f%41", "a%zz", "a.b%2f c"]), 1..6usize)
            .prop_map(|(key, count)| vec![key; count]),
    ];
    (user, prop_oneof![Just(vec![]), groups], uid, extra, select(vec!["v", "w", ""])).prop_map(
        |(user, groups, uid, extra, value)| {
            let mut headers = vec![("Impersonate-User".to_owned(), user.to_owned())];
            headers.extend(groups.into_iter().map(|group| ("Impersonate-Group".to_owned(), group.to_owned())));
            if !uid.is_empty() {
                headers.push(("Impersonate-Uid".to_owned(), uid.to_owned()));
            }
            headers.extend(extra.into_iter().map(|key| (format!("Impersonate-Extra-{key}"), value.to_owned())));
            headers
        },
    )
}
