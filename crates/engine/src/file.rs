//! Files that appear whole and durable, or not at all, and directories that stay.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Makes `target` with what `write` writes. It never replaces a file, and is on the disk on return; after an error it is not there.
pub(crate) fn create_whole(target: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    if target.try_exists()? {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let name =
        target.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))?;
    let directory = parent(target);
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

/// Makes a directory, and those above it that are missing, for the owner only. On return its name is durable, whoever made it.
pub fn make_directory(path: &Path) -> io::Result<()> {
    let missing: Vec<&Path> =
        path.ancestors().take_while(|level| !level.as_os_str().is_empty() && !level.is_dir()).collect();
    for level in missing.iter().rev() {
        match DirBuilder::new().mode(0o700).create(level) {
            Err(_) if level.is_dir() => {}
            other => other?,
        }
        sync_directory(parent(level))?;
    }
    if !missing.is_empty() {
        return Ok(());
    }
    // Whoever made it may have died before this.
    match sync_directory(parent(path)) {
        // It was made by somebody who may do more than this process, and who has to answer for it.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other,
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        // The root has no parent; everything is in it.
        None if path.has_root() => path,
        _ => Path::new("."),
    }
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
