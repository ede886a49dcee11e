//! Tokens of tenants' service accounts: signed and checked by zoo, worthless upstream.
//!
//! They are JSON Web Tokens (RFC 7519) signed with ES256, with the claims that Kubernetes' own have, and one more: the UID of the tenant.
//!
//! Invariant: a token is good for its tenant only, for whom its audiences name, and for as long as the account of its UID is there.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::authz::UserInfo;
use crate::certificates::{self, CertificateError};

/// The audience of a token for the tenant's own API.
pub(crate) const TOKEN_AUDIENCE: &str = "https://kubernetes.default.svc";
/// The key, in what is told of a user, of which credential says who it is.
pub(crate) const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";
/// Longest token that is looked at, in bytes.
pub(crate) const TOKEN_BYTES_MAX: usize = 16 << 10;

/// A service account of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) tenant_uid: String,
    pub(crate) tenant: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    /// Kind in lower case, name and UID of what the token is bound to.
    pub(crate) bound: Option<(String, String, String)>,
}

impl Account {
    /// The user that it is.
    pub(crate) fn user(&self) -> UserInfo {
        let Self { namespace, name, uid, bound, .. } = self;
        let mut extra = Vec::new();
        if let Some((kind, name, uid)) = bound
            && kind == "pod"
        {
            extra.push(("authentication.kubernetes.io/pod-name".to_owned(), vec![name.clone()]));
            extra.push(("authentication.kubernetes.io/pod-uid".to_owned(), vec![uid.clone()]));
        }
        UserInfo {
            username: format!("system:serviceaccount:{namespace}:{name}"),
            uid: uid.clone(),
            groups: vec![
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{namespace}"),
                "system:authenticated".to_owned(),
            ],
            extra,
        }
    }
}

/// What a good token says.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) account: Account,
    /// What tells it from all other tokens.
    pub(crate) id: String,
    /// Those of its audiences that were asked for.
    pub(crate) audiences: Vec<String>,
}

impl Known {
    /// The user that it is of, and which token says so.
    pub(crate) fn user(&self) -> UserInfo {
        let mut user = self.account.user();
        if !self.id.is_empty() {
            // In the keys' order.
            user.extra.insert(0, (CREDENTIAL_ID.to_owned(), vec![format!("JTI={}", self.id)]));
        }
        user
    }
}

/// Signs and checks.
pub(crate) struct Tokens {
    key: EcdsaKeyPair,
    random: SystemRandom,
    key_id: String,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    aud: Vec<String>,
    exp: u64,
    iat: u64,
    iss: String,
    #[serde(default)]
    jti: String,
    nbf: u64,
    sub: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Kubernetes,
    #[serde(rename = "tenancy.kubewharf.io")]
    tenant: Named,
}

#[derive(Serialize, Deserialize)]
struct Kubernetes {
    namespace: String,
    serviceaccount: Named,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<Named>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<Named>,
}

#[derive(Serialize, Deserialize)]
struct Named {
    name: String,
    uid: String,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
}

/// Who signs a tenant's tokens. All tenants' are signed with one key, so whoever checks one without asking tells them apart by this.
fn issuer(tenant_uid: &str) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, format!("issuer of {tenant_uid}").as_bytes());
    format!("{TOKEN_AUDIENCE}/{}", URL_SAFE_NO_PAD.encode(&hash.as_ref()[..15]))
}

/// What OpenID Connect Discovery tells of a tenant's issuer.
pub(crate) fn configuration(tenant_uid: &str, server: &str) -> serde_json::Value {
    json!({
        "issuer": issuer(tenant_uid),
        "jwks_uri": format!("{}/openid/v1/jwks", server.trim_end_matches('/')),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    })
}

impl Tokens {
    /// With the key in this file, which is made if it is not there. All zoos with the same authority need the same one.
    pub(crate) fn open(path: &Path) -> Result<Self, CertificateError> {
        let der = certificates::signing_key(path)?;
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der, &random)
            .map_err(|error| CertificateError::Content(format!("{}: {error}", path.display())))?;
        let hash = ring::digest::digest(&ring::digest::SHA256, key.public_key().as_ref());
        let key_id = URL_SAFE_NO_PAD.encode(hash.as_ref());
        Ok(Self { key, random, key_id })
    }

    /// A token, good between these times in seconds since 1970.
    pub(crate) fn sign(&self, account: &Account, audiences: &[String], begins: u64, ends: u64) -> String {
        let Account { tenant_uid, tenant, namespace, name, uid, bound } = account;
        let of_kind = |wanted: &str| {
            let (kind, name, uid) = bound.as_ref()?;
            (kind == wanted).then(|| Named { name: name.clone(), uid: uid.clone() })
        };
        let claims = Claims {
            aud: audiences.to_vec(),
            exp: ends,
            iat: begins,
            iss: issuer(tenant_uid),
            jti: self.new_id(),
            nbf: begins,
            sub: format!("system:serviceaccount:{namespace}:{name}"),
            kubernetes: Kubernetes {
                namespace: namespace.clone(),
                serviceaccount: Named { name: name.clone(), uid: uid.clone() },
                pod: of_kind("pod"),
                secret: of_kind("secret"),
            },
            tenant: Named { name: tenant.clone(), uid: tenant_uid.clone() },
        };
        let header = json!({ "alg": "ES256", "kid": self.key_id }).to_string();
        let claims = serde_json::to_vec(&claims).expect("texts and numbers");
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = self.key.sign(&self.random, signed.as_bytes()).expect("the system has randomness");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// What a token says, if it is one of ours, good now, and for one of these audiences. Whether its account is still there is another
    /// question.
    pub(crate) fn check(&self, token: &str, audiences: &[String], now: u64) -> Result<Known, &'static str> {
        const MALFORMED: &str = "it is no token of a service account";
        if token.len() > TOKEN_BYTES_MAX {
            return Err(MALFORMED);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(MALFORMED)?;
        let (header, claims) = signed.split_once('.').ok_or(MALFORMED)?;
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| MALFORMED);
        let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| MALFORMED)?;
        if header.alg != "ES256" {
            return Err(MALFORMED);
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref())
            .verify(signed.as_bytes(), &decode(signature)?)
            .map_err(|_| "its signature is not good")?;
        let claims: Claims = serde_json::from_slice(&decode(claims)?).map_err(|_| MALFORMED)?;
        if now < claims.nbf.saturating_sub(60) || now >= claims.exp {
            return Err("it has expired");
        }
        let meant: Vec<String> = claims.aud.into_iter().filter(|audience| audiences.contains(audience)).collect();
        if meant.is_empty() {
            return Err("it is for another audience");
        }
        let bound = |kind: &str, named: Option<Named>| named.map(|named| (kind.to_owned(), named.name, named.uid));
        let Kubernetes { namespace, serviceaccount, pod, secret } = claims.kubernetes;
        let account = Account {
            tenant_uid: claims.tenant.uid,
            tenant: claims.tenant.name,
            namespace,
            name: serviceaccount.name,
            uid: serviceaccount.uid,
            bound: bound("pod", pod).or_else(|| bound("secret", secret)),
        };
        Ok(Known { account, id: claims.jti, audiences: meant })
    }

    /// The key that tokens are signed with, as a set of JSON Web Keys (RFC 7517).
    pub(crate) fn keys(&self) -> serde_json::Value {
        // A point that is not compressed: a mark, and the two coordinates.
        let (x, y) = self.key.public_key().as_ref()[1..].split_at(32);
        let [x, y] = [x, y].map(|coordinate| URL_SAFE_NO_PAD.encode(coordinate));
        json!({ "keys": [{
            "use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256", "x": x, "y": y,
        }] })
    }

    /// A random UUID (RFC 9562, version 4).
    fn new_id(&self) -> String {
        let mut bytes = [0; 16];
        self.random.fill(&mut bytes).expect("the system has randomness");
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let mut id = String::with_capacity(36);
        for (place, byte) in bytes.iter().enumerate() {
            if matches!(place, 4 | 6 | 8 | 10) {
                id.push('-');
            }
            id.push_str(&format!("{byte:02x}"));
        }
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_whom_and_when_it_says() {
        let folder = tempfile::tempdir().expect("a folder");
        let tokens = Tokens::open(&folder.path().join("tokens.key")).expect("made");
        let account = Account {
            tenant_uid: "t".into(),
            tenant: "blue".into(),
            namespace: "default".into(),
            name: "robot".into(),
            uid: "u".into(),
            bound: Some(("pod".into(), "p".into(), "q".into())),
        };
        let audience = vec![TOKEN_AUDIENCE.to_owned()];
        let token = tokens.sign(&account, &audience, 1000, 2000);
        let known = tokens.check(&token, &audience, 1500).expect("good");
        assert_eq!(known.account, account);
        assert_eq!(known.account.user().username, "system:serviceaccount:default:robot");
        assert!(tokens.check(&token, &audience, 2000).is_err(), "expired");
        assert!(tokens.check(&token, &["other".to_owned()], 1500).is_err(), "of another audience");
        let claims = |token: &str| -> Claims {
            let claims = token.split('.').nth(1).expect("three parts");
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).expect("base 64")).expect("JSON")
        };
        let issued = claims(&token);
        assert_eq!(issued.iss, configuration("t", "https://x")["issuer"]);
        assert_ne!(issued.iss, issuer("u"), "all tenants have one key");
        assert_eq!(known.user().extra[0], (CREDENTIAL_ID.to_owned(), vec![format!("JTI={}", issued.jti)]));
        assert_ne!(claims(&tokens.sign(&account, &audience, 1000, 2000)).jti, issued.jti);
        let again = Tokens::open(&folder.path().join("tokens.key")).expect("there");
        assert!(again.check(&token, &audience, 1500).is_ok());
        let foreign = Tokens::open(&folder.path().join("other.key")).expect("made");
        assert!(foreign.check(&token, &audience, 1500).is_err(), "of another key");
        let (signed, signature) = token.rsplit_once('.').expect("signed");
        let (_, claims) = signed.split_once('.').expect("two parts");
        let unsigned = format!("{}.{claims}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#));
        assert!(tokens.check(&unsigned, &audience, 1500).is_err());
        let changed = format!("{}.{signature}", signed.replace('e', "f"));
        assert!(tokens.check(&changed, &audience, 1500).is_err());
    }
}
