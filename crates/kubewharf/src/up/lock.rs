//! Keeps a second `kubewharf up` out of a cluster's folder.
//!
//! Invariant: nothing in the folder is written before the lock is held; the system drops it when the process ends, however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, bail};

/// The lock file's name; it holds the process id of who has the folder, for people.
const LOCK_FILE: &str = "up.lock";

/// An exclusive lock on a cluster's folder.
pub(super) struct FolderLock {
    _file: File,
}

impl FolderLock {
    pub(super) fn acquire(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join(LOCK_FILE);
        let failed = || format!("can't lock {}", path.display());
        // Not truncated: until the lock is ours, the content is the holder's.
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = opened.with_context(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // A holder that has not written its id yet, or a file that can't be read, leaves it unknown.
                let _ = file.read_to_string(&mut holder);
                let holder = Some(holder.trim()).filter(|holder| !holder.is_empty()).unwrap_or("unknown");
                bail!(
                    "the cluster in {} is up already, process {holder}: stop it, or choose another folder with --data-dir",
                    folder.display()
                );
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(failed),
        }
        file.set_len(0).with_context(failed)?;
        writeln!(file, "{}", std::process::id()).with_context(failed)?;
        Ok(Self { _file: file })
    }
}
