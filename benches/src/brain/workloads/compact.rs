//! Compaction, with the removal of what it frees.

use std::time::Instant;

use anyhow::Result;
use kubewharf_etcd_api::Method;

use super::Bench;
use crate::brain::measure::{Measured, Meter};
use crate::brain::requests;
use crate::histogram::Histogram;

impl Bench {
    /// Both sides answer at once and remove the old versions later, so the work is over when the server is idle.
    pub(super) async fn compact(&self) -> Result<Measured> {
        let revision = self.revision().await?;
        let meter = Meter::start(&self.target)?;
        let begun = Instant::now();
        let mut latency = Histogram::default();
        self.connections[0].unary(Method::Compact, requests::compact(revision)).await?;
        latency.record(begun.elapsed());
        self.target.wait_until_idle().await?;
        meter.stop(1, revision.unsigned_abs(), &latency).await
    }
}
