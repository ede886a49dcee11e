//! The stores of the cluster and the connections to them.
//!
//! Job: a store's address, as PD tells it, and a few connections to each, so that pages of large scans are not in the way of commits.
//!
//! Invariant: a store that can't be reached, or is not the one that was meant, is asked for again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kubewharf_engine::Cause;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::channel::Line;
use super::pd::Pd;
use super::{Use, unavailable};
use crate::generated::metapb::StoreState;
use crate::generated::pdpb::GetStoreRequest;

/// The stores that were asked for.
#[derive(Debug)]
pub(crate) struct Stores {
    by_id: Mutex<HashMap<u64, Arc<Store>>>,
    /// Connections for views, to each of them.
    for_views: usize,
}

/// A store.
#[derive(Debug)]
pub(crate) struct Store {
    /// The first is for what is urgent.
    lines: Vec<Line>,
    turn: AtomicUsize,
}

impl Store {
    fn new(address: &str, for_views: usize) -> Self {
        let lines = (0..=for_views).map(|_| Line::new(address.to_owned())).collect();
        Self { lines, turn: AtomicUsize::new(0) }
    }

    pub(crate) fn line(&self, what_for: Use) -> &Line {
        match what_for {
            Use::Urgent => &self.lines[0],
            Use::Views => &self.lines[1 + self.turn.fetch_add(1, Ordering::Relaxed) % (self.lines.len() - 1)],
        }
    }
}

impl Stores {
    pub(crate) fn new(for_views: usize) -> Self {
        Self { by_id: Mutex::default(), for_views: for_views.max(1) }
    }

    /// The store, asked for if it is not known.
    pub(crate) async fn get(&self, id: u64, pd: &Pd, deadline: Instant) -> Result<Arc<Store>, Cause> {
        if let Some(store) = self.by_id.lock().get(&id) {
            return Ok(store.clone());
        }
        let answer = pd.ask(GetStoreRequest { header: None, store_id: id }, deadline).await?;
        let found = answer.store.filter(|store| store.state() != StoreState::Tombstone && !store.address.is_empty());
        let found = found.ok_or_else(|| unavailable(format!("PD knows no store {id} that is in use")))?;
        let store = Arc::new(Store::new(&found.address, self.for_views));
        // Another caller's may be there meanwhile.
        Ok(self.by_id.lock().entry(id).or_insert(store).clone())
    }

    /// Asks for the store again when it is next needed.
    pub(crate) fn forget(&self, id: u64) {
        self.by_id.lock().remove(&id);
    }

    /// Connects anew when a connection is next needed.
    pub(crate) fn renew(&self) {
        self.by_id.lock().clear();
    }
}
