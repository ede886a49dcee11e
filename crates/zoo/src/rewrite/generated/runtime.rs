// Written by `cargo run -p xtask -- codegen-kubernetes` from the API modules of Kubernetes; do not edit.

use crate::rewrite::schema::Type::*;
use crate::rewrite::schema::{Message, inlined, many, map, one};

pub(super) static MESSAGES: &[Message] = &[
    Message { name: "runtime.RawExtension", root: false, bare: false, fields: &[one("-", 1, Bytes, false)] },
    Message { name: "runtime.TypeMeta", root: false, bare: false, fields: &[one("apiVersion", 1, Text, true), one("kind", 2, Text, true)] },
    Message { name: "runtime.Unknown", root: true, bare: false, fields: &[one("typeMeta", 1, Of("runtime.TypeMeta"), false), one("-", 2, Bytes, false), one("contentEncoding", 3, Text, false), one("contentType", 4, Text, false)] },
];
