//! Continue tokens: kube-apiserver's names keys of its store, so a tenant gets it sealed.
//!
//! Invariant: a token is good only for the tenant and the list that it was made for, and tells nothing to anybody else.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

/// Where a list goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// The version that the list is of, if zoo pins it.
    #[serde(rename = "v", default, skip_serializing_if = "String::is_empty")]
    pub(crate) version: String,
    /// The namespace (the tenant's name for it) that the next page begins in.
    #[serde(rename = "n", default, skip_serializing_if = "String::is_empty")]
    pub(crate) namespace: String,
    /// kube-apiserver's token within that namespace, or the name of the last object of the page before; empty: its beginning.
    #[serde(rename = "c", default, skip_serializing_if = "String::is_empty")]
    pub(crate) within: String,
}

/// Seals and opens tokens. All zoos with the same authority understand each other's.
pub(crate) struct Sealer {
    key: LessSafeKey,
    random: SystemRandom,
}

impl Sealer {
    pub(crate) fn new(secret: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, secret).expect("it has 32 bytes");
        Self { key: LessSafeKey::new(key), random: SystemRandom::new() }
    }

    /// A token for a place in this list of this tenant.
    pub(crate) fn seal(&self, tenant_uid: &str, list: &str, place: &Place) -> String {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).expect("the system has randomness");
        let mut text = serde_json::to_vec(place).expect("three texts");
        let aad = Aad::from(format!("{tenant_uid}\n{list}"));
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut text)
            .expect("it is far shorter than the cipher allows");
        URL_SAFE_NO_PAD.encode([&nonce[..], &text].concat())
    }

    /// The place that a token stands for; none if it is not one of ours for this tenant and list.
    pub(crate) fn open(&self, tenant_uid: &str, list: &str, token: &str) -> Option<Place> {
        let mut bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (nonce, sealed) = bytes.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let aad = Aad::from(format!("{tenant_uid}\n{list}"));
        let text = self.key.open_in_place(nonce, aad, sealed).ok()?;
        serde_json::from_slice(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_its_tenant_and_list_only() {
        let sealer = Sealer::new(&[7; 32]);
        let place = Place { version: "12".into(), namespace: "default".into(), within: "abc".into() };
        let token = sealer.seal("a", "pods", &place);
        assert_eq!(sealer.open("a", "pods", &token), Some(place));
        assert_eq!(sealer.open("b", "pods", &token), None);
        assert_eq!(sealer.open("a", "secrets", &token), None);
        assert_eq!(Sealer::new(&[8; 32]).open("a", "pods", &token), None);
        assert_eq!(sealer.open("a", "pods", "eyJ2IjoiIn0"), None);
        assert!(!token.contains("default"));
    }
}
