//! The stored form of rows, the only place that knows it.
//!
//! Each key has one row in [`Table::Current`](kubewharf_engine::Table::Current): its latest version, or a tombstone until compaction
//! passes it. Each change is one row in [`Table::Log`](kubewharf_engine::Table::Log) that holds the new version *and* the one it
//! replaced. So a list reads one sorted table with the values in place, a watch replays the log alone (with previous values), a read
//! at an older revision follows a key's log rows back ([`super::history`]), and compaction only cuts the log's old end.
//!
//! Invariant: `decode(encode(x)) == x`, and whatever else is decoded gives an error, never a panic.

use bytes::{BufMut, Bytes, BytesMut};
use kubewharf_engine::Cause;

/// The format that this module writes, first byte of every record.
const FORMAT: u8 = 2;

/// A position in the log: a revision and the place within it. A key's version is named by the position that wrote it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The transaction's revision.
    pub revision: i64,
    /// The change's place within the transaction, from 0.
    pub sub: u32,
}

impl Position {
    /// Bytes of a log row's key.
    pub const KEY_BYTES: usize = 12;

    /// The log row's key: big-endian, so that byte order is log order.
    ///
    /// # Panics
    /// If the revision is negative: it would come behind all others.
    #[must_use]
    pub fn key(self) -> [u8; Self::KEY_BYTES] {
        assert!(self.revision >= 0, "revision {} is not a place in the log", self.revision);
        let mut key = [0; Self::KEY_BYTES];
        key[..8].copy_from_slice(&self.revision.to_be_bytes());
        key[8..].copy_from_slice(&self.sub.to_be_bytes());
        key
    }

    /// Reads [`Position::key`].
    pub fn from_key(key: &[u8]) -> Result<Self, Cause> {
        let mut reader = Reader(key);
        let position = Self { revision: i64::from_be_bytes(reader.array()?), sub: u32::from_be_bytes(reader.array()?) };
        reader.finish()?;
        Ok(position)
    }

    /// This position, if it is what comes directly behind `at` in a log without gaps.
    pub fn behind(self, at: Self) -> Result<Self, Cause> {
        let next_change = Self { sub: at.sub + 1, ..at };
        let next_transaction = Self { revision: at.revision + 1, sub: 0 };
        if self == next_change || self == next_transaction { Ok(self) } else { Err(Self::missing(at.revision + 1)) }
    }

    /// What is wrong with a log that has nothing at `revision`.
    pub(crate) fn missing(revision: i64) -> Cause {
        Cause::Corrupt(format!("the log has a gap behind revision {}", revision - 1))
    }
}

/// One version of a key, borrowed from wherever it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version<'a> {
    /// The revision that created the key's current generation.
    pub create_revision: i64,
    /// The revision that wrote this version.
    pub mod_revision: i64,
    /// Number of writes since creation, from 1.
    pub version: i64,
    /// The attached lease, 0 for none.
    pub lease: i64,
    /// The value.
    pub value: &'a [u8],
}

/// Where a key's earlier log rows are: how many there are behind this one, and one much further back.
///
/// The jumps form a skew-binary ladder: a walk back over n versions takes O(log n) steps. Compaction lets it begin anew, because no walk
/// goes below the compacted revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ladder {
    /// Log rows of this key behind this one; 0 for the first.
    pub depth: u64,
    /// A log row of this key further back, `depth - `[`jump_span`]`(depth)` deep or the last above what is compacted; without meaning at
    /// depth 0.
    pub jump: Position,
}

/// The rest of a ladder: where the row that its jump names jumps to, where that one does, and so on, as far as it is not compacted.
/// With it the next row's ladder is known without reading a row of the log.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Rungs<'a>(&'a [u8]);

impl<'a> Rungs<'a> {
    /// Rungs that [`put_rung`] has written.
    pub(super) fn new(stored: &'a [u8]) -> Self {
        debug_assert!(stored.len().is_multiple_of(POSITION_BYTES));
        Self(stored)
    }

    /// The first rung, and the others.
    pub(super) fn split_first(self) -> Option<(Position, Self)> {
        let mut reader = Reader(self.0);
        let first = reader.position().ok()?;
        Some((first, Self(reader.0)))
    }

    /// The rungs above `revision`. They go down, so what is left out is the end.
    pub(super) fn above(self, revision: i64) -> Self {
        let mut rest = self;
        while let Some((first, behind)) = rest.split_first() {
            if first.revision <= revision {
                break;
            }
            rest = behind;
        }
        Self(&self.0[..self.0.len() - rest.0.len()])
    }

    /// The stored form.
    pub(super) fn stored(self) -> &'a [u8] {
        self.0
    }
}

impl std::fmt::Debug for Rungs<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(std::iter::successors(self.split_first(), |(_, rest)| rest.split_first()).map(|(p, _)| p))
            .finish()
    }
}

/// A key's row in the current table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Current<'a> {
    /// The log position that wrote it.
    pub position: Position,
    /// Its place among the key's log rows.
    pub ladder: Ladder,
    /// The ladder's further rungs.
    pub rungs: Rungs<'a>,
    /// The live version; `None` for a tombstone.
    pub live: Option<Version<'a>>,
}

/// What a change replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Previous<'a> {
    /// The position that wrote it.
    pub position: Position,
    /// The version; `None` if the key was deleted there.
    pub live: Option<Version<'a>>,
}

impl Previous<'_> {
    /// What was replaced was damaged and could not be told.
    pub const LOST: Self = Self { position: Position { revision: i64::MAX, sub: u32::MAX }, live: None };
}

/// One change, a row of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change<'a> {
    /// When it was committed, by the writer's wall clock, in milliseconds since 1970.
    pub time_ms: u64,
    /// The changed key.
    pub key: &'a [u8],
    /// The new version; `None` for a deletion.
    pub live: Option<Version<'a>>,
    /// The row that the current table had for the key before, if any.
    pub previous: Option<Previous<'a>>,
    /// Its place among the key's log rows.
    pub ladder: Ladder,
}

const TOMBSTONE: u8 = 1;
const UPDATED: u8 = 2;
const LEASED: u8 = 4;
const LADDER: u8 = 8;
const PREVIOUS: u8 = 16;

/// Bytes of a position in a record.
const POSITION_BYTES: usize = 12;

/// Bytes that [`put_version`] needs beside the value.
const VERSION_BYTES_MAX: usize = 1 + 24 + 4;

impl Current<'_> {
    /// The row's stored form.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let value = self.live.map_or(&[][..], |live| live.value);
        let mut row = BytesMut::with_capacity(64 + self.rungs.0.len() + value.len());
        row.put_u8(FORMAT);
        row.put_u8(if self.ladder.depth > 0 { LADDER } else { 0 });
        put_position(&mut row, self.position);
        put_ladder(&mut row, self.ladder);
        if self.ladder.depth > 0 {
            // A depth of 64 bits has 64 rungs.
            row.put_u8((self.rungs.0.len() / POSITION_BYTES) as u8);
            row.put_slice(self.rungs.0);
        }
        put_version(&mut row, self.live.as_ref());
        row.put_slice(value);
        row.freeze()
    }
}

impl<'a> Current<'a> {
    /// Reads [`Current::encode`]'s form.
    #[inline]
    pub fn decode(row: &'a [u8]) -> Result<Self, Cause> {
        let mut reader = Reader(row);
        let flags = reader.format_and_flags()?;
        let position = reader.position()?;
        let ladder = reader.ladder(flags)?;
        let rungs = if flags & LADDER == 0 {
            Rungs::default()
        } else {
            let [count] = reader.array()?;
            Rungs(reader.take(usize::from(count) * POSITION_BYTES)?)
        };
        let header = reader.version_header(position.revision)?;
        let live = header.map(|header| Version { value: reader.0, ..header });
        Ok(Self { position, ladder, rungs, live })
    }
}

impl Change<'_> {
    /// The row's stored form; the position is the row's key.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let value = self.live.map_or(&[][..], |live| live.value);
        let previous_value = self.previous.and_then(|previous| previous.live).map_or(&[][..], |live| live.value);
        let mut row = BytesMut::with_capacity(96 + self.key.len() + value.len() + previous_value.len());
        row.put_u8(FORMAT);
        row.put_u8(if self.ladder.depth > 0 { LADDER } else { 0 } | if self.previous.is_some() { PREVIOUS } else { 0 });
        row.put_u64_le(self.time_ms);
        put_ladder(&mut row, self.ladder);
        put_bytes(&mut row, self.key);
        put_version(&mut row, self.live.as_ref());
        put_bytes(&mut row, value);
        if let Some(previous) = &self.previous {
            put_position(&mut row, previous.position);
            put_version(&mut row, previous.live.as_ref());
            put_bytes(&mut row, previous_value);
        }
        row.freeze()
    }
}

impl<'a> Change<'a> {
    /// Reads [`Change::encode`]'s form of the row at `position`.
    pub fn decode(position: Position, row: &'a [u8]) -> Result<Self, Cause> {
        let mut reader = Reader(row);
        let flags = reader.format_and_flags()?;
        let time_ms = u64::from_le_bytes(reader.array()?);
        let ladder = reader.ladder(flags)?;
        let key = reader.bytes()?;
        let header = reader.version_header(position.revision)?;
        let value = reader.bytes()?;
        let live = header.map(|header| Version { value, ..header });
        let previous = if flags & PREVIOUS == 0 {
            None
        } else {
            let position = reader.position()?;
            let header = reader.version_header(position.revision)?;
            let value = reader.bytes()?;
            Some(Previous { position, live: header.map(|header| Version { value, ..header }) })
        };
        reader.finish()?;
        Ok(Self { time_ms, key, live, previous, ladder })
    }
}

/// A lease's row: what is needed to expire it after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseRecord {
    /// The granted time to live, in seconds.
    pub ttl_seconds: i64,
    /// What was left of it at the last checkpoint, in seconds; 0 if it has all of it, [`LeaseRecord::ENDING`] if it has ended.
    pub remaining_seconds: i64,
}

impl LeaseRecord {
    /// The lease has ended, and some of its keys are deleted already: it has more of them than are deleted at once.
    pub const ENDING: i64 = -1;

    /// Whether the lease has ended, and only the rest of its keys is to be deleted.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.remaining_seconds == Self::ENDING
    }

    /// The row's stored form; the id is the row's key.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut row = BytesMut::with_capacity(17);
        row.put_u8(FORMAT);
        row.put_i64_le(self.ttl_seconds);
        row.put_i64_le(self.remaining_seconds);
        row.freeze()
    }

    /// Reads [`LeaseRecord::encode`]'s form.
    pub fn decode(row: &[u8]) -> Result<Self, Cause> {
        let mut reader = Reader(row);
        reader.format()?;
        let record = Self { ttl_seconds: reader.i64()?, remaining_seconds: reader.i64()? };
        reader.finish()?;
        Ok(record)
    }
}

/// The key of a lease's row.
#[must_use]
pub fn lease_key(id: i64) -> Bytes {
    Bytes::copy_from_slice(&id.to_be_bytes())
}

/// Reads [`lease_key`].
pub fn lease_id(key: &[u8]) -> Result<i64, Cause> {
    let mut reader = Reader(key);
    let id = i64::from_be_bytes(reader.array()?);
    reader.finish()?;
    Ok(id)
}

/// The key of the row that attaches `key` to the lease.
#[must_use]
pub fn attachment_key(lease: i64, key: &[u8]) -> Bytes {
    let mut row = BytesMut::with_capacity(8 + key.len());
    row.put_i64(lease);
    row.put_slice(key);
    row.freeze()
}

/// The key attached by the row that [`attachment_key`] names.
pub fn attached_key(row_key: &[u8]) -> Result<&[u8], Cause> {
    row_key.get(8..).ok_or_else(truncated)
}

/// How many log rows a row at `depth` jumps back: the size of the last tree in the skew-binary form of `depth`.
#[must_use]
pub(super) fn jump_span(depth: u64) -> u64 {
    let mut rest = depth;
    let mut span = 1;
    while rest > 0 {
        // The largest 2^k - 1 that fits.
        span = (1_u64 << (rest + 1).ilog2()) - 1;
        rest -= span;
    }
    span
}

fn put_position(row: &mut BytesMut, position: Position) {
    row.put_i64_le(position.revision);
    row.put_u32_le(position.sub);
}

/// Appends a rung to those stored in `rungs`.
pub(super) fn put_rung(rungs: &mut impl Extend<u8>, rung: Position) {
    rungs.extend(rung.revision.to_le_bytes());
    rungs.extend(rung.sub.to_le_bytes());
}

fn put_ladder(row: &mut BytesMut, ladder: Ladder) {
    if ladder.depth > 0 {
        row.put_u64_le(ladder.depth);
        put_position(row, ladder.jump);
    }
}

/// Writes all of a version but its modification revision, which its position tells, and its value.
fn put_version(row: &mut BytesMut, version: Option<&Version<'_>>) {
    row.reserve(VERSION_BYTES_MAX);
    let Some(version) = version else {
        row.put_u8(TOMBSTONE);
        return;
    };
    let updated = version.version != 1 || version.create_revision != version.mod_revision;
    row.put_u8(if updated { UPDATED } else { 0 } | if version.lease == 0 { 0 } else { LEASED });
    if updated {
        row.put_i64_le(version.create_revision);
        row.put_i64_le(version.version);
    }
    if version.lease != 0 {
        row.put_i64_le(version.lease);
    }
}

fn put_bytes(row: &mut BytesMut, bytes: &[u8]) {
    row.put_u32_le(u32::try_from(bytes.len()).expect("requests are limited far below 4 GiB"));
    row.put_slice(bytes);
}

fn truncated() -> Cause {
    Cause::Corrupt("a record ends early".to_owned())
}

/// Reads a record from its front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    #[inline]
    fn take(&mut self, count: usize) -> Result<&'a [u8], Cause> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Cause> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or_else(truncated)?;
        self.0 = rest;
        Ok(*taken)
    }

    #[inline]
    fn i64(&mut self) -> Result<i64, Cause> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    #[inline]
    fn u32(&mut self) -> Result<u32, Cause> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    #[inline]
    fn format(&mut self) -> Result<(), Cause> {
        let [format] = self.array()?;
        if format == FORMAT { Ok(()) } else { Err(Cause::Corrupt(format!("a record has the unknown format {format}"))) }
    }

    #[inline]
    fn format_and_flags(&mut self) -> Result<u8, Cause> {
        self.format()?;
        let [flags] = self.array()?;
        Ok(flags)
    }

    #[inline]
    fn position(&mut self) -> Result<Position, Cause> {
        Ok(Position { revision: self.i64()?, sub: self.u32()? })
    }

    #[inline]
    fn ladder(&mut self, flags: u8) -> Result<Ladder, Cause> {
        if flags & LADDER == 0 {
            return Ok(Ladder::default());
        }
        Ok(Ladder { depth: u64::from_le_bytes(self.array()?), jump: self.position()? })
    }

    #[inline]
    fn version_header(&mut self, mod_revision: i64) -> Result<Option<Version<'static>>, Cause> {
        let [flags] = self.array()?;
        if flags & TOMBSTONE != 0 {
            return Ok(None);
        }
        let (create_revision, version) =
            if flags & UPDATED == 0 { (mod_revision, 1) } else { (self.i64()?, self.i64()?) };
        let lease = if flags & LEASED == 0 { 0 } else { self.i64()? };
        Ok(Some(Version { create_revision, mod_revision, version, lease, value: &[] }))
    }

    #[inline]
    fn bytes(&mut self) -> Result<&'a [u8], Cause> {
        let count = self.u32()?;
        self.take(count as usize)
    }

    fn finish(&self) -> Result<(), Cause> {
        if self.0.is_empty() { Ok(()) } else { Err(Cause::Corrupt("a record has bytes behind its end".to_owned())) }
    }
}
