//! Reads what is posted as a review.
//!
//! Invariant: what Go would take for a field that is not there is not there.

use kubewharf_kube_api::{Status, json};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Kind;

/// How much of a body that can't be read is told.
const SUMMARY_BYTES: usize = 30;

/// The object in the body, without fields that are null.
pub(super) fn object(kind: Kind, body: &[u8]) -> Result<Value, Status> {
    let unrecognized = |why: &str| {
        let kind = kind.name();
        let summary = summary(body);
        Status::bad_request(format!("the object provided is unrecognized (must be of type {kind}): {why} ({summary})"))
    };
    let no_kind = |why: &str| unrecognized(&format!("couldn't get version/kind; json parse error: {why}"));
    let mut object: Value = serde_json::from_slice(body).map_err(|error| {
        no_kind(&if error.is_eof() { "unexpected end of JSON input".to_owned() } else { error.to_string() })
    })?;
    drop_nulls(&mut object);
    if object.is_null() {
        object = Value::Object(Map::new());
    }
    if !object.is_object() {
        return Err(no_kind(&format!(
            r#"json: cannot unmarshal {} into Go value of type struct {{ APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }}"#,
            type_name(&object)
        )));
    }
    let text = |name: &str| match object.get(name) {
        None => Ok(""),
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(other) => {
            let found = type_name(other);
            Err(no_kind(&format!("json: cannot unmarshal {found} into Go struct field .{name} of type string")))
        }
    };
    let (found_kind, found_version) = (text("kind")?, text("apiVersion")?);
    if found_version.matches('/').count() > 1 {
        return Err(unrecognized(&format!("unexpected GroupVersion string: {found_version}")));
    }
    let found_kind = if found_kind.is_empty() { kind.name() } else { found_kind };
    let expected = kind.api_version();
    let found_version = if found_version.is_empty() { expected } else { found_version };
    if found_kind == kind.name() && found_version == expected {
        return Ok(object);
    }
    let (found_group, version) = found_version.split_once('/').unwrap_or(("", found_version));
    let is_ours = found_group == kind.group() && Kind::ALL.iter().any(|kind| kind.name() == found_kind);
    if is_ours && version == "v1beta1" && found_kind == kind.name() {
        return Err(Status::bad_request(format!(
            "the API version in the data ({found_version}) does not match the expected API version ({expected})"
        )));
    }
    let why = if is_ours && !matches!(version, "v1" | "v1beta1") {
        format!(
            r#"no kind "{found_kind}" is registered for version "{found_version}" in scheme "pkg/runtime/scheme.go:111""#
        )
    } else {
        let (package, kind) = (kind.group().split('.').next().unwrap_or_default(), kind.name());
        format!("converting ({version}.{found_kind}) to ({package}.{kind}): unknown conversion")
    };
    Err(cannot_be_handled(kind, found_kind, version, &why))
}

/// What the object says it asks for. A field that the kind does not have is not looked at.
pub(super) fn spec<'a, Spec: Default + Deserialize<'a>>(kind: Kind, object: &'a Value) -> Result<Spec, Status> {
    part(kind, object, "spec")
}

/// The answer that it brings along, which counts for nothing, but must be readable.
pub(super) fn status<'a, S: Default + Deserialize<'a>>(kind: Kind, object: &'a Value) -> Result<S, Status> {
    part(kind, object, "status")
}

fn part<'a, T: Default + Deserialize<'a>>(kind: Kind, object: &'a Value, name: &str) -> Result<T, Status> {
    let Some(part) = object.get(name) else { return Ok(T::default()) };
    T::deserialize(part)
        .map_err(|error| cannot_be_handled(kind, kind.name(), "v1", &format!("json: cannot unmarshal {name}: {error}")))
}

fn cannot_be_handled(kind: Kind, found_kind: &str, version: &str, why: &str) -> Status {
    let kind = kind.name();
    Status::bad_request(format!(r#"{found_kind} in version "{version}" cannot be handled as a {kind}: {why}"#))
}

fn summary(body: &[u8]) -> String {
    let (shown, more) = if body.len() > SUMMARY_BYTES { (&body[..SUMMARY_BYTES], " ...") } else { (body, "") };
    match body.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => String::from_utf8_lossy(shown).into_owned() + more,
        Some(_) => shown.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + more,
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => fields.retain(|_, field| {
            drop_nulls(field);
            !field.is_null()
        }),
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// The metadata of a review: all that a client can set, in Kubernetes' order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Metadata {
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    generate_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    resource_version: String,
    #[serde(skip_serializing_if = "is_zero")]
    generation: i64,
    #[serde(skip_serializing_if = "Map::is_empty")]
    labels: Map<String, Value>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    annotations: Map<String, Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    owner_references: Vec<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    finalizers: Vec<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

impl Metadata {
    pub(super) fn read(object: &Value, kind: Kind) -> Result<Self, Status> {
        part(kind, object, "metadata")
    }

    /// Puts the object into the namespace of the path, or into none if the path has none.
    pub(super) fn take_namespace_of(&mut self, path: &str) -> Result<(), Status> {
        if !self.namespace.is_empty() && !path.is_empty() && self.namespace != path {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        path.clone_into(&mut self.namespace);
        Ok(())
    }

    /// Whether the client has set anything but the namespace.
    pub(super) fn is_set(&self) -> bool {
        *self != Self { namespace: self.namespace.clone(), ..Self::default() }
    }

    /// What a client owns by setting it, but for sets; names are nobody's.
    pub(super) fn owned(&self) -> Map<String, Value> {
        let mut owned = Map::new();
        if !self.generate_name.is_empty() {
            owned.insert("generateName".to_owned(), Value::String(self.generate_name.clone()));
        }
        for (name, pairs) in [("labels", &self.labels), ("annotations", &self.annotations)] {
            if !pairs.is_empty() {
                owned.insert(name.to_owned(), Value::Object(pairs.clone()));
            }
        }
        owned
    }

    /// The sets that a client owns members of, and how a path names the members.
    pub(super) fn owned_members(&self) -> [(&'static str, Vec<String>); 2] {
        let uid =
            |owner: &Value| json::to_string(&serde_json::json!({ "uid": owner["uid"].as_str().unwrap_or_default() }));
        [
            (
                "finalizers",
                self.finalizers.iter().map(|finalizer| format!("v:{}", json::to_string(finalizer))).collect(),
            ),
            ("ownerReferences", self.owner_references.iter().map(|owner| format!("k:{}", uid(owner))).collect()),
        ]
    }
}
