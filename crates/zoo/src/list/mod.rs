//! Lists: of one namespace as kube-apiserver gives them, of all of a tenant's namespaces as one.
//!
//! kube-apiserver has no list of just a tenant's namespaces. So zoo asks for each of them, all at the same version of the store: what comes
//! out is one consistent list, in the order that a plain apiserver would give, with exact pages and counts, and zoo keeps nothing for it.
//!
//! Invariant: all parts of a list are of the version that the list says it is of.

mod document;
mod token;

use bytes::Bytes;
use futures_util::stream::{FuturesOrdered, StreamExt};
use http::{HeaderMap, Method, Response, StatusCode};
use kubewharf_kube_api::Status;
use kubewharf_upstream::Class;
use serde::Deserialize;

use crate::kinds::Outcome;
use crate::limits::{ANSWER_BYTES_MAX, LISTS_AT_ONCE};
use crate::proxy::{Asked, Body, Media, Wanted, escape, failed, media_of, while_others_go_on};
use crate::rewrite::Kind;
use crate::tenant::TENANT_LABEL;
use crate::upstream::{Question, Whole};

pub(crate) use document::List;
use document::Meta;
pub(crate) use token::{Place, Sealer};

/// What is read of the list of a tenant's namespaces.
#[derive(Deserialize)]
struct Namespaces {
    metadata: Version,
    items: Vec<Named>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    resource_version: String,
}

#[derive(Deserialize)]
struct Named {
    metadata: Name,
}

#[derive(Deserialize)]
struct Name {
    name: String,
}

/// What a client wants of a list.
pub(crate) struct Page {
    /// At most so many items; none: all.
    pub(crate) limit: Option<usize>,
    /// Where it goes on.
    pub(crate) place: Option<Place>,
}

/// A list that was put together, or the apiserver's answer if it is a failure.
pub(crate) enum Listed {
    /// As the tenant sees it.
    List { headers: HeaderMap, first: List, more: Vec<List>, version: String, next: String, remaining: Option<i64> },
    /// For the client, once it is rewritten.
    Failure(Whole),
}

impl Asked {
    /// Answers a list.
    pub(crate) async fn list(
        &self,
        wanted: &Wanted<'_>,
        kind: Kind,
        accept: &str,
    ) -> Result<Response<Body>, Box<Status>> {
        let _turn = self.turn(wanted).await?;
        if !wanted.is_for_all_namespaces() && wanted.outcome == Outcome::Namespaced {
            return self.list_one(wanted, kind, accept).await;
        }
        match self.gather(wanted, kind, accept).await? {
            Listed::Failure(whole) => self.answer(kind, whole),
            Listed::List { headers, first, more, version, next, remaining } => {
                let bytes = first.bytes() + more.iter().map(List::bytes).sum::<usize>();
                let meta = Meta { resource_version: version, next, remaining };
                let body = while_others_go_on(bytes, || first.write(&meta, &more));
                let mut response = Response::new(Body::Whole(body));
                *response.headers_mut() = self.client_headers(&headers);
                Ok(response)
            }
        }
    }

    /// Everything that a request for a collection wants, as the tenant sees it.
    pub(crate) async fn gather(&self, wanted: &Wanted<'_>, kind: Kind, accept: &str) -> Result<Listed, Box<Status>> {
        match wanted.outcome {
            Outcome::OwnCluster => self.gather_own(wanted, kind, accept).await,
            _ if wanted.is_for_all_namespaces() => self.gather_everywhere(wanted, kind, accept).await,
            _ => self.gather_one(wanted, kind, accept).await,
        }
    }

    /// What the list is, for its tokens.
    fn list_id(wanted: &Wanted<'_>) -> String {
        format!("{}/{}/{}", wanted.info.api_group, wanted.info.resource, wanted.info.namespace)
    }

    pub(crate) fn page(&self, wanted: &Wanted<'_>) -> Result<Page, Box<Status>> {
        // kube-apiserver does not look at the limit of a list that may be of any version, and gives all of it.
        let is_any_version = wanted.query.get("resourceVersion").is_some_and(|version| version == "0");
        let limit = wanted.query.get("limit").filter(|_| !is_any_version);
        let limit = limit.and_then(|limit| limit.parse().ok()).filter(|limit| *limit > 0);
        let token = wanted.query.get("continue").filter(|token| !token.is_empty());
        let has_version =
            wanted.query.get("resourceVersion").is_some_and(|version| !version.is_empty() && version != "0");
        if token.is_some() && has_version {
            return Err(Box::new(Status::bad_request(
                "specifying resource version is not allowed when using continue",
            )));
        }
        let place = match token {
            Some(token) => {
                let opened = self.proxy.sealer.open(self.names().uid(), &Self::list_id(wanted), &token);
                Some(opened.ok_or_else(|| {
                    Box::new(Status::bad_request(
                        "invalid continue token: continue key is not valid: it is not one of this list's",
                    ))
                })?)
            }
            None => None,
        };
        Ok(Page { limit, place })
    }

    pub(crate) fn seal(&self, wanted: &Wanted<'_>, place: &Place) -> String {
        self.proxy.sealer.seal(self.names().uid(), &Self::list_id(wanted), place)
    }

    async fn get(&self, target: String, accept: &str) -> Result<Whole, Box<Status>> {
        let headers = self.upstream_headers(Some(accept));
        let question = Question { method: Method::GET, target, headers, body: Bytes::new(), class: Class::Bulk };
        let answer = self.proxy.upstream.send(&question).await.map_err(|error| failed(&error))?;
        answer.whole(ANSWER_BYTES_MAX).await.map_err(|error| failed(&error))
    }

    /// The answers to several requests, in their order.
    async fn get_all(&self, targets: Vec<String>, accept: &str) -> Result<Vec<Whole>, Box<Status>> {
        let mut answers = Vec::with_capacity(targets.len());
        let mut pending = FuturesOrdered::new();
        for target in targets {
            if pending.len() >= LISTS_AT_ONCE
                && let Some(answer) = pending.next().await
            {
                answers.push(answer?);
            }
            pending.push_back(self.get(target, accept));
        }
        while let Some(answer) = pending.next().await {
            answers.push(answer?);
        }
        Ok(answers)
    }

    /// The list of one namespace: kube-apiserver's own, but for its token.
    async fn list_one(&self, wanted: &Wanted<'_>, kind: Kind, accept: &str) -> Result<Response<Body>, Box<Status>> {
        let page = self.page(wanted)?;
        let within = page.place.map(|place| place.within);
        let replace = |name: &str, _: &str| (name == "continue").then(|| within.clone().unwrap_or_default());
        let namespace = self.names().inward(&wanted.info.namespace);
        let target = wanted.upstream_in(self.names(), Some(&namespace), false, replace)?;
        let mut whole = self.get(target, accept).await?;
        if whole.status == StatusCode::GONE {
            whole.body = self.reseal_expired(wanted, whole.body);
            return self.answer(kind, whole);
        }
        // kube-apiserver looks at the limit in more cases than one would think.
        if !whole.status.is_success() || !document::has_next(&whole.body) {
            return self.answer(kind, whole);
        }
        let list = self.read(kind, &whole)?;
        let mut meta = list.meta();
        if !meta.next.is_empty() {
            meta.next = self.seal(wanted, &Place { within: meta.next, ..Place::default() });
        }
        let mut response = Response::new(Body::Whole(list.write(&meta, &[])));
        *response.headers_mut() = self.client_headers(&whole.headers);
        Ok(response)
    }

    /// An expired token's answer has another one, with which the list goes on at another version.
    fn reseal_expired(&self, wanted: &Wanted<'_>, body: Bytes) -> Bytes {
        let Some(token) = crate::scan::text(&body, &["metadata", "continue"]).filter(|token| !token.is_empty()) else {
            return body;
        };
        let sealed = self.seal(wanted, &Place { within: token.to_owned(), ..Place::default() });
        let text = String::from_utf8_lossy(&body);
        text.replace(&format!("\"{token}\""), &format!("\"{sealed}\"")).into()
    }

    /// All of one namespace.
    async fn gather_one(&self, wanted: &Wanted<'_>, kind: Kind, accept: &str) -> Result<Listed, Box<Status>> {
        let namespace = self.names().inward(&wanted.info.namespace);
        let target = wanted.upstream_in(self.names(), Some(&namespace), false, |name, _| as_list(wanted, name))?;
        let whole = self.get(target, accept).await?;
        if !whole.status.is_success() {
            return Ok(Listed::Failure(whole));
        }
        let first = self.read(kind, &whole)?;
        let version = first.meta().resource_version;
        Ok(Listed::List {
            headers: whole.headers,
            first,
            more: Vec::new(),
            version,
            next: String::new(),
            remaining: None,
        })
    }

    /// A tenant's cluster-scoped objects: few, so all of them are read and the page is cut out.
    async fn gather_own(&self, wanted: &Wanted<'_>, kind: Kind, accept: &str) -> Result<Listed, Box<Status>> {
        self.proxy.tenants.ensure_all(&self.tenant).await.map_err(|error| failed(&error))?;
        let page = self.page(wanted)?;
        let at = page.place.as_ref();
        let target = wanted.upstream_in(self.names(), None, false, |name, _| match name {
            "resourceVersion" if at.is_some() => Some(String::new()),
            "resourceVersionMatch" if at.is_some() => Some(String::new()),
            "limit" | "continue" => Some(String::new()),
            _ => as_list(wanted, name),
        })?;
        let target = match at {
            Some(place) => format!("{target}&resourceVersion={}&resourceVersionMatch=Exact", place.version),
            None => target,
        };
        let whole = self.get(target, accept).await?;
        if !whole.status.is_success() {
            return Ok(Listed::Failure(whole));
        }
        let all = self.read(kind, &whole)?;
        let version = all.meta().resource_version;
        let skip = at.and_then(|place| place.within.parse().ok()).unwrap_or(0usize);
        let Some(limit) = page.limit else {
            let first = if skip > 0 { all.page(skip, usize::MAX) } else { all };
            return Ok(Listed::List {
                headers: whole.headers,
                first,
                more: Vec::new(),
                version,
                next: String::new(),
                remaining: None,
            });
        };
        let left = all.count().saturating_sub(skip.saturating_add(limit));
        let first = all.page(skip, limit);
        let (mut next, mut remaining) = (String::new(), None);
        if left > 0 {
            let place = Place { version: version.clone(), within: (skip + limit).to_string(), ..Place::default() };
            next = self.seal(wanted, &place);
            remaining = (!has_selector(wanted)).then_some(left as i64);
        }
        Ok(Listed::List { headers: whole.headers, first, more: Vec::new(), version, next, remaining })
    }

    /// All of a tenant's namespaces.
    async fn gather_everywhere(&self, wanted: &Wanted<'_>, kind: Kind, accept: &str) -> Result<Listed, Box<Status>> {
        let page = self.page(wanted)?;
        let (version, namespaces) = match self.namespaces(wanted, page.place.as_ref()).await? {
            Ok(found) => found,
            Err(failure) => return Ok(Listed::Failure(failure)),
        };
        let from = page.place.as_ref().map_or(0, |place| {
            let key = sort_key(&self.names().inward(&place.namespace));
            namespaces.partition_point(|namespace| sort_key(namespace) < key)
        });
        let namespaces = &namespaces[from.min(namespaces.len())..];
        let begin = page.place.as_ref().map(|place| place.within.as_str()).unwrap_or_default();
        let target = |namespace: &str, limit: Option<usize>, within: &str| {
            let target = wanted.upstream_in(self.names(), Some(namespace), false, |name, _| match name {
                "resourceVersion" | "resourceVersionMatch" | "limit" | "continue" => Some(String::new()),
                _ => as_list(wanted, name),
            })?;
            let mark = if target.contains('?') { '&' } else { '?' };
            let limit = limit.map(|limit| format!("&limit={limit}")).unwrap_or_default();
            Ok::<_, Box<Status>>(if within.is_empty() {
                format!("{target}{mark}resourceVersion={version}&resourceVersionMatch=Exact{limit}")
            } else {
                format!("{target}{mark}continue={}{limit}", escape(within))
            })
        };
        let mut lists: Vec<(HeaderMap, List)> = Vec::new();
        let (mut next, mut remaining) = (String::new(), None);
        if let Some(limit) = page.limit {
            let mut room = limit;
            let mut rest = namespaces.iter().enumerate();
            let mut cut = None;
            for (place, namespace) in rest.by_ref() {
                let within = if place == 0 { begin } else { "" };
                let whole = self.get(target(namespace, Some(room), within)?, accept).await?;
                if !whole.status.is_success() {
                    return Ok(Listed::Failure(whole));
                }
                let list = self.read(kind, &whole)?;
                let meta = list.meta();
                room = room.saturating_sub(list.count());
                lists.push((whole.headers, list));
                if !meta.next.is_empty() {
                    cut = Some((place, meta.next, meta.remaining.unwrap_or(0)));
                    break;
                }
                if room == 0 {
                    cut = Some((place + 1, String::new(), 0));
                    break;
                }
            }
            if let Some((place, within, left_here)) = cut {
                // What follows is counted, as a plain apiserver counts it; and where nothing follows, the list is at its end.
                let later = namespaces.get(if within.is_empty() { place } else { place + 1 }..).unwrap_or_default();
                let targets = later.iter().map(|namespace| target(namespace, Some(1), "")).collect::<Result<_, _>>()?;
                let mut counts = Vec::with_capacity(later.len());
                for whole in self.get_all(targets, accept).await? {
                    if !whole.status.is_success() {
                        return Ok(Listed::Failure(whole));
                    }
                    let list = self.read(kind, &whole)?;
                    let meta = list.meta();
                    let more = meta.remaining.unwrap_or(i64::from(!meta.next.is_empty()));
                    counts.push(list.count() as i64 + more);
                }
                let left = left_here + counts.iter().sum::<i64>();
                if !within.is_empty() || left > 0 {
                    let first_left = counts.iter().position(|count| *count > 0).unwrap_or(0);
                    let namespace = if within.is_empty() { &later[first_left] } else { &namespaces[place] };
                    let namespace = self.names().outward(namespace).unwrap_or_default().to_owned();
                    next = self.seal(wanted, &Place { version: version.clone(), namespace, within });
                    remaining = (!has_selector(wanted)).then_some(left);
                }
            }
        } else {
            let begins = |place: usize| if place == 0 { begin } else { "" };
            let targets: Vec<_> = namespaces
                .iter()
                .enumerate()
                .map(|(place, namespace)| target(namespace, None, begins(place)))
                .collect::<Result<_, _>>()?;
            for whole in self.get_all(targets, accept).await? {
                if !whole.status.is_success() {
                    return Ok(Listed::Failure(whole));
                }
                let list = self.read(kind, &whole)?;
                lists.push((whole.headers, list));
            }
        }
        if lists.is_empty() {
            // A tenant without any namespace still gets a list of the kind: that of one that is not there.
            let whole = self.get(target(&self.names().inward("default"), None, "")?, accept).await?;
            if !whole.status.is_success() {
                return Ok(Listed::Failure(whole));
            }
            let list = self.read(kind, &whole)?;
            lists.push((whole.headers, list));
        }
        let mut lists = lists.into_iter();
        let (headers, first) = lists.next().expect("there is at least one");
        Ok(Listed::List { headers, first, more: lists.map(|(_, list)| list).collect(), version, next, remaining })
    }

    /// The tenant's namespaces upstream, in the order of the store, and the version at which they are those.
    async fn namespaces(
        &self,
        wanted: &Wanted<'_>,
        place: Option<&Place>,
    ) -> Result<Result<(String, Vec<String>), Whole>, Box<Status>> {
        const PARTIAL: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
        let mut target =
            format!("/api/v1/namespaces?labelSelector={}%3D{}", TENANT_LABEL.replace('/', "%2F"), self.names().uid());
        if let Some(place) = place {
            target += &format!("&resourceVersion={}&resourceVersionMatch=Exact", place.version);
        } else {
            let version = wanted.query.get("resourceVersion").unwrap_or_default();
            let matched = wanted.query.get("resourceVersionMatch").unwrap_or_default();
            let has_limit = wanted.query.get("limit").is_some_and(|limit| !matches!(&*limit, "" | "0"));
            // Without a limit, which this list does not have, the same words mean something else.
            let matched = match (&*matched, &*version) {
                ("", "" | "0") => "",
                // A watch may say so of no version, and then begins with what is there now; a list may not.
                (_, "") if wanted.info.verb == "watch" => "",
                ("", _) if has_limit && wanted.info.verb != "watch" => "Exact",
                ("", _) => "NotOlderThan",
                (matched, _) => matched,
            };
            if !version.is_empty() {
                target += &format!("&resourceVersion={}", escape(&version));
            }
            if !matched.is_empty() {
                target += &format!("&resourceVersionMatch={}", escape(matched));
            }
        }
        let whole = self.get(target, PARTIAL).await?;
        if !whole.status.is_success() {
            return Ok(Err(whole));
        }
        let found: Namespaces = serde_json::from_slice(&whole.body).map_err(|error| {
            tracing::error!(%error, "the list of namespaces can't be read");
            Box::new(Status::internal_error("the apiserver's answer can't be used"))
        })?;
        let mut names: Vec<String> = found.items.into_iter().map(|item| item.metadata.name).collect();
        names.retain(|name| self.names().outward(name).is_some());
        names.sort_by_cached_key(|name| sort_key(name));
        Ok(Ok((found.metadata.resource_version, names)))
    }

    /// A list as the tenant sees it.
    fn read(&self, kind: Kind, whole: &Whole) -> Result<List, Box<Status>> {
        let body = self.outward(kind, whole)?;
        let list = match media_of(&whole.headers) {
            Media::Protobuf => List::from_protobuf(&body),
            _ => List::from_json(body),
        };
        list.map_err(|error| {
            tracing::error!(%error, "a list can't be read");
            Box::new(Status::internal_error("the apiserver's answer can't be used"))
        })
    }
}

/// Leaves out the parameters of a watch that a list does not have: a watch that begins with all objects is made of one.
fn as_list(wanted: &Wanted<'_>, name: &str) -> Option<String> {
    let is_left_out = match name {
        "sendInitialEvents" | "allowWatchBookmarks" | "timeoutSeconds" | "pretty" => true,
        // Without a version, a list has nothing to match.
        "resourceVersionMatch" => wanted.query.get("resourceVersion").is_none_or(|version| version.is_empty()),
        _ => false,
    };
    (is_left_out && wanted.info.verb == "watch").then(String::new)
}

pub(crate) fn has_selector(wanted: &Wanted<'_>) -> bool {
    let has = |name| wanted.query.get(name).is_some_and(|selector| !selector.is_empty());
    has("labelSelector") || has("fieldSelector")
}

/// Namespaces in the order of the keys of their objects, in which a slash follows the name.
fn sort_key(namespace: &str) -> String {
    format!("{namespace}/")
}
