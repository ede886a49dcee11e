//! JSON Web Tokens of issuers that the gateway knows itself, by Kubernetes' structured authentication configuration
//! (`apiserver.config.k8s.io`): [`configuration`] says whom to believe what, [`issuer`] has the issuer's keys,
//! [`claims`] makes a user of a token, and [`fetch`] gets documents.
//!
//! Invariant: no claim is looked at before the signature was verified, by a key of the issuer and an asymmetric
//! algorithm; only the name of the issuer is, to find its keys. A token of a known issuer is judged here alone, and
//! never shown to the cluster.

pub mod claims;
pub mod configuration;
pub mod fetch;
pub mod issuer;
pub mod keys;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kubewharf_foundation::clock::Clock;
use rustls_pki_types::UnixTime;

use crate::User;
use claims::JwtError;
use configuration::IssuerSettings;
use fetch::{Fetch, FetchError, HttpsFetch};
use issuer::Issuer;

/// What is said of a token.
#[derive(Debug)]
pub enum JwtOutcome {
    /// It is of no issuer that is known here, or not a JSON Web Token at all.
    NotOurs,
    /// It is good.
    Verified {
        /// Whose it is. The group of all authenticated users is not added yet.
        user: User,
        /// How much longer it is good.
        lifetime: Duration,
    },
    /// It is not good.
    Refused(JwtError),
    /// The issuer's keys are not known, and could not be learnt. The text says why.
    Unavailable(String),
}

/// All issuers of one configuration.
pub struct JwtAuthenticators {
    issuers: HashMap<String, Arc<Issuer>>,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for JwtAuthenticators {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("JwtAuthenticators").field("issuers", &self.issuers.keys()).finish_non_exhaustive()
    }
}

/// How an issuer's documents are got.
pub type FetchFactory<'a> = &'a dyn Fn(&IssuerSettings) -> Result<Arc<dyn Fetch>, FetchError>;

/// Documents are got by HTTPS, with the authorities that the issuer's settings name.
///
/// # Errors
///
/// If those, or the system's, can't be read.
pub fn over_https(settings: &IssuerSettings) -> Result<Arc<dyn Fetch>, FetchError> {
    Ok(Arc::new(HttpsFetch::new(settings.certificate_authority.as_deref())?))
}

impl JwtAuthenticators {
    /// Knows these issuers, but none of their keys yet.
    ///
    /// # Errors
    ///
    /// That of `fetch`, which is usually [`over_https`].
    pub fn new(
        settings: &[IssuerSettings],
        clock: Arc<dyn Clock>,
        fetch: FetchFactory<'_>,
    ) -> Result<Arc<Self>, FetchError> {
        Self::with_known(settings, &HashMap::new(), clock, fetch)
    }

    /// Knows these issuers. Those whose settings have not changed keep their keys; if none has, it is the same object
    /// again.
    ///
    /// # Errors
    ///
    /// As [`JwtAuthenticators::new`].
    pub fn update(
        self: &Arc<Self>,
        settings: &[IssuerSettings],
        fetch: FetchFactory<'_>,
    ) -> Result<Arc<Self>, FetchError> {
        let known = |settings: &IssuerSettings| {
            self.issuers.get(&settings.url).is_some_and(|issuer| issuer.settings() == settings)
        };
        if settings.len() == self.issuers.len() && settings.iter().all(known) {
            return Ok(self.clone());
        }
        Self::with_known(settings, &self.issuers, self.clock.clone(), fetch)
    }

    fn with_known(
        settings: &[IssuerSettings],
        known: &HashMap<String, Arc<Issuer>>,
        clock: Arc<dyn Clock>,
        fetch: FetchFactory<'_>,
    ) -> Result<Arc<Self>, FetchError> {
        let mut issuers = HashMap::with_capacity(settings.len());
        for settings in settings {
            let issuer = match known.get(&settings.url) {
                Some(issuer) if issuer.settings() == settings => issuer.clone(),
                _ => Issuer::new(settings.clone(), fetch(settings)?, clock.clone()),
            };
            issuers.insert(settings.url.clone(), issuer);
        }
        Ok(Arc::new(Self { issuers, clock }))
    }

    /// Begins to get the keys of all issuers that have none yet, so that their first token need not wait. Needs a Tokio
    /// runtime.
    pub fn prefetch(&self) {
        for issuer in self.issuers.values() {
            issuer.prefetch();
        }
    }

    /// Judges a token. May wait for the keys of its issuer.
    pub async fn authenticate(&self, token: &str, now: UnixTime) -> JwtOutcome {
        let Some(token) = claims::Token::parse(token) else { return JwtOutcome::NotOurs };
        match self.issuers.get(token.issuer()) {
            Some(issuer) => issuer.authenticate(&token, now).await,
            None => JwtOutcome::NotOurs,
        }
    }
}

#[cfg(test)]
mod tests;
