//! The forms in which a client wants objects: as they are, as a table, or their metadata alone.
//!
//! Invariant: pure. What a table's columns are, the apiserver behind has said.

use serde_json::{Value, json};

use crate::authz::roles::Kind;

/// How a client wants an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// The objects.
    Whole,
    /// Rows of a table, with this version of its kind.
    Table(&'static str),
    /// Their metadata, with this version of its kind.
    Partial(&'static str),
}

/// What is in the rows' objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Include {
    Metadata,
    Object,
    None,
}

impl Form {
    /// What the client wants first of what can be had; none if nothing of what it accepts can be.
    pub(crate) fn of_accept(accept: &str) -> Option<Self> {
        accept.split(',').find_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            if !matches!(parts.next()?, "application/json" | "*/*" | "application/*") {
                return None;
            }
            let (mut form, mut version) = ("", "v1");
            for part in parts {
                match part.split_once('=') {
                    Some(("as", value)) => form = value,
                    Some(("v", "v1beta1")) => version = "v1beta1",
                    Some(("v", "v1")) => version = "v1",
                    _ => {}
                }
            }
            match form {
                "" => Some(Self::Whole),
                "Table" => Some(Self::Table(version)),
                "PartialObjectMetadata" | "PartialObjectMetadataList" => Some(Self::Partial(version)),
                _ => None,
            }
        })
    }
}

/// An object's metadata alone.
pub(crate) fn partial(object: &Value, version: &str) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": object.get("metadata").cloned().unwrap_or_default(),
    })
}

/// A table of these objects.
pub(crate) fn table(
    kind: Kind,
    columns: Option<&Value>,
    objects: &[Value],
    meta: &Value,
    version: &str,
    include: Include,
    now: u64,
) -> Value {
    let rows: Vec<Value> = objects.iter().map(|object| row(kind, object, version, include, now)).collect();
    let mut table = json!({
        "kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": meta,
        "columnDefinitions": columns.cloned().unwrap_or(Value::Array(Vec::new())), "rows": rows,
    });
    if columns.is_none() {
        table["columnDefinitions"] = Value::Null;
    }
    table
}

fn row(kind: Kind, object: &Value, version: &str, include: Include, now: u64) -> Value {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let name = text("/metadata/name");
    let created = text("/metadata/creationTimestamp");
    let cells = match kind {
        Kind::Role | Kind::ClusterRole => json!([name, created]),
        Kind::RoleBinding | Kind::ClusterRoleBinding => {
            let role = format!("{}/{}", text("/roleRef/kind"), text("/roleRef/name"));
            let age = crate::time::parse_rfc3339(created)
                .map_or_else(|| "<unknown>".to_owned(), |then| crate::time::age(now.saturating_sub(then)));
            let subjects = |wanted: &str| {
                let subjects = object.get("subjects").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
                let of_kind = subjects.iter().filter(|subject| subject.get("kind").is_some_and(|kind| kind == wanted));
                let named = of_kind.map(|subject| {
                    let text = |field| subject.get(field).and_then(Value::as_str).unwrap_or_default();
                    if wanted == "ServiceAccount" && !text("namespace").is_empty() {
                        format!("{}/{}", text("namespace"), text("name"))
                    } else {
                        text("name").to_owned()
                    }
                });
                named.collect::<Vec<_>>().join(", ")
            };
            json!([name, role, age, subjects("User"), subjects("Group"), subjects("ServiceAccount")])
        }
    };
    let mut row = json!({ "cells": cells });
    match include {
        Include::Metadata => row["object"] = partial(object, version),
        Include::Object => row["object"] = object.clone(),
        Include::None => row["object"] = Value::Null,
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_form_that_can_be_had_is_taken() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(Form::of_accept(kubectl), Some(Form::Table("v1")));
        assert_eq!(Form::of_accept("application/vnd.kubernetes.protobuf,application/json"), Some(Form::Whole));
        assert_eq!(
            Form::of_accept("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"),
            Some(Form::Partial("v1"))
        );
        assert_eq!(Form::of_accept("application/vnd.kubernetes.protobuf"), None);
    }

    #[test]
    fn rows_tell_what_kubectl_shows() {
        let object = json!({
            "metadata": { "name": "b", "creationTimestamp": "2026-11-26T00:00:00Z" },
            "roleRef": { "kind": "Role", "name": "r" },
            "subjects": [
                { "kind": "User", "name": "u" }, { "kind": "Group", "name": "g" }, { "kind": "Group", "name": "h" },
                { "kind": "ServiceAccount", "name": "s", "namespace": "n" },
            ],
        });
        let now = crate::time::parse_rfc3339("2026-11-26T00:02:30Z").expect("a time");
        let row = row(Kind::RoleBinding, &object, "v1", Include::None, now);
        assert_eq!(row["cells"], json!(["b", "Role/r", "2m30s", "u", "g, h", "n/s"]));
    }
}
