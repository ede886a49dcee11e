// Written by `cargo run -p xtask -- codegen-kubernetes` from the API modules of Kubernetes; do not edit.

use crate::rewrite::schema::Type::*;
use crate::rewrite::schema::{Message, inlined, many, map, one};

pub(super) static MESSAGES: &[Message] = &[
    Message { name: "quantity.Quantity", root: false, bare: false, fields: &[one("string", 1, Text, false)] },
    Message { name: "quantity.QuantityValue", root: false, bare: false, fields: &[one("string", 1, Text, false)] },
];
