// Written by `cargo run -p xtask -- codegen-kubernetes` from the API modules of Kubernetes; do not edit.

use crate::rewrite::schema::Type::*;
use crate::rewrite::schema::{Message, inlined, many, map, one};

pub(super) static MESSAGES: &[Message] = &[
    Message { name: "node.v1.Overhead", root: false, bare: false, fields: &[map("podFixed", 1, Of("quantity.Quantity"))] },
    Message { name: "node.v1.RuntimeClass", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ObjectMeta"), true), one("handler", 2, Text, false), one("overhead", 3, Of("node.v1.Overhead"), false), one("scheduling", 4, Of("node.v1.Scheduling"), false)] },
    Message { name: "node.v1.RuntimeClassList", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ListMeta"), true), many("items", 2, Of("node.v1.RuntimeClass"))] },
    Message { name: "node.v1.Scheduling", root: false, bare: false, fields: &[map("nodeSelector", 1, Text), many("tolerations", 2, Of("core.v1.Toleration"))] },
];
