//! Why a request matched what it did: for an admin to read, as text or as JSON.
//!
//! The truth is asked of the same compiled rules that decide; only the words are made here.

use std::fmt;

use serde::Serialize;

use super::Attributes;
use super::rule::Rule;
use super::spec::RuleSpec;

/// What the policies of a cluster made of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The policy that the request belongs to; `None` if no rule matches.
    pub chosen: Option<Chosen>,
    /// All policies, in their order, those behind the chosen one too.
    pub policies: Vec<PolicyExplanation>,
}

/// The policy that a request belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Chosen {
    /// Its place.
    pub policy: usize,
    /// Its name.
    pub name: String,
    /// The place of the rule that matched first.
    pub rule: usize,
}

/// What one policy made of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyExplanation {
    /// Its place.
    pub policy: usize,
    /// Its name.
    pub name: String,
    /// Its rules, in their order.
    pub rules: Vec<RuleExplanation>,
}

impl PolicyExplanation {
    /// Whether one of the rules matches.
    #[must_use]
    pub fn matched(&self) -> bool {
        self.rules.iter().any(|rule| rule.matched)
    }
}

/// What one rule made of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleExplanation {
    /// Its place.
    pub rule: usize,
    /// Whether all fields match.
    pub matched: bool,
    /// The fields that count for the request.
    pub fields: Vec<FieldExplanation>,
}

/// What one field made of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FieldExplanation {
    /// Its name, as in a manifest.
    pub field: &'static str,
    /// Whether it matches.
    pub matched: bool,
    /// What the request has.
    pub request: Vec<String>,
    /// What the rule lists.
    pub rule: Vec<String>,
}

/// What the access rules made of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AccessExplanation {
    /// Whether the request is let in.
    pub allowed: bool,
    /// The `deny` rules.
    pub deny: Vec<RuleExplanation>,
    /// The `allow` rules, if there is such a list.
    pub allow: Option<Vec<RuleExplanation>>,
}

pub(super) fn rules(rules: &[Rule], attributes: &Attributes<'_>) -> Vec<RuleExplanation> {
    let explain = |(place, rule): (usize, &Rule)| RuleExplanation {
        rule: place,
        matched: rule.matches(attributes),
        fields: fields(rule, attributes),
    };
    rules.iter().enumerate().map(explain).collect()
}

fn fields(rule: &Rule, attributes: &Attributes<'_>) -> Vec<FieldExplanation> {
    let (info, user, spec) = (attributes.info, attributes.user, &rule.spec);
    let mut fields = Vec::new();
    let mut add = |field, matched, request: &[&str], values: &[String]| {
        let request = request.iter().map(|value| (*value).to_owned()).collect();
        fields.push(FieldExplanation { field, matched, request, rule: values.to_vec() });
    };
    add("verbs", rule.verbs.matches(&info.verb), &[&info.verb], &spec.verbs);
    if info.is_resource_request {
        add("apiGroups", rule.api_groups.matches(&info.api_group), &[&info.api_group], &spec.api_groups);
        let resource = if info.subresource.is_empty() {
            info.resource.to_string()
        } else {
            format!("{}/{}", info.resource, info.subresource)
        };
        let matched = rule.resources.matches(&info.resource, &info.subresource);
        add("resources", matched, &[&resource], &spec.resources);
        add("resourceNames", rule.resource_names.matches(&info.name), &[&info.name], &spec.resource_names);
        add("namespaces", rule.namespaces.matches(&info.namespace), &[&info.namespace], &spec.namespaces);
    } else {
        let matched = rule.non_resource_urls.matches(&info.path);
        add("nonResourceURLs", matched, &[&info.path], &spec.non_resource_urls);
    }
    add("users, serviceAccounts", rule.matches_user(&user.name), &[&user.name], &user_values(spec));
    let groups: Vec<&str> = user.groups.iter().map(String::as_str).collect();
    add("userGroups", rule.user_groups.matches_any(groups.iter().copied()), &groups, &spec.user_groups);
    let agent = attributes.user_agent;
    add("userAgents", rule.user_agents.matches(agent), &[agent], &spec.user_agents);
    let client = attributes.client.to_canonical().to_string();
    add("cidrs", rule.clients.matches(attributes.client), &[&client], &spec.cidrs);
    fields
}

fn user_values(spec: &RuleSpec) -> Vec<String> {
    let accounts = spec.service_accounts.iter().map(|account| format!("{}/{}", account.namespace, account.name));
    spec.users.iter().cloned().chain(accounts).collect()
}

impl fmt::Display for Explanation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.chosen {
            Some(chosen) => {
                writeln!(formatter, "policy {} ({}) takes it, by rule {}", chosen.policy, chosen.name, chosen.rule)?;
            }
            None => writeln!(formatter, "no policy takes it")?,
        }
        for policy in &self.policies {
            let matched = if policy.matched() { "matches" } else { "does not match" };
            writeln!(formatter, "policy {} ({}) {matched}", policy.policy, policy.name)?;
            policy.rules.iter().try_for_each(|rule| rule.fmt(formatter))?;
        }
        Ok(())
    }
}

impl fmt::Display for AccessExplanation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "access is {}", if self.allowed { "allowed" } else { "denied" })?;
        writeln!(formatter, "deny:")?;
        self.deny.iter().try_for_each(|rule| rule.fmt(formatter))?;
        if let Some(allow) = &self.allow {
            writeln!(formatter, "allow:")?;
            allow.iter().try_for_each(|rule| rule.fmt(formatter))?;
        }
        Ok(())
    }
}

impl fmt::Display for RuleExplanation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "  rule {} {}", self.rule, if self.matched { "matches" } else { "does not match" })?;
        self.fields.iter().filter(|field| !field.matched).try_for_each(|field| field.fmt(formatter))
    }
}

impl fmt::Display for FieldExplanation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let relation = if self.matched { "matches" } else { "does not match" };
        writeln!(formatter, "    {}: {:?} {relation} {:?}", self.field, self.request, self.rule)
    }
}
