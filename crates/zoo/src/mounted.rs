//! Tokens that kubelets mount in tenants' pods. The host signs them, for audiences that only zoo takes ([`crate::pods`]), and the apiserver
//! behind judges them: whether the account, the pod and the node that a token is bound to are still there.
//!
//! Invariant: a token is taken only for the tenant that its audience names, and only as an account in one of that tenant's namespaces. The
//! apiserver is asked about nothing that does not claim to be for a tenant that there is, and about few tokens at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Method;
use kubewharf_front::places::Places;
use kubewharf_kube_api::review::{TOKEN_REVIEW_PATH, TokenReviewStatus};
use kubewharf_kube_api::users::{ALL_AUTHENTICATED, service_account_groups, service_account_of, service_account_user};
use parking_lot::Mutex;
use ring::digest::{Context, SHA256};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::authz::UserInfo;
use crate::limits::{
    OWN_ANSWER_BYTES_MAX, VERDICT_LASTS, VERDICTS_AT_ONCE, VERDICTS_MAX, VERDICTS_PATIENCE, VERDICTS_PER_TENANT_MAX,
};
use crate::names::{Names, TenantId};
use crate::pods::{AUDIENCE_START, audience_inward, audience_outward};
use crate::tokens::{TOKEN_AUDIENCE, TOKEN_BYTES_MAX};
use crate::upstream::{Upstream, UpstreamError};

/// What the keys of what a token says beyond its user begin with.
const EXTRA_START: &str = "authentication.kubernetes.io/";

/// What a good token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Judged {
    /// Who it is, in the tenant.
    pub(crate) user: UserInfo,
    /// Those of its audiences that were asked for, as the tenant knows them.
    pub(crate) audiences: Vec<String>,
}

/// Why a token was not judged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MountedError {
    /// Too many others are.
    #[error("too many tokens are to be judged at once")]
    TooMany,
    /// The apiserver behind gave no answer.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
}

/// Judges, and remembers it for a moment.
pub(crate) struct Mounted {
    turns: Semaphore,
    /// Tokens of each tenant that are judged or wait for it: nobody may take all turns.
    of_tenant: Arc<Places<TenantId>>,
    /// Good ones and others, so that these can't push out those.
    remembered: [Mutex<Remembered>; 2],
}

/// A hash of the tenant, the token and the audiences.
type Key = [u8; 32];
/// Verdicts, and when they were given.
type Remembered = HashMap<Key, (Instant, Option<Judged>)>;

#[derive(Deserialize)]
struct Claims {
    aud: Vec<String>,
    exp: u64,
    sub: String,
}

/// Whose a token claims to be. Nothing of it is proven.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Claimed {
    /// The UID of the tenant.
    pub(crate) tenant_uid: String,
    /// The namespace of the account upstream.
    namespace: String,
}

#[derive(Deserialize)]
struct Review {
    #[serde(default)]
    status: TokenReviewStatus,
}

/// Whose a token claims to be, if it is neither malformed nor too old.
pub(crate) fn claimed(token: &str, now: u64) -> Option<Claimed> {
    if token.len() > TOKEN_BYTES_MAX {
        return None;
    }
    let mut parts = token.split('.');
    let (_, claims, _) = (parts.next()?, parts.next()?, parts.next()?);
    let claims: Claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
    let tenants = claims.aud.iter().filter_map(|audience| audience.strip_prefix(AUDIENCE_START));
    let uid = tenants.map(|rest| rest.split_once(':').map_or(rest, |(uid, _)| uid)).next()?;
    let (namespace, _) = service_account_of(&claims.sub)?;
    (now < claims.exp).then(|| Claimed { tenant_uid: uid.to_owned(), namespace: namespace.to_owned() })
}

impl Mounted {
    pub(crate) fn new() -> Self {
        Self {
            turns: Semaphore::new(VERDICTS_AT_ONCE),
            of_tenant: Places::new(VERDICTS_PER_TENANT_MAX),
            remembered: Default::default(),
        }
    }

    /// What a token says that is for one of these audiences of the tenant; none if it is not good.
    pub(crate) async fn judge(
        &self,
        upstream: &Upstream,
        names: &Names,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<Judged>, MountedError> {
        let key = key_of(names, token, audiences);
        if let Some(remembered) = self.recall(&key) {
            return Ok(remembered);
        }
        if claimed(token, 0).is_none_or(|claimed| names.outward(&claimed.namespace).is_none()) {
            return Ok(None);
        }
        let _place = self.of_tenant.enter(names.id()).ok_or(MountedError::TooMany)?;
        let turn = tokio::time::timeout(VERDICTS_PATIENCE, self.turns.acquire()).await;
        let _turn = turn.map_err(|_| MountedError::TooMany)?.expect("it is never closed");
        // Somebody else may have asked meanwhile.
        if let Some(remembered) = self.recall(&key) {
            return Ok(remembered);
        }
        let question = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "spec": { "token": token, "audiences": upstream_audiences(names, audiences) },
        });
        let answer: Review =
            upstream.own_json(Method::POST, TOKEN_REVIEW_PATH, &question, OWN_ANSWER_BYTES_MAX).await?;
        let judged = judged(names, audiences, answer.status);
        // A tenant's own questions about its tokens can be of any number.
        if *audiences == [TOKEN_AUDIENCE.to_owned()] {
            self.remember(key, judged.clone());
        }
        Ok(judged)
    }

    fn recall(&self, key: &Key) -> Option<Option<Judged>> {
        let fresh = |remembered: &Mutex<Remembered>| {
            let remembered = remembered.lock();
            let (since, judged) = remembered.get(key)?;
            (since.elapsed() < VERDICT_LASTS).then(|| judged.clone())
        };
        self.remembered.iter().find_map(fresh)
    }

    fn remember(&self, key: Key, judged: Option<Judged>) {
        let mut remembered = self.remembered[usize::from(judged.is_none())].lock();
        if remembered.len() >= VERDICTS_MAX {
            remembered.retain(|_, (since, _)| since.elapsed() < VERDICT_LASTS);
        }
        // All are fresh: it is asked again for this one.
        if remembered.len() < VERDICTS_MAX {
            remembered.insert(key, (Instant::now(), judged));
        }
    }
}

fn key_of(names: &Names, token: &str, audiences: &[String]) -> Key {
    let mut context = Context::new(&SHA256);
    let parts = [names.uid(), token].into_iter().chain(audiences.iter().map(String::as_str));
    for part in parts {
        context.update(&(part.len() as u64).to_le_bytes());
        context.update(part.as_bytes());
    }
    context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// These audiences of the tenant as they are upstream. A pod that asks for none gets a token for the tenant's API.
fn upstream_audiences(names: &Names, audiences: &[String]) -> Vec<String> {
    let own = audiences.iter().any(|audience| audience == TOKEN_AUDIENCE).then_some("");
    let named = audiences.iter().map(String::as_str).filter(|audience| !audience.is_empty());
    own.into_iter().chain(named).map(|audience| audience_inward(names.uid(), audience)).collect()
}

/// What the apiserver's verdict means in the tenant.
fn judged(names: &Names, audiences: &[String], status: TokenReviewStatus) -> Option<Judged> {
    if !status.authenticated {
        return None;
    }
    let (namespace, name) = service_account_of(&status.user.username)?;
    let namespace = names.outward(namespace)?;
    let meant = status.audiences.iter().filter_map(|audience| audience_outward(names.uid(), audience));
    let mut meant: Vec<String> =
        meant.map(|audience| if audience.is_empty() { TOKEN_AUDIENCE } else { audience }.to_owned()).collect();
    meant.dedup();
    meant.retain(|audience| audiences.contains(audience));
    if meant.is_empty() {
        return None;
    }
    let mut groups = service_account_groups(namespace);
    groups.push(ALL_AUTHENTICATED.to_owned());
    let user = UserInfo {
        username: service_account_user(namespace, name),
        uid: status.user.uid,
        groups,
        extra: status.user.extra.into_iter().filter(|(key, _)| key.starts_with(EXTRA_START)).collect(),
    };
    Some(Judged { user, audiences: meant })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(namespace: &str, audiences: &[String]) -> TokenReviewStatus {
        TokenReviewStatus {
            authenticated: true,
            user: UserInfo {
                username: format!("system:serviceaccount:{namespace}:robot"),
                uid: "u".into(),
                groups: vec!["system:masters".into()],
                extra: vec![
                    ("authentication.kubernetes.io/pod-name".into(), vec!["p".into()]),
                    ("elsewhere".into(), vec!["x".into()]),
                ],
            },
            audiences: audiences.to_vec(),
            ..TokenReviewStatus::default()
        }
    }

    #[test]
    fn only_an_account_of_the_tenant_is_taken_and_only_for_its_own_audience() {
        let (own, other) = (Names::of_uid("own"), Names::of_uid("other"));
        let api = [TOKEN_AUDIENCE.to_owned()];
        let for_own = [audience_inward("own", "")];
        let good = judged(&own, &api, status(&own.inward("default"), &for_own)).expect("good");
        assert_eq!(good.user.username, "system:serviceaccount:default:robot");
        assert_eq!(
            good.user.groups,
            ["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"]
        );
        assert_eq!(good.user.extra.len(), 1, "what others know of it is not told");
        assert_eq!(good.audiences, api);
        assert_eq!(judged(&own, &api, status(&other.inward("default"), &for_own)), None);
        assert_eq!(judged(&own, &api, status("default", &for_own)), None, "an account of the host");
        assert_eq!(judged(&other, &api, status(&other.inward("default"), &for_own)), None);
        assert_eq!(judged(&own, &api, status(&own.inward("default"), &[audience_inward("own", "vault")])), None);
        assert_eq!(judged(&own, &api, status(&own.inward("default"), &api)), None, "a token for the host's API");
        let refused = TokenReviewStatus { authenticated: false, ..status(&own.inward("default"), &for_own) };
        assert_eq!(judged(&own, &api, refused), None);
    }

    #[test]
    fn a_token_says_whom_it_claims_to_be_for() {
        let token = |claims: serde_json::Value| format!("e30.{}.x", URL_SAFE_NO_PAD.encode(claims.to_string()));
        for (audience, tenant) in [("zoo:u", Some("u")), ("zoo:u:vault", Some("u")), ("https://x", None)] {
            let robot = token(json!({ "aud": [audience], "exp": 10, "sub": "system:serviceaccount:kz-default:robot" }));
            assert_eq!(claimed(&robot, 9).map(|claimed| claimed.tenant_uid).as_deref(), tenant);
            assert_eq!(claimed(&robot, 10), None, "it is too old");
            assert_eq!(claimed(&token(json!({ "aud": [audience], "exp": 10, "sub": "jane" })), 9), None);
        }
        for malformed in ["", "a", "a.b", "a.b.c", "e30.e30.x"] {
            assert_eq!(claimed(malformed, 0), None);
        }
    }

    #[test]
    fn bad_tokens_push_out_no_good_one() {
        let (mounted, names) = (Mounted::new(), Names::of_uid("own"));
        let api = [TOKEN_AUDIENCE.to_owned()];
        let good = judged(&names, &api, status(&names.inward("default"), &[audience_inward("own", "")]));
        mounted.remember(key_of(&names, "good", &api), good.clone());
        for number in 0..VERDICTS_MAX + 10 {
            mounted.remember(key_of(&names, &number.to_string(), &api), None);
        }
        assert_eq!(mounted.recall(&key_of(&names, "good", &api)), Some(good));
        assert_eq!(mounted.remembered[1].lock().len(), VERDICTS_MAX);
        assert_eq!(mounted.recall(&key_of(&Names::of_uid("other"), "good", &api)), None);
    }
}
