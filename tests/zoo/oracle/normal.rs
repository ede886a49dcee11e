//! What must differ between two clusters is taken out of what they answer: ids, times, addresses, generated names.
//!
//! Invariant: nothing else is taken out. Ids are numbered in their order of appearance, so that an answer that mixes two
//! of them up still differs.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::{Captures, Regex};
use serde_json::{Deserializer, Value};

/// Signs that Kubernetes makes names from; no vowels, so that they make no words.
const GENERATED: &str = "[bcdfghjklmnpqrstvwxz2456789]";

struct Rules {
    /// Each is replaced wherever it is.
    everywhere: Vec<(Regex, &'static str)>,
    uid: Regex,
    blanks: Regex,
    trailing: Regex,
}

static RULES: LazyLock<Rules> = LazyLock::new(|| {
    let rule = |pattern: &str, instead| (Regex::new(pattern).unwrap(), instead);
    let everywhere = vec![
        // What kubectl logs of a watch that ended within its first second, which is a matter of time.
        rule(r"(?m)^I\d{4} \S+ +\d+ reflector\.go:\d+\] .*\n?", ""),
        // Certificates, as they are, in JSON, and in base64.
        rule(r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s\\]*?-----END CERTIFICATE-----(\\n|\n)?", "<certificate>"),
        rule(r"LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0t[A-Za-z0-9+/=]*", "<certificate>"),
        rule(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", "<token>"),
        rule(r"ca\.crt:\s+\d+ bytes", "ca.crt: <certificate>"),
        rule(r"\bX509SHA256=[0-9a-f]{64}\b", "X509SHA256=<certificate>"),
        rule(r#"("(kid|x|y)": )"[A-Za-z0-9_-]{43}""#, "$1<key>"),
        // Addresses of the servers: the loopback network, and what they tell others.
        rule(r"\b(127\.\d{1,3}\.\d{1,3}\.\d{1,3}|192\.0\.2\.1)\b", "<host>"),
        // Times: RFC 3339, and those that kubectl prints.
        rule(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[ ]?[+-]\d\d:?\d\d( \w+)?)", "<time>"),
        rule(r"\b[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d [+-]\d{4}", "<time>"),
        rule(r#"(?m)(^|\s|\(|")(\d+[dhms]){1,2}(\s|$|\)|;|")"#, "$1<age>$3"),
        // Revisions of the store.
        rule(r#"(resource[vV]ersion\\*"?: ?\\*"?)\d{1,15}\b"#, "$1<rv>"),
        rule(r"(resource version:? )\d+( \(\d+\))?", "$1<rv>"),
        rule(r"(resourceVersion=)\d+", "$1<rv>"),
        rule(r"(resourceVersion:\s+|Resource Version:\s+)\d+", "$1<rv>"),
        rule(r"(ResourceVersion in record )\(\d+\)", "$1(<rv>)"),
        rule(r#"("?continue"?: ?"?)[A-Za-z0-9_-]{20,}={0,2}"#, "$1<continue>"),
        // Addresses of services and ports of nodes.
        rule(r"\b10\.0\.0\.(1?\d?\d|2[0-4]\d|25[0-5])\b", "<ip>"),
        rule(r"(NodePort:\s*\S*\s+|:|nodePort: |nodePort\x22: )3[0-2]\d{3}\b", "$1<port>"),
        // Names.
        rule(r"\b(LIVE|MERGED|kubectl-edit)-\d+", "$1-<generated>"),
        rule(&format!(r"-{GENERATED}{{5}}(\W|_|$)"), "-<generated>$1"),
        rule(r"\.[0-9a-f]{16}\b", ".<event>"),
    ];
    Rules {
        everywhere,
        uid: Regex::new(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b").unwrap(),
        blanks: Regex::new(r"(?m)(\S)[ \t]{2,}").unwrap(),
        trailing: Regex::new(r"(?m)[ \t]+$").unwrap(),
    }
});

/// An answer of the server at `server` as any server could have given it.
pub(super) fn normalise(text: &str, server: &str) -> String {
    let port = server.rsplit_once(':').map_or(server, |(_, port)| port);
    let mut text = json(text).unwrap_or_else(|| text.to_owned());
    text = text.replace(server, "https://<host>:<port>").replace(port, "<port>");
    let mut uids = HashMap::new();
    text = RULES
        .uid
        .replace_all(&text, |found: &Captures<'_>| {
            let next = uids.len() + 1;
            format!("<uid {}>", uids.entry(found[0].to_owned()).or_insert(next))
        })
        .into_owned();
    for (pattern, instead) in &RULES.everywhere {
        text = pattern.replace_all(&text, *instead).into_owned();
    }
    text = RULES.blanks.replace_all(&text, "$1  ").into_owned();
    RULES.trailing.replace_all(&text, "").into_owned()
}

/// The lines in order.
pub(super) fn sorted(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// JSON, one value or several behind each other, with its keys in order; none if it is something else.
fn json(text: &str) -> Option<String> {
    if !text.trim_start().starts_with(['{', '[']) {
        return None;
    }
    let mut whole = String::new();
    for value in Deserializer::from_str(text).into_iter::<Value>() {
        let mut value = value.ok()?;
        order(&mut value);
        whole.push_str(&serde_json::to_string_pretty(&value).ok()?);
        whole.push('\n');
    }
    Some(whole)
}

/// Orders what is ordered by time: the entries of `managedFields`.
fn order(value: &mut Value) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(order),
        Value::Object(fields) => {
            if let Some(Value::Array(entries)) = fields.get_mut("managedFields") {
                let key = |entry: &Value| {
                    ["manager", "operation", "subresource", "apiVersion"].map(|field| entry[field].to_string())
                };
                entries.sort_by_key(key);
            }
            fields.values_mut().for_each(order);
        }
        _ => {}
    }
}

/// What two clusters say alike, and what they don't.
pub(super) fn self_test() {
    let alike = |one: &str, other: &str| {
        assert_eq!(normalise(one, "https://127.0.0.1:6443"), normalise(other, "https://127.9.9.9:12345"));
    };
    alike("NAME   AGE\na      3s\n", "NAME   AGE\na      1m20s\n");
    alike("web-7d4b9c-x2x4z   0/1", "web-7d4b9c-bcdfg   0/1");
    alike(
        "resourceVersion: \"12\"\nuid: 6f0a0d8c-58ab-4f7b-9f20-1c2d3e4f5a6b",
        "resourceVersion: \"7\"\nuid: 0f0a0d8c-58ab-4f7b-9f20-1c2d3e4f5a6b",
    );
    alike("dial https://127.0.0.1:6443/api at 127.0.0.1", "dial https://127.9.9.9:12345/api at 127.9.9.9");
    alike(r#"{"b":1,"a":"2026-11-26T15:00:00Z"}"#, r#"{"a":"2026-11-26T16:00:01Z","b":1}"#);
    alike("80:30123/TCP  10.0.0.17", "80:31999/TCP  10.0.0.201");
    let differ = |one: &str, other: &str| {
        assert_ne!(normalise(one, "https://127.0.0.1:6443"), normalise(other, "https://127.9.9.9:12345"));
    };
    let (a, b) = ("6f0a0d8c-58ab-4f7b-9f20-1c2d3e4f5a6b", "0f0a0d8c-58ab-4f7b-9f20-1c2d3e4f5a6b");
    differ(&format!("{a} {b} {a}"), &format!("{a} {b} {b}"));
    differ("kz7d4b9cx2x4-default", "default");
    differ("replicas: 3", "replicas: 4");
    differ("{\"a\": null}", "{}");
}
