// Written by `cargo run -p xtask -- codegen-kubernetes` from the API modules of Kubernetes; do not edit.

use crate::rewrite::schema::Type::*;
use crate::rewrite::schema::{Message, inlined, many, map, one};

pub(super) static MESSAGES: &[Message] = &[
    Message { name: "events.v1.Event", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ObjectMeta"), false), one("eventTime", 2, Of("meta.v1.MicroTime"), false), one("series", 3, Of("events.v1.EventSeries"), false), one("reportingController", 4, Text, true), one("reportingInstance", 5, Text, true), one("action", 6, Text, true), one("reason", 7, Text, true), one("regarding", 8, Of("core.v1.ObjectReference"), true), one("related", 9, Of("core.v1.ObjectReference"), false), one("note", 10, Text, true), one("type", 11, Text, true), one("deprecatedSource", 12, Of("core.v1.EventSource"), true), one("deprecatedFirstTimestamp", 13, Of("meta.v1.Time"), true), one("deprecatedLastTimestamp", 14, Of("meta.v1.Time"), true), one("deprecatedCount", 15, Int, true)] },
    Message { name: "events.v1.EventList", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ListMeta"), true), many("items", 2, Of("events.v1.Event"))] },
    Message { name: "events.v1.EventSeries", root: false, bare: false, fields: &[one("count", 1, Int, false), one("lastObservedTime", 2, Of("meta.v1.MicroTime"), false)] },
];
