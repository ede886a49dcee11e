//! One compiled rule.

use super::address::AddressTerms;
use super::spec::{RuleSpec, Semantics};
use super::terms::{Empty, ResourceTerms, Style, Terms, contains};
use super::{Attributes, PolicyError};

/// A rule, compiled. See [`RuleSpec`] for what its fields mean.
#[derive(Debug)]
pub struct Rule {
    pub(super) spec: RuleSpec,
    pub(super) verbs: Terms,
    pub(super) api_groups: Terms,
    pub(super) resources: ResourceTerms,
    pub(super) resource_names: Terms,
    pub(super) non_resource_urls: Terms,
    pub(super) users: Terms,
    /// Names of the service accounts' users; sorted.
    pub(super) accounts: Box<[Box<str>]>,
    pub(super) user_groups: Terms,
    pub(super) namespaces: Terms,
    pub(super) user_agents: Terms,
    pub(super) clients: AddressTerms,
}

impl Rule {
    /// Compiles a rule.
    ///
    /// # Errors
    /// When one of the `cidrs` is no block of addresses.
    pub fn new(spec: RuleSpec, semantics: Semantics) -> Result<Self, PolicyError> {
        let has_accounts = !spec.service_accounts.is_empty();
        let clients = AddressTerms::new(&spec.cidrs)
            .map_err(|index| PolicyError::Cidr { index, value: spec.cidrs[index].clone() })?;
        let exact = |values: &[String], empty| Terms::new(values, Style::Exact, empty, semantics);
        // Fields that the original does not have mean what is documented, always.
        let own = |values: &[String]| Terms::new(values, Style::Prefixes, Empty::Everything, Semantics::Documented);
        Ok(Self {
            verbs: exact(&spec.verbs, Empty::Nothing),
            api_groups: exact(&spec.api_groups, Empty::Nothing),
            resources: ResourceTerms::new(&spec.resources, semantics),
            resource_names: exact(&spec.resource_names, Empty::Everything),
            non_resource_urls: Terms::paths(&spec.non_resource_urls),
            users: Terms::new(
                &spec.users,
                Style::Prefixes,
                if has_accounts { Empty::Nothing } else { Empty::Everything },
                semantics,
            ),
            accounts: accounts(&spec),
            user_groups: exact(&spec.user_groups, Empty::Everything),
            namespaces: own(&spec.namespaces),
            user_agents: own(&spec.user_agents),
            clients,
            spec,
        })
    }

    /// The rule as it was written.
    #[must_use]
    pub fn spec(&self) -> &RuleSpec {
        &self.spec
    }

    /// Whether the rule matches a request.
    #[must_use]
    pub fn matches(&self, attributes: &Attributes<'_>) -> bool {
        self.matches_kind(attributes) && self.matches_rest(attributes)
    }

    /// Verb, API group and resource: what [`super::index::RuleSet`] decides without asking the rule.
    pub(super) fn matches_kind(&self, attributes: &Attributes<'_>) -> bool {
        let info = attributes.info;
        self.verbs.matches(&info.verb)
            && (!info.is_resource_request
                || self.api_groups.matches(&info.api_group)
                    && self.resources.matches(&info.resource, &info.subresource))
    }

    /// All other fields.
    pub(super) fn matches_rest(&self, attributes: &Attributes<'_>) -> bool {
        let info = attributes.info;
        let names_match = if info.is_resource_request {
            self.resource_names.matches(&info.name) && self.namespaces.matches(&info.namespace)
        } else {
            self.non_resource_urls.matches(&info.path)
        };
        names_match
            && self.matches_user(&attributes.user.name)
            && self.user_groups.matches_any(attributes.user.groups.iter().map(String::as_str))
            && self.user_agents.matches(attributes.user_agent)
            && self.clients.matches(attributes.client)
    }

    pub(super) fn matches_user(&self, name: &str) -> bool {
        self.users.matches(name) || contains(&self.accounts, name)
    }

    /// Whether every request matches of the kind that `is_resource_request` tells.
    pub(crate) fn matches_every(&self, is_resource_request: bool) -> bool {
        let kind = if is_resource_request {
            self.api_groups.is_all()
                && self.resources.is_all()
                && self.resource_names.is_all()
                && self.namespaces.is_all()
        } else {
            self.non_resource_urls.is_all()
        };
        kind && self.verbs.is_all()
            && self.users.is_all()
            && self.user_groups.is_all()
            && self.user_agents.is_all()
            && self.clients.is_all()
    }
}

/// One with an empty field never matches.
fn accounts(spec: &RuleSpec) -> Box<[Box<str>]> {
    let complete =
        spec.service_accounts.iter().filter(|account| !account.name.is_empty() && !account.namespace.is_empty());
    let mut names: Vec<Box<str>> = complete
        .map(|account| format!("system:serviceaccount:{}:{}", account.namespace, account.name).into_boxed_str())
        .collect();
    names.sort_unstable();
    names.dedup();
    names.into()
}
