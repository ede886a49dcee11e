// Written by `cargo run -p xtask -- codegen-kubernetes` from the API modules of Kubernetes; do not edit.

use crate::rewrite::schema::Type::*;
use crate::rewrite::schema::{Message, inlined, many, map, one};

pub(super) static MESSAGES: &[Message] = &[
    Message { name: "discovery.v1.Endpoint", root: false, bare: false, fields: &[many("addresses", 1, Text), one("conditions", 2, Of("discovery.v1.EndpointConditions"), true), one("hostname", 3, Text, false), one("targetRef", 4, Of("core.v1.ObjectReference"), false), map("deprecatedTopology", 5, Text), one("nodeName", 6, Text, false), one("zone", 7, Text, false), one("hints", 8, Of("discovery.v1.EndpointHints"), false)] },
    Message { name: "discovery.v1.EndpointConditions", root: false, bare: false, fields: &[one("ready", 1, Bool, false), one("serving", 2, Bool, false), one("terminating", 3, Bool, false)] },
    Message { name: "discovery.v1.EndpointHints", root: false, bare: false, fields: &[many("forZones", 1, Of("discovery.v1.ForZone")), many("forNodes", 2, Of("discovery.v1.ForNode"))] },
    Message { name: "discovery.v1.EndpointPort", root: false, bare: false, fields: &[one("name", 1, Text, false), one("protocol", 2, Text, false), one("port", 3, Int, false), one("appProtocol", 4, Text, false)] },
    Message { name: "discovery.v1.EndpointSlice", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ObjectMeta"), true), one("addressType", 4, Text, false), many("endpoints", 2, Of("discovery.v1.Endpoint")), many("ports", 3, Of("discovery.v1.EndpointPort"))] },
    Message { name: "discovery.v1.EndpointSliceList", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ListMeta"), true), many("items", 2, Of("discovery.v1.EndpointSlice"))] },
    Message { name: "discovery.v1.ForNode", root: false, bare: false, fields: &[one("name", 1, Text, false)] },
    Message { name: "discovery.v1.ForZone", root: false, bare: false, fields: &[one("name", 1, Text, false)] },
];
