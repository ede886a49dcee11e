//! Follows all tenants' roles and bindings, so that decisions need to ask nobody.
//!
//! Invariant: a decision is by what was kept a moment ago, as in any cluster; never by less than what was there when zoo began, because until
//! all of that is read, nobody who needs a role is answered.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::Value;

use crate::authz::Policy;
use crate::authz::roles::{Kind, Object};
use crate::limits::EVENT_BYTES_MAX;
use crate::names::{Names, TenantId};
use crate::rewrite::Encoding;
use crate::tenant::{Events, TENANT_LABEL, Tenants};
use crate::upstream::{Upstream, UpstreamError};
use crate::watch::Facts;

use super::stored;

/// Pause before what failed is tried again.
const PAUSE: Duration = Duration::from_millis(200);
/// Objects in a page of a list.
const PAGE: usize = 2000;

/// Follows one kind for as long as it is polled.
pub(crate) async fn follow(kind: Kind, upstream: Arc<Upstream>, tenants: Arc<Tenants>) -> std::convert::Infallible {
    loop {
        if let Err(error) = follow_once(kind, &upstream, &tenants).await {
            tracing::warn!(kind = kind.name(), %error, "the tenants' roles and bindings can't be followed; trying again");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn follow_once(kind: Kind, upstream: &Upstream, tenants: &Tenants) -> Result<(), UpstreamError> {
    let path = format!("/apis/{}/{}", stored::STORED_API_VERSION, stored::resource(kind));
    let mut version = list(kind, &path, upstream, tenants).await?;
    tenants.policies_are_known(kind);
    loop {
        let mut events = Events::open(upstream, &path, &version).await?;
        while let Some(line) = events.next().await? {
            let facts = Facts::of(Encoding::Json, &line).map_err(|error| events.wrong(&error))?;
            if facts.kind == "ERROR" {
                return Err(events.wrong(&String::from_utf8_lossy(&line)));
            }
            if facts.version > 0 {
                version = facts.version.to_string();
            }
            let mut event: Value = serde_json::from_slice(&line).map_err(|error| events.wrong(&error))?;
            if facts.kind != "BOOKMARK" {
                take(kind, event["object"].take(), facts.kind != "DELETED", tenants);
            }
        }
    }
}

/// Reads everything that is kept of a kind; the version that this was at.
async fn list(kind: Kind, path: &str, upstream: &Upstream, tenants: &Tenants) -> Result<String, UpstreamError> {
    let mut next = String::new();
    let mut all: HashMap<TenantId, Vec<Object>> = HashMap::new();
    loop {
        let target = format!("{path}?limit={PAGE}&continue={next}");
        let mut page: Value = upstream.own_json(Method::GET, &target, &Value::Null, EVENT_BYTES_MAX * 32).await?;
        for object in page.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some((id, object)) = read(kind, object.take()) {
                all.entry(id).or_default().push(object);
            }
        }
        let text = |pointer| page.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        next = text("/metadata/continue");
        if next.is_empty() {
            tenants.replace_policies(kind, all);
            return Ok(text("/metadata/resourceVersion"));
        }
    }
}

/// Whose an object is, and what it says.
fn read(kind: Kind, mut object: Value) -> Option<(TenantId, Object)> {
    let label = object.get("metadata")?.get("labels")?.get(TENANT_LABEL)?.as_str()?;
    let names = Names::of_uid(label);
    if !stored::outward(kind, &names, &mut object) {
        tracing::warn!(
            kind = kind.name(),
            "an object is labelled as one tenant's and named as another's; it grants nothing"
        );
        return None;
    }
    let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default();
    let read = Object::from_json(kind, object.to_string().as_bytes(), namespace);
    match read {
        Ok(read) => Some((names.id(), read)),
        Err(error) => {
            tracing::warn!(kind = kind.name(), %error, "a kept object grants nothing, because it can't be understood");
            None
        }
    }
}

fn take(kind: Kind, object: Value, is_there: bool, tenants: &Tenants) {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let names = Names::of_uid(text(&format!("/metadata/labels/{}", TENANT_LABEL.replace('/', "~1"))));
    let place = if kind.is_namespaced() { "/metadata/namespace" } else { "/metadata/name" };
    if names.outward(text(place)).is_none() {
        return;
    }
    let own = |name: &str| names.outward(name).unwrap_or(name).to_owned();
    let (namespace, name) = (own(text("/metadata/namespace")), own(text("/metadata/name")));
    match read(kind, object).filter(|_| is_there) {
        Some((id, read)) => tenants.change_policy(id, |policy: &mut Policy| policy.insert(read)),
        None => tenants.change_policy(names.id(), |policy: &mut Policy| policy.remove(kind, &namespace, &name)),
    }
}
