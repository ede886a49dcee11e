//! Which encodings a client can have: of those that it accepts, the ones that can be rewritten.
//!
//! Invariant: what goes upstream as `Accept` is what the client sent, without what can't be rewritten; so the apiserver chooses as it would
//! have chosen for the client.

use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};

/// Media type of Kubernetes' protobuf.
pub(crate) const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
/// Media type of JSON.
pub(crate) const JSON: &str = "application/json";

/// The encoding of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Media {
    Json,
    Protobuf,
    /// JSON, written as YAML.
    Yaml,
    JsonPatch,
    MergePatch,
    StrategicMergePatch,
    ApplyPatch,
    /// Anything else.
    Other,
}

/// What a body is, by its headers.
pub(crate) fn of_body(headers: &HeaderMap) -> Media {
    let Some(value) = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return Media::Json };
    match value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        JSON => Media::Json,
        PROTOBUF => Media::Protobuf,
        "application/yaml" => Media::Yaml,
        "application/json-patch+json" => Media::JsonPatch,
        "application/merge-patch+json" => Media::MergePatch,
        "application/strategic-merge-patch+json" => Media::StrategicMergePatch,
        "application/apply-patch+yaml" => Media::ApplyPatch,
        _ => Media::Other,
    }
}

/// The `Accept` for upstream; none if nothing is left of the client's.
pub(crate) fn accept(headers: &HeaderMap, has_protobuf: bool) -> Option<String> {
    let mut accept = String::new();
    let mut is_any = false;
    for value in headers.get_all(ACCEPT) {
        is_any = true;
        for range in value.to_str().unwrap_or_default().split(',') {
            let media = range.split(';').next().unwrap_or_default().trim();
            let range = match media {
                JSON => range.trim(),
                PROTOBUF if has_protobuf => range.trim(),
                "*/*" => JSON,
                _ => continue,
            };
            if !accept.is_empty() {
                accept.push(',');
            }
            accept.push_str(range);
        }
    }
    if !is_any {
        return Some(JSON.to_owned());
    }
    (!accept.is_empty()).then_some(accept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_rewritten_is_not_asked_for() {
        let accept = |text: &'static str, has_protobuf| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, text.parse().expect("a header"));
            accept(&headers, has_protobuf)
        };
        let client_go = "application/vnd.kubernetes.protobuf,application/json";
        assert_eq!(accept(client_go, true).as_deref(), Some(client_go));
        assert_eq!(accept(client_go, false).as_deref(), Some("application/json"));
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(accept(kubectl, true).as_deref(), Some(kubectl));
        assert_eq!(accept("*/*", true).as_deref(), Some("application/json"));
        assert_eq!(accept("application/yaml, application/cbor", true), None);
        assert_eq!(super::accept(&HeaderMap::new(), true).as_deref(), Some("application/json"));
    }
}
