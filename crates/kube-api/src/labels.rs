//! Labels and what selects objects by them: [`LabelSelector`], metav1's object of that name.
//!
//! Invariant: a selector that Kubernetes 1.36 refuses (`LabelSelectorAsSelector` of apimachinery) selects nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::content::{is_label_key, is_label_value};
use crate::request_info::selector;
use crate::review::null_as_empty;

/// Selects objects by their labels. One without any condition selects all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    /// The labels that must be there, each with this value.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// Further conditions, which must all hold.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub match_expressions: Vec<Requirement>,
}

/// A condition on one label, or in a review on one field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// [`IN`], [`NOT_IN`], [`EXISTS`] or [`DOES_NOT_EXIST`].
    pub operator: String,
    /// The values that [`IN`] and [`NOT_IN`] are about.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub values: Vec<String>,
}

/// The label must be there with one of the values.
pub const IN: &str = "In";
/// The label must not be there with one of the values.
pub const NOT_IN: &str = "NotIn";
/// The label must be there.
pub const EXISTS: &str = "Exists";
/// The label must not be there.
pub const DOES_NOT_EXIST: &str = "DoesNotExist";

/// Whether this is a label selector, as in a query: `labels.Parse`.
#[must_use]
pub fn is_selector(text: &str) -> bool {
    selector::is_label_selector(text.as_bytes())
}

/// Whether this is a field selector, as in a query: `fields.ParseSelector`.
#[must_use]
pub fn is_field_selector(text: &str) -> bool {
    selector::required_name(text.as_bytes()).is_ok()
}

impl LabelSelector {
    /// Reads a selector as it is in a query: `a=b,c in (d,e),!f`. None if Kubernetes refuses it. One with a comparison of
    /// numbers selects nothing here.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut selector = Self::default();
        let (mut depth, mut terms, mut from) = (0u32, Vec::new(), 0);
        for (at, byte) in text.bytes().enumerate() {
            match byte {
                b'(' => depth += 1,
                b')' => depth = depth.checked_sub(1)?,
                b',' if depth == 0 => {
                    terms.push(&text[from..at]);
                    from = at + 1;
                }
                _ => {}
            }
        }
        terms.push(&text[from..]);
        if text.trim().is_empty() {
            return Some(selector);
        }
        for term in terms {
            let requirement = Requirement::parse(term.trim())?;
            if !matches!(requirement.operator.as_str(), ">" | "<") && !requirement.is_valid() {
                return None;
            }
            selector.match_expressions.push(requirement);
        }
        Some(selector)
    }

    /// Whether Kubernetes takes it for a selector.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let is_pair =
            |(key, value): (&String, &String)| is_label_key(key.as_bytes()) && is_label_value(value.as_bytes());
        self.match_labels.iter().all(is_pair) && self.match_expressions.iter().all(Requirement::is_valid)
    }

    /// Whether it selects an object whose labels have these values by key.
    pub fn matches<'a>(&self, value_of: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.is_valid() && self.matches_if_valid(value_of)
    }

    /// As [`LabelSelector::matches`], for one that was found to be valid before.
    pub fn matches_if_valid<'a>(&self, value_of: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.match_labels.iter().all(|(key, value)| value_of(key) == Some(value))
            && self.match_expressions.iter().all(|requirement| requirement.matches(value_of(&requirement.key)))
    }
}

impl Requirement {
    fn parse(term: &str) -> Option<Self> {
        let of = |key: &str, operator: &str, values: Vec<String>| Self {
            key: key.trim().to_owned(),
            operator: operator.to_owned(),
            values,
        };
        if let Some(key) = term.strip_prefix('!') {
            return Some(of(key, DOES_NOT_EXIST, Vec::new()));
        }
        if let Some((key, list)) = term.strip_suffix(')').and_then(|term| term.split_once('(')) {
            let (key, operator) = key.trim().rsplit_once(char::is_whitespace)?;
            let operator = match operator {
                "in" => IN,
                "notin" => NOT_IN,
                _ => return None,
            };
            return Some(of(key, operator, list.split(',').map(|value| value.trim().to_owned()).collect()));
        }
        for (mark, operator) in [("!=", NOT_IN), ("==", IN), ("=", IN), (">", ">"), ("<", "<")] {
            if let Some((key, value)) = term.split_once(mark) {
                return Some(of(key, operator, vec![value.trim().to_owned()]));
            }
        }
        Some(of(term, EXISTS, Vec::new()))
    }

    /// Whether Kubernetes takes it for a condition.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let has_right_values = match self.operator.as_str() {
            IN | NOT_IN => !self.values.is_empty(),
            EXISTS | DOES_NOT_EXIST => self.values.is_empty(),
            _ => false,
        };
        has_right_values
            && is_label_key(self.key.as_bytes())
            && self.values.iter().all(|value| is_label_value(value.as_bytes()))
    }

    fn matches(&self, found: Option<&str>) -> bool {
        let is_among_values = found.is_some_and(|found| self.values.iter().any(|value| value == found));
        match self.operator.as_str() {
            IN => is_among_values,
            NOT_IN => !is_among_values,
            EXISTS => found.is_some(),
            DOES_NOT_EXIST => found.is_none(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selects(selector: &str, labels: &[(&str, &str)]) -> bool {
        let selector: LabelSelector = serde_json::from_str(selector).unwrap();
        selector.matches(|key| labels.iter().find(|(found, _)| *found == key).map(|(_, value)| *value))
    }

    #[test]
    fn selectors_are_read_as_they_are_in_queries() {
        let picks = |text: &str| {
            let labels = [("app", "web"), ("tier", "")];
            let value_of = |key: &str| labels.iter().find(|(found, _)| *found == key).map(|(_, value)| *value);
            LabelSelector::parse(text).map(|selector| selector.matches(value_of))
        };
        for text in [
            "",
            "app",
            "app=web",
            "app == web",
            "app!=db",
            "other!=x",
            "app in (db, web),!other",
            "tier=",
            "app notin (x)",
        ] {
            assert_eq!(picks(text), Some(true), "{text}");
        }
        for text in ["other", "app=db", "!app", "app notin (web)", "app=web,tier=x", "app>1"] {
            assert_eq!(picks(text), Some(false), "{text}");
        }
        for text in ["app=,", "app in web", "a b", "=x", "app in (x", "-a=b"] {
            assert_eq!(picks(text), None, "{text}");
        }
    }

    #[test]
    fn every_condition_must_hold() {
        let labels = &[("app", "web"), ("tier", "")];
        for (selector, expected) in [
            ("{}", true),
            (r#"{"matchLabels":null,"matchExpressions":null,"other":1}"#, true),
            (r#"{"matchLabels":{"app":"web"}}"#, true),
            (r#"{"matchLabels":{"app":"web","tier":""}}"#, true),
            (r#"{"matchLabels":{"app":"web","other":""}}"#, false),
            (r#"{"matchLabels":{"app":"db"}}"#, false),
            (r#"{"matchExpressions":[{"key":"app","operator":"In","values":["db","web"]}]}"#, true),
            (r#"{"matchExpressions":[{"key":"other","operator":"In","values":[""]}]}"#, false),
            (r#"{"matchExpressions":[{"key":"app","operator":"NotIn","values":["web"]}]}"#, false),
            (r#"{"matchExpressions":[{"key":"other","operator":"NotIn","values":["web"]}]}"#, true),
            (r#"{"matchExpressions":[{"key":"tier","operator":"Exists"}]}"#, true),
            (r#"{"matchExpressions":[{"key":"tier","operator":"DoesNotExist"}]}"#, false),
            (r#"{"matchLabels":{"app":"web"},"matchExpressions":[{"key":"x","operator":"Exists"}]}"#, false),
        ] {
            assert_eq!(selects(selector, labels), expected, "{selector}");
        }
    }

    #[test]
    fn a_selector_that_kubernetes_refuses_selects_nothing() {
        for selector in [
            r#"{"matchLabels":{"a b":""}}"#,
            r#"{"matchExpressions":[{"key":"a","operator":"Is","values":["b"]}]}"#,
            r#"{"matchExpressions":[{"key":"a","operator":"NotIn"}]}"#,
            r#"{"matchExpressions":[{"key":"a","operator":"DoesNotExist","values":["b"]}]}"#,
            r#"{"matchExpressions":[{"key":"a","operator":"NotIn","values":["-"]}]}"#,
            r#"{"matchExpressions":[{"operator":"DoesNotExist"}]}"#,
        ] {
            assert!(!selects(selector, &[]), "{selector}");
        }
    }
}
