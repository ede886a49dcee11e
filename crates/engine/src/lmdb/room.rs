//! Room on the disk, taken before it is needed.
//!
//! LMDB learns of a full disk while it writes a batch's pages, when the work for the batch is done. So the file is allocated ahead of LMDB:
//! a full disk shows before a batch begins, and the pages kept back let deletions and compaction go on.
//!
//! Invariant: never writes the file, and never shortens it below a page that LMDB has committed; allocation only adds room behind its end or
//! fills holes in it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;

use heed::{Env, WithoutTls};
use parking_lot::Mutex;

use super::is_no_space;

/// The file grows by a quarter of its size, within these bounds.
const GROWTH_BYTES_MIN: u64 = 1 << 20;
const GROWTH_BYTES_MAX: u64 = 64 << 20;

/// The engine's own descriptor on LMDB's file.
pub(super) struct Room {
    file: File,
    env: Env<WithoutTls>,
    page_bytes: u64,
    /// Held while LMDB writes the file, which another thread than the one that takes room may do.
    file_end: Arc<Mutex<()>>,
    /// The file has room on the disk up to here.
    allocated_bytes: u64,
    /// Cleared for good where the file system can't allocate ahead.
    is_supported: bool,
}

impl Room {
    pub(super) fn open(
        path: &Path,
        env: Env<WithoutTls>,
        page_bytes: u64,
        file_end: Arc<Mutex<()>>,
    ) -> io::Result<Self> {
        // A descriptor of its own, not a copy of LMDB's: see `verify_written`.
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut room = Self { file, env, page_bytes, file_end, allocated_bytes: 0, is_supported: true };
        // Fills the holes that LMDB leaves where it takes a page and gives it back within one batch.
        let length = room.file.metadata()?.len();
        match room.extend_to(length) {
            Err(e) if !is_no_space(&e) => Err(e),
            _ => Ok(room),
        }
    }

    /// The file has room up to here.
    pub(super) fn allocated_bytes(&self) -> u64 {
        self.allocated_bytes
    }

    /// Makes sure that the file has room up to `end_bytes`, and takes more than that if it is to be had.
    pub(super) fn ensure(&mut self, end_bytes: u64) -> io::Result<()> {
        if end_bytes <= self.allocated_bytes {
            return Ok(());
        }
        let growth = (self.allocated_bytes / 4).clamp(GROWTH_BYTES_MIN, GROWTH_BYTES_MAX);
        match self.extend_to(end_bytes.next_multiple_of(GROWTH_BYTES_MIN) + growth) {
            Err(e) if is_no_space(&e) => self.extend_to(end_bytes),
            other => other,
        }
    }

    /// Asks the system whether anything written to the file since the last call was lost on its way to the disk. The answer is this
    /// descriptor's own, whatever LMDB's descriptors have been told.
    pub(super) fn verify_written(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn extend_to(&mut self, end_bytes: u64) -> io::Result<()> {
        if !self.is_supported {
            return Ok(());
        }
        // What is allocated already is left alone.
        let start = i64::try_from(self.allocated_bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let end = i64::try_from(end_bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
        if end <= start {
            return Ok(());
        }
        let found_bytes = self.file.metadata()?.len();
        let error = loop {
            // SAFETY: a system call on a descriptor that `self` owns, with no pointers.
            #[allow(unsafe_code)]
            let result = unsafe { libc::fallocate(self.file.as_raw_fd(), 0, start, end - start) };
            if result == 0 {
                self.allocated_bytes = end_bytes;
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                break error;
            }
        };
        if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) {
            self.is_supported = false;
            return Ok(());
        }
        self.give_back(found_bytes)?;
        Err(error)
    }

    /// Shortens the file to the length that it had before room was refused: some file systems keep what they had allocated until the disk
    /// was full, and nobody could use it.
    fn give_back(&self, found_bytes: u64) -> io::Result<()> {
        let _file = self.file_end.lock();
        // LMDB may have written behind that length meanwhile.
        let committed_bytes = (self.env.info().last_page_number as u64 + 1) * self.page_bytes;
        self.file.set_len(found_bytes.max(committed_bytes))
    }
}

#[cfg(test)]
mod tests {
    use heed::EnvOpenOptions;
    use heed::types::Bytes;

    use super::*;

    /// A merge makes the file longer while the one that commits asks for room and is refused.
    #[test]
    fn what_lmdb_writes_while_room_is_refused_stays() {
        const COMMITS: u32 = 100;
        let directory = tempfile::tempdir().unwrap();
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(64 << 20);
        // SAFETY: nobody else has the file.
        #[allow(unsafe_code)]
        let env = unsafe { options.open(directory.path()) }.unwrap();
        let path = directory.path().join("data.mdb");
        let file_end = Arc::new(Mutex::new(()));
        let page_bytes = u64::from(env.stat().page_size);
        let room = Room::open(&path, env.clone(), page_bytes, file_end.clone()).unwrap();

        let value = vec![7; 64 << 10];
        let commit = |number: u32| {
            let mut txn = env.write_txn().unwrap();
            let database = env.create_database::<Bytes, Bytes>(&mut txn, None).unwrap();
            database.put(&mut txn, &number.to_be_bytes(), &value).unwrap();
            let _file = file_end.lock();
            txn.commit().unwrap();
        };
        let length = || path.metadata().unwrap().len();
        // The length is looked at before the commit and acted on behind it.
        let before = length();
        commit(0);
        room.give_back(before).unwrap();
        assert!(length() > before);
        // And at any other moment.
        std::thread::scope(|scope| {
            let commits = scope.spawn(|| (1..COMMITS).for_each(commit));
            while !commits.is_finished() {
                let before = length();
                std::thread::yield_now();
                room.give_back(before).unwrap();
            }
        });
        let txn = env.read_txn().unwrap();
        let database = env.open_database::<Bytes, Bytes>(&txn, None).unwrap().unwrap();
        for number in 0..COMMITS {
            assert!(database.get(&txn, &number.to_be_bytes()).unwrap() == Some(&value[..]));
        }
        assert_eq!(length() / page_bytes, env.info().last_page_number as u64 + 1, "and what was behind it is gone");
    }
}
