//! Where a tenant's request goes upstream: path and query with the names that its objects have there.
//!
//! Invariant: the path is built anew from what was understood of it, so that nothing that was not understood reaches the apiserver: what was
//! authorized is what is asked for.

use std::borrow::Cow;
use std::fmt::Write as _;

use http::Method;
use kubewharf_kube_api::{RequestInfo, Status};

use crate::kinds::{self, Body, Outcome};
use crate::names::Names;

use super::selector;

/// What a request for a resource is for, within what tenants have.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) info: &'a RequestInfo<'a>,
    pub(crate) resource: &'static kinds::Resource,
    pub(crate) outcome: Outcome,
    /// Group, version and kind of the bodies; none if they hold no object.
    pub(crate) kind: Option<(&'a str, &'a str, &'static str)>,
    pub(crate) query: Query<'a>,
}

impl<'a> Wanted<'a> {
    /// Understands a request for a resource; refuses what tenants do not have, and what is not said in one of the ways that are understood.
    pub(crate) fn of(method: &Method, info: &'a RequestInfo<'a>, query: &'a str) -> Result<Self, Box<Status>> {
        let (group, resource, subresource) = (&*info.api_group, &*info.resource, &*info.subresource);
        let no_such = || by_router(Status::resource_not_found());
        let is_read = matches!(*method, Method::GET | Method::HEAD);
        let is_method_of_verb = match &*info.verb {
            "get" | "list" | "watch" => is_read,
            "create" => *method == Method::POST,
            "update" => *method == Method::PUT,
            "patch" => *method == Method::PATCH,
            "delete" | "deletecollection" => *method == Method::DELETE,
            // `/api/v1/proxy/…`, which kube-apiserver has long ceased to serve, and methods that nobody knows.
            _ => false,
        };
        if info.verb.is_empty() {
            return Err(by_router(Status::method_not_allowed()));
        }
        let mut parts = info.parts.iter();
        let (_, name, third) = (parts.next(), parts.next(), parts.next());
        let is_understood = is_method_of_verb
            && third.unwrap_or_default() == subresource
            && (parts.next().is_none() || subresource == "proxy")
            && name.is_none_or(|name| name == info.name);
        if !is_understood || (!info.namespace.is_empty() && !is_namespace(&info.namespace)) {
            return Err(no_such());
        }
        let outcome = kinds::outcome(group, resource, subresource);
        if let Outcome::Refused(refusal) = outcome {
            return Err(Box::new(refusal.status(group, resource, subresource)));
        }
        let known = kinds::find(group, resource).expect("it is served");
        if known.namespaced && info.namespace.is_empty() && !is_read && known.outcome != Outcome::Decided {
            return Err(by_router(Status::method_not_allowed()));
        }
        // One object of a namespaced kind is in a namespace.
        if known.namespaced && info.namespace.is_empty() && name.is_some() {
            return Err(no_such());
        }
        let body = known.subresource(subresource).map_or(Body::Parent, |subresource| subresource.body);
        let kind = match body {
            Body::Parent => Some((group, &*info.api_version, known.kind)),
            Body::Is(group, version, kind) => Some((group, version, kind)),
            Body::Bytes => None,
        };
        Ok(Self { info, resource: known, outcome, kind, query: Query(query) })
    }

    /// Whether it is for one object.
    pub(crate) fn is_for_one(&self) -> bool {
        self.info.parts.iter().nth(1).is_some()
    }

    /// Whether it is for objects of all namespaces.
    pub(crate) fn is_for_all_namespaces(&self) -> bool {
        self.resource.namespaced && self.info.namespace.is_empty()
    }

    /// Path and query as they are upstream, in the request's own namespace.
    pub(crate) fn upstream(&self, names: &Names) -> Result<String, Box<Status>> {
        let namespace = (!self.info.namespace.is_empty()).then(|| names.inward(&self.info.namespace));
        self.upstream_in(names, namespace.as_deref(), self.info.verb == "watch", |_, _| None)
    }

    /// Path and query as they are upstream, in a namespace of there, or of all; to watch, or for what the method says. `replace` may give another value for a parameter of the query, or
    /// an empty one to leave it out.
    pub(crate) fn upstream_in(
        &self,
        names: &Names,
        namespace: Option<&str>,
        is_watch: bool,
        replace: impl Fn(&str, &str) -> Option<String>,
    ) -> Result<String, Box<Status>> {
        let info = self.info;
        let mut target = String::with_capacity(128);
        target.push_str(if info.api_group.is_empty() { "/api/" } else { "/apis/" });
        if !info.api_group.is_empty() {
            push_segment(&mut target, &info.api_group)?;
            target.push('/');
        }
        push_segment(&mut target, &info.api_version)?;
        // Only in this form can one object be watched by its path.
        let is_watched_by_path = is_watch && self.is_for_one();
        if is_watched_by_path {
            target.push_str("/watch");
        }
        if self.resource.namespaced
            && let Some(namespace) = namespace
        {
            target.push_str("/namespaces/");
            push_segment(&mut target, namespace)?;
        }
        target.push('/');
        for (place, part) in info.parts.iter().enumerate() {
            match place {
                0 => push_segment(&mut target, part)?,
                1 if self.outcome == Outcome::OwnCluster => {
                    target.push('/');
                    push_segment(&mut target, &names.inward(part))?;
                }
                _ => {
                    target.push('/');
                    push_segment(&mut target, part)?;
                }
            }
        }
        // What is proxied has paths of its own, to which a slash at the end matters.
        if info.subresource == "proxy" && info.path.ends_with('/') {
            target.push('/');
        }
        self.push_query(&mut target, names, is_watch && !is_watched_by_path, replace)?;
        Ok(target)
    }

    fn push_query(
        &self,
        target: &mut String,
        names: &Names,
        is_watch: bool,
        replace: impl Fn(&str, &str) -> Option<String>,
    ) -> Result<(), Box<Status>> {
        let mut mark = '?';
        let mut push = |name: &str, value: &str| {
            target.push(mark);
            mark = '&';
            push_escaped(target, name);
            target.push('=');
            push_escaped(target, value);
        };
        if is_watch {
            push("watch", "true");
        }
        for (name, value) in self.query.iter() {
            if name == "watch" {
                continue;
            }
            let value = match replace(&name, &value) {
                Some(replaced) if replaced.is_empty() => continue,
                Some(replaced) => Cow::Owned(replaced),
                None => match &*name {
                    "fieldSelector" => Cow::Owned(self.field_selector(names, &value)?),
                    "labelSelector" => Cow::Owned(self.label_selector(names, &value)?),
                    _ => value,
                },
            };
            push(&name, &value);
        }
        let of_collection = matches!(&*self.info.verb, "list" | "watch" | "deletecollection");
        if of_collection {
            let has_labels = self.query.iter().any(|(name, _)| name == "labelSelector");
            if !has_labels && self.is_labelled() {
                push("labelSelector", &self.own_labels(names));
            }
        }
        Ok(())
    }

    /// Whether the objects are the tenant's by their label, and not by their namespace.
    fn is_labelled(&self) -> bool {
        match self.outcome {
            Outcome::OwnCluster => true,
            Outcome::Private => self.info.namespace.is_empty(),
            _ => false,
        }
    }

    /// What the label selector for cluster-scoped objects must always have.
    fn own_labels(&self, names: &Names) -> String {
        format!("{}={}", crate::tenant::TENANT_LABEL, names.uid())
    }

    fn field_selector(&self, names: &Names, value: &str) -> Result<String, Box<Status>> {
        selector::map_fields(value, |field| self.resource.field(field), names)
    }

    fn label_selector(&self, names: &Names, value: &str) -> Result<String, Box<Status>> {
        if !self.is_labelled() {
            return Ok(value.to_owned());
        }
        let mut mapped = match self.resource.resource {
            "namespaces" => selector::map_namespace_labels(value, names),
            _ => value.to_owned(),
        };
        let comma = if mapped.trim().is_empty() { "" } else { "," };
        let _ = write!(mapped, "{comma}{}", self.own_labels(names));
        Ok(mapped)
    }
}

/// An answer as kube-apiserver's router gives it: with details that say nothing.
pub(super) fn by_router(mut status: Status) -> Box<Status> {
    status.details = Some(Box::default());
    Box::new(status)
}

/// A query, unescaped as it is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Query<'a>(pub(crate) &'a str);

impl<'a> Query<'a> {
    /// Its parameters. As Go does, those with a semicolon or a broken escape are left out.
    pub(crate) fn iter(self) -> impl Iterator<Item = (Cow<'a, str>, Cow<'a, str>)> {
        self.0.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';')).filter_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((unescape(name)?, unescape(value)?))
        })
    }

    /// The first value of a parameter.
    pub(crate) fn get(self, wanted: &str) -> Option<Cow<'a, str>> {
        self.iter().find(|(name, _)| name == wanted).map(|(_, value)| value)
    }

    /// Whether a parameter is true, as Kubernetes reads one: there, and neither `false` nor `0`.
    pub(crate) fn is_true(self, wanted: &str) -> bool {
        self.get(wanted).is_some_and(|value| !matches!(&*value, "false" | "0"))
    }
}

fn unescape(text: &str) -> Option<Cow<'_, str>> {
    if !text.bytes().any(|byte| matches!(byte, b'%' | b'+')) {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = text.bytes();
    let mut unescaped = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        unescaped.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                (digit(bytes.next())? * 16 + digit(bytes.next())?) as u8
            }
            _ => byte,
        });
    }
    Some(Cow::Owned(String::from_utf8_lossy(&unescaped).into_owned()))
}

/// Whether a tenant can have a namespace of this name: a label of DNS.
fn is_namespace(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.bytes().all(|byte| fits(byte) || byte == b'-')
        && name.bytes().next().is_some_and(fits)
        && name.bytes().last().is_some_and(fits)
}

/// A name as a segment of a path.
pub(crate) fn segment(name: &str) -> Result<String, Box<Status>> {
    let mut segment = String::with_capacity(name.len());
    push_segment(&mut segment, name)?;
    if segment.is_empty() {
        return Err(Box::new(Status::bad_request("a name is missing in the path")));
    }
    Ok(segment)
}

/// Text as it is in a query.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    push_escaped(&mut escaped, text);
    escaped
}

/// Adds a segment of a path, escaped.
fn push_segment(target: &mut String, segment: &str) -> Result<(), Box<Status>> {
    // Whoever is on the way might take these for steps.
    if matches!(segment, "." | "..") || segment.contains('/') {
        return Err(Box::new(Status::bad_request(format!("{segment:?} is no name in a path"))));
    }
    push_escaped(target, segment);
    Ok(())
}

/// Adds text with all escaped that is not unreserved, but for what names of Kubernetes have.
fn push_escaped(target: &mut String, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' | b',' | b'!' => {
                target.push(char::from(byte));
            }
            _ => {
                let _ = write!(target, "%{byte:02X}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(method: &str, target: &str) -> Result<String, Box<Status>> {
        let names = Names::of_uid("u");
        let info = RequestInfo::parse(method, target).expect("well-formed");
        let query = target.split_once('?').map_or("", |(_, query)| query);
        let method = method.parse().expect("a method");
        let mapped = Wanted::of(&method, &info, query)?.upstream(&names)?;
        Ok(mapped.replace(names.prefix(), "P-"))
    }

    #[test]
    fn names_are_mapped_and_nothing_else() {
        for (target, expected) in [
            ("/api/v1/namespaces/default/pods/a", "/api/v1/namespaces/P-default/pods/a"),
            (
                "/api/v1/namespaces/default/pods/a/log?follow=true",
                "/api/v1/namespaces/P-default/pods/a/log?follow=true",
            ),
            ("/apis/apps/v1/namespaces/a/deployments/b/scale", "/apis/apps/v1/namespaces/P-a/deployments/b/scale"),
            ("/api/v1/namespaces/a", "/api/v1/namespaces/P-a"),
            ("/api/v1/namespaces/a/status", "/api/v1/namespaces/P-a/status"),
            (
                "/api/v1/namespaces?limit=5",
                "/api/v1/namespaces?limit=5&labelSelector=tenancy.kubewharf.io%2Ftenant%3Du",
            ),
            (
                "/api/v1/namespaces?fieldSelector=metadata.name%3Da&labelSelector=x%3Dy&watch=1",
                "/api/v1/namespaces?watch=true&fieldSelector=metadata.name%3DP-a&labelSelector=x%3Dy,tenancy.kubewharf.io%2Ftenant%3Du",
            ),
            (
                "/api/v1/namespaces/a/pods?fieldSelector=metadata.namespace%3Da,metadata.name!%3Db",
                "/api/v1/namespaces/P-a/pods?fieldSelector=metadata.namespace%3DP-a,metadata.name!%3Db",
            ),
            ("/api/v1/watch/namespaces/a/pods", "/api/v1/namespaces/P-a/pods?watch=true"),
            ("/api/v1/watch/namespaces/a/pods/b", "/api/v1/watch/namespaces/P-a/pods/b"),
            ("/api/v1/namespaces/a/pods/b/proxy/x%20y/", "/api/v1/namespaces/P-a/pods/b/proxy/x%20y/"),
        ] {
            assert_eq!(upstream("GET", target).as_deref(), Ok(expected), "{target}");
        }
    }

    #[test]
    fn steps_in_a_path_are_refused() {
        for target in [
            "/api/v1/namespaces/a/pods/..",
            "/api/v1/namespaces/a/pods/%2e%2e/log",
            "/api/v1/namespaces/a/pods/b/proxy/../../c",
            "/api/v1/namespaces/a/pods/b%2F..%2Fc",
        ] {
            let refused = upstream("GET", target);
            assert!(refused.is_err() || !refused.as_ref().is_ok_and(|path| path.contains("..")), "{refused:?}");
        }
        assert_eq!(upstream("GET", "/api/v1/persistentvolumes").map_err(|status| status.code), Err(404));
    }

    #[test]
    fn what_is_said_in_another_way_is_refused() {
        for (method, target) in [
            ("GET", "/api/v1/proxy/namespaces"),
            ("GET", "/api/v1/proxy/secrets?includeObject=None"),
            ("POST", "/api/v1/proxy/namespaces/a/pods/b/binding"),
            ("POST", "/api/v1/watch/namespaces/a/pods"),
            ("DELETE", "/api/v1/watch/namespaces/a/pods/b"),
            ("GET", "/api/v1/namespaces/a/pods/b/log/c"),
            ("GET", "/api/v1/pods/b"),
            ("GET", "/apis/rbac.authorization.k8s.io/v1/roles/%3Flimit=50"),
            ("GET", "/api/v1/namespaces/-a/pods"),
            ("GET", "/api/v1/namespaces/a%3Fb/pods"),
            ("GET", "/api/v1/namespaces/A/pods"),
        ] {
            assert_eq!(upstream(method, target).map_err(|status| status.code), Err(404), "{method} {target}");
        }
        assert_eq!(segment("a?b").as_deref().map_err(|status| status.code), Ok("a%3Fb"));
        assert!(segment("..").is_err() && segment("a/b").is_err() && segment("").is_err());
    }
}
