//! From a token to a user: the three parts of a signed JSON Web Token (RFC 7519), and what its claims must and do say.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls_pki_types::UnixTime;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::configuration::{ClaimMapping, ExtraMapping, ExtraSource, IssuerSettings};
use super::keys::Algorithm;
use crate::User;
use crate::authentication::CREDENTIAL_ID;
use crate::limits::{JWT_BEGIN_LEEWAY, JWT_BYTES_MAX, JWT_EXPIRY_LEEWAY};

/// Why a token of a known issuer is not good. The texts are for logs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// Its header is not what it should be.
    #[error("the token's header is malformed: {0}")]
    Header(String),
    /// It is signed by an algorithm that is not accepted.
    #[error(
        "the token is signed by {0:?}; accepted are RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384 and EdDSA"
    )]
    Algorithm(String),
    /// It has an extension that must be understood.
    #[error("the token's header has critical extensions, and none is known here")]
    Critical,
    /// No key of the issuer verifies it.
    #[error("no key of the issuer {0} verifies the token's signature")]
    Signature(String),
    /// It is over.
    #[error("the token expired at {0} s since 1970")]
    Expired(u64),
    /// It has not begun.
    #[error("the token begins, or was issued, in the future: at {0} s since 1970")]
    Early(u64),
    /// It is for others.
    #[error("the token's audience is {0}, and none of the configured ones")]
    Audience(String),
    /// A claim is missing.
    #[error("the token has no claim {0:?}")]
    Missing(String),
    /// A claim is not of the right kind.
    #[error("the token's claim {claim:?} is not {expected}")]
    Kind {
        /// Which.
        claim: String,
        /// What it must be.
        expected: &'static str,
    },
    /// A claim does not have the value that it must have.
    #[error("the token's claim {claim:?} is {value:?} and must be {required:?}")]
    Value {
        /// Which.
        claim: String,
        /// What it is.
        value: String,
        /// What it must be.
        required: String,
    },
    /// The address is not verified by the issuer.
    #[error("the token's e-mail address is the user name, and it is not verified")]
    EmailNotVerified,
    /// The groups are somewhere else.
    #[error(
        "the token's claim {0:?} is a distributed or aggregated one, which is not supported; have the issuer put it into the token"
    )]
    Distributed(String),
    /// There is no name.
    #[error("the token names nobody")]
    NoName,
}

/// A token in its parts. Nothing of it is verified yet.
pub struct Token<'a> {
    /// Header and claims as they are signed.
    signed: &'a str,
    header: &'a str,
    signature: &'a str,
    issuer: String,
    claims: Map<String, Value>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<Value>,
    b64: Option<Value>,
}

/// What verifies a token.
pub struct Signature {
    /// By which algorithm.
    pub algorithm: Algorithm,
    /// By which key, if the token says.
    pub key_id: Option<String>,
    /// The signature.
    pub bytes: Vec<u8>,
}

impl<'a> Token<'a> {
    /// Takes a token apart; `None` if it is none, or one that names no issuer.
    #[must_use]
    pub fn parse(token: &'a str) -> Option<Self> {
        if token.len() > JWT_BYTES_MAX {
            return None;
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        if header.is_empty() || claims.contains('.') {
            return None;
        }
        let claims: Map<String, Value> = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
        let issuer = match claims.get("iss")?.as_str()? {
            // Both are in use for one issuer, as OpenID Connect tells.
            "accounts.google.com" => "https://accounts.google.com".to_owned(),
            issuer => issuer.to_owned(),
        };
        Some(Self { signed, header, signature, issuer, claims })
    }

    /// Who claims to have made it.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// What is signed.
    #[must_use]
    pub fn signed(&self) -> &'a [u8] {
        self.signed.as_bytes()
    }

    /// How it is signed.
    ///
    /// # Errors
    ///
    /// If that is not accepted.
    pub fn signature(&self) -> Result<Signature, JwtError> {
        let malformed = |error: &dyn std::fmt::Display| JwtError::Header(error.to_string());
        let header = URL_SAFE_NO_PAD.decode(self.header).map_err(|error| malformed(&error))?;
        let header: Header = serde_json::from_slice(&header).map_err(|error| malformed(&error))?;
        if header.crit.is_some() || header.b64.is_some() {
            return Err(JwtError::Critical);
        }
        let algorithm = Algorithm::named(&header.alg).ok_or(JwtError::Algorithm(header.alg))?;
        let bytes = URL_SAFE_NO_PAD.decode(self.signature).map_err(|error| malformed(&error))?;
        // An empty id is none, as in kube-apiserver.
        let key_id = header.kid.filter(|id| !id.is_empty());
        Ok(Signature { algorithm, key_id, bytes })
    }

    /// The user of a token whose signature was verified, and how much longer it is good.
    ///
    /// # Errors
    ///
    /// If the claims are not what the issuer's settings demand.
    pub fn user(&self, settings: &IssuerSettings, now: UnixTime) -> Result<(User, Duration), JwtError> {
        let claims = Claims(&self.claims);
        let lifetime = claims.lifetime(now)?;
        claims.check_audience(&settings.audiences)?;
        let user = User {
            name: claims.name(&settings.username)?,
            uid: settings.uid.as_deref().map_or(Ok(String::new()), |claim| claims.text(claim).map(str::to_owned))?,
            groups: settings.groups.as_ref().map_or(Ok(Vec::new()), |mapping| claims.groups(mapping))?,
            extra: claims.extra(&settings.extra)?,
        };
        for (claim, required) in &settings.required_claims {
            let value = claims.text(claim)?;
            if value != required {
                let (claim, value, required) = (claim.clone(), value.to_owned(), required.clone());
                return Err(JwtError::Value { claim, value, required });
            }
        }
        Ok((user, lifetime))
    }
}

/// The claims of a verified token.
#[derive(Clone, Copy)]
struct Claims<'a>(&'a Map<String, Value>);

impl<'a> Claims<'a> {
    fn text(self, claim: &str) -> Result<&'a str, JwtError> {
        let value = self.0.get(claim).ok_or_else(|| JwtError::Missing(claim.to_owned()))?;
        value.as_str().ok_or_else(|| kind(claim, "a string"))
    }

    /// A time in seconds since 1970; fractions are cut off.
    fn time(self, claim: &str) -> Result<Option<u64>, JwtError> {
        match self.0.get(claim) {
            None => Ok(None),
            Some(value) => {
                let seconds = value.as_f64().filter(|seconds| seconds.is_finite());
                // The cast saturates, which is right at both ends.
                seconds.map(|seconds| Some(seconds as u64)).ok_or_else(|| kind(claim, "a number"))
            }
        }
    }

    fn lifetime(self, now: UnixTime) -> Result<Duration, JwtError> {
        let now = now.as_secs();
        let expiry = self.time("exp")?.ok_or_else(|| JwtError::Missing("exp".into()))?;
        let left = expiry.saturating_add(JWT_EXPIRY_LEEWAY.as_secs()).saturating_sub(now);
        if left == 0 {
            return Err(JwtError::Expired(expiry));
        }
        for claim in ["nbf", "iat"] {
            match self.time(claim)? {
                Some(begin) if begin > now.saturating_add(JWT_BEGIN_LEEWAY.as_secs()) => {
                    return Err(JwtError::Early(begin));
                }
                _ => {}
            }
        }
        Ok(Duration::from_secs(left))
    }

    fn check_audience(self, accepted: &[String]) -> Result<(), JwtError> {
        let audience = self.0.get("aud").ok_or_else(|| JwtError::Missing("aud".into()))?;
        let is_accepted = |value: &Value| value.as_str().is_some_and(|text| accepted.iter().any(|one| one == text));
        let good = match audience {
            Value::Array(audiences) => audiences.iter().any(is_accepted),
            audience => is_accepted(audience),
        };
        if good { Ok(()) } else { Err(JwtError::Audience(audience.to_string())) }
    }

    fn name(self, mapping: &ClaimMapping) -> Result<String, JwtError> {
        let name = self.text(&mapping.claim)?;
        if mapping.claim == "email" {
            match self.0.get("email_verified") {
                None | Some(Value::Bool(true)) => {}
                Some(Value::Bool(false)) => return Err(JwtError::EmailNotVerified),
                Some(_) => return Err(kind("email_verified", "true or false")),
            }
        }
        // A prefix alone would be one name for all whom the issuer does not name.
        if name.is_empty() {
            return Err(JwtError::NoName);
        }
        Ok(format!("{}{name}", mapping.prefix))
    }

    fn groups(self, mapping: &ClaimMapping) -> Result<Vec<String>, JwtError> {
        match self.0.get(&mapping.claim) {
            None => {
                let names = self.0.get("_claim_names").and_then(Value::as_object);
                // Without its groups, a user might pass a rule that is to stop it.
                if names.is_some_and(|names| names.contains_key(&mapping.claim)) {
                    return Err(JwtError::Distributed(mapping.claim.clone()));
                }
                Ok(Vec::new())
            }
            Some(value) => {
                let groups = texts(value).ok_or_else(|| kind(&mapping.claim, "a string or an array of strings"))?;
                Ok(groups.into_iter().map(|group| format!("{}{group}", mapping.prefix)).collect())
            }
        }
    }

    fn extra(self, mappings: &[ExtraMapping]) -> Result<Vec<(String, Vec<String>)>, JwtError> {
        let mut extra = Vec::with_capacity(1 + mappings.len());
        if let Some(id) = self.0.get("jti").and_then(Value::as_str).filter(|id| !id.is_empty()) {
            extra.push((CREDENTIAL_ID.to_owned(), vec![format!("JTI={id}")]));
        }
        for ExtraMapping { key, source } in mappings {
            let values = match source {
                ExtraSource::Literal(text) => vec![text.clone()],
                ExtraSource::Claim { claim, prefix } => match self.0.get(claim) {
                    None => continue,
                    Some(value) => {
                        let values = texts(value).ok_or_else(|| kind(claim, "a string or an array of strings"))?;
                        values
                            .into_iter()
                            .filter(|value| !value.is_empty())
                            .map(|value| format!("{prefix}{value}"))
                            .collect()
                    }
                },
                ExtraSource::Path(path) => {
                    let mut value: Option<&Value> = None;
                    for step in path {
                        let object = value.map_or(Some(self.0), Value::as_object);
                        value = Some(
                            object
                                .and_then(|object| object.get(step))
                                .ok_or_else(|| JwtError::Missing(path.join(".")))?,
                        );
                    }
                    let values = value
                        .and_then(texts)
                        .ok_or_else(|| kind(&path.join("."), "a string or an array of strings"))?;
                    values.into_iter().filter(|value| !value.is_empty()).map(str::to_owned).collect()
                }
            };
            if !values.is_empty() {
                extra.push((key.clone(), values));
            }
        }
        Ok(extra)
    }
}

fn kind(claim: &str, expected: &'static str) -> JwtError {
    JwtError::Kind { claim: claim.to_owned(), expected }
}

/// The strings of a string, an array of strings, or null.
fn texts(value: &Value) -> Option<Vec<&str>> {
    match value {
        Value::Null => Some(Vec::new()),
        Value::String(text) => Some(vec![text]),
        Value::Array(values) => values.iter().map(Value::as_str).collect(),
        _ => None,
    }
}
