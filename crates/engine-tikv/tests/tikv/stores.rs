//! The engine as the suite wants it.

use std::path::Path;

use kubewharf_engine::Engine;
use kubewharf_engine::conformance::Store;
use kubewharf_engine_tikv::{Options, Tikv};
use kubewharf_testkit::tikv::Tikv as Place;

/// Options for a new store in the cluster.
pub(crate) fn options() -> Options {
    let place = Place::from_environment().expect("tests run only where there is a cluster");
    Options { schema: place.schema, ..Options::new(place.url) }
}

/// The same with a parameter more.
pub(crate) fn with_parameter(options: Options, parameter: &str) -> Options {
    let separator = if options.url.contains('?') { '&' } else { '?' };
    Options { url: format!("{}{separator}{parameter}", options.url), ..options }
}

/// A store in a place of its own.
pub(crate) struct TikvStore {
    options: Options,
    /// `None` only while reopening.
    engine: Option<Tikv>,
}

impl TikvStore {
    pub(crate) fn new(options: Options) -> Self {
        Self { engine: Some(Tikv::open(options.clone()).unwrap()), options }
    }
}

impl Store for TikvStore {
    fn engine(&self) -> &dyn Engine {
        self.engine.as_ref().expect("open between calls")
    }

    fn reopen(&mut self) -> bool {
        self.engine = None;
        self.engine = Some(Tikv::open(self.options.clone()).unwrap());
        true
    }

    fn restore(&self, backup: &Path) -> Box<dyn Store> {
        let options = Options { schema: options().schema, ..self.options.clone() };
        Box::new(Self { engine: Some(Tikv::restore(options.clone(), backup).unwrap()), options })
    }

    fn opening_begins_an_epoch(&self) -> bool {
        false
    }
}
