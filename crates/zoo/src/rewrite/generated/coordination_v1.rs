// Written by `cargo run -p xtask -- codegen-kubernetes` from the API modules of Kubernetes; do not edit.

use crate::rewrite::schema::Type::*;
use crate::rewrite::schema::{Message, inlined, many, map, one};

pub(super) static MESSAGES: &[Message] = &[
    Message { name: "coordination.v1.Lease", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ObjectMeta"), true), one("spec", 2, Of("coordination.v1.LeaseSpec"), true)] },
    Message { name: "coordination.v1.LeaseList", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ListMeta"), true), many("items", 2, Of("coordination.v1.Lease"))] },
    Message { name: "coordination.v1.LeaseSpec", root: false, bare: false, fields: &[one("holderIdentity", 1, Text, false), one("leaseDurationSeconds", 2, Int, false), one("acquireTime", 3, Of("meta.v1.MicroTime"), false), one("renewTime", 4, Of("meta.v1.MicroTime"), false), one("leaseTransitions", 5, Int, false), one("strategy", 6, Text, false), one("preferredHolder", 7, Text, false)] },
];
