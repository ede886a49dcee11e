//! What the messages of the Kubernetes API look like, on the wire and in JSON.
//!
//! Most of it is generated from the API's own modules; a few messages that have no protobuf, or that are inside a string, are added here.
//!
//! Invariant: facts only. What is done with a field is said in [`super::marks`].

use std::collections::HashMap;
use std::sync::LazyLock;

use super::generated::PACKAGES;

/// A Go package of the API.
pub(super) struct Package {
    /// What the names of its messages begin with.
    pub(super) name: &'static str,
    /// The API group that it serves.
    pub(super) group: &'static str,
    /// The version; empty if it serves none.
    pub(super) version: &'static str,
    pub(super) messages: &'static [Message],
}

/// A message: a struct in Go, an object in JSON.
pub(super) struct Message {
    /// Its package and name, as in `core.v1.Pod`.
    pub(super) name: &'static str,
    /// It has a kind and an API version of its own.
    pub(super) root: bool,
    /// It is its only field in JSON: a list.
    pub(super) bare: bool,
    pub(super) fields: &'static [Field],
}

/// A field of a message.
pub(super) struct Field {
    /// The name in JSON; empty if the fields of its message stand in its place.
    pub(super) name: &'static str,
    /// The number on the wire.
    pub(super) number: u32,
    pub(super) shape: Shape,
    pub(super) of: Type,
    /// Zero is not written in JSON.
    pub(super) omit_zero: bool,
}

/// How many values a field has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shape {
    One,
    Many,
    /// By a string.
    Map,
}

/// What a value is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Type {
    Text,
    Bytes,
    Bool,
    Int,
    Double,
    Of(&'static str),
}

pub(super) const fn one(name: &'static str, number: u32, of: Type, omit_zero: bool) -> Field {
    Field { name, number, shape: Shape::One, of, omit_zero }
}

pub(super) const fn inlined(number: u32, of: Type) -> Field {
    Field { name: "", number, shape: Shape::One, of, omit_zero: false }
}

pub(super) const fn many(name: &'static str, number: u32, of: Type) -> Field {
    Field { name, number, shape: Shape::Many, of, omit_zero: true }
}

pub(super) const fn map(name: &'static str, number: u32, of: Type) -> Field {
    Field { name, number, shape: Shape::Map, of, omit_zero: true }
}

const fn message(name: &'static str, root: bool, fields: &'static [Field]) -> Message {
    Message { name, root, bare: false, fields }
}

const META: Type = Type::Of("meta.v1.ObjectMeta");
const LIST_META: Type = Type::Of("meta.v1.ListMeta");
const RAW: Type = Type::Of("runtime.RawExtension");

/// Messages that no `.proto` file has.
///
/// `zoo.*` aren't kinds of Kubernetes: a custom resource, of which only the envelope is known, and what strings and raw fields contain.
static MORE: &[Message] = &[
    message("zoo.Custom", true, &[one("metadata", 1, META, true)]),
    message("zoo.CustomList", true, &[one("metadata", 1, LIST_META, true), many("items", 2, Type::Of("zoo.Custom"))]),
    message("zoo.OwnCustom", true, &[one("metadata", 1, META, true)]),
    message(
        "zoo.OwnCustomList",
        true,
        &[one("metadata", 1, LIST_META, true), many("items", 2, Type::Of("zoo.OwnCustom"))],
    ),
    message("zoo.OwnPartial", true, &[one("metadata", 1, META, true)]),
    message(
        "zoo.OwnPartialList",
        true,
        &[one("metadata", 1, LIST_META, true), many("items", 2, Type::Of("zoo.OwnPartial"))],
    ),
    message(
        "meta.v1.Table",
        true,
        &[one("metadata", 1, LIST_META, true), many("rows", 3, Type::Of("meta.v1.TableRow"))],
    ),
    message(
        "meta.v1.TableRow",
        false,
        &[
            many("cells", 1, Type::Text),
            many("conditions", 2, Type::Of("meta.v1.TableRowCondition")),
            one("object", 3, RAW, true),
        ],
    ),
    message("meta.v1.TableRowCondition", false, &[one("message", 4, Type::Text, true)]),
    message("zoo.Fields", false, &[one("f:metadata", 1, Type::Of("zoo.MetadataFields"), true)]),
    message("zoo.MetadataFields", false, &[map("f:labels", 1, Type::Text)]),
    message("zoo.RevisionData", false, &[one("spec", 1, Type::Of("zoo.RevisionSpec"), true)]),
    message("zoo.RevisionSpec", false, &[one("template", 1, Type::Of("core.v1.PodTemplateSpec"), true)]),
];

static BY_NAME: LazyLock<HashMap<&'static str, &'static Message>> =
    LazyLock::new(|| all().map(|message| (message.name, message)).collect());

/// All messages.
pub(super) fn all() -> impl Iterator<Item = &'static Message> {
    PACKAGES.iter().flat_map(|package| package.messages).chain(MORE)
}

/// The message with this name; a variant of one (`NAME@VARIANT`) has its fields.
pub(super) fn find(name: &str) -> Option<&'static Message> {
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    BY_NAME.get(name).copied()
}

/// Group, version, kind and message of all kinds.
pub(super) fn kinds() -> impl Iterator<Item = (&'static str, &'static str, &'static str, &'static Message)> {
    let served = PACKAGES.iter().filter(|package| !package.version.is_empty()).flat_map(|package| {
        package.messages.iter().map(|message| (package.group, package.version, package.name.len() + 1, message))
    });
    let more = MORE
        .iter()
        .filter(|message| message.name.starts_with("meta."))
        .map(|message| ("meta.k8s.io", "v1", "meta.v1.".len(), message));
    served
        .chain(more)
        .filter(|(.., message)| message.root)
        .map(|(group, version, start, message)| (group, version, &message.name[start..], message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_known() {
        for message in all() {
            for field in message.fields {
                if let Type::Of(name) = field.of {
                    assert!(find(name).is_some(), "{}.{} is of {name}", message.name, field.name);
                }
                assert!(!field.name.is_empty() || matches!((field.of, field.shape), (Type::Of(_), Shape::One)));
            }
        }
    }

    #[test]
    fn inlined_fields_and_special_names_are_known() {
        let field =
            |message: &str, number| find(message).unwrap().fields.iter().find(|f| f.number == number).unwrap().name;
        assert_eq!(field("core.v1.Volume", 2), "");
        assert_eq!(field("core.v1.Probe", 1), "");
        assert_eq!(field("networking.v1.ParentReference", 1), "group");
        assert_eq!(field("authentication.v1.BoundObjectReference", 4), "uid");
        assert!(kinds().any(|kind| (kind.0, kind.1, kind.2) == ("apps", "v1", "DeploymentList")));
    }
}
