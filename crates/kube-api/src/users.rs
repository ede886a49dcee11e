//! The names of users and groups that Kubernetes itself gives, as `pkg/authentication` of k8s.io/apiserver v0.36.3.
//!
//! Invariant: a service account's user name is told apart from any other's by its form alone.

use crate::content::{is_dns_label, is_dns_subdomain};

/// The user who has not told who it is.
pub const ANONYMOUS: &str = "system:anonymous";
/// The group of all who have told who they are.
pub const ALL_AUTHENTICATED: &str = "system:authenticated";
/// The group of all who have not.
pub const ALL_UNAUTHENTICATED: &str = "system:unauthenticated";
/// The group whose members may do everything, whatever rules there are.
pub const PRIVILEGED_GROUP: &str = "system:masters";
/// The group of all nodes.
pub const NODES_GROUP: &str = "system:nodes";
/// The group of all service accounts.
pub const ALL_SERVICE_ACCOUNTS: &str = "system:serviceaccounts";
/// What a service account's user name begins with; its namespace, a colon and its name follow.
pub const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";
/// What the name of the group of a namespace's service accounts begins with; the namespace follows.
pub const SERVICE_ACCOUNTS_PREFIX: &str = "system:serviceaccounts:";
/// The key, in a user's extra facts, of the node that a service account's pod is on.
pub const NODE_NAME_KEY: &str = "authentication.kubernetes.io/node-name";
const NODE_PREFIX: &str = "system:node:";

/// A service account's user name.
#[must_use]
pub fn service_account_user(namespace: &str, name: &str) -> String {
    format!("{SERVICE_ACCOUNT_PREFIX}{namespace}:{name}")
}

/// The groups that every service account of this namespace is in, without the one of all users.
#[must_use]
pub fn service_account_groups(namespace: &str) -> Vec<String> {
    vec![ALL_SERVICE_ACCOUNTS.to_owned(), format!("{SERVICE_ACCOUNTS_PREFIX}{namespace}")]
}

/// The namespace and name of the service account that has this user name, if it is a service account's.
#[must_use]
pub fn service_account_of(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix(SERVICE_ACCOUNT_PREFIX)?.split_once(':')?;
    (is_dns_label(namespace.as_bytes()) && is_dns_subdomain(name.as_bytes())).then_some((namespace, name))
}

/// The name of the node that has this user name, if it is a node's.
#[must_use]
pub fn node_of(user: &str) -> Option<&str> {
    user.strip_prefix(NODE_PREFIX).filter(|name| is_dns_subdomain(name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_account_is_known_by_its_name() {
        for (user, expected) in [
            ("system:serviceaccount:shop:web", Some(("shop", "web"))),
            ("system:serviceaccount:shop:web.x", Some(("shop", "web.x"))),
            ("system:serviceaccount:sh.op:web", None),
            ("system:serviceaccount:shop:web:x", None),
            ("system:serviceaccount:shop", None),
            ("system:serviceaccount::web", None),
            ("system:serviceaccount:shop:", None),
            ("system:serviceaccounts:shop:web", None),
            ("jane", None),
        ] {
            assert_eq!(service_account_of(user), expected, "{user}");
        }
        assert_eq!(service_account_of(&service_account_user("shop", "web")), Some(("shop", "web")));
        assert_eq!((node_of("system:node:n-1.x"), node_of("system:node:"), node_of("n")), (Some("n-1.x"), None, None));
    }
}
