//! Keeps a second process out of the data directory.
//!
//! Invariant: a process that has a [`DirectoryLock`] is the only one with the directory; the system drops the lock when the process
//! ends, however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::{Cause, EngineError};

/// The lock file's name in the data directory.
const LOCK_FILE: &str = "LOCK";
/// How often the lock is tried, and the pause in between.
const ATTEMPTS_MAX: u32 = 10;
const ATTEMPT_PAUSE: Duration = Duration::from_millis(50);

/// An exclusive lock on a directory; the file holds the owner's process id for people.
pub(super) struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    pub(super) fn acquire(directory: &Path) -> Result<Self, EngineError> {
        let path = directory.join(LOCK_FILE);
        let failed = |error: std::io::Error| Cause::Io(format!("can't lock {}: {error}", path.display()));
        // Not truncated: until the lock is ours, the content is the holder's.
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        // A process that was just killed may still be on its way out.
        let mut attempts = 1;
        while attempts < ATTEMPTS_MAX && matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
            attempts += 1;
            thread::sleep(ATTEMPT_PAUSE);
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // A holder that has not written its id yet, or a file that can't be read, leaves it unknown.
                let _ = file.read_to_string(&mut holder);
                let holder = holder.trim();
                let holder = if holder.is_empty() { "unknown" } else { holder };
                return Err(EngineError::Locked { path: directory.display().to_string(), holder: holder.into() });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error).into()),
        }
        file.set_len(0).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { _file: file })
    }
}
