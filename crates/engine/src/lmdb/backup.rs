//! A copy of the file while it is in use.
//!
//! The copy reads one snapshot from beginning to end, and until it is done LMDB can't reuse the pages of that snapshot.

use std::io;
use std::path::Path;

use heed::{CompactionOption, Env, WithoutTls};

use super::cause;
use crate::{Cause, file};

/// Writes a compacted copy of the newest committed state. It opens as the `data.mdb` of a data directory.
pub(super) fn backup(env: &Env<WithoutTls>, target: &Path) -> Result<(), Cause> {
    let copied = file::create_whole(target, |file| {
        env.copy_to_file(file, CompactionOption::Enabled).map_err(|error| match error {
            heed::Error::Io(error) => error,
            other => io::Error::other(other),
        })
    });
    copied.map_err(|error| cause(&heed::Error::Io(error), &format!("back up to {}", target.display())))
}
