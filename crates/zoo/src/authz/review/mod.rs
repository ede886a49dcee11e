//! Answers to those who ask what they or others may do, before they do it: the reviews of authorization.k8s.io/v1 and
//! `SelfSubjectReview` of authentication.k8s.io/v1.
//!
//! A review is not stored: it is posted with a question, and the answer is the same object with its status. Whether the
//! requester may ask at all is decided as for any request, before.
//!
//! Invariant: the answer is, byte by byte, what a kube-apiserver 1.36 with `--authorization-mode=RBAC` writes to a
//! client that asks for JSON; refusals of questions with invalid fields are, too. Of a body that is no such object at
//! all the refusal has Kubernetes' form, but words of our own on what is wrong with the JSON.

mod fields;
mod read;
mod validate;

use kubewharf_kube_api::labels::{IN, NOT_IN, Requirement, is_field_selector, is_selector};
use kubewharf_kube_api::review::{
    ResourceAttributes, SelectorAttributes, SubjectAccessReviewSpec, SubjectAccessReviewStatus,
};
use kubewharf_kube_api::{RequestInfo, Status, json};
use serde::Serialize;
use serde_json::Value;

use self::read::Metadata;
use super::decision::{aggregate, authorize};
use super::policy::Policy;
use super::rules::{PolicyRule, Texts};
use super::{Attributes, UserInfo};

/// A kind of review.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// May this user do this?
    SubjectAccessReview,
    /// May this user do this in this namespace?
    LocalSubjectAccessReview,
    /// May I do this?
    SelfSubjectAccessReview,
    /// What may I do in this namespace?
    SelfSubjectRulesReview,
    /// Who am I?
    SelfSubjectReview,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::SubjectAccessReview,
        Self::LocalSubjectAccessReview,
        Self::SelfSubjectAccessReview,
        Self::SelfSubjectRulesReview,
        Self::SelfSubjectReview,
    ];

    /// The kind of review that this request asks for, if it does.
    #[must_use]
    pub fn of_request(request: &RequestInfo<'_>) -> Option<Self> {
        let is_asked = |kind: &Self| {
            request.is_resource_request
                && request.verb == "create"
                && request.subresource.is_empty()
                && request.api_version == "v1"
                && request.api_group == kind.group()
                && request.resource == kind.resource()
                && request.namespace.is_empty() != (*kind == Self::LocalSubjectAccessReview)
        };
        Self::ALL.into_iter().find(is_asked)
    }

    /// Its name in the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SubjectAccessReview => "SubjectAccessReview",
            Self::LocalSubjectAccessReview => "LocalSubjectAccessReview",
            Self::SelfSubjectAccessReview => "SelfSubjectAccessReview",
            Self::SelfSubjectRulesReview => "SelfSubjectRulesReview",
            Self::SelfSubjectReview => "SelfSubjectReview",
        }
    }

    /// Its API group.
    #[must_use]
    pub fn group(self) -> &'static str {
        if self == Self::SelfSubjectReview { "authentication.k8s.io" } else { "authorization.k8s.io" }
    }

    fn resource(self) -> &'static str {
        match self {
            Self::SubjectAccessReview => "subjectaccessreviews",
            Self::LocalSubjectAccessReview => "localsubjectaccessreviews",
            Self::SelfSubjectAccessReview => "selfsubjectaccessreviews",
            Self::SelfSubjectRulesReview => "selfsubjectrulesreviews",
            Self::SelfSubjectReview => "selfsubjectreviews",
        }
    }

    fn api_version(self) -> &'static str {
        if self == Self::SelfSubjectReview { "authentication.k8s.io/v1" } else { "authorization.k8s.io/v1" }
    }
}

/// A review that was posted.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The kind that the path asks for.
    pub kind: Kind,
    /// The namespace in the path; empty if none.
    pub namespace: &'a str,
    /// The body, as JSON.
    pub body: &'a [u8],
    /// The parameter `fieldManager`; empty if none.
    pub field_manager: &'a str,
    /// The header `User-Agent`; empty if none.
    pub user_agent: &'a str,
    /// The time, as metadata have it: `2026-01-02T03:04:05Z`.
    pub now: &'a str,
}

/// The body of the answer, with code 201, to this user's question.
///
/// # Errors
/// The refusal to answer with.
pub fn answer(policy: &Policy, requester: &UserInfo, question: &Question<'_>) -> Result<Vec<u8>, Status> {
    let kind = question.kind;
    let object = read::object(kind, question.body)?;
    let mut metadata = Metadata::read(&object, kind)?;
    metadata.take_namespace_of(question.namespace)?;
    let mut body = match kind {
        Kind::SelfSubjectReview => who(requester, question.now),
        Kind::SelfSubjectRulesReview => {
            let namespace = object["spec"]["namespace"].as_str().unwrap_or_default();
            if namespace.is_empty() {
                return Err(Status::bad_request("no namespace on request"));
            }
            rules(policy, requester, namespace)
        }
        _ => access(policy, requester, question, &object, &metadata)?,
    };
    body.push(b'\n');
    Ok(body)
}

/// An object, its fields in Kubernetes' order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a, Spec, Status> {
    kind: &'static str,
    api_version: &'static str,
    metadata: WrittenMetadata<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spec: Option<Spec>,
    status: Status,
}

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct WrittenMetadata<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    namespace: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    creation_timestamp: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    managed_fields: Option<[fields::Managed<'a>; 1]>,
}

#[derive(Serialize)]
struct Empty {}

fn access(
    policy: &Policy,
    requester: &UserInfo,
    question: &Question<'_>,
    object: &Value,
    metadata: &Metadata,
) -> Result<Vec<u8>, Status> {
    let kind = question.kind;
    let mut spec: SubjectAccessReviewSpec<'_> = read::spec(kind, object)?;
    if kind == Kind::SelfSubjectAccessReview {
        // This kind has no such fields.
        let SubjectAccessReviewSpec { resource_attributes, non_resource_attributes, .. } = spec;
        spec = SubjectAccessReviewSpec { resource_attributes, non_resource_attributes, ..Default::default() };
    }
    let set_status: SubjectAccessReviewStatus = read::status(kind, object)?;
    let managed = fields::Managed::of(question, metadata, &spec, &set_status);
    let errors = validate::access(kind, &spec, metadata, &managed);
    if !errors.is_empty() {
        // Of an object in the version that it has inside, Kubernetes does not know the kind.
        return Err(Status::invalid(kind.group(), "", "", errors));
    }

    let asker;
    let user = if kind == Kind::SelfSubjectAccessReview {
        requester
    } else {
        asker = UserInfo {
            username: spec.user.clone().into_owned(),
            uid: spec.uid.clone().into_owned(),
            groups: spec.groups.clone().into_owned(),
            extra: spec.extra.clone().into_owned(),
        };
        &asker
    };
    let (asked, evaluation_error) = match (&spec.resource_attributes, &spec.non_resource_attributes) {
        (Some(resource), _) => (of_resource(resource), ignored_selectors(resource)),
        (None, path) => {
            let (verb, path) = path.as_ref().map(|path| (&*path.verb, &*path.path)).unwrap_or_default();
            (Attributes { verb, path, ..Attributes::default() }, String::new())
        }
    };
    let decision = authorize(policy, user, &asked);
    let status = SubjectAccessReviewStatus {
        allowed: decision.allowed,
        denied: false,
        reason: decision.reason.to_string(),
        evaluation_error,
    };
    let metadata = WrittenMetadata {
        namespace: &metadata.namespace,
        managed_fields: Some([managed]),
        ..WrittenMetadata::default()
    };
    let api_version = kind.api_version();
    Ok(json::to_vec(&Written { kind: kind.name(), api_version, metadata, spec: Some(&spec), status }))
}

fn of_resource<'a>(resource: &'a ResourceAttributes<'_>) -> Attributes<'a> {
    Attributes {
        is_resource_request: true,
        verb: &resource.verb,
        api_group: &resource.group,
        resource: &resource.resource,
        subresource: &resource.subresource,
        name: &resource.name,
        namespace: &resource.namespace,
        path: "",
    }
}

/// What can be understood of a selector.
#[derive(Clone, Copy)]
struct Understood {
    raw: fn(&str) -> bool,
    requirement: fn(&Requirement) -> bool,
}

/// Which selectors could not be understood, as Kubernetes tells it. Rules say nothing of selectors, so that nothing
/// more comes of them.
fn ignored_selectors(resource: &ResourceAttributes<'_>) -> String {
    let mut errors = Vec::new();
    let mut look = |name: &str, selector: Option<&SelectorAttributes<'_>>, understood: Understood| {
        let Some(selector) = selector else { return };
        let (found, all) = if selector.requirements.is_empty() {
            let raw = &*selector.raw_selector;
            (0, usize::from(!raw.is_empty() && !(understood.raw)(raw)))
        } else {
            let found =
                selector.requirements.iter().filter(|requirement| (understood.requirement)(requirement)).count();
            (found, selector.requirements.len())
        };
        if found < all {
            let partially = if found > 0 { "partially " } else { "" };
            errors.push(format!("spec.resourceAttributes.{name} {partially}ignored due to parse error"));
        }
    };
    // Kubernetes takes but one value, though it has lists of them, and no test whether a field is there.
    let is_field = |requirement: &Requirement| {
        matches!(requirement.operator.as_str(), IN | NOT_IN) && requirement.values.len() == 1
    };
    let (fields, labels) = (resource.field_selector.as_ref(), resource.label_selector.as_ref());
    look("fieldSelector", fields, Understood { raw: is_field_selector, requirement: is_field });
    look("labelSelector", labels, Understood { raw: is_selector, requirement: Requirement::is_valid });
    errors.join("; ")
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WrittenRules<'a> {
    resource_rules: Vec<WrittenResourceRule<'a>>,
    non_resource_rules: Vec<WrittenNonResourceRule<'a>>,
    incomplete: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    evaluation_error: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WrittenResourceRule<'a> {
    verbs: &'a Texts,
    #[serde(skip_serializing_if = "is_empty")]
    api_groups: &'a Texts,
    #[serde(skip_serializing_if = "is_empty")]
    resources: &'a Texts,
    #[serde(skip_serializing_if = "is_empty")]
    resource_names: &'a Texts,
}

#[derive(Serialize)]
struct WrittenNonResourceRule<'a> {
    verbs: &'a Texts,
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "is_empty")]
    non_resource_urls: &'a Texts,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_empty(texts: &&Texts) -> bool {
    texts.is_empty()
}

fn rules(policy: &Policy, requester: &UserInfo, namespace: &str) -> Vec<u8> {
    let (rules, errors) = policy.rules_for(requester, namespace);
    let mut status = WrittenRules {
        resource_rules: Vec::new(),
        non_resource_rules: Vec::new(),
        incomplete: false,
        evaluation_error: if errors.is_empty() { String::new() } else { aggregate(&errors) },
    };
    for PolicyRule { verbs, api_groups, resources, resource_names, non_resource_urls } in rules {
        if !resources.is_empty() {
            status.resource_rules.push(WrittenResourceRule { verbs, api_groups, resources, resource_names });
        }
        if !non_resource_urls.is_empty() {
            status.non_resource_rules.push(WrittenNonResourceRule { verbs, non_resource_urls });
        }
    }
    plain(Kind::SelfSubjectRulesReview, "", Some(Empty {}), status)
}

fn who(requester: &UserInfo, now: &str) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct WrittenUser<'a> {
        user_info: &'a UserInfo,
    }
    plain(Kind::SelfSubjectReview, now, None::<Empty>, WrittenUser { user_info: requester })
}

/// An answer that is an object of its own, and not the question with a status.
fn plain(kind: Kind, creation_timestamp: &str, spec: Option<impl Serialize>, status: impl Serialize) -> Vec<u8> {
    let metadata = WrittenMetadata { creation_timestamp, ..WrittenMetadata::default() };
    json::to_vec(&Written { kind: kind.name(), api_version: kind.api_version(), metadata, spec, status })
}
