//! A tenant's roles and bindings: kept upstream as zoo's own kinds ([`stored`]), over the defaults that every cluster has.
//!
//! The apiserver behind still does what it does best: it checks and completes an object, as one of the real kind in a dry run; it merges what is
//! applied, keeps versions, tells watches. Other patches are applied here, so that what they come to is what is checked; and what an object
//! grants is checked before it is written.
//!
//! Invariant: nothing that grants something is written unless whoever writes it has all of it, or may grant what it has not.

mod follow;
mod patch;
mod read;
mod shape;
mod stored;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use kubewharf_front::Inbound;
use kubewharf_kube_api::Status;
use kubewharf_upstream::Class;
use serde_json::{Value, json};

use crate::authz::defaults::{self, Shown};
use crate::authz::escalation;
use crate::authz::roles::{Kind, Object, RBAC_API_VERSION, RBAC_GROUP};
use crate::limits::{ANSWER_BYTES_MAX, PRIVATE_TRIES_MAX};
use crate::proxy::{
    Asked, Body, Media, Wanted, escape, failed, json as json_response, json_line, media_of, respond, segment,
    unsupported,
};
use crate::upstream::{Question, Whole};

pub(crate) use follow::follow;
use shape::{Form, Include};
pub(crate) use stored::{STORED_API_VERSION, kind_name, resource};

/// What the defaults' UIDs are made of.
const UID_OF: &str = "rbac";

/// A request for roles or bindings.
struct Private<'a> {
    asked: &'a Asked,
    wanted: &'a Wanted<'a>,
    kind: Kind,
    form: Form,
    /// The path of the kept object, or of all of them.
    path: String,
}

/// Media type of server-side apply.
const APPLY: &str = "application/apply-patch+yaml";

impl Asked {
    /// Answers a request for roles or bindings.
    pub(crate) async fn private(
        &self,
        method: &Method,
        wanted: &Wanted<'_>,
        accept: &str,
        incoming: Inbound,
    ) -> Result<Response<Body>, Box<Status>> {
        let kind = Kind::of_resource(&wanted.info.resource).expect("these are the private kinds");
        let form = Form::of_accept(accept).ok_or_else(|| {
            Box::new(Status::not_acceptable("only the following media types are accepted: application/json"))
        })?;
        // Nor is one object watched by its path: whoever may watch one would watch all of them.
        if wanted.info.api_version != "v1" || (wanted.info.verb == "watch" && wanted.is_for_one()) {
            return Err(Box::new(Status::resource_not_found()));
        }
        let mut path = stored::path(kind, self.names(), &wanted.info.namespace);
        if wanted.is_for_one() {
            path = format!("{path}/{}", segment(&stored::name(kind, self.names(), &wanted.info.name))?);
        }
        let private = Private { asked: self, wanted, kind, form, path };
        match &*wanted.info.verb {
            "get" => private.get().await,
            "list" => private.list().await,
            "watch" => private.watch().await,
            _ => {
                let body = self.read_body(incoming).await?;
                private.write(method, body).await
            }
        }
    }
}

/// The apiserver's refusal, to be handed on.
enum Refused {
    Answer(Box<Whole>),
    Status(Box<Status>),
}

impl From<Box<Status>> for Refused {
    fn from(status: Box<Status>) -> Self {
        Self::Status(status)
    }
}

impl Private<'_> {
    fn namespace(&self) -> &str {
        &self.wanted.info.namespace
    }

    fn name(&self) -> &str {
        &self.wanted.info.name
    }

    async fn send(
        &self,
        method: Method,
        target: String,
        content_type: &'static str,
        body: Bytes,
    ) -> Result<Whole, Box<Status>> {
        let mut headers = self.asked.upstream_headers(Some("application/json"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        let question = Question { method, target, headers, body, class: Class::Short };
        let upstream = &self.asked.proxy.upstream;
        let answer = upstream.send(&question).await.map_err(|error| failed(&error))?;
        answer.whole(ANSWER_BYTES_MAX).await.map_err(|error| failed(&error))
    }

    /// A default object, if there is one of this name that the tenant has not replaced.
    fn default_object(&self, namespace: &str, name: &str) -> Option<Value> {
        let tenant = &self.asked.tenant;
        let policy = self.asked.policy();
        let uid = default_uid(tenant.names.uid(), self.kind, namespace, name);
        let shown = Shown { uid: &uid, resource_version: &tenant.version, creation_timestamp: &tenant.created };
        let json = defaults::to_json(&policy, self.kind, namespace, name, shown)?;
        serde_json::from_slice(&json).ok()
    }

    /// The kept object as the tenant sees it; none if it is not kept.
    async fn kept(&self) -> Result<Option<Value>, Refused> {
        let whole = self.send(Method::GET, self.path.clone(), "application/json", Bytes::new()).await?;
        match whole.status {
            StatusCode::OK => self.read(&whole).map(Some).map_err(Refused::Status),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(Refused::Answer(Box::new(whole))),
        }
    }

    fn read(&self, whole: &Whole) -> Result<Value, Box<Status>> {
        let mut object: Value = serde_json::from_slice(&whole.body).map_err(|error| {
            tracing::error!(%error, "a kept object can't be read");
            Box::new(Status::internal_error("the apiserver's answer can't be used"))
        })?;
        if !stored::outward(self.kind, self.asked.names(), &mut object) {
            tracing::error!(path = self.path, "what is kept is not what was asked for");
            return Err(Box::new(Status::internal_error("the apiserver's answer can't be used")));
        }
        self.complete(&mut object);
        Ok(object)
    }

    /// Gives a role that collects its rules those that it has now.
    fn complete(&self, object: &mut Value) {
        if self.kind != Kind::ClusterRole || object.get("aggregationRule").is_none_or(Value::is_null) {
            return;
        }
        let policy = self.asked.policy();
        let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        if let Some(rules) = policy.cluster_role_rules(name) {
            object["rules"] = serde_json::to_value(rules.to_vec()).unwrap_or_default();
        }
    }

    /// Hands on what the apiserver said no with.
    fn refuse(&self, whole: &Whole) -> Response<Body> {
        let text = String::from_utf8_lossy(&whole.body);
        // The name as it is kept may be written otherwise.
        let kept = stored::name(self.kind, self.asked.names(), self.name());
        let text = if self.name().is_empty() {
            text
        } else {
            text.replace(&format!("\"{kept}\""), &format!("\"{}\"", self.name())).into()
        };
        let text = text.replace(&format!("\\\"{kept}\\\""), &format!("\\\"{}\\\"", self.name()));
        let text = stored::text_outward(self.kind, self.asked.names(), &text);
        let mut response = json_response(whole.status, text.into_bytes().into());
        *response.headers_mut() = self.asked.client_headers(&whole.headers);
        response
    }

    fn not_found(&self) -> Response<Body> {
        respond(&Status::object_not_found(RBAC_GROUP, self.kind.resource(), self.name()))
    }

    /// One object, in the form that the client wants.
    async fn show(
        &self,
        status: StatusCode,
        object: Value,
        headers: &HeaderMap,
    ) -> Result<Response<Body>, Box<Status>> {
        let shown = match self.form {
            Form::Whole => object,
            Form::Partial(version) => shape::partial(&object, version),
            Form::Table(version) => {
                let columns = self.columns().await?;
                let meta = json!({ "resourceVersion": object.pointer("/metadata/resourceVersion") });
                let objects = [object];
                shape::table(self.kind, Some(&columns), &objects, &meta, version, self.include(), crate::time::now())
            }
        };
        let mut response = json_response(status, json_line(&shown));
        for (name, value) in self.asked.client_headers(headers) {
            if let Some(name) = name
                && name != CONTENT_TYPE
            {
                response.headers_mut().append(name, value);
            }
        }
        Ok(response)
    }

    fn include(&self) -> Include {
        match self.wanted.query.get("includeObject").as_deref() {
            Some("Object") => Include::Object,
            Some("None") => Include::None,
            _ => Include::Metadata,
        }
    }

    /// The columns of a table of the kind, as the apiserver behind has them for the real one.
    async fn columns(&self) -> Result<Value, Box<Status>> {
        let cell = &self.asked.proxy.columns[self.kind as usize];
        let columns = cell.get_or_try_init(|| async {
            let headers = self.asked.upstream_headers(Some("application/json;as=Table;v=v1;g=meta.k8s.io"));
            let target = format!("/apis/{RBAC_API_VERSION}/{}?limit=1", self.kind.resource());
            let question = Question { method: Method::GET, target, headers, body: Bytes::new(), class: Class::Short };
            let answer = self.asked.proxy.upstream.send(&question).await.map_err(|error| failed(&error))?;
            let whole = answer.whole(ANSWER_BYTES_MAX).await.map_err(|error| failed(&error))?;
            let mut table: Value = serde_json::from_slice(&whole.body).unwrap_or_default();
            match table.get_mut("columnDefinitions").map(Value::take) {
                Some(columns @ Value::Array(_)) => Ok(columns),
                _ => Err(Box::new(Status::internal_error("the apiserver tells no columns"))),
            }
        });
        columns.await.cloned()
    }

    async fn get(&self) -> Result<Response<Body>, Box<Status>> {
        match self.kept().await {
            Ok(Some(object)) => self.show(StatusCode::OK, object, &HeaderMap::new()).await,
            Ok(None) => match self.default_object(self.namespace(), self.name()) {
                Some(object) => self.show(StatusCode::OK, object, &HeaderMap::new()).await,
                None => Ok(self.not_found()),
            },
            Err(Refused::Answer(whole)) => Ok(self.refuse(&whole)),
            Err(Refused::Status(status)) => Err(status),
        }
    }

    async fn write(&self, method: &Method, body: Bytes) -> Result<Response<Body>, Box<Status>> {
        let info = self.wanted.info;
        if self.kind.is_namespaced() {
            let tenants = &self.asked.proxy.tenants;
            tenants.ensure(&self.asked.tenant, &info.namespace).await.map_err(|error| failed(&error))?;
        }
        let done = match &*info.verb {
            "create" => self.create(body).await,
            "update" => self.update(body).await,
            "patch" => self.patch(body).await,
            "delete" => self.delete(method, body).await,
            "deletecollection" => self.delete_all(body).await,
            _ => Err(Box::new(Status::bad_request("there is no such verb")).into()),
        };
        match done {
            Ok(response) => Ok(response),
            Err(Refused::Answer(whole)) => Ok(self.refuse(&whole)),
            Err(Refused::Status(status)) => Err(status),
        }
    }

    /// The body as JSON.
    fn body_value(&self, body: &[u8]) -> Result<Value, Box<Status>> {
        let kind = crate::rewrite::Kind::of(RBAC_GROUP, "v1", self.kind.name()).expect("every table has them");
        let text = self.asked.body_json(kind, body)?;
        serde_json::from_str(&text)
            .map_err(|error| Box::new(Status::bad_request(format!("the body can't be read: {error}"))))
    }

    /// The query of a write, as it is for the kept object.
    fn query(&self, dry_run: bool) -> String {
        let mut query = String::new();
        for (name, value) in self.wanted.query.iter() {
            if matches!(&*name, "fieldManager" | "fieldValidation" | "force" | "pretty")
                || (name == "dryRun" && !dry_run)
            {
                query += &format!("&{name}={}", escape(&value));
            }
        }
        if dry_run {
            query += "&dryRun=All";
        }
        query
    }

    /// Lets the apiserver check and complete an object as one of the real kind.
    async fn check(&self, object: &Value) -> Result<Value, Refused> {
        let names = self.asked.names();
        let mut trial = object.clone();
        let namespace = self.namespace();
        if let Some(meta) = trial.get_mut("metadata").and_then(Value::as_object_mut) {
            for field in
                ["uid", "resourceVersion", "creationTimestamp", "managedFields", "generation", "ownerReferences"]
            {
                meta.remove(field);
            }
            // The name of the kept object is the longer one; what is kept is checked for that by itself.
            for field in ["name", "generateName"] {
                if let Some(Value::String(text)) = meta.get_mut(field) {
                    *text = format!("{}{text}", names.prefix());
                }
            }
            if let Some(Value::String(text)) = meta.get_mut("namespace") {
                *text = names.inward(text);
            }
        }
        let scope =
            if namespace.is_empty() { String::new() } else { format!("namespaces/{}/", names.inward(namespace)) };
        let target = format!(
            "/apis/{RBAC_API_VERSION}/{scope}{}?{}",
            self.kind.resource(),
            self.query(true).trim_start_matches('&')
        );
        let whole = self.send(Method::POST, target, "application/json", json_line(&trial)).await?;
        if !whole.status.is_success() {
            return Err(Refused::Answer(Box::new(whole)));
        }
        let mut checked: Value = serde_json::from_slice(&whole.body)
            .map_err(|_| Box::new(Status::internal_error("the apiserver's answer can't be used")))?;
        // Completed in what the kind has; all else is the client's.
        let mut complete = object.clone();
        for field in ["rules", "aggregationRule", "roleRef", "subjects"] {
            match checked.get_mut(field).map(Value::take) {
                Some(value) => complete[field] = value,
                None => {
                    complete.as_object_mut().map(|fields| fields.remove(field));
                }
            }
        }
        Ok(complete)
    }

    /// Whether the user may write this: it grants nothing that the user has not, or may not grant.
    fn check_grant(&self, new: &Value, old: Option<&Value>) -> Result<(), Box<Status>> {
        let (new, old) = (new.to_string(), old.map(Value::to_string));
        let (policy, user) = (self.asked.policy(), &self.asked.user);
        escalation::check(&policy, user, self.wanted.info, new.as_bytes(), old.as_deref().map(str::as_bytes))
            .map_err(Box::new)
    }

    /// Lets the decisions know at once; the watch will say the same.
    fn learn(&self, object: &Value) {
        let is_dry_run = self.wanted.query.get("dryRun").is_some_and(|value| !value.is_empty());
        if !is_dry_run && let Ok(object) = Object::from_json(self.kind, object.to_string().as_bytes(), self.namespace())
        {
            self.asked.change_policy(|policy| policy.insert(object));
        }
    }

    async fn create(&self, body: Bytes) -> Result<Response<Body>, Refused> {
        let mut object = self.body_value(&body)?;
        make_name(&mut object);
        let object = self.check(&object).await?;
        self.check_grant(&object, None)?;
        let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        if self.default_object(self.namespace(), name).is_some() {
            return Err(Box::new(Status::already_exists(RBAC_GROUP, self.kind.resource(), name)).into());
        }
        let whole = self.store(object, self.query(false)).await?;
        let object = self.read(&whole)?;
        self.learn(&object);
        Ok(self.show(whole.status, object, &whole.headers).await?)
    }

    /// Keeps a new object.
    async fn store(&self, mut object: Value, query: String) -> Result<Whole, Refused> {
        let names = self.asked.names();
        let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
        stored::inward(self.kind, names, &mut object, true);
        let path = stored::path(self.kind, self.asked.names(), self.namespace());
        let target = format!("{path}?{}", query.trim_start_matches('&'));
        let whole = self.send(Method::POST, target, "application/json", json_line(&object)).await?;
        if whole.status.is_success() {
            return Ok(whole);
        }
        // The name as it is kept may be written otherwise.
        let kept = stored::name(self.kind, names, &name);
        let body = String::from_utf8_lossy(&whole.body).replace(&kept, &name).into_bytes().into();
        Err(Refused::Answer(Box::new(Whole { body, ..whole })))
    }

    /// The kept object, or the default of its name, which is kept from now on.
    async fn kept_or_default(&self) -> Result<Option<Value>, Refused> {
        if let Some(object) = self.kept().await? {
            return Ok(Some(object));
        }
        let Some(mut object) = self.default_object(self.namespace(), self.name()) else { return Ok(None) };
        if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            for field in ["uid", "resourceVersion", "creationTimestamp"] {
                meta.remove(field);
            }
        }
        match self.store(object, "&fieldManager=kube-apiserver".to_owned()).await {
            Ok(whole) => Ok(Some(self.read(&whole)?)),
            // Somebody else was faster.
            Err(Refused::Answer(whole)) if whole.status == StatusCode::CONFLICT => self.kept().await,
            Err(refused) => Err(refused),
        }
    }

    async fn update(&self, body: Bytes) -> Result<Response<Body>, Refused> {
        let mut object = self.body_value(&body)?;
        let was_default = self.default_object(self.namespace(), self.name()).is_some();
        let Some(old) = self.kept_or_default().await? else { return Ok(self.not_found()) };
        if was_default && let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            // They were the default's, which was nowhere.
            meta.remove("resourceVersion");
            meta.remove("uid");
        }
        // As kube-apiserver: an update without a version is of whatever is there.
        if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut)
            && meta.get("resourceVersion").is_none_or(|version| version == "")
        {
            meta.insert(
                "resourceVersion".into(),
                old.pointer("/metadata/resourceVersion").cloned().unwrap_or_default(),
            );
        }
        self.replace(object, &old).await
    }

    /// Puts an object in the place of a kept one.
    async fn replace(&self, object: Value, old: &Value) -> Result<Response<Body>, Refused> {
        let object = self.check(&object).await?;
        self.check_role_ref(&object, old)?;
        self.check_grant(&object, Some(old))?;
        let mut kept = object;
        stored::inward(self.kind, self.asked.names(), &mut kept, true);
        let target = format!("{}?{}", self.path, self.query(false).trim_start_matches('&'));
        let whole = self.send(Method::PUT, target, "application/json", json_line(&kept)).await?;
        self.written(whole).await
    }

    async fn written(&self, whole: Whole) -> Result<Response<Body>, Refused> {
        if !whole.status.is_success() {
            return Err(Refused::Answer(Box::new(whole)));
        }
        let object = self.read(&whole)?;
        self.learn(&object);
        Ok(self.show(whole.status, object, &whole.headers).await?)
    }

    /// What a binding grants can't be changed, as in any cluster.
    fn check_role_ref(&self, new: &Value, old: &Value) -> Result<(), Box<Status>> {
        if new.get("roleRef") == old.get("roleRef") {
            return Ok(());
        }
        let mut status = Status::bad_request(format!(
            "{}.{RBAC_GROUP} {:?} is invalid: roleRef: Invalid value: {}: cannot change roleRef",
            self.kind.name(),
            self.name(),
            new.get("roleRef").cloned().unwrap_or_default(),
        ));
        status.code = 422;
        status.reason = kubewharf_kube_api::status::Reason::Invalid;
        Err(Box::new(status))
    }

    async fn patch(&self, body: Bytes) -> Result<Response<Body>, Refused> {
        let media = media_of(&self.asked.headers);
        let patch = self.body_value(&body)?;
        if media == Media::ApplyPatch {
            return self.apply(patch).await;
        }
        for _ in 0..PRIVATE_TRIES_MAX {
            let Some(old) = self.kept_or_default().await? else { return Ok(self.not_found()) };
            let mut new = old.clone();
            match media {
                Media::JsonPatch => patch::apply(&mut new, &patch).map_err(|error| self.unfit(&error))?,
                // No list of these kinds is merged by keys, so the two are one, but for directives, which nobody writes for them.
                Media::MergePatch | Media::StrategicMergePatch => patch::merge(&mut new, &patch),
                _ => return Err(unsupported(&Method::PATCH).into()),
            }
            let version = |object: &Value| object.pointer("/metadata/resourceVersion").cloned();
            let is_of_this_version = version(&new) == version(&old);
            match self.replace(new, &old).await {
                // Somebody else was faster; the patch is for whatever is there.
                Err(Refused::Answer(whole)) if whole.status == StatusCode::CONFLICT && is_of_this_version => {}
                done => return done,
            }
        }
        Err(Box::new(Status::service_unavailable("the object changes all the time; try again")).into())
    }

    /// As a plain apiserver tells that a patch does not fit its object.
    fn unfit(&self, error: &patch::PatchError) -> Box<Status> {
        let mut status = match error {
            patch::PatchError::Malformed(text) => return Box::new(Status::bad_request(text.clone())),
            patch::PatchError::Unfit(_) => {
                Status::bad_request("the server rejected our request due to an error in our request")
            }
        };
        status.code = 422;
        status.reason = kubewharf_kube_api::status::Reason::Invalid;
        status.details = Some(Box::new(kubewharf_kube_api::status::Details {
            name: self.name().to_owned().into(),
            group: RBAC_GROUP.into(),
            kind: self.kind.resource().into(),
            ..Default::default()
        }));
        Box::new(status)
    }

    /// Server-side apply, which the apiserver merges; what comes of it is checked in a dry run first, and is of the version that was checked.
    async fn apply(&self, applied: Value) -> Result<Response<Body>, Refused> {
        for _ in 0..PRIVATE_TRIES_MAX {
            // To apply makes what is not there.
            let old = match self.default_object(self.namespace(), self.name()) {
                Some(_) => self.kept_or_default().await?,
                None => self.kept().await?,
            };
            let mut inward = applied.clone();
            stored::inward(self.kind, self.asked.names(), &mut inward, true);
            let asked_version = inward.pointer("/metadata/resourceVersion").is_some();
            if let (Some(old), false) = (&old, asked_version) {
                inward["metadata"]["resourceVersion"] =
                    old.pointer("/metadata/resourceVersion").cloned().unwrap_or_default();
            }
            let target = |dry_run| format!("{}?{}", self.path, self.query(dry_run).trim_start_matches('&'));
            let body = json_line(&inward);
            let tried = self.send(Method::PATCH, target(true), APPLY, body.clone()).await?;
            let is_stale =
                |whole: &Whole| whole.status == StatusCode::CONFLICT && !asked_version && is_about_version(&whole.body);
            if is_stale(&tried) {
                continue;
            }
            if !tried.status.is_success() {
                return Err(Refused::Answer(Box::new(tried)));
            }
            let checked = self.check(&self.read(&tried)?).await?;
            if let Some(old) = &old {
                self.check_role_ref(&checked, old)?;
            }
            self.check_grant(&checked, old.as_ref())?;
            let whole = self.send(Method::PATCH, target(false), APPLY, body).await?;
            if is_stale(&whole) {
                continue;
            }
            return self.written(whole).await;
        }
        Err(Box::new(Status::service_unavailable("the object changes all the time; try again")).into())
    }

    async fn delete(&self, method: &Method, body: Bytes) -> Result<Response<Body>, Refused> {
        if self.default_object(self.namespace(), self.name()).is_some() {
            let why = "what every cluster has from the beginning can be changed, but not deleted";
            return Err(Box::new(Status::forbidden_request(&self.asked.user.username, self.wanted.info, why)).into());
        }
        let target = wanted_query(self.path.clone(), self.wanted);
        let content_type = self.options_type();
        let whole = self.send(method.clone(), target, content_type, body).await?;
        if !whole.status.is_success() {
            return Err(Refused::Answer(Box::new(whole)));
        }
        let is_dry_run = self.wanted.query.get("dryRun").is_some_and(|value| !value.is_empty());
        if !is_dry_run {
            self.asked.change_policy(|policy| policy.remove(self.kind, self.namespace(), self.name()));
        }
        Ok(self.refuse(&whole))
    }

    /// How the client has written the options of a deletion, which hold no names.
    fn options_type(&self) -> &'static str {
        match media_of(&self.asked.headers) {
            Media::Protobuf => "application/vnd.kubernetes.protobuf",
            _ => "application/json",
        }
    }

    async fn delete_all(&self, body: Bytes) -> Result<Response<Body>, Refused> {
        let names = self.asked.names();
        self.check_fields()?;
        let target = self.collection_target(&stored::path(self.kind, names, self.namespace()))?;
        let whole = self.send(Method::DELETE, target, self.options_type(), body).await?;
        if !whole.status.is_success() {
            return Err(Refused::Answer(Box::new(whole)));
        }
        let mut list: Value = serde_json::from_slice(&whole.body)
            .map_err(|_| Box::new(Status::internal_error("the apiserver's answer can't be used")))?;
        list["kind"] = format!("{}List", self.kind.name()).into();
        list["apiVersion"] = RBAC_API_VERSION.into();
        if let Some(items) = list.get_mut("items").and_then(Value::as_array_mut) {
            items.retain_mut(|object| stored::outward(self.kind, names, object));
        }
        Ok(json_response(StatusCode::OK, json_line(&list)))
    }

    /// A field selector as it is for kept objects. Only two fields are known; see [`Private::check_fields`].
    fn kept_fields(&self, selector: &str) -> String {
        let names = self.asked.names();
        let terms = selector.split(',').map(|term| {
            for operator in ["!=", "==", "="] {
                if let Some((field, value)) = term.split_once(operator) {
                    let value = match field {
                        "metadata.name" => stored::name(self.kind, names, value),
                        _ if value.is_empty() => String::new(),
                        _ => names.inward(value),
                    };
                    return format!("{field}{operator}{value}");
                }
            }
            term.to_owned()
        });
        terms.collect::<Vec<_>>().join(",")
    }

    /// Path and query for several kept objects.
    fn collection_target(&self, path: &str) -> Result<String, Box<Status>> {
        let target = self.wanted.upstream_in(self.asked.names(), None, false, |name, _| {
            matches!(
                name,
                "limit" | "continue" | "sendInitialEvents" | "allowWatchBookmarks" | "timeoutSeconds" | "pretty"
            )
            .then(String::new)
        })?;
        let query = target.split_once('?').map_or("", |(_, query)| query);
        let query: Vec<&str> = query.split('&').filter(|part| !part.starts_with("fieldSelector=")).collect();
        let mut target = format!("{path}?{}", query.join("&"));
        if let Some(fields) = self.wanted.query.get("fieldSelector").filter(|fields| !fields.is_empty()) {
            target += &format!("&fieldSelector={}", escape(&self.kept_fields(&fields)));
        }
        Ok(target)
    }
}

/// Whether a conflict is about the object's version, and not about who manages its fields.
fn is_about_version(status: &[u8]) -> bool {
    memchr::memmem::find(status, b"the object has been modified").is_some()
}

/// Gives an object the name that it is to have, if it only says what that begins with.
fn make_name(object: &mut Value) {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwz2456789";
    let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    if meta.get("name").and_then(Value::as_str).is_some_and(|name| !name.is_empty()) {
        return;
    }
    let Some(start) = meta.get("generateName").and_then(Value::as_str).filter(|start| !start.is_empty()) else {
        return;
    };
    let mut random = [0; 5];
    if ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut random).is_ok() {
        let suffix: String =
            random.iter().map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()])).collect();
        let name = format!("{start}{suffix}");
        meta.insert("name".into(), name.into());
    }
}

/// The client's whole query behind a path.
fn wanted_query(path: String, wanted: &Wanted<'_>) -> String {
    let mut target = path;
    for (place, (name, value)) in wanted.query.iter().enumerate() {
        target += &format!("{}{name}={}", if place == 0 { "?" } else { "&" }, escape(&value));
    }
    target
}

/// The UID of a default object: always the same, of this tenant only.
fn default_uid(tenant_uid: &str, kind: Kind, namespace: &str, name: &str) -> String {
    let text = format!("{UID_OF}/{tenant_uid}/{}/{namespace}/{name}", kind.resource());
    let hash = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    let hex: String = hash.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-5{}-a{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..32])
}
