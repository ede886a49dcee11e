//! The end of a tenant: all that is its own goes, and what holds it is told in its status.
//!
//! Invariant: its object stays until nothing is left of it, and what goes is the tenant's by label and by name. Nothing is forced: whoever has
//! put a finalizer somewhere is waited for.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::authz::roles::Kind;
use crate::limits::OWN_ANSWER_BYTES_MAX;
use crate::names::Names;
use crate::private;
use crate::upstream::UpstreamError;

use super::follow::list;
use super::{FINALIZER, Metadata, TENANT_LABEL, TenantObject, Tenants};

/// Pause between two looks at what is left.
const PAUSE: Duration = Duration::from_millis(500);
/// Namespaces of which it is told what holds them.
const TOLD_MAX: usize = 3;
/// Longest word of the apiserver on one of them that is passed on, in characters.
const REASON_LENGTH_MAX: usize = 600;

#[derive(Deserialize)]
struct Namespace {
    metadata: Metadata,
    #[serde(default)]
    status: NamespaceStatus,
}

#[derive(Default, Deserialize)]
struct NamespaceStatus {
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    #[serde(default)]
    message: String,
}

/// What is waited for: few of the namespaces, so that the status does not grow with the tenant; first those of which the host says why they
/// do not go.
fn what_holds(namespaces: &[Namespace]) -> String {
    let mut named: Vec<(bool, String)> = namespaces
        .iter()
        .map(|namespace| {
            let reasons = reasons(&namespace.status.conditions);
            let name = &namespace.metadata.name;
            (reasons.is_empty(), if reasons.is_empty() { name.clone() } else { format!("{name} ({reasons})") })
        })
        .collect();
    named.sort();
    let more = if named.len() > TOLD_MAX { ", …" } else { "" };
    let told: Vec<String> = named.into_iter().take(TOLD_MAX).map(|(_, text)| text).collect();
    format!("waiting for the end of {} namespaces: {}{more}", namespaces.len(), told.join(", "))
}

/// What the host's namespace controller says about a namespace that does not go: that there is content, finalizers that hold it, or why it can't
/// be deleted.
fn reasons(conditions: &[Condition]) -> String {
    let holding = conditions.iter().filter(|condition| condition.status == "True");
    let texts: BTreeSet<String> =
        holding.map(|condition| format!("{}: {}", condition.kind, condition.message.trim())).collect();
    let text = texts.into_iter().collect::<Vec<_>>().join("; ");
    match text.char_indices().nth(REASON_LENGTH_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

impl Tenants {
    pub(super) async fn delete_namespace(&self, name: &str) -> Result<(), UpstreamError> {
        let target = format!("/api/v1/namespaces/{name}");
        match self.upstream.own(Method::DELETE, &target, &Value::Null, OWN_ANSWER_BYTES_MAX).await {
            // It is gone, or on its way.
            Err(error) if matches!(error.status(), Some(StatusCode::NOT_FOUND | StatusCode::CONFLICT)) => Ok(()),
            done => done.map(drop),
        }
    }

    /// Deletes what is the tenant's, waits until it is gone, and lets the object go.
    pub(super) async fn take_away(self: &Arc<Self>, object: &TenantObject) -> Result<(), UpstreamError> {
        if !object.metadata.finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            return Ok(());
        }
        let uid = &object.metadata.uid;
        let names = Names::of_uid(uid);
        let path = format!("/api/v1/namespaces?labelSelector={}%3D{uid}", TENANT_LABEL.replace('/', "%2F"));
        let (mut told, mut was_empty) = (String::new(), false);
        loop {
            if !self.leadership.leads() {
                return Ok(());
            }
            let look = self.endings.acquire().await.expect("it is never closed");
            let (namespaces, _): (Vec<Namespace>, _) = list(&self.upstream, &path).await?;
            if namespaces.is_empty() {
                // Another zoo may not have known yet that the tenant ends, and have made one more.
                if std::mem::replace(&mut was_empty, true) {
                    break;
                }
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            was_empty = false;
            for Namespace { metadata, .. } in &namespaces {
                // By ownership, and by name as well: never anything else.
                if metadata.deletion_timestamp.is_some() || names.outward(&metadata.name).is_none() {
                    continue;
                }
                // The others go all the same; this one is tried again in the next round.
                if let Err(error) = self.delete_namespace(&metadata.name).await {
                    tracing::warn!(namespace = metadata.name, %error, "a namespace of a tenant can't be deleted yet");
                }
            }
            let message = what_holds(&namespaces);
            if message != told {
                self.set_phase(object, &names, "Deleting", ("False", "Deleting", &message)).await?;
                told = message;
            }
            drop(look);
            tokio::time::sleep(PAUSE).await;
        }
        for kind in Kind::ALL.into_iter().filter(|kind| !kind.is_namespaced()) {
            let path = format!("/apis/{}/{}", private::STORED_API_VERSION, private::resource(kind));
            let target = format!("{path}?labelSelector={}%3D{uid}", TENANT_LABEL.replace('/', "%2F"));
            self.upstream.own(Method::DELETE, &target, &Value::Null, usize::MAX).await?;
        }
        let finalizers: Vec<&String> =
            object.metadata.finalizers.iter().filter(|finalizer| *finalizer != FINALIZER).collect();
        self.patch(object, "", &json!({ "metadata": { "finalizers": finalizers } })).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(name: &str, conditions: Value) -> Namespace {
        let object = json!({ "metadata": { "name": name }, "status": { "conditions": conditions } });
        serde_json::from_value(object).expect("a namespace")
    }

    #[test]
    fn those_that_something_holds_are_told_first_and_why() {
        let remaining = json!([
            { "type": "NamespaceDeletionContentFailure", "status": "False", "message": "All content successfully deleted" },
            { "type": "NamespaceFinalizersRemaining", "status": "True", "message": "finalizers remaining: example.com/x in 1" },
            { "type": "NamespaceContentRemaining", "status": "True", "message": "configmaps. has 1 resource instances" },
        ]);
        let mut namespaces = vec![namespace("a", json!([])), namespace("b", json!([])), namespace("c", json!([]))];
        assert_eq!(what_holds(&namespaces), "waiting for the end of 3 namespaces: a, b, c");
        namespaces.push(namespace("d", remaining));
        assert_eq!(
            what_holds(&namespaces),
            "waiting for the end of 4 namespaces: d (NamespaceContentRemaining: configmaps. has 1 resource instances; \
             NamespaceFinalizersRemaining: finalizers remaining: example.com/x in 1), a, b, …"
        );
        let long = json!([{ "type": "T", "status": "True", "message": "ä".repeat(10_000) }]);
        assert!(what_holds(&[namespace("e", long)]).chars().count() < REASON_LENGTH_MAX + 100);
    }
}
