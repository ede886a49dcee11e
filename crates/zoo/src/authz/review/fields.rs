//! Who has set which field of a review: `metadata.managedFields`, which a kube-apiserver keeps even of what it does not
//! store.

use kubewharf_kube_api::quote::is_printable;
use kubewharf_kube_api::review::{SubjectAccessReviewSpec, SubjectAccessReviewStatus};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::Question;
use super::read::Metadata;

/// The longest name of a manager, in bytes.
const MANAGER_BYTES_MAX: usize = 128;

/// What one client has set.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Managed<'a> {
    #[serde(skip_serializing_if = "String::is_empty")]
    manager: String,
    operation: &'static str,
    api_version: &'static str,
    time: &'a str,
    fields_type: &'static str,
    fields_v1: Value,
}

impl<'a> Managed<'a> {
    /// What is set in this question.
    pub(super) fn of(
        question: &Question<'a>,
        metadata: &Metadata,
        spec: &SubjectAccessReviewSpec<'_>,
        status: &SubjectAccessReviewStatus,
    ) -> Self {
        let mut of_metadata = paths(&Value::Object(metadata.owned()), true);
        for (name, members) in metadata.owned_members().into_iter().filter(|(_, members)| !members.is_empty()) {
            let members = members.into_iter().chain([".".to_owned()]);
            of_metadata[format!("f:{name}")] = members.map(|member| (member, json!({}))).collect();
        }
        let is_answered = *status != SubjectAccessReviewStatus::default();
        let of_status = if is_answered { paths(&json!(status), true) } else { json!({}) };
        let parts = [("f:metadata", of_metadata), ("f:spec", paths(&json!(spec), true)), ("f:status", of_status)];
        let is_set = |(_, paths): &(&str, Value)| paths.as_object().is_some_and(|paths| !paths.is_empty());
        let fields: Map<_, _> =
            parts.into_iter().filter(is_set).map(|(name, paths)| (name.to_owned(), paths)).collect();
        Self {
            manager: manager(question.field_manager, question.user_agent),
            operation: "Update",
            api_version: question.kind.api_version(),
            time: question.now,
            fields_type: "FieldsV1",
            fields_v1: Value::Object(fields),
        }
    }
}

/// The paths of what is set in a value. Lists of reviews are set as a whole. A map or an object that might not be there
/// is set itself, too.
fn paths(value: &Value, is_always_there: bool) -> Value {
    let mut paths = Map::new();
    if let Value::Object(fields) = value {
        if !is_always_there && !fields.is_empty() {
            paths.insert(".".to_owned(), json!({}));
        }
        for (name, field) in fields {
            paths.insert(format!("f:{name}"), self::paths(field, false));
        }
    }
    Value::Object(paths)
}

/// The name that a client has as a manager: the one that it tells, or what its `User-Agent` begins with.
fn manager(told: &str, user_agent: &str) -> String {
    if !told.is_empty() {
        return told.to_owned();
    }
    let mut manager = String::new();
    for character in
        user_agent.split('/').next().unwrap_or_default().chars().filter(|&character| is_printable(character))
    {
        if manager.len() + character.len_utf8() > MANAGER_BYTES_MAX {
            break;
        }
        manager.push(character);
    }
    manager
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_is_named_by_the_client() {
        assert_eq!(manager("me", "kubectl/v1.36"), "me");
        assert_eq!(manager("", "kubectl/v1.36 (linux)"), "kubectl");
        assert_eq!(manager("", "a\u{7}b"), "ab");
        assert_eq!(manager("", ""), "");
        assert_eq!(manager("", &"é".repeat(100)).len(), 128);
    }
}
