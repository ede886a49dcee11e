//! Requests in somebody else's name: what the `Impersonate-*` headers of a client ask for, and whether it may have
//! that.
//!
//! The rules are those of kube-apiserver v1.36's general impersonation (the verb `impersonate`): one access review for
//! the user, and one for the UID, each group and each value of an extra. The narrower verbs of constrained
//! impersonation are not tried, so a user who has no more than those rights is refused here.
//!
//! Invariant: nothing of the headers is believed before the cluster has allowed all of it. The headers themselves are
//! never forwarded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue};
use kubewharf_foundation::clock::Clock;

use super::cache::{Verdict, VerdictCache, VerdictTimes};
use super::{AccessAttributes, BoundedReviewer, ReviewError, Reviewer, add_authenticated};
use crate::User;
use crate::limits::{IMPERSONATION_REVIEWS_AT_ONCE, IMPERSONATION_VALUES_MAX};
use crate::user::{ANONYMOUS, UNAUTHENTICATED};

/// What all of the headers begin with. The proxy takes every one of them off a request, also those that mean nothing
/// here.
pub const HEADER_PREFIX: &str = "impersonate-";

static USER: HeaderName = HeaderName::from_static("impersonate-user");
static GROUP: HeaderName = HeaderName::from_static("impersonate-group");
static UID: HeaderName = HeaderName::from_static("impersonate-uid");
const EXTRA_PREFIX: &str = "impersonate-extra-";

const CORE: &str = "";
const AUTHENTICATION: &str = "authentication.k8s.io";

/// Why a request can't have the name that it asks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImpersonationError {
    /// The headers make no sense: 400. The text is for the client.
    #[error("{0}")]
    BadRequest(String),
    /// The user may not: 403. The text is kube-apiserver's, and for the client.
    #[error("{0}")]
    Forbidden(Arc<str>),
    /// Nobody could say whether the user may: 503.
    #[error("whether the user may impersonate can't be judged: {0}")]
    Unavailable(Arc<ReviewError>),
}

impl ImpersonationError {
    /// The HTTP status of the answer.
    #[must_use]
    pub fn status(&self) -> http::StatusCode {
        match self {
            Self::BadRequest(_) => http::StatusCode::BAD_REQUEST,
            Self::Forbidden(_) => http::StatusCode::FORBIDDEN,
            Self::Unavailable(error) => error.status(),
        }
    }
}

/// Something that must be allowed, with the verb `impersonate`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImpersonationCheck {
    /// The API group; all are of version v1.
    pub api_group: &'static str,
    /// `users`, `serviceaccounts`, `groups`, `uids` or `userextras`.
    pub resource: &'static str,
    /// The key of an extra.
    pub subresource: String,
    /// The namespace of a service account.
    pub namespace: String,
    /// The name, or the value of an extra.
    pub name: String,
}

impl ImpersonationCheck {
    fn new(api_group: &'static str, resource: &'static str, name: &str) -> Self {
        Self { api_group, resource, subresource: String::new(), namespace: String::new(), name: name.to_owned() }
    }

    /// The review that `requestor` needs.
    #[must_use]
    pub fn attributes<'a>(&'a self, requestor: &'a User) -> AccessAttributes<'a> {
        AccessAttributes {
            user: requestor,
            verb: "impersonate",
            api_group: self.api_group,
            api_version: "v1",
            resource: self.resource,
            subresource: &self.subresource,
            namespace: &self.namespace,
            name: &self.name,
        }
    }

    /// What kube-apiserver says when it is not allowed.
    fn refusal(&self, requestor: &User, reason: &str) -> String {
        let dot = if self.api_group.is_empty() { "" } else { "." };
        let slash = if self.subresource.is_empty() { "" } else { "/" };
        let scope = if self.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {:?}", self.namespace)
        };
        let message = format!(
            "User {:?} cannot impersonate resource \"{}{slash}{}\" in API group {:?} {scope}",
            requestor.name, self.resource, self.subresource, self.api_group,
        );
        // A browser must not take it for a page.
        let message = message.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let colon = if reason.is_empty() { "" } else { ": " };
        let object = if self.name.is_empty() { String::new() } else { format!(" {:?}", self.name) };
        format!("{}{dot}{}{object} is forbidden: {message}{colon}{reason}", self.resource, self.api_group)
    }
}

/// The user that the headers ask for, exactly as they do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Impersonation {
    wanted: User,
}

impl Impersonation {
    /// Reads the headers; `None` if they ask for nobody else. Most requests have none, and cost a look at each header's
    /// name.
    ///
    /// # Errors
    ///
    /// If they ask for groups, extras or a UID of nobody, for more than can be reviewed, or by values that are not
    /// text.
    pub fn of(headers: &HeaderMap) -> Result<Option<Self>, ImpersonationError> {
        if !headers.keys().any(|name| name.as_str().starts_with(HEADER_PREFIX)) {
            return Ok(None);
        }
        let first = |name: &HeaderName| headers.get(name).map_or(Ok(String::new()), |value| text(name, value));
        let name = first(&USER)?;
        let uid = first(&UID)?;
        let groups: Vec<String> =
            headers.get_all(&GROUP).iter().map(|value| text(&GROUP, value)).collect::<Result<_, _>>()?;
        let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut values_count = groups.len();
        for (header, value) in headers {
            let Some(key) = header.as_str().strip_prefix(EXTRA_PREFIX) else { continue };
            let key = percent_decoded(key).map_err(|()| not_text(header))?;
            extra.entry(key).or_default().push(text(header, value)?);
            values_count += 1;
        }
        if name.is_empty() {
            if uid.is_empty() && groups.is_empty() && extra.is_empty() {
                return Ok(None);
            }
            let problem = "requested to impersonate a uid, groups or extras without impersonating a user name";
            return Err(ImpersonationError::BadRequest(problem.into()));
        }
        if values_count > IMPERSONATION_VALUES_MAX {
            return Err(ImpersonationError::BadRequest(format!(
                "requested to impersonate {values_count} groups and extra values; {IMPERSONATION_VALUES_MAX} are allowed"
            )));
        }
        Ok(Some(Self { wanted: User { name, uid, groups, extra: extra.into_iter().collect() } }))
    }

    /// All that must be allowed, the user first.
    #[must_use]
    pub fn checks(&self) -> Vec<ImpersonationCheck> {
        let wanted = &self.wanted;
        let mut checks = Vec::with_capacity(2 + wanted.groups.len() + wanted.extra.len());
        checks.push(match service_account(&wanted.name) {
            Some((namespace, name)) => ImpersonationCheck {
                namespace: namespace.to_owned(),
                ..ImpersonationCheck::new(CORE, "serviceaccounts", name)
            },
            None => ImpersonationCheck::new(CORE, "users", &wanted.name),
        });
        if !wanted.uid.is_empty() {
            checks.push(ImpersonationCheck::new(AUTHENTICATION, "uids", &wanted.uid));
        }
        checks.extend(wanted.groups.iter().map(|group| ImpersonationCheck::new(CORE, "groups", group)));
        for (key, values) in &wanted.extra {
            checks.extend(values.iter().map(|value| ImpersonationCheck {
                subresource: key.clone(),
                ..ImpersonationCheck::new(AUTHENTICATION, "userextras", value)
            }));
        }
        checks
    }

    /// The user that the request has once all checks have passed: a service account is in its groups unless groups were
    /// asked for, and everybody is in the group of those that are authenticated, or that are not.
    #[must_use]
    pub fn into_user(self) -> User {
        let mut user = self.wanted;
        if user.groups.is_empty()
            && let Some((namespace, _)) = service_account(&user.name)
        {
            user.groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
        }
        if user.name == ANONYMOUS && !user.groups.iter().any(|group| group == UNAUTHENTICATED) {
            user.groups.push(UNAUTHENTICATED.to_owned());
        }
        add_authenticated(&mut user);
        user
    }
}

fn text(name: &HeaderName, value: &HeaderValue) -> Result<String, ImpersonationError> {
    std::str::from_utf8(value.as_bytes()).map(str::to_owned).map_err(|_| not_text(name))
}

fn not_text(name: &HeaderName) -> ImpersonationError {
    ImpersonationError::BadRequest(format!("the header {name} is not UTF-8"))
}

/// The key of an extra, whose bytes may be written `%41`. One that is written wrongly is taken as it is, as
/// kube-apiserver does.
fn percent_decoded(key: &str) -> Result<String, ()> {
    if !key.contains('%') {
        return Ok(key.to_owned());
    }
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16)).map(|digit| digit as u8);
    let mut decoded = Vec::with_capacity(key.len());
    let mut bytes = key.as_bytes().iter();
    while let Some(byte) = bytes.next() {
        if *byte != b'%' {
            decoded.push(*byte);
            continue;
        }
        let (Some(high), Some(low)) = (digit(bytes.next()), digit(bytes.next())) else { return Ok(key.to_owned()) };
        decoded.push(high << 4 | low);
    }
    String::from_utf8(decoded).map_err(|_| ())
}

/// Namespace and name of a service account, if the name is exactly that of one that could exist.
fn service_account(name: &str) -> Option<(&str, &str)> {
    let (namespace, name) = name.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    let is_name = name.len() <= 253 && name.split('.').all(is_label);
    (namespace.len() <= 63 && is_label(namespace) && is_name).then_some((namespace, name))
}

/// RFC 1123, without its limit on the length: Kubernetes has none on a part of a longer name.
fn is_label(label: &str) -> bool {
    let inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = label.as_bytes();
    bytes.first().is_some_and(inner)
        && bytes.last().is_some_and(inner)
        && bytes.iter().all(|byte| inner(byte) || *byte == b'-')
}

/// Tells in whose name requests of one cluster are, and remembers what the cluster allowed.
pub struct Impersonator {
    reviewer: BoundedReviewer,
    cache: Arc<VerdictCache>,
}

impl std::fmt::Debug for Impersonator {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Impersonator").field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl Impersonator {
    /// An impersonator that remembers nothing yet. Each review may take `review_timeout`.
    #[must_use]
    pub fn new(
        times: VerdictTimes,
        review_timeout: Duration,
        reviewer: Arc<dyn Reviewer>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { reviewer: BoundedReviewer::new(reviewer, review_timeout), cache: VerdictCache::new(times, clock) }
    }

    /// An impersonator for a new state of the configuration that remembers what this one does, if for as long.
    #[must_use]
    pub fn update(
        &self,
        times: VerdictTimes,
        review_timeout: Duration,
        reviewer: Arc<dyn Reviewer>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let mut updated = Self::new(times, review_timeout, reviewer.clone(), clock);
        updated.reviewer = self.reviewer.update(reviewer, review_timeout);
        if self.cache.times() == times {
            updated.cache = self.cache.clone();
        }
        updated
    }

    /// The user in whose name the request is, if it is another than `requestor`.
    ///
    /// # Errors
    ///
    /// If the headers make no sense, or the requestor may not, or nobody can say.
    pub async fn effective_user(
        &self,
        requestor: &Arc<User>,
        headers: &HeaderMap,
    ) -> Result<Option<Arc<User>>, ImpersonationError> {
        let Some(impersonation) = Impersonation::of(headers)? else { return Ok(None) };
        let mut key = self.cache.key_builder();
        key.user(requestor);
        key.user(&impersonation.wanted);
        let key = key.finish();
        let verdict = match self.cache.get(&key) {
            Some(verdict) => verdict,
            None => {
                let decide = || {
                    let (reviewer, requestor) = (self.reviewer.clone(), requestor.clone());
                    async move { Ok(review(&reviewer, &requestor, impersonation).await?.into()) }
                };
                self.cache.get_or_decide(key, decide).await.map_err(ImpersonationError::Unavailable)?
            }
        };
        verdict.map(Some).map_err(ImpersonationError::Forbidden)
    }
}

async fn review(
    reviewer: &BoundedReviewer,
    requestor: &User,
    impersonation: Impersonation,
) -> Result<Verdict, ReviewError> {
    let mut checks = impersonation.checks().into_iter();
    let user = checks.next().expect("the user is always checked");
    // Who may not have the user costs the cluster one review, however much else was asked for.
    let refusal = match refusal(reviewer, requestor, user).await? {
        Some(refusal) => Some(refusal),
        None => {
            stream::iter(checks)
                .map(|check| refusal(reviewer, requestor, check))
                .buffered(IMPERSONATION_REVIEWS_AT_ONCE)
                .try_filter_map(|refusal| std::future::ready(Ok(refusal)))
                .try_next()
                .await?
        }
    };
    Ok(match refusal {
        Some(refusal) => Err(refusal.into()),
        None => Ok(Arc::new(impersonation.into_user())),
    })
}

/// Why a check does not pass; `None` if it does.
async fn refusal(
    reviewer: &BoundedReviewer,
    requestor: &User,
    check: ImpersonationCheck,
) -> Result<Option<String>, ReviewError> {
    let verdict = reviewer.ask(reviewer.reviewer.review_access(check.attributes(requestor))).await?;
    Ok((!verdict.allowed).then(|| check.refusal(requestor, &verdict.reason)))
}

#[cfg(test)]
#[path = "impersonation_tests.rs"]
mod tests;
