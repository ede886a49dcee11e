//! What a role allows: [`PolicyRule`], and which requests it matches.
//!
//! Invariant: a rule matches exactly what it matches for Kubernetes 1.36 (`VerbMatches` and its kin in
//! `pkg/apis/rbac/v1/evaluation_helpers.go`). Rules only allow; nothing denies.

use std::fmt::Write as _;

use kubewharf_kube_api::RequestInfo;
use kubewharf_kube_api::quote::push_quoted_list;
use serde::{Deserialize, Deserializer, Serialize};

/// What stands for every verb, API group, resource and path.
pub const ALL: &str = "*";

/// Some texts that are seldom changed.
pub type Texts = Box<[Box<str>]>;

/// Allows verbs on resources, or on paths that are not of resources.
///
/// Fields are in the order in which Kubernetes writes them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyRule {
    /// The verbs, or [`ALL`].
    #[serde(deserialize_with = "null_as_empty")]
    pub verbs: Texts,
    /// The API groups, or [`ALL`]; the core group is the empty text.
    #[serde(skip_serializing_if = "<[_]>::is_empty", deserialize_with = "null_as_empty")]
    pub api_groups: Texts,
    /// The resources as `pods`, subresources as `pods/log` or of every resource as `*/log`, or [`ALL`].
    #[serde(skip_serializing_if = "<[_]>::is_empty", deserialize_with = "null_as_empty")]
    pub resources: Texts,
    /// The names of the only objects that it is about; all if there is none.
    #[serde(skip_serializing_if = "<[_]>::is_empty", deserialize_with = "null_as_empty")]
    pub resource_names: Texts,
    /// The paths; one with an asterisk at its end stands for all that begin with what is before the asterisk.
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "<[_]>::is_empty", deserialize_with = "null_as_empty")]
    pub non_resource_urls: Texts,
}

/// Go writes `null` for a list that was never made.
pub(super) fn null_as_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// What somebody asks to do: what of a request counts for rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes<'a> {
    /// Whether it is for a resource; else it is for a path.
    pub is_resource_request: bool,
    /// The verb; for a path the HTTP method in lower case.
    pub verb: &'a str,
    /// The API group.
    pub api_group: &'a str,
    /// The resource, such as `pods`.
    pub resource: &'a str,
    /// The subresource; empty for none.
    pub subresource: &'a str,
    /// The name of the object; empty if none is named.
    pub name: &'a str,
    /// The namespace; empty for all, and for what is in none.
    pub namespace: &'a str,
    /// The path, for what is not a resource.
    pub path: &'a str,
}

impl<'a> Attributes<'a> {
    /// Those of a request.
    #[must_use]
    pub fn of_request(info: &'a RequestInfo<'_>) -> Self {
        Self {
            is_resource_request: info.is_resource_request,
            verb: &info.verb,
            api_group: &info.api_group,
            resource: &info.resource,
            subresource: &info.subresource,
            name: &info.name,
            namespace: &info.namespace,
            path: &info.path,
        }
    }

    /// A request that has these, for a refusal's text.
    #[must_use]
    pub fn to_request(&self) -> RequestInfo<'a> {
        RequestInfo {
            is_resource_request: self.is_resource_request,
            verb: self.verb.into(),
            api_group: self.api_group.into(),
            resource: self.resource.into(),
            subresource: self.subresource.into(),
            name: self.name.into(),
            namespace: self.namespace.into(),
            path: self.path.into(),
            ..RequestInfo::default()
        }
    }
}

impl PolicyRule {
    /// Whether it allows what is asked, in the scope that the rule is granted for.
    #[must_use]
    pub fn allows(&self, asked: &Attributes<'_>) -> bool {
        if !has_or_all(&self.verbs, asked.verb) {
            return false;
        }
        if asked.is_resource_request {
            has_or_all(&self.api_groups, asked.api_group)
                && self.resources.iter().any(|resource| resource_matches(resource, asked))
                && (self.resource_names.is_empty() || has(&self.resource_names, asked.name))
        } else {
            self.non_resource_urls.iter().any(|url| url_matches(url, asked.path))
        }
    }

    /// The rule in short, as Kubernetes names it in messages: fields that are there, each with its texts quoted.
    #[must_use]
    pub fn to_compact_text(&self) -> String {
        let mut text = String::from("{");
        for (name, values) in [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.non_resource_urls),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ] {
            if !values.is_empty() {
                let comma = if text.len() > 1 { ", " } else { "" };
                write!(text, "{comma}{name}:").expect("a string takes any text");
                push_quoted_list(&mut text, values);
            }
        }
        text.push('}');
        text
    }
}

/// Whether the text is among the texts.
pub(super) fn has(texts: &[Box<str>], text: &str) -> bool {
    texts.iter().any(|found| **found == *text)
}

/// Whether the text, or what stands for every text, is among the texts.
pub(super) fn has_or_all(texts: &[Box<str>], text: &str) -> bool {
    texts.iter().any(|found| **found == *text || **found == *ALL)
}

/// Whether a rule's path stands for this path.
pub(super) fn url_matches(url: &str, path: &str) -> bool {
    url == path || (url.ends_with(ALL) && path.starts_with(url.trim_end_matches(ALL)))
}

fn resource_matches(resource: &str, asked: &Attributes<'_>) -> bool {
    if resource == ALL {
        return true;
    }
    if asked.subresource.is_empty() {
        return resource == asked.resource;
    }
    // The resource that is asked for may have a slash of its own, in a review: so this compares, and does not split.
    let is_of = |parent: &str| {
        resource
            .strip_prefix(parent)
            .and_then(|rest| rest.strip_prefix('/'))
            .is_some_and(|sub| sub == asked.subresource)
    };
    is_of(asked.resource) || is_of(ALL)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(json: &str) -> PolicyRule {
        serde_json::from_str(json).unwrap()
    }

    /// `verb group/resource[/subresource] name`, or `verb path`.
    fn asked(text: &str) -> Attributes<'_> {
        let mut words = text.split(' ');
        let verb = words.next().unwrap();
        let what = words.next().unwrap();
        if what.starts_with('/') {
            return Attributes { verb, path: what, ..Attributes::default() };
        }
        let mut parts = what.splitn(3, ':');
        let mut part = || parts.next().unwrap_or_default();
        Attributes {
            is_resource_request: true,
            verb,
            api_group: part(),
            resource: part(),
            subresource: part(),
            name: words.next().unwrap_or_default(),
            ..Attributes::default()
        }
    }

    #[test]
    fn a_rule_matches_what_it_matches_for_kubernetes() {
        let pods = r#"{"verbs":["get","list"],"apiGroups":[""],"resources":["pods"]}"#;
        let any_sub = r#"{"verbs":["*"],"apiGroups":["*"],"resources":["*/scale","pods/log"]}"#;
        let named = r#"{"verbs":["get"],"apiGroups":["apps"],"resources":["*"],"resourceNames":["a","b"]}"#;
        let unnamed = r#"{"verbs":["get"],"apiGroups":["apps"],"resources":["x"],"resourceNames":[""]}"#;
        let starred = r#"{"verbs":["get"],"apiGroups":[""],"resources":["pods/*","*/*","a/b"]}"#;
        let urls = r#"{"verbs":["get"],"nonResourceURLs":["/healthz","/api/*","/x**"]}"#;
        let any_url = r#"{"verbs":["*"],"nonResourceURLs":["*"]}"#;
        let inner_star = r#"{"verbs":["get"],"nonResourceURLs":["/a*/b"]}"#;
        for (json, text, expected) in [
            (pods, "get :pods", true),
            (pods, "get :pods x", true),
            (pods, "watch :pods", false),
            (pods, "get apps:pods", false),
            (pods, "get :pods:log", false),
            (pods, "get /pods", false),
            (any_sub, "update apps:deployments:scale", true),
            (any_sub, "get :pods:log", true),
            (any_sub, "get :services:log", false),
            (any_sub, "get apps:deployments", false),
            (any_sub, "get apps:deployments:xscale", false),
            (named, "get apps:deployments b", true),
            (named, "get apps:deployments:scale a", true),
            (named, "get apps:deployments", false),
            (named, "get apps:deployments c", false),
            (unnamed, "get apps:x", true),
            (unnamed, "get apps:x a", false),
            (starred, "get :pods:log", false),
            (starred, "get :pods", false),
            (starred, "get :pods:*", true),
            (starred, "get :a:b", true),
            (urls, "get /healthz", true),
            (urls, "get /healthz/", false),
            (urls, "get /api/", true),
            (urls, "get /api/v1", true),
            (urls, "get /api", false),
            (urls, "get /xyz", true),
            (urls, "put /healthz", false),
            (urls, "get :api", false),
            (any_url, "post /", true),
            (inner_star, "get /ax/b", false),
            (inner_star, "get /a*/b", true),
            ("{}", "get :pods", false),
            (r#"{"verbs":null,"apiGroups":null,"resources":["*"],"more":1}"#, "get :pods", false),
        ] {
            assert_eq!(rule(json).allows(&asked(text)), expected, "{json} {text}");
        }
    }

    #[test]
    fn a_resource_with_a_slash_is_a_subresource_as_well() {
        let log = rule(r#"{"verbs":["get"],"apiGroups":[""],"resources":["pods/log"]}"#);
        assert!(log.allows(&asked("get :pods/log")), "as kubectl auth can-i may ask");
        let every = rule(r#"{"verbs":["get"],"apiGroups":[""],"resources":["*/log"]}"#);
        assert!(!every.allows(&asked("get :pods/log")));
    }

    #[test]
    fn a_rule_is_named_in_short() {
        let rule = rule(r#"{"verbs":["get","list"],"apiGroups":["","apps"],"resources":["a"],"resourceNames":["\""]}"#);
        assert_eq!(
            rule.to_compact_text(),
            r#"{APIGroups:["" "apps"], Resources:["a"], ResourceNames:["\""], Verbs:["get" "list"]}"#
        );
        assert_eq!(PolicyRule::default().to_compact_text(), "{}");
    }
}
