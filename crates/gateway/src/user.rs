//! Who asks.

/// An authenticated user, as Kubernetes knows users.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// The name; never empty in a request that is forwarded.
    pub name: String,
    /// An identifier that outlives the name; empty if the authenticator knows none.
    pub uid: String,
    /// The groups, in the authenticator's order.
    pub groups: Vec<String>,
    /// Further facts, by key; the keys are as the authenticator gives them.
    pub extra: Vec<(String, Vec<String>)>,
}

/// The user of a request without credentials, where those are let in.
pub const ANONYMOUS: &str = "system:anonymous";
/// The group of users that are not authenticated.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The group of all users that are.
pub const AUTHENTICATED: &str = "system:authenticated";

impl User {
    /// The user of a request without credentials.
    #[must_use]
    pub fn anonymous() -> Self {
        Self { name: ANONYMOUS.to_owned(), groups: vec![UNAUTHENTICATED.to_owned()], ..Self::default() }
    }

    /// Namespace and name of a service account; `None` for any other user.
    #[must_use]
    pub fn service_account(&self) -> Option<(&str, &str)> {
        let (namespace, name) = self.name.strip_prefix("system:serviceaccount:")?.split_once(':')?;
        (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
    }
}
