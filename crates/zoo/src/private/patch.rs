//! Patches of objects that are decided here: JSON patches (RFC 6902) and merge patches (RFC 7396), on the tenant's own view.
//!
//! Invariant: pure. What comes out is an object like any that a client could have written, and is treated as such.

use serde_json::{Map, Value};

/// Operations of a patch, and the most that its values may take together; a patch that copies can grow an object without end.
const OPERATIONS_MAX: usize = 10_000;
const COPIED_BYTES_MAX: usize = 3 << 20;

/// Why a patch can't be applied.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PatchError {
    /// It is no patch.
    #[error("{0}")]
    Malformed(String),
    /// The object is not as the patch wants it.
    #[error("{0}")]
    Unfit(String),
}

/// The object after a merge patch.
pub(super) fn merge(object: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let Some(fields) = object.as_object_mut() else { return };
    for (name, value) in patch {
        if value.is_null() {
            fields.remove(name);
        } else {
            merge(fields.entry(name.as_str()).or_insert(Value::Null), value);
        }
    }
}

/// The object after a JSON patch.
pub(super) fn apply(object: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let malformed = |text: &str| PatchError::Malformed(text.to_owned());
    let operations = patch.as_array().ok_or_else(|| malformed("a JSON patch is a list of operations"))?;
    if operations.len() > OPERATIONS_MAX {
        return Err(PatchError::Malformed(format!(
            "the allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {}",
            operations.len()
        )));
    }
    let mut copied = 0;
    for operation in operations {
        let text = |field: &str| operation.get(field).and_then(Value::as_str);
        let path = text("path").ok_or_else(|| malformed("an operation has no path"))?;
        let value = || operation.get("value").cloned().unwrap_or(Value::Null);
        match text("op") {
            Some("add") => add(object, path, value())?,
            Some("remove") => drop(remove(object, path)?),
            Some("replace") => {
                let place = find(object, path).ok_or_else(|| missing(path))?;
                *place = value();
            }
            Some("move") => {
                let from = text("from").ok_or_else(|| malformed("a move has no from"))?;
                if path.strip_prefix(from).is_some_and(|rest| rest.starts_with('/')) {
                    return Err(malformed("a value can't be moved into itself"));
                }
                let moved = remove(object, from)?;
                add(object, path, moved)?;
            }
            Some("copy") => {
                let from = text("from").ok_or_else(|| malformed("a copy has no from"))?;
                let value = find(object, from).ok_or_else(|| missing(from))?.clone();
                copied += value.to_string().len();
                if copied > COPIED_BYTES_MAX {
                    return Err(malformed("the patch copies too much"));
                }
                add(object, path, value)?;
            }
            Some("test") => {
                if find(object, path).map(|found| &*found) != Some(&value()) {
                    return Err(PatchError::Unfit(format!("testing value {path} failed")));
                }
            }
            other => return Err(PatchError::Malformed(format!("unexpected kind of operation: {other:?}"))),
        }
    }
    Ok(())
}

fn missing(path: &str) -> PatchError {
    PatchError::Unfit(format!("there is nothing at {path}"))
}

fn unescape(part: &str) -> String {
    part.replace("~1", "/").replace("~0", "~")
}

/// The value at a pointer (RFC 6901).
fn find<'a>(object: &'a mut Value, path: &str) -> Option<&'a mut Value> {
    object.pointer_mut(path)
}

/// The value that holds what a pointer is for, and the last part of the pointer.
fn parent<'a>(object: &'a mut Value, path: &str) -> Result<(&'a mut Value, String), PatchError> {
    let (parent, last) = path.rsplit_once('/').ok_or_else(|| missing(path))?;
    let found = find(object, parent).ok_or_else(|| missing(path))?;
    Ok((found, unescape(last)))
}

fn add(object: &mut Value, path: &str, value: Value) -> Result<(), PatchError> {
    if path.is_empty() {
        *object = value;
        return Ok(());
    }
    match parent(object, path)? {
        (Value::Object(fields), name) => {
            fields.insert(name, value);
            Ok(())
        }
        (Value::Array(items), place) => {
            let place = if place == "-" { items.len() } else { place.parse().map_err(|_| missing(path))? };
            if place > items.len() {
                return Err(missing(path));
            }
            items.insert(place, value);
            Ok(())
        }
        _ => Err(missing(path)),
    }
}

fn remove(object: &mut Value, path: &str) -> Result<Value, PatchError> {
    if path.is_empty() {
        return Err(missing(path));
    }
    match parent(object, path)? {
        (Value::Object(fields), name) => fields.remove(&name).ok_or_else(|| missing(path)),
        (Value::Array(items), place) => match place.parse::<usize>() {
            Ok(place) if place < items.len() => Ok(items.remove(place)),
            _ => Err(missing(path)),
        },
        _ => Err(missing(path)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_patches_do_what_rfc_6902_says() {
        let mut object = json!({ "a": [1, 2], "b": { "c/d": "x" } });
        let patch = json!([
            { "op": "test", "path": "/b/c~1d", "value": "x" },
            { "op": "add", "path": "/a/-", "value": 3 },
            { "op": "add", "path": "/a/0", "value": 0 },
            { "op": "remove", "path": "/a/1" },
            { "op": "copy", "from": "/a", "path": "/e" },
            { "op": "move", "from": "/b/c~1d", "path": "/f" },
            { "op": "replace", "path": "/a", "value": [] },
        ]);
        assert_eq!(apply(&mut object, &patch), Ok(()));
        assert_eq!(object, json!({ "a": [], "b": {}, "e": [0, 2, 3], "f": "x" }));
        for (patch, is_malformed) in [
            (json!([{ "op": "test", "path": "/f", "value": "y" }]), false),
            (json!([{ "op": "remove", "path": "/nothing" }]), false),
            (json!([{ "op": "add", "path": "/e/7", "value": 1 }]), false),
            (json!([{ "op": "turn", "path": "/e" }]), true),
            (json!({ "op": "add" }), true),
        ] {
            let error = apply(&mut object.clone(), &patch).expect_err("it does not fit");
            assert_eq!(matches!(error, PatchError::Malformed(_)), is_malformed, "{error}");
        }
    }

    #[test]
    fn merge_patches_do_what_rfc_7396_says() {
        let mut object = json!({ "a": "b", "c": { "d": "e", "f": "g" } });
        merge(&mut object, &json!({ "a": "z", "c": { "f": null }, "h": { "i": null, "j": 1 } }));
        assert_eq!(object, json!({ "a": "z", "c": { "d": "e" }, "h": { "j": 1 } }));
    }
}
