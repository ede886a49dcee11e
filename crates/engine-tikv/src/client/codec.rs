//! How PD writes the bounds of regions.
//!
//! Bounds are keys in groups of eight bytes, each with a byte behind it that tells how many of them are padding, so that the order of keys stays and
//! none is a prefix of another. An empty bound is written as nothing: it means no bound.
//!
//! Invariant: decoding gives what was encoded; anything else is refused.

use bytes::{BufMut, Bytes, BytesMut};

const GROUP_BYTES: usize = 8;
/// The last byte of a group without padding.
const FULL: u8 = 0xff;

/// A key as PD writes it.
pub(crate) fn encode(key: &[u8]) -> Bytes {
    let mut encoded = BytesMut::with_capacity((key.len() / GROUP_BYTES + 1) * (GROUP_BYTES + 1));
    let (groups, rest) = key.as_chunks::<GROUP_BYTES>();
    for group in groups {
        encoded.put_slice(group);
        encoded.put_u8(FULL);
    }
    let padding = GROUP_BYTES - rest.len();
    encoded.put_slice(rest);
    encoded.put_bytes(0, padding);
    encoded.put_u8(FULL - padding as u8);
    encoded.freeze()
}

/// A bound as PD writes it.
pub(crate) fn encode_bound(key: &[u8]) -> Bytes {
    if key.is_empty() { Bytes::new() } else { encode(key) }
}

/// The key of a bound as PD writes it; `None` if it is none.
pub(crate) fn decode_bound(encoded: &[u8]) -> Option<Bytes> {
    let mut key = BytesMut::with_capacity(encoded.len());
    let (groups, rest) = encoded.as_chunks::<{ GROUP_BYTES + 1 }>();
    if !rest.is_empty() {
        return None;
    }
    for (at, group) in groups.iter().enumerate() {
        let padding = usize::from(FULL - group[GROUP_BYTES]);
        let is_last = at + 1 == groups.len();
        if padding > GROUP_BYTES || is_last != (padding > 0) {
            return None;
        }
        let (bytes, zeros) = group[..GROUP_BYTES].split_at(GROUP_BYTES - padding);
        if zeros.iter().any(|zero| *zero != 0) {
            return None;
        }
        key.put_slice(bytes);
    }
    Some(key.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back_and_keep_their_order() {
        let keys: [&[u8]; 9] = [
            b"\0",
            b"\0\0\0\0\0\0\0",
            b"\0\0\0\0\0\0\0\0",
            b"\0\0\0\0\0\0\0\0\0",
            b"a",
            b"a\0",
            b"abcdefg",
            b"abcdefgh",
            b"abcdefghi",
        ];
        for pair in keys.windows(2) {
            assert!(encode(pair[0]) < encode(pair[1]), "{pair:?}");
        }
        for key in keys {
            assert_eq!(decode_bound(&encode(key)).as_deref(), Some(key));
        }
        assert_eq!(encode(b"abc")[..], *b"abc\0\0\0\0\0\xfa");
        assert_eq!(encode(b"abcdefgh")[..], *b"abcdefgh\xff\0\0\0\0\0\0\0\0\xf7");
        assert_eq!(encode_bound(b""), Bytes::new());
        assert_eq!(decode_bound(b""), Some(Bytes::new()));
    }

    #[test]
    fn what_was_not_encoded_is_refused() {
        let cases: [&[u8]; 5] = [
            b"abc",
            b"abcdefgh\xff",
            b"abc\0\0\0\0\0\xf6",
            b"abc\0\0\0\0\x01\xfa",
            b"abc\0\0\0\0\0\xfaabc\0\0\0\0\0\xfa",
        ];
        for damaged in cases {
            assert_eq!(decode_bound(damaged), None, "{damaged:?}");
        }
    }
}
