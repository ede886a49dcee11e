//! The objects that are read and written: ConfigMaps.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use serde_json::Value;

use crate::wire::{Fields, field};

/// The label that all of a side's objects have.
pub const LABEL: &str = "of";
/// What client-go accepts of a built-in kind.
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf,application/json";
/// Length of the text in an object, in bytes. Metadata and text together are about 1 KB as kube-apiserver tells them.
const TEXT_BYTES: usize = 560;
/// What a protobuf body begins with.
const MAGIC: &[u8] = b"k8s\0";

/// An object as a client writes it. `count` tells one version of it from the next.
pub fn config_map(name: &str, of: &str, count: u64) -> Bytes {
    let text: String = "a line of a file ".chars().cycle().take(TEXT_BYTES).collect();
    let object = format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}","labels":{{"{LABEL}":"{of}"}}}},"data":{{"count":"{count}","text":"{text}"}}}}"#
    );
    object.into()
}

/// The number in an object, as the JSON of an object or event has it.
///
/// # Errors
/// When there is none.
pub fn count(json: &[u8]) -> Result<u64> {
    let text = std::str::from_utf8(json).context("not JSON")?;
    let (_, rest) = text.split_once(r#""data":{"count":""#).context("no count in the data")?;
    let (digits, _) = rest.split_once('"').context("a count without an end")?;
    digits.parse().context("a count that is no number")
}

/// Where the paths of a namespace's objects begin.
pub fn path(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/configmaps")
}

/// Checks what a body tells: so many objects, and nothing of what they are called upstream.
///
/// # Errors
/// When it tells something else.
pub fn check(body: &[u8], is_protobuf: bool, is_list: bool, objects: usize, hidden: &[String]) -> Result<()> {
    let found = match (is_protobuf, is_list) {
        (true, _) => count_protobuf(body, is_list)?,
        (false, true) => {
            let list: Value = serde_json::from_slice(body)?;
            list["items"].as_array().context("a list without items")?.len()
        }
        (false, false) => count(body).map(|_| 1)?,
    };
    ensure!(found == objects, "{found} objects instead of {objects}");
    for hidden in hidden {
        let is_told = body.windows(hidden.len()).any(|window| window == hidden.as_bytes());
        ensure!(!is_told, "the answer tells names as they are upstream ({hidden})");
    }
    Ok(())
}

fn count_protobuf(body: &[u8], is_list: bool) -> Result<usize> {
    let message = body.strip_prefix(MAGIC).context("not the protobuf of Kubernetes")?;
    // runtime.Unknown has the object as its second field, and a list has its items there.
    let object = field(message, 2)?.context("an empty body")?.bytes()?;
    if !is_list {
        return Ok(1);
    }
    let mut fields = Fields::of(object);
    let mut items = 0;
    while let Some((number, _)) = fields.next()? {
        items += usize::from(number == 2);
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_json_and_keeps_its_count() {
        let object = config_map("name", "side", 17);
        let value: Value = serde_json::from_slice(&object).unwrap();
        assert_eq!(value["metadata"]["labels"][LABEL], "side");
        assert_eq!(count(&object).unwrap(), 17);
        check(&object, false, false, 1, &["kzabc".to_owned()]).unwrap();
        assert!(check(&object, false, false, 1, &["name".to_owned()]).is_err());
        assert!(check(&object, true, false, 1, &[]).is_err());
        assert!(check(br#"{"items":[{},{}]}"#, false, true, 3, &[]).is_err());
    }
}
