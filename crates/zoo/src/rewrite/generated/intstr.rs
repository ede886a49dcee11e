// Written by `cargo run -p xtask -- codegen-kubernetes` from the API modules of Kubernetes; do not edit.

use crate::rewrite::schema::Type::*;
use crate::rewrite::schema::{Message, inlined, many, map, one};

pub(super) static MESSAGES: &[Message] = &[
    Message { name: "intstr.IntOrString", root: false, bare: false, fields: &[one("type", 1, Int, false), one("intVal", 2, Int, false), one("strVal", 3, Text, false)] },
];
