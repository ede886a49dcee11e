// Written by `cargo run -p xtask -- codegen-kubernetes` from the API modules of Kubernetes; do not edit.

use crate::rewrite::schema::Type::*;
use crate::rewrite::schema::{Message, inlined, many, map, one};

pub(super) static MESSAGES: &[Message] = &[
    Message { name: "rbac.v1.AggregationRule", root: false, bare: false, fields: &[many("clusterRoleSelectors", 1, Of("meta.v1.LabelSelector"))] },
    Message { name: "rbac.v1.ClusterRole", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ObjectMeta"), true), many("rules", 2, Of("rbac.v1.PolicyRule")), one("aggregationRule", 3, Of("rbac.v1.AggregationRule"), false)] },
    Message { name: "rbac.v1.ClusterRoleBinding", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ObjectMeta"), true), many("subjects", 2, Of("rbac.v1.Subject")), one("roleRef", 3, Of("rbac.v1.RoleRef"), false)] },
    Message { name: "rbac.v1.ClusterRoleBindingList", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ListMeta"), true), many("items", 2, Of("rbac.v1.ClusterRoleBinding"))] },
    Message { name: "rbac.v1.ClusterRoleList", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ListMeta"), true), many("items", 2, Of("rbac.v1.ClusterRole"))] },
    Message { name: "rbac.v1.PolicyRule", root: false, bare: false, fields: &[many("verbs", 1, Text), many("apiGroups", 2, Text), many("resources", 3, Text), many("resourceNames", 4, Text), many("nonResourceURLs", 5, Text)] },
    Message { name: "rbac.v1.Role", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ObjectMeta"), true), many("rules", 2, Of("rbac.v1.PolicyRule"))] },
    Message { name: "rbac.v1.RoleBinding", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ObjectMeta"), true), many("subjects", 2, Of("rbac.v1.Subject")), one("roleRef", 3, Of("rbac.v1.RoleRef"), false)] },
    Message { name: "rbac.v1.RoleBindingList", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ListMeta"), true), many("items", 2, Of("rbac.v1.RoleBinding"))] },
    Message { name: "rbac.v1.RoleList", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ListMeta"), true), many("items", 2, Of("rbac.v1.Role"))] },
    Message { name: "rbac.v1.RoleRef", root: false, bare: false, fields: &[one("apiGroup", 1, Text, false), one("kind", 2, Text, false), one("name", 3, Text, false)] },
    Message { name: "rbac.v1.Subject", root: false, bare: false, fields: &[one("kind", 1, Text, false), one("apiGroup", 2, Text, true), one("name", 3, Text, false), one("namespace", 4, Text, true)] },
];
