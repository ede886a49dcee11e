// Written by `cargo run -p xtask -- codegen-kubernetes` from the API modules of Kubernetes; do not edit.

use crate::rewrite::schema::Type::*;
use crate::rewrite::schema::{Message, inlined, many, map, one};

pub(super) static MESSAGES: &[Message] = &[
    Message { name: "certificates.v1.CertificateSigningRequest", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ObjectMeta"), true), one("spec", 2, Of("certificates.v1.CertificateSigningRequestSpec"), false), one("status", 3, Of("certificates.v1.CertificateSigningRequestStatus"), true)] },
    Message { name: "certificates.v1.CertificateSigningRequestCondition", root: false, bare: false, fields: &[one("type", 1, Text, false), one("status", 6, Text, false), one("reason", 2, Text, true), one("message", 3, Text, true), one("lastUpdateTime", 4, Of("meta.v1.Time"), true), one("lastTransitionTime", 5, Of("meta.v1.Time"), true)] },
    Message { name: "certificates.v1.CertificateSigningRequestList", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ListMeta"), true), many("items", 2, Of("certificates.v1.CertificateSigningRequest"))] },
    Message { name: "certificates.v1.CertificateSigningRequestSpec", root: false, bare: false, fields: &[one("request", 1, Bytes, false), one("signerName", 7, Text, false), one("expirationSeconds", 8, Int, false), many("usages", 5, Text), one("username", 2, Text, true), one("uid", 3, Text, true), many("groups", 4, Text), map("extra", 6, Of("certificates.v1.ExtraValue"))] },
    Message { name: "certificates.v1.CertificateSigningRequestStatus", root: false, bare: false, fields: &[many("conditions", 1, Of("certificates.v1.CertificateSigningRequestCondition")), one("certificate", 2, Bytes, true)] },
    Message { name: "certificates.v1.ExtraValue", root: false, bare: true, fields: &[many("items", 1, Text)] },
];
