//! The roles and bindings that every cluster has, and that a tenant has without storing them.
//!
//! They are those that a kube-apiserver 1.36 makes when it starts (`bootstrappolicy`), but those of controllers
//! (`system:controller:*` cluster roles): a tenant's controllers run upstream, with rights of there. They are there
//! once for all tenants.
//!
//! Invariant: what is shown as an object ([`to_json`]) is what is decided by.

use std::sync::{Arc, LazyLock};

use kubewharf_kube_api::json;
use kubewharf_kube_api::labels::LabelSelector;
use serde::Serialize;
use serde::ser::SerializeMap as _;

use super::policy::{Policy, Store};
use super::roles::{
    Binding, ClusterRole, GROUP, Kind, Object, RBAC_API_VERSION, RBAC_GROUP, Role, RoleRef, SERVICE_ACCOUNT, Subject,
    USER,
};
use super::rules::{PolicyRule, Texts};

/// The facts: see the file itself.
const TABLE: &str = include_str!("defaults.txt");
const AGGREGATE_LABEL: &str = "rbac.authorization.k8s.io/aggregate-to-";
const DEFAULT_LABEL: (&str, &str) = ("kubernetes.io/bootstrapping", "rbac-defaults");
const DEFAULT_ANNOTATION: (&str, &str) = ("rbac.authorization.kubernetes.io/autoupdate", "true");

/// All of them.
pub(super) static DEFAULTS: LazyLock<Store> = LazyLock::new(|| {
    let mut store = Store::default();
    let mut kind = Kind::ClusterRole;
    let mut lines = TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).peekable();
    while let Some(line) = lines.next() {
        if let Some(section) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            kind = Kind::of_resource(section).expect("the table's sections are resources");
            continue;
        }
        let mut rules = Vec::new();
        while let Some(rule) = lines.next_if(|line| line.starts_with(' ')) {
            rules.push(read_rule(rule));
        }
        store.insert(read_object(kind, line, rules));
    }
    store
});

fn read_object(kind: Kind, line: &str, rules: Vec<PolicyRule>) -> Object {
    let mut words = line.split(' ');
    let mut word = || words.next().expect("the table's lines are complete");
    let first = word();
    match kind {
        Kind::Role => Object::Role(Role { namespace: first.into(), name: word().into(), rules: rules.into() }),
        Kind::ClusterRole => {
            let mut labels = vec![(DEFAULT_LABEL.0.into(), DEFAULT_LABEL.1.into())];
            let mut aggregation = Vec::new();
            for word in words {
                let label = |collector: &str| format!("{AGGREGATE_LABEL}{collector}");
                if let Some(collector) = word.strip_prefix("into:") {
                    labels.push((label(collector).into(), "true".into()));
                } else if let Some(collector) = word.strip_prefix("from:") {
                    let match_labels = [(label(collector), "true".to_owned())].into();
                    aggregation.push(LabelSelector { match_labels, ..LabelSelector::default() });
                }
            }
            let aggregation = (!aggregation.is_empty()).then(|| aggregation.into());
            Object::ClusterRole(ClusterRole {
                name: first.into(),
                labels: labels.into(),
                aggregation,
                rules: rules.into(),
            })
        }
        Kind::ClusterRoleBinding => read_binding(("", first), ("ClusterRole", first), words),
        Kind::RoleBinding => read_binding((first, word()), ("Role", word()), words),
    }
}

fn read_binding<'a>(
    (namespace, name): (&str, &str),
    (kind, role): (&'static str, &str),
    subjects: impl Iterator<Item = &'a str>,
) -> Object {
    let subject = |word: &str| {
        let (kind, name) = word.split_once(':').expect("the table's subjects have a kind");
        let (kind, namespace, name) = match kind {
            "user" => (USER, "", name),
            "group" => (GROUP, "", name),
            _ => {
                let (namespace, name) = name.split_once('/').expect("the table's service accounts have a namespace");
                (SERVICE_ACCOUNT, namespace, name)
            }
        };
        Subject { kind: kind.into(), name: name.into(), namespace: namespace.into() }
    };
    Object::Binding(Binding {
        namespace: namespace.into(),
        name: name.into(),
        role: RoleRef { api_group: RBAC_GROUP.into(), kind: kind.into(), name: role.into() },
        subjects: subjects.map(subject).collect(),
    })
}

fn read_rule(line: &str) -> PolicyRule {
    let mut words = line.split_whitespace();
    let mut list = || words.next().map(|word| word.split(',').collect::<Vec<_>>()).unwrap_or_default();
    let mut verbs = Vec::new();
    for verb in list() {
        match verb {
            "read" => verbs.extend(["get", "list", "watch"]),
            "write" => verbs.extend(["create", "delete", "deletecollection", "patch", "update"]),
            verb => verbs.push(verb),
        }
    }
    verbs.sort_unstable();
    let texts = |words: Vec<&str>| -> Texts {
        words.into_iter().map(|word| if word == "core" { "" } else { word }.into()).collect()
    };
    let verbs = texts(verbs);
    let groups = list();
    if groups == ["url"] {
        return PolicyRule { verbs, non_resource_urls: texts(list()), ..PolicyRule::default() };
    }
    let api_groups = texts(groups);
    PolicyRule { verbs, api_groups, resources: texts(list()), resource_names: texts(list()), ..PolicyRule::default() }
}

/// What the API shows of a default object beside its content. The texts are empty where nothing is to be shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shown<'a> {
    /// `metadata.uid`.
    pub uid: &'a str,
    /// `metadata.resourceVersion`.
    pub resource_version: &'a str,
    /// `metadata.creationTimestamp`.
    pub creation_timestamp: &'a str,
}

/// The namespaces and names of the defaults of this kind that this tenant has not replaced, in their order. The
/// namespaces are empty for kinds without.
#[must_use]
pub fn names(policy: &Policy, kind: Kind) -> Vec<(&'static str, &'static str)> {
    let mut names: Vec<(&str, &str)> = match kind {
        Kind::Role => DEFAULTS.roles.0.iter().map(|role| (&*role.namespace, &*role.name)).collect(),
        Kind::ClusterRole => DEFAULTS.cluster_roles.0.iter().map(|role| ("", &*role.name)).collect(),
        Kind::RoleBinding | Kind::ClusterRoleBinding => {
            let of_kind = DEFAULTS.bindings.0.iter().filter(|binding| binding.kind() == kind);
            of_kind.map(|binding| (&*binding.namespace, &*binding.name)).collect()
        }
    };
    names.retain(|(namespace, name)| !policy.has_stored(kind, namespace, name));
    names
}

/// A default object as this tenant's API shows it: a cluster role that collects rules with those that the tenant's own
/// cluster roles add. `None` if there is no such default, or the tenant has replaced it.
#[must_use]
pub fn to_json(policy: &Policy, kind: Kind, namespace: &str, name: &str, shown: Shown<'_>) -> Option<Vec<u8>> {
    if policy.has_stored(kind, namespace, name) {
        return None;
    }
    let written = match kind {
        Kind::Role => {
            let role = DEFAULTS.roles.get(namespace, name)?;
            Written { rules: Some(role.rules.iter().collect()), ..Written::new(kind, namespace, name, shown) }
        }
        Kind::ClusterRole => {
            let role = DEFAULTS.cluster_roles.get("", name)?;
            let mut written = Written::new(kind, "", name, shown);
            written.metadata.labels = Pairs(role.labels.iter().map(|(key, value)| (&**key, &**value)).collect());
            written.rules = Some(policy.cluster_role_rules(name)?.to_vec());
            written.aggregation_rule = role.aggregation.as_deref().map(WrittenAggregation::new);
            written
        }
        Kind::RoleBinding | Kind::ClusterRoleBinding => {
            let found: &Arc<Binding> = DEFAULTS.bindings.get(namespace, name).filter(|found| found.kind() == kind)?;
            Written {
                subjects: found.subjects.iter().map(WrittenSubject::new).collect(),
                role_ref: Some(WrittenRoleRef {
                    api_group: &found.role.api_group,
                    kind: &found.role.kind,
                    name: &found.role.name,
                }),
                ..Written::new(kind, namespace, name, shown)
            }
        }
    };
    Some(json::to_vec(&written))
}

/// An object of any of the kinds, its fields in Kubernetes' order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    kind: &'static str,
    api_version: &'static str,
    metadata: WrittenMetadata<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rules: Option<Vec<&'a PolicyRule>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aggregation_rule: Option<WrittenAggregation<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    subjects: Vec<WrittenSubject<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    role_ref: Option<WrittenRoleRef<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WrittenMetadata<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    namespace: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    uid: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    resource_version: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    creation_timestamp: &'a str,
    labels: Pairs<'a>,
    annotations: Pairs<'a>,
}

/// A map of a few texts, in the keys' order.
struct Pairs<'a>(Vec<(&'a str, &'a str)>);

impl Serialize for Pairs<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WrittenAggregation<'a> {
    cluster_role_selectors: &'a [LabelSelector],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WrittenSubject<'a> {
    kind: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    api_group: &'static str,
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    namespace: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WrittenRoleRef<'a> {
    api_group: &'a str,
    kind: &'a str,
    name: &'a str,
}

impl<'a> Written<'a> {
    fn new(kind: Kind, namespace: &'a str, name: &'a str, shown: Shown<'a>) -> Self {
        let metadata = WrittenMetadata {
            name,
            namespace,
            uid: shown.uid,
            resource_version: shown.resource_version,
            creation_timestamp: shown.creation_timestamp,
            labels: Pairs(vec![DEFAULT_LABEL]),
            annotations: Pairs(vec![DEFAULT_ANNOTATION]),
        };
        Self {
            kind: kind.name(),
            api_version: RBAC_API_VERSION,
            metadata,
            rules: None,
            aggregation_rule: None,
            subjects: Vec::new(),
            role_ref: None,
        }
    }
}

impl<'a> WrittenAggregation<'a> {
    fn new(cluster_role_selectors: &'a [LabelSelector]) -> Self {
        Self { cluster_role_selectors }
    }
}

impl<'a> WrittenSubject<'a> {
    fn new(subject: &'a Subject) -> Self {
        let is_service_account = *subject.kind == *SERVICE_ACCOUNT;
        let api_group = if is_service_account { "" } else { RBAC_GROUP };
        Self { kind: &subject.kind, api_group, name: &subject.name, namespace: &subject.namespace }
    }
}
