//! The journal: batches in the order of their commits, each one record, until they are merged into LMDB.
//!
//! Job: make a batch durable by writing one place of one file, and tell the batches again when the store is opened. Two files, the segments,
//! take turns: one takes the records of the active delta, the other has those of the frozen one. When that is merged, its segment
//! is free, and the next records overwrite what is in it.
//!
//! Invariants:
//! - A segment is written from its beginning, and only when LMDB has durably passed all that is in it. So the records that LMDB has not
//!   passed are those from its position on, numbered without a gap, first in the one segment, then in the other.
//! - A record is durable before the next one is written. So one that is not whole is the last one, and was never acknowledged: if there
//!   is a sound one of a later number, it is damage.
//! - Blocks that have been written once are written over: an append to a segment that has grown changes no metadata of the file system, and
//!   its sync writes the record alone.

mod arena;
mod record;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub(super) use record::{BLOCK_BYTES, Record};

use self::arena::Arena;
use super::is_no_space;
use crate::{Batch, Cause, Head, file};

/// The segments' names in the data directory.
const SEGMENTS: [&str; 2] = ["journal-0", "journal-1"];

/// A segment grows by this much at a time, with zeros.
const GROWTH_BYTES: u64 = 1 << 20;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The segments, and where the next record goes.
pub(super) struct Journal {
    segments: [Segment; 2],
    active: usize,
    /// Where in the active segment the next record begins.
    end_bytes: u64,
    next_record: u64,
    /// What each record begins with.
    mark: u64,
    arena: Arena,
}

struct Segment {
    path: PathBuf,
    file: File,
    /// Length of the file, all of which has been written.
    bytes: u64,
}

/// Why a record was not written.
pub(super) enum AppendError {
    /// There is no room for it; the journal is as it was.
    NoSpace,
    /// It may be on the disk or not.
    Failed(Cause),
}

/// What the journal holds behind LMDB's position.
pub(super) struct Recovered {
    pub(super) records: Vec<Record>,
    /// The number of the next record.
    pub(super) next_record: u64,
}

impl Journal {
    /// Opens the segments, making those that are missing, which must be none if the data file needs the journal. To be recovered before
    /// anything is written.
    pub(super) fn open(directory: &Path, mark: u64, is_needed: bool) -> Result<Self, Cause> {
        if is_needed {
            check_presence(directory)?;
        }
        let open = |name: &str| -> Result<Segment, Cause> {
            let path = directory.join(name);
            let failed = |e: io::Error| Cause::Io(format!("can't open the journal {}: {e}", path.display()));
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
            let file = file.map_err(failed)?;
            let bytes = file.metadata().map_err(failed)?.len() / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
            Ok(Segment { path, file, bytes })
        };
        let segments = [open(SEGMENTS[0])?, open(SEGMENTS[1])?];
        // Always: who made the files, or the data file, may have been killed before their names were on the disk.
        file::sync_directory(directory)
            .map_err(|e| Cause::Io(format!("can't make the journal in {}: {e}", directory.display())))?;
        Ok(Self { segments, active: 0, end_bytes: 0, next_record: 0, mark, arena: Arena::default() })
    }

    /// Reads the records from number `first` on, the batch of which expects `head`. `through` is the number of the last one of which LMDB
    /// may hold rows: those must all be there.
    pub(super) fn recover(&mut self, first: u64, through: u64, mut head: Head) -> Result<Recovered, Cause> {
        let contents = [self.segments[0].read()?, self.segments[1].read()?];
        let mut records = Vec::new();
        let mut next = first;
        let mut segment = usize::from(Record::claimed_number(self.mark, &contents[0]) != Some(first));
        let mut at = 0;
        let mut turns = 0;
        let mut last = None;
        loop {
            match Record::read(self.mark, &contents[segment][at..]) {
                Some(record) if record.number() == next => {
                    if record.expected() != head {
                        return Err(Cause::Corrupt(format!(
                            "{}: record {next} does not follow the store's head; the journal is of another store or of \
                             another time than the data file",
                            self.segments[segment].path.display()
                        )));
                    }
                    head = record.next();
                    next += 1;
                    last = Some((segment, at as u64));
                    at += record.bytes().len();
                    records.push(record);
                }
                _ if turns == 0 => {
                    // The other segment goes on where this one ends.
                    turns = 1;
                    (segment, at) = (1 - segment, 0);
                }
                _ => break,
            }
        }
        self.check_end(&contents, next, through)?;
        if let (Some((segment, at)), Some(record)) = (last, records.last()) {
            self.write_again(&self.segments[segment], at, record)?;
        }
        self.start_at(next);
        Ok(Recovered { records, next_record: next })
    }

    /// Makes the last record durable, which may be in the system's memory alone: its writer was killed, or told of a failure, before it was
    /// synced. Writing it anew makes it dirty again, so that a sync means something; those before it were synced before it was written.
    fn write_again(&self, segment: &Segment, at: u64, record: &Record) -> Result<(), Cause> {
        let failed = |e: io::Error| Cause::Io(format!("can't write the journal {}: {e}", segment.path.display()));
        segment.file.write_all_at(record.bytes(), at).map_err(failed)?;
        segment.file.sync_data().map_err(failed)
    }

    /// Checks that nothing that was acknowledged is behind the end.
    fn check_end(&self, contents: &[Vec<u8>; 2], next: u64, through: u64) -> Result<(), Cause> {
        for (segment, content) in self.segments.iter().zip(contents) {
            for at in (0..content.len()).step_by(BLOCK_BYTES) {
                let claims = Record::claimed_number(self.mark, &content[at..]);
                // Whole or not, a record is begun only when the one before it is durable.
                let is_behind =
                    |number| number > next || number == next && Record::read(self.mark, &content[at..]).is_some();
                if let Some(later) = claims.filter(|number| is_behind(*number)) {
                    return Err(Cause::Corrupt(format!(
                        "{}: record {next} is damaged or missing, and record {later} at byte {at} comes behind it",
                        segment.path.display()
                    )));
                }
            }
        }
        if next <= through {
            return Err(Cause::Corrupt(format!(
                "{} and {} lack record {next}, and the data file holds rows of records up to {through}",
                self.segments[0].path.display(),
                self.segments[1].path.display()
            )));
        }
        Ok(())
    }

    /// Begins anew with this number; everything in the segments has been passed.
    pub(super) fn start_at(&mut self, next_record: u64) {
        self.active = 0;
        self.end_bytes = 0;
        self.next_record = next_record;
    }

    /// The number of the next record.
    pub(super) fn next_record(&self) -> u64 {
        self.next_record
    }

    /// Makes the batch durable.
    pub(super) fn append(&mut self, batch: &Batch) -> Result<Record, AppendError> {
        let record = Record::encode(&mut self.arena, self.mark, self.next_record, batch);
        let segment = &mut self.segments[self.active];
        let end_bytes = self.end_bytes + record.bytes().len() as u64;
        segment.grow(end_bytes)?;
        let failed = |segment: &Segment, doing: &str, e: &io::Error| {
            Cause::Io(format!("can't {doing} the journal {}: {e}", segment.path.display()))
        };
        match segment.file.write_all_at(record.bytes(), self.end_bytes) {
            Ok(()) => {}
            // Copy-on-write file systems need room for what is written over, too. Less than the whole record is no record.
            Err(e) if is_no_space(&e) => return Err(AppendError::NoSpace),
            Err(e) => return Err(AppendError::Failed(failed(segment, "write", &e))),
        }
        segment.file.sync_data().map_err(|e| AppendError::Failed(failed(segment, "sync", &e)))?;
        self.end_bytes = end_bytes;
        self.next_record += 1;
        Ok(record)
    }

    /// Goes on in the other segment, all of which LMDB must have passed.
    pub(super) fn turn(&mut self) {
        self.active = 1 - self.active;
        self.end_bytes = 0;
    }

    /// Gives memory back that a store at rest does not need.
    pub(super) fn release_memory(&mut self) {
        self.arena.release();
    }

    /// Bytes that the segments take on the disk.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }
}

/// Checks that both segments are there. A missing one must not pass for one without records.
fn check_presence(directory: &Path) -> Result<(), Cause> {
    let mut missing = Vec::new();
    for name in SEGMENTS {
        let path = directory.join(name);
        let is_there =
            path.try_exists().map_err(|e| Cause::Io(format!("can't look for the journal {}: {e}", path.display())))?;
        if !is_there {
            missing.push(name);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.join(" and ");
    Err(Cause::Corrupt(format!(
        "{missing} missing in {}: this part of the journal may hold changes that were acknowledged and are nowhere else. Put it back, or \
         restore a backup. If neither can be done, make it as an empty file, which gives those changes up",
        directory.display()
    )))
}

impl Segment {
    fn read(&self) -> Result<Vec<u8>, Cause> {
        let mut content = vec![0; self.bytes as usize];
        match self.file.read_exact_at(&mut content, 0) {
            Ok(()) => Ok(content),
            Err(e) => Err(Cause::Io(format!("can't read the journal {}: {e}", self.path.display()))),
        }
    }

    /// Makes sure that the file has blocks up to here. They are written, not only allocated: a block that was never written is one whose
    /// first write changes metadata.
    fn grow(&mut self, end_bytes: u64) -> Result<(), AppendError> {
        if end_bytes <= self.bytes {
            return Ok(());
        }
        let end_bytes = end_bytes.next_multiple_of(GROWTH_BYTES);
        let mut starts = (self.bytes..end_bytes).step_by(ZEROS.len());
        let written = starts.try_for_each(|start| {
            let zeros = &ZEROS[..ZEROS.len().min((end_bytes - start) as usize)];
            self.file.write_all_at(zeros, start)
        });
        if let Err(e) = written {
            if !is_no_space(&e) {
                return Err(AppendError::Failed(Cause::Io(format!(
                    "can't extend the journal {}: {e}",
                    self.path.display()
                ))));
            }
            // What others may need; if it fails, the next attempt writes over it.
            let _ = self.file.set_len(self.bytes);
            return Err(AppendError::NoSpace);
        }
        self.bytes = end_bytes;
        Ok(())
    }
}
