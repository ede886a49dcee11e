// Written by `cargo run -p xtask -- codegen-kubernetes` from the API modules of Kubernetes; do not edit.

use crate::rewrite::schema::Type::*;
use crate::rewrite::schema::{Message, inlined, many, map, one};

pub(super) static MESSAGES: &[Message] = &[
    Message { name: "authentication.v1.BoundObjectReference", root: false, bare: false, fields: &[one("kind", 1, Text, true), one("apiVersion", 2, Text, true), one("name", 3, Text, true), one("uid", 4, Text, true)] },
    Message { name: "authentication.v1.ExtraValue", root: false, bare: true, fields: &[many("items", 1, Text)] },
    Message { name: "authentication.v1.SelfSubjectReview", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ObjectMeta"), true), one("status", 2, Of("authentication.v1.SelfSubjectReviewStatus"), true)] },
    Message { name: "authentication.v1.SelfSubjectReviewStatus", root: false, bare: false, fields: &[one("userInfo", 1, Of("authentication.v1.UserInfo"), true)] },
    Message { name: "authentication.v1.TokenRequest", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ObjectMeta"), true), one("spec", 2, Of("authentication.v1.TokenRequestSpec"), false), one("status", 3, Of("authentication.v1.TokenRequestStatus"), true)] },
    Message { name: "authentication.v1.TokenRequestSpec", root: false, bare: false, fields: &[many("audiences", 1, Text), one("expirationSeconds", 4, Int, false), one("boundObjectRef", 3, Of("authentication.v1.BoundObjectReference"), false)] },
    Message { name: "authentication.v1.TokenRequestStatus", root: false, bare: false, fields: &[one("token", 1, Text, false), one("expirationTimestamp", 2, Of("meta.v1.Time"), false)] },
    Message { name: "authentication.v1.TokenReview", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ObjectMeta"), true), one("spec", 2, Of("authentication.v1.TokenReviewSpec"), false), one("status", 3, Of("authentication.v1.TokenReviewStatus"), true)] },
    Message { name: "authentication.v1.TokenReviewSpec", root: false, bare: false, fields: &[one("token", 1, Text, true), many("audiences", 2, Text)] },
    Message { name: "authentication.v1.TokenReviewStatus", root: false, bare: false, fields: &[one("authenticated", 1, Bool, true), one("user", 2, Of("authentication.v1.UserInfo"), true), many("audiences", 4, Text), one("error", 3, Text, true)] },
    Message { name: "authentication.v1.UserInfo", root: false, bare: false, fields: &[one("username", 1, Text, true), one("uid", 2, Text, true), many("groups", 3, Text), map("extra", 4, Of("authentication.v1.ExtraValue"))] },
];
