//! Who may do what in a tenant. Zoo alone decides it: nothing of a tenant's RBAC is RBAC upstream.
//!
//! [`Policy`] holds a tenant's roles and bindings, over the defaults that every cluster has; [`authorize`] decides by
//! it as Kubernetes' authorizer would. [`escalation`] keeps users from granting what they don't have, [`impersonation`]
//! decides who may act as whom, and [`review`] answers those who ask beforehand.
//!
//! Invariant: pure, and in the tenant's own view: its own names of namespaces, users and groups, never those upstream.
//! What is not allowed by a rule of the tenant's, or to its `system:masters`, is refused.

mod cover;
mod decision;
pub mod defaults;
pub mod escalation;
pub mod impersonation;
pub mod policy;
pub mod review;
pub mod roles;
pub mod rules;
#[cfg(test)]
mod tests;

pub use decision::{Decision, Reason, authorize};
pub use kubewharf_kube_api::review::UserInfo;
pub use policy::Policy;
pub use rules::Attributes;

/// Whether the user is one of those who may do everything, whatever the roles are.
fn is_privileged(user: &UserInfo) -> bool {
    user.groups.iter().any(|group| group == kubewharf_kube_api::users::PRIVILEGED_GROUP)
}
