//! Whether an object upstream is the tenant's alone: by the same rules, but with a tree and without any of the walks.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value, json};

use super::super::marks::{ADDITIONS, Addition, Entry, Mark, RESERVED, Slot, WHOLES, When, Whole, is_own_kind};
use super::super::plan::{child, lookup, mark};
use super::super::schema::{self, Message, Shape};
use super::super::value::Op;
use super::super::walk::EMBEDDED_MAX;
use super::*;
use crate::pods::{AUDIENCE_START, NAMESPACE_ANNOTATION, audience_outward, path_of};

/// What is wrong with an object that goes upstream.
pub(super) fn offences(kind: Kind, object: &Value, created: bool) -> Vec<String> {
    offences_at(kind, object, created, 0)
}

fn offences_at(kind: Kind, object: &Value, created: bool, embedded: u8) -> Vec<String> {
    let mut oracle = Oracle { offences: Vec::new(), created, embedded };
    oracle.message(kind.message(), object, "");
    oracle.offences
}

struct Oracle {
    offences: Vec<String>,
    created: bool,
    /// Strings around the object.
    embedded: u8,
}

impl Oracle {
    fn offence(&mut self, path: &str, what: impl fmt::Display) {
        self.offences.push(format!("{path}: {what}"));
    }

    fn message(&mut self, name: &'static str, value: &Value, path: &str) {
        let message = schema::find(name).unwrap();
        let Some(object) = value.as_object() else { return };
        self.fields(message, name, object, path);
    }

    fn fields(&mut self, message: &'static Message, name: &'static str, object: &Map<String, Value>, path: &str) {
        for field in message.fields {
            let variant = child(message, field);
            if let ("", Some(inner)) = (field.name, variant) {
                self.fields(schema::find(inner).unwrap(), inner, object, path);
                continue;
            }
            let path = format!("{path}/{}", field.name);
            let addition = ADDITIONS.iter().find(|row| (row.0, row.1) == (name, field.name)).map(|row| row.2);
            let own_metadata = (variant == Some("meta.v1.ObjectMeta@own")).then_some(Addition::Metadata);
            let value = object.get(field.name).unwrap_or(&Value::Null);
            if let Some(addition) = addition.or(own_metadata)
                && !has(addition, value)
            {
                self.offence(&path, "KubeZoo's term is missing");
            }
            if value.is_null() {
                continue;
            }
            let values: Vec<&Value> = match (field.shape, value) {
                (Shape::Many, Value::Array(elements)) => elements.iter().collect(),
                (Shape::Map, Value::Object(entries)) => entries.values().collect(),
                (Shape::One, value) => vec![value],
                _ => continue,
            };
            match mark(name, field.name) {
                Some(Mark::As(variant)) => values.iter().for_each(|value| self.message(variant, value, &path)),
                Some(Mark::Json(inner)) => self.message(inner, value, &path),
                Some(Mark::Value(op)) => values.iter().for_each(|value| self.text(op, value, &path)),
                Some(Mark::Domains) => {
                    if values.iter().any(|value| value.as_str().is_some_and(|text| text.starts_with(RESERVED))) {
                        self.offence(&path, "reserved");
                    }
                }
                Some(Mark::Entries(entries)) => {
                    for (key, value) in value.as_object().into_iter().flatten() {
                        let own = entries.labelled && key == TENANT_LABEL;
                        if !entries.refused.is_empty() && key.starts_with(RESERVED) && !own {
                            self.offence(&path, format!("{key} is reserved"));
                        }
                        match entries.values.iter().find(|(name, _)| name == key) {
                            Some((_, Entry::Value(op))) => self.text(*op, value, &path),
                            Some((_, Entry::Object)) => self.embedded(value, &path),
                            _ => {}
                        }
                    }
                }
                Some(Mark::Deny(deny)) => {
                    let empty = [json!(""), json!([]), json!({})].contains(value);
                    if !empty && (deny.when == When::Always || self.created) {
                        self.offence(&path, deny.reason);
                    }
                }
                Some(Mark::Keep | Mark::Slot(_) | Mark::Withhold | Mark::Object | Mark::Cell) => {}
                None => {
                    if let Some(variant) = variant {
                        values.iter().for_each(|value| self.message(variant, value, &path));
                    }
                }
            }
        }
        if let Some(whole) = lookup(WHOLES.iter().copied(), name) {
            self.whole(whole, message, object, path);
        }
    }

    fn text(&mut self, op: Op, value: &Value, path: &str) {
        let Some(text) = value.as_str() else { return };
        let after = |start: &str| text.strip_prefix(start).is_some_and(|rest| rest.starts_with(NAMES.prefix()));
        let good = match op {
            Op::Text => true,
            Op::Name | Op::Own => after(""),
            Op::User => after("") || after("system:serviceaccount:"),
            Op::Group => after("") || after("system:serviceaccounts:"),
            Op::Audience => !text.starts_with(AUDIENCE_START) || audience_outward(NAMES.uid(), text).is_some(),
            Op::FieldPath => !text.contains(RESERVED) || text == path_of(NAMESPACE_ANNOTATION),
        };
        if !good && !text.is_empty() {
            self.offence(path, format!("{text:?} is not the tenant's"));
        }
    }

    fn embedded(&mut self, value: &Value, path: &str) {
        let Some(inner) = value.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok()) else { return };
        let text = |field: &str| inner[field].as_str().unwrap_or_default();
        let (group, version) = text("apiVersion").split_once('/').unwrap_or(("", text("apiVersion")));
        if let Some(kind) = Kind::of(group, version, text("kind"))
            && self.embedded < EMBEDDED_MAX
        {
            // A denied field is denied around it.
            let inner = offences_at(kind, &inner, false, self.embedded + 1);
            self.offences.extend(inner.into_iter().map(|offence| format!("{path}: {offence}")));
        }
    }

    fn whole(&mut self, whole: Whole, message: &Message, object: &Map<String, Value>, path: &str) {
        let text = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default();
        let name = object.get("name").unwrap_or(&Value::Null);
        match whole {
            Whole::Reference { .. } | Whole::About | Whole::Owner => {
                let versioned = matches!(whole, Whole::Reference { versioned: true } | Whole::About | Whole::Owner);
                let slot = |slot: Slot| {
                    let is_slot =
                        |field: &str| matches!(mark(message.name, field), Some(Mark::Slot(found)) if found == slot);
                    message.fields.iter().find(|field| is_slot(field.name)).map_or("", |field| text(field.name))
                };
                let group = Some(slot(Slot::Group)).filter(|group| !group.is_empty());
                let group = group
                    .map(|group| if versioned { group.split_once('/').map_or("", |(group, _)| group) } else { group });
                let kind = slot(Slot::Kind);
                if is_own_kind(group, kind) {
                    self.text(Op::Name, name, path);
                }
            }
            Whole::Subject | Whole::RoleRef => match text("kind") {
                "User" => self.text(Op::User, name, path),
                "Group" => self.text(Op::Group, name, path),
                "ClusterRole" => self.text(Op::Name, name, path),
                _ => {}
            },
            Whole::Requirement { of_namespaces } => {
                let key = text("key");
                if key.starts_with(RESERVED) && !(of_namespaces && key == TENANT_LABEL) {
                    self.offence(path, "reserved");
                }
                if of_namespaces && key == "kubernetes.io/metadata.name" {
                    for value in object.get("values").and_then(Value::as_array).into_iter().flatten() {
                        self.text(Op::Name, value, path);
                    }
                }
            }
            Whole::Secret | Whole::Details | Whole::Nothing => {}
        }
    }
}

/// Whether KubeZoo's addition is in a value.
fn has(addition: Addition, value: &Value) -> bool {
    match addition {
        Addition::Label => value[TENANT_LABEL] == json!(NAMES.uid()),
        Addition::Metadata => value["labels"][TENANT_LABEL] == json!(NAMES.uid()),
        Addition::Requirement => {
            let term = json!({"key": TENANT_LABEL, "operator": "In", "values": [NAMES.uid()]});
            value.as_array().is_some_and(|elements| elements.contains(&term))
        }
        // Only in pods: there it is a matter of managed fields, and in all of them the apiserver sees to it.
        Addition::Audience => true,
    }
}

/// A tree of JSON as Go's decoder makes it: what is given twice is put together.
pub(super) struct Merged(pub(super) Value);

impl<'de> Deserialize<'de> for Merged {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MergedVisitor).map(Self)
    }
}

struct MergedVisitor;

impl<'de> Visitor<'de> for MergedVisitor {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(json!(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(json!(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(json!(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(json!(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(json!(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut elements = Vec::new();
        while let Some(Merged(element)) = access.next_element()? {
            elements.push(element);
        }
        Ok(Value::Array(elements))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((key, Merged(value))) = access.next_entry::<String, Merged>()? {
            merge(object.entry(key).or_insert(Value::Null), value);
        }
        Ok(Value::Object(object))
    }
}

fn merge(into: &mut Value, value: Value) {
    match (into, value) {
        (Value::Object(into), Value::Object(value)) => {
            for (key, value) in value {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        // An element keeps what was in its place before.
        (Value::Array(into), Value::Array(value)) => {
            into.truncate(value.len());
            for (index, value) in value.into_iter().enumerate() {
                match into.get_mut(index) {
                    Some(place) => merge(place, value),
                    None => into.push(value),
                }
            }
        }
        // A missing string, number or truth leaves what there was.
        (Value::String(_) | Value::Number(_) | Value::Bool(_), Value::Null) => {}
        (into, value) => *into = value,
    }
}
