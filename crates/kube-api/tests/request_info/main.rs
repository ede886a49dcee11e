//! What a request is for and how a failure is told, compared with Kubernetes' own code: the program in
//! `tests/go/requestinfo`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod generate;

use std::io::{BufRead as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use kubewharf_kube_api::request_info::Error;
use kubewharf_kube_api::{RequestInfo, Status};
use kubewharf_testkit::go_program;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

/// How many requests are made up.
const REQUESTS: usize = 8_000;
/// How many failures of each code, and how many refused requests.
const FAILURES: usize = 200;

static ORACLE: LazyLock<PathBuf> =
    LazyLock::new(|| go_program::build("requestinfo", &mut |line| eprintln!("{line}")).unwrap());

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

/// Our answer, in the oracle's form.
fn our_answer(method: &str, target: &str) -> Value {
    let info = match RequestInfo::parse(method, target) {
        Ok(info) => info,
        Err(error) => {
            return json!({ "error": if matches!(error, Error::NoResource { .. }) { "request info" } else { "url" } });
        }
    };
    let parts: Vec<&str> = info.parts.iter().collect();
    json!({
        "info": {
            "IsResourceRequest": info.is_resource_request,
            "Path": info.path,
            "Verb": info.verb,
            "APIPrefix": info.api_prefix,
            "APIGroup": info.api_group,
            "APIVersion": info.api_version,
            "Namespace": info.namespace,
            "Resource": info.resource,
            "Subresource": info.subresource,
            "Name": info.name,
            "Parts": if parts.is_empty() { Value::Null } else { json!(parts) },
            "FieldSelector": info.field_selector,
            "LabelSelector": info.label_selector,
        },
        "longRunning": info.is_long_running(),
    })
}

/// What Go says when it refuses a target for that reason.
fn text_by_go(error: &Error) -> &'static [&'static str] {
    match error {
        Error::NotAPath => &["invalid URI for request", "empty url"],
        Error::ControlCharacter { .. } => &["invalid control character in URL"],
        Error::BadEscape { .. } => &["invalid URL escape"],
        Error::NoResource { .. } => &["unable to determine kind and namespace from url"],
    }
}

#[test]
fn every_request_is_for_what_kubernetes_says_it_is_for() {
    let mut requests = generate::by_hand();
    let by_hand = requests.len();
    requests.extend(made_up(&generate::request(), REQUESTS));
    let questions: Vec<Value> =
        requests.iter().map(|(method, target)| json!({ "Request": { "Method": method, "Target": target } })).collect();
    let mut refused = 0;
    let mut named_by_selector = 0;
    for (number, ((method, target), mut answer)) in requests.iter().zip(ask(&questions)).enumerate() {
        let is_made_up = usize::from(number >= by_hand);
        let text = answer["errorText"].as_str().unwrap_or_default().to_owned();
        let fields = answer.as_object_mut().unwrap();
        fields.remove("errorText");
        if fields.contains_key("error") {
            fields.remove("longRunning");
        }
        assert_eq!(our_answer(method, target), answer, "{method} {target:?} {text}");
        match RequestInfo::parse(method, target) {
            Err(error) => {
                refused += is_made_up;
                assert!(
                    text_by_go(&error).iter().any(|said| text.contains(said)),
                    "{method} {target:?}: {error}, {text}"
                );
            }
            Ok(info) => {
                let is_list = matches!(&*info.verb, "list" | "watch") && !target.contains("/watch");
                named_by_selector += if is_list && !info.name.is_empty() { is_made_up } else { 0 };
            }
        }
    }
    // Guards against made-up requests that all end at the first check.
    assert!(refused > REQUESTS / 100 && refused < REQUESTS / 4, "{refused}");
    assert!(named_by_selector > REQUESTS / 100, "{named_by_selector}");
}

#[test]
fn every_failure_is_told_as_kubernetes_tells_it() {
    let texts = made_up(&(any::<String>(), prop_oneof![Just(0), 1..100_000_u32]), FAILURES);
    let mut failures = Vec::new();
    for (text, seconds) in &texts {
        failures.extend(
            [
                Status::bad_request(text.clone()),
                Status::unauthorized(),
                Status::forbidden(text),
                Status::not_found(text.clone()),
                Status::request_entity_too_large(text),
                Status::misdirected(text.clone()),
                Status::too_many_requests(text.clone(), *seconds),
                Status::internal_error(text.clone()),
                Status::bad_gateway(text.clone()),
                Status::service_unavailable(text.clone()),
                Status::gateway_timeout(text, *seconds),
            ]
            .map(|status| (status, text, seconds)),
        );
    }
    let questions: Vec<Value> = failures
        .iter()
        .map(|(status, text, seconds)| {
            json!({ "Failure": { "Code": status.code, "Message": text, "RetryAfterSeconds": seconds } })
        })
        .collect();
    for ((status, ..), answer) in failures.iter().zip(ask(&questions)) {
        assert_eq!(String::from_utf8(status.to_json()).unwrap(), answer["body"].as_str().unwrap());
    }
}

#[test]
fn every_refusal_is_told_as_by_the_authorizer() {
    let mut refusals = made_up(&(generate::user(), generate::request(), any::<String>()), 4 * FAILURES);
    // Where we replace a byte, Kubernetes' message still has it; and Go may know fewer characters of Unicode than Rust.
    refusals.retain(|(_, (method, target), _)| {
        RequestInfo::parse(method, target).is_ok_and(|info| format!("{info:?}").is_ascii())
    });
    assert!(refusals.len() > FAILURES);
    let questions: Vec<Value> = refusals
        .iter()
        .map(|(user, (method, target), why)| {
            json!({ "Forbidden": { "User": user, "Method": method, "Target": target, "Why": why } })
        })
        .collect();
    for ((user, (method, target), why), answer) in refusals.iter().zip(ask(&questions)) {
        let info = RequestInfo::parse(method, target).unwrap();
        let body = String::from_utf8(Status::forbidden_request(user, &info, why).to_json()).unwrap();
        assert_eq!(body, answer["body"].as_str().unwrap(), "{user:?} {method} {target:?} {why:?}");
    }
}
