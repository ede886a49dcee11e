//! What a request is for, as a kube-apiserver sees it: [`RequestInfo`], from the method and the target of the request.
//!
//! Invariant: the answer is the one that k8s.io/apiserver v0.36.3 gives, field by field, because what is decided here
//! must hold for the request that the kube-apiserver then serves. It is `RequestInfoFactory` of `pkg/endpoints/request`
//! with `APIPrefixes` `api` and `apis` and `GrouplessAPIPrefixes` `api`, which is how a kube-apiserver sets it up. Of
//! the feature gates one has a part in it: `AuthorizeWithSelectors`, on since 1.34 and locked to that, so selectors are
//! told.
//!
//! How Go reads a target is in `target.rs`, how Kubernetes reads selectors in `selector.rs`.
//!
//! A request whose path has no percent escape is told in slices of its target; nothing is allocated for it.

pub(crate) mod selector;
mod target;

use std::borrow::Cow;

use self::target::{ListOptions, Target};

/// What a request is for.
///
/// Bytes of the target that are not valid UTF-8 once unescaped are told as U+FFFD, one for each byte, as Kubernetes
/// does wherever it writes such a value as JSON. No name of a resource, namespace or object holds such bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo<'a> {
    /// Whether it is for a resource or subresource of the API; other requests are for a path such as `/healthz`.
    pub is_resource_request: bool,
    /// The whole path, unescaped: Go's `URL.Path`.
    pub path: Cow<'a, str>,
    /// What is to be done. For a resource: `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`,
    /// `deletecollection` or `proxy`, and empty for a method that Kubernetes does not know. For other requests: the
    /// method in lower case.
    pub verb: Cow<'a, str>,
    /// `api` or `apis`; else empty. Also told for `/apis/GROUP/VERSION`, which is not a request for a resource.
    pub api_prefix: &'static str,
    /// The API group; empty for the core group.
    pub api_group: Cow<'a, str>,
    /// The version of the API group.
    pub api_version: Cow<'a, str>,
    /// The namespace; empty if the path names none. A request for a namespace itself is also in that namespace.
    pub namespace: Cow<'a, str>,
    /// The resource, such as `pods`.
    pub resource: Cow<'a, str>,
    /// The subresource, such as `log`; empty if none.
    pub subresource: Cow<'a, str>,
    /// The name of the object: from the path, or for a list or watch from a field selector that demands one
    /// `metadata.name`. Else empty.
    pub name: Cow<'a, str>,
    /// The path from the resource on.
    pub parts: Parts<'a>,
    /// The first `fieldSelector` of the query, not looked into; only of the verbs `list`, `watch` and
    /// `deletecollection`, and not where the path tells the verb (`/api/v1/watch/…`).
    pub field_selector: Cow<'a, str>,
    /// The first `labelSelector` of the query, under the same conditions.
    pub label_selector: Cow<'a, str>,
}

/// The path of a request for a resource from the resource on, without what comes before: `pods/NAME/log`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts<'a>(Cow<'a, str>);

impl<'a> Parts<'a> {
    /// The parts joined by slashes; empty if there are none.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The parts: the resource, the name, the subresource and what follows. A part can be empty, but never the last.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        (!self.0.is_empty()).then(|| self.0.split('/')).into_iter().flatten()
    }
}

impl<'a> From<&'a str> for Parts<'a> {
    fn from(joined: &'a str) -> Self {
        Self(Cow::Borrowed(joined))
    }
}

/// Why a kube-apiserver does not even look at what a request is for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Go's `url.ParseRequestURI` refuses it, so the HTTP server of a kube-apiserver answers 400.
    #[error("the request target is neither a path that begins with / nor *")]
    NotAPath,
    /// As [`Error::NotAPath`].
    #[error("the request target has a control character at byte {offset}; it must be percent-encoded")]
    ControlCharacter {
        /// Where it is, in bytes from the beginning of the target.
        offset: usize,
    },
    /// As [`Error::NotAPath`].
    #[error("the path has a % without two hexadecimal digits after it at byte {offset}; a percent sign is written %25")]
    BadEscape {
        /// Where the percent sign is, in bytes from the beginning of the path.
        offset: usize,
    },
    /// The path ends where Kubernetes' resolver expects a resource; a kube-apiserver answers 500.
    #[error("the path ends after the verb {verb:?}; a resource must follow, as in /api/v1/{verb}/pods")]
    NoResource {
        /// `proxy` or `watch`.
        verb: &'static str,
    },
}

impl<'a> RequestInfo<'a> {
    /// Tells what a request is for. `method` is its HTTP method, a token of ASCII characters; `path_and_query` its
    /// target: `:path` in HTTP/2; in HTTP/1.1 the target, of an absolute one only what follows the authority.
    ///
    /// A `#` is a character like any other, as to Go. Who forwards the request must forward exactly this target: a URI
    /// type that cuts it off at a `#` must have done so before.
    ///
    /// # Errors
    /// When a kube-apiserver would refuse the target as malformed.
    pub fn parse(method: &'a str, path_and_query: &'a str) -> Result<Self, Error> {
        let Target { path, query } = Target::parse(path_and_query)?;
        let mut info = match path {
            Cow::Borrowed(path) => Self::of_place(&Place::find(path)?, Cow::Borrowed),
            // Slices of a path that this function owns cannot leave it.
            Cow::Owned(ref path) => Self::of_place(&Place::find(path)?, |slice| Cow::Owned(slice.to_owned())),
        };
        info.path = path;
        let verb_is_in_path = !info.verb.is_empty();
        if !verb_is_in_path {
            info.verb =
                if info.is_resource_request { Cow::Borrowed(resource_verb(method)) } else { lower_case(method) };
        }
        if info.is_resource_request && !verb_is_in_path {
            info.read_query(query);
        }
        Ok(info)
    }

    /// Whether it may take as long as it likes: a kube-apiserver counts it towards no limit of requests in flight and
    /// ends it by no request timeout. As `LongRunningFunc` of kube-apiserver: the verbs `watch` and `proxy`, the
    /// subresources `attach`, `exec`, `proxy`, `log` and `portforward`, and the profiler.
    #[must_use]
    pub fn is_long_running(&self) -> bool {
        matches!(&*self.verb, "watch" | "proxy")
            || if self.is_resource_request {
                matches!(&*self.subresource, "attach" | "exec" | "proxy" | "log" | "portforward")
            } else {
                self.path.starts_with("/debug/pprof/")
            }
    }

    /// The same, borrowing from nothing.
    #[must_use]
    pub fn into_owned(self) -> RequestInfo<'static> {
        fn own(text: Cow<'_, str>) -> Cow<'static, str> {
            Cow::Owned(text.into_owned())
        }
        RequestInfo {
            is_resource_request: self.is_resource_request,
            path: own(self.path),
            verb: own(self.verb),
            api_prefix: self.api_prefix,
            api_group: own(self.api_group),
            api_version: own(self.api_version),
            namespace: own(self.namespace),
            resource: own(self.resource),
            subresource: own(self.subresource),
            name: own(self.name),
            parts: Parts(own(self.parts.0)),
            field_selector: own(self.field_selector),
            label_selector: own(self.label_selector),
        }
    }

    /// The fields that follow from the path alone, but the path itself. The verb is empty if the path does not tell it.
    fn of_place<'p>(place: &Place<'p>, keep: impl Fn(&'p str) -> Cow<'a, str>) -> Self {
        Self {
            is_resource_request: place.is_resource_request,
            verb: Cow::Borrowed(place.special_verb),
            api_prefix: place.api_prefix,
            api_group: keep(place.api_group),
            api_version: keep(place.api_version),
            namespace: keep(place.namespace),
            resource: keep(place.resource),
            subresource: keep(place.subresource),
            name: keep(place.name),
            parts: Parts(keep(place.parts)),
            ..Self::default()
        }
    }

    /// What the query adds: whether a `get` without a name is a list or a watch, the one name that it is for, and the
    /// selectors.
    fn read_query(&mut self, query: &'a str) {
        if !self.name.is_empty() || !matches!(&*self.verb, "get" | "delete") {
            return;
        }
        let options = ListOptions::of_query(query);
        if self.verb == "get" {
            let read = options.read();
            self.verb = Cow::Borrowed(if read.is_watch { "watch" } else { "list" });
            if let Some(name) = read.name {
                self.name = Cow::Owned(name);
            }
        } else {
            self.verb = Cow::Borrowed("deletecollection");
        }
        self.field_selector = options.field_selector.map(target::text).unwrap_or_default();
        self.label_selector = options.label_selector.map(target::text).unwrap_or_default();
    }
}

/// What a path alone tells. Slices of the path; empty is what it does not tell.
#[derive(Debug, Default)]
struct Place<'p> {
    is_resource_request: bool,
    api_prefix: &'static str,
    api_group: &'p str,
    api_version: &'p str,
    /// `proxy` or `watch` if the path begins with it, after the version.
    special_verb: &'static str,
    namespace: &'p str,
    resource: &'p str,
    name: &'p str,
    subresource: &'p str,
    parts: &'p str,
}

impl<'p> Place<'p> {
    fn find(path: &'p str) -> Result<Self, Error> {
        let mut place = Self::default();
        // What is left always ends with a part that is not empty, since the slashes at the end are gone.
        let Some((prefix, rest)) = path.trim_matches('/').split_once('/') else {
            return Ok(place);
        };
        let Some((group_or_version, after)) = rest.split_once('/') else {
            return Ok(place);
        };
        let (version, mut rest) = match prefix {
            "api" => {
                place.api_prefix = "api";
                (group_or_version, after)
            }
            "apis" => {
                place.api_prefix = "apis";
                let Some((version, rest)) = after.split_once('/') else {
                    return Ok(place);
                };
                place.api_group = group_or_version;
                (version, rest)
            }
            _ => return Ok(place),
        };
        place.is_resource_request = true;
        place.api_version = version;

        let (first, after) = cut(rest);
        for verb in ["proxy", "watch"] {
            if first == verb {
                rest = after.ok_or(Error::NoResource { verb })?;
                place.special_verb = verb;
            }
        }

        if let ("namespaces", Some(after)) = cut(rest) {
            let (namespace, after) = cut(after);
            place.namespace = namespace;
            // These two are subresources of the namespace; anything else is a resource in it.
            if let Some(after) = after.filter(|after| !matches!(cut(after).0, "status" | "finalize")) {
                rest = after;
            }
        }

        place.parts = rest;
        let (resource, after) = cut(rest);
        place.resource = resource;
        if let Some((name, after)) = after.map(cut) {
            place.name = name;
            // What follows a name in a path of the verb proxy belongs to the target of the proxy.
            if let Some(after) = after.filter(|_| place.special_verb != "proxy") {
                place.subresource = cut(after).0;
            }
        }
        Ok(place)
    }
}

/// The first part, and the parts after it if there are any.
fn cut(parts: &str) -> (&str, Option<&str>) {
    match parts.split_once('/') {
        Some((first, rest)) => (first, Some(rest)),
        None => (parts, None),
    }
}

/// The verb of a request for a resource. Methods are case-sensitive.
fn resource_verb(method: &str) -> &'static str {
    match method {
        "POST" => "create",
        "GET" | "HEAD" => "get",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "",
    }
}

/// The method in lower case, without an allocation for those in use.
fn lower_case(method: &str) -> Cow<'_, str> {
    Cow::Borrowed(match method {
        "GET" => "get",
        "HEAD" => "head",
        "POST" => "post",
        "PUT" => "put",
        "PATCH" => "patch",
        "DELETE" => "delete",
        "OPTIONS" => "options",
        "CONNECT" => "connect",
        "TRACE" => "trace",
        _ if method.bytes().any(|byte| byte.is_ascii_uppercase()) => return Cow::Owned(method.to_ascii_lowercase()),
        _ => method,
    })
}

#[cfg(test)]
mod tests;
