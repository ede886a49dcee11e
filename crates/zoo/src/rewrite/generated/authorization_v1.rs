// Written by `cargo run -p xtask -- codegen-kubernetes` from the API modules of Kubernetes; do not edit.

use crate::rewrite::schema::Type::*;
use crate::rewrite::schema::{Message, inlined, many, map, one};

pub(super) static MESSAGES: &[Message] = &[
    Message { name: "authorization.v1.ExtraValue", root: false, bare: true, fields: &[many("items", 1, Text)] },
    Message { name: "authorization.v1.FieldSelectorAttributes", root: false, bare: false, fields: &[one("rawSelector", 1, Text, true), many("requirements", 2, Of("meta.v1.FieldSelectorRequirement"))] },
    Message { name: "authorization.v1.LabelSelectorAttributes", root: false, bare: false, fields: &[one("rawSelector", 1, Text, true), many("requirements", 2, Of("meta.v1.LabelSelectorRequirement"))] },
    Message { name: "authorization.v1.LocalSubjectAccessReview", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ObjectMeta"), true), one("spec", 2, Of("authorization.v1.SubjectAccessReviewSpec"), false), one("status", 3, Of("authorization.v1.SubjectAccessReviewStatus"), true)] },
    Message { name: "authorization.v1.NonResourceAttributes", root: false, bare: false, fields: &[one("path", 1, Text, true), one("verb", 2, Text, true)] },
    Message { name: "authorization.v1.NonResourceRule", root: false, bare: false, fields: &[many("verbs", 1, Text), many("nonResourceURLs", 2, Text)] },
    Message { name: "authorization.v1.ResourceAttributes", root: false, bare: false, fields: &[one("namespace", 1, Text, true), one("verb", 2, Text, true), one("group", 3, Text, true), one("version", 4, Text, true), one("resource", 5, Text, true), one("subresource", 6, Text, true), one("name", 7, Text, true), one("fieldSelector", 8, Of("authorization.v1.FieldSelectorAttributes"), false), one("labelSelector", 9, Of("authorization.v1.LabelSelectorAttributes"), false)] },
    Message { name: "authorization.v1.ResourceRule", root: false, bare: false, fields: &[many("verbs", 1, Text), many("apiGroups", 2, Text), many("resources", 3, Text), many("resourceNames", 4, Text)] },
    Message { name: "authorization.v1.SelfSubjectAccessReview", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ObjectMeta"), true), one("spec", 2, Of("authorization.v1.SelfSubjectAccessReviewSpec"), false), one("status", 3, Of("authorization.v1.SubjectAccessReviewStatus"), true)] },
    Message { name: "authorization.v1.SelfSubjectAccessReviewSpec", root: false, bare: false, fields: &[one("resourceAttributes", 1, Of("authorization.v1.ResourceAttributes"), false), one("nonResourceAttributes", 2, Of("authorization.v1.NonResourceAttributes"), false)] },
    Message { name: "authorization.v1.SelfSubjectRulesReview", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ObjectMeta"), true), one("spec", 2, Of("authorization.v1.SelfSubjectRulesReviewSpec"), false), one("status", 3, Of("authorization.v1.SubjectRulesReviewStatus"), true)] },
    Message { name: "authorization.v1.SelfSubjectRulesReviewSpec", root: false, bare: false, fields: &[one("namespace", 1, Text, true)] },
    Message { name: "authorization.v1.SubjectAccessReview", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ObjectMeta"), true), one("spec", 2, Of("authorization.v1.SubjectAccessReviewSpec"), false), one("status", 3, Of("authorization.v1.SubjectAccessReviewStatus"), true)] },
    Message { name: "authorization.v1.SubjectAccessReviewSpec", root: false, bare: false, fields: &[one("resourceAttributes", 1, Of("authorization.v1.ResourceAttributes"), false), one("nonResourceAttributes", 2, Of("authorization.v1.NonResourceAttributes"), false), one("user", 3, Text, true), many("groups", 4, Text), map("extra", 5, Of("authorization.v1.ExtraValue")), one("uid", 6, Text, true)] },
    Message { name: "authorization.v1.SubjectAccessReviewStatus", root: false, bare: false, fields: &[one("allowed", 1, Bool, false), one("denied", 4, Bool, true), one("reason", 2, Text, true), one("evaluationError", 3, Text, true)] },
    Message { name: "authorization.v1.SubjectRulesReviewStatus", root: false, bare: false, fields: &[many("resourceRules", 1, Of("authorization.v1.ResourceRule")), many("nonResourceRules", 2, Of("authorization.v1.NonResourceRule")), one("incomplete", 3, Bool, false), one("evaluationError", 4, Text, true)] },
];
