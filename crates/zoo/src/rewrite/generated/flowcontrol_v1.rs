// Written by `cargo run -p xtask -- codegen-kubernetes` from the API modules of Kubernetes; do not edit.

use crate::rewrite::schema::Type::*;
use crate::rewrite::schema::{Message, inlined, many, map, one};

pub(super) static MESSAGES: &[Message] = &[
    Message { name: "flowcontrol.v1.ExemptPriorityLevelConfiguration", root: false, bare: false, fields: &[one("nominalConcurrencyShares", 1, Int, false), one("lendablePercent", 2, Int, false)] },
    Message { name: "flowcontrol.v1.FlowDistinguisherMethod", root: false, bare: false, fields: &[one("type", 1, Text, false)] },
    Message { name: "flowcontrol.v1.FlowSchema", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ObjectMeta"), true), one("spec", 2, Of("flowcontrol.v1.FlowSchemaSpec"), true), one("status", 3, Of("flowcontrol.v1.FlowSchemaStatus"), true)] },
    Message { name: "flowcontrol.v1.FlowSchemaCondition", root: false, bare: false, fields: &[one("type", 1, Text, true), one("status", 2, Text, true), one("lastTransitionTime", 3, Of("meta.v1.Time"), true), one("reason", 4, Text, true), one("message", 5, Text, true)] },
    Message { name: "flowcontrol.v1.FlowSchemaList", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ListMeta"), true), many("items", 2, Of("flowcontrol.v1.FlowSchema"))] },
    Message { name: "flowcontrol.v1.FlowSchemaSpec", root: false, bare: false, fields: &[one("priorityLevelConfiguration", 1, Of("flowcontrol.v1.PriorityLevelConfigurationReference"), false), one("matchingPrecedence", 2, Int, false), one("distinguisherMethod", 3, Of("flowcontrol.v1.FlowDistinguisherMethod"), false), many("rules", 4, Of("flowcontrol.v1.PolicyRulesWithSubjects"))] },
    Message { name: "flowcontrol.v1.FlowSchemaStatus", root: false, bare: false, fields: &[many("conditions", 1, Of("flowcontrol.v1.FlowSchemaCondition"))] },
    Message { name: "flowcontrol.v1.GroupSubject", root: false, bare: false, fields: &[one("name", 1, Text, false)] },
    Message { name: "flowcontrol.v1.LimitResponse", root: false, bare: false, fields: &[one("type", 1, Text, false), one("queuing", 2, Of("flowcontrol.v1.QueuingConfiguration"), false)] },
    Message { name: "flowcontrol.v1.LimitedPriorityLevelConfiguration", root: false, bare: false, fields: &[one("nominalConcurrencyShares", 1, Int, false), one("limitResponse", 2, Of("flowcontrol.v1.LimitResponse"), true), one("lendablePercent", 3, Int, false), one("borrowingLimitPercent", 4, Int, false)] },
    Message { name: "flowcontrol.v1.NonResourcePolicyRule", root: false, bare: false, fields: &[many("verbs", 1, Text), many("nonResourceURLs", 6, Text)] },
    Message { name: "flowcontrol.v1.PolicyRulesWithSubjects", root: false, bare: false, fields: &[many("subjects", 1, Of("flowcontrol.v1.Subject")), many("resourceRules", 2, Of("flowcontrol.v1.ResourcePolicyRule")), many("nonResourceRules", 3, Of("flowcontrol.v1.NonResourcePolicyRule"))] },
    Message { name: "flowcontrol.v1.PriorityLevelConfiguration", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ObjectMeta"), true), one("spec", 2, Of("flowcontrol.v1.PriorityLevelConfigurationSpec"), true), one("status", 3, Of("flowcontrol.v1.PriorityLevelConfigurationStatus"), true)] },
    Message { name: "flowcontrol.v1.PriorityLevelConfigurationCondition", root: false, bare: false, fields: &[one("type", 1, Text, true), one("status", 2, Text, true), one("lastTransitionTime", 3, Of("meta.v1.Time"), true), one("reason", 4, Text, true), one("message", 5, Text, true)] },
    Message { name: "flowcontrol.v1.PriorityLevelConfigurationList", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ListMeta"), true), many("items", 2, Of("flowcontrol.v1.PriorityLevelConfiguration"))] },
    Message { name: "flowcontrol.v1.PriorityLevelConfigurationReference", root: false, bare: false, fields: &[one("name", 1, Text, false)] },
    Message { name: "flowcontrol.v1.PriorityLevelConfigurationSpec", root: false, bare: false, fields: &[one("type", 1, Text, false), one("limited", 2, Of("flowcontrol.v1.LimitedPriorityLevelConfiguration"), false), one("exempt", 3, Of("flowcontrol.v1.ExemptPriorityLevelConfiguration"), false)] },
    Message { name: "flowcontrol.v1.PriorityLevelConfigurationStatus", root: false, bare: false, fields: &[many("conditions", 1, Of("flowcontrol.v1.PriorityLevelConfigurationCondition"))] },
    Message { name: "flowcontrol.v1.QueuingConfiguration", root: false, bare: false, fields: &[one("queues", 1, Int, false), one("handSize", 2, Int, false), one("queueLengthLimit", 3, Int, false)] },
    Message { name: "flowcontrol.v1.ResourcePolicyRule", root: false, bare: false, fields: &[many("verbs", 1, Text), many("apiGroups", 2, Text), many("resources", 3, Text), one("clusterScope", 4, Bool, true), many("namespaces", 5, Text)] },
    Message { name: "flowcontrol.v1.ServiceAccountSubject", root: false, bare: false, fields: &[one("namespace", 1, Text, false), one("name", 2, Text, false)] },
    Message { name: "flowcontrol.v1.Subject", root: false, bare: false, fields: &[one("kind", 1, Text, false), one("user", 2, Of("flowcontrol.v1.UserSubject"), false), one("group", 3, Of("flowcontrol.v1.GroupSubject"), false), one("serviceAccount", 4, Of("flowcontrol.v1.ServiceAccountSubject"), false)] },
    Message { name: "flowcontrol.v1.UserSubject", root: false, bare: false, fields: &[one("name", 1, Text, false)] },
];
