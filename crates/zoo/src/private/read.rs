//! Lists and watches of roles and bindings: what is kept and the defaults, as one.
//!
//! Invariant: the kept part is of the version that the list says it is of; the defaults are of any version.

use bytes::Bytes;
use http::{Method, Response};
use kubewharf_kube_api::Status;
use kubewharf_kube_api::labels::LabelSelector;
use serde_json::{Value, json};

use crate::authz::defaults;
use crate::authz::roles::RBAC_API_VERSION;
use crate::limits::ANSWER_BYTES_MAX;
use crate::list::Place;
use crate::proxy::{Body, escape, failed, json as json_response, json_line};
use crate::upstream::Question;

use super::shape::{self, Form};
use super::{Private, Refused, stored};

/// All objects that a request wants, in their order, and the version they are of.
pub(super) struct Found {
    pub(super) objects: Vec<Value>,
    pub(super) version: String,
}

impl Private<'_> {
    /// Refuses a field selector as any cluster does that has these kinds.
    pub(super) fn check_fields(&self) -> Result<(), Box<Status>> {
        let fields = self.wanted.query.get("fieldSelector").unwrap_or_default();
        let unknown = fields
            .split(',')
            .filter_map(|term| term.split(['=', '!']).next())
            .find(|field| !matches!(*field, "" | "metadata.name" | "metadata.namespace"));
        unknown.map_or(Ok(()), |field| {
            Err(Box::new(Status::bad_request(format!(
                "{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
            ))))
        })
    }

    pub(super) async fn list(&self) -> Result<Response<Body>, Box<Status>> {
        self.check_fields()?;
        let page = self.asked.page(self.wanted)?;
        let found = match self.find(page.place.as_ref()).await {
            Ok(found) => found,
            Err(Refused::Answer(whole)) => return Ok(self.refuse(&whole)),
            Err(Refused::Status(status)) => return Err(status),
        };
        let skip = page.place.as_ref().and_then(|place| place.within.parse().ok()).unwrap_or(0usize);
        let take = page.limit.unwrap_or(usize::MAX);
        let all = found.objects.len();
        let objects: Vec<Value> = found.objects.into_iter().skip(skip).take(take).collect();
        let mut meta = json!({ "resourceVersion": found.version });
        let left = all.saturating_sub(skip.saturating_add(take));
        if left > 0 {
            let place = Place { version: found.version, within: (skip + take).to_string(), ..Place::default() };
            meta["continue"] = self.asked.seal(self.wanted, &place).into();
            if !crate::list::has_selector(self.wanted) {
                meta["remainingItemCount"] = left.into();
            }
        }
        let list = match self.form {
            Form::Table(version) => {
                let columns = self.columns().await?;
                shape::table(self.kind, Some(&columns), &objects, &meta, version, self.include(), crate::time::now())
            }
            Form::Partial(version) => json!({
                "kind": "PartialObjectMetadataList", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": meta,
                "items": objects.iter().map(|object| shape::partial(object, version)).collect::<Vec<_>>(),
            }),
            Form::Whole => json!({
                "kind": format!("{}List", self.kind.name()), "apiVersion": RBAC_API_VERSION, "metadata": meta,
                "items": objects.into_iter().map(without_type).collect::<Vec<_>>(),
            }),
        };
        Ok(json_response(http::StatusCode::OK, json_line(&list)))
    }

    /// Everything that is wanted: now, or as it was at a place's version.
    pub(super) async fn find(&self, place: Option<&Place>) -> Result<Found, Refused> {
        let names = self.asked.names();
        let mut target = self.collection_target(&stored::path(self.kind, names, self.namespace()))?;
        if let Some(place) = place {
            target += &format!("&resourceVersion={}&resourceVersionMatch=Exact", place.version);
        }
        let headers = self.asked.upstream_headers(Some("application/json"));
        let class = kubewharf_upstream::Class::Bulk;
        let question = Question { method: Method::GET, target, headers, body: Bytes::new(), class };
        let answer = self.asked.proxy.upstream.send(&question).await.map_err(|error| failed(&error))?;
        let whole = answer.whole(ANSWER_BYTES_MAX).await.map_err(|error| failed(&error))?;
        if !whole.status.is_success() {
            return Err(Refused::Answer(Box::new(whole)));
        }
        let mut list: Value = serde_json::from_slice(&whole.body)
            .map_err(|_| Box::new(Status::internal_error("the apiserver's answer can't be used")))?;
        let version = list.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap_or_default().to_owned();
        let mut objects = match list.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => items,
            _ => Vec::new(),
        };
        objects.retain_mut(|object| stored::outward(self.kind, names, object));
        objects.iter_mut().for_each(|object| self.complete(object));
        self.add_defaults(&mut objects)?;
        objects.sort_by_cached_key(|object| {
            let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
            format!("{}/{}", text("/metadata/namespace"), text("/metadata/name"))
        });
        Ok(Found { objects, version })
    }

    /// Adds the defaults that the request's selectors pick.
    fn add_defaults(&self, objects: &mut Vec<Value>) -> Result<(), Box<Status>> {
        let query = self.wanted.query;
        let labels = query.get("labelSelector").unwrap_or_default();
        let labels = LabelSelector::parse(&labels)
            .ok_or_else(|| Box::new(Status::bad_request(format!("unable to parse requirement: {labels}"))))?;
        let fields = query.get("fieldSelector").unwrap_or_default();
        let policy = self.asked.policy();
        for (namespace, name) in defaults::names(&policy, self.kind) {
            if !self.namespace().is_empty() && self.namespace() != namespace {
                continue;
            }
            if !fields_pick(&fields, namespace, name) {
                continue;
            }
            // A page of an older version has it already if it was kept then.
            let is_kept = objects.iter().any(|object| {
                object.pointer("/metadata/name").is_some_and(|found| found == name)
                    && object.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default() == namespace
            });
            if is_kept {
                continue;
            }
            let Some(object) = self.default_object(namespace, name) else { continue };
            let has = |key: &str| object.get("metadata")?.get("labels")?.get(key)?.as_str();
            if labels.matches(has) {
                objects.push(object);
            }
        }
        Ok(())
    }

    pub(super) async fn watch(&self) -> Result<Response<Body>, Box<Status>> {
        self.check_fields()?;
        let (hubs, tenant) = (&self.asked.proxy.hubs, &self.asked.tenant);
        let places = [hubs.enter(tenant)?, hubs.enter_own(tenant)?];
        let query = self.wanted.query;
        let version = query.get("resourceVersion").unwrap_or_default();
        let begins = query.get("sendInitialEvents").map(|_| query.is_true("sendInitialEvents"));
        let with_objects = begins == Some(true) || (begins.is_none() && matches!(&*version, "" | "0"));
        let (mut first, mut from) = (Vec::new(), version.into_owned());
        if with_objects {
            let found = match self.find(None).await {
                Ok(found) => found,
                Err(Refused::Answer(whole)) => return Ok(self.refuse(&whole)),
                Err(Refused::Status(status)) => return Err(status),
            };
            from = found.version;
            for object in found.objects {
                first.push(self.event(json!({ "type": "ADDED", "object": object })).await?);
            }
            if begins == Some(true) {
                first.push(json_line(&json!({ "type": "BOOKMARK", "object": {
                    "kind": self.kind.name(), "apiVersion": RBAC_API_VERSION,
                    "metadata": { "resourceVersion": from, "annotations": { "k8s.io/initial-events-end": "true" } },
                }})));
            }
        }
        let names = self.asked.names();
        let target = self.collection_target(&stored::path(self.kind, names, self.namespace()))?;
        let bookmarks = if query.is_true("allowWatchBookmarks") { "&allowWatchBookmarks=true" } else { "" };
        let lasts = query.get("timeoutSeconds").map(|seconds| format!("&timeoutSeconds={}", escape(&seconds)));
        // The version that it goes on from, and no other that the client may have given.
        let target =
            target.split('&').filter(|part| !part.starts_with("resourceVersion")).collect::<Vec<_>>().join("&");
        let target = format!("{target}&watch=true&resourceVersion={from}{bookmarks}{}", lasts.unwrap_or_default());
        let headers = self.asked.upstream_headers(Some("application/json"));
        let class = kubewharf_upstream::Class::Watch;
        let question = Question { method: Method::GET, target, headers, body: Bytes::new(), class };
        let answer = self.asked.proxy.upstream.send(&question).await.map_err(|error| failed(&error))?;
        if !answer.status.is_success() {
            let whole = answer.whole(ANSWER_BYTES_MAX).await.map_err(|error| failed(&error))?;
            return Ok(self.refuse(&whole));
        }
        let columns = match self.form {
            Form::Table(_) => Some(self.columns().await?),
            _ => None,
        };
        let (kind, form, include, names) = (self.kind, self.form, self.include(), names.clone());
        let reshape = move |line: &[u8]| -> Option<Bytes> {
            let mut event: Value = serde_json::from_slice(line).ok()?;
            if event.get("type").is_some_and(|kind| kind == "ERROR") {
                let text = stored::text_outward(kind, &names, std::str::from_utf8(line).ok()?);
                return Some(text.into_bytes().into());
            }
            let object = event.get_mut("object")?;
            if !stored::outward(kind, &names, object) {
                // Of nobody's business here.
                return Some(Bytes::new());
            }
            let object = object.take();
            event["object"] = reshaped(kind, form, include, object, columns.as_ref());
            Some(json_line(&event))
        };
        Ok(crate::watch::reshaped(answer, first, places, reshape))
    }

    async fn event(&self, mut event: Value) -> Result<Bytes, Box<Status>> {
        let columns = match self.form {
            Form::Table(_) => Some(self.columns().await?),
            _ => None,
        };
        let object = event["object"].take();
        event["object"] = reshaped(self.kind, self.form, self.include(), object, columns.as_ref());
        Ok(json_line(&event))
    }
}

fn reshaped(
    kind: crate::authz::roles::Kind,
    form: Form,
    include: shape::Include,
    object: Value,
    columns: Option<&Value>,
) -> Value {
    match form {
        Form::Whole => object,
        Form::Partial(version) => shape::partial(&object, version),
        Form::Table(version) => {
            let meta = json!({ "resourceVersion": object.pointer("/metadata/resourceVersion") });
            shape::table(kind, columns, &[object], &meta, version, include, crate::time::now())
        }
    }
}

/// An object as it is in a list, which tells the type for all.
fn without_type(mut object: Value) -> Value {
    if let Some(fields) = object.as_object_mut() {
        fields.remove("kind");
        fields.remove("apiVersion");
    }
    object
}

/// Whether a field selector picks what has this namespace and name. What else it asks for, the apiserver refuses.
fn fields_pick(selector: &str, namespace: &str, name: &str) -> bool {
    selector.split(',').filter(|term| !term.is_empty()).all(|term| {
        let (field, is_equal, value) = match term.split_once("!=") {
            Some((field, value)) => (field, false, value),
            None => match term.split_once("==").or_else(|| term.split_once('=')) {
                Some((field, value)) => (field, true, value),
                None => return false,
            },
        };
        let actual = match field {
            "metadata.name" => name,
            "metadata.namespace" => namespace,
            _ => return false,
        };
        (actual == value) == is_equal
    })
}
