//! Rewrites the bodies of requests and answers: a tenant's names into those upstream, and back.
//!
//! Bytes, not types: a body is walked once along the fields that say something about a tenant's place, and is copied with those changed. What
//! is unknown stays as it is, so a newer Kubernetes needs no other table. The table is in three parts: what the API's messages look like
//! ([`schema`], generated), what is done with which field ([`marks`], by hand), and both compiled ([`plan`]). JSON ([`json`]) and protobuf
//! ([`wire`]) are walked by the same rules ([`walk`]), and so are patches ([`mod@patch`]). For kinds that are decided here, bodies can be had in
//! the other encoding ([`transcode`]).
//!
//! Invariant: nothing here does input or output, and no bytes make it panic. Inward, everything that names a namespace or an own
//! cluster-scoped object is the tenant's, or the body is refused. Outward, no name is told that isn't the tenant's, and none as it is upstream.
//!
//! Left to others: names in paths and queries, whether the tenant may do it, pod policy, and fields whose meaning is decided elsewhere.

use std::borrow::Cow;

use crate::names::Names;

mod about;
mod edits;
#[rustfmt::skip]
#[allow(unused_imports, reason = "every file has the same ones")]
mod generated;
mod json;
#[cfg(test)]
mod kept;
mod kind;
mod marks;
mod patch;
mod plan;
mod pods;
mod scan;
mod schema;
#[cfg(test)]
mod tests;
mod transcode;
mod value;
mod walk;
mod wire;

pub use kind::Kind;
pub use marks::TENANT_LABEL;
pub use patch::{PatchKind, patch};
pub use transcode::{to_json, to_protobuf};

/// How a body is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Encoding {
    /// `application/json`.
    Json,
    /// `application/vnd.kubernetes.protobuf`.
    Protobuf,
}

/// Which way a body goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From the tenant to kube-apiserver.
    Inward(Write),
    /// From kube-apiserver to the tenant.
    Outward,
}

/// What a body that goes inward is for: some fields may be written only with the object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Write {
    /// To make an object, or anything that isn't an update: a subresource, a review, options.
    Create,
    /// To take the place of one.
    Update,
}

/// What a body says of itself. Both are empty if it says nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TypeMeta {
    /// As in `apps/v1`.
    pub api_version: String,
    /// As in `Deployment`.
    pub kind: String,
}

/// A field that may be written only as it is upstream. The caller has to compare.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unchanged {
    /// Its path, as in `spec.volumeName`.
    pub field: &'static str,
    /// What the body says, never empty.
    pub value: String,
}

/// A field that a tenant may not write so.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// Its path, as in `spec.template.spec.nodeName`.
    pub field: String,
    /// Why not.
    pub reason: Cow<'static, str>,
}

/// Why a body was not rewritten.
#[derive(Debug, thiserror::Error)]
pub enum RewriteError {
    /// It isn't what its encoding says.
    #[error("the body is malformed: {0}")]
    Malformed(String),
    /// The tenant may not write it.
    #[error("{}: {}", .0.field, .0.reason)]
    Refused(Refusal),
    /// There are no rules for its kind, in its encoding.
    #[error("no rules for {0}")]
    Unsupported(String),
    /// It is an object of somebody else's. This field says so.
    #[error("the object is not the tenant's by its field {0}")]
    Foreign(String),
}

/// Appends a body as it is on the other side.
///
/// The kind is the one that was expected: that of the resource, or of its list. A body that says another of itself is taken for that: a
/// `Status`, a `Table`, a `PartialObjectMetadata`. What it may not change is returned, and is almost always nothing.
///
/// # Errors
///
/// See [`RewriteError`]; nothing is appended then.
pub fn object(
    encoding: Encoding,
    kind: Kind,
    direction: Direction,
    names: &Names,
    input: &[u8],
    output: &mut Vec<u8>,
) -> Result<Vec<Unchanged>, RewriteError> {
    let mut walk = walk::Walk::new(kind, direction, names);
    let walked = match encoding {
        Encoding::Json => json::type_of(&mut scan::Scan::new(input), !walk.outward()).and_then(|type_meta| {
            let node = walk.node(type_meta.resolve(kind)?.node(walk.outward()));
            walk.json_text(input, node)
        }),
        Encoding::Protobuf => walk.wire_text(input, kind),
    };
    walked.map_err(|error| *error)?;
    walk.edits.apply(input, output);
    Ok(walk.unchanged)
}

/// Appends an event of a watch as the tenant sees it.
///
/// The kind is that of the resource. In JSON the event is one line; in protobuf it is one frame without its length, which has no envelope.
///
/// # Errors
///
/// See [`RewriteError`]; nothing is appended then.
pub fn watch_event(
    encoding: Encoding,
    kind: Kind,
    names: &Names,
    input: &[u8],
    output: &mut Vec<u8>,
) -> Result<(), RewriteError> {
    let mut walk = walk::Walk::new(kind, Direction::Outward, names);
    let node = walk.node(walk.plan.find("meta.v1.WatchEvent").expect("it is in both plans; there is a test"));
    let walked = match encoding {
        Encoding::Json => walk.json_text(input, node),
        Encoding::Protobuf => walk.wire_bare(input, node),
    };
    walked.map_err(|error| *error)?;
    walk.edits.apply(input, output);
    Ok(())
}

/// What a body says of itself, without reading all of it.
///
/// # Errors
///
/// The body is not what its encoding says, as far as it was read.
pub fn type_of(encoding: Encoding, body: &[u8]) -> Result<TypeMeta, RewriteError> {
    let type_meta = match encoding {
        Encoding::Json => json::type_of(&mut scan::Scan::new(body), false),
        Encoding::Protobuf => wire::Envelope::of_body(body).map(|envelope| envelope.type_meta),
    };
    type_meta.map_err(|error| *error)
}
