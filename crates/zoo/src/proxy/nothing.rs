//! What a tenant can look for and does not have: nodes, because where its pods run is the host's business, and no address of the host is told;
//! and kinds of its own, which are to come.
//!
//! Invariant: what is here can be read by programs that list and watch it, and tells nothing.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use kubewharf_kube_api::Status;
use serde_json::json;

use super::{Asked, Body, Wanted, json as json_response};

impl Asked {
    /// Answers a request for what there is none of.
    pub(super) fn none_of(&self, wanted: &Wanted<'_>) -> Result<Response<Body>, Box<Status>> {
        let info = wanted.info;
        let (resource, group) = (wanted.resource.resource, wanted.resource.group);
        let dot = if group.is_empty() { "" } else { "." };
        let api_version = if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") };
        let kind = wanted.resource.kind;
        if wanted.is_for_one() {
            let mut status = Status::not_found(format!("{resource}{dot}{group} {:?} not found", info.name));
            status.details = Some(Box::new(kubewharf_kube_api::status::Details {
                name: info.name.to_string().into(),
                group: group.into(),
                kind: resource.into(),
                ..Default::default()
            }));
            return Err(Box::new(status));
        }
        // Any version will do for what never changes; that of the tenant's own object is one that its API has had.
        let version = &*self.tenant.version;
        if info.verb != "watch" {
            let accept =
                self.headers.get(http::header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
            let list = if accept.split(',').next().is_some_and(|first| first.contains("as=Table")) {
                json!({
                    "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": { "resourceVersion": version },
                    "columnDefinitions": [], "rows": [],
                })
            } else {
                json!({ "kind": format!("{kind}List"), "apiVersion": api_version, "metadata": { "resourceVersion": version }, "items": [] })
            };
            let mut body = list.to_string().into_bytes();
            body.push(b'\n');
            return Ok(json_response(StatusCode::OK, body.into()));
        }
        let mut first = Vec::new();
        if wanted.query.is_true("sendInitialEvents") {
            let bookmark = json!({ "type": "BOOKMARK", "object": {
                "kind": kind, "apiVersion": api_version,
                "metadata": { "resourceVersion": version, "annotations": { "k8s.io/initial-events-end": "true" } },
            }});
            first.push(Bytes::from(format!("{bookmark}\n")));
        }
        let ends = self.ends(wanted);
        let pieces = futures_util::stream::unfold(first, move |mut first| async move {
            if let Some(piece) = first.pop() {
                return Some((Ok(piece), first));
            }
            tokio::time::sleep_until(ends).await;
            None
        });
        let mut response = Response::new(Body::Pieces(Box::pin(pieces)));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(response)
    }
}
