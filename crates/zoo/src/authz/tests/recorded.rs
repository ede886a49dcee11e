//! What a kube-apiserver 1.36.3 with `--authorization-mode=RBAC` answered, byte by byte: to reviews, to requests that
//! impersonate, and to writes of roles and bindings. Its users, by a file of tokens, are [`requester`]'s; the time is a
//! fixed one in the records. Where its answer depends on what it was asked before, or on controllers that did not run,
//! nothing was recorded.

use kubewharf_kube_api::{RequestInfo, Status};
use serde::Deserialize;
use serde_json::Value;

use super::object;
use crate::authz::impersonation::Wanted;
use crate::authz::review::{Kind, Question, answer};
use crate::authz::{Attributes, Policy, UserInfo, authorize, escalation};

const NOW: &str = "2026-01-02T03:04:05Z";

fn records<T: for<'a> Deserialize<'a>>(lines: &str) -> Vec<T> {
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn tenant() -> Policy {
    let objects: Vec<Value> = records(include_str!("recorded/objects.jsonl"));
    Policy::of(objects.iter().map(object))
}

fn requester(who: &str) -> UserInfo {
    let (name, uid, groups): (_, _, &[&str]) = match who {
        "root" => ("root-user", "uid-root", &["system:masters"]),
        "jane" => ("jane", "uid-jane", &["dev"]),
        "ada" => ("<ada>", "uid-ada", &["ops & co"]),
        "ann" | "ben" | "eve" | "gco" => (who, &*format!("uid-{who}"), &["writers"]),
        _ => (who, &*format!("uid-{who}"), &[]),
    };
    UserInfo {
        username: name.to_owned(),
        uid: uid.to_owned(),
        groups: groups.iter().chain(&["system:authenticated"]).map(|&group| group.to_owned()).collect(),
        extra: Vec::new(),
    }
}

fn bytes_of(result: Result<Vec<u8>, Status>) -> (u16, String) {
    let (code, body) = match result {
        Ok(body) => (201, body),
        Err(status) => (status.code, status.to_json()),
    };
    (code, String::from_utf8(body).unwrap())
}

#[test]
fn reviews_are_answered_as_recorded() {
    #[derive(Deserialize)]
    struct Record {
        who: String,
        resource: String,
        namespace: String,
        body: String,
        code: u16,
        answer: String,
    }
    let tenant = tenant();
    for record in records::<Record>(include_str!("recorded/reviews.jsonl")) {
        let Record { who, resource, namespace, body, code, answer: expected } = record;
        let group = if resource == "selfsubjectreviews" { "authentication.k8s.io" } else { "authorization.k8s.io" };
        let local = if namespace.is_empty() { String::new() } else { format!("namespaces/{namespace}/") };
        let path = format!("/apis/{group}/v1/{local}{resource}");
        let kind = Kind::of_request(&RequestInfo::parse("POST", &path).unwrap()).unwrap();
        let question = Question {
            kind,
            namespace: &namespace,
            body: body.as_bytes(),
            field_manager: "",
            user_agent: "review-test/1.0 (x)",
            now: NOW,
        };
        let (our_code, our_answer) = bytes_of(answer(&tenant, &requester(&who), &question));
        assert_eq!(our_code, code, "{who} {path} {body}: {expected} {our_answer}");
        if kind == Kind::SelfSubjectRulesReview && code == 201 {
            // A kube-apiserver has bindings in no order.
            assert_eq!(sorted(&our_answer), sorted(&expected), "{who} {path} {body}");
        } else if expected.contains("couldn't get version/kind; json parse error: invalid character") {
            assert!(our_answer.contains("couldn't get version/kind; json parse error: "), "{our_answer}");
        } else {
            assert_eq!(our_answer, expected, "{who} {path} {body}");
        }
    }
}

/// An object with its lists in order.
fn sorted(json: &str) -> Value {
    fn sort(value: &mut Value) {
        match value {
            Value::Array(items) => {
                items.iter_mut().for_each(sort);
                items.sort_by_key(Value::to_string);
            }
            Value::Object(fields) => fields.values_mut().for_each(sort),
            _ => {}
        }
    }
    let mut value = serde_json::from_str(json).unwrap();
    sort(&mut value);
    value
}

#[test]
fn who_impersonates_is_treated_as_recorded() {
    #[derive(Deserialize)]
    struct Record {
        who: String,
        headers: Vec<(String, String)>,
        code: u16,
        answer: String,
    }
    let tenant = tenant();
    let info = RequestInfo::parse("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews").unwrap();
    let question = Question {
        kind: Kind::SelfSubjectReview,
        namespace: "",
        body: b"{}",
        field_manager: "",
        user_agent: "",
        now: NOW,
    };
    // All of what was recorded: the filter, then the authorizer, then the review.
    let serve = |who: &str, headers: &[(String, String)]| {
        let user = requester(who);
        let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        let user = match Wanted::from_headers(headers)? {
            Some(wanted) => wanted.decide(&tenant, &user, &info)?,
            None => user,
        };
        let decision = authorize(&tenant, &user, &Attributes::of_request(&info));
        if !decision.allowed {
            return Err(Status::forbidden_request(&user.username, &info, &decision.reason.to_string()));
        }
        answer(&tenant, &user, &question)
    };
    for Record { who, headers, code, answer } in records::<Record>(include_str!("recorded/impersonation.jsonl")) {
        let ours = bytes_of(serve(&who, &headers));
        assert_eq!(ours, (code, answer), "{who} {headers:?}");
    }
}

#[test]
fn roles_and_bindings_are_written_as_recorded() {
    #[derive(Deserialize)]
    struct Record {
        who: String,
        method: String,
        path: String,
        new: Value,
        old: Option<Value>,
        code: u16,
        answer: String,
    }
    let tenant = tenant();
    for Record { who, method, path, new, old, code, answer } in
        records::<Record>(include_str!("recorded/escalation.jsonl"))
    {
        let path = format!("/apis/rbac.authorization.k8s.io/v1/{path}");
        let info = RequestInfo::parse(&method, &path).unwrap();
        let (json, old) = (new.to_string(), old.map(|old| old.to_string()));
        let ours =
            escalation::check(&tenant, &requester(&who), &info, json.as_bytes(), old.as_deref().map(str::as_bytes));
        let ours = ours.map_or_else(|status| String::from_utf8(status.to_json()).unwrap(), |()| String::new());
        assert_eq!(ours, answer, "{code} {who} {method} {path} {json}");
    }
}
