//! Whether a user may do something: [`authorize`].
//!
//! Invariant: the decision is that of Kubernetes 1.36 with `--authorization-mode=RBAC` for the same roles and bindings,
//! and the reason is what it tells in an answer. The reason is put into words only if somebody reads it.

use std::fmt;
use std::sync::Arc;

use super::policy::{Grant, Policy, RoleError};
use super::roles::Binding;
use super::rules::Attributes;
use super::{UserInfo, is_privileged};

/// Whether something is allowed, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether it is.
    pub allowed: bool,
    /// Why, or why not; it may have no words.
    pub reason: Reason,
}

/// Why something is allowed or not. Its text is the one that Kubernetes gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reason {
    /// There is nothing to say: no rule allows it, or the user is one of `system:masters`, who need
    /// no rule.
    #[default]
    Untold,
    /// A role that this binding grants allows it.
    Granted {
        /// The binding.
        binding: Arc<Binding>,
        /// The first of its subjects that is the user.
        subject: usize,
    },
    /// No rule allows it, and these roles of the user's could not be found.
    Unresolved(Vec<RoleError>),
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Untold => Ok(()),
            Self::Granted { binding, subject } => {
                formatter.write_str("RBAC: allowed by ")?;
                binding.describe(*subject, formatter)
            }
            Self::Unresolved(errors) => write!(formatter, "RBAC: {}", aggregate(errors)),
        }
    }
}

/// Several errors in one, as apimachinery's `Aggregate`: each text once, in brackets if there are several.
pub(super) fn aggregate<E: fmt::Display>(errors: &[E]) -> String {
    let mut texts: Vec<String> = Vec::with_capacity(errors.len());
    for error in errors {
        let text = error.to_string();
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    if texts.len() == 1 { texts.swap_remove(0) } else { format!("[{}]", texts.join(", ")) }
}

/// Whether this user may do this in a tenant of this policy.
#[must_use]
pub fn authorize(policy: &Policy, user: &UserInfo, asked: &Attributes<'_>) -> Decision {
    if is_privileged(user) {
        return Decision { allowed: true, reason: Reason::Untold };
    }
    let mut errors = Vec::new();
    for Grant { binding, subject } in policy.grants(user, asked.namespace) {
        match policy.rules_of(&binding.role, &binding.namespace) {
            Ok(rules) => {
                if rules.iter().any(|rule| rule.allows(asked)) {
                    let reason = Reason::Granted { binding: Arc::clone(binding), subject };
                    return Decision { allowed: true, reason };
                }
            }
            Err(error) => errors.push(error),
        }
    }
    Decision { allowed: false, reason: if errors.is_empty() { Reason::Untold } else { Reason::Unresolved(errors) } }
}
