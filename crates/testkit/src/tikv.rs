//! A store in a TiKV cluster.
//!
//! No package has TiKV's servers and they take long to build, so tests use a cluster that is there already: [`PD_VARIABLE`] names it. Without it they
//! say so and test nothing.
//!
//! Invariant: each store has a name of its own in the cluster. What tests have stored stays there.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::process::Spec;

/// Names the PDs of a cluster for tests: `host:port`, separated by commas.
pub const PD_VARIABLE: &str = "PD_ADDRS";

static STORES: AtomicU32 = AtomicU32::new(0);

/// A store's place in a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tikv {
    /// Where the cluster is, as `--engine-url` takes it.
    pub url: String,
    /// The store's name, as `--engine-schema` takes it.
    pub schema: String,
}

impl Tikv {
    /// A place for a new store in the cluster that the environment names; `None`, and a line that says so, if it names none.
    #[must_use]
    pub fn from_environment() -> Option<Self> {
        match std::env::var(PD_VARIABLE) {
            Ok(addresses) if !addresses.trim().is_empty() => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
                let number = STORES.fetch_add(1, Ordering::Relaxed);
                let schema = format!("test-{since}-{}-{number}", std::process::id());
                Some(Self { url: format!("tikv://{addresses}"), schema })
            }
            _ => {
                eprintln!("not tested: {PD_VARIABLE} names no TiKV cluster");
                None
            }
        }
    }

    /// Tells a KubeBrain to use it.
    pub(crate) fn add_to(&self, spec: Spec) -> Spec {
        spec.arg("--engine=tikv").env("ETCD_ENGINE_URL", &self.url).env("ETCD_ENGINE_SCHEMA", &self.schema)
    }
}
