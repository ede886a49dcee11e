//! Files that appear whole and durable, or not at all.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// Makes `target` with what `write` writes. It never replaces a file, and is on the disk on return; after an error it is not there.
pub(crate) fn create_whole(target: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    if target.try_exists()? {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let name =
        target.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))?;
    let directory = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut partial_name = name.to_os_string();
    partial_name.push(format!(".partial-{}", std::process::id()));
    let partial_path = directory.join(partial_name);

    let mut file = OpenOptions::new().write(true).create_new(true).open(&partial_path)?;
    let partial = Partial(partial_path);
    write(&mut file)?;
    file.sync_all()?;
    // A link, unlike a rename, never replaces a file that has appeared meanwhile.
    fs::hard_link(&partial.0, target)?;
    drop(partial);
    sync_directory(directory)
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// A file under its temporary name, which goes when this does.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // Nothing to do about a failure: the name says that the file is not whole.
        let _ = fs::remove_file(&self.0);
    }
}
