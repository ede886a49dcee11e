//! The roles and bindings of one tenant, over the defaults that every cluster has: [`Policy`].
//!
//! A policy is a pointer to what the tenant has stored; a tenant that has stored nothing costs no more than the
//! pointer. The defaults ([`super::defaults`]) are there once for all, and an object that the tenant has stored takes
//! the place of the default of its name. A clone is a snapshot: changes are made in place if there is no other, and in
//! a copy if there is.
//!
//! Invariant: a policy depends on the objects that it holds, and not on the order in which they came. Nothing is
//! granted by an object that was removed or replaced.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, OnceLock};

use kubewharf_kube_api::quote::quoted;
use kubewharf_kube_api::users::service_account_user;

use super::UserInfo;
use super::defaults::DEFAULTS;
use super::roles::{
    Binding, ClusterRole, GROUP, Kind, Object, RBAC_GROUP, Role, RoleRef, SERVICE_ACCOUNT, Subject, USER,
};
use super::rules::PolicyRule;

/// How many groups of a user are looked through for one, rather than looked up.
const GROUPS_SCANNED_MAX: usize = 16;
/// How much it may take to find out what collects from what: a tenant can have many roles that select many. In steps of
/// a condition that is looked at; this many take some hundredths of a second.
const AGGREGATION_STEPS_MAX: usize = 2_000_000;

/// One tenant's roles and bindings.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    own: Option<Arc<Store>>,
}

/// A binding that is for a user.
#[derive(Clone, Copy, Debug)]
pub struct Grant<'a> {
    /// The binding.
    pub binding: &'a Arc<Binding>,
    /// The first of its subjects that is the user.
    pub subject: usize,
}

/// Why a binding grants nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoleError {
    /// There is no such role. Kubernetes' authorizer names the resource in the singular.
    #[error("{}.{RBAC_GROUP} {} not found", kind.name().to_lowercase(), quoted(name))]
    NotFound {
        /// The kind of role.
        kind: Kind,
        /// The role's name.
        name: Box<str>,
    },
    /// It is for something that is no role.
    #[error("unsupported role reference kind: {}", quoted(kind))]
    UnsupportedKind {
        /// What it is for.
        kind: Box<str>,
    },
}

/// The rules of a role, in their order; for one that collects them possibly with repetitions.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a>(Source<'a>);

#[derive(Clone, Copy, Debug)]
enum Source<'a> {
    Own(&'a [PolicyRule]),
    Collected(&'a [Arc<ClusterRole>]),
}

impl<'a> Rules<'a> {
    /// All rules, possibly with repetitions.
    pub fn iter(self) -> impl Iterator<Item = &'a PolicyRule> {
        let (own, collected): (&[_], &[Arc<ClusterRole>]) = match self.0 {
            Source::Own(rules) => (rules, &[]),
            Source::Collected(roles) => (&[], roles),
        };
        own.iter().chain(collected.iter().flat_map(|role| role.rules.iter()))
    }

    /// All rules as the role holds them: Kubernetes' aggregation controller collects each but once.
    #[must_use]
    pub fn to_vec(self) -> Vec<&'a PolicyRule> {
        match self.0 {
            Source::Own(rules) => rules.iter().collect(),
            Source::Collected(_) => {
                let mut seen = HashSet::new();
                self.iter().filter(|&rule| seen.insert(rule)).collect()
            }
        }
    }
}

impl Policy {
    /// That of a tenant with these objects.
    pub fn of(objects: impl IntoIterator<Item = Object>) -> Self {
        let mut policy = Self::default();
        for object in objects {
            policy.insert(object);
        }
        policy
    }

    /// Takes an object that was stored, in place of the one of its kind, namespace and name.
    pub fn insert(&mut self, object: Object) {
        Arc::make_mut(self.own.get_or_insert_default()).insert(object);
    }

    /// Drops an object that is not stored any more. `namespace` is empty for what is in none.
    pub fn remove(&mut self, kind: Kind, namespace: &str, name: &str) {
        let Some(own) = &mut self.own else { return };
        if !own.contains(kind, namespace, name) {
            return;
        }
        let store = Arc::make_mut(own);
        store.remove(kind, namespace, name);
        if store.is_empty() {
            self.own = None;
        }
    }

    /// Drops all objects of a kind.
    pub fn remove_kind(&mut self, kind: Kind) {
        let Some(own) = &self.own else { return };
        let place = |namespace: &str, name: &str| (namespace.to_owned(), name.to_owned());
        let places: Vec<(String, String)> = match kind {
            Kind::Role => own.roles.0.iter().map(|role| place(&role.namespace, &role.name)).collect(),
            Kind::ClusterRole => own.cluster_roles.0.iter().map(|role| place("", &role.name)).collect(),
            Kind::RoleBinding | Kind::ClusterRoleBinding => {
                let of_kind = own.bindings.0.iter().filter(|binding| binding.kind() == kind);
                of_kind.map(|binding| place(&binding.namespace, &binding.name)).collect()
            }
        };
        for (namespace, name) in places {
            self.remove(kind, &namespace, &name);
        }
    }

    /// Whether the tenant itself has stored an object of this kind, namespace and name.
    #[must_use]
    pub fn has_stored(&self, kind: Kind, namespace: &str, name: &str) -> bool {
        self.own.as_ref().is_some_and(|own| own.contains(kind, namespace, name))
    }

    /// A cluster role, if there is one of this name.
    #[must_use]
    pub fn cluster_role(&self, name: &str) -> Option<&Arc<ClusterRole>> {
        self.stores().find_map(|store| store.cluster_roles.get("", name))
    }

    /// A role, if there is one of this namespace and name.
    #[must_use]
    pub fn role(&self, namespace: &str, name: &str) -> Option<&Arc<Role>> {
        self.stores().find_map(|store| store.roles.get(namespace, name))
    }

    /// A binding, if there is one of this namespace and name; the namespace is empty for a cluster role binding.
    #[must_use]
    pub fn binding(&self, namespace: &str, name: &str) -> Option<&Arc<Binding>> {
        self.stores().find_map(|store| store.bindings.get(namespace, name))
    }

    /// The rules of a cluster role, collected if it collects them.
    #[must_use]
    pub fn cluster_role_rules(&self, name: &str) -> Option<Rules<'_>> {
        let role = self.cluster_role(name)?;
        let collected = role.aggregation.as_ref().and_then(|_| {
            let aggregates = self.aggregates();
            let found = aggregates.binary_search_by(|aggregate| (*aggregate.role.name).cmp(name)).ok()?;
            Some(Source::Collected(&aggregates[found].sources))
        });
        Some(Rules(collected.unwrap_or(Source::Own(&role.rules))))
    }

    /// The rules of the role that a binding in this namespace names; the namespace is empty for a cluster role binding.
    ///
    /// # Errors
    /// When there is no such role.
    pub fn rules_of(&self, role: &RoleRef, binding_namespace: &str) -> Result<Rules<'_>, RoleError> {
        let (kind, rules) = match &*role.kind {
            "ClusterRole" => (Kind::ClusterRole, self.cluster_role_rules(&role.name)),
            "Role" => {
                let found = self.role(binding_namespace, &role.name);
                (Kind::Role, found.map(|role| Rules(Source::Own(&role.rules))))
            }
            kind => return Err(RoleError::UnsupportedKind { kind: kind.into() }),
        };
        rules.ok_or_else(|| RoleError::NotFound { kind, name: role.name.clone() })
    }

    /// The bindings that are for this user in this namespace, or for an empty one in none: first cluster role bindings,
    /// then role bindings, each in their names' order. Kubernetes asks its cache for them, which has no order.
    #[must_use]
    pub fn grants<'a>(&'a self, user: &UserInfo, namespace: &str) -> Vec<Grant<'a>> {
        let scopes = ["", namespace];
        let scopes = if namespace.is_empty() { &scopes[..1] } else { &scopes[..] };
        let mut found: Vec<&Arc<Binding>> = Vec::new();
        for (store, is_default) in self.own.iter().map(|own| (&**own, false)).chain([(&*DEFAULTS, true)]) {
            for scope in scopes {
                let keys = user.groups.iter().map(|group| subject_key(scope, GROUP, group));
                for key in keys.chain([subject_key(scope, USER, &user.username)]) {
                    // The key is but a hash. A stored object takes a default's place.
                    found.extend(store.bindings_by_subject(key).filter(|binding| {
                        let is_replaced = || self.own.as_ref().is_some_and(|own| own.bindings.has(&***binding));
                        *binding.namespace == **scope && !(is_default && is_replaced())
                    }));
                }
            }
        }
        found.sort_unstable_by(|one, other| one.key().cmp(&other.key()));
        found.dedup_by(|one, other| Arc::ptr_eq(one, other));
        // Who asks about others can give them any number of groups.
        let groups: Option<HashSet<&str>> =
            (user.groups.len() > GROUPS_SCANNED_MAX).then(|| user.groups.iter().map(String::as_str).collect());
        let is_in_group = |name: &str| match &groups {
            Some(groups) => groups.contains(name),
            None => user.groups.iter().any(|group| group == name),
        };
        let grant = |binding: &'a Arc<Binding>| {
            binding.subject_of_any(user, is_in_group).map(|subject| Grant { binding, subject })
        };
        found.into_iter().filter_map(grant).collect()
    }

    /// All rules that hold for this user in this namespace, and why some may miss.
    #[must_use]
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> (Vec<&PolicyRule>, Vec<RoleError>) {
        let mut rules = Vec::new();
        let mut errors = Vec::new();
        for Grant { binding, .. } in self.grants(user, namespace) {
            match self.rules_of(&binding.role, &binding.namespace) {
                Ok(found) => rules.extend(found.to_vec()),
                Err(error) => errors.push(error),
            }
        }
        (rules, errors)
    }

    /// What the tenant has stored, then the defaults.
    fn stores(&self) -> impl Iterator<Item = &Store> {
        self.own.as_deref().into_iter().chain([&*DEFAULTS])
    }

    /// All cluster roles that collect rules, by name. They are found out once a version of the policy, when asked for.
    fn aggregates(&self) -> &[Aggregate] {
        match &self.own {
            Some(own) if !own.cluster_roles.0.is_empty() => own.aggregates.get_or_init(|| {
                let is_not_replaced = |role: &&Arc<ClusterRole>| own.cluster_roles.get("", &role.name).is_none();
                let defaults = DEFAULTS.cluster_roles.0.iter().filter(is_not_replaced);
                let mut roles: Vec<_> = own.cluster_roles.0.iter().chain(defaults).cloned().collect();
                roles.sort_unstable_by(|one, other| one.name.cmp(&other.name));
                aggregate(&roles)
            }),
            _ => DEFAULTS.aggregates.get_or_init(|| aggregate(&DEFAULTS.cluster_roles.0)),
        }
    }
}

/// A cluster role that collects rules, and those that it has them from.
#[derive(Clone, Debug)]
struct Aggregate {
    role: Arc<ClusterRole>,
    sources: Box<[Arc<ClusterRole>]>,
}

/// What collects from what, among all cluster roles in their names' order.
///
/// Kubernetes' controller goes on until nothing changes any more. What it arrives at are the rules of all that is
/// selected, directly or by what is selected, in this order; but if two collect from each other, it keeps rules of
/// roles that are gone. When [`AGGREGATION_STEPS_MAX`] are used up, what is left collects nothing.
fn aggregate(roles: &[Arc<ClusterRole>]) -> Box<[Aggregate]> {
    let mut steps = AGGREGATION_STEPS_MAX;
    let mut selected: Vec<Option<Vec<usize>>> = Vec::with_capacity(roles.len());
    for role in roles {
        selected.push(role.is_aggregated().then(|| select(role, roles, &mut steps)));
    }
    let collects = selected.iter().enumerate().filter(|(_, selected)| selected.is_some());
    collects
        .map(|(number, _)| {
            let sources = collect(number, &selected, &mut steps);
            let sources = sources.into_iter().map(|source| Arc::clone(&roles[source])).collect();
            Aggregate { role: Arc::clone(&roles[number]), sources }
        })
        .collect()
}

/// The places of the roles that this one selects, each once, in the selectors' order.
fn select(role: &ClusterRole, roles: &[Arc<ClusterRole>], steps: &mut usize) -> Vec<usize> {
    let mut seen = vec![false; roles.len()];
    let mut selected = Vec::new();
    for selector in role.aggregation.iter().flatten() {
        let conditions = 1 + selector.match_labels.len() + selector.match_expressions.len();
        let Some(left) = steps.checked_sub(roles.len() * conditions) else {
            *steps = 0;
            return Vec::new();
        };
        *steps = left;
        for (place, other) in roles.iter().enumerate() {
            if !seen[place] && selector.matches_if_valid(|key| other.label(key)) {
                seen[place] = true;
                selected.push(place);
            }
        }
    }
    selected
}

/// The places of the roles that this one has its rules from; those that collect rules themselves have none.
fn collect(from: usize, selected: &[Option<Vec<usize>>], steps: &mut usize) -> Vec<usize> {
    let mut seen = vec![false; selected.len()];
    seen[from] = true;
    let mut sources = Vec::new();
    // As deep as roles collect from roles, which a tenant decides: so it is a list, and not the stack.
    let mut path = vec![selected[from].iter().flatten()];
    while let Some(next) = path.last_mut() {
        let Some(&place) = next.next() else {
            path.pop();
            continue;
        };
        let Some(left) = steps.checked_sub(1) else { return Vec::new() };
        *steps = left;
        if std::mem::replace(&mut seen[place], true) {
            continue;
        }
        match &selected[place] {
            Some(_) => path.push(selected[place].iter().flatten()),
            None => sources.push(place),
        }
    }
    sources
}

/// Objects of the four kinds.
#[derive(Clone, Debug, Default)]
pub(super) struct Store {
    pub(super) roles: Sorted<Role>,
    pub(super) cluster_roles: Sorted<ClusterRole>,
    /// Of both kinds.
    pub(super) bindings: Sorted<Binding>,
    /// The bindings by [`subject_key`], in the keys' order. Different subjects can have the same key.
    by_subject: Vec<(u64, Arc<Binding>)>,
    /// Empty until it is asked for, and again after each change of a cluster role.
    aggregates: OnceLock<Box<[Aggregate]>>,
}

impl Store {
    pub(super) fn insert(&mut self, object: Object) {
        match object {
            Object::Role(role) => drop(self.roles.insert(role)),
            Object::ClusterRole(role) => {
                self.aggregates.take();
                self.cluster_roles.insert(role);
            }
            Object::Binding(binding) => {
                if let Some(replaced) = self.bindings.insert(binding.clone()) {
                    self.forget_subjects(&replaced);
                }
                self.index_subjects(&binding);
            }
        }
    }

    fn remove(&mut self, kind: Kind, namespace: &str, name: &str) {
        match kind {
            Kind::Role => drop(self.roles.remove(namespace, name)),
            Kind::ClusterRole => {
                self.aggregates.take();
                self.cluster_roles.remove(namespace, name);
            }
            Kind::RoleBinding | Kind::ClusterRoleBinding => {
                if let Some(removed) = self.bindings.remove(namespace, name) {
                    self.forget_subjects(&removed);
                }
            }
        }
    }

    fn contains(&self, kind: Kind, namespace: &str, name: &str) -> bool {
        match kind {
            Kind::Role => self.roles.get(namespace, name).is_some(),
            Kind::ClusterRole => self.cluster_roles.get(namespace, name).is_some(),
            Kind::RoleBinding | Kind::ClusterRoleBinding => self.bindings.get(namespace, name).is_some(),
        }
    }

    fn is_empty(&self) -> bool {
        self.roles.0.is_empty() && self.cluster_roles.0.is_empty() && self.bindings.0.is_empty()
    }

    fn bindings_by_subject(&self, key: u64) -> impl Iterator<Item = &Arc<Binding>> {
        let first = self.by_subject.partition_point(|(found, _)| *found < key);
        self.by_subject[first..].iter().take_while(move |(found, _)| *found == key).map(|(_, binding)| binding)
    }

    fn index_subjects(&mut self, binding: &Binding) {
        let binding = self.bindings.get(&binding.namespace, &binding.name).expect("it was inserted just now");
        for key in subject_keys(binding) {
            let place = self.by_subject.partition_point(|(found, _)| *found < key);
            self.by_subject.insert(place, (key, Arc::clone(binding)));
        }
    }

    fn forget_subjects(&mut self, binding: &Arc<Binding>) {
        for key in subject_keys(binding) {
            let first = self.by_subject.partition_point(|(found, _)| *found < key);
            let found = self.by_subject[first..].iter().position(|(_, found)| Arc::ptr_eq(found, binding));
            self.by_subject.remove(first + found.expect("each binding is there under all its keys"));
        }
    }
}

/// The keys of all that a binding is for, each once.
fn subject_keys(binding: &Binding) -> Vec<u64> {
    let key = |subject: &Subject| match &*subject.kind {
        kind @ (USER | GROUP) => Some(subject_key(&binding.namespace, kind, &subject.name)),
        SERVICE_ACCOUNT => {
            let namespace = subject.namespace_or(&binding.namespace);
            let user = service_account_user(namespace, &subject.name);
            (!namespace.is_empty()).then(|| subject_key(&binding.namespace, USER, &user))
        }
        _ => None,
    };
    let mut keys: Vec<u64> = binding.subjects.iter().filter_map(key).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// What bindings for a user or group in a namespace are found by. A service account is a user.
fn subject_key(namespace: &str, kind: &str, name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (namespace, kind, name).hash(&mut hasher);
    hasher.finish()
}

/// What has a namespace, which may be empty, and a name.
pub(super) trait Keyed {
    fn key(&self) -> (&str, &str);
}

impl Keyed for Role {
    fn key(&self) -> (&str, &str) {
        (&self.namespace, &self.name)
    }
}

impl Keyed for ClusterRole {
    fn key(&self) -> (&str, &str) {
        ("", &self.name)
    }
}

impl Keyed for Binding {
    fn key(&self) -> (&str, &str) {
        (&self.namespace, &self.name)
    }
}

/// Objects in the order of their namespaces and names. A list of pointers is the least memory that a few objects can
/// have, and the least work to copy.
#[derive(Clone, Debug)]
pub(super) struct Sorted<T>(pub(super) Vec<Arc<T>>);

impl<T> Default for Sorted<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Keyed> Sorted<T> {
    pub(super) fn get(&self, namespace: &str, name: &str) -> Option<&Arc<T>> {
        self.find(namespace, name).ok().map(|found| &self.0[found])
    }

    /// Returns what was replaced.
    fn insert(&mut self, object: T) -> Option<Arc<T>> {
        let (namespace, name) = object.key();
        match self.find(namespace, name) {
            Ok(found) => Some(std::mem::replace(&mut self.0[found], Arc::new(object))),
            Err(place) => {
                self.0.insert(place, Arc::new(object));
                None
            }
        }
    }

    fn remove(&mut self, namespace: &str, name: &str) -> Option<Arc<T>> {
        self.find(namespace, name).ok().map(|found| self.0.remove(found))
    }

    /// Whether there is one of the same namespace and name.
    fn has(&self, other: &T) -> bool {
        let (namespace, name) = other.key();
        self.find(namespace, name).is_ok()
    }

    fn find(&self, namespace: &str, name: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|object| object.key().cmp(&(namespace, name)))
    }
}
