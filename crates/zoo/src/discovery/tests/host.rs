//! A host cluster: its documents, in both encodings, and an origin that serves them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::StatusCode;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::super::proto::push;
use super::super::{AGGREGATED, Encoding, Fetched, Name, Origin, media_type};
use crate::kinds;
use crate::upstream::UpstreamError;

/// A word that only the host's custom resource has.
pub(super) const SECRET: &str = "hostsecret";

/// A resource of the host, in one version.
pub(super) struct HostResource {
    pub(super) group: &'static str,
    pub(super) version: &'static str,
    pub(super) resource: &'static str,
    pub(super) kind: &'static str,
    namespaced: bool,
    pub(super) subresources: Vec<&'static str>,
}

/// All that zoo knows, and what it does not: a custom resource, a new resource, a new subresource, a version with nothing for tenants.
pub(super) fn resources() -> Vec<HostResource> {
    let mut resources: Vec<_> = kinds::all()
        .iter()
        .map(|known| HostResource {
            group: known.group,
            version: "v1",
            resource: known.resource,
            kind: known.kind,
            namespaced: known.namespaced,
            subresources: known.subresources.iter().map(|subresource| subresource.name).collect(),
        })
        .collect();
    for resource in &mut resources {
        if resource.resource == "pods" {
            resource.subresources.push("hostsecretstate");
        }
    }
    let of = |group, version, resource, kind| HostResource {
        group,
        version,
        resource,
        kind,
        namespaced: true,
        subresources: vec![],
    };
    resources.push(of("host.example.com", "v1", "hostsecrets", "HostSecret"));
    resources.push(of("apps", "v1", "hostsecretsets", "HostSecretSet"));
    resources.push(of("networking.k8s.io", "v2alpha1", "hostsecretpaths", "HostSecretPath"));
    resources
}

/// The versions of each group, the preferred one first.
fn groups(resources: &[HostResource]) -> Vec<(&'static str, Vec<&'static str>)> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for resource in resources {
        match groups.iter_mut().find(|(group, _)| *group == resource.group) {
            Some((_, versions)) if versions.contains(&resource.version) => {}
            // Kubernetes prefers none that is alpha; here it makes the preferred version one that tenants have nothing in.
            Some((_, versions)) => versions.insert(0, resource.version),
            None => groups.push((resource.group, vec![resource.version])),
        }
    }
    groups
}

const VERBS: [&str; 4] = ["create", "get", "list", "watch"];

fn of_version<'a>(
    resources: &'a [HostResource],
    group: &'a str,
    version: &'a str,
) -> impl Iterator<Item = &'a HostResource> {
    resources.iter().filter(move |resource| resource.group == group && resource.version == version)
}

fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

fn aggregated_json(resources: &[HostResource], is_legacy: bool) -> Value {
    let items = groups(resources).into_iter().filter(|(group, _)| group.is_empty() == is_legacy);
    let items: Vec<_> = items
        .map(|(group, versions)| {
            let versions: Vec<_> = versions
                .iter()
                .map(|version| {
                    let resources: Vec<_> = of_version(resources, group, version)
                        .map(|resource| {
                            let kind = json!({"group": "", "version": "", "kind": resource.kind});
                            let subresources: Vec<_> = resource
                                .subresources
                                .iter()
                                .map(|name| match *name {
                                    "scale" => json!({"subresource": name, "verbs": VERBS,
                                        "responseKind": {"group": "autoscaling", "version": "v1", "kind": "Scale"}}),
                                    name => json!({"subresource": name, "verbs": VERBS, "responseKind": kind}),
                                })
                                .collect();
                            json!({
                                "resource": resource.resource,
                                "responseKind": kind,
                                "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
                                "singularResource": "one",
                                "verbs": VERBS,
                                "subresources": subresources,
                                "future": [{"a": "]}"}],
                            })
                        })
                        .collect();
                    json!({"version": version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            json!({"metadata": {"name": group}, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn aggregated_proto(resources: &[HostResource], is_legacy: bool) -> Vec<u8> {
    let mut list = message(&[(1, vec![])]);
    for (group, versions) in groups(resources).into_iter().filter(|(group, _)| group.is_empty() == is_legacy) {
        let mut written = message(&[(1, message(&[(1, group.into())]))]);
        for version in versions {
            let mut of = message(&[(1, version.into())]);
            for resource in of_version(resources, group, version) {
                let kind = message(&[(1, vec![]), (2, vec![]), (3, resource.kind.into())]);
                let mut one = message(&[(1, resource.resource.into()), (2, kind.clone())]);
                VERBS.iter().for_each(|verb| push(&mut one, 5, verb.as_bytes()));
                for name in &resource.subresources {
                    let mut subresource = message(&[(1, (*name).into()), (2, kind.clone())]);
                    VERBS.iter().for_each(|verb| push(&mut subresource, 4, verb.as_bytes()));
                    push(&mut one, 8, &subresource);
                }
                push(&mut one, 99, b"future");
                push(&mut of, 2, &one);
            }
            push(&mut written, 2, &of);
        }
        push(&mut list, 2, &written);
    }
    enveloped(&list)
}

fn group_json(group: &str, versions: &[&str]) -> Value {
    let versions: Vec<_> = versions
        .iter()
        .map(|version| json!({"groupVersion": group_version(group, version), "version": version}))
        .collect();
    json!({"kind": "APIGroup", "apiVersion": "v1", "name": group, "preferredVersion": versions[0], "versions": versions,
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": "hostsecret:6443"}]})
}

fn group_proto(group: &str, versions: &[&str]) -> Vec<u8> {
    let one = |version: &&str| message(&[(1, group_version(group, version).into()), (2, (*version).into())]);
    let mut written = message(&[(1, group.into())]);
    versions.iter().for_each(|version| push(&mut written, 2, &one(version)));
    push(&mut written, 3, &one(&versions[0]));
    push(&mut written, 4, &message(&[(1, "0.0.0.0/0".into()), (2, "hostsecret:6443".into())]));
    written
}

fn names(resource: &HostResource) -> impl Iterator<Item = String> {
    let subresources = resource.subresources.iter().map(|name| format!("{}/{name}", resource.resource));
    std::iter::once(resource.resource.to_owned()).chain(subresources)
}

fn list_json(resources: &[HostResource], group: &str, version: &str) -> Value {
    let resources: Vec<_> = of_version(resources, group, version)
        .flat_map(|resource| {
            names(resource).map(|name| {
                json!({"name": name, "singularName": "", "namespaced": resource.namespaced, "kind": resource.kind,
                    "verbs": VERBS, "storageVersionHash": "x"})
            })
        })
        .collect();
    json!({"kind": "APIResourceList", "groupVersion": group_version(group, version), "resources": resources})
}

fn list_proto(resources: &[HostResource], group: &str, version: &str) -> Vec<u8> {
    let mut list = message(&[(1, group_version(group, version).into())]);
    for resource in of_version(resources, group, version) {
        for name in names(resource) {
            let mut verbs = Vec::new();
            VERBS.iter().for_each(|verb| push(&mut verbs, 1, verb.as_bytes()));
            push(&mut list, 2, &message(&[(1, name.into()), (3, resource.kind.into()), (4, verbs)]));
        }
    }
    enveloped(&list)
}

fn prefix(group: &str, version: &str) -> String {
    if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") }
}

/// Paths, each with the kind that is written there; none if there is none.
fn paths<'a>(resources: impl Iterator<Item = &'a HostResource>) -> Vec<(String, Option<&'a HostResource>)> {
    let mut paths = Vec::new();
    for resource in resources {
        let prefix = prefix(resource.group, resource.version);
        let scope = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
        let name = resource.resource;
        paths.push((format!("{prefix}/{name}"), Some(resource)));
        paths.push((format!("{prefix}{scope}/{name}/{{name}}"), Some(resource)));
        paths.push((format!("{prefix}/watch{scope}/{name}/{{name}}"), Some(resource)));
        for subresource in &resource.subresources {
            paths.push((format!("{prefix}{scope}/{name}/{{name}}/{subresource}"), Some(resource)));
            paths.push((format!("{prefix}{scope}/{name}/{{name}}/{subresource}/{{path}}"), Some(resource)));
        }
        paths.push((format!("{prefix}/"), None));
    }
    paths.sort_by(|one, other| one.0.cmp(&other.0));
    paths.dedup_by(|one, other| one.0 == other.0);
    paths
}

/// A schema's name; some are longer than 127 bytes.
pub(super) fn schema(resource: &HostResource) -> String {
    let filler = if resource.kind.len().is_multiple_of(2) { "x".repeat(120) } else { String::new() };
    format!("io.{}.{}.{filler}.{}", resource.group, resource.version, resource.kind)
}

/// What all schemas refer to.
pub(super) const META: &str = "io.k8s.meta.v1.ObjectMeta";

fn openapi_json(resources: &[&HostResource], is_v2: bool) -> Value {
    let reference = if is_v2 { "#/definitions/" } else { "#/components/schemas/" };
    let paths: serde_json::Map<_, _> = paths(resources.iter().copied())
        .into_iter()
        .map(|(path, resource)| {
            let schema = resource.map(|resource| json!({"$ref": format!("{reference}{}List", schema(resource))}));
            let operation = json!({"responses": {"200": {"schema": schema}}});
            (path, json!({"get": operation, "post": operation, "delete": operation, "parameters": []}))
        })
        .collect();
    let mut schemas = serde_json::Map::new();
    schemas.insert(META.to_owned(), json!({"type": "object"}));
    for resource in resources {
        let schema = schema(resource);
        let items = json!({"items": {"$ref": format!("{reference}{schema}")}});
        schemas.insert(format!("{schema}List"), items);
        let kinds = json!([{"group": resource.group, "kind": resource.kind, "version": resource.version}]);
        schemas.insert(
            schema.clone(),
            json!({"x-kubernetes-group-version-kind": kinds,
                "properties": {"metadata": {"$ref": format!("{reference}{META}")}, "again": {"$ref": format!("{reference}{schema}")}}}),
        );
    }
    let paths = Value::Object(paths);
    if is_v2 {
        json!({"swagger": "2.0", "paths": paths, "definitions": schemas, "parameters": {"a": {"in": "query"}}})
    } else {
        json!({"openapi": "3.0.0", "paths": paths, "components": {"schemas": schemas, "securitySchemes": {"b": {}}}})
    }
}

fn openapi_proto(resources: &[&HostResource], is_v2: bool) -> Vec<u8> {
    let reference = if is_v2 { "#/definitions/" } else { "#/components/schemas/" };
    let refer = |name: &str| message(&[(5, message(&[(1, format!("{reference}{name}").into())]))]);
    let mut paths_written = Vec::new();
    for (path, resource) in paths(resources.iter().copied()) {
        let operation = resource.map(|resource| refer(&format!("{}List", schema(resource)))).unwrap_or_default();
        let methods = if is_v2 { [2, 4, 5] } else { [4, 6, 7] };
        let item = message(&methods.map(|method| (method, operation.clone())));
        push(&mut paths_written, if is_v2 { 2 } else { 1 }, &message(&[(1, path.into()), (2, item)]));
    }
    let mut schemas = Vec::new();
    push(&mut schemas, 1, &message(&[(1, META.into()), (2, vec![])]));
    for resource in resources {
        let schema = schema(resource);
        push(&mut schemas, 1, &message(&[(1, format!("{schema}List").into()), (2, refer(&schema))]));
        let body = [refer(META), refer(&schema), message(&[(9, resource.kind.into())])].concat();
        push(&mut schemas, 1, &message(&[(1, schema.into()), (2, body)]));
    }
    if is_v2 {
        message(&[(1, "2.0".into()), (8, paths_written), (9, schemas), (10, b"\x12\x01a".to_vec())])
    } else {
        message(&[(1, "3.0.0".into()), (4, paths_written), (5, message(&[(1, schemas), (7, b"\x12\x01b".to_vec())]))])
    }
}

fn message(fields: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let mut written = Vec::new();
    fields.iter().for_each(|(number, bytes)| push(&mut written, *number, bytes));
    written
}

fn enveloped(object: &[u8]) -> Vec<u8> {
    let kind = message(&[(1, "v1".into()), (2, "Kind".into())]);
    [b"k8s\0".as_slice(), &message(&[(1, kind), (2, object.to_vec()), (3, vec![]), (4, vec![])])].concat()
}

/// All documents of the host: name, encoding, bytes.
pub(super) fn documents() -> Vec<(Name, Encoding, Vec<u8>)> {
    use Encoding::{Json, Protobuf};

    let resources = resources();
    let mut documents = Vec::new();
    let mut add = |name: Name, json: Value, proto: Vec<u8>| {
        documents.push((name.clone(), Json, json.to_string().into_bytes()));
        documents.push((name, Protobuf, proto));
    };
    add(Name::AggregatedApi, aggregated_json(&resources, true), aggregated_proto(&resources, true));
    add(Name::AggregatedApis, aggregated_json(&resources, false), aggregated_proto(&resources, false));
    let rule = json!([{"clientCIDR": "0.0.0.0/0", "serverAddress": "hostsecret:6443"}]);
    let proto_rule = message(&[(1, "0.0.0.0/0".into()), (2, "hostsecret:6443".into())]);
    add(
        Name::Api,
        json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": rule}),
        enveloped(&message(&[(1, "v1".into()), (2, proto_rule)])),
    );
    let groups = groups(&resources);
    let named = groups.iter().filter(|(group, _)| !group.is_empty());
    let written: Vec<_> = named.clone().map(|(group, versions)| group_json(group, versions)).collect();
    let proto: Vec<_> = named.clone().map(|(group, versions)| (1, group_proto(group, versions))).collect();
    add(Name::Apis, json!({"kind": "APIGroupList", "groups": written}), enveloped(&message(&proto)));
    let mut index = serde_json::Map::new();
    for (group, versions) in &groups {
        if !group.is_empty() {
            let name = Name::Group((*group).into());
            add(name, group_json(group, versions), enveloped(&group_proto(group, versions)));
        }
        for version in versions {
            let name = Name::Version((*group).into(), (*version).into());
            add(name, list_json(&resources, group, version), list_proto(&resources, group, version));
            let of: Vec<_> = of_version(&resources, group, version).collect();
            let name = prefix(group, version)[1..].to_owned();
            index.insert(name.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{name}?hash=HASH1")}));
            add(Name::OpenApi3(name.into()), openapi_json(&of, false), openapi_proto(&of, false));
        }
    }
    let all: Vec<_> = resources.iter().collect();
    add(Name::OpenApi2, openapi_json(&all, true), openapi_proto(&all, true));
    let index = json!({"paths": index});
    documents.push((Name::OpenApiIndex, Json, index.to_string().into_bytes()));
    documents
}

/// The host's apiserver.
pub(super) struct Host {
    documents: Mutex<HashMap<(String, String), Vec<u8>>>,
    /// Part of each ETag.
    hash: Mutex<String>,
    /// Path, and `If-None-Match` if it came.
    pub(super) asked: Mutex<Vec<(String, Option<String>)>>,
    pub(super) is_down: AtomicBool,
}

impl Host {
    pub(super) fn new() -> Self {
        let documents = documents().into_iter().map(|(name, encoding, body)| {
            let aggregated = if name.is_base() { AGGREGATED } else { "" };
            ((super::super::upstream_path(&name), format!("{}{aggregated}", media_type(&name, encoding))), body)
        });
        Self {
            documents: Mutex::new(documents.collect()),
            hash: Mutex::new("HASH1".to_owned()),
            asked: Mutex::default(),
            is_down: AtomicBool::new(false),
        }
    }

    /// What it has been asked for since this was called last.
    pub(super) fn take_asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock()).into_iter().map(|(path, _)| path).collect()
    }

    /// From now on all documents have this hash.
    pub(super) fn set_hash(&self, hash: &str) {
        for ((path, _), body) in self.documents.lock().iter_mut() {
            if path == "/openapi/v3" {
                let text = String::from_utf8(body.clone()).unwrap();
                *body = text.replace(&*self.hash.lock(), hash).into_bytes();
            }
        }
        hash.clone_into(&mut self.hash.lock());
    }

    /// Changes a document in all encodings.
    pub(super) fn edit(&self, path: &str, mut edit: impl FnMut(&mut Vec<u8>)) {
        self.documents.lock().iter_mut().filter(|((known, _), _)| known == path).for_each(|(_, body)| edit(body));
    }
}

impl Origin for Host {
    async fn get(&self, path: &str, accept: &str, if_none_match: Option<&str>) -> Result<Fetched, UpstreamError> {
        self.asked.lock().push((path.to_owned(), if_none_match.map(str::to_owned)));
        // Others run meanwhile.
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        if self.is_down.load(Ordering::Relaxed) {
            return Err(UpstreamError::NoEndpoint);
        }
        let has_etag = accept.contains("as=") || path.starts_with("/openapi/v2") || path.starts_with("/openapi/v3/");
        let etag = has_etag.then(|| format!("\"{}\"", self.hash.lock()));
        let content_type = Some(accept.to_owned());
        let body = match self.documents.lock().get(&(path.to_owned(), accept.to_owned())) {
            Some(body) => Bytes::from(body.clone()),
            None => {
                return Ok(Fetched {
                    status: StatusCode::NOT_FOUND,
                    etag: None,
                    content_type: None,
                    body: Bytes::new(),
                });
            }
        };
        if etag.is_some() && etag.as_deref() == if_none_match {
            return Ok(Fetched { status: StatusCode::NOT_MODIFIED, etag, content_type: None, body: Bytes::new() });
        }
        Ok(Fetched { status: StatusCode::OK, etag, content_type, body })
    }
}
