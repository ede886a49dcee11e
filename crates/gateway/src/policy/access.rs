//! Who is let in at all, before any policy is asked.

use super::index::RuleSet;
use super::rule::Rule;
use super::{Attributes, explain};

/// What the access rules say about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There are no `allow` rules, and none of the `deny` rules matches.
    Allowed,
    /// No `deny` rule matches, and this `allow` rule does; its place.
    AllowedBy(usize),
    /// This `deny` rule matches; its place.
    DeniedBy(usize),
    /// There are `allow` rules, and none matches.
    NotAllowed,
}

impl Verdict {
    /// Whether the request may go on.
    #[must_use]
    pub fn is_allowed(self) -> bool {
        matches!(self, Self::Allowed | Self::AllowedBy(_))
    }
}

/// Access rules: a request is denied if a `deny` rule matches, or if there are `allow` rules and none matches.
#[derive(Debug, Default)]
pub struct Access {
    deny: RuleSet,
    /// `None` lets everyone in; an empty list lets nobody in.
    allow: Option<RuleSet>,
}

impl Access {
    /// Access by these rules.
    #[must_use]
    pub fn new(deny: Vec<Rule>, allow: Option<Vec<Rule>>) -> Self {
        Self { deny: RuleSet::new(deny), allow: allow.map(RuleSet::new) }
    }

    /// Whether a request is let in.
    #[must_use]
    pub fn check(&self, attributes: &Attributes<'_>) -> Verdict {
        if let Some(place) = self.deny.first_match(attributes) {
            return Verdict::DeniedBy(place);
        }
        match &self.allow {
            None => Verdict::Allowed,
            Some(rules) => rules.first_match(attributes).map_or(Verdict::NotAllowed, Verdict::AllowedBy),
        }
    }

    /// Why a request is let in or not, field by field.
    #[must_use]
    pub fn explain(&self, attributes: &Attributes<'_>) -> explain::AccessExplanation {
        explain::AccessExplanation {
            allowed: self.check(attributes).is_allowed(),
            deny: explain::rules(self.deny.rules(), attributes),
            allow: self.allow.as_ref().map(|rules| explain::rules(rules.rules(), attributes)),
        }
    }
}
