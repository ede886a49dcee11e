use std::borrow::Cow;
use std::sync::Arc;

use kubewharf_upstream::Strategy;
use proptest::prelude::{ProptestConfig, any, prop, prop_assert_eq, proptest};
use proptest::sample::select;
use proptest::strategy::Strategy as Generator;

use super::index::{RuleSet, first_match_linear};
use super::*;

fn texts(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

fn user(name: &str, groups: &[&str]) -> User {
    User { name: name.to_owned(), groups: texts(groups), ..User::default() }
}

fn request<'a>(verb: &'a str, api_group: &'a str, resource: &'a str) -> RequestInfo<'a> {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    RequestInfo {
        is_resource_request: true,
        verb: verb.into(),
        api_group: api_group.into(),
        resource: resource.into(),
        subresource: subresource.into(),
        ..RequestInfo::default()
    }
}

fn path<'a>(verb: &'a str, path: &'a str) -> RequestInfo<'a> {
    RequestInfo { verb: verb.into(), path: path.into(), ..RequestInfo::default() }
}

/// A rule for everything, as a base for others.
fn everything() -> RuleSpec {
    RuleSpec {
        verbs: texts(&["*"]),
        api_groups: texts(&["*"]),
        resources: texts(&["*"]),
        non_resource_urls: texts(&["*"]),
        ..RuleSpec::default()
    }
}

fn is_match(spec: &RuleSpec, semantics: Semantics, info: &RequestInfo<'_>, user: &User) -> bool {
    let client = "10.1.2.3".parse().unwrap();
    Rule::new(spec.clone(), semantics).unwrap().matches(&Attributes { info, user, user_agent: "kubectl/v1.36", client })
}

#[track_caller]
fn assert_resources(resources: &[&str], semantics: Semantics, matching: &[&str], others: &[&str]) {
    let spec = RuleSpec { resources: texts(resources), ..everything() };
    let admin = user("admin", &[]);
    for resource in matching {
        assert!(
            is_match(&spec, semantics, &request("get", "", resource), &admin),
            "{resources:?} must match {resource}"
        );
    }
    for resource in others {
        assert!(
            !is_match(&spec, semantics, &request("get", "", resource), &admin),
            "{resources:?} must not match {resource}"
        );
    }
}

#[test]
fn resources_match_as_documented() {
    use Semantics::Documented;
    assert_resources(&["pods"], Documented, &["pods"], &["pods/log", "services"]);
    assert_resources(&["pods/log", "*/status"], Documented, &["pods/log", "nodes/status"], &["pods", "services/log"]);
    assert_resources(&["-pods", "-deployments"], Documented, &["services", "pods/log"], &["pods", "deployments"]);
    assert_resources(&["-pods", "-*/status"], Documented, &["services"], &["pods", "nodes/status", "pods/status"]);
    assert_resources(&["-pods", "deployments"], Documented, &["deployments"], &["services", "pods"]);
    assert_resources(&["-pods", "*"], Documented, &["pods", "a/b"], &[]);
    assert_resources(&["pods/*", "pods/"], Documented, &[], &["pods", "pods/log"]);
    assert_resources(&["-*"], Documented, &[], &["pods", "pods/log"]);
    assert_resources(&[], Documented, &[], &["pods"]);
}

#[test]
fn compat_restores_what_the_original_does() {
    use Semantics::KubeGateway;
    assert_resources(&["-pods", "-deployments"], KubeGateway, &["services", "pods", "deployments"], &[]);
    assert_resources(&["-pods"], KubeGateway, &["services", "pods/log"], &["pods"]);
    assert_resources(&["-*/status"], KubeGateway, &["pods", "pods/status"], &[]);
    let pods = request("get", "", "pods");
    let negative_prefix = RuleSpec { users: texts(&["-system:*"]), ..everything() };
    let not_masters = RuleSpec { user_groups: texts(&["-system:masters"]), ..everything() };
    let node = user("system:node:a", &["system:nodes", "system:authenticated"]);
    let master = user("root", &["system:masters", "system:authenticated"]);
    let loner = user("loner", &[]);
    for (spec, user, original, documented) in [
        (&negative_prefix, &node, true, false),
        (&negative_prefix, &loner, true, true),
        (&not_masters, &master, true, false),
        (&not_masters, &node, true, true),
        (&not_masters, &loner, false, true),
    ] {
        assert_eq!(is_match(spec, KubeGateway, &pods, user), original, "{spec:?} {user:?}");
        assert_eq!(is_match(spec, Semantics::Documented, &pods, user), documented, "{spec:?} {user:?}");
    }
}

/// Each row of what the original's API says of its fields: values, what they match, and what they do not.
#[test]
fn each_field_matches_as_the_original_documents_it() {
    type Row<'a> = (&'a [&'a str], &'a [&'a str], &'a [&'a str]);
    let check = |field: &str, rows: &[Row<'_>], asks: &dyn Fn(&[&str], &str) -> bool| {
        for (values, matching, others) in rows {
            for request in *matching {
                assert!(asks(values, request), "{field}: {values:?} must match {request:?}");
            }
            for request in *others {
                assert!(!asks(values, request), "{field}: {values:?} must not match {request:?}");
            }
        }
    };
    let anybody = user("anybody", &["dev", "system:authenticated"]);
    let matches = |spec: &RuleSpec, info: &RequestInfo<'_>| is_match(spec, Semantics::Documented, info, &anybody);
    let verbs: [Row<'_>; 6] = [
        (&["*"], &["get", "list"], &[]),
        (&["get", "list"], &["get", "list"], &["watch", "GET"]),
        (&["-get"], &["list", "deletecollection"], &["get"]),
        (&["-get", "-list"], &["watch"], &["get", "list"]),
        (&["-get", "list"], &["list"], &["get", "watch"]),
        (&[], &[], &["get"]),
    ];
    check("verbs", &verbs, &|values, verb| {
        let spec = RuleSpec { verbs: texts(values), ..everything() };
        let matched = matches(&spec, &request(verb, "", "pods"));
        // They count for requests for no resource too.
        assert_eq!(matches(&spec, &path(verb, "/healthz")), matched);
        matched
    });
    let groups: [Row<'_>; 5] = [
        (&["*"], &["", "apps", "example.com"], &[]),
        (&[""], &[""], &["apps"]),
        (&["apps", "batch"], &["apps", "batch"], &["", "extensions.apps"]),
        (&["-apps"], &["", "batch"], &["apps"]),
        (&[], &[], &["", "apps"]),
    ];
    check("apiGroups", &groups, &|values, group| {
        matches(&RuleSpec { api_groups: texts(values), ..everything() }, &request("get", group, "pods"))
    });
    let names: [Row<'_>; 5] = [
        (&["*"], &["nginx", ""], &[]),
        (&[], &["nginx", ""], &[]),
        (&["nginx"], &["nginx"], &["nginx-2", ""]),
        (&["ngi*"], &["ngi*"], &["nginx"]),
        (&["-nginx"], &["other", ""], &["nginx"]),
    ];
    check("resourceNames", &names, &|values, name| {
        let info = RequestInfo { name: name.to_owned().into(), ..request("get", "", "pods") };
        matches(&RuleSpec { resource_names: texts(values), ..everything() }, &info)
    });
    let users: [Row<'_>; 6] = [
        (&["*"], &["alice", "system:node:a"], &[]),
        (&[], &["alice", "system:node:a"], &[]),
        (&["alice"], &["alice"], &["alice2", "Alice"]),
        (&["system:node:*"], &["system:node:a", "system:node:"], &["system:nodes", "alice"]),
        (&["-alice"], &["bob"], &["alice"]),
        (&["-alice", "bob"], &["bob"], &["alice", "carol"]),
    ];
    check("users", &users, &|values, name| {
        let spec = RuleSpec { users: texts(values), ..everything() };
        is_match(&spec, Semantics::Documented, &request("get", "", "pods"), &user(name, &[]))
    });
    // A user who has this group and another one.
    let user_groups: [Row<'_>; 6] = [
        (&["*"], &["dev"], &[]),
        (&[], &["dev"], &[]),
        (&["dev", "ops"], &["dev", "ops"], &["sales"]),
        (&["de*"], &["de*"], &["dev"]),
        (&["-dev"], &["ops"], &["dev"]),
        (&["-system:authenticated"], &[], &["dev", "ops"]),
    ];
    check("userGroups", &user_groups, &|values, group| {
        let spec = RuleSpec { user_groups: texts(values), ..everything() };
        is_match(
            &spec,
            Semantics::Documented,
            &request("get", "", "pods"),
            &user("a", &[group, "system:authenticated"]),
        )
    });
    // A rule for resources takes no path, and the other way round.
    let resources_alone = RuleSpec { non_resource_urls: Vec::new(), ..everything() };
    let paths_alone = RuleSpec { api_groups: Vec::new(), resources: Vec::new(), ..everything() };
    let (pods, healthz) = (request("get", "", "pods"), path("get", "/healthz"));
    assert!(matches(&resources_alone, &pods) && !matches(&resources_alone, &healthz));
    assert!(matches(&paths_alone, &healthz) && !matches(&paths_alone, &pods));
    // All fields must match.
    let narrow =
        RuleSpec { verbs: texts(&["get"]), resources: texts(&["pods"]), users: texts(&["anybody"]), ..everything() };
    assert!(matches(&narrow, &pods) && !matches(&narrow, &request("list", "", "pods")));
    assert!(!matches(&narrow, &request("get", "", "nodes")));
    assert!(!is_match(&narrow, Semantics::Documented, &pods, &user("somebody", &[])));
}

#[test]
fn users_and_service_accounts_are_alternatives() {
    let account = |namespace: &str, name: &str| ServiceAccountSpec { namespace: namespace.into(), name: name.into() };
    let matches = |users: &[&str], accounts: &[ServiceAccountSpec], name: &str| {
        let spec = RuleSpec { users: texts(users), service_accounts: accounts.to_vec(), ..everything() };
        is_match(&spec, Semantics::Documented, &request("get", "", "pods"), &user(name, &[]))
    };
    assert!(matches(&[], &[], "anybody"));
    assert!(matches(&["admin"], &[], "admin") && !matches(&["admin"], &[], "administrator"));
    assert!(matches(&["admin*"], &[], "administrator"));
    assert!(!matches(&[], &[account("a", "b")], "admin"));
    assert!(matches(&[], &[account("a", "b")], "system:serviceaccount:a:b"));
    assert!(matches(&["admin"], &[account("a", "b")], "system:serviceaccount:a:b"));
    assert!(!matches(&[], &[account("a", ""), account("", "b")], "system:serviceaccount::"));
    assert!(!matches(&["-system:*", "-admin"], &[], "system:node:a") && matches(&["-system:*"], &[], "alice"));
}

#[test]
fn paths_match_by_prefix_and_know_no_negation() {
    let matches = |urls: &[&str], asked: &str| {
        let spec = RuleSpec { non_resource_urls: texts(urls), ..everything() };
        is_match(&spec, Semantics::Documented, &path("get", asked), &user("a", &[]))
    };
    assert!(matches(&["/healthz", "/healthz/*"], "/healthz/etcd") && matches(&["/healthz"], "/healthz"));
    assert!(!matches(&["/healthz"], "/healthz/etcd") && !matches(&["-/metrics"], "/healthz"));
    assert!(matches(&["/health*"], "/healthz") && matches(&["*"], "/anything") && !matches(&[], "/healthz"));
}

#[test]
fn fields_of_our_own_narrow_a_rule() {
    let in_namespace =
        |namespace: &'static str| RequestInfo { namespace: namespace.into(), ..request("list", "", "pods") };
    let anybody = user("a", &[]);
    let matches = |spec: &RuleSpec, info: &RequestInfo<'_>| is_match(spec, Semantics::KubeGateway, info, &anybody);
    let namespaces = |values: &[&str]| RuleSpec { namespaces: texts(values), ..everything() };
    assert!(matches(&namespaces(&["team-*", "shop"]), &in_namespace("team-a")));
    assert!(
        !matches(&namespaces(&["team-*", "shop"]), &in_namespace("")) && matches(&namespaces(&[""]), &in_namespace(""))
    );
    // These never have the old meaning.
    assert!(!matches(&namespaces(&["-kube-system", "-default"]), &in_namespace("kube-system")));
    assert!(
        matches(&namespaces(&["-kube-system"]), &in_namespace(""))
            && matches(&namespaces(&["a"]), &path("get", "/healthz"))
    );
    let agents = |values: &[&str]| RuleSpec { user_agents: texts(values), ..everything() };
    assert!(
        matches(&agents(&["kubectl/*"]), &in_namespace("a")) && !matches(&agents(&["-kubectl/*"]), &in_namespace("a"))
    );
    let clients = |values: &[&str]| RuleSpec { cidrs: texts(values), ..everything() };
    assert!(
        matches(&clients(&["10.0.0.0/8"]), &in_namespace("a"))
            && !matches(&clients(&["-10.0.0.0/8"]), &in_namespace("a"))
    );
}

fn policy(place: usize) -> DispatchPolicy {
    DispatchPolicy {
        name: format!("policy-{place}").into(),
        place,
        strategy: Strategy::RoundRobin,
        subset: None,
        weights: None,
        flow_schema: None,
        access_log: false,
        timeouts: Timeouts::default(),
        body_bytes_max: None,
        degradation: None,
        circuit_breaker: None,
        fingerprint: 0,
    }
}

fn rule(spec: RuleSpec) -> Rule {
    Rule::new(spec, Semantics::Documented).unwrap()
}

#[test]
fn the_first_policy_wins_and_the_explanation_says_why() {
    let reads = RuleSpec { verbs: texts(&["get", "list"]), users: texts(&["alice", "bob"]), ..everything() };
    let policies = Policies::new(vec![
        (policy(0), vec![rule(reads.clone()), rule(RuleSpec { verbs: texts(&["watch"]), ..reads })]),
        (policy(1), vec![rule(everything())]),
    ]);
    let info = request("watch", "apps", "deployments");
    let bob = user("bob", &["dev"]);
    let client = "::1".parse().unwrap();
    let attributes = Attributes { info: &info, user: &bob, user_agent: "", client };
    let decision = policies.decide(&attributes).unwrap();
    assert_eq!((&*decision.policy.name, decision.rule), ("policy-0", 1));
    let explanation = policies.explain(&attributes);
    let text = explanation.to_string();
    for line in [
        "policy 0 (policy-0) takes it, by rule 1",
        "policy 1 (policy-1) matches",
        "  rule 0 does not match",
        "    verbs: [\"watch\"] does not match [\"get\", \"list\"]",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    assert!(
        serde_json::to_string(&explanation).unwrap().contains(r#""chosen":{"policy":0,"name":"policy-0","rule":1}"#)
    );
    let carol = user("carol", &[]);
    assert_eq!(policies.decide(&Attributes { user: &carol, ..attributes }).unwrap().policy.place, 1);
    assert!(Policies::default().decide(&attributes).is_none());
}

#[test]
fn deny_rules_come_before_allow_rules() {
    let of = |name: &str| rule(RuleSpec { users: texts(&[name]), ..everything() });
    let info = request("get", "", "pods");
    let check = |access: &Access, name: &str| {
        let user = user(name, &[]);
        let attributes = Attributes { info: &info, user: &user, user_agent: "", client: "::1".parse().unwrap() };
        let verdict = access.check(&attributes);
        assert_eq!(access.explain(&attributes).allowed, verdict.is_allowed());
        verdict
    };
    let open = Access::new(vec![of("mallory")], None);
    assert_eq!((check(&open, "mallory"), check(&open, "alice")), (Verdict::DeniedBy(0), Verdict::Allowed));
    let closed = Access::new(vec![of("mallory")], Some(vec![of("alice"), of("mallory")]));
    assert_eq!(check(&closed, "alice"), Verdict::AllowedBy(0));
    assert_eq!((check(&closed, "mallory"), check(&closed, "bob")), (Verdict::DeniedBy(0), Verdict::NotAllowed));
    assert_eq!(check(&Access::new(Vec::new(), Some(Vec::new())), "alice"), Verdict::NotAllowed);
}

#[test]
fn lint_tells_where_documentation_and_code_of_the_original_differ() {
    let problems = |spec: RuleSpec, semantics| {
        lint(&spec, Some(semantics))
            .into_iter()
            .map(|notice| format!("{}: {}", notice.field, notice.problem))
            .collect::<Vec<_>>()
    };
    let base = RuleSpec { non_resource_urls: Vec::new(), ..everything() };
    assert_eq!(problems(base.clone(), Semantics::Documented), Vec::<String>::new());
    let single = RuleSpec { resources: texts(&["-pods"]), users: texts(&["-admin"]), ..base.clone() };
    assert_eq!(problems(single, Semantics::Documented), Vec::<String>::new());
    for (spec, expected) in [
        (
            RuleSpec { resources: texts(&["-pods", "-nodes"]), ..base.clone() },
            "resources: the list matches what is none of these",
        ),
        (
            RuleSpec { user_groups: texts(&["-system:masters"]), ..base.clone() },
            "userGroups: the list matches what is none",
        ),
        (RuleSpec { users: texts(&["-system:*"]), ..base.clone() }, "users: the list matches what is none of these"),
        (
            RuleSpec { resources: texts(&["-*/status"]), ..base.clone() },
            "resources: the list matches what is none of these",
        ),
        (RuleSpec { verbs: texts(&["-*"]), ..base.clone() }, "verbs: the list matches nothing"),
        (RuleSpec { verbs: texts(&["get", "-list"]), ..base.clone() }, "verbs: \"-list\" is ignored"),
        (RuleSpec { resources: texts(&["pods/*"]), ..base.clone() }, "resources: \"pods/*\" means no subresource"),
        (RuleSpec { verbs: texts(&["GET"]), ..base.clone() }, "verbs: \"GET\" matches nothing"),
        (RuleSpec { verbs: Vec::new(), ..base.clone() }, "verbs: is empty"),
        (RuleSpec { api_groups: Vec::new(), ..base.clone() }, "apiGroups: is empty"),
        (RuleSpec { non_resource_urls: texts(&["-/a"]), ..base.clone() }, "nonResourceURLs: \"-/a\" is ignored"),
        (RuleSpec { cidrs: texts(&["10.1.0.0/8"]), ..base.clone() }, "cidrs: \"10.1.0.0/8\" has bits behind"),
    ] {
        let found = problems(spec, Semantics::Documented);
        assert!(found.len() == 1 && found[0].starts_with(expected), "{found:?} is not {expected}");
    }
    let old = problems(RuleSpec { resources: texts(&["-pods", "-nodes"]), ..base }, Semantics::KubeGateway);
    assert!(old[0].contains("under `compat: kubegateway`"), "{old:?}");
    let of_our_own = RuleSpec { users: texts(&["-system:*", "-a"]), ..everything() };
    assert_eq!(lint(&of_our_own, None), []);
}

/// The original's code, value by value, for all of the fields that it has.
fn original_matches(spec: &RuleSpec, attributes: &Attributes<'_>) -> bool {
    fn effective(values: &[String]) -> Option<Vec<(bool, &str)>> {
        if values.iter().any(|value| value == "*") {
            return None;
        }
        let signed = values.iter().map(|value| match value.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, value.as_str()),
        });
        let (negative, positive): (Vec<_>, Vec<_>) = signed.partition(|(is_negative, _)| *is_negative);
        Some(if positive.is_empty() { negative } else { positive })
    }
    fn any(values: &[String], requests: &[&str], further: impl Fn(bool, &str) -> bool) -> bool {
        let Some(values) = effective(values) else { return true };
        values.iter().any(|(is_negative, value)| {
            requests.iter().any(|request| (value == request) != *is_negative) || further(*is_negative, value)
        })
    }
    fn is_prefix(value: &str, request: &str) -> bool {
        value.ends_with('*') && request.starts_with(value.trim_end_matches('*'))
    }
    let (info, user) = (attributes.info, attributes.user);
    let no_more = |_: bool, _: &str| false;
    let user_matches = (spec.users.is_empty() && spec.service_accounts.is_empty())
        || any(&spec.users, &[&user.name], |_, value| is_prefix(value, &user.name))
        || spec.service_accounts.iter().any(|account| {
            let name = format!("system:serviceaccount:{}:{}", account.namespace, account.name);
            !account.name.is_empty() && !account.namespace.is_empty() && name == user.name
        });
    let groups: Vec<&str> = user.groups.iter().map(String::as_str).collect();
    let basics = any(&spec.verbs, &[&info.verb], no_more)
        && user_matches
        && (spec.user_groups.is_empty() || any(&spec.user_groups, &groups, no_more));
    if !info.is_resource_request {
        let urls = effective(&spec.non_resource_urls);
        let url_matches = urls.is_none_or(|urls| {
            urls.iter().any(|(negative, value)| !negative && (*value == info.path || is_prefix(value, &info.path)))
        });
        return basics && url_matches;
    }
    let joined = if info.subresource.is_empty() {
        info.resource.to_string()
    } else {
        format!("{}/{}", info.resource, info.subresource)
    };
    let of_all = format!("*/{}", info.subresource);
    basics
        && any(&spec.api_groups, &[&info.api_group], no_more)
        && any(&spec.resources, &[&joined], |is_negative, value| {
            !info.subresource.is_empty() && value.starts_with("*/") && (value == of_all) != is_negative
        })
        && (spec.resource_names.is_empty() || any(&spec.resource_names, &[&info.name], no_more))
}

/// What the documentation says, value by value, for all fields.
fn documented_matches(spec: &RuleSpec, attributes: &Attributes<'_>) -> bool {
    /// `is_like` says whether the request has a value, given without its sign.
    fn list(values: &[String], empty: bool, is_like: impl Fn(&str) -> bool) -> bool {
        if values.is_empty() || values.iter().any(|value| value == "*") {
            return !values.is_empty() || empty;
        }
        let positive: Vec<&String> = values.iter().filter(|value| !value.starts_with('-')).collect();
        if positive.is_empty() {
            return !values.iter().any(|value| &value[1..] == "*" || is_like(&value[1..]));
        }
        positive.iter().any(|value| is_like(value))
    }
    fn glob(pattern: &str, text: &str) -> bool {
        match pattern.find('*') {
            Some(star) if pattern[star..].bytes().all(|byte| byte == b'*') => text.starts_with(&pattern[..star]),
            _ => pattern == text,
        }
    }
    let (info, user) = (attributes.info, attributes.user);
    let accounts: Vec<String> = spec
        .service_accounts
        .iter()
        .filter(|account| !account.name.is_empty() && !account.namespace.is_empty())
        .map(|account| format!("system:serviceaccount:{}:{}", account.namespace, account.name))
        .collect();
    let who = (list(&spec.users, spec.service_accounts.is_empty(), |value| glob(value, &user.name))
        || accounts.contains(&user.name))
        && list(&spec.user_groups, true, |value| user.groups.iter().any(|group| group == value))
        && list(&spec.user_agents, true, |value| glob(value, attributes.user_agent));
    let what = if info.is_resource_request {
        list(&spec.api_groups, false, |value| value == info.api_group)
            && list(&spec.resources, false, |value| match value.split_once('/') {
                None => info.subresource.is_empty() && value == info.resource,
                Some((_, "")) => false,
                Some((resource, sub)) => info.subresource == sub && (resource == "*" || info.resource == resource),
            })
            && list(&spec.resource_names, true, |value| value == info.name)
            && list(&spec.namespaces, true, |value| glob(value, &info.namespace))
    } else {
        let urls: Vec<String> = spec.non_resource_urls.iter().filter(|url| !url.starts_with('-')).cloned().collect();
        list(&urls, false, |value| glob(value, &info.path))
    };
    list(&spec.verbs, false, |value| value == info.verb) && who && what
}

/// Values of a list: mostly plain, some negative, some `*`.
fn values(known: &'static [&'static str], most: usize) -> impl Generator<Value = Vec<String>> {
    let value = (select(known), 0_u8..20);
    (prop::collection::vec(value, 0..=most), 0_u8..10).prop_map(|(values, kind)| {
        let sign = |value: &str, is_negative: bool| if is_negative { format!("-{value}") } else { value.to_owned() };
        values
            .into_iter()
            .map(
                |(value, odd)| {
                    if odd == 0 { "*".to_owned() } else { sign(value, if odd < 3 { kind % 2 == 0 } else { kind < 4 }) }
                },
            )
            .collect()
    })
}

const VERBS: &[&str] = &["get", "list", "watch", "delete"];
const API_GROUPS: &[&str] = &["", "apps", "batch"];
const RESOURCES: &[&str] =
    &["pods", "pods/log", "nodes", "nodes/status", "*/status", "*/log", "jobs", "pods/*", "pods/"];
const NAMES: &[&str] = &["", "a", "b"];
const USERS: &[&str] = &["alice", "al*", "system:*", "system:serviceaccount:x:y", "bob", "system:node:a"];
const GROUPS: &[&str] = &["system:masters", "system:authenticated", "dev", "ops"];
const URLS: &[&str] = &["/healthz", "/healthz/*", "/metrics", "/a*b", "/h*"];
const NAMESPACES: &[&str] = &["", "team-a", "team-*", "default"];
const AGENTS: &[&str] = &["kubectl/1", "kubectl/*", "curl"];

fn rule_spec() -> impl Generator<Value = RuleSpec> {
    let account = (select(&["x", "z", ""][..]), select(&["y", ""][..]));
    let what = (
        values(VERBS, 3),
        values(API_GROUPS, 3),
        values(RESOURCES, 4),
        values(NAMES, 2),
        values(URLS, 3),
        values(NAMESPACES, 2),
    );
    let who = (values(USERS, 3), prop::collection::vec(account, 0..2), values(GROUPS, 3), values(AGENTS, 2));
    (what, who).prop_map(|(what, who)| RuleSpec {
        verbs: what.0,
        api_groups: what.1,
        resources: what.2,
        resource_names: what.3,
        non_resource_urls: what.4,
        namespaces: what.5,
        users: who.0,
        service_accounts: who
            .1
            .into_iter()
            .map(|(namespace, name)| ServiceAccountSpec { namespace: namespace.into(), name: name.into() })
            .collect(),
        user_groups: who.2,
        user_agents: who.3,
        cidrs: Vec::new(),
    })
}

type Question = (RequestInfo<'static>, User, &'static str);

fn question() -> impl Generator<Value = Question> {
    let info = (
        any::<bool>(),
        select(&["get", "list", "watch", "delete", "patch", ""][..]),
        select(&["", "apps", "batch", "other"][..]),
        select(&["pods", "nodes", "jobs", "services", "*"][..]),
        select(&["", "", "log", "status", "exec", "*"][..]),
        select(&["", "a", "b", "c"][..]),
        select(&["", "team-a", "team-b", "default", "other"][..]),
        select(&["/healthz", "/healthz/etcd", "/metrics", "/a*b", "/api"][..]),
    );
    let names =
        &["alice", "albert", "bob", "carol", "system:node:a", "system:*", "system:serviceaccount:x:y", "al*"][..];
    let who = (
        select(names),
        prop::collection::vec(select(&["system:masters", "system:authenticated", "dev", "ops", "qa"][..]), 0..4),
        select(&["kubectl/1", "kubectl/2", "curl", ""][..]),
    );
    (info, who).prop_map(|(info, who)| {
        let text = Cow::Borrowed;
        let info = RequestInfo {
            is_resource_request: info.0,
            verb: text(info.1),
            api_group: text(info.2),
            resource: text(info.3),
            subresource: text(info.4),
            name: text(info.5),
            namespace: text(info.6),
            path: text(info.7),
            ..RequestInfo::default()
        };
        (info, user(who.0, &who.1), who.2)
    })
}

fn attributes(question: &Question) -> Attributes<'_> {
    let client = std::net::IpAddr::from([127, 0, 0, 1]);
    Attributes { info: &question.0, user: &question.1, user_agent: question.2, client }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn compiled_rules_mean_what_the_lists_say(
        spec in rule_spec(),
        questions in prop::collection::vec(question(), 64),
    ) {
        let documented = Rule::new(spec.clone(), Semantics::Documented).unwrap();
        let of_original = RuleSpec { namespaces: Vec::new(), user_agents: Vec::new(), ..spec.clone() };
        let original = Rule::new(of_original.clone(), Semantics::KubeGateway).unwrap();
        for question in &questions {
            let attributes = attributes(question);
            prop_assert_eq!(documented.matches(&attributes), documented_matches(&spec, &attributes), "{:?}", question);
            prop_assert_eq!(original.matches(&attributes), original_matches(&of_original, &attributes), "{:?}", question);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_text_in_a_rule_or_a_request_makes_it_panic(
        lists in prop::collection::vec(prop::collection::vec("-?[*a/.:]{0,3}\\PC{0,3}\\*?", 0..4), 11),
        method in "[A-Z]{1,6}",
        target in "/\\PC{0,30}",
        name in "\\PC{0,8}",
    ) {
        let mut lists = lists.into_iter();
        let mut next = || lists.next().unwrap();
        let spec = RuleSpec {
            verbs: next(),
            api_groups: next(),
            resources: next(),
            resource_names: next(),
            users: next(),
            service_accounts: Vec::new(),
            user_groups: next(),
            non_resource_urls: next(),
            namespaces: next(),
            user_agents: next(),
            cidrs: Vec::new(),
        };
        let groups = next();
        let Ok(info) = RequestInfo::parse(&method, &target) else { return Ok(()) };
        let user = User { name: name.clone(), groups, ..User::default() };
        let client = std::net::IpAddr::from([127, 0, 0, 1]);
        let attributes = Attributes { info: &info, user: &user, user_agent: &name, client };
        for semantics in [Semantics::Documented, Semantics::KubeGateway] {
            let Ok(rule) = Rule::new(spec.clone(), semantics) else { continue };
            let matches = rule.matches(&attributes);
            // An index is made of many.
            let again = (0..crate::limits::INDEXED_RULES_MIN).map(|_| Rule::new(spec.clone(), semantics).unwrap());
            let set = RuleSet::new(again.collect());
            prop_assert_eq!(set.first_match(&attributes), matches.then_some(0));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_index_finds_what_asking_one_rule_after_another_finds(
        specs in prop::collection::vec((rule_spec(), any::<bool>()), 12..200),
        questions in prop::collection::vec(question(), 64),
    ) {
        let compile = |(spec, is_old): (RuleSpec, bool)| {
            Rule::new(spec, if is_old { Semantics::KubeGateway } else { Semantics::Documented }).unwrap()
        };
        let set = RuleSet::new(specs.into_iter().map(compile).collect());
        for question in &questions {
            let attributes = attributes(question);
            prop_assert_eq!(set.first_match(&attributes), first_match_linear(set.rules(), &attributes), "{:?}", question);
        }
    }
}

#[test]
fn a_policy_is_found_by_its_rule_among_many() {
    // One policy a user, as with hundreds of tenants.
    let policies: Vec<(DispatchPolicy, Vec<Rule>)> = (0..300)
        .map(|place| (policy(place), vec![rule(RuleSpec { users: vec![format!("tenant-{place}")], ..everything() })]))
        .collect();
    let policies = Arc::new(Policies::new(policies));
    let info = request("list", "", "pods");
    for place in [0, 63, 64, 65, 128, 299] {
        let tenant = user(&format!("tenant-{place}"), &["system:authenticated"]);
        let client = "::1".parse().unwrap();
        let decision = policies.decide(&Attributes { info: &info, user: &tenant, user_agent: "", client }).unwrap();
        assert_eq!((decision.policy.place, decision.rule), (place, 0));
    }
}
