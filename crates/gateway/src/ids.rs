//! Ids, and other numbers that nobody chooses.
//!
//! Invariant: no two are the same, but by a chance that never comes.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use http::HeaderValue;

/// A random UUID (RFC 9562, version 4), by which the request can be found in the apiserver's audit log.
pub(crate) fn audit_id() -> HeaderValue {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut bytes = random_u128().to_be_bytes();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = [b'-'; 36];
    let mut place = 0;
    for (number, byte) in bytes.into_iter().enumerate() {
        if matches!(number, 4 | 6 | 8 | 10) {
            place += 1;
        }
        text[place] = DIGITS[usize::from(byte >> 4)];
        text[place + 1] = DIGITS[usize::from(byte & 15)];
        place += 2;
    }
    unrepeated(HeaderValue::from_bytes(&text).expect("a UUID is ASCII"))
}

/// A value that never comes again. Marked so, HPACK sends it as it is, instead of giving it a place in both ends' tables of headers, from
/// where it would only drive out those that do come again.
pub(crate) fn unrepeated(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

/// Unpredictable enough to tell requests apart; no secret.
pub(crate) fn random_u128() -> u128 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    static KEYS: LazyLock<(RandomState, RandomState)> = LazyLock::new(Default::default);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    u128::from(KEYS.0.hash_one(number)) << 64 | u128::from(KEYS.1.hash_one(number))
}
