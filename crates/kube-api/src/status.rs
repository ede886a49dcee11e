//! How a failure is told to a client of Kubernetes: [`Status`], metav1's object of that name.
//!
//! Invariant: the body is, byte by byte, what a kube-apiserver of version 1.36 would write for the same failure to a
//! client that asks for JSON. So clients, which look at the reason and the details, act as they would without us.

use std::borrow::Cow;

use serde::{Serialize, Serializer};

use crate::json;
use crate::quote::{push_quoted, push_quoted_inside, quoted};
use crate::request_info::RequestInfo;

/// The media type of [`Status::to_json`].
pub const CONTENT_TYPE: &str = "application/json";

/// The most seconds that a client can be told to wait; the field is a signed number of 32 bits.
const RETRY_AFTER_SECONDS_MAX: u32 = i32::MAX.unsigned_abs();

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The code of the HTTP answer.
    pub code: u16,
    /// The cause, for programs.
    pub reason: Reason,
    /// The cause, for people.
    pub message: Cow<'static, str>,
    /// What more there is to say; `None` is not the same as empty details, in what is written.
    pub details: Option<Box<Details>>,
}

/// The cause of a failure, for programs: those of apimachinery's `StatusReason` that [`Status`] makes use of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// Kubernetes has none for this; it is not written.
    #[default]
    Unknown,
    /// 400: such a request can never succeed.
    BadRequest,
    /// 401: who asks is not known.
    Unauthorized,
    /// 403: who asks may not do this.
    Forbidden,
    /// 404: there is no such thing.
    NotFound,
    /// 405: the resource does not have this verb.
    MethodNotAllowed,
    /// 406: there is no answer in a form that the client takes.
    NotAcceptable,
    /// 409: there is one already.
    AlreadyExists,
    /// 409: the object is not as the request takes it to be.
    Conflict,
    /// 413: the body is too large.
    RequestEntityTooLarge,
    /// 415: the body is in a form that is not understood.
    UnsupportedMediaType,
    /// 422: a field has a value that it can't have.
    Invalid,
    /// 429: to be tried again later.
    TooManyRequests,
    /// 500: an error that is not the client's.
    InternalError,
    /// 503: the server can't serve this now.
    ServiceUnavailable,
    /// 504: it took too long; it may still be carried out.
    Timeout,
}

impl Reason {
    /// The reason as apimachinery spells it; empty if unknown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "",
            Self::BadRequest => "BadRequest",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "NotFound",
            Self::MethodNotAllowed => "MethodNotAllowed",
            Self::NotAcceptable => "NotAcceptable",
            Self::AlreadyExists => "AlreadyExists",
            Self::Conflict => "Conflict",
            Self::RequestEntityTooLarge => "RequestEntityTooLarge",
            Self::UnsupportedMediaType => "UnsupportedMediaType",
            Self::Invalid => "Invalid",
            Self::TooManyRequests => "TooManyRequests",
            Self::InternalError => "InternalError",
            Self::ServiceUnavailable => "ServiceUnavailable",
            Self::Timeout => "Timeout",
        }
    }

    fn is_unknown(&self) -> bool {
        *self == Self::Unknown
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// What a failure is about. Empty fields are not written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Details {
    /// The name of the object.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub name: Cow<'static, str>,
    /// The API group of the object.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub group: Cow<'static, str>,
    /// The resource, such as `pods`; the field has this name for historical reasons.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub kind: Cow<'static, str>,
    /// The errors that led to this one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    /// After how many seconds to try again; 0 if not told.
    #[serde(skip_serializing_if = "is_zero")]
    pub retry_after_seconds: u32,
}

/// An error that led to a failure. Empty fields are not written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cause {
    /// The kind of error, as apimachinery's `CauseType`.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub reason: Cow<'static, str>,
    /// The error, for people.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub message: Cow<'static, str>,
    /// The field of the object that it is about, such as `spec.replicas`.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub field: Cow<'static, str>,
}

/// What is wrong with a field, as apimachinery's `field.Error`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// The path of the field, such as `spec.replicas`.
    pub field: String,
    /// What is wrong in general.
    pub kind: FieldErrorKind,
    /// What is wrong, for people.
    pub message: String,
}

/// What can be wrong with a field: those of apimachinery's `field.ErrorType` that are made use of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FieldErrorKind {
    /// The value is malformed.
    Invalid,
    /// There must be a value.
    Required,
    /// There must be no such value.
    Forbidden,
}

impl FieldErrorKind {
    /// As it is told to programs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "FieldValueInvalid",
            Self::Required => "FieldValueRequired",
            Self::Forbidden => "FieldValueForbidden",
        }
    }
}

impl FieldError {
    /// The field has this text, which is malformed.
    #[must_use]
    pub fn invalid(field: impl Into<String>, value: &str, detail: &str) -> Self {
        Self::invalid_value(field, &quoted(value), detail)
    }

    /// The field has this value, written as JSON, which is malformed.
    #[must_use]
    pub fn invalid_value(field: impl Into<String>, json: &str, detail: &str) -> Self {
        let message = format!("Invalid value: {json}: {detail}");
        Self { field: field.into(), kind: FieldErrorKind::Invalid, message }
    }

    /// The field must have a value.
    #[must_use]
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        let message = if detail.is_empty() { "Required value".to_owned() } else { format!("Required value: {detail}") };
        Self { field: field.into(), kind: FieldErrorKind::Required, message }
    }

    /// The field must have no such value.
    #[must_use]
    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self { field: field.into(), kind: FieldErrorKind::Forbidden, message: format!("Forbidden: {detail}") }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Status {
    /// 400: the request makes no sense.
    #[must_use]
    pub fn bad_request(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(400, Reason::BadRequest, message)
    }

    /// 401: who asks could not be told. Why is for the log only, as at a kube-apiserver: a client that guesses tokens
    /// learns nothing.
    #[must_use]
    pub fn unauthorized() -> Self {
        Self::new(401, Reason::Unauthorized, "Unauthorized")
    }

    /// 403: refused, whatever it is for.
    #[must_use]
    pub fn forbidden(why: &str) -> Self {
        Self::new(403, Reason::Forbidden, format!("forbidden: {why}")).with_details(Details::default())
    }

    /// 403: this user may not do this. `why` may be empty. The message is as when a kube-apiserver's authorizer
    /// refuses.
    #[must_use]
    pub fn forbidden_request(user: &str, info: &RequestInfo<'_>, why: &str) -> Self {
        let details = Details {
            name: info.name.to_string().into(),
            group: info.api_group.to_string().into(),
            kind: info.resource.to_string().into(),
            ..Details::default()
        };
        Self::new(403, Reason::Forbidden, forbidden_message(user, info, why)).with_details(details)
    }

    /// 403: this object may not be so, for a reason that is not the authorizer's.
    #[must_use]
    pub fn forbidden_object(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = format!("{} is forbidden: {why}", object_in_text(group, resource, name));
        Self::new(403, Reason::Forbidden, message).with_details(details_of_object(group, resource, name))
    }

    /// 404: there is no object of this name.
    #[must_use]
    pub fn object_not_found(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {} not found", qualified(group, resource), quoted(name));
        Self::new(404, Reason::NotFound, message).with_details(details_of_object(group, resource, name))
    }

    /// 404: there is no such thing.
    #[must_use]
    pub fn not_found(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(404, Reason::NotFound, message)
    }

    /// 404: there is no such resource at all.
    #[must_use]
    pub fn resource_not_found() -> Self {
        Self::not_found("the server could not find the requested resource")
    }

    /// 405: the resource does not have this verb.
    #[must_use]
    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(405, Reason::MethodNotAllowed, message)
    }

    /// 409: there is an object of this name already.
    #[must_use]
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {} already exists", qualified(group, resource), quoted(name));
        Self::new(409, Reason::AlreadyExists, message).with_details(details_of_object(group, resource, name))
    }

    /// 409: the object is not as the request takes it to be.
    #[must_use]
    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message =
            format!("Operation cannot be fulfilled on {} {}: {why}", qualified(group, resource), quoted(name));
        Self::new(409, Reason::Conflict, message).with_details(details_of_object(group, resource, name))
    }

    /// 406: there is no answer in a form that the client takes.
    #[must_use]
    pub fn not_acceptable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(406, Reason::NotAcceptable, message)
    }

    /// 415: the body is in a form that is not understood.
    #[must_use]
    pub fn unsupported_media_type(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(415, Reason::UnsupportedMediaType, message)
    }

    /// 408: the client did not send its request in time. Kubernetes has no reason for it.
    #[must_use]
    pub fn request_timeout(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(408, Reason::Unknown, message)
    }

    /// 413: the body is too large.
    #[must_use]
    pub fn request_entity_too_large(why: &str) -> Self {
        Self::new(413, Reason::RequestEntityTooLarge, format!("Request entity too large: {why}"))
    }

    /// 421: this server does not answer for that host. Kubernetes has no reason for it.
    #[must_use]
    pub fn misdirected(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(421, Reason::Unknown, message)
    }

    /// 422: these fields have values that they can't have. Of an object that is only looked at, as a review, a
    /// kube-apiserver knows neither kind nor name there, and leaves them empty.
    #[must_use]
    pub fn invalid(group: &str, kind: &str, name: &str, errors: Vec<FieldError>) -> Self {
        let mut texts: Vec<String> = Vec::with_capacity(errors.len());
        for error in &errors {
            let text = format!("{}: {}", error.field, error.message);
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let what = if texts.len() == 1 { texts.swap_remove(0) } else { format!("[{}]", texts.join(", ")) };
        let message = format!("{} {} is invalid: {what}", qualified(group, kind), quoted(name));
        let causes = errors.into_iter().map(|error| Cause {
            reason: error.kind.as_str().into(),
            message: error.message.into(),
            field: error.field.into(),
        });
        let details = Details { causes: causes.collect(), ..details_of_object(group, kind, name) };
        Self::new(422, Reason::Invalid, message).with_details(details)
    }

    /// 429: too many requests, to be tried again after that many seconds.
    #[must_use]
    pub fn too_many_requests(message: impl Into<Cow<'static, str>>, retry_after_seconds: u32) -> Self {
        Self::new(429, Reason::TooManyRequests, message).with_retry_after(retry_after_seconds)
    }

    /// 500: an error of this server.
    #[must_use]
    pub fn internal_error(why: impl Into<Cow<'static, str>>) -> Self {
        let why = why.into();
        let message = format!("Internal error occurred: {why}");
        let cause = Cause { message: why, ..Cause::default() };
        Self::new(500, Reason::InternalError, message)
            .with_details(Details { causes: vec![cause], ..Details::default() })
    }

    /// 500: an error that a kube-apiserver has no reason for.
    #[must_use]
    pub fn unexpected(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(500, Reason::Unknown, message)
    }

    /// 502: the server behind this one gave no valid answer. The reason is the one that Kubernetes' clients derive from
    /// the bare code.
    #[must_use]
    pub fn bad_gateway(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(502, Reason::InternalError, message)
    }

    /// 503: can't be served now.
    #[must_use]
    pub fn service_unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(503, Reason::ServiceUnavailable, message)
    }

    /// 504: the server behind this one took too long; it may still carry the request out. To be tried again after that
    /// many seconds; 0 tells none.
    #[must_use]
    pub fn gateway_timeout(why: &str, retry_after_seconds: u32) -> Self {
        Self::new(504, Reason::Timeout, format!("Timeout: {why}")).with_retry_after(retry_after_seconds)
    }

    /// The same, with the wish that the client waits that many seconds before it tries again. Kubernetes' clients do so
    /// if a header `Retry-After` says it, too: see [`Status::retry_after_seconds`].
    #[must_use]
    pub fn with_retry_after(mut self, seconds: u32) -> Self {
        self.details.get_or_insert_default().retry_after_seconds = seconds.min(RETRY_AFTER_SECONDS_MAX);
        self
    }

    /// What the header `Retry-After` of the answer must be, if it must have one.
    #[must_use]
    pub fn retry_after_seconds(&self) -> Option<u32> {
        self.details.as_ref().map(|details| details.retry_after_seconds).filter(|&seconds| seconds > 0)
    }

    /// The body of the answer, with a line break at its end. Its media type is [`CONTENT_TYPE`].
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Written<'a> {
            kind: &'static str,
            api_version: &'static str,
            metadata: Empty,
            status: &'static str,
            #[serde(skip_serializing_if = "str::is_empty")]
            message: &'a str,
            #[serde(skip_serializing_if = "Reason::is_unknown")]
            reason: Reason,
            #[serde(skip_serializing_if = "Option::is_none")]
            details: Option<&'a Details>,
            code: u16,
        }
        #[derive(Serialize)]
        struct Empty {}

        let mut body = json::to_vec(&Written {
            kind: "Status",
            api_version: "v1",
            metadata: Empty {},
            status: "Failure",
            message: &self.message,
            reason: self.reason,
            details: self.details.as_deref(),
            code: self.code,
        });
        body.push(b'\n');
        body
    }

    fn new(code: u16, reason: Reason, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, reason, message: message.into(), details: None }
    }

    fn with_details(mut self, details: Details) -> Self {
        self.details = Some(Box::new(details));
        self
    }
}

/// `RESOURCE.GROUP`, as apimachinery writes a `GroupResource` or `GroupKind`.
fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

fn object_in_text(group: &str, resource: &str, name: &str) -> String {
    let resource = qualified(group, resource);
    if name.is_empty() { resource } else { format!("{resource} {}", quoted(name)) }
}

fn details_of_object(group: &str, resource: &str, name: &str) -> Details {
    Details {
        name: name.to_owned().into(),
        group: group.to_owned().into(),
        kind: resource.to_owned().into(),
        ..Details::default()
    }
}

/// As `ForbiddenStatusError` of k8s.io/apiserver and `NewForbidden` of apimachinery together.
fn forbidden_message(user: &str, info: &RequestInfo<'_>, why: &str) -> String {
    let mut request = String::from("User ");
    push_quoted(&mut request, user);
    request += " cannot ";
    request += &info.verb;
    if info.is_resource_request {
        request += " resource \"";
        push_quoted_inside(&mut request, &info.resource);
        if !info.subresource.is_empty() {
            request += "/";
            push_quoted_inside(&mut request, &info.subresource);
        }
        request += "\" in API group ";
        push_quoted(&mut request, &info.api_group);
        if info.namespace.is_empty() {
            request += " at the cluster scope";
        } else {
            request += " in the namespace ";
            push_quoted(&mut request, &info.namespace);
        }
    } else {
        request += " path ";
        push_quoted(&mut request, &info.path);
    }

    let mut message = String::with_capacity(request.len() + why.len() + 64);
    if !info.resource.is_empty() || !info.api_group.is_empty() {
        message += &info.resource;
        if !info.api_group.is_empty() {
            message += ".";
            message += &info.api_group;
        }
        if !info.name.is_empty() {
            message += " ";
            push_quoted(&mut message, &info.name);
        }
        message += " is ";
    }
    message += "forbidden: ";
    // Browsers that take JSON for HTML shall find no markup in it. Kubernetes trusts the authorizer's words.
    for character in request.chars() {
        match character {
            '&' => message += "&amp;",
            '<' => message += "&lt;",
            '>' => message += "&gt;",
            _ => message.push(character),
        }
    }
    if !why.is_empty() {
        message += ": ";
        message += why;
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(status: &Status) -> String {
        String::from_utf8(status.to_json()).unwrap()
    }

    #[test]
    fn a_failure_is_written_as_a_kube_apiserver_writes_it() {
        let info = RequestInfo::parse("GET", "/api/v1/namespaces/shop/pods").unwrap();
        assert_eq!(
            body(&Status::forbidden_request("jane", &info, "")),
            concat!(
                r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","#,
                r#""message":"pods is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" "#,
                r#"in the namespace \"shop\"","reason":"Forbidden","details":{"kind":"pods"},"code":403}"#,
                "\n"
            )
        );
        assert_eq!(
            body(&Status::misdirected("<&>")),
            concat!(
                r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","#,
                r#""message":"\u003c\u0026\u003e","code":421}"#,
                "\n"
            )
        );
    }

    #[test]
    fn a_failure_of_an_object_names_it() {
        assert_eq!(
            body(&Status::object_not_found("rbac.authorization.k8s.io", "clusterroles", "x\"y")),
            concat!(
                r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","#,
                r#""message":"clusterroles.rbac.authorization.k8s.io \"x\\\"y\" not found","reason":"NotFound","#,
                r#""details":{"name":"x\"y","group":"rbac.authorization.k8s.io","kind":"clusterroles"},"code":404}"#,
                "\n"
            )
        );
        let status = Status::forbidden_object("", "pods", "", "it is <so>");
        assert_eq!((status.code, &*status.message), (403, "pods is forbidden: it is <so>"));
    }

    #[test]
    fn a_review_without_content_is_invalid_as_a_kube_apiserver_tells_it() {
        let errors = vec![
            FieldError::invalid_value("spec.resourceAttributes", "null", "exactly one of both must be specified"),
            FieldError::invalid("spec.user", "", "at least one of user or group must be specified"),
        ];
        assert_eq!(
            body(&Status::invalid("authorization.k8s.io", "", "", errors)),
            concat!(
                r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","#,
                r#""message":".authorization.k8s.io \"\" is invalid: [spec.resourceAttributes: Invalid value: null: "#,
                r#"exactly one of both must be specified, spec.user: Invalid value: \"\": "#,
                r#"at least one of user or group must be specified]","#,
                r#""reason":"Invalid","details":{"group":"authorization.k8s.io","causes":["#,
                r#"{"reason":"FieldValueInvalid","message":"Invalid value: null: "#,
                r#"exactly one of both must be specified","field":"spec.resourceAttributes"},"#,
                r#"{"reason":"FieldValueInvalid","message":"Invalid value: \"\": "#,
                r#"at least one of user or group must be specified","field":"spec.user"}]},"code":422}"#,
                "\n"
            )
        );
        let errors = vec![FieldError::required("a", ""), FieldError::required("a", "")];
        let status = Status::invalid("g", "K", "n", errors);
        assert_eq!(status.message, r#"K.g "n" is invalid: a: Required value"#);
        assert_eq!(status.details.unwrap().causes.len(), 2);
    }

    #[test]
    fn seconds_to_wait_are_told_where_there_are_any_and_fit_their_field() {
        assert_eq!(Status::too_many_requests("slow down", 3).retry_after_seconds(), Some(3));
        assert_eq!(Status::too_many_requests("slow down", 0).retry_after_seconds(), None);
        assert_eq!(Status::service_unavailable("draining").retry_after_seconds(), None);
        let longest = Status::service_unavailable("draining").with_retry_after(u32::MAX);
        assert!(body(&longest).contains(r#""details":{"retryAfterSeconds":2147483647}"#), "{}", body(&longest));
    }

    #[test]
    fn a_name_cannot_forge_the_text_around_it() {
        let path = "/x\"y<z>\u{202e}";
        let info = RequestInfo { path: path.into(), verb: "get".into(), ..RequestInfo::default() };
        let status = Status::forbidden_request("mallory\nUser \"admin\"", &info, "");
        assert_eq!(
            status.message,
            r#"forbidden: User "mallory\nUser \"admin\"" cannot get path "/x\"y&lt;z&gt;\u202e""#
        );
    }
}
