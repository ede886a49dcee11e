//! A copy of the store while it is in use.
//!
//! What has been committed is merged, and LMDB's file is copied, which then is all of the store. The copy reads one snapshot from
//! beginning to end, and until it is done LMDB can't reuse the pages of that snapshot.

use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use heed::CompactionOption;

use super::{Core, cause, merge, open};
use crate::{Cause, CommitError, file};

/// How often a copy is asked whether it has begun.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// Writes a compacted copy. It opens as the `data.mdb` of a data directory.
pub(super) fn backup(core: &Core, target: &Path) -> Result<(), Cause> {
    let copied = file::create_whole(target, |file| {
        // Until the copy has its snapshot, no step of a merge may leave rows that are whole only together with the journal.
        let merger = merge::flush(core).map_err(failed)?;
        open::put_alone(core, true).map_err(failed)?;
        let alone = Alone(core);
        let watched = file.try_clone()?;
        thread::scope(|scope| {
            let copy = scope.spawn(|| core.env.copy_to_file(file, CompactionOption::Enabled));
            // LMDB takes the snapshot before it writes the first byte.
            while !copy.is_finished() && watched.metadata()?.len() == 0 {
                thread::sleep(LOOK_INTERVAL);
            }
            drop(alone);
            drop(merger);
            match copy.join() {
                Ok(Ok(())) => Ok(()),
                Ok(Err(heed::Error::Io(error))) => Err(error),
                Ok(Err(other)) => Err(io::Error::other(other)),
                Err(_) => Err(io::Error::other("the copying thread panicked")),
            }
        })
    });
    copied.map_err(|error| match error.downcast::<Cause>() {
        Ok(cause) => cause,
        Err(error) => cause(&heed::Error::Io(error), &format!("back up to {}", target.display())),
    })
}

fn failed(error: CommitError) -> io::Error {
    match error {
        CommitError::NotApplied(cause) | CommitError::Unknown(cause) | CommitError::Fatal(cause) => {
            io::Error::other(cause)
        }
        CommitError::Fenced(_) => unreachable!("neither a merge nor this compares a head"),
    }
}

/// The data file says that it is all of the store, for the copy; the store that goes on is not.
struct Alone<'c>(&'c Core);

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        // If that fails, the next merge does it: it leaves another head.
        let _ = open::put_alone(self.0, false);
    }
}
