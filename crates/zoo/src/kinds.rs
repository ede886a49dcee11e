//! Which resources a tenant has, and how each is served: the one table that everything else asks.
//!
//! A resource is known by its group and its plural name; the version does not matter, so a new version of a known resource needs no change
//! here. What a version's objects look like is the business of those who rewrite them.
//!
//! Invariant: what is not in the table is refused. A host's custom resource, an aggregated API and the new resource of a newer Kubernetes
//! reach no tenant until somebody has decided about them, and a refusal is the same whether the host has the resource or not.

use std::fmt;

use kubewharf_kube_api::Status;

/// How a resource or subresource is served to a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Passed upstream, in the namespace that is the tenant's there.
    Namespaced,
    /// Cluster-scoped and the tenant's own: its name has the tenant's prefix upstream.
    OwnCluster,
    /// Kept by zoo, without an effect upstream.
    Private,
    /// Objects of zoo's making that tenants can only read.
    OwnView,
    /// Answered by zoo itself; there is no object.
    Decided,
    /// Not there for tenants.
    Refused(Refusal),
}

impl Outcome {
    /// Whether tenants have it at all.
    #[must_use]
    pub fn is_served(self) -> bool {
        !matches!(self, Self::Refused(_))
    }

    /// Whether a tenant can use this verb on it. Says nothing of what upstream can do with it.
    #[must_use]
    pub fn allows(self, verb: &str) -> bool {
        match self {
            Self::Refused(_) => false,
            Self::OwnView => matches!(verb, "get" | "list" | "watch"),
            Self::Namespaced | Self::OwnCluster | Self::Private | Self::Decided => true,
        }
    }
}

/// Why tenants do not have a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// To come.
    NotYet,
    /// It speaks of the host cluster, or acts on it; no tenant can have it.
    Host,
    /// Nobody has decided about it.
    Undecided,
}

impl Refusal {
    /// The answer to a request for it: as to a request for a resource that is not there, and the reason.
    #[must_use]
    pub fn status(self, group: &str, resource: &str, subresource: &str) -> Status {
        let name = Name { group, resource, subresource };
        let mut status = Status::not_found(match self {
            Self::NotYet => format!("{NOT_FOUND}: {name} are not served to tenants yet"),
            Self::Host => format!("{NOT_FOUND}: {name} belong to the host cluster"),
            // The same words as for what is nowhere.
            Self::Undecided => NOT_FOUND.to_owned(),
        });
        status.details = Some(Box::default());
        status
    }
}

/// What Kubernetes' clients say of a 404 that names no object.
const NOT_FOUND: &str = "the server could not find the requested resource";

/// A resource as people write it: `deployments/scale.apps`.
struct Name<'a> {
    group: &'a str,
    resource: &'a str,
    subresource: &'a str,
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.resource)?;
        for (mark, part) in [("/", self.subresource), (".", self.group)] {
            if !part.is_empty() {
                write!(formatter, "{mark}{part}")?;
            }
        }
        Ok(())
    }
}

/// A known resource.
#[derive(Debug)]
pub struct Resource {
    /// Its group; empty for the legacy one.
    pub group: &'static str,
    /// Its plural name, as in paths.
    pub resource: &'static str,
    /// The kind of its objects.
    pub kind: &'static str,
    /// Whether its objects are in namespaces.
    pub namespaced: bool,
    /// How it is served.
    pub outcome: Outcome,
    /// Its known subresources.
    pub subresources: &'static [Subresource],
    /// What its field selectors can speak of, but `metadata.name` and `metadata.namespace`.
    fields: &'static [(&'static str, Field)],
}

impl Resource {
    /// How the resource itself or, if the name is not empty, a subresource of it is served.
    #[must_use]
    pub fn outcome_of(&self, subresource: &str) -> Outcome {
        if subresource.is_empty() || !self.outcome.is_served() {
            return self.outcome;
        }
        self.subresource(subresource).map_or(Outcome::Refused(Refusal::Undecided), |found| found.outcome)
    }

    /// A subresource by its name.
    #[must_use]
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|subresource| subresource.name == name)
    }

    /// What a requirement of a field selector compares. None: Kubernetes 1.36 knows no such field for this resource and answers 400; sent
    /// upstream it need not be mapped.
    #[must_use]
    pub fn field(&self, label: &str) -> Option<Field> {
        match label {
            "metadata.name" if matches!(self.outcome, Outcome::OwnCluster | Outcome::Private) && !self.namespaced => {
                Some(Field::OwnName)
            }
            "metadata.name" => Some(Field::Keep),
            // Two cluster-scoped resources have a list of their own, without it.
            "metadata.namespace" if matches!(self.resource, "namespaces" | "nodes") => None,
            "metadata.namespace" if self.namespaced => Some(Field::Namespace),
            "metadata.namespace" => Some(Field::Keep),
            _ => self.fields.iter().find(|(known, _)| *known == label).map(|(_, field)| *field),
        }
    }
}

/// A known subresource of a resource that tenants have.
#[derive(Debug)]
pub struct Subresource {
    /// Its name, as in paths.
    pub name: &'static str,
    /// How it is served.
    pub outcome: Outcome,
    /// What is in the bodies of its requests and answers.
    pub body: Body,
}

/// What bodies of a subresource hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// An object of the resource.
    Parent,
    /// An object of this group, version and kind.
    Is(&'static str, &'static str, &'static str),
    /// No object: a stream, or bytes of somebody else.
    Bytes,
}

/// What a requirement of a field selector compares, and so what must be mapped in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Nothing that differs upstream.
    Keep,
    /// A namespace.
    Namespace,
    /// The namespace of what an event is about, which may be in none: upstream a mark in this other field says so.
    AboutNamespace(&'static str),
    /// The name of a cluster-scoped object of the tenant's.
    OwnName,
    /// The name of an object of any kind, which has the prefix upstream if the kind is cluster-scoped: the selector may name the kind in
    /// another requirement (`involvedObject.kind`, `regarding.kind`).
    ObjectName,
}

/// A known resource, served or refused.
#[must_use]
pub fn find(group: &str, resource: &str) -> Option<&'static Resource> {
    let found = RESOURCES.binary_search_by(|known| (known.group, known.resource).cmp(&(group, resource))).ok()?;
    Some(&RESOURCES[found])
}

/// How a resource, or a subresource if the name is not empty, is served to tenants.
#[must_use]
pub fn outcome(group: &str, resource: &str, subresource: &str) -> Outcome {
    find(group, resource).map_or(Outcome::Refused(Refusal::Undecided), |found| found.outcome_of(subresource))
}

/// All known resources, by group and name.
#[must_use]
pub fn all() -> &'static [Resource] {
    RESOURCES
}

/// Whether tenants have any resource of the group.
#[must_use]
pub fn group_is_served(group: &str) -> bool {
    let from = RESOURCES.partition_point(|known| known.group < group);
    RESOURCES[from..].iter().take_while(|known| known.group == group).any(|known| known.outcome.is_served())
}

const fn resource(
    group: &'static str,
    resource: &'static str,
    kind: &'static str,
    namespaced: bool,
    outcome: Outcome,
) -> Resource {
    Resource { group, resource, kind, namespaced, outcome, subresources: &[], fields: &[] }
}

/// Namespaced, passed upstream.
const fn namespaced(group: &'static str, name: &'static str, kind: &'static str) -> Resource {
    resource(group, name, kind, true, Outcome::Namespaced)
}

/// The same, with the subresource `status`.
const fn with_status(group: &'static str, name: &'static str, kind: &'static str) -> Resource {
    namespaced(group, name, kind).subresources(&[STATUS])
}

/// The same, with the subresource `scale`, too.
const fn with_scale(group: &'static str, name: &'static str, kind: &'static str) -> Resource {
    namespaced(group, name, kind).subresources(&[SCALE, STATUS])
}

const fn private(group: &'static str, name: &'static str, kind: &'static str) -> Resource {
    resource(group, name, kind, false, Outcome::Private)
}

const fn decided(group: &'static str, name: &'static str, kind: &'static str) -> Resource {
    resource(group, name, kind, false, Outcome::Decided)
}

/// Cluster-scoped, to come.
const fn not_yet(group: &'static str, name: &'static str, kind: &'static str) -> Resource {
    resource(group, name, kind, false, Outcome::Refused(Refusal::NotYet))
}

/// Cluster-scoped, of the host.
const fn host(group: &'static str, name: &'static str, kind: &'static str) -> Resource {
    resource(group, name, kind, false, Outcome::Refused(Refusal::Host))
}

impl Resource {
    const fn in_namespaces(mut self) -> Self {
        self.namespaced = true;
        self
    }

    const fn subresources(mut self, subresources: &'static [Subresource]) -> Self {
        self.subresources = subresources;
        self
    }

    const fn fields(mut self, fields: &'static [(&'static str, Field)]) -> Self {
        self.fields = fields;
        self
    }
}

const fn subresource(name: &'static str, outcome: Outcome, body: Body) -> Subresource {
    Subresource { name, outcome, body }
}

const STATUS: Subresource = subresource("status", Outcome::Namespaced, Body::Parent);
const SCALE: Subresource = subresource("scale", Outcome::Namespaced, Body::Is("autoscaling", "v1", "Scale"));

const PODS: &[Subresource] = &[
    subresource("attach", Outcome::Namespaced, Body::Bytes),
    // Puts a pod on a node of the host.
    subresource("binding", Outcome::Refused(Refusal::Host), Body::Is("", "v1", "Binding")),
    subresource("ephemeralcontainers", Outcome::Namespaced, Body::Parent),
    subresource("eviction", Outcome::Namespaced, Body::Is("policy", "v1", "Eviction")),
    subresource("exec", Outcome::Namespaced, Body::Bytes),
    subresource("log", Outcome::Namespaced, Body::Bytes),
    subresource("portforward", Outcome::Namespaced, Body::Bytes),
    subresource("proxy", Outcome::Namespaced, Body::Bytes),
    subresource("resize", Outcome::Namespaced, Body::Parent),
    STATUS,
];

const SERVICES: &[Subresource] = &[
    // kube-apiserver connects to whatever address the Service's endpoints name, and tenants write endpoints.
    subresource("proxy", Outcome::Refused(Refusal::NotYet), Body::Bytes),
    STATUS,
];

/// What field selectors for pods can speak of.
const POD_FIELDS: &[(&str, Field)] = &[
    ("spec.host", Field::Keep),
    ("spec.hostNetwork", Field::Keep),
    ("spec.nodeName", Field::Keep),
    ("spec.restartPolicy", Field::Keep),
    ("spec.schedulerName", Field::Keep),
    ("spec.serviceAccountName", Field::Keep),
    ("status.nominatedNodeName", Field::Keep),
    ("status.phase", Field::Keep),
    ("status.podIP", Field::Keep),
    ("status.podIPs", Field::Keep),
];

/// What field selectors for events of the legacy group can speak of.
const LEGACY_EVENT_FIELDS: &[(&str, Field)] = &[
    ("involvedObject.apiVersion", Field::Keep),
    ("involvedObject.fieldPath", Field::Keep),
    ("involvedObject.kind", Field::Keep),
    ("involvedObject.name", Field::ObjectName),
    ("involvedObject.namespace", Field::AboutNamespace("involvedObject.fieldPath")),
    ("involvedObject.resourceVersion", Field::Keep),
    ("involvedObject.uid", Field::Keep),
    ("reason", Field::Keep),
    ("reportingComponent", Field::Keep),
    ("source", Field::Keep),
    ("type", Field::Keep),
];

/// What field selectors for events of their own group can speak of.
const EVENT_FIELDS: &[(&str, Field)] = &[
    ("reason", Field::Keep),
    ("regarding.apiVersion", Field::Keep),
    ("regarding.fieldPath", Field::Keep),
    ("regarding.kind", Field::Keep),
    ("regarding.name", Field::ObjectName),
    ("regarding.namespace", Field::AboutNamespace("regarding.fieldPath")),
    ("regarding.resourceVersion", Field::Keep),
    ("regarding.uid", Field::Keep),
    ("reportingController", Field::Keep),
    ("type", Field::Keep),
];

/// All resources of Kubernetes 1.36, by group and name.
#[rustfmt::skip]
static RESOURCES: &[Resource] = &[
    // A Binding puts a pod on a node of the host.
    host("", "bindings", "Binding").in_namespaces(),
    host("", "componentstatuses", "ComponentStatus"),
    namespaced("", "configmaps", "ConfigMap"),
    namespaced("", "endpoints", "Endpoints"),
    namespaced("", "events", "Event").fields(LEGACY_EVENT_FIELDS),
    namespaced("", "limitranges", "LimitRange"),
    resource("", "namespaces", "Namespace", false, Outcome::OwnCluster)
        .subresources(&[
            // It would let objects live on in a namespace that is gone.
            subresource("finalize", Outcome::Refused(Refusal::Host), Body::Parent),
            subresource("status", Outcome::OwnCluster, Body::Parent),
        ])
        .fields(&[("status.phase", Field::Keep)]),
    resource("", "nodes", "Node", false, Outcome::OwnView)
        .subresources(&[
            // The kubelet obeys kube-apiserver, whoever asks it to connect.
            subresource("proxy", Outcome::Refused(Refusal::Host), Body::Bytes),
            subresource("status", Outcome::Refused(Refusal::Host), Body::Parent),
        ])
        .fields(&[("spec.unschedulable", Field::Keep)]),
    with_status("", "persistentvolumeclaims", "PersistentVolumeClaim"),
    not_yet("", "persistentvolumes", "PersistentVolume"),
    namespaced("", "pods", "Pod").subresources(PODS).fields(POD_FIELDS),
    namespaced("", "podtemplates", "PodTemplate"),
    with_scale("", "replicationcontrollers", "ReplicationController").fields(&[("status.replicas", Field::Keep)]),
    with_status("", "resourcequotas", "ResourceQuota"),
    namespaced("", "secrets", "Secret").fields(&[("type", Field::Keep)]),
    namespaced("", "serviceaccounts", "ServiceAccount")
        .subresources(&[subresource("token", Outcome::Decided, Body::Is("authentication.k8s.io", "v1", "TokenRequest"))]),
    namespaced("", "services", "Service")
        .subresources(SERVICES)
        .fields(&[("spec.clusterIP", Field::Keep), ("spec.type", Field::Keep)]),

    not_yet("admissionregistration.k8s.io", "mutatingadmissionpolicies", "MutatingAdmissionPolicy"),
    not_yet("admissionregistration.k8s.io", "mutatingadmissionpolicybindings", "MutatingAdmissionPolicyBinding"),
    not_yet("admissionregistration.k8s.io", "mutatingwebhookconfigurations", "MutatingWebhookConfiguration"),
    not_yet("admissionregistration.k8s.io", "validatingadmissionpolicies", "ValidatingAdmissionPolicy"),
    not_yet("admissionregistration.k8s.io", "validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding"),
    not_yet("admissionregistration.k8s.io", "validatingwebhookconfigurations", "ValidatingWebhookConfiguration"),
    // Programs list them to learn what a kind is; there are none yet.
    resource("apiextensions.k8s.io", "customresourcedefinitions", "CustomResourceDefinition", false, Outcome::OwnView),
    not_yet("apiregistration.k8s.io", "apiservices", "APIService"),

    namespaced("apps", "controllerrevisions", "ControllerRevision"),
    with_status("apps", "daemonsets", "DaemonSet"),
    with_scale("apps", "deployments", "Deployment"),
    with_scale("apps", "replicasets", "ReplicaSet"),
    with_scale("apps", "statefulsets", "StatefulSet"),

    decided("authentication.k8s.io", "selfsubjectreviews", "SelfSubjectReview"),
    decided("authentication.k8s.io", "tokenreviews", "TokenReview"),
    decided("authorization.k8s.io", "localsubjectaccessreviews", "LocalSubjectAccessReview").in_namespaces(),
    decided("authorization.k8s.io", "selfsubjectaccessreviews", "SelfSubjectAccessReview"),
    decided("authorization.k8s.io", "selfsubjectrulesreviews", "SelfSubjectRulesReview"),
    decided("authorization.k8s.io", "subjectaccessreviews", "SubjectAccessReview"),

    with_status("autoscaling", "horizontalpodautoscalers", "HorizontalPodAutoscaler"),
    with_status("batch", "cronjobs", "CronJob"),
    with_status("batch", "jobs", "Job").fields(&[("status.successful", Field::Keep)]),

    not_yet("certificates.k8s.io", "certificatesigningrequests", "CertificateSigningRequest"),
    not_yet("certificates.k8s.io", "clustertrustbundles", "ClusterTrustBundle"),
    // Made by kubelets for pods.
    host("certificates.k8s.io", "podcertificaterequests", "PodCertificateRequest").in_namespaces(),

    // Elect the host's own components.
    host("coordination.k8s.io", "leasecandidates", "LeaseCandidate").in_namespaces(),
    namespaced("coordination.k8s.io", "leases", "Lease"),
    namespaced("discovery.k8s.io", "endpointslices", "EndpointSlice"),
    namespaced("events.k8s.io", "events", "Event").fields(EVENT_FIELDS),

    not_yet("flowcontrol.apiserver.k8s.io", "flowschemas", "FlowSchema"),
    not_yet("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations", "PriorityLevelConfiguration"),
    host("internal.apiserver.k8s.io", "storageversions", "StorageVersion"),

    not_yet("networking.k8s.io", "ingressclasses", "IngressClass"),
    with_status("networking.k8s.io", "ingresses", "Ingress"),
    not_yet("networking.k8s.io", "ipaddresses", "IPAddress"),
    namespaced("networking.k8s.io", "networkpolicies", "NetworkPolicy"),
    not_yet("networking.k8s.io", "servicecidrs", "ServiceCIDR"),

    not_yet("node.k8s.io", "runtimeclasses", "RuntimeClass"),
    with_status("policy", "poddisruptionbudgets", "PodDisruptionBudget"),

    private("rbac.authorization.k8s.io", "clusterrolebindings", "ClusterRoleBinding"),
    private("rbac.authorization.k8s.io", "clusterroles", "ClusterRole"),
    private("rbac.authorization.k8s.io", "rolebindings", "RoleBinding").in_namespaces(),
    private("rbac.authorization.k8s.io", "roles", "Role").in_namespaces(),

    not_yet("resource.k8s.io", "deviceclasses", "DeviceClass"),
    host("resource.k8s.io", "devicetaintrules", "DeviceTaintRule"),
    not_yet("resource.k8s.io", "resourceclaims", "ResourceClaim").in_namespaces(),
    not_yet("resource.k8s.io", "resourceclaimtemplates", "ResourceClaimTemplate").in_namespaces(),
    host("resource.k8s.io", "resourcepoolstatusrequests", "ResourcePoolStatusRequest"),
    not_yet("resource.k8s.io", "resourceslices", "ResourceSlice"),

    not_yet("scheduling.k8s.io", "podgroups", "PodGroup").in_namespaces(),
    not_yet("scheduling.k8s.io", "priorityclasses", "PriorityClass"),
    not_yet("scheduling.k8s.io", "workloads", "Workload").in_namespaces(),

    not_yet("storage.k8s.io", "csidrivers", "CSIDriver"),
    not_yet("storage.k8s.io", "csinodes", "CSINode"),
    // In namespaces, yet of the host's storage.
    host("storage.k8s.io", "csistoragecapacities", "CSIStorageCapacity").in_namespaces(),
    not_yet("storage.k8s.io", "storageclasses", "StorageClass"),
    host("storage.k8s.io", "volumeattachments", "VolumeAttachment"),
    not_yet("storage.k8s.io", "volumeattributesclasses", "VolumeAttributesClass"),
    host("storagemigration.k8s.io", "storageversionmigrations", "StorageVersionMigration"),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// What kube-apiserver 1.36 serves with all of its APIs switched on, but for subresources of what is refused.
    #[rustfmt::skip]
    const KUBERNETES: &[(&str, &str)] = &[
        ("", "bindings componentstatuses configmaps endpoints events limitranges namespaces namespaces/finalize \
              namespaces/status nodes nodes/proxy nodes/status persistentvolumeclaims persistentvolumeclaims/status \
              persistentvolumes pods pods/attach pods/binding pods/ephemeralcontainers pods/eviction pods/exec pods/log \
              pods/portforward pods/proxy pods/resize pods/status podtemplates replicationcontrollers \
              replicationcontrollers/scale replicationcontrollers/status resourcequotas resourcequotas/status secrets \
              serviceaccounts serviceaccounts/token services services/proxy services/status"),
        ("admissionregistration.k8s.io", "mutatingadmissionpolicies mutatingadmissionpolicybindings \
              mutatingwebhookconfigurations validatingadmissionpolicies validatingadmissionpolicybindings \
              validatingwebhookconfigurations"),
        ("apiextensions.k8s.io", "customresourcedefinitions"),
        ("apiregistration.k8s.io", "apiservices"),
        ("apps", "controllerrevisions daemonsets daemonsets/status deployments deployments/scale deployments/status \
              replicasets replicasets/scale replicasets/status statefulsets statefulsets/scale statefulsets/status"),
        ("authentication.k8s.io", "selfsubjectreviews tokenreviews"),
        ("authorization.k8s.io", "localsubjectaccessreviews selfsubjectaccessreviews selfsubjectrulesreviews \
              subjectaccessreviews"),
        ("autoscaling", "horizontalpodautoscalers horizontalpodautoscalers/status"),
        ("batch", "cronjobs cronjobs/status jobs jobs/status"),
        ("certificates.k8s.io", "certificatesigningrequests clustertrustbundles podcertificaterequests"),
        ("coordination.k8s.io", "leasecandidates leases"),
        ("discovery.k8s.io", "endpointslices"),
        ("events.k8s.io", "events"),
        ("flowcontrol.apiserver.k8s.io", "flowschemas prioritylevelconfigurations"),
        ("internal.apiserver.k8s.io", "storageversions"),
        ("networking.k8s.io", "ingressclasses ingresses ingresses/status ipaddresses networkpolicies servicecidrs"),
        ("node.k8s.io", "runtimeclasses"),
        ("policy", "poddisruptionbudgets poddisruptionbudgets/status"),
        ("rbac.authorization.k8s.io", "clusterrolebindings clusterroles rolebindings roles"),
        ("resource.k8s.io", "deviceclasses devicetaintrules resourceclaims resourceclaimtemplates \
              resourcepoolstatusrequests resourceslices"),
        ("scheduling.k8s.io", "podgroups priorityclasses workloads"),
        ("storage.k8s.io", "csidrivers csinodes csistoragecapacities storageclasses volumeattachments \
              volumeattributesclasses"),
        ("storagemigration.k8s.io", "storageversionmigrations"),
    ];

    #[test]
    fn all_of_kubernetes_is_decided_and_nothing_else() {
        let mut decided = 0;
        for (group, names) in KUBERNETES {
            for name in names.split_whitespace() {
                let (resource, subresource) = name.split_once('/').unwrap_or((name, ""));
                let outcome = outcome(group, resource, subresource);
                assert_ne!(outcome, Outcome::Refused(Refusal::Undecided), "{name}.{group}");
                decided += 1;
            }
        }
        let known: usize = RESOURCES.iter().map(|known| 1 + known.subresources.len()).sum();
        assert_eq!(decided, known);
    }

    #[test]
    fn the_table_is_in_order_and_has_no_row_twice() {
        for pair in RESOURCES.windows(2) {
            assert!((pair[0].group, pair[0].resource) < (pair[1].group, pair[1].resource), "{}", pair[1].resource);
        }
        for known in RESOURCES {
            assert!(std::ptr::eq(find(known.group, known.resource).unwrap(), known));
        }
    }

    #[test]
    fn what_nobody_has_decided_is_refused() {
        let undecided = Outcome::Refused(Refusal::Undecided);
        assert_eq!(outcome("example.com", "pods", ""), undecided);
        assert_eq!(outcome("", "deployments", ""), undecided, "the group counts");
        assert_eq!(outcome("", "pods", "checkpoint"), undecided);
        assert_eq!(outcome("apps", "daemonsets", "scale"), undecided);
        assert_eq!(outcome("tenancy.kubewharf.io", "tenants", ""), undecided);
        assert_eq!(outcome("", "", ""), undecided);
        assert_eq!(outcome("", "persistentvolumes", "status"), Outcome::Refused(Refusal::NotYet));
        assert!(group_is_served("apps") && group_is_served("") && !group_is_served("node.k8s.io"));
        assert!(!group_is_served("zzz") && !group_is_served("app"));
    }

    #[test]
    fn only_namespaced_resources_go_upstream_into_a_namespace() {
        for known in RESOURCES {
            let outcomes = known.subresources.iter().map(|subresource| subresource.outcome).chain([known.outcome]);
            for outcome in outcomes {
                match outcome {
                    Outcome::Namespaced => assert!(known.namespaced, "{}", known.resource),
                    Outcome::OwnCluster | Outcome::OwnView => assert!(!known.namespaced, "{}", known.resource),
                    Outcome::Private | Outcome::Decided | Outcome::Refused(_) => {}
                }
            }
        }
        // Each of these opens the host to a tenant.
        for (group, resource, subresource) in [
            ("", "nodes", "proxy"),
            ("", "nodes", "status"),
            ("", "pods", "binding"),
            ("", "bindings", ""),
            ("", "persistentvolumes", ""),
            ("admissionregistration.k8s.io", "mutatingwebhookconfigurations", ""),
            ("certificates.k8s.io", "certificatesigningrequests", "approval"),
            ("apiregistration.k8s.io", "apiservices", ""),
        ] {
            assert!(!outcome(group, resource, subresource).is_served(), "{resource}/{subresource}");
        }
        assert!(Outcome::OwnView.allows("watch") && !Outcome::OwnView.allows("delete"));
    }

    #[test]
    fn a_refusal_reads_as_a_missing_resource_with_a_reason() {
        let Outcome::Refused(refusal) = outcome("", "persistentvolumes", "") else { panic!("served") };
        let status = refusal.status("", "persistentvolumes", "");
        assert_eq!(status.code, 404);
        assert_eq!(
            status.message,
            "the server could not find the requested resource: persistentvolumes are not served to tenants yet"
        );
        let Outcome::Refused(refusal) = outcome("example.com", "things", "scale") else { panic!("served") };
        let status = refusal.status("example.com", "things", "scale");
        assert_eq!(status.message, NOT_FOUND);
    }

    #[test]
    fn field_selectors_are_mapped_where_names_are() {
        let field = |group, resource, label| find(group, resource).unwrap().field(label);
        assert_eq!(field("", "namespaces", "metadata.name"), Some(Field::OwnName));
        assert_eq!(field("", "namespaces", "metadata.namespace"), None);
        assert_eq!(field("", "pods", "metadata.name"), Some(Field::Keep));
        assert_eq!(field("", "pods", "metadata.namespace"), Some(Field::Namespace));
        assert_eq!(field("", "pods", "spec.nodeName"), Some(Field::Keep));
        assert_eq!(field("", "pods", "spec.nonsense"), None);
        let about = Some(Field::AboutNamespace("involvedObject.fieldPath"));
        assert_eq!(field("", "events", "involvedObject.namespace"), about);
        assert_eq!(field("", "events", "regarding.name"), None);
        assert_eq!(field("events.k8s.io", "events", "regarding.name"), Some(Field::ObjectName));
        assert_eq!(field("rbac.authorization.k8s.io", "clusterroles", "metadata.name"), Some(Field::OwnName));
        let pods = find("", "pods").unwrap();
        assert_eq!(pods.subresource("eviction").unwrap().body, Body::Is("policy", "v1", "Eviction"));
    }
}
