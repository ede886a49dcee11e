//! Objects made from the table by a stream of choices. A shorter stream makes a smaller object.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::super::marks::{Mark, NAMESPACE_LABEL};
use super::super::plan::{INWARD, child, mark};
use super::super::schema::{self, Field, Message, Shape, Type};
use super::super::transcode::{SCHEMA, Special};
use super::*;

const DEPTH_MAX: usize = 12;
const TEXTS: &[&str] = &[
    "a",
    "default",
    "kube-system",
    "",
    "x\"y\\z",
    "\u{e9}<&>",
    "system:serviceaccount:a:b",
    "system:serviceaccounts:a",
    "system:masters",
    "v1",
    "Namespace",
    "namespaces",
    "a/b",
    "*",
];

/// What decides. When it is at its end, everything is as small as it can be.
pub(super) struct Choices<'a>(pub(super) &'a [u8]);

impl Choices<'_> {
    pub(super) fn next(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    pub(super) fn below(&mut self, count: usize) -> usize {
        let choice = usize::from(self.next()) | usize::from(self.next()) << 8;
        choice % count.max(1)
    }

    pub(super) fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    pub(super) fn text(&mut self) -> &'static str {
        self.pick(TEXTS)
    }
}

/// All kinds of which a tenant writes objects.
pub(super) fn kinds() -> Vec<Kind> {
    let written = |group: &str, kind: &str| group != "meta.k8s.io" || kind == "DeleteOptions";
    let mut kinds: Vec<Kind> = schema::kinds()
        .filter(|(group, _, kind, _)| written(group, kind))
        .map(|(group, version, kind, _)| Kind::of(group, version, kind).unwrap())
        .collect();
    kinds.extend([Kind::custom(), Kind::custom_of_cluster(), Kind::custom().list()]);
    kinds
}

/// An object of this kind that a tenant may write, without empty maps and lists where KubeZoo adds to one.
pub(super) fn object_of(kind: Kind, choices: &mut Choices<'_>) -> Value {
    let message = schema::find(kind.message()).unwrap();
    let mut object = fields(message, choices, 0, kind);
    let says_its_kind = choices.next() % 2 == 1 && !kind.version().is_empty();
    if says_its_kind {
        let slash = if kind.group().is_empty() { "" } else { "/" };
        object.insert("apiVersion".to_owned(), json!(format!("{}{slash}{}", kind.group(), kind.version())));
        object.insert("kind".to_owned(), json!(kind.name()));
    }
    Value::Object(object)
}

fn fields(message: &'static Message, choices: &mut Choices<'_>, depth: usize, kind: Kind) -> Map<String, Value> {
    let mut object = Map::new();
    for field in message.fields {
        if let ("", Type::Of(name)) = (field.name, field.of) {
            object.extend(fields(schema::find(name).unwrap(), choices, depth + 1, kind));
            continue;
        }
        if matches!(mark(message.name, field.name), Some(Mark::Deny(_) | Mark::Withhold)) {
            continue;
        }
        let has_rule =
            INWARD.find(message.name).is_some_and(|node| INWARD.node(node).by_key(field.name.as_bytes()).is_some());
        let choice = choices.next() % 4;
        let chosen = if has_rule { choice > 0 } else { choice == 1 };
        // An object without metadata comes back with it where KubeZoo has its label there.
        let needed = child(message, field) == Some("meta.v1.ObjectMeta@own");
        if !needed && (!chosen || depth > DEPTH_MAX) {
            continue;
        }
        let value = match field.shape {
            Shape::One => value(message, field, choices, depth, kind),
            Shape::Many => {
                let count = 1 + choices.below(2);
                Value::Array((0..count).map(|_| value(message, field, choices, depth, kind)).collect())
            }
            Shape::Map => map(message, field, choices, depth, kind),
        };
        object.insert(field.name.to_owned(), value);
    }
    object
}

fn map(message: &'static Message, field: &'static Field, choices: &mut Choices<'_>, depth: usize, kind: Kind) -> Value {
    let mut object = Map::new();
    for _ in 0..=choices.below(2) {
        let key = choices.pick(&["app", "namespace", NAMESPACE_LABEL, "x.io/y", "k\"\\\u{e9}", "key"]);
        object.insert(key.to_owned(), value(message, field, choices, depth, kind));
    }
    if field.name == "annotations" && message.name == "meta.v1.ObjectMeta" && depth < 4 {
        match choices.next() % 8 {
            1 => {
                let inner = serde_json::to_string(&object_of(kind.item(), choices)).unwrap();
                object.insert("kubectl.kubernetes.io/last-applied-configuration".to_owned(), json!(inner));
            }
            2 => {
                let metric = schema::find("autoscaling.v1.MetricSpec").unwrap();
                let inner = json!([fields(metric, choices, depth + 1, kind)]).to_string();
                object.insert("autoscaling.alpha.kubernetes.io/metrics".to_owned(), json!(inner));
            }
            _ => {}
        }
    }
    Value::Object(object)
}

fn value(
    message: &'static Message,
    field: &'static Field,
    choices: &mut Choices<'_>,
    depth: usize,
    kind: Kind,
) -> Value {
    match field.of {
        Type::Text => json!(match field.name {
            "kind" => choices.pick(&["Namespace", "Pod", "User", "Group", "ServiceAccount", "ClusterRole", "Role", ""]),
            "apiVersion" => choices.pick(&["v1", "apps/v1", "x.io/v1", ""]),
            "apiGroup" | "group" => choices.pick(&["", "apps", "x.io"]),
            "resource" => choices.pick(&["namespaces", "pods"]),
            "key" => choices.pick(&[NAMESPACE_LABEL, "app"]),
            "type" => choices.pick(&["kubernetes.io/tls", "Opaque"]),
            // An empty one of what an event is about comes back as none.
            "namespace" | "fieldPath" if message.name == "core.v1.ObjectReference" => choices.pick(&["a", "default"]),
            // So does an empty one of these.
            "audience" => choices.pick(&["vault", "https://x/y"]),
            "fieldPath" => choices.pick(&["metadata.namespace", "metadata.name", "metadata.labels['a']"]),
            _ => choices.pick(TEXTS),
        }),
        Type::Bytes => json!(STANDARD.encode(choices.text())),
        Type::Bool => json!(choices.next() % 2 == 1),
        Type::Int => json!(i64::from(choices.next()) - 100),
        Type::Double => json!(f64::from(choices.next()) + 0.5),
        Type::Of(name) => inner(message, field, name, choices, depth, kind),
    }
}

fn inner(
    message: &'static Message,
    field: &'static Field,
    name: &'static str,
    choices: &mut Choices<'_>,
    depth: usize,
    kind: Kind,
) -> Value {
    match Special::of(name) {
        Some(Special::Time) => json!("2026-11-22T10:11:12Z"),
        Some(Special::MicroTime) => json!("2026-11-22T10:11:12.000123Z"),
        Some(Special::Duration) => json!("1h2m3.5s"),
        Some(Special::Quantity) => json!("100m"),
        Some(Special::IntOrString) => choices.pick(&[json!(8080), json!("50%")]),
        Some(Special::Raw) => match mark(message.name, field.name) {
            Some(Mark::Json(inner)) => Value::Object(fields(schema::find(inner).unwrap(), choices, depth + 1, kind)),
            _ => json!({"namespace": choices.text(), "f:metadata": {"f:labels": {"f:app": {}}}}),
        },
        Some(Special::SchemaOrBool) => json!(choices.next() % 2 == 1),
        Some(Special::SchemaOrStrings | Special::SchemaOrSchemas) => {
            Value::Object(fields(schema::find(SCHEMA).unwrap(), choices, depth + 1, kind))
        }
        None => {
            let inner = schema::find(name).unwrap();
            if inner.bare {
                return json!([choices.text()]);
            }
            Value::Object(fields(inner, choices, depth + 1, kind))
        }
    }
}
