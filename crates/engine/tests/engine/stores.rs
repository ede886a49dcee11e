//! The engines as the suite wants them.

use std::fs;
use std::path::Path;

use kubewharf_engine::Engine;
use kubewharf_engine::conformance::Store;
use kubewharf_engine::lmdb::{Lmdb, Options};
use kubewharf_engine::memory::Memory;
use tempfile::TempDir;

/// LMDB in a directory that goes with the store.
pub(crate) struct LmdbStore {
    /// `None` only while reopening. Before the directory, so that it closes first.
    engine: Option<Lmdb>,
    pub(crate) directory: TempDir,
}

impl LmdbStore {
    pub(crate) fn new() -> Self {
        Self::open(tempfile::tempdir().unwrap())
    }

    fn open(directory: TempDir) -> Self {
        Self { engine: Some(Lmdb::open(Options::new(directory.path())).unwrap()), directory }
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
        self.engine = Some(Lmdb::open(Options::new(self.directory.path())).unwrap());
        true
    }

    fn restore(&self, backup: &Path) -> Box<dyn Store> {
        let directory = tempfile::tempdir().unwrap();
        fs::copy(backup, directory.path().join("data.mdb")).unwrap();
        Box::new(Self::open(directory))
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
