//! A rule as it is written in a manifest.

use serde::{Deserialize, Serialize};

/// One rule: the fields are ANDed, the values of a field are ORed.
///
/// In every list `*` stands for everything. A value that begins with `-` is negative: a list of negative values matches
/// what is none of them; beside a positive value, negative ones are dropped. A list that is left out matches
/// everything, except `verbs`, `apiGroups`, `resources` and `nonResourceURLs`, which then match nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct RuleSpec {
    /// The request's verbs, in lower case: `get`, `list`, `watch`, `create`, …; of a request for no resource, its HTTP
    /// method.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub verbs: Vec<String>,
    /// API groups; the core group is the empty text.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    /// Resources: `pods` (without its subresources), `pods/log`, or `*/status` for the subresource of any resource.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    /// Names of objects. A request without a name (a list, a create) has the empty one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    /// Names of users; `prefix*` stands for all that begin so. A user that is listed here or in `serviceAccounts`
    /// matches.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<String>,
    /// Service accounts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<ServiceAccountSpec>,
    /// Groups: one of the user's must match; negative ones match a user who is in none of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub user_groups: Vec<String>,
    /// Paths of requests for no resource, such as `/healthz`; a `*` at the end stands for any rest. There are no
    /// negative ones.
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
    /// Namespaces, of requests for resources; `prefix*` stands for all that begin so, and the empty text for a request
    /// outside of any namespace. KubeGateway of ByteDance does not have this field.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// The client's `User-Agent`; `prefix*` stands for all that begin so. Not in the original.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub user_agents: Vec<String>,
    /// Addresses of clients: `10.0.0.0/8`, `2001:db8::/32`, or a single address. Not in the original.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cidrs: Vec<String>,
}

/// A service account of a rule. Both fields must be set; there are no wildcards.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ServiceAccountSpec {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
}

/// What negative values mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Semantics {
    /// What KubeGateway's documentation says: none of these.
    #[default]
    Documented,
    /// What its code does (`compat: kubegateway`): two negative values match everything, a negative group matches each
    /// user who has another one, and a negative `prefix*` matches everybody.
    KubeGateway,
}

/// The value that stands for everything.
pub(crate) const ALL: &str = "*";

/// A negative value, without its sign.
pub(crate) fn negative(value: &str) -> Option<&str> {
    value.strip_prefix('-')
}
