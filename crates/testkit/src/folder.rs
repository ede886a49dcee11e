//! A folder for the data and logs of one test.
//!
//! Invariant: it is removed with the test that made it, unless that test fails: then it stays and its path is printed.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Set to anything, this keeps the folders of tests that pass as well.
pub const KEEP_VARIABLE: &str = "KUBEWHARF_KEEP";

/// The folder. Dropping it removes it; see the module for when it does not.
#[derive(Debug)]
pub struct Folder {
    inner: Option<tempfile::TempDir>,
    path: PathBuf,
}

impl Folder {
    /// Makes a folder whose name begins with `name`.
    ///
    /// # Errors
    /// When the system's folder for temporary files cannot be written.
    pub fn new(name: &str) -> Result<Self> {
        Self::new_in(&std::env::temp_dir(), name)
    }

    /// Makes a folder in `parent` whose name begins with `name`.
    ///
    /// # Errors
    /// When `parent` cannot be written.
    pub fn new_in(parent: &Path, name: &str) -> Result<Self> {
        let inner = tempfile::Builder::new()
            .prefix(&format!("kubewharf-{name}-"))
            .tempdir_in(parent)
            .map_err(Error::file("create a folder in", parent))?;
        Ok(Self { path: inner.path().to_owned(), inner: Some(inner) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file of that name into it, and returns its path.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        std::fs::write(&path, text).map_err(Error::file("write", &path))?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let Some(inner) = self.inner.take() else {
            return;
        };
        if std::thread::panicking() || std::env::var_os(KEEP_VARIABLE).is_some() {
            eprintln!("kept for a look: {}", inner.keep().display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_removed_when_its_test_passes() {
        let folder = Folder::new("passes").unwrap();
        let file = folder.write("a", "b").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "b");
        drop(folder);
        assert!(!file.exists());
    }

    #[test]
    fn a_folder_is_kept_when_its_test_fails() {
        let (send, receive) = std::sync::mpsc::channel();
        let failed = std::thread::spawn(move || {
            let folder = Folder::new("fails").unwrap();
            send.send(folder.path().to_owned()).unwrap();
            panic!("as wanted");
        })
        .join();
        assert!(failed.is_err());
        let kept = receive.recv().unwrap();
        assert!(kept.is_dir());
        std::fs::remove_dir_all(kept).unwrap();
    }
}
