//! A hash of what a part of the configuration says, to tell what a reload has changed.

use std::hash::{Hash, Hasher};

use ring::digest::{Context, SHA256};

/// Feeds SHA-256. One way, so secrets may be part of what is hashed.
pub(super) struct Fingerprint(Context);

impl Fingerprint {
    pub(super) fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    pub(super) fn of(value: &impl Hash) -> u128 {
        Self::new().with(value).digest()
    }

    pub(super) fn with(mut self, value: &(impl Hash + ?Sized)) -> Self {
        value.hash(&mut self);
        self
    }

    pub(super) fn digest(self) -> u128 {
        let digest = self.0.finish();
        let (half, _) = digest.as_ref().split_first_chunk::<16>().expect("SHA-256 has 32 bytes");
        u128::from_be_bytes(*half)
    }
}

impl Hasher for Fingerprint {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Asked for by the trait only: see [`Fingerprint::digest`].
    fn finish(&self) -> u64 {
        let digest = self.0.clone().finish();
        let (part, _) = digest.as_ref().split_first_chunk::<8>().expect("SHA-256 has 32 bytes");
        u64::from_be_bytes(*part)
    }
}
