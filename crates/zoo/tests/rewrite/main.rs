//! Kubernetes' own examples of every kind, in JSON and in protobuf, as oracle. All fields are set in them.
//!
//! The examples lie in the Go module `k8s.io/api`, which is there once the tools for the tests are built.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use kubewharf_zoo::names::Names;
use kubewharf_zoo::rewrite::{Direction, Encoding, Kind, RewriteError, Write, object, to_json, to_protobuf};
use serde_json::Value;

struct Example {
    name: String,
    kind: Kind,
    json: Vec<u8>,
    protobuf: Vec<u8>,
}

/// The examples of the kinds that there are tables for.
fn examples() -> Vec<Example> {
    let module = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/tools/kubernetes");
    let arguments = ["list", "-m", "-f", "{{.Dir}}", "k8s.io/api"];
    let output = Command::new("go").args(arguments).current_dir(module).output().unwrap();
    let module = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
    let folder = module.join("testdata/HEAD");
    let mut examples = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let Some(name) = path.file_name().unwrap().to_str().unwrap().strip_suffix(".json") else { continue };
        let json = fs::read(&path).unwrap();
        let tree: Value = serde_json::from_slice(&json).unwrap();
        let text = |field: &str| tree[field].as_str().unwrap_or_default();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let Some(kind) = Kind::of(group, version, kind) else { continue };
        let protobuf = fs::read(path.with_extension("pb")).unwrap();
        examples.push(Example { name: name.to_owned(), kind, json, protobuf });
    }
    assert!(examples.len() > 80, "only {} examples", examples.len());
    examples
}

fn tree(json: &[u8]) -> Value {
    serde_json::from_slice(json).unwrap()
}

/// A tree without what says nothing: Kubernetes writes some of it, and reads it as nothing.
fn without_nothing(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let kept = members.iter().map(|(key, value)| (key.clone(), without_nothing(value)));
            Value::Object(kept.filter(|(_, value)| !matches!(value, Value::Null)).collect())
        }
        Value::Array(elements) => Value::Array(elements.iter().map(without_nothing).collect()),
        other => other.clone(),
    }
}

#[test]
fn protobuf_becomes_the_same_json_and_json_the_same_protobuf() {
    for Example { name, kind, json, protobuf } in examples() {
        let decoded = to_json(kind, &protobuf).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (decoded, expected) = (without_nothing(&tree(&decoded)), without_nothing(&tree(&json)));
        assert_eq!(decoded, expected, "{name}");
        let encoded = to_protobuf(kind, &json).unwrap_or_else(|error| panic!("{name}: {error}"));
        let again = to_json(kind, &encoded).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(without_nothing(&tree(&again)), expected, "{name}");
    }
}

/// Rewrites a body; what a tenant may not write at all is taken out first.
fn rewritten(
    encoding: Encoding,
    kind: Kind,
    direction: Direction,
    names: &Names,
    input: &[u8],
) -> Result<Vec<u8>, RewriteError> {
    let mut output = Vec::new();
    object(encoding, kind, direction, names, input, &mut output)?;
    Ok(output)
}

/// Removes what is at a path as in `spec.template.spec.nodeName`; elements of arrays are `[0]`.
fn remove(value: &mut Value, path: &str) {
    let path = path.replace('[', ".").replace(']', "");
    let (parents, last) = path.rsplit_once('.').unwrap_or(("", &path));
    let pointer: String = parents.split('.').filter(|part| !part.is_empty()).map(|part| format!("/{part}")).collect();
    let parent = value.pointer_mut(&pointer).unwrap();
    parent.as_object_mut().unwrap().remove(last).unwrap();
}

#[test]
fn both_encodings_are_rewritten_alike_and_come_back() {
    let names = Names::of_uid("6f0a0d8c-58ab-4f7b-9f20-1c2d3e4f5a6b");
    let inward = Direction::Inward(Write::Create);
    for Example { name, kind, json, .. } in examples() {
        let mut json = json;
        // Every field is set, so those too that a tenant may not write.
        let inward_json = loop {
            match rewritten(Encoding::Json, kind, inward, &names, &json) {
                Ok(output) => break output,
                Err(RewriteError::Refused(refusal)) => {
                    let mut smaller = tree(&json);
                    remove(&mut smaller, &refusal.field);
                    json = serde_json::to_vec(&smaller).unwrap();
                }
                Err(error) => panic!("{name}: {error}"),
            }
        };
        let protobuf = to_protobuf(kind, &json).unwrap();
        let inward_protobuf = rewritten(Encoding::Protobuf, kind, inward, &names, &protobuf)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let decoded = to_json(kind, &inward_protobuf).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(without_nothing(&tree(&decoded)), without_nothing(&tree(&inward_json)), "{name} inward");

        let outward = |encoding, input: &[u8]| {
            rewritten(encoding, kind, Direction::Outward, &names, input)
                .unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        let outward_json = outward(Encoding::Json, &inward_json);
        let outward_protobuf = outward(Encoding::Protobuf, &inward_protobuf);
        let decoded = to_json(kind, &outward_protobuf).unwrap();
        assert_eq!(without_nothing(&tree(&decoded)), without_nothing(&tree(&outward_json)), "{name} outward");
        assert!(memchr::memmem::find(&outward_json, names.prefix().as_bytes()).is_none(), "{name}");
        assert!(memchr::memmem::find(&outward_protobuf, names.prefix().as_bytes()).is_none(), "{name}");

        // Only what is withheld is missing.
        let mut expected = tree(&json);
        for withheld in ["/status/hostIP", "/status/hostIPs", "/status/addresses"] {
            let (parent, field) = withheld.rsplit_once('/').unwrap();
            if matches!(kind.name(), "Pod" | "PodStatusResult" | "Node")
                && let Some(parent) = expected.pointer_mut(parent)
            {
                parent.as_object_mut().unwrap().remove(field);
            }
        }
        assert_eq!(without_nothing(&tree(&outward_json)), without_nothing(&expected), "{name}");
    }
}
