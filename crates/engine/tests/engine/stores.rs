//! The engines as the suite wants them.

use std::fs;
use std::path::Path;

use kubewharf_engine::Engine;
use kubewharf_engine::conformance::Store;
use kubewharf_engine::lmdb::{DELTA_BYTES, Lmdb, Options};
use kubewharf_engine::memory::Memory;
use tempfile::TempDir;

/// LMDB in a directory that goes with the store.
pub(crate) struct LmdbStore {
    /// `None` only while reopening. Before the directory, so that it closes first.
    engine: Option<Lmdb>,
    pub(crate) directory: TempDir,
    delta_bytes: u64,
}

impl LmdbStore {
    pub(crate) fn new() -> Self {
        Self::with_delta(DELTA_BYTES)
    }

    /// One whose deltas are of that size.
    pub(crate) fn with_delta(delta_bytes: u64) -> Self {
        Self::open(tempfile::tempdir().unwrap(), delta_bytes)
    }

    fn open(directory: TempDir, delta_bytes: u64) -> Self {
        let options = Options { delta_bytes, ..Options::new(directory.path()) };
        Self { engine: Some(Lmdb::open(options).unwrap()), directory, delta_bytes }
    }

    /// Closes the engine, lets `change` at the data directory, and leaves opening to the caller.
    pub(crate) fn close(mut self) -> TempDir {
        self.engine = None;
        self.directory
    }
}

impl Store for LmdbStore {
    fn engine(&self) -> &dyn Engine {
        self.engine.as_ref().expect("open between calls")
    }

    fn reopen(&mut self) -> bool {
        self.engine = None;
        let options = Options { delta_bytes: self.delta_bytes, ..Options::new(self.directory.path()) };
        self.engine = Some(Lmdb::open(options).unwrap());
        true
    }

    fn restore(&self, backup: &Path) -> Box<dyn Store> {
        let directory = tempfile::tempdir().unwrap();
        fs::copy(backup, directory.path().join("data.mdb")).unwrap();
        Box::new(Self::open(directory, self.delta_bytes))
    }
}

/// The engine in memory.
pub(crate) struct MemoryStore(Memory);

impl MemoryStore {
    pub(crate) fn new() -> Self {
        Self(Memory::new())
    }
}

impl Store for MemoryStore {
    fn engine(&self) -> &dyn Engine {
        &self.0
    }

    fn reopen(&mut self) -> bool {
        false
    }

    fn restore(&self, backup: &Path) -> Box<dyn Store> {
        Box::new(Self(Memory::restore(backup).unwrap()))
    }
}
