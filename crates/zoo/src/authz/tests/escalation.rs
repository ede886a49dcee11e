use kubewharf_kube_api::{RequestInfo, Status};
use serde_json::{Value, json};

use super::{binding, cluster_role, policy, role, user};
use crate::authz::Policy;
use crate::authz::defaults::{Shown, to_json};
use crate::authz::escalation::check;
use crate::authz::roles::Kind;

const GROUP: &str = "/apis/rbac.authorization.k8s.io/v1";

/// Whether `who` may write the object, in a request `METHOD PATH` with the path from the version on.
fn write(tenant: &Policy, who: &str, request: &str, new: &Value, old: Option<&Value>) -> Result<(), Status> {
    let (method, path) = request.split_once(' ').unwrap();
    let path = format!("{GROUP}/{path}");
    let info = RequestInfo::parse(method, &path).unwrap();
    let old = old.map(Value::to_string);
    check(tenant, &user(who), &info, new.to_string().as_bytes(), old.as_deref().map(str::as_bytes))
}

fn refusal(tenant: &Policy, who: &str, request: &str, new: &Value) -> String {
    let status = write(tenant, who, request, new, None).unwrap_err();
    assert_eq!(status.code, 403, "{status:?}");
    status.message.into_owned()
}

#[test]
fn nobody_writes_a_role_with_more_than_they_have() {
    let tenant = policy(&[
        role("shop/r", &["get,list core pods", "create rbac.authorization.k8s.io roles"]),
        cluster_role("c", &[], &[], &["get apps *", "get url /metrics"]),
        binding("shop/r", "r", &["User:jane"]),
        binding("/c", "/c", &["Group:dev"]),
        binding("/gone", "/gone", &["User:jane"]),
    ]);
    let create = "POST namespaces/shop/roles";
    let ok = role("shop/new", &["get core pods", "list core pods x"]);
    assert_eq!(write(&tenant, "jane dev", create, &ok, None), Ok(()));
    let apps = role("shop/new", &["get apps deployments"]);
    assert_eq!(write(&tenant, "jane dev", create, &apps, None), Ok(()));
    assert!(write(&tenant, "jane", create, &apps, None).is_err(), "not of the group");

    let more = role("shop/new", &["get,delete core pods,secrets"]);
    assert_eq!(
        refusal(&tenant, "jane dev \"x\"", create, &more),
        concat!(
            r#"roles.rbac.authorization.k8s.io "new" is forbidden: user "jane" (groups=["dev" "\"x\""]) is attempting to "#,
            "grant RBAC permissions not currently held:\n",
            r#"{APIGroups:[""], Resources:["pods"], Verbs:["delete"]}"#,
            "\n",
            r#"{APIGroups:[""], Resources:["secrets"], Verbs:["get" "delete"]}"#,
            r#"; resolution errors: [roles.rbac.authorization.k8s.io "gone" not found]"#,
        )
    );
    // What is had in a namespace is not had elsewhere.
    assert!(
        write(&tenant, "jane dev", "POST namespaces/other/roles", &role("other/new", &["get core pods"]), None)
            .is_err()
    );
    assert!(write(&tenant, "jane dev", "POST clusterroles", &role("/new", &["get core pods"]), None).is_err());
    assert_eq!(
        write(&tenant, "x dev", "POST clusterroles", &role("/new", &["get apps x", "get url /metrics"]), None),
        Ok(())
    );
    assert_eq!(write(&tenant, "root system:masters", "POST clusterroles", &role("/new", &["* * *"]), None), Ok(()));
    let status = write(&tenant, "jane dev", create, &role("other/new", &["get core pods"]), None).unwrap_err();
    assert_eq!(status.code, 400, "checked in one namespace, for another");
    // Without a namespace in the body it is the path's.
    let bare = json!({ "metadata": { "name": "n" }, "rules": [] });
    assert_eq!(write(&tenant, "nobody", create, &bare, None), Ok(()));
}

#[test]
fn the_verb_escalate_allows_it() {
    let tenant = policy(&[
        cluster_role("any", &[], &[], &["escalate rbac.authorization.k8s.io clusterroles,roles"]),
        cluster_role("one", &[], &[], &["escalate rbac.authorization.k8s.io clusterroles,roles new"]),
        binding("/any", "/any", &["User:ann"]),
        binding("/one", "/one", &["User:one"]),
        binding("shop/any", "/any", &["User:here"]),
    ]);
    let new = role("/new", &["* * *"]);
    let local = role("shop/new", &["* * *"]);
    assert_eq!(write(&tenant, "ann", "POST clusterroles", &new, None), Ok(()));
    assert_eq!(write(&tenant, "ann", "POST namespaces/shop/roles", &local, None), Ok(()));
    assert_eq!(write(&tenant, "one", "PUT clusterroles/new", &new, Some(&role("/new", &[]))), Ok(()));
    assert!(write(&tenant, "one", "POST clusterroles", &new, None).is_err(), "a new one is not named in the path");
    assert_eq!(write(&tenant, "here", "POST namespaces/shop/roles", &local, None), Ok(()));
    assert!(write(&tenant, "here", "POST namespaces/other/roles", &role("other/new", &["* * *"]), None).is_err());
    assert!(write(&tenant, "here", "POST clusterroles", &new, None).is_err());
    let collecting = cluster_role("new", &[], &["a=1"], &[]);
    assert_eq!(write(&tenant, "ann", "POST clusterroles", &collecting, None), Ok(()));
}

#[test]
fn to_collect_rules_takes_the_right_to_everything() {
    let tenant = policy(&[
        cluster_role("all", &[], &[], &["* * *", "* url *"]),
        cluster_role("most", &[], &[], &["get,list,create,update * *", "* url *"]),
        binding("/all", "/all", &["User:all"]),
        binding("/most", "/most", &["User:most"]),
    ]);
    let plain = cluster_role("c", &[], &[], &[]);
    let collecting = cluster_role("c", &[], &["a=1"], &[]);
    assert_eq!(write(&tenant, "all", "POST clusterroles", &collecting, None), Ok(()));
    assert_eq!(
        refusal(&tenant, "most", "POST clusterroles", &collecting),
        concat!(
            r#"clusterroles.rbac.authorization.k8s.io "c" is forbidden: "#,
            "must have cluster-admin privileges to use the aggregationRule"
        )
    );
    assert!(write(&tenant, "most", "PUT clusterroles/c", &plain, Some(&collecting)).is_err(), "nor to stop");
    assert_eq!(write(&tenant, "most", "PUT clusterroles/c", &plain, Some(&plain)), Ok(()));
    let mut empty = plain.clone();
    empty["aggregationRule"] = json!({});
    assert_eq!(write(&tenant, "most", "PUT clusterroles/c", &empty, Some(&plain)), Ok(()));
}

#[test]
fn nobody_binds_a_role_with_more_than_they_have() {
    let tenant = policy(&[
        cluster_role("pods", &[], &[], &["get core pods"]),
        cluster_role("binder", &[], &[], &["bind rbac.authorization.k8s.io clusterroles admin,gone"]),
        role("shop/secrets", &["get core secrets"]),
        binding("shop/pods", "/pods", &["User:jane"]),
        binding("/pods", "/pods", &["User:kim"]),
        binding("/binder", "/binder", &["User:bea"]),
        binding("shop/binder", "/binder", &["User:ben"]),
    ]);
    let create = "POST namespaces/shop/rolebindings";
    let everywhere = "POST clusterrolebindings";
    assert_eq!(write(&tenant, "jane", create, &binding("shop/b", "/pods", &["User:x"]), None), Ok(()));
    assert!(write(&tenant, "jane", everywhere, &binding("/b", "/pods", &["User:x"]), None).is_err());
    assert_eq!(write(&tenant, "kim", everywhere, &binding("/b", "/pods", &["User:x"]), None), Ok(()));
    assert_eq!(
        refusal(&tenant, "jane", create, &binding("shop/b", "secrets", &["User:jane"])),
        concat!(
            r#"rolebindings.rbac.authorization.k8s.io "b" is forbidden: user "jane" (groups=[]) is attempting to grant RBAC "#,
            "permissions not currently held:\n",
            r#"{APIGroups:[""], Resources:["secrets"], Verbs:["get"]}"#
        )
    );
    // The right is looked for where the binding is.
    assert_eq!(write(&tenant, "bea", everywhere, &binding("/b", "/admin", &[]), None), Ok(()));
    assert_eq!(write(&tenant, "ben", create, &binding("shop/b", "/admin", &[]), None), Ok(()));
    assert!(write(&tenant, "ben", everywhere, &binding("/b", "/admin", &[]), None).is_err());
    assert!(write(&tenant, "bea", everywhere, &binding("/b", "/edit", &[]), None).is_err());
    // Who may bind it may do so before it is there.
    assert_eq!(write(&tenant, "bea", everywhere, &binding("/b", "/gone", &[]), None), Ok(()));
    let status = write(&tenant, "jane", create, &binding("shop/b", "/gone", &[]), None).unwrap_err();
    assert_eq!((status.code, &*status.message), (404, r#"rolebindings.rbac.authorization.k8s.io "gone" not found"#));
    let status = write(&tenant, "jane", create, &binding("shop/b", "gone", &[]), None).unwrap_err();
    assert_eq!((status.code, &*status.message), (404, r#"rolebindings.rbac.authorization.k8s.io "gone" not found"#));
    let status = write(&tenant, "jane", everywhere, &binding("/b", "secrets", &[]), None).unwrap_err();
    assert_eq!((status.code, &*status.message), (400, "Namespace parameter required."));
    let mut odd = binding("shop/b", "/pods", &[]);
    odd["roleRef"]["kind"] = "Pod".into();
    let status = write(&tenant, "jane", create, &odd, None).unwrap_err();
    assert_eq!((status.code, &*status.message), (500, r#"unsupported role reference kind: "Pod""#));
    odd["roleRef"] = json!({ "apiGroup": "other", "kind": "ClusterRole", "name": "admin" });
    assert!(write(&tenant, "ben", create, &odd, None).is_err(), "the right is for the group of roles");
}

#[test]
fn an_admin_of_a_namespace_grants_edit_there_but_not_more() {
    let tenant = policy(&[binding("shop/a", "/admin", &["User:ann"])]);
    let create = "POST namespaces/shop/rolebindings";
    for (role, expected) in [("/view", true), ("/edit", true), ("/admin", true), ("/cluster-admin", false)] {
        assert_eq!(
            write(&tenant, "ann", create, &binding("shop/b", role, &["User:x"]), None).is_ok(),
            expected,
            "{role}"
        );
    }
    assert!(write(&tenant, "ann", "POST clusterrolebindings", &binding("/b", "/view", &["User:x"]), None).is_err());
}

#[test]
fn the_garbage_collector_may_change_what_it_needs_to() {
    let tenant = Policy::default();
    let old = json!({
        "metadata": { "name": "c", "resourceVersion": "1", "finalizers": ["f"], "labels": {}, "generateName": "" },
        "rules": [{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "resourceNames": null }],
    });
    let mut new = old.clone();
    new["metadata"]["finalizers"] = json!([]);
    new["metadata"]["ownerReferences"] = json!([{ "uid": "u" }]);
    new["metadata"]["managedFields"] = json!([{ "manager": "m" }]);
    new["metadata"].as_object_mut().unwrap().remove("generateName");
    assert_eq!(write(&tenant, "gc", "PATCH clusterroles/c", &new, Some(&old)), Ok(()));
    for (pointer, value) in [
        ("/metadata/labels", json!({ "a": "b" })),
        ("/metadata/resourceVersion", json!("2")),
        ("/rules/0/verbs", json!(["*", "get"])),
        ("/rules/0/verbs/0", json!("get")),
    ] {
        let mut changed = new.clone();
        *changed.pointer_mut(pointer).unwrap() = value;
        assert!(write(&tenant, "gc", "PATCH clusterroles/c", &changed, Some(&old)).is_err(), "{pointer}");
    }
}

#[test]
fn to_replace_a_default_is_to_update_it() {
    let tenant = policy(&[cluster_role("w", &[], &[], &["* rbac.authorization.k8s.io clusterroles x"])]);
    let shown = to_json(&tenant, Kind::ClusterRole, "", "view", Shown::default()).unwrap();
    let old: Value = serde_json::from_slice(&shown).unwrap();
    let mut new = old.clone();
    new["rules"] = json!([]);
    new["aggregationRule"] = Value::Null;
    assert!(write(&tenant, "jane", "PUT clusterroles/view", &new, Some(&old)).is_err());
    assert_eq!(write(&tenant, "jane", "PUT clusterroles/view", &old, Some(&old)), Ok(()));
}

#[test]
fn what_cannot_be_read_is_refused() {
    let tenant = Policy::default();
    let status = write(&tenant, "jane", "POST clusterroles", &json!({ "rules": 1 }), None).unwrap_err();
    assert_eq!(status.code, 400);
    assert!(status.message.starts_with("the ClusterRole is malformed: "), "{}", status.message);
    let pods = RequestInfo::parse("POST", "/api/v1/namespaces/shop/pods").unwrap();
    assert_eq!(check(&tenant, &user("jane"), &pods, b"", None), Ok(()), "this is not about pods");
}
