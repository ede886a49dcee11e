//! The four kinds of objects that make up RBAC, of rbac.authorization.k8s.io/v1, and whom a binding is for.
//!
//! Only what a decision needs is kept of an object. Reading is lenient, because what is stored was checked when it was
//! written: unknown fields are ignored, and fields that miss are empty.
//!
//! Invariant: a subject is whom Kubernetes 1.36 takes it for (`appliesToUser` in
//! `pkg/registry/rbac/validation/rule.go`).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use kubewharf_kube_api::labels::LabelSelector;
use kubewharf_kube_api::quote::quoted;
use kubewharf_kube_api::users::SERVICE_ACCOUNT_PREFIX;
use serde::Deserialize;

use super::UserInfo;
use super::rules::{PolicyRule, null_as_empty};

/// The API group of all that is about roles.
pub const RBAC_GROUP: &str = "rbac.authorization.k8s.io";
/// The version that everything is read and written in.
pub const RBAC_API_VERSION: &str = "rbac.authorization.k8s.io/v1";

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Rules within a namespace.
    Role,
    /// Rules everywhere, or, for who binds it in a namespace, there.
    ClusterRole,
    /// Grants the rules of a role in a namespace.
    RoleBinding,
    /// Grants the rules of a cluster role everywhere.
    ClusterRoleBinding,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Role, Self::ClusterRole, Self::RoleBinding, Self::ClusterRoleBinding];

    /// The kind whose resource has this name, in [`RBAC_GROUP`].
    #[must_use]
    pub fn of_resource(resource: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.resource() == resource)
    }

    /// Its name in the API: `Role`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Role => "Role",
            Self::ClusterRole => "ClusterRole",
            Self::RoleBinding => "RoleBinding",
            Self::ClusterRoleBinding => "ClusterRoleBinding",
        }
    }

    /// Its resource: `roles`.
    #[must_use]
    pub fn resource(self) -> &'static str {
        match self {
            Self::Role => "roles",
            Self::ClusterRole => "clusterroles",
            Self::RoleBinding => "rolebindings",
            Self::ClusterRoleBinding => "clusterrolebindings",
        }
    }

    /// Whether its objects are in namespaces.
    #[must_use]
    pub fn is_namespaced(self) -> bool {
        matches!(self, Self::Role | Self::RoleBinding)
    }
}

/// Rules that a binding in the same namespace can grant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Role {
    /// The namespace.
    pub namespace: Box<str>,
    /// The name.
    pub name: Box<str>,
    /// What it allows.
    pub rules: Box<[PolicyRule]>,
}

/// Rules that any binding can grant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterRole {
    /// The name.
    pub name: Box<str>,
    /// The labels, in the keys' order. Other cluster roles collect rules by them.
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// Selects the cluster roles whose rules it has instead of its own, if it collects any.
    pub aggregation: Option<Box<[LabelSelector]>>,
    /// What it allows, unless it collects rules.
    pub rules: Box<[PolicyRule]>,
}

impl ClusterRole {
    /// Whether Kubernetes' aggregation controller would replace its rules: it has an aggregation rule, and every
    /// selector in it can be understood.
    #[must_use]
    pub fn is_aggregated(&self) -> bool {
        self.aggregation.as_ref().is_some_and(|selectors| selectors.iter().all(LabelSelector::is_valid))
    }

    /// The value of a label.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        let found = self.labels.binary_search_by(|(found, _)| (**found).cmp(key)).ok()?;
        Some(&self.labels[found].1)
    }
}

/// Grants a role's rules: a `RoleBinding`, or a `ClusterRoleBinding` if its namespace is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Binding {
    /// The namespace; empty for a `ClusterRoleBinding`.
    pub namespace: Box<str>,
    /// The name.
    pub name: Box<str>,
    /// The role.
    pub role: RoleRef,
    /// Whom it is for.
    pub subjects: Box<[Subject]>,
}

/// Names the role that a binding grants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoleRef {
    /// The API group.
    pub api_group: Cow<'static, str>,
    /// `Role` or `ClusterRole`; nothing else can be resolved.
    pub kind: Cow<'static, str>,
    /// The name.
    pub name: Box<str>,
}

/// Whom a binding is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// `User`, `Group` or `ServiceAccount`; nothing else is anybody.
    pub kind: Cow<'static, str>,
    /// The name.
    pub name: Box<str>,
    /// The namespace of a service account; if empty, the binding's.
    pub namespace: Box<str>,
}

/// The kind of a subject that is a user.
pub const USER: &str = "User";
/// The kind of a subject that is a group of users.
pub const GROUP: &str = "Group";
/// The kind of a subject that is a service account.
pub const SERVICE_ACCOUNT: &str = "ServiceAccount";

impl Subject {
    /// Whether it is this user, in a binding of this namespace.
    #[must_use]
    pub fn is(&self, user: &UserInfo, binding_namespace: &str) -> bool {
        self.is_any(user, |name| user.groups.iter().any(|group| group == name), binding_namespace)
    }

    /// As [`Subject::is`], for a user of whose groups one can be looked up.
    fn is_any(&self, user: &UserInfo, is_in_group: impl Fn(&str) -> bool, binding_namespace: &str) -> bool {
        match &*self.kind {
            USER => *user.username == *self.name,
            GROUP => is_in_group(&self.name),
            SERVICE_ACCOUNT => {
                let namespace = self.namespace_or(binding_namespace);
                let rest = user.username.strip_prefix(SERVICE_ACCOUNT_PREFIX);
                let name = rest.and_then(|rest| rest.strip_prefix(namespace)).and_then(|rest| rest.strip_prefix(':'));
                !namespace.is_empty() && name == Some(&*self.name)
            }
            _ => false,
        }
    }

    pub(super) fn namespace_or<'a>(&'a self, binding_namespace: &'a str) -> &'a str {
        if self.namespace.is_empty() { binding_namespace } else { &self.namespace }
    }
}

impl Binding {
    /// The kind of object that it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        if self.namespace.is_empty() { Kind::ClusterRoleBinding } else { Kind::RoleBinding }
    }

    /// The first subject that is this user.
    #[must_use]
    pub fn subject_of(&self, user: &UserInfo) -> Option<usize> {
        self.subjects.iter().position(|subject| subject.is(user, &self.namespace))
    }

    /// As [`Binding::subject_of`], for a user of whose groups one can be looked up.
    pub(super) fn subject_of_any(&self, user: &UserInfo, is_in_group: impl Fn(&str) -> bool) -> Option<usize> {
        self.subjects.iter().position(|subject| subject.is_any(user, &is_in_group, &self.namespace))
    }

    /// What gives the user rules, in Kubernetes' words: the binding, its role, and which of its subjects the user is.
    pub(super) fn describe(&self, subject: usize, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slashed = |name: &str, namespace: &str| quoted(&format!("{name}/{namespace}"));
        let name = match self.kind() {
            Kind::RoleBinding => slashed(&self.name, &self.namespace),
            _ => quoted(&self.name),
        };
        let RoleRef { kind, name: role, .. } = &self.role;
        write!(formatter, "{} {name} of {kind} {} to ", self.kind().name(), quoted(role))?;
        let subject = &self.subjects[subject];
        let name = match &*subject.kind {
            SERVICE_ACCOUNT => slashed(&subject.name, subject.namespace_or(&self.namespace)),
            _ => quoted(&subject.name),
        };
        write!(formatter, "{} {name}", subject.kind)
    }
}

/// An object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A role.
    Role(Role),
    /// A cluster role.
    ClusterRole(ClusterRole),
    /// A binding of either kind.
    Binding(Binding),
}

/// Why an object can't be read.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// It is not valid JSON, or a field that counts has the wrong type.
    #[error("the {} is malformed: {source}", kind.name())]
    Json {
        /// What it should have been.
        kind: Kind,
        /// What is wrong with it, and where.
        source: serde_json::Error,
    },
    /// It should be in a namespace. Without one, a role binding would hold everywhere.
    #[error("the {} {name:?} is in no namespace", kind.name())]
    NoNamespace {
        /// What it is.
        kind: Kind,
        /// Its name.
        name: Box<str>,
    },
}

impl Object {
    /// Reads an object of this kind; what it says of its kind itself is not looked at. `namespace` is where it is if it
    /// does not say it itself, as in the body of a request.
    ///
    /// # Errors
    /// When it is malformed, or in no namespace though it must be in one.
    pub fn from_json(kind: Kind, json: &[u8], namespace: &str) -> Result<Self, Malformed> {
        let mut read: Read = serde_json::from_slice(json).map_err(|source| Malformed::Json { kind, source })?;
        let metadata = &mut read.metadata;
        if !kind.is_namespaced() {
            metadata.namespace = Box::default();
        } else if metadata.namespace.is_empty() {
            if namespace.is_empty() {
                return Err(Malformed::NoNamespace { kind, name: std::mem::take(&mut metadata.name) });
            }
            metadata.namespace = namespace.into();
        }
        Ok(read.into_object(kind))
    }

    /// The namespace; empty for what is in none.
    #[must_use]
    pub fn namespace(&self) -> &str {
        match self {
            Self::Role(role) => &role.namespace,
            Self::ClusterRole(_) => "",
            Self::Binding(binding) => &binding.namespace,
        }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Role(role) => &role.name,
            Self::ClusterRole(role) => &role.name,
            Self::Binding(binding) => &binding.name,
        }
    }

    /// The kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Role(_) => Kind::Role,
            Self::ClusterRole(_) => Kind::ClusterRole,
            Self::Binding(binding) => binding.kind(),
        }
    }
}

/// An object of any kind as it is read.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Read {
    #[serde(deserialize_with = "null_as_empty")]
    metadata: ReadMetadata,
    #[serde(deserialize_with = "null_as_empty")]
    rules: Box<[PolicyRule]>,
    aggregation_rule: Option<ReadAggregation>,
    #[serde(deserialize_with = "null_as_empty")]
    role_ref: ReadRef,
    #[serde(deserialize_with = "null_as_empty")]
    subjects: Vec<ReadRef>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ReadMetadata {
    name: Box<str>,
    namespace: Box<str>,
    #[serde(deserialize_with = "null_as_empty")]
    labels: BTreeMap<Box<str>, Box<str>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ReadAggregation {
    #[serde(deserialize_with = "null_as_empty")]
    cluster_role_selectors: Box<[LabelSelector]>,
}

/// A role's name or a subject's.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ReadRef {
    api_group: String,
    kind: String,
    name: Box<str>,
    namespace: Box<str>,
}

impl Read {
    fn into_object(self, kind: Kind) -> Object {
        let ReadMetadata { name, namespace, labels } = self.metadata;
        match kind {
            Kind::Role => Object::Role(Role { namespace, name, rules: self.rules }),
            Kind::ClusterRole => Object::ClusterRole(ClusterRole {
                name,
                labels: labels.into_iter().collect(),
                aggregation: self.aggregation_rule.map(|rule| rule.cluster_role_selectors),
                rules: self.rules,
            }),
            Kind::RoleBinding | Kind::ClusterRoleBinding => Object::Binding(Binding {
                namespace,
                name,
                role: RoleRef {
                    // As Kubernetes sets it where it is not said.
                    api_group: if self.role_ref.api_group.is_empty() {
                        Cow::Borrowed(RBAC_GROUP)
                    } else {
                        shared(self.role_ref.api_group)
                    },
                    kind: shared(self.role_ref.kind),
                    name: self.role_ref.name,
                },
                subjects: self.subjects.into_iter().map(ReadRef::into_subject).collect(),
            }),
        }
    }
}

impl ReadRef {
    fn into_subject(self) -> Subject {
        Subject { kind: shared(self.kind), name: self.name, namespace: self.namespace }
    }
}

/// A word that is nearly always one of a few, without memory of its own if it is.
fn shared(word: String) -> Cow<'static, str> {
    [USER, GROUP, SERVICE_ACCOUNT, "Role", "ClusterRole", RBAC_GROUP]
        .into_iter()
        .find(|known| **known == *word)
        .map_or(Cow::Owned(word), Cow::Borrowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(username: &str, groups: &[&str]) -> UserInfo {
        let groups = groups.iter().map(|&group| group.to_owned()).collect();
        UserInfo { username: username.to_owned(), groups, ..UserInfo::default() }
    }

    fn subject(kind: &str, namespace: &str, name: &str) -> Subject {
        Subject { kind: shared(kind.to_owned()), name: name.into(), namespace: namespace.into() }
    }

    #[test]
    fn a_subject_is_whom_kubernetes_takes_it_for() {
        let jane = user("jane", &["dev", "system:authenticated"]);
        let web = user("system:serviceaccount:shop:web", &["system:serviceaccounts", "system:serviceaccounts:shop"]);
        for (subject, user, namespace, expected) in [
            (subject("User", "", "jane"), &jane, "", true),
            (subject("User", "shop", "jane"), &jane, "", true),
            (subject("User", "", "Jane"), &jane, "", false),
            (subject("user", "", "jane"), &jane, "", false),
            (subject("Group", "", "dev"), &jane, "", true),
            (subject("Group", "", "jane"), &jane, "", false),
            (subject("Group", "", "system:authenticated"), &jane, "", true),
            (subject("ServiceAccount", "", "jane"), &jane, "shop", false),
            (subject("ServiceAccount", "shop", "web"), &web, "", true),
            (subject("ServiceAccount", "", "web"), &web, "shop", true),
            (subject("ServiceAccount", "", "web"), &web, "", false),
            (subject("ServiceAccount", "other", "web"), &web, "shop", false),
            (subject("ServiceAccount", "sh", "op:web"), &web, "", false),
            (subject("ServiceAccount", "shop", "we"), &web, "", false),
            (subject("User", "", "system:serviceaccount:shop:web"), &web, "", true),
            (subject("Group", "", "system:serviceaccounts:shop"), &web, "", true),
            (subject("Group", "", "system:serviceaccounts:other"), &web, "", false),
            (subject("Node", "", "jane"), &jane, "", false),
        ] {
            assert_eq!(subject.is(user, namespace), expected, "{subject:?} {user:?} {namespace:?}");
        }
    }

    #[test]
    fn an_object_is_read_leniently() {
        let json = br#"{"metadata":{"name":"r","labels":{"b":"2","a":"1"},"managedFields":[{"x":1}]},"rules":null,
            "aggregationRule":{"clusterRoleSelectors":[{"matchLabels":{"a":"1"}}],"x":1},"more":{}}"#;
        let Object::ClusterRole(role) = Object::from_json(Kind::ClusterRole, json, "").unwrap() else {
            panic!("another kind")
        };
        assert_eq!((role.label("a"), role.label("b"), role.label("c")), (Some("1"), Some("2"), None));
        assert!(role.is_aggregated());

        let json =
            br#"{"kind":"ClusterRoleBinding","metadata":{"name":"b","namespace":"x"},"roleRef":{"kind":"ClusterRole",
            "name":"r"},"subjects":[{"kind":"User","apiGroup":"rbac.authorization.k8s.io","name":"jane"}]}"#;
        let Object::Binding(binding) = Object::from_json(Kind::ClusterRoleBinding, json, "x").unwrap() else {
            panic!("another kind")
        };
        assert_eq!((&*binding.namespace, &*binding.role.api_group), ("", RBAC_GROUP));
        assert_eq!(binding.subjects, [subject("User", "", "jane")].into());
        assert_eq!(binding.kind(), Kind::ClusterRoleBinding);

        let error = Object::from_json(Kind::Role, br#"{"metadata":{"name":1}}"#, "shop").unwrap_err().to_string();
        assert!(error.starts_with("the Role is malformed: "), "{error}");
    }

    #[test]
    fn a_role_binding_in_no_namespace_is_refused() {
        let json = br#"{"metadata":{"name":"b"}}"#;
        let error = Object::from_json(Kind::RoleBinding, json, "").unwrap_err().to_string();
        assert_eq!(error, r#"the RoleBinding "b" is in no namespace"#);
        assert_eq!(Object::from_json(Kind::RoleBinding, json, "shop").unwrap().kind(), Kind::RoleBinding);
    }

    #[test]
    fn a_role_with_a_selector_that_cannot_be_understood_keeps_its_rules() {
        let json =
            br#"{"metadata":{"name":"r"},"aggregationRule":{"clusterRoleSelectors":[{"matchLabels":{"-":"-"}}]}}"#;
        let Object::ClusterRole(role) = Object::from_json(Kind::ClusterRole, json, "").unwrap() else {
            panic!("another kind")
        };
        assert!(!role.is_aggregated());
    }
}
