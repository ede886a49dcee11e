//! What all tests of authorization share: objects, users and requests in short.

mod cover;
mod defaults;
mod escalation;
mod impersonation;
mod policy;
mod recorded;

use kubewharf_kube_api::RequestInfo;
use serde_json::{Value, json};

use super::roles::{Kind, Object};
use super::{Attributes, Decision, Policy, UserInfo, authorize};

/// An object from its JSON, which tells its kind.
pub(super) fn object(json: &Value) -> Object {
    let kind = Kind::ALL.into_iter().find(|kind| json["kind"] == kind.name()).unwrap();
    Object::from_json(kind, json.to_string().as_bytes(), "").unwrap()
}

pub(super) fn policy(objects: &[Value]) -> Policy {
    Policy::of(objects.iter().map(object))
}

/// `NAMESPACE/NAME`; the namespace is empty for what is in none.
fn metadata(name: &str) -> Value {
    let (namespace, name) = name.split_once('/').unwrap();
    json!({ "namespace": namespace, "name": name })
}

/// `VERBS GROUPS RESOURCES [NAMES]` or `VERBS url PATHS`, each with commas; the core group is `core`.
pub(super) fn rule(text: &str) -> Value {
    let mut words = text.split(' ');
    let mut list =
        || words.next().map(|word| word.split(',').map(|text| if text == "core" { "" } else { text }).collect());
    let verbs: Option<Vec<&str>> = list();
    let groups: Option<Vec<&str>> = list();
    let what: Option<Vec<&str>> = list();
    if groups.as_deref() == Some(&["url"]) {
        return json!({ "verbs": verbs, "nonResourceURLs": what });
    }
    json!({ "verbs": verbs, "apiGroups": groups, "resources": what, "resourceNames": list() })
}

pub(super) fn role(name: &str, rules: &[&str]) -> Value {
    let kind = if name.starts_with('/') { "ClusterRole" } else { "Role" };
    json!({ "kind": kind, "metadata": metadata(name), "rules": rules.iter().map(|text| rule(text)).collect::<Vec<_>>() })
}

/// A cluster role with labels `KEY=VALUE`, and what it collects by further ones.
pub(super) fn cluster_role(name: &str, labels: &[&str], collects: &[&str], rules: &[&str]) -> Value {
    let pairs = |texts: &[&str]| -> Value {
        texts
            .iter()
            .map(|text| text.split_once('=').unwrap())
            .map(|(key, value)| (key.to_owned(), json!(value)))
            .collect()
    };
    let mut role = role(&format!("/{name}"), rules);
    role["metadata"]["labels"] = pairs(labels);
    if !collects.is_empty() {
        let selectors: Vec<Value> = collects.iter().map(|text| json!({ "matchLabels": pairs(&[text]) })).collect();
        role["aggregationRule"] = json!({ "clusterRoleSelectors": selectors });
    }
    role
}

/// A binding of a role, `/NAME` for a cluster role, to subjects as `User:jane` or `ServiceAccount:shop/web`.
pub(super) fn binding(name: &str, role: &str, subjects: &[&str]) -> Value {
    let kind = if name.starts_with('/') { "ClusterRoleBinding" } else { "RoleBinding" };
    let (role_kind, role) = role.strip_prefix('/').map_or(("Role", role), |role| ("ClusterRole", role));
    let subject = |text: &&str| {
        let (kind, name) = text.split_once(':').unwrap();
        match kind {
            "ServiceAccount" => {
                let (namespace, name) = name.split_once('/').unwrap();
                json!({ "kind": kind, "namespace": namespace, "name": name })
            }
            _ => json!({ "kind": kind, "name": name, "apiGroup": "rbac.authorization.k8s.io" }),
        }
    };
    json!({
        "kind": kind, "metadata": metadata(name), "roleRef": { "kind": role_kind, "name": role },
        "subjects": subjects.iter().map(subject).collect::<Vec<_>>(),
    })
}

/// `NAME GROUP…`
pub(super) fn user(text: &str) -> UserInfo {
    let mut words = text.split(' ').map(str::to_owned);
    UserInfo { username: words.next().unwrap(), groups: words.collect(), ..UserInfo::default() }
}

/// Whether the user may do this, as a request: `METHOD TARGET`.
pub(super) fn decide(policy: &Policy, user: &UserInfo, request: &str) -> Decision {
    let (method, target) = request.split_once(' ').unwrap();
    let info = RequestInfo::parse(method, target).unwrap();
    authorize(policy, user, &Attributes::of_request(&info))
}

/// A rule as the API shows it, without what is empty.
pub(super) fn rule_as_shown(text: &str) -> Value {
    let mut rule = rule(text);
    rule.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    rule
}
