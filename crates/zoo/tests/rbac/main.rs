//! Who may do what in a tenant, compared with Kubernetes' own code: the program in `tests/go/rbac`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod generate;

use std::collections::BTreeMap;
use std::io::{BufRead as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use kubewharf_kube_api::{RequestInfo, Status};
use kubewharf_testkit::go_program;
use kubewharf_zoo::authz::defaults::{Shown, names, to_json};
use kubewharf_zoo::authz::impersonation::Wanted;
use kubewharf_zoo::authz::roles::{Kind, Object};
use kubewharf_zoo::authz::{Attributes, Policy, UserInfo, authorize, escalation};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

/// How many clusters are made up for each question.
const CLUSTERS: usize = 300;
/// How many requests are decided in each.
const REQUESTS: usize = 60;

static ORACLE: LazyLock<PathBuf> =
    LazyLock::new(|| go_program::build("rbac", &mut |line| eprintln!("{line}")).unwrap());

/// The answers of Kubernetes' code to these questions.
fn ask(questions: &[Value]) -> Vec<Value> {
    let oracle: &Path = &ORACLE;
    let mut child = Command::new(oracle)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", oracle.display()));
    let mut input = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            for question in questions {
                writeln!(input, "{question}").unwrap();
            }
        });
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{}", output.status);
    let answers: Vec<Value> = output.stdout.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    assert_eq!(answers.len(), questions.len());
    answers
}

/// The same values each time.
fn made_up<T: std::fmt::Debug>(strategy: &impl Strategy<Value = T>, count: usize) -> Vec<T> {
    let mut runner = TestRunner::deterministic();
    (0..count).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect()
}

fn kind_of(object: &Value) -> Kind {
    Kind::ALL.into_iter().find(|kind| object["kind"] == kind.name()).unwrap()
}

/// Our policy for these objects, and what Kubernetes has to be told so that its own is the same: all objects, the
/// defaults too, in their names' order, and with the rules that are collected.
fn policies(objects: &[Value]) -> (Policy, Value) {
    let read = |object: &Value| Object::from_json(kind_of(object), object.to_string().as_bytes(), "").unwrap();
    let policy = Policy::of(objects.iter().map(read));
    let bound = names(&Policy::default(), Kind::ClusterRoleBinding);
    let mut all: BTreeMap<(&str, String, String), Value> = BTreeMap::new();
    for kind in Kind::ALL {
        for (namespace, name) in names(&policy, kind) {
            // Many cluster roles are large, and neither bound nor named by what is made up.
            if kind == Kind::ClusterRole && name != "view" && !bound.contains(&("", name)) {
                continue;
            }
            let shown = to_json(&policy, kind, namespace, name, Shown::default()).unwrap();
            let shown = serde_json::from_slice(&shown).unwrap();
            all.insert((kind.name(), namespace.to_owned(), name.to_owned()), shown);
        }
    }
    for object in objects {
        let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
        let mut object = object.clone();
        if object["kind"] == "ClusterRole" {
            object["rules"] = json!(policy.cluster_role_rules(&text("name")).unwrap().to_vec());
        }
        all.insert((kind_of(&object).name(), text("namespace"), text("name")), object);
    }
    let of_kind = |kind: Kind| -> Vec<&Value> {
        all.iter().filter(|((found, ..), _)| *found == kind.name()).map(|(_, object)| object).collect()
    };
    let told = json!({
        "Roles": of_kind(Kind::Role),
        "ClusterRoles": of_kind(Kind::ClusterRole),
        "RoleBindings": of_kind(Kind::RoleBinding),
        "ClusterRoleBindings": of_kind(Kind::ClusterRoleBinding),
    });
    (policy, told)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Our user for one of Kubernetes'.
fn user_info(user: &Value) -> UserInfo {
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().map(|item| text(item).to_owned()).collect()
    };
    UserInfo {
        username: text(&user["Name"]).to_owned(),
        uid: text(&user["UID"]).to_owned(),
        groups: texts(&user["Groups"]),
        extra: user["Extra"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, values)| (key.clone(), texts(values)))
            .collect(),
    }
}

fn our_attributes(asked: &Value) -> Attributes<'_> {
    Attributes {
        is_resource_request: asked["ResourceRequest"] == true,
        verb: text(&asked["Verb"]),
        api_group: text(&asked["APIGroup"]),
        resource: text(&asked["Resource"]),
        subresource: text(&asked["Subresource"]),
        name: text(&asked["Name"]),
        namespace: text(&asked["Namespace"]),
        path: text(&asked["Path"]),
    }
}

#[test]
fn every_decision_and_its_reason_are_those_of_kubernetes() {
    let requests = prop::collection::vec(generate::attributes(), REQUESTS);
    let asked = made_up(&(generate::cluster(), generate::user(), requests), CLUSTERS);
    let mut policies: Vec<_> = asked.iter().map(|(objects, ..)| policies(objects)).collect();
    let questions: Vec<Value> = policies
        .iter_mut()
        .zip(&asked)
        .map(|((_, told), (_, user, requests))| json!({ "Policy": told.take(), "User": user, "Attributes": requests }))
        .collect();
    let (mut allowed, mut unresolved) = (0, 0);
    for (((policy, _), (objects, user, requests)), answer) in policies.iter().zip(&asked).zip(ask(&questions)) {
        for (request, expected) in requests.iter().zip(answer["decisions"].as_array().unwrap()) {
            let decision = authorize(policy, &user_info(user), &our_attributes(request));
            let ours = json!({ "allowed": decision.allowed, "reason": decision.reason.to_string() });
            assert_eq!(ours, *expected, "{user} {request} {objects:?}");
            allowed += usize::from(decision.allowed);
            unresolved += usize::from(!decision.allowed && !text(&expected["reason"]).is_empty());
        }
    }
    // Guards against clusters in which nothing is decided.
    let all = CLUSTERS * REQUESTS;
    assert!(allowed > all / 10 && allowed < all / 2, "{allowed} of {all}");
    assert!(unresolved > all / 20, "{unresolved} of {all}");
}

#[test]
fn everybody_has_the_rules_that_kubernetes_tells() {
    let namespace = proptest::sample::select(vec!["", "a", "b", "kube-system"]);
    let asked = made_up(&(generate::cluster(), generate::user(), namespace), CLUSTERS);
    let mut policies: Vec<_> = asked.iter().map(|(objects, ..)| policies(objects)).collect();
    let questions: Vec<Value> = policies
        .iter_mut()
        .zip(&asked)
        .map(|((_, told), (_, user, namespace))| json!({ "Policy": told.take(), "User": user, "RulesIn": namespace }))
        .collect();
    for (((policy, _), (objects, user, namespace)), answer) in policies.iter().zip(&asked).zip(ask(&questions)) {
        let (rules, errors) = policy.rules_for(&user_info(user), namespace);
        let expected = answer["rules"].as_array().cloned().unwrap_or_default();
        assert_eq!(json!(rules), json!(expected), "{user} {namespace:?} {objects:?}");
        let mut texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let expected = text(&answer["error"]);
        texts.dedup();
        assert!(texts.iter().all(|text| expected.contains(text)), "{texts:?} {expected}");
        assert_eq!(texts.is_empty(), expected.is_empty());
    }
}

#[test]
fn nobody_grants_what_kubernetes_would_not_let_them() {
    let rules = prop::collection::vec(generate::rule(), 0..4);
    let namespace = proptest::sample::select(vec!["", "a", "b"]);
    let asked = made_up(&(generate::cluster(), generate::user(), namespace, rules), 4 * CLUSTERS);
    let mut policies: Vec<_> = asked.iter().map(|(objects, ..)| policies(objects)).collect();
    let resource = |namespace: &str| if namespace.is_empty() { "clusterroles" } else { "roles" };
    let questions: Vec<Value> = policies
        .iter_mut()
        .zip(&asked)
        .map(|((_, told), (_, user, namespace, rules))| {
            let escalation = json!({ "Namespace": namespace, "Resource": resource(namespace), "Rules": rules });
            json!({ "Policy": told.take(), "User": user, "Escalation": escalation })
        })
        .collect();
    let mut refused = 0;
    for (((policy, _), (objects, user, namespace, rules)), answer) in policies.iter().zip(&asked).zip(ask(&questions)) {
        let user = user_info(user);
        let local = if namespace.is_empty() { String::new() } else { format!("namespaces/{namespace}/") };
        let target = format!("/apis/rbac.authorization.k8s.io/v1/{local}{}", resource(namespace));
        let request = RequestInfo::parse("POST", &target).unwrap();
        // Who may escalate is not asked whether the rules are covered.
        let escalate = Attributes { verb: "escalate", ..Attributes::of_request(&request) };
        if authorize(policy, &user, &escalate).allowed {
            continue;
        }
        let body = json!({ "metadata": { "name": "n" }, "rules": rules }).to_string();
        let ours = escalation::check(policy, &user, &request, body.as_bytes(), None);
        let ours = ours.map_or_else(|status: Status| status.message.into_owned(), |()| String::new());
        let expected = text(&answer["error"]);
        let expected = if expected.is_empty() {
            String::new()
        } else {
            refused += 1;
            format!("{}.rbac.authorization.k8s.io \"n\" is forbidden: {expected}", resource(namespace))
        };
        assert_eq!(ours, expected, "{user:?} {namespace:?} {rules:?} {objects:?}");
    }
    assert!(refused > CLUSTERS && refused < 4 * CLUSTERS, "{refused}");
}

#[test]
fn everybody_is_treated_as_whom_kubernetes_lets_them_impersonate() {
    const TARGETS: [&str; 3] = ["/api/v1/namespaces/a/pods/x", "/api/v1/pods/x", "/version"];
    let target = proptest::sample::select(TARGETS.to_vec());
    let asked =
        made_up(&(generate::impersonating_cluster(), generate::user(), target, generate::headers()), 4 * CLUSTERS);
    let mut policies: Vec<_> = asked.iter().map(|(objects, ..)| policies(objects)).collect();
    let questions: Vec<Value> = policies
        .iter_mut()
        .zip(&asked)
        .map(|((_, told), (_, user, target, headers))| {
            let impersonation = json!({ "Method": "GET", "Target": target, "Headers": headers });
            json!({ "Policy": told.take(), "User": user, "Impersonation": impersonation })
        })
        .collect();
    let (mut impersonated, mut refused) = (0, 0);
    for (((policy, _), (objects, user, target, headers)), answer) in policies.iter().zip(&asked).zip(ask(&questions)) {
        let user = user_info(user);
        let info = RequestInfo::parse("GET", target).unwrap();
        let pairs = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        let ours = Wanted::from_headers(pairs).and_then(|wanted| match wanted {
            Some(wanted) => wanted.decide(policy, &user, &info).map(Some),
            None => Ok(None),
        });
        let context = format!("{user:?} {target} {headers:?} {objects:?}");
        match ours {
            Ok(effective) => {
                let is_impersonated = effective.is_some();
                impersonated +=
                    usize::from(is_impersonated && !user.groups.iter().any(|group| group == "system:masters"));
                assert!(!answer["user"].is_null(), "{answer} {context}");
                assert_eq!(effective.unwrap_or(user), user_info(&answer["user"]), "{context}");
            }
            Err(status) => {
                refused += usize::from(status.code == 403);
                assert_eq!(status.code, answer["code"], "{answer} {context}");
                assert_eq!(String::from_utf8(status.to_json()).unwrap(), text(&answer["body"]), "{context}");
            }
        }
    }
    assert!(impersonated > CLUSTERS / 4, "{impersonated}");
    assert!(refused > CLUSTERS, "{refused}");
}

#[test]
fn every_tenant_has_the_roles_that_kubernetes_makes() {
    let answer = ask(&[json!({ "Defaults": true })]).remove(0);
    let bare = Policy::default();
    for kind in Kind::ALL {
        let expected = answer["defaults"][format!("{}s", kind.name())].as_array().unwrap();
        assert_eq!(names(&bare, kind).len(), expected.len());
        for expected in expected {
            let mut expected = expected.clone();
            let metadata = &expected["metadata"];
            let (namespace, name) = (text(&metadata["namespace"]), text(&metadata["name"]));
            let shown = to_json(&bare, kind, namespace, name, Shown::default()).unwrap();
            let mut shown: Value = serde_json::from_slice(&shown).unwrap();
            for key in ["kind", "apiVersion"] {
                shown.as_object_mut().unwrap().remove(key);
            }
            if !shown["aggregationRule"].is_null() {
                // The controller has not collected them yet.
                assert!(expected["rules"].is_null() && !shown["rules"].as_array().unwrap().is_empty());
                shown["rules"] = expected["rules"].take();
                expected["rules"] = Value::Null;
            }
            assert_eq!(shown, expected);
        }
    }
}
