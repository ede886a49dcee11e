//! Who asks, for the tenant and for upstream.
//!
//! Invariant: upstream, a tenant's user has the tenant's prefix and one group, the tenant's, and no other.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::certificates::Subject;
use crate::names::Names;
use crate::tenant::upstream_group;

const IMPERSONATE_USER: HeaderName = HeaderName::from_static("impersonate-user");
const IMPERSONATE_GROUP: HeaderName = HeaderName::from_static("impersonate-group");

/// A user, within a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) groups: Vec<String>,
}

impl User {
    /// Whom a certificate names. As at a kube-apiserver, who is known is in a group of its own.
    pub(crate) fn of_certificate(subject: &Subject) -> Self {
        let mut groups = subject.groups.clone();
        groups.push("system:authenticated".to_owned());
        Self { name: subject.user.clone(), groups }
    }

    /// Makes a request upstream one of this user's.
    pub(crate) fn impersonate(&self, names: &Names, headers: &mut HeaderMap) {
        let user = names.user_inward(&self.name);
        // A service account's name upstream would bring that account's rights along.
        let user = if user.starts_with("system:") { names.inward(&self.name) } else { user };
        let user = HeaderValue::from_bytes(user.as_bytes());
        let user = user.unwrap_or_else(|_| HeaderValue::from_str(names.prefix()).expect("a prefix is ASCII"));
        headers.insert(IMPERSONATE_USER, user);
        let group = HeaderValue::from_str(&upstream_group(names.id())).expect("an id is ASCII");
        headers.insert(IMPERSONATE_GROUP, group);
    }
}
