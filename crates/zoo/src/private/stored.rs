//! A tenant's roles and bindings as they are kept upstream: objects of zoo's own kinds, which no authorizer there looks at.
//!
//! Their content is as the tenant wrote it. Only what all objects have is as upstream: the name or namespace, and the tenant's label.
//!
//! Invariant: what is read is what was written, field by field; what zoo added is taken away again.

use serde_json::{Map, Value};

use crate::authz::roles::{Kind, RBAC_API_VERSION, RBAC_GROUP};
use crate::names::Names;
use crate::tenant::{GROUP, TENANT_LABEL};

/// The version that everything is kept in.
pub(crate) const STORED_API_VERSION: &str = "tenancy.kubewharf.io/v1";

/// The resource that objects of a kind are kept as.
pub(crate) fn resource(kind: Kind) -> String {
    format!("tenant{}", kind.resource())
}

/// The kind that they are kept as.
pub(crate) fn kind_name(kind: Kind) -> String {
    format!("Tenant{}", kind.name())
}

/// The path of all objects of a kind, or of those in a namespace (the tenant's name for it).
pub(crate) fn path(kind: Kind, names: &Names, namespace: &str) -> String {
    let resource = resource(kind);
    if namespace.is_empty() {
        format!("/apis/{GROUP}/v1/{resource}")
    } else {
        format!("/apis/{GROUP}/v1/namespaces/{}/{resource}", names.inward(namespace))
    }
}

/// The name that an object has upstream. Roles and bindings may be named as nothing else may, such as `team:Reader`; so what is not allowed in
/// other names is written as an `x` and two hexadecimal digits, and so is an `x`.
pub(crate) fn name(kind: Kind, names: &Names, name: &str) -> String {
    let mut kept = if kind.is_namespaced() { String::new() } else { names.prefix().to_owned() };
    for (place, byte) in name.bytes().enumerate() {
        let is_inside = place > 0 && place + 1 < name.len();
        match byte {
            b'a'..=b'w' | b'y' | b'z' | b'0'..=b'9' => kept.push(char::from(byte)),
            b'-' if is_inside => kept.push('-'),
            _ => {
                use std::fmt::Write as _;
                // Writing to a string can't fail.
                let _ = write!(kept, "x{byte:02x}");
            }
        }
    }
    kept
}

/// The tenant's name for what has this name upstream; none if it is no such name.
fn name_outward(kind: Kind, names: &Names, kept: &str) -> Option<String> {
    let kept = if kind.is_namespaced() { kept } else { names.outward(kept)? };
    let mut name = Vec::with_capacity(kept.len());
    let mut bytes = kept.bytes();
    while let Some(byte) = bytes.next() {
        name.push(match byte {
            b'x' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                (digit()? * 16 + digit()?) as u8
            }
            _ => byte,
        });
    }
    String::from_utf8(name).ok()
}

/// An object, or part of one as in a patch, as it is kept.
pub(crate) fn inward(kind: Kind, names: &Names, object: &mut Value, is_whole: bool) {
    let Some(fields) = object.as_object_mut() else { return };
    if is_whole || fields.contains_key("kind") {
        fields.insert("kind".into(), kind_name(kind).into());
    }
    if is_whole || fields.contains_key("apiVersion") {
        fields.insert("apiVersion".into(), STORED_API_VERSION.into());
    }
    if is_whole && !fields.get("metadata").is_some_and(Value::is_object) {
        fields.insert("metadata".into(), Value::Object(Map::new()));
    }
    let Some(meta) = fields.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    if let Some(Value::String(text)) = meta.get_mut("name")
        && !text.is_empty()
    {
        *text = name(kind, names, text);
    }
    if let Some(Value::String(text)) = meta.get_mut("namespace")
        && !text.is_empty()
    {
        *text = names.inward(text);
    }
    // Names are made before they are kept.
    meta.remove("generateName");
    api_versions(meta, RBAC_API_VERSION, STORED_API_VERSION);
    // A null takes all labels away, and so the tenant's; a map in its place does the same but for that.
    if is_whole || meta.contains_key("labels") {
        let labels = meta.entry("labels").or_insert_with(|| Value::Object(Map::new()));
        if let Some(labels) = labels.as_object_mut() {
            labels.insert(TENANT_LABEL.into(), names.uid().into());
        }
    }
}

/// An object as the tenant sees it. False, and the object is not to be shown, if it is not one of this tenant's.
#[must_use]
pub(crate) fn outward(kind: Kind, names: &Names, object: &mut Value) -> bool {
    let Some(fields) = object.as_object_mut() else { return false };
    // In a list, kinds are not told.
    if fields.get("kind").is_some_and(|found| *found != kind_name(kind)) {
        return false;
    }
    fields.insert("kind".into(), kind.name().into());
    fields.insert("apiVersion".into(), RBAC_API_VERSION.into());
    let Some(meta) = fields.get_mut("metadata").and_then(Value::as_object_mut) else { return false };
    let label = meta.get("labels").and_then(|labels| labels.get(TENANT_LABEL));
    let is_labelled = label.is_some_and(|uid| uid == names.uid());
    let place = if kind.is_namespaced() { "namespace" } else { "name" };
    let is_named = meta.get(place).and_then(Value::as_str).is_some_and(|name| names.outward(name).is_some());
    // A bookmark has no name.
    if meta.contains_key("name") && !(is_labelled && is_named) {
        return false;
    }
    // Objects of the real kinds have none.
    meta.remove("generation");
    if let Some(Value::String(text)) = meta.get_mut("name") {
        match name_outward(kind, names, text) {
            Some(own) => *text = own,
            None => return false,
        }
    }
    if let Some(Value::String(text)) = meta.get_mut("namespace")
        && let Some(own) = names.outward(text)
    {
        *text = own.to_owned();
    }
    if let Some(labels) = meta.get_mut("labels").and_then(Value::as_object_mut) {
        labels.remove(TENANT_LABEL);
        if labels.is_empty() {
            meta.remove("labels");
        }
    }
    api_versions(meta, STORED_API_VERSION, RBAC_API_VERSION);
    for entry in meta.get_mut("managedFields").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(of_meta) = entry.pointer_mut("/fieldsV1/f:metadata").and_then(Value::as_object_mut) else { continue };
        if let Some(labels) = of_meta.get_mut("f:labels").and_then(Value::as_object_mut) {
            labels.remove(&format!("f:{TENANT_LABEL}"));
            if labels.keys().all(|key| key == ".") {
                of_meta.remove("f:labels");
            }
        }
        if of_meta.is_empty()
            && let Some(fields) = entry.get_mut("fieldsV1").and_then(Value::as_object_mut)
        {
            fields.remove("f:metadata");
        }
    }
    // Who has written nothing but what is hidden, has written nothing.
    if let Some(managed) = meta.get_mut("managedFields").and_then(Value::as_array_mut) {
        managed
            .retain(|entry| entry.get("fieldsV1").and_then(Value::as_object).is_none_or(|fields| !fields.is_empty()));
        if managed.is_empty() {
            meta.remove("managedFields");
        }
    }
    true
}

/// The versions that managed fields are of.
fn api_versions(meta: &mut Map<String, Value>, from: &str, to: &str) {
    let Some(managed) = meta.get_mut("managedFields").and_then(Value::as_array_mut) else { return };
    for entry in managed {
        if let Some(Value::String(version)) = entry.get_mut("apiVersion")
            && version == from
        {
            to.clone_into(version);
        }
    }
}

/// Text of the apiserver about what is kept, as it would speak of the tenant's own object.
pub(crate) fn text_outward(kind: Kind, names: &Names, text: &str) -> String {
    let text = names.text_outward(text);
    text.replace(&format!("{}.{GROUP}", resource(kind)), &format!("{}.{RBAC_GROUP}", kind.resource()))
        .replace(&format!("{}.{GROUP}", kind_name(kind)), &format!("{}.{RBAC_GROUP}", kind.name()))
        .replace(&resource(kind), kind.resource())
        .replace(&kind_name(kind), kind.name())
        .replace(&format!("\"{GROUP}\""), &format!("\"{RBAC_GROUP}\""))
        .replace(STORED_API_VERSION, RBAC_API_VERSION)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_read_is_what_was_written() {
        let names = Names::of_uid("u");
        for kind in Kind::ALL {
            let mut written = json!({
                "apiVersion": RBAC_API_VERSION, "kind": kind.name(),
                "metadata": { "name": "a", "labels": { "x": "y" } },
                "rules": [{ "verbs": ["get"], "apiGroups": [""], "resources": ["pods"] }],
            });
            if kind.is_namespaced() {
                written["metadata"]["namespace"] = "default".into();
            }
            let mut object = written.clone();
            inward(kind, &names, &mut object, true);
            assert_eq!(object["metadata"]["labels"][TENANT_LABEL], "u");
            assert_eq!(object["kind"], kind_name(kind));
            assert_ne!(object["metadata"], written["metadata"]);
            let mut foreign = object.clone();
            assert!(outward(kind, &names, &mut object));
            assert_eq!(object, written);
            foreign["metadata"]["labels"][TENANT_LABEL] = "another".into();
            assert!(!outward(kind, &names, &mut foreign.clone()), "it is labelled as another's");
            assert!(!outward(kind, &Names::of_uid("another"), &mut foreign), "it is named as another's");
        }
    }

    #[test]
    fn every_name_that_a_role_can_have_can_be_kept() {
        let names = Names::of_uid("u");
        for text in ["a", "x", "team:Reader", "-a-", "system:auth-delegator", "a.b", "xx41", "Ä%"] {
            for kind in Kind::ALL {
                let kept = name(kind, &names, text);
                let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
                assert!(kept.bytes().all(|byte| fits(byte) || byte == b'-'), "{kept}");
                assert!(kept.bytes().next().is_some_and(fits) && kept.bytes().last().is_some_and(fits), "{kept}");
                assert_eq!(name_outward(kind, &names, &kept).as_deref(), Some(text));
            }
        }
    }

    #[test]
    fn messages_speak_of_the_tenants_object() {
        let names = Names::of_uid("u");
        let text = format!("tenantclusterroles.tenancy.kubewharf.io \"{}a\" not found", names.prefix());
        assert_eq!(
            text_outward(Kind::ClusterRole, &names, &text),
            "clusterroles.rbac.authorization.k8s.io \"a\" not found"
        );
    }
}
