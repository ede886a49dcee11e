//! A store's rows and head in one file that every engine can write and read.
//!
//! Job: the format of backups of engines that have no file of their own to copy. Written from one snapshot and read row by row, so neither
//! side holds more than a row.
//!
//! The file: a magic, the head, then every row (table, length and bytes of the key and of the value), a byte that is no table, and a
//! checksum of all before it.
//!
//! Invariant: [`Reader::next`] says that the file has ended only if all of it was sound. What came before that is not to be trusted until
//! then.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::ops::{Bound, ControlFlow};
use std::path::Path;

use bytes::Bytes;

use crate::{Cause, Direction, EngineError, Head, Snapshot, Table, file};

/// Opens the file. It names the engine that had the format first.
const MAGIC: &[u8; 8] = b"kwmem\0\0\x01";
const CHECKSUM_BYTES: u64 = 4;
const BUFFER_BYTES: usize = 256 << 10;

/// A row of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The row's table.
    pub table: Table,
    /// The row's key.
    pub key: Bytes,
    /// The row's value.
    pub value: Bytes,
}

/// Makes `target` with everything that the view shows. It never replaces a file; after an error it is not there.
pub fn write_file(view: &dyn Snapshot, target: &Path) -> Result<(), EngineError> {
    let mut failed = None;
    let written = file::create_whole(target, |file| {
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, file);
        match write(view, &mut out) {
            Ok(()) => out.flush(),
            Err(WriteError::File(error)) => Err(error),
            Err(WriteError::View(error)) => {
                failed = Some(error);
                Err(io::Error::other("the rows can't be read"))
            }
        }
    });
    match (written, failed) {
        (Ok(()), _) => Ok(()),
        (Err(_), Some(error)) => Err(error),
        (Err(error), None) => Err(Cause::Io(format!("can't back up to {}: {error}", target.display())).into()),
    }
}

enum WriteError {
    File(io::Error),
    View(EngineError),
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        Self::File(error)
    }
}

fn write(view: &dyn Snapshot, out: &mut dyn Write) -> Result<(), WriteError> {
    let mut out = Summed { out, sum: 0 };
    out.write(MAGIC)?;
    out.write(&view.head().map_err(WriteError::View)?.encode())?;
    for table in Table::ALL {
        let mut row_failed = Ok(());
        let visit = &mut |key: &[u8], value: &[u8]| {
            row_failed = out.write_row(table, key, value);
            if row_failed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let all = (Bound::Unbounded, Bound::Unbounded);
        view.scan(table, all, Direction::Forward, visit).map_err(WriteError::View)?;
        row_failed?;
    }
    out.write(&[u8::MAX])?;
    let sum = out.sum;
    out.out.write_all(&sum.to_le_bytes())?;
    Ok(())
}

struct Summed<'o> {
    out: &'o mut dyn Write,
    sum: u32,
}

impl Summed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum = crc32c::crc32c_append(self.sum, bytes);
        self.out.write_all(bytes)
    }

    fn write_row(&mut self, table: Table, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.write(&[table.number()])?;
        for part in [key, value] {
            let length = u32::try_from(part.len()).map_err(io::Error::other)?;
            self.write(&length.to_le_bytes())?;
            self.write(part)?;
        }
        Ok(())
    }
}

/// Reads such a file from its start to its end.
pub struct Reader {
    input: Box<dyn Read + Send>,
    /// For errors.
    name: String,
    /// What is left but for the checksum.
    left_bytes: u64,
    sum: u32,
    head: Head,
    is_at_end: bool,
}

impl Reader {
    /// Opens a file and reads its head.
    pub fn open(path: &Path) -> Result<Self, EngineError> {
        let name = path.display().to_string();
        let unreadable = |error: io::Error| Cause::Io(format!("can't read the backup {name}: {error}"));
        let file = File::open(path).map_err(unreadable)?;
        let bytes = file.metadata().map_err(unreadable)?.len();
        Self::new(Box::new(BufReader::with_capacity(BUFFER_BYTES, file)), bytes, name)
    }

    fn new(input: Box<dyn Read + Send>, bytes: u64, name: String) -> Result<Self, EngineError> {
        let left_bytes = bytes.saturating_sub(CHECKSUM_BYTES);
        let mut reader = Self { input, name, left_bytes, sum: 0, head: Head::default(), is_at_end: false };
        if reader.array::<{ MAGIC.len() }>()? != *MAGIC {
            return Err(reader.not_whole());
        }
        let head = reader.array::<{ Head::ENCODED_BYTES }>()?;
        reader.head = Head::decode(&head).ok_or_else(|| reader.not_whole())?;
        Ok(reader)
    }

    /// The head of the store that was written.
    #[must_use]
    pub fn head(&self) -> Head {
        self.head
    }

    /// The next row; `None` behind the last one, and only if the whole file is sound.
    #[allow(clippy::should_implement_trait, reason = "an iterator of results would go on after an error")]
    pub fn next(&mut self) -> Result<Option<Row>, EngineError> {
        if self.is_at_end {
            return Ok(None);
        }
        let [number] = self.array()?;
        if number == u8::MAX {
            let sum = self.sum;
            if self.left_bytes != 0 {
                return Err(self.not_whole());
            }
            self.left_bytes = CHECKSUM_BYTES;
            if u32::from_le_bytes(self.array()?) != sum {
                return Err(self.not_whole());
            }
            self.is_at_end = true;
            return Ok(None);
        }
        let table = Table::ALL.get(usize::from(number)).copied().ok_or_else(|| self.not_whole())?;
        let key = self.sized()?;
        let value = self.sized()?;
        Ok(Some(Row { table, key, value }))
    }

    fn sized(&mut self) -> Result<Bytes, EngineError> {
        let length = u32::from_le_bytes(self.array()?);
        // Checked first: a damaged length must not take memory.
        if u64::from(length) > self.left_bytes {
            return Err(self.not_whole());
        }
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes)?;
        Ok(bytes.into())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], EngineError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), EngineError> {
        self.left_bytes = self.left_bytes.checked_sub(bytes.len() as u64).ok_or_else(|| self.not_whole())?;
        match self.input.read_exact(bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(self.not_whole()),
            Err(error) => return Err(Cause::Io(format!("can't read the backup {}: {error}", self.name)).into()),
        }
        self.sum = crc32c::crc32c_append(self.sum, bytes);
        Ok(())
    }

    fn not_whole(&self) -> EngineError {
        Cause::Corrupt(format!("{} is not a whole backup", self.name)).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Engine;
    use crate::conformance::{apply, put};
    use crate::memory::Memory;

    fn read(content: &[u8]) -> Result<Vec<Row>, EngineError> {
        let mut reader =
            Reader::new(Box::new(io::Cursor::new(content.to_vec())), content.len() as u64, "content".to_owned())?;
        let mut rows = Vec::new();
        while let Some(row) = reader.next()? {
            rows.push(row);
        }
        assert_eq!(reader.next(), Ok(None), "the end stays the end");
        Ok(rows)
    }

    #[test]
    fn damage_is_noticed_at_the_end_at_the_latest() {
        let memory = Memory::new();
        apply(&memory, vec![put(Table::Meta, "m", ""), put(Table::Log, "a", "value")]);
        let mut whole = Vec::new();
        assert!(write(&*memory.snapshot().unwrap(), &mut whole).is_ok());
        let row = |table, key: &'static str, value: &'static str| Row { table, key: key.into(), value: value.into() };
        assert_eq!(read(&whole).unwrap(), [row(Table::Meta, "m", ""), row(Table::Log, "a", "value")]);
        for cut in 0..whole.len() {
            assert!(read(&whole[..cut]).unwrap_err().is_corrupt(), "cut at {cut}");
        }
        for position in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[position] ^= 1;
            assert!(read(&damaged).unwrap_err().is_corrupt(), "byte {position}");
        }
        whole.push(0);
        assert!(read(&whole).unwrap_err().is_corrupt(), "one byte more");
    }
}
