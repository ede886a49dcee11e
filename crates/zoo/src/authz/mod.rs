//! Who may do what in a tenant. Zoo alone decides it: nothing of a tenant's RBAC is RBAC upstream.
//!
//! [`Policy`] holds a tenant's roles and bindings, over the defaults that every cluster has; [`authorize`] decides by it as
//! Kubernetes' authorizer would. [`escalation`] keeps users from granting what they don't have, [`impersonation`] decides
//! who may act as whom, and [`review`] answers those who ask beforehand.
//!
//! Invariant: pure, and in the tenant's own view: its own names of namespaces, users and groups, never those upstream.
//! What is not allowed by a rule of the tenant's, or to its `system:masters`, is refused.

mod decision;
pub mod defaults;
pub mod policy;
pub mod roles;
pub mod rules;
#[cfg(test)]
mod tests;

pub use decision::{Decision, Reason, authorize};
pub use kubewharf_kube_api::review::UserInfo;
pub use policy::Policy;
pub use rules::Attributes;

/// The group whose members may do everything, whatever the roles are.
pub const SYSTEM_MASTERS: &str = "system:masters";
