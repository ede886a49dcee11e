//! Answers to requests for documents.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, ETAG, EXPIRES, IF_NONE_MATCH, LOCATION, USER_AGENT, VARY};
use http::{HeaderMap, HeaderName, Response, StatusCode};
use kubewharf_kube_api::Status;
use kubewharf_kube_api::status::Reason;

use super::accept::{self, Encoding, Form, Media};
use super::cache::{Held, Name};
use super::paths::has_document;
use super::{AGGREGATED, Discovery, DiscoveryError, Origin, json, media_type, shared};

/// Kept by no cache without asking.
const PRIVATE: &str = "no-cache, private";
/// For one year, which is as good as for ever.
const IMMUTABLE_SECONDS: u64 = 365 * 24 * 60 * 60;

/// What a path asks for.
enum Asked<'p> {
    Objects(Objects<'p>),
    OpenApi2,
    OpenApiIndex,
    OpenApi3(&'p str),
}

/// Documents that are objects of Kubernetes.
enum Objects<'p> {
    Api,
    Apis,
    Group(&'p str),
    Version(&'p str, &'p str),
}

impl<'p> Asked<'p> {
    fn of(path: &'p str) -> Option<Self> {
        match path {
            "/openapi/v2" => Some(Self::OpenApi2),
            "/openapi/v3" => Some(Self::OpenApiIndex),
            _ => match path.strip_prefix("/openapi/v3/") {
                Some(name) => Some(Self::OpenApi3(name)),
                None => Objects::of(path).map(Self::Objects),
            },
        }
    }
}

impl<'p> Objects<'p> {
    fn of(path: &'p str) -> Option<Self> {
        let path = path.strip_prefix('/')?;
        let mut parts = path.strip_suffix('/').unwrap_or(path).splitn(4, '/');
        let found = match (parts.next()?, parts.next(), parts.next(), parts.next()) {
            ("api", None, None, None) => Self::Api,
            ("apis", None, None, None) => Self::Apis,
            ("api", Some(version), None, None) => Self::Version("", version),
            ("apis", Some(group), None, None) => Self::Group(group),
            ("apis", Some(group), Some(version), None) => Self::Version(group, version),
            _ => return None,
        };
        Some(found)
    }
}

impl<O: Origin> Discovery<O> {
    /// The answer to a `GET` of this path, or none if it is not for a document. Then the path is to be answered otherwise, but never with
    /// what the apiserver behind says at it.
    pub async fn respond(
        self: &Arc<Self>,
        path: &str,
        query: Option<&str>,
        headers: &HeaderMap,
    ) -> Option<Response<Bytes>> {
        let asked = Asked::of(path)?;
        let query = query.unwrap_or_default();
        let response = match asked {
            Asked::OpenApi2 => self.openapi2(headers).await,
            Asked::OpenApiIndex => self.openapi_index().await,
            Asked::OpenApi3(name) => self.openapi3(name, query, headers).await,
            Asked::Objects(objects) => self.objects(&objects, query, headers).await,
        };
        Some(response.unwrap_or_else(|error| {
            tracing::warn!(path, %error, "no discovery document");
            of_status(&error.to_client())
        }))
    }

    async fn objects(
        self: &Arc<Self>,
        asked: &Objects<'_>,
        query: &str,
        headers: &HeaderMap,
    ) -> Result<Response<Bytes>, DiscoveryError> {
        let resources = self.resources().await?;
        match *asked {
            Objects::Group(group) | Objects::Version(group, _) if !resources.has_group(group) => {
                return Ok(of_status(&not_found(&format!(": the group {group} is not served to tenants"))));
            }
            Objects::Version(group, version) if !resources.has_version(group, version) => {
                return Ok(of_status(&not_found("")));
            }
            _ => {}
        }
        let can_be_aggregated = matches!(asked, Objects::Api | Objects::Apis);
        let Some(form) = accept::form(text(headers, &ACCEPT), can_be_aggregated) else {
            return Ok(of_status(&not_acceptable()));
        };
        let name = match *asked {
            Objects::Api if form.is_aggregated => Name::AggregatedApi,
            Objects::Apis if form.is_aggregated => Name::AggregatedApis,
            Objects::Api => Name::Api,
            Objects::Apis => Name::Apis,
            Objects::Group(group) => Name::Group(group.into()),
            Objects::Version(group, version) => Name::Version(group.into(), version.into()),
        };
        let encoding = if form.media == Media::Protobuf { Encoding::Protobuf } else { Encoding::Json };
        let base = if name.is_base() { None } else { Some(&resources) };
        let held = self.document(shared(name, encoding), base, None).await?;
        Ok(of_object(&held, form, is_pretty(form, query, headers), headers))
    }

    async fn openapi2(self: &Arc<Self>, headers: &HeaderMap) -> Result<Response<Bytes>, DiscoveryError> {
        let Some(encoding) = accept::openapi(text(headers, &ACCEPT), "v2") else {
            return Ok(vary(empty(StatusCode::NOT_ACCEPTABLE)));
        };
        let resources = self.resources().await?;
        let held = self.document(shared(Name::OpenApi2, encoding), Some(&resources), None).await?;
        Ok(of_openapi(&held, media_type(&Name::OpenApi2, encoding), headers))
    }

    async fn openapi_index(self: &Arc<Self>) -> Result<Response<Bytes>, DiscoveryError> {
        let resources = self.resources().await?;
        let held = self.document(shared(Name::OpenApiIndex, Encoding::Json), Some(&resources), None).await?;
        // Kubernetes leaves it to Go to guess.
        Ok(with_body(&held, "text/plain; charset=utf-8"))
    }

    async fn openapi3(
        self: &Arc<Self>,
        name: &str,
        query: &str,
        headers: &HeaderMap,
    ) -> Result<Response<Bytes>, DiscoveryError> {
        let resources = self.resources().await?;
        if !has_document(name, &resources) {
            return Ok(empty(StatusCode::NOT_FOUND));
        }
        let Some(encoding) = accept::openapi(text(headers, &ACCEPT), "v3") else {
            return Ok(vary(empty(StatusCode::NOT_ACCEPTABLE)));
        };
        let document = Name::OpenApi3(name.into());
        let media = media_type(&document, encoding);
        let key = shared(document, encoding);
        let mut held = self.document(key.clone(), Some(&resources), None).await?;
        let Some(hash) = query.split('&').find_map(|pair| pair.strip_prefix("hash=")).filter(|hash| !hash.is_empty())
        else {
            return Ok(of_openapi(&held, media, headers));
        };
        let is_it = |held: &Held| {
            let etag = held.document.etag.as_deref().unwrap_or_default();
            etag.strip_prefix('"').and_then(|etag| etag.strip_suffix('"')) == Some(hash)
        };
        if !is_it(&held) {
            // The client may know it from an index that is newer than what is held.
            let index = self.document(shared(Name::OpenApiIndex, Encoding::Json), Some(&resources), None).await?;
            held = self.document(key, Some(&resources), Some(index.checked)).await?;
        }
        if !is_it(&held) {
            let Some(etag) = &held.document.etag else { return Ok(of_openapi(&held, media, headers)) };
            let mut response = vary(empty(StatusCode::MOVED_PERMANENTLY));
            set(&mut response, CONTENT_TYPE, media);
            set(&mut response, LOCATION, &format!("/openapi/v3/{name}?hash={}", etag.trim_matches('"')));
            set(&mut response, ETAG, etag);
            return Ok(response);
        }
        let mut response = of_openapi(&held, media, headers);
        set(&mut response, CACHE_CONTROL, "public, immutable");
        let year = std::time::Duration::from_secs(IMMUTABLE_SECONDS);
        set(&mut response, EXPIRES, &httpdate::fmt_http_date(std::time::SystemTime::now() + year));
        Ok(response)
    }
}

fn is_pretty(form: Form, query: &str, headers: &HeaderMap) -> bool {
    if form.media != Media::Json || form.is_pretty {
        return form.is_pretty;
    }
    // As Go reads a boolean.
    if let Some(value) =
        query.split('&').find_map(|pair| pair.strip_prefix("pretty=")).filter(|value| !value.is_empty())
    {
        return matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True");
    }
    // People's clients.
    text(headers, &USER_AGENT)
        .is_some_and(|agent| ["curl", "Wget", "Mozilla/5.0"].iter().any(|client| agent.starts_with(client)))
}

/// A discovery document.
fn of_object(held: &Held, form: Form, is_pretty: bool, headers: &HeaderMap) -> Response<Bytes> {
    let media = match form.media {
        Media::Json => "application/json",
        // All JSON is YAML.
        Media::Yaml => "application/yaml",
        Media::Protobuf => "application/vnd.kubernetes.protobuf",
    };
    if !form.is_aggregated {
        let mut response = with_body(held, media);
        if is_pretty {
            make_pretty(&mut response);
        }
        return response;
    }
    let etag = held.document.etag.as_deref();
    let mut response = if etag.is_some() && text(headers, &IF_NONE_MATCH) == etag {
        empty(StatusCode::NOT_MODIFIED)
    } else {
        let mut response = with_body(held, &format!("{media}{AGGREGATED}"));
        if is_pretty {
            make_pretty(&mut response);
        }
        response
    };
    if let Some(etag) = etag {
        set(&mut response, ETAG, etag);
    }
    // Kubernetes says public. Here whoever keeps it for others could give it to those of another tenant.
    set(&mut response, CACHE_CONTROL, "private");
    vary(response)
}

fn make_pretty(response: &mut Response<Bytes>) {
    if let Ok(body) = json::pretty(response.body()) {
        *response.body_mut() = body.into();
    }
}

/// An OpenAPI document, or 304 if the client has it.
fn of_openapi(held: &Held, media: &str, headers: &HeaderMap) -> Response<Bytes> {
    let etag = held.document.etag.as_deref();
    // As RFC 9110 compares them, weakly; Kubernetes leaves it to Go.
    let has_it = |known: &str| known == "*" || known.strip_prefix("W/").unwrap_or(known) == etag.unwrap_or_default();
    let is_known = etag.is_some()
        && text(headers, &IF_NONE_MATCH).is_some_and(|known| known.split(',').any(|known| has_it(known.trim())));
    let mut response = if is_known { empty(StatusCode::NOT_MODIFIED) } else { with_body(held, media) };
    if let Some(etag) = etag {
        set(&mut response, ETAG, etag);
    }
    vary(response)
}

fn with_body(held: &Held, content_type: &str) -> Response<Bytes> {
    let mut response = Response::new(held.document.body.clone());
    set(&mut response, CONTENT_TYPE, content_type);
    set(&mut response, CACHE_CONTROL, PRIVATE);
    response
}

fn empty(status: StatusCode) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = status;
    set(&mut response, CACHE_CONTROL, PRIVATE);
    response
}

fn vary(mut response: Response<Bytes>) -> Response<Bytes> {
    set(&mut response, VARY, "Accept");
    response
}

fn of_status(status: &Status) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(status.to_json()));
    *response.status_mut() = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    set(&mut response, CONTENT_TYPE, kubewharf_kube_api::status::CONTENT_TYPE);
    set(&mut response, CACHE_CONTROL, PRIVATE);
    response
}

fn not_found(reason: &str) -> Status {
    let mut status = Status::not_found(format!("the server could not find the requested resource{reason}"));
    status.details = Some(Box::default());
    status
}

fn not_acceptable() -> Status {
    Status {
        code: 406,
        reason: Reason::NotAcceptable,
        message: "only the following media types are accepted: application/json, application/yaml, \
                  application/vnd.kubernetes.protobuf"
            .into(),
        details: None,
    }
}

/// The first header of the name, if it is text.
fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// Sets a header. All values are text of this program or hashes; what can't be a header is left out.
fn set(response: &mut Response<Bytes>, name: HeaderName, value: &str) {
    if let Ok(value) = value.parse() {
        response.headers_mut().insert(name, value);
    }
}
