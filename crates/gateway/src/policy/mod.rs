//! Rules: which requests a policy takes, and who is let in at all.
//!
//! [`RuleSpec`] is a rule as written, [`Rule`] the same compiled. [`Policies`] finds the first policy of a request,
//! [`Access`] decides whether it is let in; both say why on demand. [`lint()`] tells what is probably wrong with a
//! rule.
//!
//! Invariant: a negative value means what KubeGateway's documentation says, unless [`Semantics::KubeGateway`] is asked
//! for. A question costs no allocation, except for users of very many groups, and gives the same answer as asking one
//! rule after another.

mod access;
mod address;
mod dispatch;
mod explain;
mod index;
mod lint;
mod rule;
mod spec;
mod terms;

use std::net::IpAddr;

use kubewharf_kube_api::RequestInfo;

pub use self::access::{Access, Verdict};
pub use self::address::Block;
pub(crate) use self::address::Ranges;
pub use self::dispatch::{
    Arm, CircuitBreaker, Decision, Degradation, DegradationMode, DispatchPolicy, Policies, Timeouts, Weights,
};
pub use self::explain::{AccessExplanation, Chosen, Explanation, FieldExplanation, PolicyExplanation, RuleExplanation};
pub use self::lint::{Notice, lint};
pub use self::rule::Rule;
pub use self::spec::{RuleSpec, Semantics, ServiceAccountSpec};
use crate::User;

/// What rules ask of a request.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    /// What for.
    pub info: &'a RequestInfo<'a>,
    /// Who asks; after impersonation, if the client impersonates.
    pub user: &'a User,
    /// The `User-Agent` header; empty if there is none.
    pub user_agent: &'a str,
    /// The client's address.
    pub client: IpAddr,
}

/// Why a rule can't be compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A value of `cidrs` is no block of addresses.
    #[error("{value:?} is no block of addresses such as 10.0.0.0/8 or 2001:db8::/32")]
    Cidr {
        /// Its place in the list.
        index: usize,
        /// The value.
        value: String,
    },
}

#[cfg(test)]
mod tests;
