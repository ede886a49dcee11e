//! Whether a user may write a role or binding: nobody grants what they don't have ([`check`]).
//!
//! To write a role, all that it allows must be covered by what the user may do in its scope, or the user has the verb
//! `escalate` on it. To write a binding, the same holds for the role that it grants, or the user has the verb `bind` on
//! that role. This comes on top of the right to write the object at all.
//!
//! Invariant: the decision and the refusal are those of Kubernetes 1.36 (`pkg/registry/rbac/*/policybased`) for objects
//! that are read from storage. What cannot be read is refused, and so are rules that it would take too long to compare.

use kubewharf_kube_api::quote::{push_quoted, push_quoted_list, quoted};
use kubewharf_kube_api::{RequestInfo, Status};
use serde_json::Value;

use super::cover::{to_texts, uncovered};
use super::decision::{aggregate, authorize};
use super::policy::{Policy, RoleError, Rules};
use super::roles::{Binding, ClusterRole, Kind, Object, RBAC_GROUP};
use super::rules::{ALL, PolicyRule};
use super::{Attributes, UserInfo, is_privileged};

/// Whether this user may write this object, in a request that creates, updates or patches it: `new` is the object as it
/// would be stored, as JSON, and `old` as it is stored, or shown as a default ([`super::defaults::to_json`]), if there
/// is one. A request for anything but roles and bindings is not looked at.
///
/// # Errors
/// The refusal to answer with.
pub fn check(
    policy: &Policy,
    user: &UserInfo,
    request: &RequestInfo<'_>,
    new: &[u8],
    old: Option<&[u8]>,
) -> Result<(), Status> {
    if request.api_group != RBAC_GROUP || !request.is_resource_request {
        return Ok(());
    }
    let Some(kind) = Kind::of_resource(&request.resource) else { return Ok(()) };
    if is_privileged(user) {
        return Ok(());
    }
    let read = |json: &[u8]| {
        Object::from_json(kind, json, &request.namespace).map_err(|error| Status::bad_request(error.to_string()))
    };
    let object = read(new)?;
    let namespace = if kind.is_namespaced() { &*request.namespace } else { "" };
    if object.namespace() != namespace {
        // What is checked for one namespace must not be stored in another.
        let why = "the namespace of the provided object does not match the namespace sent on the request";
        return Err(Status::bad_request(why));
    }
    let check = Check { policy, user, kind, namespace };
    match &object {
        Object::Role(_) | Object::ClusterRole(_) if check.may_escalate(request) => return Ok(()),
        _ => {}
    }
    if old.is_some_and(|old| is_same_but_for_garbage_collection(new, old)) {
        return Ok(());
    }
    match &object {
        Object::Role(role) => check.covered(&mut role.rules.iter(), &role.name),
        Object::ClusterRole(role) => {
            check.covered(&mut role.rules.iter(), &role.name)?;
            let old = old.map(read).transpose()?;
            let was_collecting = matches!(&old, Some(Object::ClusterRole(old)) if collects(old));
            if collects(role) || was_collecting { check.may_collect(&role.name) } else { Ok(()) }
        }
        Object::Binding(binding) => check.may_bind(binding),
    }
}

/// What is the same for all that is checked of a request.
struct Check<'a> {
    policy: &'a Policy,
    user: &'a UserInfo,
    /// What is written.
    kind: Kind,
    /// The scope that is granted in; empty for everywhere.
    namespace: &'a str,
}

impl Check<'_> {
    /// The verb `escalate` on the role. Its name is the one in the path, so a new one has none.
    fn may_escalate(&self, request: &RequestInfo<'_>) -> bool {
        let asked = Attributes { verb: "escalate", subresource: "", ..Attributes::of_request(request) };
        authorize(self.policy, self.user, &asked).allowed
    }

    /// To collect rules is to have any that there ever will be, so it takes the right to everything.
    fn may_collect(&self, name: &str) -> Result<(), Status> {
        let everything = [
            PolicyRule {
                verbs: [ALL.into()].into(),
                api_groups: [ALL.into()].into(),
                resources: [ALL.into()].into(),
                ..PolicyRule::default()
            },
            PolicyRule { verbs: [ALL.into()].into(), non_resource_urls: [ALL.into()].into(), ..PolicyRule::default() },
        ];
        self.covered(&mut everything.iter(), name)
            .map_err(|_| self.forbidden(name, "must have cluster-admin privileges to use the aggregationRule"))
    }

    fn may_bind(&self, binding: &Binding) -> Result<(), Status> {
        let role_kind = match &*binding.role.kind {
            "ClusterRole" => Kind::ClusterRole,
            "Role" => Kind::Role,
            _ => return self.role_rules(binding).map(drop),
        };
        let asked = Attributes {
            is_resource_request: true,
            verb: "bind",
            api_group: &binding.role.api_group,
            resource: role_kind.resource(),
            name: &binding.role.name,
            namespace: self.namespace,
            ..Attributes::default()
        };
        if authorize(self.policy, self.user, &asked).allowed {
            return Ok(());
        }
        let rules = self.role_rules(binding)?;
        self.covered(&mut rules.into_iter(), &binding.name)
    }

    fn role_rules(&self, binding: &Binding) -> Result<Vec<&PolicyRule>, Status> {
        if self.namespace.is_empty() && *binding.role.kind == *"Role" {
            return Err(Status::bad_request("Namespace parameter required."));
        }
        self.policy.rules_of(&binding.role, self.namespace).map(Rules::to_vec).map_err(|error| match &error {
            RoleError::NotFound { name, .. } => Status::object_not_found(RBAC_GROUP, self.kind.resource(), name),
            RoleError::UnsupportedKind { .. } => Status::unexpected(error.to_string()),
        })
    }

    /// Where Kubernetes reads roles from storage for a request, it takes what is missing for what the request is for.
    fn text_of(&self, error: &RoleError) -> String {
        match error {
            RoleError::NotFound { name, .. } => {
                format!("{}.{RBAC_GROUP} {} not found", self.kind.resource(), quoted(name))
            }
            RoleError::UnsupportedKind { .. } => error.to_string(),
        }
    }

    fn forbidden(&self, name: &str, why: &str) -> Status {
        Status::forbidden_object(RBAC_GROUP, self.kind.resource(), name, why)
    }

    /// Refuses to write the object of this name, unless the user has these rules in the scope.
    fn covered(&self, wanted: &mut dyn Iterator<Item = &PolicyRule>, name: &str) -> Result<(), Status> {
        let (held, errors) = self.policy.rules_for(self.user, self.namespace);
        let Ok(missing) = uncovered(&held, wanted) else {
            return Err(self.forbidden(
                name,
                "the rules stand for too many single rights to compare them with those that the user has",
            ));
        };
        if missing.is_empty() {
            return Ok(());
        }
        let mut why = String::from("user ");
        push_quoted(&mut why, &self.user.username);
        why += " (groups=";
        push_quoted_list(&mut why, &self.user.groups);
        why += ") is attempting to grant RBAC permissions not currently held:\n";
        let texts: Vec<String> = to_texts(&missing).into_iter().collect();
        why += &texts.join("\n");
        if !errors.is_empty() {
            let errors: Vec<String> = errors.iter().map(|error| self.text_of(error)).collect();
            why += &format!("; resolution errors: [{}]", aggregate(&errors));
        }
        Err(self.forbidden(name, &why))
    }
}

fn collects(role: &ClusterRole) -> bool {
    role.aggregation.as_ref().is_some_and(|selectors| !selectors.is_empty())
}

/// As `IsOnlyMutatingGCFields`: whether two objects differ only in what the garbage collector changes to delete one.
fn is_same_but_for_garbage_collection(new: &[u8], old: &[u8]) -> bool {
    let read = |json: &[u8]| {
        let mut object: Value = serde_json::from_slice(json).ok()?;
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.retain(|key, _| {
                !matches!(key.as_str(), "ownerReferences" | "finalizers" | "selfLink" | "managedFields")
            });
        }
        drop_empty(&mut object);
        Some(object)
    };
    read(new).is_some_and(|new| read(old) == Some(new))
}

/// Drops what Go does not tell from a field that is not there. An empty object stays: it can be a pointer to one.
fn drop_empty(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| {
                drop_empty(field);
                match field {
                    Value::Null => false,
                    Value::String(text) => !text.is_empty(),
                    Value::Array(items) => !items.is_empty(),
                    _ => true,
                }
            });
        }
        Value::Array(items) => items.iter_mut().for_each(drop_empty),
        _ => {}
    }
}
