//! The stored form of a row: its parts and their checksum.
//!
//! A row is stored as one LMDB row, or, if that would need more than one page, as several. The LMDB key is the row's key and the part's
//! number, two bytes, big-endian. The first part has number 0 and ends with a trailer; the others are pieces of the value:
//!
//! | value | first part | others |
//! |---|---|---|
//! | fits | value, CRC-32C, 0 | |
//! | does not fit | piece, length of the whole value, CRC-32C, 1 | pieces, each a page but for the last |
//!
//! Why parts: LMDB puts a value larger than a page on neighbouring pages, and looks for such a run by walking its whole list of free
//! pages, for every write, and longer and longer the more fragmented the file is. For single pages it takes the next one.
//!
//! Why the number behind the key: it keeps the order of the rows (of two keys the lesser stays the lesser, also where one begins with
//! the other, because 0 is the least number), and keeps a row's parts on the same leaf page in nearly all cases. No two parts have the same
//! LMDB key: what is in front of the last two bytes tells the row.
//!
//! Invariant: the checksum covers the table, the form, the key's length, the key and the whole value, so a value found under another key,
//! in another table, cut elsewhere between key and value, or put together from parts of two versions does not pass.

use smallvec::SmallVec;

use super::VALUE_BYTES_MAX;
use crate::Cause;

/// Stands for a table in checksums of the engine's own rows.
pub(super) const ENGINE_TABLE: u8 = 0xff;

/// Bytes that the number of the part adds to a key.
pub(super) const PART_NUMBER_BYTES: usize = 2;

/// Bytes of an LMDB page that hold no row.
const PAGE_HEADER_BYTES: usize = 16;

/// Bytes of a row's header on an LMDB page, with its offset, and one by which lengths are made even.
const NODE_BYTES: usize = 8 + 2 + 1;

/// Bytes of a row on a leaf that stand for a value on a page of its own.
const PAGE_NUMBER_BYTES: usize = 8;

const CHECKSUM_BYTES: usize = 4;
const LENGTH_BYTES: usize = 4;
const WHOLE: u8 = 0;
const SPLIT: u8 = 1;
/// Bytes behind a value that fits.
const WHOLE_TRAILER_BYTES: usize = CHECKSUM_BYTES + 1;
const SPLIT_TRAILER_BYTES: usize = LENGTH_BYTES + CHECKSUM_BYTES + 1;

/// An LMDB key: a row's key and a part's number.
pub(super) struct PartKey(SmallVec<[u8; 256]>);

impl PartKey {
    /// The key of the first part.
    pub(super) fn first(key: &[u8]) -> Self {
        let mut bytes = SmallVec::from_slice(key);
        bytes.extend_from_slice(&[0; PART_NUMBER_BYTES]);
        Self(bytes)
    }

    /// Turns to the part with this number.
    pub(super) fn turn_to(&mut self, part: u16) -> &[u8] {
        let start = self.0.len() - PART_NUMBER_BYTES;
        self.0[start..].copy_from_slice(&part.to_be_bytes());
        &self.0
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The row's key and the part's number of an LMDB key; `None` if it is too short to be one.
pub(super) fn split_part_key(bytes: &[u8]) -> Option<(&[u8], u16)> {
    let (key, part) = bytes.split_last_chunk()?;
    Some((key, u16::from_be_bytes(*part)))
}

/// How values are cut for pages of one size.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    /// Bytes of an LMDB value that takes one page.
    page_value_bytes: usize,
}

impl Cut {
    pub(super) fn new(page_bytes: usize) -> Self {
        Self { page_value_bytes: page_bytes - PAGE_HEADER_BYTES }
    }

    /// Writes the first part of a row to `first`, and returns the pieces for the others.
    pub(super) fn encode<'v>(
        self,
        table: u8,
        key: &[u8],
        value: &'v [u8],
        first: &mut Vec<u8>,
    ) -> impl ExactSizeIterator<Item = &'v [u8]> + use<'v> {
        first.clear();
        let is_whole = value.len() <= self.page_value_bytes - WHOLE_TRAILER_BYTES;
        let (piece, rest) = if is_whole { (value, &[][..]) } else { value.split_at(self.first_piece_bytes()) };
        first.extend_from_slice(piece);
        let form = if is_whole { WHOLE } else { SPLIT };
        if form == SPLIT {
            // The limit on values is far below 4 GiB.
            first.extend_from_slice(&(value.len() as u32).to_le_bytes());
        }
        first.extend_from_slice(&checksum(table, form, key, value).to_le_bytes());
        first.push(form);
        rest.chunks(self.page_value_bytes)
    }

    /// The most room that a new row takes in LMDB's file: its parts, each on a leaf that is as empty as splitting leaves it, or on a page of
    /// its own, and what is above those leaves.
    pub(super) fn room_bytes(self, key_bytes: usize, value_bytes: usize) -> u64 {
        let part_key_bytes = key_bytes + PART_NUMBER_BYTES;
        let is_whole = value_bytes <= self.page_value_bytes - WHOLE_TRAILER_BYTES;
        if is_whole {
            self.part_room_bytes(part_key_bytes, value_bytes + WHOLE_TRAILER_BYTES)
        } else {
            // Parts that fill a page, the first one among them, and what is left.
            let rest = value_bytes - self.first_piece_bytes();
            let full_parts = 1 + (rest / self.page_value_bytes) as u64;
            let left = rest % self.page_value_bytes;
            let last = if left == 0 { 0 } else { self.part_room_bytes(part_key_bytes, left) };
            full_parts * self.part_room_bytes(part_key_bytes, self.page_value_bytes) + last
        }
    }

    fn part_room_bytes(self, part_key_bytes: usize, stored_bytes: usize) -> u64 {
        let page_bytes = self.page_bytes();
        let branch_bytes = NODE_BYTES + part_key_bytes;
        // Two of the largest that LMDB keeps on a leaf fit there.
        let is_on_leaf = branch_bytes + stored_bytes <= self.page_value_bytes / 2;
        let node_bytes = branch_bytes + if is_on_leaf { stored_bytes } else { PAGE_NUMBER_BYTES };
        // Of nodes that are larger than a third, splits may leave one on a leaf. Else a leaf is two fifths full: of four and a new one, two.
        let leaf_bytes = if node_bytes > page_bytes / 3 { page_bytes } else { node_bytes * 5 / 2 };
        // A branch has two children at least. One of shorter keys has as many of them as a leaf has nodes, and there are branches above it.
        let above_bytes = leaf_bytes.min(leaf_bytes * branch_bytes * 5 / page_bytes);
        (leaf_bytes + above_bytes + if is_on_leaf { 0 } else { page_bytes }) as u64
    }

    /// Bytes of an LMDB page.
    pub(super) fn page_bytes(self) -> usize {
        self.page_value_bytes + PAGE_HEADER_BYTES
    }

    fn first_piece_bytes(self) -> usize {
        self.page_value_bytes - SPLIT_TRAILER_BYTES
    }

    /// How many parts follow the first one; believes what it reads, which may be damaged, but for absurd lengths.
    pub(super) fn further_parts(self, first: &[u8]) -> u16 {
        match First::decode(first) {
            Some(First { form: Form::Split { value_bytes }, piece, .. }) => {
                let further = value_bytes.min(VALUE_BYTES_MAX).saturating_sub(piece.len());
                u16::try_from(further.div_ceil(self.page_value_bytes)).unwrap_or(u16::MAX)
            }
            _ => 0,
        }
    }
}

/// The first part of a row, not verified.
pub(super) struct First<'r> {
    pub(super) piece: &'r [u8],
    pub(super) form: Form,
    checksum: u32,
}

/// Whether a row has further parts.
pub(super) enum Form {
    Whole,
    Split { value_bytes: usize },
}

impl<'r> First<'r> {
    pub(super) fn decode(stored: &'r [u8]) -> Option<Self> {
        let (&form, rest) = stored.split_last()?;
        let (rest, checksum) = rest.split_last_chunk()?;
        let checksum = u32::from_le_bytes(*checksum);
        match form {
            WHOLE => Some(Self { piece: rest, form: Form::Whole, checksum }),
            SPLIT => {
                let (piece, length) = rest.split_last_chunk()?;
                let value_bytes = u32::from_le_bytes(*length) as usize;
                (piece.len() < value_bytes && value_bytes <= VALUE_BYTES_MAX).then_some(Self {
                    piece,
                    form: Form::Split { value_bytes },
                    checksum,
                })
            }
            _ => None,
        }
    }

    /// Whether the whole value is the one that was written.
    pub(super) fn is_sound(&self, table: u8, key: &[u8], value: &[u8]) -> bool {
        let form = match self.form {
            Form::Whole => WHOLE,
            Form::Split { .. } => SPLIT,
        };
        checksum(table, form, key, value) == self.checksum
    }
}

/// The stored form of one of the engine's own rows.
pub(super) fn encode_engine_row(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut stored = value.to_vec();
    stored.extend_from_slice(&checksum(ENGINE_TABLE, WHOLE, key, value).to_le_bytes());
    stored.push(WHOLE);
    stored
}

/// The value of one of the engine's own rows.
pub(super) fn decode_engine_row<'r>(key: &[u8], stored: &'r [u8]) -> Result<&'r [u8], Cause> {
    match First::decode(stored) {
        Some(first) if first.is_sound(ENGINE_TABLE, key, first.piece) => Ok(first.piece),
        _ => Err(corrupt("engine", key)),
    }
}

fn checksum(table: u8, form: u8, key: &[u8], value: &[u8]) -> u32 {
    // Feeding bytes into a CRC is a bijection of its state, so two rows with the same bytes and different starts never agree. Keys
    // are shorter than 64 KiB.
    let start = (u32::from(table) + 1) << 17 | u32::from(form) << 16 | key.len() as u32;
    crc32c::crc32c_append(crc32c::crc32c_append(start, key), value)
}

/// What a row that fails its checksum is reported as.
#[cold]
pub(super) fn corrupt(table: &str, key: &[u8]) -> Cause {
    // Kubernetes' keys are shorter: whoever removes the row needs all of it.
    const SHOWN_BYTES_MAX: usize = 512;
    let shown = key[..key.len().min(SHOWN_BYTES_MAX)].escape_ascii();
    let more = if key.len() > SHOWN_BYTES_MAX { "…" } else { "" };
    Cause::Corrupt(format!(
        "the row of table {table} with key \"{shown}{more}\" ({} bytes) fails its checksum",
        key.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::super::rows::Rows;
    use super::*;
    use crate::Table;

    const CUT: Cut = Cut { page_value_bytes: 40 };

    /// LMDB itself is the judge, with keys in an order that splits many pages.
    #[test]
    fn new_rows_take_no_more_room_than_is_reckoned() {
        const ROWS: u64 = 3000;
        let directory = tempfile::tempdir().unwrap();
        let mut options = heed::EnvOpenOptions::new();
        options.map_size(1 << 30);
        // SAFETY: nobody else has the file.
        #[allow(unsafe_code)]
        let env = unsafe { options.open(directory.path()) }.unwrap();
        let page_bytes = env.stat().page_size as usize;
        let cut = Cut::new(page_bytes);
        let key_max = env.max_key_size() - PART_NUMBER_BYTES;
        let values = [0, 30, 140, 300, 570, 820, 1000, 1360, 2030, 2100, 4200, 9000];
        for (key_bytes, value_bytes) in [12, 70, 400, 700, key_max].into_iter().flat_map(|k| values.map(|v| (k, v))) {
            let mut txn = env.write_txn().unwrap();
            let database = env.create_database(&mut txn, None).unwrap();
            let table = Rows::new(Table::Current, database, page_bytes);
            let (mut key, mut scratch) = (vec![b'k'; key_bytes], Vec::new());
            let value = vec![7; value_bytes];
            for number in 0..ROWS {
                // Long keys have long beginnings in common, as those in the branches then are as long.
                let place = (number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_be_bytes();
                key[key_bytes - 8..].copy_from_slice(&place);
                table.put(&mut txn, &key, &value, &mut scratch).unwrap();
            }
            let pages = table.pages(&txn).unwrap();
            let taken = (pages.leaves + pages.branches + pages.overflow) * page_bytes as u64;
            let reckoned = ROWS * cut.room_bytes(key_bytes, value_bytes);
            assert!(taken <= reckoned, "{key_bytes} and {value_bytes}: {taken} of {reckoned}");
            // Nor is it far off, or a store would count as full that is not.
            assert!(taken * 4 > reckoned, "{key_bytes} and {value_bytes}: {taken} of {reckoned}");
        }
    }

    /// The parts of a row, the first one first.
    fn store(table: u8, key: &[u8], value: &[u8]) -> Vec<Vec<u8>> {
        let mut first = Vec::new();
        let others: Vec<_> = CUT.encode(table, key, value, &mut first).map(<[u8]>::to_vec).collect();
        [vec![first], others].concat()
    }

    /// Reads the parts back; `None` if they are unsound.
    fn load(table: u8, key: &[u8], parts: &[Vec<u8>]) -> Option<Vec<u8>> {
        let first = First::decode(&parts[0])?;
        let value = [first.piece, &parts[1..].concat()].concat();
        match first.form {
            Form::Split { value_bytes } if value_bytes != value.len() => return None,
            _ => {}
        }
        first.is_sound(table, key, &value).then_some(value)
    }

    #[test]
    fn a_value_of_any_length_is_cut_to_pages_and_read_back() {
        for length in 0..300 {
            let value: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let parts = store(1, b"key", &value);
            assert!(parts.iter().all(|part| part.len() <= 40), "{length}");
            assert_eq!(parts.len() == 1, length <= 35, "{length}");
            assert_eq!(usize::from(CUT.further_parts(&parts[0])), parts.len() - 1, "{length}");
            assert_eq!(load(1, b"key", &parts), Some(value), "{length}");
        }
    }

    #[test]
    fn a_row_is_bound_to_its_table_and_key() {
        for value in [&b"value"[..], &[7; 100]] {
            let parts = store(1, b"key", value);
            assert!(load(1, b"key", &parts).is_some());
            assert_eq!(load(2, b"key", &parts), None);
            assert_eq!(load(1, b"kez", &parts), None);
        }
        // The same bytes in all, cut one byte later.
        let mut parts = store(1, b"key", b"value");
        parts[0].remove(0);
        assert_eq!(load(1, b"keyv", &parts), None);
        assert_eq!(load(1, b"key", &[b"abc".to_vec()]), None);
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        for value in [&b"some value"[..], &[0; 100]] {
            let parts = store(0, b"k", value);
            for part in 0..parts.len() {
                for bit in 0..parts[part].len() * 8 {
                    let mut flipped = parts.clone();
                    flipped[part][bit / 8] ^= 1 << (bit % 8);
                    assert_eq!(load(0, b"k", &flipped), None, "part {part}, bit {bit}");
                }
            }
        }
    }

    #[test]
    fn parts_of_two_versions_do_not_fit_together() {
        let old = store(0, b"k", &[1; 100]);
        let mut mixed = store(0, b"k", &[2; 100]);
        mixed[2].clone_from(&old[2]);
        assert_eq!(load(0, b"k", &mixed), None);
    }

    #[test]
    fn the_number_of_the_part_keeps_the_order_of_keys() {
        let mut keys: Vec<Vec<u8>> = vec![vec![]];
        for length in 1..5_u32 {
            for number in 0..3_u32.pow(length) {
                keys.push((0..length).map(|digit| [0, 1, 0xff][(number / 3_u32.pow(digit) % 3) as usize]).collect());
            }
        }
        keys.sort();
        let stored: Vec<_> = keys.iter().map(|key| PartKey::first(key).bytes().to_vec()).collect();
        assert!(stored.is_sorted());
        let mut all: Vec<_> = keys
            .iter()
            .flat_map(|key| {
                [0, 1, 0xff, 0x100, 0xffff].map(|part| {
                    let mut part_key = PartKey::first(key);
                    let bytes = part_key.turn_to(part).to_vec();
                    assert_eq!(split_part_key(&bytes), Some((&key[..], part)));
                    bytes
                })
            })
            .collect();
        all.sort();
        let count = all.len();
        all.dedup();
        assert_eq!(all.len(), count, "no two parts share a key");
    }

    #[test]
    fn a_long_key_is_shortened_in_the_message() {
        let Cause::Corrupt(text) = corrupt("current", &[0xab; 600]) else { panic!("another cause") };
        assert!(text.contains(&format!("{}…\" (600 bytes)", "\\xab".repeat(512))), "{text}");
        let Cause::Corrupt(text) = corrupt("current", b"/registry/pods/a") else { panic!("another cause") };
        assert!(text.contains("\"/registry/pods/a\" (16 bytes)"), "{text}");
    }
}
