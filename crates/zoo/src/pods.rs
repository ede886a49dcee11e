//! What a pod carries upstream so that the client libraries in it find the tenant's API, and what the tenant sees in its place.
//!
//! The apiserver behind puts it in each pod, whoever creates it (`tenant::mutation`); `rewrite` takes it out of what the tenant reads, and puts
//! it into what the tenant writes over a pod.
//!
//! - An audience of a mounted token is [`AUDIENCE_START`] and the tenant's UID, and behind a colon the audience that the tenant asked for,
//!   if it did. No apiserver takes such a token but zoo, and zoo takes it for this tenant only.
//! - The namespace that a pod is told is an annotation, because the pod's own has another name upstream.
//! - The address of the API is in two variables of each container, which come from annotations.
//!
//! Invariant: a tenant can write none of it. What it writes as an audience is mapped, and the annotations and the paths to them are reserved.

/// What the audiences begin with that only zoo takes.
pub(crate) const AUDIENCE_START: &str = "zoo:";
/// The annotation of what the tenant calls the pod's namespace. A pod that has it has all the rest.
pub(crate) const NAMESPACE_ANNOTATION: &str = "tenancy.kubewharf.io/namespace";
/// The annotation of the host at which the pod finds the tenant's API.
pub(crate) const HOST_ANNOTATION: &str = "tenancy.kubewharf.io/api-host";
/// The annotation of the port there.
pub(crate) const PORT_ANNOTATION: &str = "tenancy.kubewharf.io/api-port";
/// The path by which a pod learns its namespace, as its author writes it.
pub(crate) const NAMESPACE_PATH: &str = "metadata.namespace";
/// What every path to a reserved annotation has in it.
pub(crate) const RESERVED_PATH: &str = "tenancy.kubewharf.io/";

/// The path to an annotation, as the downward API writes it.
#[must_use]
pub(crate) fn path_of(annotation: &str) -> String {
    format!("metadata.annotations['{annotation}']")
}

/// The audience upstream of a token that the tenant of this UID wants for an audience, or for its own API if that is empty.
#[must_use]
pub(crate) fn audience_inward(tenant_uid: &str, audience: &str) -> String {
    let colon = if audience.is_empty() { "" } else { ":" };
    format!("{AUDIENCE_START}{tenant_uid}{colon}{audience}")
}

/// The tenant's audience, which is empty for its own API, from that upstream; none if it is not this tenant's.
#[must_use]
pub(crate) fn audience_outward<'a>(tenant_uid: &str, audience: &'a str) -> Option<&'a str> {
    let rest = audience.strip_prefix(AUDIENCE_START)?.strip_prefix(tenant_uid)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix(':') }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audience_comes_back_to_its_tenant_only() {
        for audience in ["", "vault", "zoo:u", ":"] {
            let upstream = audience_inward("u", audience);
            assert_eq!(audience_outward("u", &upstream), Some(audience));
            assert_eq!(audience_outward("v", &upstream), None);
        }
        assert_eq!(audience_outward("u", "zoo:u2"), None);
        assert_eq!(audience_outward("u", "https://kubernetes.default.svc"), None);
    }
}
