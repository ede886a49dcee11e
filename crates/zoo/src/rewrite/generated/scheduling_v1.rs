// Written by `cargo run -p xtask -- codegen-kubernetes` from the API modules of Kubernetes; do not edit.

use crate::rewrite::schema::Type::*;
use crate::rewrite::schema::{Message, inlined, many, map, one};

pub(super) static MESSAGES: &[Message] = &[
    Message { name: "scheduling.v1.PriorityClass", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ObjectMeta"), true), one("value", 2, Int, false), one("globalDefault", 3, Bool, true), one("description", 4, Text, true), one("preemptionPolicy", 5, Text, false)] },
    Message { name: "scheduling.v1.PriorityClassList", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ListMeta"), true), many("items", 2, Of("scheduling.v1.PriorityClass"))] },
];
