//! One issuer and its keys: found by OpenID Connect discovery, looked at again when they are old, or when a token is
//! signed by none of them.
//!
//! Invariants: keys are looked at at most once in [`JWT_FETCH_INTERVAL_MIN`], by all requests together, whatever tokens
//! clients make up; a look that has begun goes on when the client that caused it hangs up; an issuer that can't be
//! reached costs nobody its last good keys.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use kubewharf_foundation::clock::Clock;
use parking_lot::Mutex;
use rustls_pki_types::UnixTime;
use serde::Deserialize;

use super::JwtOutcome;
use super::claims::{JwtError, Signature, Token};
use super::configuration::IssuerSettings;
use super::fetch::{Fetch, Fetched};
use super::keys::{KeySet, Verification};
use crate::limits::{JWT_FETCH_INTERVAL_MIN, JWT_FETCH_TIMEOUT, JWT_REFRESH_DEFAULT, JWT_REFRESH_MAX, JWT_REFRESH_MIN};

/// An issuer of tokens.
pub struct Issuer {
    settings: IssuerSettings,
    fetch: Arc<dyn Fetch>,
    clock: Arc<dyn Clock>,
    keys: ArcSwapOption<Keys>,
    looks: Mutex<Looks>,
}

/// Keys as they were at some time.
struct Keys {
    set: KeySet,
    old_at_ms: u64,
}

/// What a look brought: keys, or why there are none.
type Found = Result<Arc<Keys>, Arc<str>>;

/// Looks at the keys, so that there is one at a time.
#[derive(Default)]
struct Looks {
    running: Option<Shared<BoxFuture<'static, Found>>>,
    /// When the last one ended, and how.
    last: Option<(u64, Result<(), Arc<str>>)>,
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Issuer").field("url", &self.settings.url).finish_non_exhaustive()
    }
}

impl Issuer {
    /// An issuer whose keys are not known yet.
    #[must_use]
    pub fn new(settings: IssuerSettings, fetch: Arc<dyn Fetch>, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { settings, fetch, clock, keys: ArcSwapOption::empty(), looks: Mutex::default() })
    }

    /// Its settings.
    #[must_use]
    pub fn settings(&self) -> &IssuerSettings {
        &self.settings
    }

    /// Begins to get the keys if there are none. Needs a Tokio runtime.
    pub fn prefetch(self: &Arc<Self>) {
        if self.keys.load().is_none() {
            drop(self.look());
        }
    }

    /// Judges a token that says it is of this issuer. May wait for keys.
    pub async fn authenticate(self: &Arc<Self>, token: &Token<'_>, now: UnixTime) -> JwtOutcome {
        let signature = match token.signature() {
            Ok(signature) => signature,
            Err(error) => return JwtOutcome::Refused(error),
        };
        match self.verify(token, &signature).await {
            Ok(Verification::Good) => {}
            Ok(Verification::Bad | Verification::NoKey) => {
                return JwtOutcome::Refused(JwtError::Signature(self.settings.url.clone()));
            }
            Err(problem) => return JwtOutcome::Unavailable(problem),
        }
        match token.user(&self.settings, now) {
            Ok((user, lifetime)) => JwtOutcome::Verified { user, lifetime },
            Err(error) => JwtOutcome::Refused(error),
        }
    }

    async fn verify(self: &Arc<Self>, token: &Token<'_>, signature: &Signature) -> Result<Verification, String> {
        let verify = |keys: &Keys| {
            keys.set.verify(signature.algorithm, signature.key_id.as_deref(), token.signed(), &signature.bytes)
        };
        let known = self.keys.load_full();
        let first = known.as_deref().map_or(Verification::NoKey, verify);
        if first == Verification::Good {
            if known.as_ref().is_some_and(|keys| self.clock.monotonic_ms() >= keys.old_at_ms) {
                // The next token will have the new keys; this one need not wait.
                drop(self.look());
            }
            return Ok(first);
        }
        match self.look().await {
            // Nothing new: forgeries are not worth a second look.
            Ok(keys) if known.as_ref().is_some_and(|known| Arc::ptr_eq(known, &keys)) => Ok(first),
            Ok(keys) => Ok(verify(&keys)),
            // A key that should verify it and does not is as good as an answer.
            Err(_) if first == Verification::Bad => Ok(first),
            Err(problem) => Err(format!("the keys of the issuer {}: {problem}", self.settings.url)),
        }
    }

    /// Looks at the keys, together with all who want that now, or tells what the last look has brought if that was only
    /// just.
    fn look(self: &Arc<Self>) -> Shared<BoxFuture<'static, Found>> {
        let mut looks = self.looks.lock();
        if let Some(running) = &looks.running {
            return running.clone();
        }
        if let Some((at_ms, outcome)) = &looks.last
            && self.clock.monotonic_ms().saturating_sub(*at_ms) < JWT_FETCH_INTERVAL_MIN.as_millis() as u64
        {
            let found = match (outcome, self.keys.load_full()) {
                (Err(problem), _) => Err(problem.clone()),
                (Ok(()), keys) => keys.ok_or_else(|| "they are gone".into()),
            };
            return std::future::ready(found).boxed().shared();
        }
        let look = tokio::spawn({
            let this = self.clone();
            async move { this.look_now().await }
        });
        let running = async move { look.await.unwrap_or_else(|error| Err(error.to_string().into())) }.boxed().shared();
        looks.running = Some(running.clone());
        running
    }

    async fn look_now(&self) -> Found {
        /// Also a look that panics has ended.
        struct End<'a>(&'a Issuer, Result<(), Arc<str>>);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                let outcome = std::mem::replace(&mut self.1, Ok(()));
                let mut looks = self.0.looks.lock();
                looks.running = None;
                looks.last = Some((self.0.clock.monotonic_ms(), outcome));
            }
        }
        let mut end = End(self, Err("the look at them broke off".into()));
        let found: Found = self.find().await.map_err(Arc::from);
        match &found {
            Ok(keys) => {
                self.keys.store(Some(keys.clone()));
                end.1 = Ok(());
            }
            Err(problem) => {
                tracing::warn!(issuer = %self.settings.url, %problem, "can't get the keys of a token issuer");
                end.1 = Err(problem.clone());
            }
        }
        drop(end);
        found
    }

    async fn find(&self) -> Result<Arc<Keys>, String> {
        let url = &self.settings.discovery_url;
        let discovery: Discovery = serde_json::from_slice(&self.fetch(url).await?.body)
            .map_err(|error| format!("{url}: it is no OpenID Connect discovery document: {error}"))?;
        if discovery.issuer != self.settings.url {
            return Err(format!("{url}: it is of the issuer {:?}", discovery.issuer));
        }
        let url = &discovery.jwks_uri;
        if !url.starts_with("https://") {
            return Err(format!("jwks_uri {url:?}: it must begin with https://"));
        }
        let Fetched { body, max_age } = self.fetch(url).await?;
        let set = KeySet::parse(&body).map_err(|error| format!("{url}: {error}"))?;
        let refresh = max_age.unwrap_or(JWT_REFRESH_DEFAULT).clamp(JWT_REFRESH_MIN, JWT_REFRESH_MAX);
        let old_at_ms = self.clock.monotonic_ms() + millis(refresh);
        Ok(Arc::new(Keys { set, old_at_ms }))
    }

    async fn fetch(&self, url: &str) -> Result<Fetched, String> {
        match tokio::time::timeout(JWT_FETCH_TIMEOUT, self.fetch.fetch(url)).await {
            Ok(Ok(fetched)) => Ok(fetched),
            Ok(Err(error)) => Err(format!("{url}: {error}")),
            Err(_) => Err(format!("{url}: no answer within {} s", JWT_FETCH_TIMEOUT.as_secs())),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}
