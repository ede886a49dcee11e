//! Who asks, for the tenant and for upstream.
//!
//! Invariant: upstream, a tenant's user has the tenant's prefix and one group, the tenant's, and no other.

use http::{HeaderMap, HeaderName, HeaderValue};
use kubewharf_foundation::tls::Identity;

use crate::authz::UserInfo;
use crate::certificates::Subject;
use crate::names::Names;
use crate::tenant::upstream_group;
use crate::tokens::CREDENTIAL_ID;

const IMPERSONATE_USER: HeaderName = HeaderName::from_static("impersonate-user");
const IMPERSONATE_GROUP: HeaderName = HeaderName::from_static("impersonate-group");

/// Whom a certificate names. As at a kube-apiserver, who is known is in a group of its own.
pub(crate) fn of_certificate(subject: &Subject, credential: &str) -> UserInfo {
    let mut groups = subject.groups.clone();
    groups.push("system:authenticated".to_owned());
    let extra = vec![(CREDENTIAL_ID.to_owned(), vec![credential.to_owned()])];
    UserInfo { username: subject.user.clone(), groups, extra, ..UserInfo::default() }
}

/// Which certificate it is, as Kubernetes tells it of a user.
pub(crate) fn credential_id(identity: &Identity) -> String {
    let mut id = "X509SHA256=".to_owned();
    for byte in ring::digest::digest(&ring::digest::SHA256, &identity.der).as_ref() {
        id.push_str(&format!("{byte:02x}"));
    }
    id
}

/// Makes a request upstream zoo's own again.
pub(crate) fn forget(headers: &mut HeaderMap) {
    headers.remove(IMPERSONATE_USER);
    headers.remove(IMPERSONATE_GROUP);
}

/// Makes a request upstream one of this user's.
pub(crate) fn impersonate(user: &UserInfo, names: &Names, headers: &mut HeaderMap) {
    // The prefix comes first whoever it is: a service account's name upstream would bring that account's rights along.
    let name = HeaderValue::from_bytes(names.inward(&user.username).as_bytes());
    let name = name.unwrap_or_else(|_| HeaderValue::from_str(names.prefix()).expect("a prefix is ASCII"));
    headers.insert(IMPERSONATE_USER, name);
    let group = HeaderValue::from_str(&upstream_group(names.id())).expect("an id is ASCII");
    headers.insert(IMPERSONATE_GROUP, group);
}
