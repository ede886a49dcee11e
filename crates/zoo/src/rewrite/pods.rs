//! The strings of a pod that are others upstream; see [`crate::pods`].
//!
//! Invariant: they are changed inward only in a pod itself. In the template of one they stay as they are: the apiserver changes them when it
//! makes the pod. Nowhere can a tenant write what only zoo may.

use super::scan::Fallible;
use super::value::{Change, Op};
use super::walk::refused;
use crate::names::Names;
use crate::pods::{
    AUDIENCE_START, NAMESPACE_ANNOTATION, NAMESPACE_PATH, RESERVED_PATH, audience_inward, audience_outward, path_of,
};

/// What becomes of an audience or of a path of the downward API; none if the string is neither.
pub(super) fn change(op: Op, outward: bool, in_pod: bool, names: &Names, text: &str) -> Fallible<Option<Change>> {
    let change = match (op, outward) {
        (Op::Audience, true) => match audience_outward(names.uid(), text) {
            None => Change::Keep,
            Some("") => Change::Remove,
            Some(audience) => Change::Replace(audience.to_owned()),
        },
        (Op::Audience, false) if text.starts_with(AUDIENCE_START) => {
            return Err(refused("", format!("audiences that begin with {AUDIENCE_START} are reserved")));
        }
        (Op::Audience, false) if in_pod => Change::Replace(audience_inward(names.uid(), text)),
        (Op::FieldPath, true) if text.contains(RESERVED_PATH) => {
            if text == path_of(NAMESPACE_ANNOTATION) {
                Change::Replace(NAMESPACE_PATH.to_owned())
            } else {
                Change::Remove
            }
        }
        (Op::FieldPath, false) if text.contains(RESERVED_PATH) => {
            return Err(refused("", format!("annotations that begin with {RESERVED_PATH} are reserved")));
        }
        (Op::FieldPath, false) if in_pod && text == NAMESPACE_PATH => Change::Replace(path_of(NAMESPACE_ANNOTATION)),
        (Op::Audience | Op::FieldPath, _) => Change::Keep,
        _ => return Ok(None),
    };
    Ok(Some(change))
}
