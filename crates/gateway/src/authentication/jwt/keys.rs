//! The public keys of an issuer: JSON Web Key Sets (RFC 7517), and signatures by them (RFC 7518, RFC 8037).
//!
//! Invariant: a key verifies only by an algorithm of its own kind, and only by the one that it names, if it names one.
//! There are no symmetric algorithms and no `none`, whatever a token or a key says.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};
use serde::Deserialize;

use crate::limits::JWT_KEYS_MAX;

/// An algorithm that a token may be signed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// RSASSA-PSS with SHA-384.
    Ps384,
    /// RSASSA-PSS with SHA-512.
    Ps512,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// By its name in tokens and keys; `None` for all that are not accepted.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "EdDSA" | "Ed25519" => Self::EdDsa,
            _ => return None,
        })
    }

    fn rsa(self) -> Option<&'static RsaParameters> {
        Some(match self {
            Self::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            Self::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
            Self::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
            Self::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
            Self::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
            Self::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
            Self::Es256 | Self::Es384 | Self::EdDsa => return None,
        })
    }
}

/// What a key set says of a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verification {
    /// A key verifies it.
    Good,
    /// There are keys that could, and none does.
    Bad,
    /// There is no key that could.
    NoKey,
}

/// Why a document is no key set, or one without use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// It is not what it should be.
    #[error("it is no JSON Web Key Set: {0}")]
    Malformed(String),
    /// No key is of use.
    #[error(
        "none of its {0} keys is a public key for signatures of a supported kind (RSA of 2048 bits or more, P-256, P-384, Ed25519)"
    )]
    Useless(usize),
}

/// The usable keys of an issuer.
#[derive(Debug)]
pub struct KeySet {
    keys: Vec<Key>,
}

#[derive(Debug)]
struct Key {
    id: Option<String>,
    algorithm: Option<Algorithm>,
    material: Material,
}

#[derive(Debug)]
enum Material {
    Rsa {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
    /// An uncompressed point.
    P256(Vec<u8>),
    /// An uncompressed point.
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

#[derive(Deserialize)]
struct Document {
    /// As they come: one key of a kind that is not known must not spoil the others.
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    kid: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl KeySet {
    /// Reads a document. Keys of other kinds and for other purposes are left out.
    ///
    /// # Errors
    ///
    /// If it is no key set, or no key in it is usable.
    pub fn parse(document: &[u8]) -> Result<Self, KeySetError> {
        let document: Document =
            serde_json::from_slice(document).map_err(|error| KeySetError::Malformed(error.to_string()))?;
        let keys_count = document.keys.len();
        let keys: Vec<Key> = document
            .keys
            .into_iter()
            .filter_map(|value| Jwk::deserialize(value).ok())
            .filter_map(Key::of)
            .take(JWT_KEYS_MAX)
            .collect();
        if keys.is_empty() { Err(KeySetError::Useless(keys_count)) } else { Ok(Self { keys }) }
    }

    /// Verifies a signature by the keys of that id, or by all if the token names none.
    #[must_use]
    pub fn verify(&self, algorithm: Algorithm, id: Option<&str>, message: &[u8], signature: &[u8]) -> Verification {
        let mut result = Verification::NoKey;
        for key in &self.keys {
            let named = id.is_none() || key.id.as_deref() == id;
            if !named || key.algorithm.is_some_and(|of_key| of_key != algorithm) {
                continue;
            }
            match key.material.verify(algorithm, message, signature) {
                Some(true) => return Verification::Good,
                Some(false) => result = Verification::Bad,
                None => {}
            }
        }
        result
    }
}

impl Key {
    fn of(jwk: Jwk) -> Option<Self> {
        let for_signatures = jwk.usage.as_deref().is_none_or(|usage| usage == "sig")
            && jwk.key_ops.as_ref().is_none_or(|operations| operations.iter().any(|operation| operation == "verify"));
        // A key for an algorithm that is not accepted is for nothing else either.
        let algorithm = jwk.alg.as_deref().map(|name| Algorithm::named(name).ok_or(())).transpose().ok()?;
        let material = Material::of(&jwk)?;
        for_signatures.then_some(Self { id: jwk.kid, algorithm, material })
    }
}

impl Material {
    fn of(jwk: &Jwk) -> Option<Self> {
        let number = |text: &Option<String>| URL_SAFE_NO_PAD.decode(text.as_deref()?).ok();
        match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("RSA", _) => {
                // Leading zeros are wrong, and common.
                let trimmed = |text| {
                    number(text).map(|bytes| bytes[bytes.iter().take_while(|byte| **byte == 0).count()..].to_vec())
                };
                let (modulus, exponent) = (trimmed(&jwk.n)?, trimmed(&jwk.e)?);
                ((256..=1024).contains(&modulus.len()) && !exponent.is_empty())
                    .then_some(Self::Rsa { modulus, exponent })
            }
            ("EC", Some("P-256")) => point(number(&jwk.x)?, number(&jwk.y)?, 32).map(Self::P256),
            ("EC", Some("P-384")) => point(number(&jwk.x)?, number(&jwk.y)?, 48).map(Self::P384),
            ("OKP", Some("Ed25519")) => number(&jwk.x).filter(|bytes| bytes.len() == 32).map(Self::Ed25519),
            _ => None,
        }
    }

    /// Whether it verifies; `None` if the algorithm is of another kind.
    fn verify(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> Option<bool> {
        let unparsed = |kind: &'static dyn VerificationAlgorithm, key: &[u8]| {
            Some(UnparsedPublicKey::new(kind, key).verify(message, signature).is_ok())
        };
        match (self, algorithm) {
            (Self::Rsa { modulus, exponent }, _) => {
                let key = RsaPublicKeyComponents { n: modulus, e: exponent };
                Some(key.verify(algorithm.rsa()?, message, signature).is_ok())
            }
            (Self::P256(point), Algorithm::Es256) => unparsed(&signature::ECDSA_P256_SHA256_FIXED, point),
            (Self::P384(point), Algorithm::Es384) => unparsed(&signature::ECDSA_P384_SHA384_FIXED, point),
            (Self::Ed25519(key), Algorithm::EdDsa) => unparsed(&signature::ED25519, key),
            _ => None,
        }
    }
}

fn point(x: Vec<u8>, y: Vec<u8>, coordinate_bytes: usize) -> Option<Vec<u8>> {
    (x.len() == coordinate_bytes && y.len() == coordinate_bytes).then(|| [&[4], x.as_slice(), y.as_slice()].concat())
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
