// Written by `cargo run -p xtask -- codegen-kubernetes` from the API modules of Kubernetes; do not edit.

use crate::rewrite::schema::Type::*;
use crate::rewrite::schema::{Message, inlined, many, map, one};

pub(super) static MESSAGES: &[Message] = &[
    Message { name: "policy.v1.Eviction", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ObjectMeta"), true), one("deleteOptions", 2, Of("meta.v1.DeleteOptions"), false)] },
    Message { name: "policy.v1.PodDisruptionBudget", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ObjectMeta"), true), one("spec", 2, Of("policy.v1.PodDisruptionBudgetSpec"), true), one("status", 3, Of("policy.v1.PodDisruptionBudgetStatus"), true)] },
    Message { name: "policy.v1.PodDisruptionBudgetList", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ListMeta"), true), many("items", 2, Of("policy.v1.PodDisruptionBudget"))] },
    Message { name: "policy.v1.PodDisruptionBudgetSpec", root: false, bare: false, fields: &[one("minAvailable", 1, Of("intstr.IntOrString"), false), one("selector", 2, Of("meta.v1.LabelSelector"), false), one("maxUnavailable", 3, Of("intstr.IntOrString"), false), one("unhealthyPodEvictionPolicy", 4, Text, false)] },
    Message { name: "policy.v1.PodDisruptionBudgetStatus", root: false, bare: false, fields: &[one("observedGeneration", 1, Int, true), map("disruptedPods", 2, Of("meta.v1.Time")), one("disruptionsAllowed", 3, Int, false), one("currentHealthy", 4, Int, false), one("desiredHealthy", 5, Int, false), one("expectedPods", 6, Int, false), many("conditions", 7, Of("meta.v1.Condition"))] },
];
