//! Requests for objects: what goes in is rewritten, what comes out is rewritten back.
//!
//! Invariant: a body that was not understood goes nowhere.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use kubewharf_front::Inbound;
use kubewharf_kube_api::Status;
use kubewharf_upstream::Class;

use crate::kinds::Outcome;
use crate::limits::{ANSWER_BYTES_MAX, BINDING_HEARD_WITHIN, BINDING_PATIENCE, OWN_ANSWER_BYTES_MAX};
use crate::rewrite::{self, Direction, Encoding, Kind, PatchKind, RewriteError, Unchanged, Write};
use crate::upstream::{Answer, Question, Whole};
use crate::{proto, scan};

use super::target::by_router;
use super::{Asked, Body, Broken, Media, Wanted, failed, identity, negotiate, while_others_go_on};

/// Namespaces that no cluster lets go.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

impl Asked {
    /// Answers a request for a resource.
    pub(crate) async fn serve(
        self,
        method: &Method,
        wanted: &Wanted<'_>,
        incoming: Inbound,
    ) -> Result<Response<Body>, Box<Status>> {
        let info = wanted.info;
        match wanted.outcome {
            Outcome::Namespaced | Outcome::OwnCluster => {}
            Outcome::Private => {
                let accept = negotiate::accept(&self.headers, false).ok_or_else(not_acceptable)?;
                return self.private(method, wanted, &accept, incoming).await;
            }
            Outcome::OwnView => return self.none_of(wanted),
            Outcome::Decided => {
                let (group, version, kind) = wanted.kind.expect("what is decided has a kind");
                let kind = Kind::of(group, version, kind).ok_or_else(no_such_kind)?;
                return self.decided(method, wanted, kind, incoming).await;
            }
            Outcome::Refused(_) => unreachable!("what is refused is not wanted"),
        }
        let Some((group, version, kind)) = wanted.kind else {
            return self.bytes(method, wanted, incoming).await;
        };
        let kind = Kind::of(group, version, kind).ok_or_else(no_such_kind)?;
        let accept = negotiate::accept(&self.headers, true).ok_or_else(not_acceptable)?;
        match &*info.verb {
            "watch" => self.watch(wanted, kind, &accept).await,
            "list" if !wanted.is_for_one() => self.list(wanted, kind, &accept).await,
            _ => self.one(method, wanted, kind, &accept, incoming).await,
        }
    }

    /// A request with a bounded body and a bounded answer.
    async fn one(
        &self,
        method: &Method,
        wanted: &Wanted<'_>,
        kind: Kind,
        accept: &str,
        incoming: Inbound,
    ) -> Result<Response<Body>, Box<Status>> {
        self.prepare(method, wanted).await?;
        let mut headers = self.upstream_headers(Some(accept));
        let body = self.read_body(incoming).await?;
        let (body, unchanged) = self.inward(method, wanted, kind, body, &mut headers)?;
        let target = wanted.upstream(self.names())?;
        if !unchanged.is_empty() {
            self.check_unchanged(wanted, &target, &unchanged).await?;
        }
        let question = Question { method: method.clone(), target, headers, body, class: Class::Short };
        let answer = self.send(wanted, question).await?;
        let whole = answer.whole(ANSWER_BYTES_MAX).await.map_err(|error| failed(&error))?;
        if wanted.outcome == Outcome::OwnCluster && *method == Method::POST && whole.status == StatusCode::CREATED {
            self.adopt(wanted, &whole).await;
        }
        self.answer(kind, whole)
    }

    /// What must be before the request is sent.
    async fn prepare(&self, method: &Method, wanted: &Wanted<'_>) -> Result<(), Box<Status>> {
        let info = wanted.info;
        if wanted.resource.resource == "namespaces" {
            if *method == Method::DELETE && IMMORTAL.contains(&&*info.name) {
                let message = format!("namespaces \"{}\" is forbidden: this namespace may not be deleted", info.name);
                let mut status = Status::forbidden_request(&self.user.username, info, "");
                status.message = message.into();
                return Err(Box::new(status));
            }
            if *method == Method::POST && self.tenant.is_ending {
                return Err(Box::new(Status::forbidden_request(
                    &self.user.username,
                    info,
                    "the tenant is being deleted",
                )));
            }
            return self.proxy.tenants.ensure(&self.tenant, &info.name).await.map_err(|error| failed(&error));
        }
        if *method == Method::GET {
            return Ok(());
        }
        self.proxy.tenants.ensure(&self.tenant, &info.namespace).await.map_err(|error| failed(&error))
    }

    /// Gives a new namespace what makes it usable. If that fails now, the first write finds it out and does it.
    async fn adopt(&self, wanted: &Wanted<'_>, created: &Whole) {
        let dry_run = wanted.query.get("dryRun").is_some_and(|value| !value.is_empty());
        if wanted.resource.resource != "namespaces" || dry_run {
            return;
        }
        let name = match negotiate::of_body(&created.headers) {
            Media::Protobuf => proto::name_of(&created.body),
            _ => scan::text(&created.body, &["metadata", "name"]),
        };
        if let Some(name) = name.and_then(|name| self.names().outward(name))
            && let Err(error) = self.proxy.tenants.bind(&self.tenant, name).await
        {
            tracing::warn!(%error, namespace = name, "a new namespace has no binding yet");
        }
    }

    /// The body as it is upstream.
    fn inward(
        &self,
        method: &Method,
        wanted: &Wanted<'_>,
        kind: Kind,
        body: Bytes,
        headers: &mut HeaderMap,
    ) -> Result<(Bytes, Vec<Unchanged>), Box<Status>> {
        // Options of a deletion hold no names.
        if body.is_empty() || *method == Method::DELETE {
            return Ok((body, Vec::new()));
        }
        let media = negotiate::of_body(&self.headers);
        let mut output = Vec::with_capacity(body.len() + 256);
        let names = self.names();
        let write = if *method == Method::PUT { Write::Update } else { Write::Create };
        let object = |encoding, body: &[u8], output: &mut Vec<u8>| {
            rewrite::object(encoding, kind, Direction::Inward(write), names, body, output)
        };
        let patch = |patch, output: &mut Vec<u8>| rewrite::patch(patch, kind, names, &body, output);
        if media == Media::Other {
            return Err(unsupported(method));
        }
        if media == Media::Yaml {
            headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static(negotiate::JSON));
        }
        let rewritten = while_others_go_on(body.len(), || match media {
            Media::Json | Media::Other => object(Encoding::Json, &body, &mut output),
            Media::Protobuf => object(Encoding::Protobuf, &body, &mut output),
            Media::Yaml => {
                let value: Result<serde_json::Value, _> = serde_saphyr::from_str(&String::from_utf8_lossy(&body));
                let value = value.map_err(|error| RewriteError::Malformed(format!("the body is no YAML: {error}")))?;
                object(Encoding::Json, value.to_string().as_bytes(), &mut output)
            }
            Media::JsonPatch => patch(PatchKind::Json, &mut output),
            Media::MergePatch => patch(PatchKind::Merge, &mut output),
            Media::StrategicMergePatch => patch(PatchKind::Strategic, &mut output),
            Media::ApplyPatch => patch(PatchKind::Apply, &mut output),
        });
        let unchanged = rewritten.map_err(|error| self.not_rewritten(wanted, error))?;
        if wanted.outcome == Outcome::OwnCluster && *method == Method::POST {
            self.check_new_name(wanted, media, &output)?;
        }
        Ok((output.into(), unchanged))
    }

    /// Refuses a name of a new namespace that only its prefix would make a good one.
    fn check_new_name(&self, wanted: &Wanted<'_>, media: Media, object: &[u8]) -> Result<(), Box<Status>> {
        let is_protobuf = media == Media::Protobuf;
        for field in ["name", "generateName"] {
            let name = match (is_protobuf, field) {
                (true, "name") => proto::name_of(object),
                (true, _) => proto::generate_name_of(object),
                (false, _) => scan::text(object, &["metadata", field]),
            };
            let own = name.and_then(|name| self.names().outward(name));
            // What else is wrong with it is wrong with the prefix, too, and is told by the apiserver.
            if own.is_some_and(|own| own.starts_with(['-', '.'])) {
                let why = format!("metadata.{field}: it must begin with a lower-case letter or a digit");
                return Err(Box::new(Status::forbidden_request(&self.user.username, wanted.info, &why)));
            }
        }
        Ok(())
    }

    /// Refuses an update of what can only stay as it is.
    async fn check_unchanged(
        &self,
        wanted: &Wanted<'_>,
        target: &str,
        unchanged: &[Unchanged],
    ) -> Result<(), Box<Status>> {
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        let present = self.proxy.upstream.own(Method::GET, path, &serde_json::Value::Null, ANSWER_BYTES_MAX).await;
        let present = match present {
            Ok(present) => present,
            // The update itself will say it.
            Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => return Ok(()),
            Err(error) => return Err(failed(&error)),
        };
        for Unchanged { field, value } in unchanged {
            let path: Vec<&str> = field.split('.').collect();
            if scan::text(&present, &path) != Some(value) {
                let why = format!("{field}: it can't be set or changed by a tenant");
                return Err(Box::new(Status::forbidden_request(&self.user.username, wanted.info, &why)));
            }
        }
        Ok(())
    }

    fn not_rewritten(&self, wanted: &Wanted<'_>, error: RewriteError) -> Box<Status> {
        match error {
            RewriteError::Refused(refusal) => {
                let why = format!("{}: {}", refusal.field, refusal.reason);
                Box::new(Status::forbidden_request(&self.user.username, wanted.info, &why))
            }
            other => Box::new(Status::bad_request(other.to_string())),
        }
    }

    /// Sends a request as whoever it must be sent as.
    pub(super) async fn send(&self, wanted: &Wanted<'_>, mut question: Question) -> Result<Answer, Box<Status>> {
        let is_read = matches!(&*wanted.info.verb, "get" | "list" | "watch") && wanted.kind.is_some();
        let is_own = wanted.outcome == Outcome::OwnCluster;
        let upstream = &self.proxy.upstream;
        if is_read || is_own {
            return upstream.send(&question).await.map_err(|error| failed(&error));
        }
        identity::impersonate(&self.user, self.names(), &mut question.headers);
        let mut pause = BINDING_HEARD_WITHIN;
        let mut is_bound = self.tenant.is_just_bound(&wanted.info.namespace);
        if is_bound {
            // A request that is refused costs the apiserver more than the wait costs the client.
            tokio::time::sleep(pause).await;
        }
        loop {
            let answer = upstream.send(&question).await.map_err(|error| failed(&error))?;
            if answer.status != StatusCode::FORBIDDEN {
                return Ok(answer);
            }
            let whole = answer.whole(ANSWER_BYTES_MAX).await.map_err(|error| failed(&error))?;
            if !self.is_refused_by_rbac(&whole) {
                return Ok(Answer::of(whole));
            }
            if !is_bound {
                is_bound = true;
                match self.place(wanted).await? {
                    Place::There => {
                        let bound = self.proxy.tenants.bind(&self.tenant, &wanted.info.namespace).await;
                        bound.map_err(|error| failed(&error))?;
                    }
                    // It takes no new binding, and the old one may be gone. What is left to be done in it, such as to remove the last
                    // finalizers, is bounded by its name; nothing new can be made in it.
                    Place::Ending if wanted.info.subresource.is_empty() => {
                        identity::forget(&mut question.headers);
                        return upstream.send(&question).await.map_err(|error| failed(&error));
                    }
                    Place::Ending => return Ok(Answer::of(whole)),
                    Place::Nowhere => return Err(not_there(wanted)),
                }
            } else if pause > BINDING_PATIENCE {
                return Ok(Answer::of(whole));
            }
            // The binding is there, and the apiserver's authorizer hears of it soon.
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    /// What became of the request's namespace, as the apiserver has it now.
    async fn place(&self, wanted: &Wanted<'_>) -> Result<Place, Box<Status>> {
        let path = format!("/api/v1/namespaces/{}", self.names().inward(&wanted.info.namespace));
        let upstream = &self.proxy.upstream;
        match upstream.own(Method::GET, &path, &serde_json::Value::Null, OWN_ANSWER_BYTES_MAX).await {
            Ok(found) if scan::find(&found, &["metadata", "deletionTimestamp"]).is_some() => Ok(Place::Ending),
            Ok(_) => Ok(Place::There),
            Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => Ok(Place::Nowhere),
            Err(error) => Err(failed(&error)),
        }
    }

    /// Whether the apiserver's authorizer, and not its admission, refuses the tenant's identity.
    fn is_refused_by_rbac(&self, whole: &Whole) -> bool {
        let user = format!("User \\\"{}", self.names().prefix());
        let user_in_protobuf = format!("User \"{}", self.names().prefix());
        let body = &whole.body;
        memchr::memmem::find(body, b" cannot ").is_some()
            && (memchr::memmem::find(body, user.as_bytes()).is_some()
                || memchr::memmem::find(body, user_in_protobuf.as_bytes()).is_some())
    }

    /// An answer with an object, for the client.
    pub(crate) fn answer(&self, kind: Kind, whole: Whole) -> Result<Response<Body>, Box<Status>> {
        let headers = self.client_headers(&whole.headers);
        let body = self.outward(kind, &whole)?;
        let mut response = Response::new(Body::Whole(body));
        *response.status_mut() = whole.status;
        *response.headers_mut() = headers;
        Ok(response)
    }

    /// The body of an answer as the tenant sees it.
    pub(crate) fn outward(&self, kind: Kind, whole: &Whole) -> Result<Bytes, Box<Status>> {
        if whole.body.is_empty() {
            return Ok(Bytes::new());
        }
        let encoding = match negotiate::of_body(&whole.headers) {
            Media::Json => Encoding::Json,
            Media::Protobuf => Encoding::Protobuf,
            _ => {
                let text = String::from_utf8_lossy(&whole.body);
                return Ok(Bytes::from(self.names().text_outward(&text).into_owned()));
            }
        };
        let rewrites = || {
            let mut output = Vec::with_capacity(whole.body.len());
            let (names, body) = (self.names(), &whole.body);
            rewrite::object(encoding, kind, Direction::Outward, names, body, &mut output).map(|_| output)
        };
        let output = while_others_go_on(whole.body.len(), rewrites).map_err(|error| {
            tracing::error!(%error, "an answer can't be rewritten");
            Box::new(Status::internal_error("the apiserver's answer can't be shown to a tenant"))
        })?;
        Ok(output.into())
    }

    /// What holds no object: logs, and what pods themselves answer.
    async fn bytes(
        &self,
        method: &Method,
        wanted: &Wanted<'_>,
        incoming: Inbound,
    ) -> Result<Response<Body>, Box<Status>> {
        let mut headers = self.upstream_headers(None);
        if let Some(length) =
            self.headers.get(http::header::ACCEPT_ENCODING).filter(|_| wanted.info.subresource == "proxy")
        {
            headers.insert(http::header::ACCEPT_ENCODING, length.clone());
        }
        let body = self.read_body(incoming).await?;
        let target = wanted.upstream(self.names())?;
        let question = Question { method: method.clone(), target, headers, body, class: Class::Watch };
        let answer = self.send(wanted, question).await?;
        let mut headers = self.client_headers(&answer.headers);
        if let Some(encoding) = answer.headers.get(http::header::CONTENT_ENCODING) {
            headers.insert(http::header::CONTENT_ENCODING, encoding.clone());
        }
        if answer.status.is_client_error() || answer.status.is_server_error() {
            let whole = answer.whole(ANSWER_BYTES_MAX).await.map_err(|error| failed(&error))?;
            let status_kind = Kind::of("", "v1", "Status").expect("every table has it");
            return self.answer(status_kind, whole);
        }
        let status = answer.status;
        let pieces = futures_util::stream::unfold(answer, |mut answer| async move {
            let piece = answer.piece().await.transpose()?;
            Some((piece.map_err(|_| Broken), answer))
        });
        let mut response = Response::new(Body::streams(pieces));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }
}

/// What a namespace is.
enum Place {
    There,
    Ending,
    Nowhere,
}

/// What a plain apiserver says of a write in a namespace that is not there.
fn not_there(wanted: &Wanted<'_>) -> Box<Status> {
    let info = wanted.info;
    let is_new = info.verb == "create" && info.subresource.is_empty();
    Box::new(if is_new {
        Status::object_not_found("", "namespaces", &info.namespace)
    } else {
        Status::object_not_found(&info.api_group, &info.resource, &info.name)
    })
}

fn no_such_kind() -> Box<Status> {
    Box::new(Status::resource_not_found())
}

fn not_acceptable() -> Box<Status> {
    Box::new(Status::not_acceptable(
        "only the following media types are accepted: application/json, application/vnd.kubernetes.protobuf",
    ))
}

/// The answer to a body that is in no known format.
pub(crate) fn unsupported(method: &Method) -> Box<Status> {
    if *method == Method::PATCH {
        return by_router(Status::unsupported_media_type("415: Unsupported Media Type"));
    }
    Box::new(Status::unsupported_media_type(
        "the body of the request was in an unknown format - accepted media types include: application/json, \
         application/yaml, application/vnd.kubernetes.protobuf",
    ))
}
