//! The rules: which fields of which messages say something about a tenant's place upstream, and what becomes of them.
//!
//! A message may have variants, written `MESSAGE@VARIANT`, for places where more is known of it: the metadata of a Namespace is
//! `meta.v1.ObjectMeta@own`. A variant has the rules of its message and its own before them.
//!
//! Invariant: a field without a rule is kept both ways. A test goes through all fields that look like a name and fails if one has neither a
//! rule nor an entry in the list of those that are kept on purpose.

use super::about::{UNPLACED, UNPLACED_FIELD};
use super::value::Op;

/// Labels, annotations and finalizers in this domain are KubeZoo's. Tenants neither write nor see them.
pub(super) const RESERVED: &str = "tenancy.kubewharf.io/";
/// The label of everything cluster-scoped that is a tenant's; its value is the tenant's UID.
pub const TENANT_LABEL: &str = "tenancy.kubewharf.io/tenant";
/// The label that kube-apiserver gives to every namespace: its name.
pub(super) const NAMESPACE_LABEL: &str = "kubernetes.io/metadata.name";
const APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The type of Secrets that hold a service account's token.
pub(super) const TOKEN_SECRET: &str = "kubernetes.io/service-account-token";

/// A cluster-scoped kind of which tenants have objects of their own upstream, under prefixed names.
pub(super) struct OwnKind {
    pub(super) group: &'static str,
    pub(super) kind: &'static str,
    pub(super) resource: &'static str,
    message: &'static str,
}

/// All of them.
pub(super) static OWN_CLUSTER_KINDS: &[OwnKind] =
    &[OwnKind { group: "", kind: "Namespace", resource: "namespaces", message: "core.v1.Namespace" }];

/// Whether a reference to this kind (or resource) is to an own cluster-scoped object. A missing group is any.
pub(super) fn is_own_kind(group: Option<&str>, kind: &str) -> bool {
    OWN_CLUSTER_KINDS
        .iter()
        .any(|own| (own.kind == kind || own.resource == kind) && group.is_none_or(|group| group == own.group))
}

/// Whether the objects of this message are own cluster-scoped ones.
pub(super) fn is_own_message(message: &str) -> bool {
    message.starts_with("zoo.Own") || OWN_CLUSTER_KINDS.iter().any(|own| own.message == message)
}

/// What becomes of a field.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mark {
    /// It stays, though there is a rule for fields of its name.
    Keep,
    /// A string, or each of several.
    Value(Op),
    /// It is looked at when all of the message is known; see [`Whole`].
    Slot(Slot),
    /// The message here is this variant.
    As(&'static str),
    /// A map by strings.
    Entries(&'static Entries),
    /// A list of names with domains.
    Domains,
    Deny(Deny),
    /// It isn't told.
    Withhold,
    /// Any object, which says itself what it is.
    Object,
    /// JSON of this message, which on the wire is bytes.
    Json(&'static str),
    /// Anything; if it is a string, it is text.
    Cell,
}

/// A field that a tenant may not write.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deny {
    pub(super) reason: &'static str,
    pub(super) when: When,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum When {
    Always,
    /// Afterwards kube-apiserver lets nobody change it.
    Creating,
    /// Afterwards it must be what it was: this is its path.
    Changing(&'static str),
}

/// What becomes of the entries of a map.
#[derive(Debug)]
pub(super) struct Entries {
    /// Keys that begin so are refused inward.
    pub(super) refused: &'static str,
    /// Keys that begin so are taken away outward.
    pub(super) hidden: &'static str,
    /// The tenant's label is added inward.
    pub(super) labelled: bool,
    pub(super) values: &'static [(&'static str, Entry)],
}

/// What the value of one key is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Entry {
    Value(Op),
    Base64(Op),
    /// An object in JSON that says itself what it is.
    Object,
    /// A list of this message in JSON.
    List(&'static str),
}

/// What a field says about its neighbours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Slot {
    /// A kind, or a resource.
    Kind,
    Group,
    Name,
    Key,
    Values,
    Type,
    Data,
    StringData,
}

/// A rule about several fields of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Whole {
    /// A name of an object of a kind. The group is an API version, or only a group.
    Reference {
        versioned: bool,
    },
    /// The same, of what an event is about.
    About,
    /// The same, of the owner of an object, whom the host's collector of garbage must find.
    Owner,
    /// The same in the answer to a request, so outward only.
    Details,
    /// A user, a group, or a service account.
    Subject,
    RoleRef,
    /// A key of labels and its values; perhaps the labels of namespaces.
    Requirement {
        of_namespaces: bool,
    },
    /// Data whose meaning depends on a type.
    Secret,
    /// None, where the message has one elsewhere.
    Nothing,
}

/// What is added inward to a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Addition {
    /// The tenant's label, to a map of labels.
    Label,
    /// A requirement of the tenant's label, to a list of requirements.
    Requirement,
    /// Metadata with the tenant's label, to an object that has none.
    Metadata,
    /// The audience that only zoo takes, to a token in a pod that names none.
    Audience,
}

const PLAIN: Entries = Entries { refused: RESERVED, hidden: RESERVED, labelled: false, values: &[] };
static LABELS: Entries = PLAIN;
static OWN_LABELS: Entries = Entries { labelled: true, values: &[(NAMESPACE_LABEL, Entry::Value(Op::Name))], ..PLAIN };
static ANNOTATIONS: Entries = Entries {
    values: &[
        (APPLIED, Entry::Object),
        ("autoscaling.alpha.kubernetes.io/conditions", Entry::List("autoscaling.v1.HorizontalPodAutoscalerCondition")),
        ("autoscaling.alpha.kubernetes.io/metrics", Entry::List("autoscaling.v1.MetricSpec")),
        ("autoscaling.alpha.kubernetes.io/current-metrics", Entry::List("autoscaling.v1.MetricStatus")),
    ],
    ..PLAIN
};
static SELECTOR: Entries = Entries { hidden: "", ..PLAIN };
static NAMESPACE_SELECTOR: Entries =
    Entries { hidden: "", values: &[(NAMESPACE_LABEL, Entry::Value(Op::Name))], ..PLAIN };
static FIELDS: Entries = Entries { refused: "", hidden: "f:tenancy.kubewharf.io/", labelled: false, values: &[] };
/// What a quota bounds. The binding in each of a tenant's namespaces is not the tenant's to be counted.
static QUOTA: Entries = Entries { refused: "count/rolebindings", hidden: "", labelled: false, values: &[] };
/// `data` of a Secret with a service account's token.
pub(super) static TOKEN_DATA: Entries =
    Entries { refused: "", hidden: "", labelled: false, values: &[("namespace", Entry::Base64(Op::Name))] };
/// `stringData` of such a Secret.
pub(super) static TOKEN_STRING_DATA: Entries =
    Entries { refused: "", hidden: "", labelled: false, values: &[("namespace", Entry::Value(Op::Name))] };

const NAME: Mark = Mark::Value(Op::Name);
const USER: Mark = Mark::Value(Op::User);
const GROUP: Mark = Mark::Value(Op::Group);
const TEXT: Mark = Mark::Value(Op::Text);
const KIND: Mark = Mark::Slot(Slot::Kind);
const OF_GROUP: Mark = Mark::Slot(Slot::Group);
const OF_NAME: Mark = Mark::Slot(Slot::Name);

const fn deny(reason: &'static str, when: When) -> Mark {
    Mark::Deny(Deny { reason, when })
}

const CLASS: &str = "tenants have no classes of priority or runtime yet";
const NODE_NAME: &str = "the scheduler chooses a pod's node";
const VOLUME_NAME: &str = "the volume of a claim is chosen by its storage class";

/// Message, field, and what becomes of it. The message `*` is any that has no rule of its own for a field of this name.
pub(super) static MARKS: &[(&str, &str, Mark)] = &[
    ("*", "message", TEXT),
    // The author's own, deep in schemas.
    ("apiextensions.v1.ValidationRule", "message", Mark::Keep),
    // Metadata. `@root` is that of an object, `@own` that of a tenant's own cluster-scoped object.
    ("meta.v1.ObjectMeta", "namespace", NAME),
    ("meta.v1.ObjectMeta", "labels", Mark::Entries(&LABELS)),
    ("meta.v1.ObjectMeta", "annotations", Mark::Entries(&LABELS)),
    ("meta.v1.ObjectMeta", "finalizers", Mark::Domains),
    ("meta.v1.ObjectMeta@root", "namespace", Mark::Value(Op::Own)),
    ("meta.v1.ObjectMeta@root", "annotations", Mark::Entries(&ANNOTATIONS)),
    ("meta.v1.ObjectMeta@own", "name", Mark::Value(Op::Own)),
    ("meta.v1.ObjectMeta@own", "generateName", NAME),
    ("meta.v1.ObjectMeta@own", "labels", Mark::Entries(&OWN_LABELS)),
    ("meta.v1.ObjectMeta@own", "annotations", Mark::Entries(&ANNOTATIONS)),
    ("meta.v1.ObjectMeta@own", "managedFields", Mark::As("meta.v1.ManagedFieldsEntry@own")),
    ("meta.v1.ManagedFieldsEntry@own", "fieldsV1", Mark::Json("zoo.Fields")),
    ("zoo.MetadataFields", "f:labels", Mark::Entries(&FIELDS)),
    ("meta.v1.OwnerReference", "apiVersion", OF_GROUP),
    ("meta.v1.OwnerReference", "kind", KIND),
    ("meta.v1.OwnerReference", "name", OF_NAME),
    // Answers and events.
    ("meta.v1.StatusDetails", "group", OF_GROUP),
    ("meta.v1.StatusDetails", "kind", KIND),
    ("meta.v1.StatusDetails", "name", OF_NAME),
    ("meta.v1.TableRow", "cells", Mark::Cell),
    ("meta.v1.TableRow", "object", Mark::Object),
    ("meta.v1.WatchEvent", "object", Mark::Object),
    ("meta.v1.List", "items", Mark::Object),
    ("events.v1.Event", "note", TEXT),
    ("core.v1.Event", "involvedObject", Mark::As("core.v1.ObjectReference@about")),
    ("events.v1.Event", "regarding", Mark::As("core.v1.ObjectReference@about")),
    // It may hold the mark of what is in no namespace, which can't be copied to where it would be told.
    ("core.v1.ObjectReference@about", "fieldPath", TEXT),
    (UNPLACED, "namespace", Mark::Withhold),
    (UNPLACED, "fieldPath", Mark::Withhold),
    (UNPLACED_FIELD, "namespace", Mark::Withhold),
    (UNPLACED_FIELD, "fieldPath", NAME),
    // References.
    ("core.v1.ObjectReference", "apiVersion", OF_GROUP),
    ("core.v1.ObjectReference", "kind", KIND),
    ("core.v1.ObjectReference", "name", OF_NAME),
    ("core.v1.ObjectReference", "namespace", NAME),
    ("core.v1.TypedLocalObjectReference", "apiGroup", OF_GROUP),
    ("core.v1.TypedLocalObjectReference", "kind", KIND),
    ("core.v1.TypedLocalObjectReference", "name", OF_NAME),
    ("core.v1.TypedObjectReference", "apiGroup", OF_GROUP),
    ("core.v1.TypedObjectReference", "kind", KIND),
    ("core.v1.TypedObjectReference", "name", OF_NAME),
    ("core.v1.TypedObjectReference", "namespace", NAME),
    ("core.v1.SecretReference", "namespace", NAME),
    ("core.v1.ConfigMapNodeConfigSource", "namespace", NAME),
    ("core.v1.AzureFilePersistentVolumeSource", "secretNamespace", NAME),
    ("core.v1.GlusterfsPersistentVolumeSource", "endpointsNamespace", NAME),
    ("autoscaling.v1.CrossVersionObjectReference", "apiVersion", OF_GROUP),
    ("autoscaling.v1.CrossVersionObjectReference", "kind", KIND),
    ("autoscaling.v1.CrossVersionObjectReference", "name", OF_NAME),
    ("autoscaling.v2.CrossVersionObjectReference", "apiVersion", OF_GROUP),
    ("autoscaling.v2.CrossVersionObjectReference", "kind", KIND),
    ("autoscaling.v2.CrossVersionObjectReference", "name", OF_NAME),
    ("networking.v1.IngressClassParametersReference", "apiGroup", OF_GROUP),
    ("networking.v1.IngressClassParametersReference", "kind", KIND),
    ("networking.v1.IngressClassParametersReference", "name", OF_NAME),
    ("networking.v1.IngressClassParametersReference", "namespace", NAME),
    ("networking.v1.ParentReference", "group", OF_GROUP),
    ("networking.v1.ParentReference", "resource", KIND),
    ("networking.v1.ParentReference", "name", OF_NAME),
    ("networking.v1.ParentReference", "namespace", NAME),
    ("admissionregistration.v1.ServiceReference", "namespace", NAME),
    ("admissionregistration.v1.ParamRef", "namespace", NAME),
    ("apiextensions.v1.ServiceReference", "namespace", NAME),
    // No own cluster-scoped kind can be scaled, and a service account's secrets are secrets.
    (
        "autoscaling.v1.HorizontalPodAutoscalerSpec",
        "scaleTargetRef",
        Mark::As("autoscaling.v1.CrossVersionObjectReference@scaled"),
    ),
    (
        "autoscaling.v2.HorizontalPodAutoscalerSpec",
        "scaleTargetRef",
        Mark::As("autoscaling.v2.CrossVersionObjectReference@scaled"),
    ),
    ("core.v1.ServiceAccount", "secrets", Mark::As("core.v1.ObjectReference@secret")),
    // Who may do what.
    ("rbac.v1.Subject", "kind", KIND),
    ("rbac.v1.Subject", "name", OF_NAME),
    ("rbac.v1.Subject", "namespace", NAME),
    ("rbac.v1.RoleRef", "kind", KIND),
    ("rbac.v1.RoleRef", "name", OF_NAME),
    ("flowcontrol.v1.UserSubject", "name", USER),
    ("flowcontrol.v1.GroupSubject", "name", GROUP),
    ("flowcontrol.v1.ServiceAccountSubject", "namespace", NAME),
    ("authentication.v1.UserInfo", "username", USER),
    ("authentication.v1.UserInfo", "groups", GROUP),
    ("authentication.v1.TokenReviewStatus", "error", TEXT),
    ("authorization.v1.SubjectAccessReviewSpec", "user", USER),
    ("authorization.v1.SubjectAccessReviewSpec", "groups", GROUP),
    ("authorization.v1.SubjectAccessReviewStatus", "reason", TEXT),
    ("authorization.v1.SubjectAccessReviewStatus", "evaluationError", TEXT),
    ("authorization.v1.SubjectRulesReviewStatus", "evaluationError", TEXT),
    ("authorization.v1.SelfSubjectRulesReviewSpec", "namespace", NAME),
    ("authorization.v1.ResourceAttributes", "group", OF_GROUP),
    ("authorization.v1.ResourceAttributes", "resource", KIND),
    ("authorization.v1.ResourceAttributes", "name", OF_NAME),
    ("authorization.v1.ResourceAttributes", "namespace", NAME),
    ("certificates.v1.CertificateSigningRequestSpec", "username", USER),
    ("certificates.v1.CertificateSigningRequestSpec", "groups", GROUP),
    // Selectors.
    ("meta.v1.LabelSelector", "matchLabels", Mark::Entries(&SELECTOR)),
    ("meta.v1.LabelSelectorRequirement", "key", Mark::Slot(Slot::Key)),
    ("meta.v1.LabelSelector@namespaces", "matchLabels", Mark::Entries(&NAMESPACE_SELECTOR)),
    ("meta.v1.LabelSelector@namespaces", "matchExpressions", Mark::As("meta.v1.LabelSelectorRequirement@namespaces")),
    ("meta.v1.LabelSelectorRequirement@namespaces", "values", Mark::Slot(Slot::Values)),
    ("core.v1.ServiceSpec", "selector", Mark::Entries(&SELECTOR)),
    ("core.v1.ReplicationControllerSpec", "selector", Mark::Entries(&SELECTOR)),
    ("core.v1.PodSpec", "nodeSelector", Mark::Entries(&SELECTOR)),
    ("core.v1.PodAffinityTerm", "namespaces", NAME),
    // Pods, services, claims.
    ("core.v1.Pod", "spec", Mark::As("core.v1.PodSpec@pod")),
    ("core.v1.PodSpec", "nodeName", deny(NODE_NAME, When::Always)),
    ("core.v1.PodSpec@pod", "nodeName", deny(NODE_NAME, When::Creating)),
    ("core.v1.PodSpec", "priorityClassName", deny(CLASS, When::Always)),
    ("core.v1.PodSpec@pod", "priorityClassName", deny(CLASS, When::Creating)),
    ("core.v1.PodSpec", "runtimeClassName", deny(CLASS, When::Always)),
    ("core.v1.PodSpec@pod", "runtimeClassName", deny(CLASS, When::Creating)),
    ("core.v1.ServiceAccountTokenProjection", "audience", Mark::Value(Op::Audience)),
    ("core.v1.ObjectFieldSelector", "fieldPath", Mark::Value(Op::FieldPath)),
    ("core.v1.ResourceQuotaSpec", "hard", Mark::Entries(&QUOTA)),
    ("core.v1.PodStatus", "hostIP", Mark::Withhold),
    ("core.v1.PodStatus", "hostIPs", Mark::Withhold),
    ("core.v1.Binding", "target", deny(NODE_NAME, When::Always)),
    ("core.v1.NodeStatus", "addresses", Mark::Withhold),
    ("core.v1.NodeConfigStatus", "error", TEXT),
    ("core.v1.ComponentCondition", "error", TEXT),
    ("core.v1.ServiceSpec", "externalIPs", deny("an external address may be another's", When::Always)),
    ("core.v1.PersistentVolumeClaim", "spec", Mark::As("core.v1.PersistentVolumeClaimSpec@claim")),
    ("core.v1.PersistentVolumeClaimSpec", "volumeName", deny(VOLUME_NAME, When::Always)),
    ("core.v1.PersistentVolumeClaimSpec@claim", "volumeName", deny(VOLUME_NAME, When::Changing("spec.volumeName"))),
    ("apps.v1.StatefulSetSpec", "volumeClaimTemplates", Mark::As("core.v1.PersistentVolumeClaim@template")),
    ("core.v1.PersistentVolumeClaim@template", "metadata", Mark::As("meta.v1.ObjectMeta")),
    ("core.v1.PersistentVolumeClaim@template", "spec", Mark::As("core.v1.PersistentVolumeClaimSpec")),
    ("core.v1.Secret", "type", Mark::Slot(Slot::Type)),
    ("core.v1.Secret", "data", Mark::Slot(Slot::Data)),
    ("core.v1.Secret", "stringData", Mark::Slot(Slot::StringData)),
    ("apps.v1.ControllerRevision", "data", Mark::Json("zoo.RevisionData")),
];

/// Messages of which several fields are looked at together.
pub(super) static WHOLES: &[(&str, Whole)] = &[
    ("meta.v1.OwnerReference", Whole::Owner),
    ("meta.v1.StatusDetails", Whole::Details),
    ("core.v1.ObjectReference", Whole::Reference { versioned: true }),
    ("core.v1.TypedLocalObjectReference", Whole::Reference { versioned: false }),
    ("core.v1.TypedObjectReference", Whole::Reference { versioned: false }),
    ("autoscaling.v1.CrossVersionObjectReference", Whole::Reference { versioned: true }),
    ("autoscaling.v2.CrossVersionObjectReference", Whole::Reference { versioned: true }),
    ("networking.v1.IngressClassParametersReference", Whole::Reference { versioned: false }),
    ("networking.v1.ParentReference", Whole::Reference { versioned: false }),
    ("authorization.v1.ResourceAttributes", Whole::Reference { versioned: false }),
    ("autoscaling.v1.CrossVersionObjectReference@scaled", Whole::Nothing),
    ("autoscaling.v2.CrossVersionObjectReference@scaled", Whole::Nothing),
    ("core.v1.ObjectReference@secret", Whole::Nothing),
    ("core.v1.ObjectReference@about", Whole::About),
    ("rbac.v1.Subject", Whole::Subject),
    ("rbac.v1.RoleRef", Whole::RoleRef),
    ("meta.v1.LabelSelectorRequirement", Whole::Requirement { of_namespaces: false }),
    ("meta.v1.LabelSelectorRequirement@namespaces", Whole::Requirement { of_namespaces: true }),
    ("core.v1.Secret", Whole::Secret),
];

/// What is added inward: message, field, what.
pub(super) static ADDITIONS: &[(&str, &str, Addition)] = &[
    ("meta.v1.ObjectMeta@own", "labels", Addition::Label),
    ("meta.v1.LabelSelector@namespaces", "matchExpressions", Addition::Requirement),
    ("core.v1.ServiceAccountTokenProjection", "audience", Addition::Audience),
];

/// Messages that go when one of their fields goes: a variable that only zoo gives to a container is none without where it comes from.
pub(super) static GO_WITH_A_FIELD: &[&str] = &["core.v1.ObjectFieldSelector", "core.v1.EnvVarSource", "core.v1.EnvVar"];
