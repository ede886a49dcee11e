use kubewharf_kube_api::{RequestInfo, Status};

use super::{binding, cluster_role, policy, user};
use crate::authz::impersonation::{Wanted, is_header};
use crate::authz::{Policy, UserInfo};

/// Headers as `NAME: VALUE`.
fn wanted(headers: &[&str]) -> Result<Option<Wanted>, Status> {
    let headers = headers.iter().map(|header| header.split_once(": ").unwrap());
    Wanted::from_headers(headers.map(|(name, value)| (name, value.as_bytes())))
}

/// Whom `who` is treated as, in a request that lists pods.
fn act(tenant: &Policy, who: &UserInfo, headers: &[&str]) -> Result<UserInfo, String> {
    let info = RequestInfo::parse("GET", "/api/v1/namespaces/shop/pods").unwrap();
    let wanted = wanted(headers).unwrap().unwrap();
    wanted.decide(tenant, who, &info).map_err(|status| {
        assert_eq!(status.code, 403);
        status.message.into_owned()
    })
}

fn legacy_tenant() -> Policy {
    policy(&[
        cluster_role(
            "users",
            &[],
            &[],
            &["impersonate core users jane,system:anonymous", "impersonate core groups dev,ops"],
        ),
        cluster_role("accounts", &[], &[], &["impersonate core serviceaccounts"]),
        cluster_role(
            "facts",
            &[],
            &[],
            &[
                "impersonate authentication.k8s.io uids u-1",
                "impersonate authentication.k8s.io userextras/scopes,userextras/a.b/c",
            ],
        ),
        binding("/users", "/users", &["User:boss"]),
        binding("/facts", "/facts", &["User:boss"]),
        binding("shop/accounts", "/accounts", &["User:boss"]),
    ])
}

#[test]
fn headers_that_ask_for_nothing_are_nothing() {
    assert_eq!(wanted(&[]), Ok(None));
    assert_eq!(wanted(&["accept: x", "impersonate-user: ", "impersonate-other: y"]), Ok(None));
    assert!(is_header("Impersonate-Group") && is_header("IMPERSONATE-EXTRA-x") && is_header("impersonate-uid"));
    assert!(!is_header("impersonate-other") && !is_header("impersonate-extr€"));
}

#[test]
fn all_that_is_asked_for_needs_a_user() {
    for (headers, text) in [
        (
            &["Impersonate-Group: dev", "Impersonate-Group: ops"][..],
            r#"&user.DefaultInfo{Name:"", UID:"", Groups:[]string{"dev", "ops"}, Extra:map[string][]string(nil)}"#,
        ),
        (
            &["Impersonate-Uid: u\"", "Impersonate-Extra-B: 1", "Impersonate-Extra-A%2fX: 2", "impersonate-extra-b: 3"],
            concat!(
                r#"&user.DefaultInfo{Name:"", UID:"u\"", Groups:[]string(nil), "#,
                r#"Extra:map[string][]string{"a/x":[]string{"2"}, "b":[]string{"1", "3"}}}"#
            ),
        ),
        (
            &["Impersonate-User: ", "Impersonate-User: jane", "Impersonate-Group: "],
            r#"&user.DefaultInfo{Name:"", UID:"", Groups:[]string{""}, Extra:map[string][]string(nil)}"#,
        ),
    ] {
        let status = wanted(headers).unwrap_err();
        assert_eq!(
            (status.code, &*status.message),
            (400, &*format!("requested {text} without impersonating a user name"))
        );
    }
    let status = Wanted::from_headers([("impersonate-user", &b"\xff"[..])]).unwrap_err();
    assert_eq!(status.code, 400);
}

#[test]
fn who_may_impersonate_gets_the_groups_that_are_implied() {
    let tenant = legacy_tenant();
    let boss = user("boss");
    for (headers, expected) in [
        (&["Impersonate-User: jane"][..], "jane system:authenticated"),
        (
            &["Impersonate-User: jane", "Impersonate-Group: dev", "impersonate-group: ops"],
            "jane dev ops system:authenticated",
        ),
        (&["Impersonate-User: system:anonymous"], "system:anonymous system:unauthenticated"),
        (
            &["Impersonate-User: system:serviceaccount:shop:web"],
            "system:serviceaccount:shop:web system:serviceaccounts system:serviceaccounts:shop system:authenticated",
        ),
        (
            &["Impersonate-User: system:serviceaccount:shop:web", "Impersonate-Group: dev"],
            "system:serviceaccount:shop:web dev system:authenticated",
        ),
    ] {
        assert_eq!(act(&tenant, &boss, headers), Ok(user(expected)), "{headers:?}");
    }
    let root = user("root system:masters");
    assert_eq!(
        act(&tenant, &root, &["Impersonate-User: jane", "Impersonate-Group: system:unauthenticated"]),
        Ok(user("jane system:unauthenticated"))
    );
    assert_eq!(
        act(
            &tenant,
            &root,
            &["Impersonate-User: jane", "Impersonate-Group: system:authenticated", "Impersonate-Group: x"]
        ),
        Ok(user("jane system:authenticated x"))
    );
    assert_eq!(
        act(&tenant, &root, &["Impersonate-User: jane", "Impersonate-Group: system:masters"]),
        Ok(user("jane system:masters system:authenticated"))
    );
    assert_eq!(
        act(&tenant, &root, &["Impersonate-User: system:node:n"]),
        Ok(user("system:node:n system:nodes system:authenticated")),
        "a mode of its own gives the groups of nodes"
    );
}

#[test]
fn identifiers_and_further_facts_are_asked_for_one_by_one() {
    let tenant = legacy_tenant();
    let boss = user("boss");
    let headers = [
        "Impersonate-User: jane",
        "Impersonate-Uid: u-1",
        "Impersonate-Extra-Scopes: a",
        "Impersonate-Extra-A.b%2Fc: d",
    ];
    let expected = UserInfo {
        uid: "u-1".to_owned(),
        extra: vec![("a.b/c".to_owned(), vec!["d".to_owned()]), ("scopes".to_owned(), vec!["a".to_owned()])],
        ..user("jane system:authenticated")
    };
    assert_eq!(act(&tenant, &boss, &headers), Ok(expected));
    assert!(act(&tenant, &boss, &["Impersonate-User: jane", "Impersonate-Uid: u-2"]).is_err());
    assert!(act(&tenant, &boss, &["Impersonate-User: jane", "Impersonate-Extra-Other: x"]).is_err());
    assert!(act(&tenant, &boss, &["Impersonate-User: jane", "Impersonate-Group: other"]).is_err());
    assert!(act(&tenant, &boss, &["Impersonate-User: kim"]).is_err());
    assert!(act(&tenant, &boss, &["Impersonate-User: system:serviceaccount:other:web"]).is_err());
    assert!(act(&tenant, &boss, &["Impersonate-User: system:serviceaccount:shop:-"]).is_err(), "it is a user");
}

#[test]
fn a_refusal_is_of_the_first_way_that_was_tried() {
    let tenant = policy(&[
        cluster_role("on", &[], &[], &["impersonate-on:user-info:list,impersonate-on:arbitrary-node:list core pods"]),
        binding("shop/on", "/on", &["User:half"]),
    ]);
    for (who, headers, expected) in [
        (
            "nobody",
            &["Impersonate-User: jane"][..],
            concat!(
                r#"pods is forbidden: User "nobody" cannot impersonate-on:user-info:list resource "pods" in API group "" "#,
                r#"in the namespace "shop""#
            ),
        ),
        (
            "half",
            &["Impersonate-User: jane"],
            concat!(
                r#"users.authentication.k8s.io "jane" is forbidden: User "half" cannot impersonate:user-info resource "#,
                r#""users" in API group "authentication.k8s.io" at the cluster scope"#
            ),
        ),
        (
            "half",
            &["Impersonate-User: system:node:n"],
            concat!(
                r#"nodes.authentication.k8s.io "n" is forbidden: User "half" cannot impersonate:arbitrary-node resource "#,
                r#""nodes" in API group "authentication.k8s.io" at the cluster scope"#
            ),
        ),
        (
            "half",
            &["Impersonate-User: system:serviceaccount:shop:web", "Impersonate-Group: dev"],
            concat!(
                r#"serviceaccounts "web" is forbidden: User "half" cannot impersonate resource "serviceaccounts" in API "#,
                r#"group "" in the namespace "shop""#
            ),
        ),
    ] {
        assert_eq!(act(&tenant, &user(who), headers), Err(expected.to_owned()));
    }
}

#[test]
fn a_constrained_right_holds_for_its_requests_only() {
    let tenant = policy(&[
        cluster_role("on", &[], &[], &["impersonate-on:user-info:list core pods"]),
        cluster_role(
            "who",
            &[],
            &[],
            &[
                "impersonate:user-info authentication.k8s.io users jane",
                "impersonate:user-info authentication.k8s.io groups",
                "impersonate:user-info authentication.k8s.io userextras/*",
            ],
        ),
        binding("shop/on", "/on", &["User:bot"]),
        binding("/who", "/who", &["User:bot"]),
    ]);
    let bot = user("bot");
    let jane = &["Impersonate-User: jane", "Impersonate-Group: dev"][..];
    assert_eq!(act(&tenant, &bot, jane), Ok(user("jane dev system:authenticated")));
    let wanted = wanted(jane).unwrap().unwrap();
    for other in ["/api/v1/pods", "/api/v1/namespaces/shop/secrets", "/api/v1/namespaces/shop/pods/x", "/healthz"] {
        let info = RequestInfo::parse("GET", other).unwrap();
        assert!(wanted.decide(&tenant, &bot, &info).is_err(), "{other}");
    }
    for (headers, why) in [
        (
            &["Impersonate-User: jane", "Impersonate-Group: system:masters"][..],
            "impersonating the system:masters group is not allowed",
        ),
        (&["Impersonate-User: jane", "Impersonate-Group: "], "impersonating the empty string group is not allowed"),
        (
            &["Impersonate-User: jane", "Impersonate-Extra-scopes: a"],
            concat!(
                "impersonating an invalid key in extra is not allowed: extra.key: Invalid value: \"scopes\": ",
                "must be a domain-prefixed path (such as \"acme.io/foo\")"
            ),
        ),
        (
            &["Impersonate-User: jane", "Impersonate-Extra-a.b%2fc: "],
            "impersonating the empty string value in extra is not allowed",
        ),
        (
            &["Impersonate-User: jane", "Impersonate-Extra-a.b%2f%41: x"],
            "impersonating a non-lowercase key in extra is not allowed: \"a.b/A\"",
        ),
        (
            &["Impersonate-User: jane", "Impersonate-Extra-: x"],
            "impersonating the empty string key in extra is not allowed",
        ),
    ] {
        let refusal = act(&tenant, &bot, headers).unwrap_err();
        assert!(refusal.ends_with(&format!(": {why}")), "{refusal}");
    }
    let four = [
        "Impersonate-User: jane",
        "Impersonate-Extra-a.b%2f1: x",
        "Impersonate-Extra-a.b%2f2: x",
        "Impersonate-Extra-a.b%2f3: x",
        "Impersonate-Extra-a.b%2f4: x",
    ];
    assert!(act(&tenant, &bot, &four).is_ok(), "who may have all facts at once need not have each");
    assert!(act(&tenant, &bot, &four[..4]).is_err());
}

#[test]
fn a_service_account_may_act_as_its_own_node() {
    let tenant = policy(&[
        cluster_role(
            "agent",
            &[],
            &[],
            &[
                "impersonate:associated-node authentication.k8s.io nodes",
                "impersonate-on:associated-node:list core pods",
            ],
        ),
        binding("/agent", "/agent", &["ServiceAccount:shop/agent", "User:kim"]),
    ]);
    let mut agent = user("system:serviceaccount:shop:agent");
    let node = &["Impersonate-User: system:node:n-1"][..];
    assert!(act(&tenant, &agent, node).is_err());
    agent.extra = vec![("authentication.kubernetes.io/node-name".to_owned(), vec!["n-1".to_owned()])];
    assert_eq!(act(&tenant, &agent, node), Ok(user("system:node:n-1 system:nodes system:authenticated")));
    assert!(act(&tenant, &agent, &["Impersonate-User: system:node:n-2"]).is_err());
    let kim = UserInfo { extra: agent.extra.clone(), ..user("kim") };
    assert!(act(&tenant, &kim, node).is_err(), "kim is no service account");
    let refusal = act(&Policy::default(), &agent, node).unwrap_err();
    assert!(refusal.contains("impersonate-on:associated-node:list"), "{refusal}");
}
