//! The operator's limit of the database's size (`--quota-backend-bytes`).
//!
//! As in etcd, writes that need room are refused and a NOSPACE alarm shows from the moment when the size is over the limit. Unlike
//! there, the alarm ends by itself when compaction and deletions have made room. Without the flag, only the engine sets a limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kubewharf_etcd_api::etcdserverpb::TxnRequest;
use tracing::{info, warn};

use super::server::Server;
use crate::error::Error;
use crate::mvcc::may_put;

/// How often the size is compared with the limit.
const INTERVAL: Duration = Duration::from_millis(250);

/// Whether there is room.
#[derive(Debug, Default)]
pub(crate) struct Quota {
    exceeded: AtomicBool,
}

impl Quota {
    /// Whether the size is over the limit.
    pub(crate) fn is_exceeded(&self) -> bool {
        self.exceeded.load(Ordering::Relaxed)
    }

    /// Refuses a write that needs room if there is none.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.is_exceeded() { Err(Error::NoSpace("over --quota-backend-bytes".to_owned())) } else { Ok(()) }
    }

    /// As [`Quota::check`], if the transaction may put anything.
    pub(crate) fn check_txn(&self, request: &TxnRequest) -> Result<(), Error> {
        if self.is_exceeded() && may_put(request) { self.check() } else { Ok(()) }
    }

    fn look(&self, server: &Server) {
        let limit_bytes = server.options.quota_bytes;
        let Ok(size) = server.size() else { return };
        let exceeded = size.in_use_bytes > limit_bytes;
        if self.exceeded.swap(exceeded, Ordering::Relaxed) != exceeded {
            let in_use_bytes = size.in_use_bytes;
            if exceeded {
                warn!(in_use_bytes, limit_bytes, "over --quota-backend-bytes: writes that need room are refused");
            } else {
                info!(in_use_bytes, limit_bytes, "below --quota-backend-bytes again");
            }
        }
    }
}

/// Compares the size with the limit until it is dropped.
pub(crate) async fn run(server: Arc<Server>) {
    if server.options.quota_bytes == 0 {
        return;
    }
    loop {
        let looking = server.clone();
        // The engine may touch the disk for its size.
        if tokio::task::spawn_blocking(move || looking.quota.look(&looking)).await.is_err() {
            return;
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
