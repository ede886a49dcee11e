//! Properties of objects made at random, and of bodies that are none.
//!
//! `PROPTEST_CASES` makes them run longer.

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::transcode::{to_json, to_protobuf};
use super::generate::{Choices, kinds, object_of};
use super::oracle::{Merged, offences};
use super::*;

fn bytes(encoding: Encoding, kind: Kind, direction: Direction, input: &[u8]) -> Result<Vec<u8>, RewriteError> {
    let mut output = Vec::new();
    object(encoding, kind, direction, &NAMES, input, &mut output)?;
    Ok(output)
}

fn tree(json: &[u8]) -> Value {
    serde_json::from_slice(json).unwrap()
}

fn tells_the_prefix(bytes: &[u8]) -> bool {
    memchr::memmem::find(bytes, NAMES.prefix().as_bytes()).is_some()
        || memchr::memmem::find(bytes, NAMES.uid().as_bytes()).is_some()
}

/// The kind that a body says it is of, where this one was expected.
fn said_kind(expected: Kind, object: &Value) -> Option<Kind> {
    let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
    TypeMeta { api_version: text("apiVersion"), kind: text("kind") }.resolve(expected).ok()
}

fn a_kind() -> impl Strategy<Value = Kind> {
    proptest::sample::select(kinds())
}

/// A kind of which there are objects, and not only lists.
fn an_objects_kind() -> impl Strategy<Value = Kind> {
    let objects: Vec<Kind> = kinds().into_iter().filter(|kind| kind.item() == *kind).collect();
    proptest::sample::select(objects)
}

fn choices() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..4000)
}

/// Writes JSON in which some members are given twice, so that only a decoder that puts them together sees all of an object.
fn write_split(value: &Value, json: &mut Vec<u8>, choices: &mut Choices<'_>) {
    match value {
        Value::Object(members) => {
            json.push(b'{');
            for (key, value) in members {
                let parts: Vec<Value> = match value {
                    Value::Object(inner) if choices.next() % 8 == 1 => {
                        let (one, other) = inner.clone().into_iter().partition(|_| choices.next() % 2 == 1);
                        vec![Value::Object(one), Value::Object(other)]
                    }
                    Value::String(_) if choices.next() % 16 == 1 => vec![json!(choices.text()), value.clone()],
                    _ => vec![value.clone()],
                };
                for part in parts {
                    if json.last() != Some(&b'{') {
                        json.push(b',');
                    }
                    json.extend_from_slice(json!(key).to_string().as_bytes());
                    json.push(b':');
                    write_split(&part, json, choices);
                }
            }
            json.push(b'}');
        }
        Value::Array(elements) => {
            json.push(b'[');
            for (index, element) in elements.iter().enumerate() {
                if index > 0 {
                    json.push(b',');
                }
                write_split(element, json, choices);
            }
            json.push(b']');
        }
        scalar => json.extend_from_slice(scalar.to_string().as_bytes()),
    }
}

/// Changes a text in a way that is often still JSON.
fn mutate(text: &mut Vec<u8>, choices: &mut Choices<'_>) {
    const SNIPPETS: &[&str] = &[
        r#""namespace":"kube-system","#,
        r#""name":"kube-system","#,
        r#""kind":"Namespace","#,
        r#""metadata":{"name":"victim"},"#,
        r#""metadata":null,"#,
        r#""labels":null,"#,
        r#""labels":{},"#,
        r#""subjects":[{"name":"g"}],"#,
        r#""namespaceSelector":{},"#,
        r#""matchExpressions":[],"#,
        r#""\u006eamespace":"victim","#,
        r#""n\u0061me":"victim","#,
        r#""KIND":"Pod","#,
        ",",
        "{",
        "}",
        "[",
        "]",
        "\"",
        "\\",
        "null",
        "\u{0}",
        " ",
        "true",
        r#""apiVersion":"x.io/v1","#,
        r#""tenancy.kubewharf.io/tenant":"x","#,
    ];
    for _ in 0..choices.below(4) {
        let at = choices.below(text.len() + 1);
        // Most places behind an opening bracket take a member.
        let open = text[at..].iter().position(|byte| *byte == b'{').map_or(at, |found| at + found + 1);
        match choices.next() % 6 {
            0 | 1 => {
                let snippet = choices.pick(SNIPPETS).bytes();
                text.splice(open..open, snippet);
            }
            2 => {
                let snippet = choices.pick(SNIPPETS).bytes();
                text.splice(at..at, snippet);
            }
            3 => {
                let end = (at + choices.below(40)).min(text.len());
                text.drain(at..end);
            }
            4 => {
                let end = (at + choices.below(80)).min(text.len());
                let copied = text[at..end].to_vec();
                let to = choices.below(text.len() + 1);
                text.splice(to..to, copied);
            }
            _ => {
                if let Some(byte) = text.get_mut(at) {
                    *byte = choices.next();
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_object_comes_back_and_is_the_tenants_alone_upstream(kind in a_kind(), choices in choices()) {
        let object = object_of(kind, &mut Choices(&choices));
        let json = serde_json::to_vec(&object).unwrap();
        let inward = bytes(Encoding::Json, kind, CREATE, &json).unwrap();
        prop_assert_eq!(offences(kind, &tree(&inward), true), Vec::<String>::new());
        let outward = bytes(Encoding::Json, kind, Direction::Outward, &inward).unwrap();
        prop_assert_eq!(tree(&outward), object);
        prop_assert!(!tells_the_prefix(&outward));

        // The wire knows no difference between missing and null or zero, so both are compared after it.
        if kind.has_protobuf() {
            let protobuf = to_protobuf(kind, &json).unwrap();
            let inward_protobuf = bytes(Encoding::Protobuf, kind, CREATE, &protobuf).unwrap();
            let expected = to_json(kind, &to_protobuf(kind, &inward).unwrap()).unwrap();
            prop_assert_eq!(tree(&to_json(kind, &inward_protobuf).unwrap()), tree(&expected));
            let outward = bytes(Encoding::Protobuf, kind, Direction::Outward, &inward_protobuf).unwrap();
            prop_assert_eq!(outward, protobuf);
        }
    }

    #[test]
    fn no_mutation_carries_a_foreign_name_upstream(kind in a_kind(), seed in choices(), mutation in vec(any::<u8>(), 0..400)) {
        let object = object_of(kind, &mut Choices(&seed));
        let mut mutation = Choices(&mutation);
        let mut json = Vec::new();
        write_split(&object, &mut json, &mut mutation);
        mutate(&mut json, &mut mutation);
        if let Ok(inward) = bytes(Encoding::Json, kind, CREATE, &json)
            && let Ok(Merged(upstream)) = serde_json::from_slice::<Merged>(&inward)
            && let Some(kind) = said_kind(kind, &upstream)
        {
            prop_assert_eq!(offences(kind, &upstream, true), Vec::<String>::new());
        }
        let _ = bytes(Encoding::Json, kind, Direction::Outward, &json);
    }

    #[test]
    fn no_mutation_of_protobuf_carries_a_foreign_name_upstream(
        kind in a_kind(),
        seed in choices(),
        mutation in vec((any::<u16>(), any::<u8>()), 0..4),
    ) {
        if !kind.has_protobuf() {
            return Ok(());
        }
        let object = object_of(kind, &mut Choices(&seed));
        let mut protobuf = to_protobuf(kind, &serde_json::to_vec(&object).unwrap()).unwrap();
        for (at, byte) in mutation {
            let at = usize::from(at) % protobuf.len();
            protobuf[at] = byte;
        }
        if let Ok(inward) = bytes(Encoding::Protobuf, kind, CREATE, &protobuf)
            && let Ok(json) = to_json(kind, &inward)
            && let Some(kind) = said_kind(kind, &tree(&json))
        {
            prop_assert_eq!(offences(kind, &tree(&json), true), Vec::<String>::new());
        }
        let _ = bytes(Encoding::Protobuf, kind, Direction::Outward, &protobuf);
    }

    #[test]
    fn no_bytes_make_it_panic(kind in a_kind(), input in vec(any::<u8>(), 0..200), start in 0usize..6) {
        let starts: [&[u8]; 6] = [b"", b"{", b"k8s\0", b"[{\"op\":", b"{\"metadata\":", b"k8s\0\x0a\x09\x0a\x02v1\x12\x03Pod\x12"];
        let input = [starts[start], &input].concat();
        for encoding in [Encoding::Json, Encoding::Protobuf] {
            for direction in [CREATE, UPDATE, Direction::Outward] {
                let _ = bytes(encoding, kind, direction, &input);
            }
            let _ = (type_of(encoding, &input), watch_event(encoding, kind, &NAMES, &input, &mut Vec::new()));
        }
        for patch_kind in [PatchKind::Json, PatchKind::Merge, PatchKind::Strategic, PatchKind::Apply] {
            let _ = patch(patch_kind, kind, &NAMES, &input, &mut Vec::new());
        }
        let _ = (to_json(kind, &input), to_protobuf(kind, &input));
    }

    #[test]
    fn a_merge_patch_leaves_an_object_that_is_the_tenants_alone(kind in an_objects_kind(), seed in choices(), other in choices(), nulls in vec(any::<u8>(), 0..40), strategic in any::<bool>()) {
        let upstream = tree(&bytes(Encoding::Json, kind, CREATE, &serde_json::to_vec(&object_of(kind, &mut Choices(&seed))).unwrap()).unwrap());
        let mut merge = object_of(kind, &mut Choices(&other));
        thin(&mut merge, &mut Choices(&nulls));
        let patch_kind = if strategic { PatchKind::Strategic } else { PatchKind::Merge };
        let mut output = Vec::new();
        if patch(patch_kind, kind, &NAMES, &serde_json::to_vec(&merge).unwrap(), &mut output).is_ok() {
            let mut merged = upstream;
            let fixed = fixed(kind, &merged);
            apply_merge(&mut merged, &tree(&output));
            // kube-apiserver does not let it be changed.
            if fixed != self::fixed(kind, &merged) {
 return Ok(());
}
            prop_assert_eq!(offences(kind, &merged, false), Vec::<String>::new(), "{}", String::from_utf8_lossy(&output));
            let outward = bytes(Encoding::Json, kind, Direction::Outward, &serde_json::to_vec(&merged).unwrap());
            prop_assert!(!outward.is_ok_and(|outward| tells_the_prefix(&outward)), "{}", String::from_utf8_lossy(&output));
        }
    }

    #[test]
    fn a_json_patch_leaves_an_object_that_is_the_tenants_alone(kind in an_objects_kind(), seed in choices(), operations in vec(vec(any::<u8>(), 30), 1..5)) {
        let object = object_of(kind, &mut Choices(&seed));
        let mut merged = tree(&bytes(Encoding::Json, kind, CREATE, &serde_json::to_vec(&object).unwrap()).unwrap());
        let fixed = fixed(kind, &merged);
        let mut places = Vec::new();
        collect_places(&object, String::new(), &mut places);
        let operations: Vec<Value> = operations.iter().map(|choices| operation(&object, &places, &mut Choices(choices))).collect();
        let mut output = Vec::new();
        if patch(PatchKind::Json, kind, &NAMES, &serde_json::to_vec(&operations).unwrap(), &mut output).is_ok()
            && tree(&output).as_array().unwrap().iter().try_for_each(|operation| apply_operation(&mut merged, operation)).is_some()
        {
            if fixed != self::fixed(kind, &merged) {
 return Ok(());
}
            prop_assert_eq!(offences(kind, &merged, false), Vec::<String>::new(), "{}", String::from_utf8_lossy(&output));
            let outward = bytes(Encoding::Json, kind, Direction::Outward, &serde_json::to_vec(&merged).unwrap());
            prop_assert!(!outward.is_ok_and(|outward| tells_the_prefix(&outward)), "{}", String::from_utf8_lossy(&output));
        }
    }
}

/// What kube-apiserver lets no patch change.
fn fixed(kind: Kind, object: &Value) -> [Value; 3] {
    let secret_type = if kind.name() == "Secret" { object["type"].clone() } else { Value::Null };
    [object["kind"].clone(), object["apiVersion"].clone(), secret_type]
}

/// Takes members away, or makes them null.
fn thin(value: &mut Value, choices: &mut Choices<'_>) {
    match value {
        Value::Object(members) => {
            let keys: Vec<String> = members.keys().cloned().collect();
            for key in keys {
                match choices.next() % 8 {
                    1 => drop(members.remove(&key)),
                    2 => drop(members.insert(key, Value::Null)),
                    _ => thin(&mut members[&key], choices),
                }
            }
        }
        Value::Array(elements) => elements.iter_mut().for_each(|element| thin(element, choices)),
        _ => {}
    }
}

/// RFC 7386.
fn apply_merge(into: &mut Value, patch: &Value) {
    let Value::Object(members) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    let into = into.as_object_mut().unwrap();
    for (key, value) in members {
        if value.is_null() {
            into.remove(key);
        } else {
            apply_merge(into.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

fn collect_places(value: &Value, path: String, places: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                let key = key.replace('~', "~0").replace('/', "~1");
                collect_places(value, format!("{path}/{key}"), places);
            }
        }
        Value::Array(elements) => {
            for (index, value) in elements.iter().enumerate() {
                collect_places(value, format!("{path}/{index}"), places);
            }
            places.push(format!("{path}/-"));
        }
        _ => {}
    }
    places.push(path);
}

fn operation(object: &Value, places: &[String], choices: &mut Choices<'_>) -> Value {
    let op = choices.pick(&["add", "replace", "remove", "move", "copy", "test"]);
    let mut path = choices.pick(places);
    if choices.next() % 4 == 1 {
        path.push_str(choices.pick(&[
            "/x",
            "/name",
            "/kind",
            "/namespace",
            "/labels",
            "/matchExpressions",
            "/0",
            "/-",
        ]));
    }
    let value = match choices.next() % 4 {
        0 => object.pointer(&choices.pick(places)).cloned().unwrap_or_default(),
        1 => json!(choices.text()),
        2 => choices.pick(&[
            json!({}),
            json!([]),
            json!({"name": "a", "kind": "Namespace"}),
            json!({"namespaceSelector": {}}),
        ]),
        _ => object.pointer(&path).cloned().unwrap_or_default(),
    };
    json!({"op": op, "path": path, "from": choices.pick(places), "value": value})
}

/// RFC 6902. None if it can't be done.
fn apply_operation(object: &mut Value, operation: &Value) -> Option<()> {
    let text = |field: &str| operation[field].as_str().unwrap().to_owned();
    match operation["op"].as_str().unwrap() {
        "test" => (object.pointer(&text("path")) == Some(&operation["value"])).then_some(()),
        "add" => put(object, &text("path"), operation["value"].clone(), false),
        "replace" => put(object, &text("path"), operation["value"].clone(), true),
        "remove" => take(object, &text("path")).map(|_| ()),
        "copy" => {
            let value = object.pointer(&text("from"))?.clone();
            put(object, &text("path"), value, false)
        }
        _ => {
            let value = take(object, &text("from"))?;
            put(object, &text("path"), value, false)
        }
    }
}

fn put(object: &mut Value, path: &str, value: Value, replace: bool) -> Option<()> {
    let Some((parent, token)) = path.rsplit_once('/') else {
        *object = value;
        return Some(());
    };
    let token = token.replace("~1", "/").replace("~0", "~");
    match object.pointer_mut(parent)? {
        Value::Object(members) if replace => *members.get_mut(&token)? = value,
        Value::Object(members) => drop(members.insert(token, value)),
        Value::Array(elements) if replace => *elements.get_mut(token.parse::<usize>().ok()?)? = value,
        Value::Array(elements) => {
            let index = if token == "-" { elements.len() } else { token.parse().ok()? };
            if index > elements.len() {
                return None;
            }
            elements.insert(index, value);
        }
        _ => return None,
    }
    Some(())
}

fn take(object: &mut Value, path: &str) -> Option<Value> {
    let (parent, token) = path.rsplit_once('/')?;
    match object.pointer_mut(parent)? {
        Value::Object(members) => members.remove(&token.replace("~1", "/").replace("~0", "~")),
        Value::Array(elements) => {
            let index = token.parse::<usize>().ok().filter(|index| *index < elements.len())?;
            Some(elements.remove(index))
        }
        _ => None,
    }
}
