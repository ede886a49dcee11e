//! The engine as the suite wants it.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use kubewharf_engine::Engine;
use kubewharf_engine::conformance::Store;
use kubewharf_engine_postgres::{Options, Postgres};

/// Stores share a server, each in a schema of its own.
static STORES: AtomicU32 = AtomicU32::new(0);

/// A store in a new schema.
pub(crate) struct PostgresStore {
    options: Options,
    /// `None` only while reopening.
    engine: Option<Postgres>,
}

/// Options for a new schema of that server.
pub(crate) fn options(url: &str) -> Options {
    let schema = format!("store {}", STORES.fetch_add(1, Ordering::Relaxed));
    // The suite holds many views at once.
    Options { schema, connections: 32, ..Options::new(url) }
}

impl PostgresStore {
    pub(crate) fn new(url: &str, is_pooled: bool) -> Self {
        let options = Options { is_pooled, ..options(url) };
        Self { engine: Some(Postgres::open(options.clone()).unwrap()), options }
    }
}

impl Store for PostgresStore {
    fn engine(&self) -> &dyn Engine {
        self.engine.as_ref().expect("open between calls")
    }

    fn reopen(&mut self) -> bool {
        self.engine = None;
        self.engine = Some(Postgres::open(self.options.clone()).unwrap());
        true
    }

    fn restore(&self, backup: &Path) -> Box<dyn Store> {
        let options = Options { schema: format!("{} restored", self.options.schema), ..self.options.clone() };
        Box::new(Self { engine: Some(Postgres::restore(options.clone(), backup).unwrap()), options })
    }

    fn opening_begins_an_epoch(&self) -> bool {
        false
    }
}
