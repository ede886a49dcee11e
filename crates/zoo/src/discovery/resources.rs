//! What the apiserver behind says of the resources that tenants have.
//!
//! Invariant: nothing is in it that tenants do not have ([`crate::kinds`]). It never changes; a newer document makes a new one.

use ring::digest::{Context, SHA256};
use serde::Deserialize;

use super::Malformed;

/// A group, a version and a kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Gvk {
    /// The group; empty for the legacy one.
    pub group: Box<str>,
    /// The version.
    pub version: Box<str>,
    /// The kind.
    pub kind: Box<str>,
}

/// A resource in one version of its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedResource {
    /// Its plural name, as in paths.
    pub resource: Box<str>,
    /// Its name for one object; may be empty.
    pub singular: Box<str>,
    /// What its bodies hold.
    pub kind: Gvk,
    /// Whether its objects are in namespaces.
    pub namespaced: bool,
    /// What can be done with it.
    pub verbs: Verbs,
    /// Its subresources, by name.
    pub subresources: Box<[ServedSubresource]>,
}

impl ServedResource {
    /// A subresource by its name.
    #[must_use]
    pub fn subresource(&self, name: &str) -> Option<&ServedSubresource> {
        let found = self.subresources.binary_search_by(|known| known.subresource.as_ref().cmp(name)).ok()?;
        Some(&self.subresources[found])
    }
}

/// A subresource in one version of its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedSubresource {
    /// Its name, as in paths.
    pub subresource: Box<str>,
    /// What its bodies hold: `autoscaling/v1 Scale` for `deployments/scale`. For streams such as `exec`, the kind of their options.
    pub kind: Gvk,
    /// What can be done with it.
    pub verbs: Verbs,
}

/// Verbs of the API.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Verbs(Box<[Box<str>]>);

impl Verbs {
    /// Whether the verb is among them.
    #[must_use]
    pub fn has(&self, verb: &str) -> bool {
        self.0.iter().any(|known| **known == *verb)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(AsRef::as_ref)
    }
}

/// All resources that tenants have, in all versions that the apiserver behind serves.
#[derive(Debug, Default)]
pub struct Resources {
    /// In the order of preference.
    versions: Vec<Version>,
    /// Of all that tenants are told about resources.
    fingerprint: [u8; 32],
}

#[derive(Debug)]
struct Version {
    group: Box<str>,
    version: Box<str>,
    /// By name.
    resources: Box<[ServedResource]>,
}

impl Resources {
    /// From the aggregated documents for tenants, `/api` and `/apis`, in JSON.
    pub(super) fn new(api: &[u8], apis: &[u8]) -> Result<Self, Malformed> {
        let mut versions = Vec::new();
        let mut context = Context::new(&SHA256);
        for document in [api, apis] {
            let list: GroupList =
                serde_json::from_slice(document).map_err(|_| Malformed("a list of groups was expected"))?;
            versions.extend(list.items.into_iter().flat_map(versions_of));
            context.update(&(document.len() as u64).to_be_bytes());
            context.update(document);
        }
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(context.finish().as_ref());
        Ok(Self { versions, fingerprint })
    }

    /// A resource in a version of its group.
    #[must_use]
    pub fn find(&self, group: &str, version: &str, resource: &str) -> Option<&ServedResource> {
        let version = self.versions.iter().find(|known| *known.version == *version && *known.group == *group)?;
        let found = version.resources.binary_search_by(|known| known.resource.as_ref().cmp(resource)).ok()?;
        Some(&version.resources[found])
    }

    /// A resource by the kind of its objects, in the preferred version that has it.
    #[must_use]
    pub fn find_kind(&self, group: &str, kind: &str) -> Option<&ServedResource> {
        let versions = self.versions.iter().filter(|known| *known.group == *group);
        versions
            .flat_map(|version| version.resources.iter())
            .find(|known| *known.kind.kind == *kind && *known.kind.group == *group)
    }

    /// Whether tenants have anything in the version of the group.
    #[must_use]
    pub fn has_version(&self, group: &str, version: &str) -> bool {
        self.versions_of(group).any(|known| known == version)
    }

    /// Whether tenants have anything in the group.
    #[must_use]
    pub fn has_group(&self, group: &str) -> bool {
        self.versions_of(group).next().is_some()
    }

    /// The versions of a group in which tenants have anything, the preferred one first.
    pub fn versions_of<'a>(&'a self, group: &'a str) -> impl Iterator<Item = &'a str> {
        self.versions.iter().filter(move |known| *known.group == *group).map(|known| known.version.as_ref())
    }

    /// All of them: group, version, resource.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, &ServedResource)> {
        self.versions.iter().flat_map(|version| {
            version.resources.iter().map(|resource| (version.group.as_ref(), version.version.as_ref(), resource))
        })
    }

    /// A hash of all that tenants are told about resources.
    pub(super) fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }
}

fn versions_of(group: Group) -> impl Iterator<Item = Version> {
    let name: Box<str> = group.metadata.name.into();
    group.versions.into_iter().map(move |version| {
        let gvk = |written: Kind| {
            // What is left out is as the resource has it.
            let (group, version) = match (written.group.is_empty(), written.version.is_empty()) {
                (true, true) => (name.clone(), version.version.clone().into()),
                _ => (written.group.into(), written.version.into()),
            };
            Gvk { group, version, kind: written.kind.into() }
        };
        let mut resources: Vec<_> = version
            .resources
            .into_iter()
            .map(|resource| {
                let mut subresources: Vec<_> = resource
                    .subresources
                    .into_iter()
                    .map(|subresource| ServedSubresource {
                        subresource: subresource.subresource.into(),
                        kind: gvk(subresource.response_kind.unwrap_or_default()),
                        verbs: subresource.verbs,
                    })
                    .collect();
                subresources.sort_by(|one, other| one.subresource.cmp(&other.subresource));
                ServedResource {
                    resource: resource.resource.into(),
                    singular: resource.singular_resource.into(),
                    kind: gvk(resource.response_kind.unwrap_or_default()),
                    namespaced: resource.scope == "Namespaced",
                    verbs: resource.verbs,
                    subresources: subresources.into(),
                }
            })
            .collect();
        resources.sort_by(|one, other| one.resource.cmp(&other.resource));
        Version { group: name.clone(), version: version.version.clone().into(), resources: resources.into() }
    })
}

/// `apidiscovery.k8s.io/v2 APIGroupDiscoveryList`, as far as it matters here.
#[derive(Deserialize)]
struct GroupList {
    #[serde(default)]
    items: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    versions: Vec<GroupVersion>,
}

#[derive(Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct GroupVersion {
    version: String,
    #[serde(default)]
    resources: Vec<Resource>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Resource {
    resource: String,
    #[serde(default)]
    response_kind: Option<Kind>,
    #[serde(default)]
    scope: String,
    #[serde(default)]
    singular_resource: String,
    #[serde(default)]
    verbs: Verbs,
    #[serde(default)]
    subresources: Vec<Subresource>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Subresource {
    subresource: String,
    #[serde(default)]
    response_kind: Option<Kind>,
    #[serde(default)]
    verbs: Verbs,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Kind {
    group: String,
    version: String,
    kind: String,
}
