//! Which paths of the apiserver behind tenants have, as OpenAPI documents name them.
//!
//! Invariant: a path that is neither known nor of a resource that tenants have is not theirs.

use super::resources::Resources;
use crate::kinds::{self, Outcome};

/// What a tenant can do with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Nothing: for tenants it is not there.
    None,
    /// Read.
    Read,
    /// All that upstream can do with it.
    All,
}

/// Whether tenants have the document of OpenAPI 3 of this name, as the index names it.
pub(super) fn has_document(name: &str, resources: &Resources) -> bool {
    match name.split('/').collect::<Vec<_>>()[..] {
        ["api" | "apis" | "version"] | [".well-known", "openid-configuration"] | ["openid", "v1", "jwks"] => true,
        ["apis", group] => resources.has_group(group),
        ["api", version] => resources.has_version("", version),
        ["apis", group, version] => resources.has_version(group, version),
        _ => false,
    }
}

/// What a tenant can do with a path, in which names stand in braces.
pub(super) fn access(path: &str, resources: &Resources) -> Access {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (group, version, rest) = match parts[..] {
        ["api" | "apis" | "version"] | [".well-known", "openid-configuration"] | ["openid", "v1", "jwks"] => {
            return Access::All;
        }
        ["apis", group] => return if resources.has_group(group) { Access::All } else { Access::None },
        ["api", version, ref rest @ ..] => ("", version, rest),
        ["apis", group, version, ref rest @ ..] => (group, version, rest),
        _ => return Access::None,
    };
    if !resources.has_version(group, version) {
        return Access::None;
    }
    let rest = match rest {
        ["watch", rest @ ..] => rest,
        rest => rest,
    };
    // The name of a namespace has another word in the braces.
    let rest = match rest {
        ["namespaces", "{namespace}", rest @ ..] if !rest.is_empty() => rest,
        rest => rest,
    };
    let Some(resource) = rest.first() else { return Access::All };
    match kinds::outcome(group, resource, rest.get(2).copied().unwrap_or_default()) {
        Outcome::Refused(_) => Access::None,
        Outcome::OwnView => Access::Read,
        Outcome::Namespaced | Outcome::OwnCluster | Outcome::Private | Outcome::Decided => Access::All,
    }
}
