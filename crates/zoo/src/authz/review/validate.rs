//! What a review must look like, as `pkg/apis/authorization/validation` of Kubernetes 1.36.

use kubewharf_kube_api::content::{label_key_errors, label_value_errors};
use kubewharf_kube_api::json;
use kubewharf_kube_api::labels::{DOES_NOT_EXIST, EXISTS, IN, NOT_IN, Requirement};
use kubewharf_kube_api::review::{NonResourceAttributes, SelectorAttributes, SubjectAccessReviewSpec};
use kubewharf_kube_api::status::FieldError;
use serde::Serialize;

use super::Kind;
use super::fields::Managed;
use super::read::Metadata;

/// What is wrong with a question whether somebody may do something.
pub(super) fn access(
    kind: Kind,
    spec: &SubjectAccessReviewSpec<'_>,
    metadata: &Metadata,
    managed: &Managed<'_>,
) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match (&spec.resource_attributes, &spec.non_resource_attributes) {
        (Some(_), Some(path)) => errors.push(FieldError::invalid_value(
            "spec.nonResourceAttributes",
            &as_inside(path),
            "cannot be specified in combination with resourceAttributes",
        )),
        (None, None) => errors.push(FieldError::invalid_value(
            "spec.resourceAttributes",
            "null",
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        )),
        _ => {}
    }
    if kind != Kind::SelfSubjectAccessReview && spec.user.is_empty() && spec.groups.is_empty() {
        errors.push(FieldError::invalid("spec.user", "", "at least one of user or group must be specified"));
    }
    if let Some(resource) = &spec.resource_attributes {
        selector(&mut errors, "fieldSelector", resource.field_selector.as_ref(), field_requirement);
        selector(&mut errors, "labelSelector", resource.label_selector.as_ref(), label_requirement);
    }

    if metadata.is_set() {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Shown<'a> {
            #[serde(flatten)]
            metadata: &'a Metadata,
            managed_fields: [&'a Managed<'a>; 1],
        }
        let shown = json::to_string(&Shown { metadata, managed_fields: [managed] });
        let is_local = kind == Kind::LocalSubjectAccessReview;
        let why = if is_local { "must be empty except for namespace" } else { "must be empty" };
        errors.push(FieldError::invalid_value("metadata", &shown, why));
    }
    if kind == Kind::LocalSubjectAccessReview {
        if let Some(resource) = spec.resource_attributes.as_ref().filter(|found| found.namespace != metadata.namespace)
        {
            let field = "spec.resourceAttributes.namespace";
            errors.push(FieldError::invalid(field, &resource.namespace, "must match metadata.namespace"));
        }
        if let Some(path) = &spec.non_resource_attributes {
            let why = "disallowed on this kind of request";
            errors.push(FieldError::invalid_value("spec.nonResourceAttributes", &as_inside(path), why));
        }
    }
    errors
}

/// As Go writes its type for what is inside Kubernetes, whose fields have no names for JSON.
fn as_inside(path: &NonResourceAttributes<'_>) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Inside<'a> {
        path: &'a str,
        verb: &'a str,
    }
    json::to_string(&Inside { path: &path.path, verb: &path.verb })
}

fn selector(
    errors: &mut Vec<FieldError>,
    name: &str,
    selector: Option<&SelectorAttributes<'_>>,
    check: fn(&mut Vec<FieldError>, &str, &Requirement),
) {
    let Some(SelectorAttributes { raw_selector, requirements }) = selector else { return };
    let field = format!("spec.resourceAttributes.{name}");
    if !raw_selector.is_empty() && !requirements.is_empty() {
        let why = "may not specified at the same time as requirements";
        errors.push(FieldError::invalid(format!("{field}.rawSelector"), raw_selector, why));
    }
    if raw_selector.is_empty() && requirements.is_empty() {
        let why = format!("when {field} is specified, requirements or rawSelector is required");
        errors.push(FieldError::required(format!("{field}.requirements"), &why));
    }
    for (number, requirement) in requirements.iter().enumerate() {
        check(errors, &format!("{field}.requirements[{number}]"), requirement);
    }
}

fn field_requirement(errors: &mut Vec<FieldError>, field: &str, requirement: &Requirement) {
    if requirement.key.is_empty() {
        errors.push(FieldError::required(format!("{field}.key"), "must be specified"));
    }
    values(errors, field, requirement);
}

fn label_requirement(errors: &mut Vec<FieldError>, field: &str, requirement: &Requirement) {
    values(errors, field, requirement);
    for why in label_key_errors(&requirement.key) {
        errors.push(FieldError::invalid(format!("{field}.key"), &requirement.key, &why));
    }
    for (number, value) in requirement.values.iter().enumerate() {
        for why in label_value_errors(value) {
            errors.push(FieldError::invalid(format!("{field}.values[{number}]"), value, &why));
        }
    }
}

/// An operator that is not known is no error: who asks may be newer.
fn values(errors: &mut Vec<FieldError>, field: &str, requirement: &Requirement) {
    let field = format!("{field}.values");
    match requirement.operator.as_str() {
        IN | NOT_IN if requirement.values.is_empty() => {
            errors.push(FieldError::required(field, "must be specified when `operator` is 'In' or 'NotIn'"));
        }
        EXISTS | DOES_NOT_EXIST if !requirement.values.is_empty() => {
            let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errors.push(FieldError::forbidden(field, why));
        }
        _ => {}
    }
}
