//! Discovery documents for tenants: of what the apiserver behind serves, what tenants have.
//!
//! Invariant: the name of a resource that tenants do not have is in none of them, nor is a group or version in which they have nothing.
//!
//! The same rules hold for JSON and protobuf; fields have names in the one and numbers in the other.

use super::json::{self, Edit};
use super::proto;
use super::resources::Resources;
use super::{Encoding, Malformed};
use crate::kinds::{self, Outcome};

/// The clients whose address does not matter.
const ANY_CLIENT: &str = "0.0.0.0/0";

/// `APIVersions`, the answer to `/api`: with the address at which tenants find zoo.
pub(super) fn versions(document: &[u8], encoding: Encoding, public_address: &str) -> Result<Edit, Malformed> {
    match encoding {
        Encoding::Json => {
            let rules = serde_json::json!([{"clientCIDR": ANY_CLIENT, "serverAddress": public_address}]);
            json::edit_object(document, |key, _| {
                Ok(if key == "serverAddressByClientCIDRs" {
                    Edit::Replace(rules.to_string().into_bytes())
                } else {
                    Edit::Keep
                })
            })
        }
        Encoding::Protobuf => proto::edit_enveloped(document, |versions| {
            let mut rule = Vec::new();
            proto::push(&mut rule, 1, ANY_CLIENT.as_bytes());
            proto::push(&mut rule, 2, public_address.as_bytes());
            let mut rule = Some(rule);
            proto::edit(versions, |field| {
                Ok(match field.number {
                    2 => rule.take().map_or(Edit::Drop, Edit::Replace),
                    _ => Edit::Keep,
                })
            })
        }),
    }
}

/// `APIGroupList`, the answer to `/apis`.
pub(super) fn group_list(document: &[u8], encoding: Encoding, resources: &Resources) -> Result<Edit, Malformed> {
    match encoding {
        Encoding::Json => edit_list(document, "groups", |group| json_group(group, resources)),
        Encoding::Protobuf => proto::edit_enveloped(document, |list| {
            proto::edit(list, |field| match field.number {
                1 => proto_group(field.bytes()?, resources),
                _ => Ok(Edit::Keep),
            })
        }),
    }
}

/// `APIGroup`, the answer to `/apis/GROUP`.
pub(super) fn group(document: &[u8], encoding: Encoding, resources: &Resources) -> Result<Edit, Malformed> {
    match encoding {
        Encoding::Json => json_group(document, resources),
        Encoding::Protobuf => proto::edit_enveloped(document, |group| proto_group(group, resources)),
    }
}

fn json_group(group: &[u8], resources: &Resources) -> Result<Edit, Malformed> {
    let name = json::text_member(group, "name")?;
    let Some(preferred) = resources.versions_of(&name).next() else { return Ok(Edit::Drop) };
    let is_preferred = |version: &[u8]| Ok(json::text_member(version, "version")? == preferred);
    // One of the versions that are listed, written in the same way.
    let mut instead = None;
    for version in json::member(group, "versions")?.map(json::elements).transpose()?.into_iter().flatten() {
        let version = version?;
        if is_preferred(version)? {
            instead = Some(version);
        }
    }
    json::edit_object(group, |key, value| match key {
        "versions" => json::edit_array(value, |version| {
            Ok(keep_if(resources.has_version(&name, &json::text_member(version, "version")?)))
        }),
        // Addresses at which the host's clients find it.
        "serverAddressByClientCIDRs" => Ok(Edit::Drop),
        "preferredVersion" if !resources.has_version(&name, &json::text_member(value, "version")?) => {
            Ok(instead.map_or(Edit::Drop, |version| Edit::Replace(version.to_vec())))
        }
        _ => Ok(Edit::Keep),
    })
}

fn proto_group(group: &[u8], resources: &Resources) -> Result<Edit, Malformed> {
    let name = proto::text_field(group, 1)?;
    let Some(preferred) = resources.versions_of(name).next() else { return Ok(Edit::Drop) };
    let mut instead = None;
    for field in proto::fields(group) {
        let field = field?;
        if field.number == 2 && proto::text_field(field.bytes()?, 2)? == preferred {
            instead = Some(field.bytes()?);
        }
    }
    proto::edit(group, |field| match field.number {
        2 => Ok(keep_if(resources.has_version(name, proto::text_field(field.bytes()?, 2)?))),
        3 if !resources.has_version(name, proto::text_field(field.bytes()?, 2)?) => {
            Ok(instead.map_or(Edit::Drop, |version| Edit::Replace(version.to_vec())))
        }
        4 => Ok(Edit::Drop),
        _ => Ok(Edit::Keep),
    })
}

/// `APIResourceList`, the answer to `/api/VERSION` and `/apis/GROUP/VERSION`.
pub(super) fn resource_list(document: &[u8], encoding: Encoding, group: &str) -> Result<Edit, Malformed> {
    match encoding {
        Encoding::Json => edit_list(document, "resources", |resource| {
            let outcome = outcome_of(group, &json::text_member(resource, "name")?);
            edit_json_resource(resource, outcome)
        }),
        Encoding::Protobuf => proto::edit_enveloped(document, |list| {
            proto::edit(list, |field| {
                if field.number != 2 {
                    return Ok(Edit::Keep);
                }
                let resource = field.bytes()?;
                let outcome = outcome_of(group, proto::text_field(resource, 1)?);
                if !outcome.is_served() {
                    return Ok(Edit::Drop);
                }
                // Its verbs are in a message of their own.
                proto::edit(resource, |field| match field.number {
                    4 => proto::edit(field.bytes()?, |verb| match verb.number {
                        1 => Ok(keep_if(outcome.allows(verb.text()?))),
                        _ => Ok(Edit::Keep),
                    }),
                    _ => Ok(Edit::Keep),
                })
            })
        }),
    }
}

/// `APIGroupDiscoveryList`, the aggregated answer to `/api` and `/apis`.
pub(super) fn aggregated(document: &[u8], encoding: Encoding) -> Result<Edit, Malformed> {
    match encoding {
        Encoding::Json => edit_list(document, "items", json_discovered_group),
        Encoding::Protobuf => proto::edit_enveloped(document, |list| {
            proto::edit(list, |field| match field.number {
                2 => proto_discovered_group(field.bytes()?),
                _ => Ok(Edit::Keep),
            })
        }),
    }
}

fn json_discovered_group(group: &[u8]) -> Result<Edit, Malformed> {
    let name = match json::member(group, "metadata")? {
        Some(metadata) => json::text_member(metadata, "name")?,
        None => "".into(),
    };
    let mut is_empty = true;
    let edited = edit_list(group, "versions", |version| {
        let version = json_version(version, &name)?;
        is_empty &= version == Edit::Drop;
        Ok(version)
    })?;
    Ok(if is_empty { Edit::Drop } else { edited })
}

fn json_version(version: &[u8], group: &str) -> Result<Edit, Malformed> {
    let mut is_empty = true;
    let edited = edit_list(version, "resources", |resource| {
        let name = json::text_member(resource, "resource")?;
        let edited = edit_json_resource(resource, kinds::outcome(group, &name, ""))?;
        let resource = match &edited {
            Edit::Keep => resource,
            Edit::Replace(resource) => resource,
            Edit::Drop => return Ok(Edit::Drop),
        };
        is_empty = false;
        let without = edit_list(resource, "subresources", |subresource| {
            let outcome = kinds::outcome(group, &name, &json::text_member(subresource, "subresource")?);
            edit_json_resource(subresource, outcome)
        })?;
        Ok(if without == Edit::Keep { edited } else { without })
    })?;
    Ok(if is_empty { Edit::Drop } else { edited })
}

fn proto_discovered_group(group: &[u8]) -> Result<Edit, Malformed> {
    let name = proto::text_field(proto::message_field(group, 1)?, 1)?;
    let mut is_empty = true;
    let edited = proto::edit(group, |field| {
        if field.number != 2 {
            return Ok(Edit::Keep);
        }
        let version = proto_version(field.bytes()?, name)?;
        is_empty &= version == Edit::Drop;
        Ok(version)
    })?;
    Ok(if is_empty { Edit::Drop } else { edited })
}

fn proto_version(version: &[u8], group: &str) -> Result<Edit, Malformed> {
    let mut is_empty = true;
    let edited = proto::edit(version, |field| {
        if field.number != 2 {
            return Ok(Edit::Keep);
        }
        let resource = field.bytes()?;
        let name = proto::text_field(resource, 1)?;
        let outcome = kinds::outcome(group, name, "");
        if !outcome.is_served() {
            return Ok(Edit::Drop);
        }
        is_empty = false;
        proto::edit(resource, |field| match field.number {
            5 => Ok(keep_if(outcome.allows(field.text()?))),
            8 => {
                let subresource = field.bytes()?;
                let outcome = kinds::outcome(group, name, proto::text_field(subresource, 1)?);
                if !outcome.is_served() {
                    return Ok(Edit::Drop);
                }
                proto::edit(subresource, |field| match field.number {
                    4 => Ok(keep_if(outcome.allows(field.text()?))),
                    _ => Ok(Edit::Keep),
                })
            }
            _ => Ok(Edit::Keep),
        })
    })?;
    Ok(if is_empty { Edit::Drop } else { edited })
}

/// A resource or subresource with the verbs that tenants have, or nothing.
fn edit_json_resource(resource: &[u8], outcome: Outcome) -> Result<Edit, Malformed> {
    if !outcome.is_served() {
        return Ok(Edit::Drop);
    }
    edit_list(resource, "verbs", |verb| Ok(keep_if(outcome.allows(&json::text(verb)?))))
}

/// The outcome for `RESOURCE` or `RESOURCE/SUBRESOURCE`.
fn outcome_of(group: &str, name: &str) -> Outcome {
    let (resource, subresource) = name.split_once('/').unwrap_or((name, ""));
    kinds::outcome(group, resource, subresource)
}

/// An object after an edit of the elements of one of its members, which is an array or null.
fn edit_list(
    object: &[u8],
    name: &str,
    mut edit: impl FnMut(&[u8]) -> Result<Edit, Malformed>,
) -> Result<Edit, Malformed> {
    json::edit_object(object, |key, value| {
        if key != name || value == b"null" {
            return Ok(Edit::Keep);
        }
        json::edit_array(value, &mut edit)
    })
}

fn keep_if(condition: bool) -> Edit {
    if condition { Edit::Keep } else { Edit::Drop }
}
