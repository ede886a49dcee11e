//! etcd's configuration file: YAML whose keys are the flags' names, with the certificates in sections of their own.
//!
//! As in etcd, durations are whole nanoseconds; text such as `10m` is understood too.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use super::ConfigError;
use super::draft::Draft;
use super::flags::{Kind, find};

/// Keys of `client-transport-security`, and the flags that they stand for.
const CLIENT_SECURITY: &[(&str, &str)] = &[
    ("cert-file", "cert-file"),
    ("key-file", "key-file"),
    ("client-cert-file", "client-cert-file"),
    ("client-key-file", "client-key-file"),
    ("client-cert-auth", "client-cert-auth"),
    ("trusted-ca-file", "trusted-ca-file"),
    ("auto-tls", "auto-tls"),
    ("crl-file", "client-crl-file"),
    ("allowed-hostname", "client-cert-allowed-hostname"),
];

/// Keys of `peer-transport-security`, and the flags that they stand for.
const PEER_SECURITY: &[(&str, &str)] = &[
    ("cert-file", "peer-cert-file"),
    ("key-file", "peer-key-file"),
    ("client-cert-file", "peer-client-cert-file"),
    ("client-key-file", "peer-client-key-file"),
    ("client-cert-auth", "peer-client-cert-auth"),
    ("trusted-ca-file", "peer-trusted-ca-file"),
    ("auto-tls", "peer-auto-tls"),
    ("allowed-cn", "peer-cert-allowed-cn"),
    ("allowed-hostname", "peer-cert-allowed-hostname"),
    ("skip-client-san-verification", "peer-skip-client-san-verification"),
];

/// Reads the file into `draft`; returns the keys that nobody knows.
pub(super) fn read(path: &Path, draft: &mut Draft) -> Result<Vec<String>, ConfigError> {
    let wrong = |problem: &dyn std::fmt::Display| ConfigError::new(path.display(), problem);
    let text = fs::read_to_string(path).map_err(|error| wrong(&format!("can't be read: {error}")))?;
    let value: Value = serde_saphyr::from_str(&text).map_err(|error| wrong(&error))?;
    let settings = match value {
        Value::Object(settings) => settings,
        Value::Null => Map::new(),
        _ => return Err(wrong(&"is not a mapping of settings")),
    };
    let mut unknown = Vec::new();
    for (key, value) in &settings {
        let section = match key.as_str() {
            "client-transport-security" => Some(CLIENT_SECURITY),
            "peer-transport-security" => Some(PEER_SECURITY),
            _ => None,
        };
        let Some(names) = section else {
            set(path, draft, key, key, value, &mut unknown)?;
            continue;
        };
        let entries = match value {
            Value::Object(entries) => entries,
            // Its entries may all be comments.
            Value::Null => continue,
            _ => return Err(ConfigError::new(format!("{}: {key}", path.display()), "is not a mapping")),
        };
        for (entry, value) in entries {
            let key = format!("{key}.{entry}");
            match names.iter().find(|(name, _)| name == entry) {
                Some((_, flag)) => set(path, draft, &key, flag, value, &mut unknown)?,
                None => unknown.push(key),
            }
        }
    }
    Ok(unknown)
}

fn set(
    path: &Path,
    draft: &mut Draft,
    key: &str,
    flag_name: &str,
    value: &Value,
    unknown: &mut Vec<String>,
) -> Result<(), ConfigError> {
    let Some(flag) = find(flag_name).filter(|flag| !matches!(flag.name, "config-file" | "version" | "help" | "h"))
    else {
        unknown.push(key.to_owned());
        return Ok(());
    };
    let wrong = |problem: String| ConfigError::new(format!("{}: {key}", path.display()), problem);
    let text = match (value, flag.kind) {
        // An empty setting is the default.
        (Value::Null, _) => return Ok(()),
        (Value::String(text), kind) if text.is_empty() && kind != Kind::Text => return Ok(()),
        (Value::Number(nanoseconds), Kind::Duration) => format!("{nanoseconds}ns"),
        (Value::Array(items), _) => {
            let texts: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
            texts.ok_or_else(|| wrong("is not a list of texts".to_owned()))?.join(",")
        }
        (Value::Object(_), _) => return Err(wrong("is a mapping, a single value is expected".to_owned())),
        (Value::String(text), _) => text.clone(),
        (Value::Bool(_) | Value::Number(_), _) => value.to_string(),
    };
    draft.set(flag, &text).map_err(|error| wrong(error.to_string()))
}
