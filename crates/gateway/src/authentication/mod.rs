//! Who asks: by client certificate, bearer token, or nothing at all; and as whom, if the request impersonates.
//!
//! An [`Authenticator`] serves one cluster. It tries, as kube-apiserver v1.36 does, the certificate, then the token of
//! the `Authorization` header, then that of a WebSocket's sub-protocols. The first that says who it is decides. Only if
//! none was tried at all may the user be anonymous: a bad token is refused, also where anonymous requests are let in.
//! Tokens of configured issuers are judged here ([`jwt`]); all others by the cluster itself, through a [`Reviewer`].
//!
//! Invariant: a user that comes out of here has a name; its groups tell whether it is authenticated. A question that
//! the cluster could not answer is never taken for a no, and never for a yes.

pub mod cache;
pub mod impersonation;
pub mod jwt;
pub mod tls;
pub mod token;
pub mod x509;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::HeaderMap;
use kubewharf_foundation::clock::Clock;
use kubewharf_front::Addresses;
use rustls_pki_types::UnixTime;
use tokio::sync::Semaphore;

use crate::User;
use crate::limits::{REVIEWS_AT_ONCE_MAX, REVIEWS_WAITING_MAX, TOKENS_PER_ADDRESS_MAX};
use crate::user::{ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED};
use cache::{Decision, Verdict, VerdictCache, VerdictTimes};
use jwt::{JwtAuthenticators, JwtOutcome};
use x509::{CertificateError, ClientCertificate, ClientTrust};

/// The key of a user's extra that tells which credential was used; kube-apiserver's.
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// What a cluster says of a token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenVerdict {
    /// Whose it is; `None` if it is not good.
    pub user: Option<User>,
    /// For whom it was made, of the audiences that were asked for.
    pub audiences: Vec<String>,
    /// Why it is not good, if the cluster says.
    pub error: String,
}

/// What somebody wants to do, as a SubjectAccessReview asks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessAttributes<'a> {
    /// Who.
    pub user: &'a User,
    /// For example `impersonate`.
    pub verb: &'a str,
    /// The API group; empty for the core group.
    pub api_group: &'a str,
    /// The API version.
    pub api_version: &'a str,
    /// The resource, in the plural.
    pub resource: &'a str,
    /// The subresource; empty for none.
    pub subresource: &'a str,
    /// The namespace; empty for none.
    pub namespace: &'a str,
    /// The object's name; empty for all.
    pub name: &'a str,
}

/// What a cluster says of an access.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessVerdict {
    /// Whether it is allowed.
    pub allowed: bool,
    /// Why, if the cluster says.
    pub reason: String,
}

/// Why a cluster could not be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    /// There was no answer in time.
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// There was no answer, or none that can be used.
    #[error("{0}")]
    Unavailable(String),
    /// It was not asked: too many questions wait already.
    #[error("too many questions to the cluster wait already, {0}")]
    Busy(&'static str),
}

impl ReviewError {
    /// The HTTP status of the answer to a request that can't be judged for this reason.
    #[must_use]
    pub fn status(&self) -> http::StatusCode {
        match self {
            Self::Busy(_) => http::StatusCode::TOO_MANY_REQUESTS,
            Self::Timeout(_) | Self::Unavailable(_) => http::StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// Asks a cluster. Its answers are remembered by who asks it, so it need not remember them itself.
pub trait Reviewer: Send + Sync {
    /// Whose token it is (TokenReview). No audiences: any that the cluster takes for itself.
    fn review_token<'a>(
        &'a self,
        token: &'a str,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<TokenVerdict, ReviewError>>;

    /// Whether an access is allowed (SubjectAccessReview).
    fn review_access<'a>(
        &'a self,
        attributes: AccessAttributes<'a>,
    ) -> BoxFuture<'a, Result<AccessVerdict, ReviewError>>;
}

/// A reviewer that is asked a bounded number of questions at once, each for a bounded time, while a bounded number waits.
#[derive(Clone)]
struct BoundedReviewer {
    reviewer: Arc<dyn Reviewer>,
    at_once: Arc<Semaphore>,
    /// Places for those that are asked and those that wait.
    places: Arc<Semaphore>,
    timeout: Duration,
}

impl BoundedReviewer {
    fn new(reviewer: Arc<dyn Reviewer>, timeout: Duration) -> Self {
        Self {
            reviewer,
            at_once: Arc::new(Semaphore::new(REVIEWS_AT_ONCE_MAX)),
            places: Arc::new(Semaphore::new(REVIEWS_AT_ONCE_MAX + REVIEWS_WAITING_MAX)),
            timeout,
        }
    }

    /// Another reviewer of the same cluster, which has the same places.
    fn update(&self, reviewer: Arc<dyn Reviewer>, timeout: Duration) -> Self {
        Self { reviewer, timeout, ..self.clone() }
    }

    async fn ask<T>(&self, question: BoxFuture<'_, Result<T, ReviewError>>) -> Result<T, ReviewError> {
        let _place = self.places.try_acquire().map_err(|_| ReviewError::Busy("of all clients together"))?;
        let answer = async {
            let _permit = self.at_once.acquire().await.expect("it is never closed");
            question.await
        };
        match tokio::time::timeout(self.timeout, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(ReviewError::Timeout(self.timeout)),
        }
    }
}

/// Whether, and where, requests without credentials are let in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnonymousSettings {
    /// Whether they are at all.
    pub enabled: bool,
    /// The only paths where they are, exactly; none means all.
    pub paths: Vec<String>,
}

impl AnonymousSettings {
    fn allow(&self, path: &str) -> bool {
        self.enabled && (self.paths.is_empty() || self.paths.iter().any(|allowed| allowed == path))
    }
}

/// How the users of one cluster are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthenticationSettings {
    /// Audiences of which a token that the cluster judges must have one; none means the cluster's own.
    pub audiences: Vec<String>,
    /// How long verdicts on tokens are remembered.
    pub tokens: VerdictTimes,
    /// How long a review by the cluster may take.
    pub review_timeout: Duration,
    /// Requests without credentials.
    pub anonymous: AnonymousSettings,
}

impl Default for AuthenticationSettings {
    fn default() -> Self {
        Self {
            audiences: Vec::new(),
            tokens: VerdictTimes::default(),
            review_timeout: Duration::from_secs(10),
            anonymous: AnonymousSettings::default(),
        }
    }
}

/// By what a user was known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// A client certificate.
    Certificate,
    /// The token of the `Authorization` header.
    Bearer,
    /// A token among the sub-protocols of a WebSocket.
    WebSocket,
    /// Nothing.
    Anonymous,
}

impl Method {
    /// The name in metrics and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Bearer => "bearer",
            Self::WebSocket => "websocket",
            Self::Anonymous => "anonymous",
        }
    }
}

/// A request's user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authenticated {
    /// Who.
    pub user: Arc<User>,
    /// By what.
    pub method: Method,
}

/// Why a request has no user. The text is for logs: a client is told no more than the status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthenticationError {
    /// There are no credentials, and they are needed.
    #[error("the request has no credentials, and anonymous requests are not let in here")]
    NoCredentials,
    /// The credentials are not good: 401.
    #[error("{0}")]
    Refused(Arc<str>),
    /// Nobody could say whether they are: 503, so that a client does not throw away a good token, as it would at the
    /// 401 that kube-apiserver gives here.
    #[error("the token can't be judged: {0}")]
    Unavailable(Arc<ReviewError>),
}

impl AuthenticationError {
    /// The HTTP status of the answer.
    #[must_use]
    pub fn status(&self) -> http::StatusCode {
        match self {
            Self::NoCredentials | Self::Refused(_) => http::StatusCode::UNAUTHORIZED,
            Self::Unavailable(error) => error.status(),
        }
    }
}

/// Tells who asks, for one cluster and one state of its configuration.
pub struct Authenticator {
    settings: AuthenticationSettings,
    trust: Option<Arc<ClientTrust>>,
    judge: Judge,
    cache: Arc<VerdictCache>,
    anonymous: Arc<User>,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for Authenticator {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Authenticator").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Authenticator {
    /// An authenticator that remembers nothing yet. Without `trust`, certificates say nothing; without `jwt`, the
    /// cluster judges all tokens.
    #[must_use]
    pub fn new(
        settings: AuthenticationSettings,
        trust: Option<Arc<ClientTrust>>,
        jwt: Option<Arc<JwtAuthenticators>>,
        reviewer: Arc<dyn Reviewer>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let cache = VerdictCache::new(settings.tokens, clock.clone());
        let judge = Judge {
            jwt,
            reviewer: BoundedReviewer::new(reviewer, settings.review_timeout),
            per_address: Addresses::new(TOKENS_PER_ADDRESS_MAX),
            audiences: settings.audiences.clone().into(),
        };
        Self { settings, trust, judge, cache, anonymous: Arc::new(User::anonymous()), clock }
    }

    /// An authenticator for a new state of the configuration. It remembers what this one does if tokens are judged
    /// alike: by the same audiences, times and issuers. A changed way to the cluster changes nothing about its tokens.
    #[must_use]
    pub fn update(
        &self,
        settings: AuthenticationSettings,
        trust: Option<Arc<ClientTrust>>,
        jwt: Option<Arc<JwtAuthenticators>>,
        reviewer: Arc<dyn Reviewer>,
    ) -> Self {
        let same_jwt = match (&self.judge.jwt, &jwt) {
            (None, None) => true,
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            _ => false,
        };
        let alike =
            same_jwt && self.settings.audiences == settings.audiences && self.settings.tokens == settings.tokens;
        let timeout = settings.review_timeout;
        let mut updated = Self::new(settings, trust, jwt, reviewer.clone(), self.clock.clone());
        updated.judge.reviewer = self.judge.reviewer.update(reviewer, timeout);
        updated.judge.per_address = self.judge.per_address.clone();
        if alike {
            updated.cache = self.cache.clone();
        }
        updated
    }

    /// The settings that it was made with.
    #[must_use]
    pub fn settings(&self) -> &AuthenticationSettings {
        &self.settings
    }

    /// Who asks. `certificate` is that of the connection, and `client` its address; `path` is the URL's, which matters to
    /// anonymous requests only.
    ///
    /// # Errors
    ///
    /// If no credential is good, or none is there and anonymous requests are not let in.
    pub async fn authenticate(
        &self,
        certificate: Option<&ClientCertificate>,
        headers: &HeaderMap,
        path: &str,
        client: IpAddr,
    ) -> Result<Authenticated, AuthenticationError> {
        let mut failure = Failure(None);
        if let (Some(certificate), Some(trust)) = (certificate, &self.trust) {
            match certificate.user(trust, self.now()) {
                Ok(Some(user)) => return Ok(Authenticated { user, method: Method::Certificate }),
                Ok(None) => {}
                Err(error) => failure.add(error.into()),
            }
        }
        match token::bearer(headers) {
            Ok(Some(token)) => match self.judge(token, client).await {
                Ok(user) => return Ok(Authenticated { user, method: Method::Bearer }),
                Err(error) => failure.add(error),
            },
            Ok(None) => {}
            Err(error) => failure.add(error.into()),
        }
        match token::websocket(headers) {
            Ok(Some(token)) => match self.judge(&token, client).await {
                Ok(user) => return Ok(Authenticated { user, method: Method::WebSocket }),
                Err(error) => failure.add(error),
            },
            Ok(None) => {}
            Err(error) => failure.add(error.into()),
        }
        match failure.0 {
            Some(error) => Err(error),
            None if self.settings.anonymous.allow(path) => {
                Ok(Authenticated { user: self.anonymous.clone(), method: Method::Anonymous })
            }
            None => Err(AuthenticationError::NoCredentials),
        }
    }

    async fn judge(&self, token: &str, client: IpAddr) -> Result<Arc<User>, AuthenticationError> {
        let key = self.cache.key(token);
        let verdict = match self.cache.get(&key) {
            Some(verdict) => verdict,
            None => {
                let decide = || {
                    let (judge, token) = (self.judge.clone(), token.to_owned());
                    let now = self.now();
                    async move { judge.decide(&token, now, client).await }
                };
                self.cache.get_or_decide(key, decide).await.map_err(AuthenticationError::Unavailable)?
            }
        };
        verdict.map_err(AuthenticationError::Refused)
    }

    fn now(&self) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_millis(self.clock.wall_ms()))
    }
}

/// What is told if nothing helps: that somebody could not say, or else the first refusal.
struct Failure(Option<AuthenticationError>);

impl Failure {
    fn add(&mut self, error: AuthenticationError) {
        if self.0.is_none() || matches!(error, AuthenticationError::Unavailable(_)) {
            self.0 = Some(error);
        }
    }
}

impl From<CertificateError> for AuthenticationError {
    fn from(error: CertificateError) -> Self {
        Self::Refused(error.to_string().into())
    }
}

impl From<token::TokenError> for AuthenticationError {
    fn from(error: token::TokenError) -> Self {
        Self::Refused(error.to_string().into())
    }
}

/// Judges tokens that nothing is remembered of.
#[derive(Clone)]
struct Judge {
    jwt: Option<Arc<JwtAuthenticators>>,
    reviewer: BoundedReviewer,
    per_address: Arc<Addresses>,
    audiences: Arc<[String]>,
}

impl Judge {
    async fn decide(&self, token: &str, now: UnixTime, client: IpAddr) -> Result<Decision, ReviewError> {
        // Before anything is waited for: an issuer's keys may have to be fetched.
        let Some(_place) = self.per_address.enter(client) else {
            return Err(ReviewError::Busy("of the client's address alone"));
        };
        if let Some(jwt) = &self.jwt {
            match jwt.authenticate(token, now).await {
                JwtOutcome::NotOurs => {}
                JwtOutcome::Verified { user, lifetime } => {
                    return Ok(Decision { verdict: admit(user), lifetime_max: Some(lifetime) });
                }
                JwtOutcome::Refused(error) => return Ok(Verdict::Err(error.to_string().into()).into()),
                JwtOutcome::Unavailable(error) => return Err(ReviewError::Unavailable(error)),
            }
        }
        let question = self.reviewer.reviewer.review_token(token, &self.audiences);
        let verdict = self.reviewer.ask(question).await?;
        Ok(self.verdict(verdict).into())
    }

    fn verdict(&self, verdict: TokenVerdict) -> Verdict {
        let Some(user) = verdict.user else {
            let reason = if verdict.error.is_empty() { "invalid bearer token" } else { &verdict.error };
            return Err(reason.into());
        };
        // An answer without audiences is that of a cluster that does not know of them, and says nothing about ours.
        if !self.audiences.is_empty() && !self.audiences.iter().any(|wanted| verdict.audiences.contains(wanted)) {
            return Err(format!(
                "the token is for the audiences {:?}, and none of {:?}",
                verdict.audiences, self.audiences
            )
            .into());
        }
        admit(user)
    }
}

/// The last step of every credential: a user without a name is none, and others are told to be authenticated.
fn admit(mut user: User) -> Verdict {
    if user.name.is_empty() {
        return Err("the user has no name".into());
    }
    add_authenticated(&mut user);
    Ok(Arc::new(user))
}

/// Adds the group of all authenticated users, unless the user is anonymous or the groups tell already.
fn add_authenticated(user: &mut User) {
    let told = user.groups.iter().any(|group| group == AUTHENTICATED || group == UNAUTHENTICATED);
    if user.name != ANONYMOUS && !told {
        user.groups.push(AUTHENTICATED.to_owned());
    }
}

#[cfg(test)]
mod tests;
