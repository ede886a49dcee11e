//! The stored form of a row's value: the value, then a CRC-32C, little-endian.
//!
//! Invariant: the checksum covers the table, the key's length, the key and the value, so a value found under another key, in another
//! table, or cut elsewhere between key and value does not pass.

use crate::Cause;

/// Bytes that a checksum adds to a value.
pub(super) const CHECKSUM_BYTES: usize = 4;

/// Stands for a table in checksums of the engine's own rows.
pub(super) const ENGINE_TABLE: u8 = 0xff;

/// Checksum of a row.
pub(super) fn checksum(table: u8, key: &[u8], value: &[u8]) -> u32 {
    // Feeding bytes into a CRC is a bijection of its state, so two rows with the same bytes and different starts never agree.
    let start = (u32::from(table) + 1) << 16 | key.len() as u32;
    crc32c::crc32c_append(crc32c::crc32c_append(start, key), value)
}

/// The value of a stored row, if its checksum holds.
#[inline]
pub(super) fn verify<'r>(table: u8, name: &str, key: &[u8], stored: &'r [u8]) -> Result<&'r [u8], Cause> {
    if let Some((value, sum)) = stored.split_last_chunk::<CHECKSUM_BYTES>()
        && u32::from_le_bytes(*sum) == checksum(table, key, value)
    {
        return Ok(value);
    }
    Err(corrupt(name, key))
}

#[cold]
fn corrupt(name: &str, key: &[u8]) -> Cause {
    const SHOWN_BYTES_MAX: usize = 32;
    let mut shown = String::new();
    for byte in key.iter().take(SHOWN_BYTES_MAX) {
        shown.push_str(&format!("{byte:02x}"));
    }
    let more = if key.len() > SHOWN_BYTES_MAX { "…" } else { "" };
    Cause::Corrupt(format!("the row of table {name} with key 0x{shown}{more} ({} bytes) fails its checksum", key.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(table: u8, key: &[u8], value: &[u8]) -> Vec<u8> {
        let mut stored = value.to_vec();
        stored.extend_from_slice(&checksum(table, key, value).to_le_bytes());
        stored
    }

    #[test]
    fn a_row_is_bound_to_its_table_and_key() {
        let stored = store(1, b"key", b"value");
        assert_eq!(verify(1, "t", b"key", &stored), Ok(&b"value"[..]));
        assert!(verify(2, "t", b"key", &stored).is_err());
        assert!(verify(1, "t", b"kez", &stored).is_err());
        // The same bytes in all, cut one byte later.
        assert!(verify(1, "t", b"keyv", &stored[1..]).is_err());
        assert!(verify(1, "t", b"key", b"abc").is_err());
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let stored = store(0, b"k", b"some value");
        for bit in 0..stored.len() * 8 {
            let mut flipped = stored.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(verify(0, "t", b"k", &flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_long_key_is_shortened_in_the_message() {
        let Cause::Corrupt(text) = corrupt("current", &[0xab; 40]) else { panic!("another cause") };
        assert!(text.contains(&format!("0x{}… (40 bytes)", "ab".repeat(32))), "{text}");
    }
}
