//! What a tenant can look for and does not have: nodes, because where its pods run is the host's business, and no address of the host is told;
//! and kinds of its own, which are to come.
//!
//! Invariant: what is here can be read by programs that list and watch it, and tells nothing.

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use kubewharf_kube_api::Status;
use serde_json::json;

use super::{Asked, Body, Wanted, json as json_response, json_line};

impl Asked {
    /// Answers a request for what there is none of.
    pub(super) fn none_of(&self, wanted: &Wanted<'_>) -> Result<Response<Body>, Box<Status>> {
        let info = wanted.info;
        let (resource, group) = (wanted.resource.resource, wanted.resource.group);
        let api_version = if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") };
        let kind = wanted.resource.kind;
        if wanted.is_for_one() {
            return Err(Box::new(Status::object_not_found(group, resource, &info.name)));
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
            return Ok(json_response(StatusCode::OK, json_line(&list)));
        }
        let mut first = Vec::new();
        if wanted.query.is_true("sendInitialEvents") {
            let bookmark = json!({ "type": "BOOKMARK", "object": {
                "kind": kind, "apiVersion": api_version,
                "metadata": { "resourceVersion": version, "annotations": { "k8s.io/initial-events-end": "true" } },
            }});
            first.push(json_line(&bookmark));
        }
        let ends = self.ends(wanted);
        let pieces = futures_util::stream::unfold(first, move |mut first| async move {
            if let Some(piece) = first.pop() {
                return Some((Ok(piece), first));
            }
            tokio::time::sleep_until(ends).await;
            None
        });
        let mut response = Response::new(Body::streams(pieces));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(response)
    }
}
