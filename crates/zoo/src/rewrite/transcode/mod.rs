//! Between protobuf and JSON, by the same table: for the kinds that are decided here and not upstream.
//!
//! Not for the hot path: JSON is read into a tree first. Where the two encodings differ in more than form (times, quantities, numbers that may
//! be names, raw JSON) they are converted as Kubernetes' own types do it.
//!
//! Invariant: what is not in the table is lost, as it is in a Kubernetes program that doesn't know it yet.

mod decode;
mod encode;

use super::{Kind, RewriteError};

/// Messages in messages. Only schemas of custom resources are in themselves.
const DEPTH_MAX: usize = 100;

/// A body in protobuf, in JSON.
///
/// The kind is the expected one, and goes by what the body says of itself.
///
/// # Errors
///
/// The body is malformed, or of a kind that has no protobuf.
pub fn to_json(kind: Kind, protobuf: &[u8]) -> Result<Vec<u8>, RewriteError> {
    decode::body(kind, protobuf).map_err(|error| *error)
}

/// A body in JSON, in protobuf.
///
/// The kind is the expected one, and goes by what the body says of itself.
///
/// # Errors
///
/// The body is malformed, has a value of a wrong type, or is of a kind that has no protobuf.
pub fn to_protobuf(kind: Kind, json: &[u8]) -> Result<Vec<u8>, RewriteError> {
    encode::body(kind, json).map_err(|error| *error)
}

/// Messages that are something else in JSON than an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Special {
    Time,
    MicroTime,
    Duration,
    Quantity,
    IntOrString,
    /// JSON in bytes.
    Raw,
    SchemaOrBool,
    SchemaOrStrings,
    SchemaOrSchemas,
}

impl Special {
    pub(super) fn of(message: &str) -> Option<Self> {
        Some(match message {
            "meta.v1.Time" => Self::Time,
            "meta.v1.MicroTime" => Self::MicroTime,
            "meta.v1.Duration" => Self::Duration,
            "quantity.Quantity" => Self::Quantity,
            "intstr.IntOrString" => Self::IntOrString,
            "runtime.RawExtension" | "meta.v1.FieldsV1" | "apiextensions.v1.JSON" => Self::Raw,
            "apiextensions.v1.JSONSchemaPropsOrBool" => Self::SchemaOrBool,
            "apiextensions.v1.JSONSchemaPropsOrStringArray" => Self::SchemaOrStrings,
            "apiextensions.v1.JSONSchemaPropsOrArray" => Self::SchemaOrSchemas,
            _ => return None,
        })
    }
}

/// The message of schemas.
pub(super) const SCHEMA: &str = "apiextensions.v1.JSONSchemaProps";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_comes_back() {
        let kind = Kind::of("authorization.k8s.io", "v1", "SubjectAccessReview").unwrap();
        let json = br#"{"kind":"SubjectAccessReview","apiVersion":"authorization.k8s.io/v1","metadata":{"creationTimestamp":null},"spec":{"resourceAttributes":{"namespace":"a","verb":"get","resource":"pods"},"user":"jane","groups":["g"],"extra":{"k":["v","w"]}},"status":{"allowed":true}}"#;
        let protobuf = to_protobuf(kind, json).unwrap();
        assert!(protobuf.starts_with(b"k8s\0"));
        let back = to_json(kind, &protobuf).unwrap();
        let tree = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
        let mut expected = tree(json);
        expected["metadata"].as_object_mut().unwrap().remove("creationTimestamp");
        assert_eq!(tree(&back), expected);
    }

    #[test]
    fn a_wrong_type_is_named_by_its_path() {
        let kind = Kind::of("", "v1", "Pod").unwrap();
        let error = to_protobuf(kind, br#"{"spec":{"containers":[{"name":1}]}}"#).unwrap_err();
        assert!(error.to_string().contains("spec.containers[0].name"), "{error}");
        assert!(to_protobuf(Kind::custom(), b"{}").is_err());
        assert!(to_json(kind, b"k8s\0\x12\x02\x0a\x05").is_err());
    }
}
