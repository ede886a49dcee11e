//! What idle tenants cost: memory, and the time to start with all of them there.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kubewharf_testkit::usage::memory;

use crate::usage::proportional_bytes;
use crate::zoo::cluster::{Cluster, WITHIN};
use crate::zoo::options::Options;
use crate::zoo::results::{Idle, Start};
use crate::zoo::tenants::make_many;

/// Until what was done has come to rest.
const SETTLE: Duration = Duration::from_secs(2);
/// Time between two looks at how many tenants are known.
const POLL: Duration = Duration::from_millis(10);

/// Measures a KubeZoo without tenants, with some, with all, and one that starts with all of them there.
///
/// # Errors
/// When tenants are refused, or do not come.
pub async fn idle_tenants(options: &Options, cluster: &mut Cluster, progress: &dyn Fn(&str)) -> Result<Vec<Idle>> {
    let mut measured = Vec::new();
    let start = restart(cluster, 0).await?;
    measured.push(look(cluster, 0, Some(start)).await?);
    let mut there = 0;
    for wanted in options.tenant_counts() {
        let begun = Instant::now();
        make_many(cluster, &format!("idle-{there}-"), wanted - there, |tenants| {
            progress(&format!("  {} of {wanted} tenants", there + tenants));
        })
        .await?;
        let rate = (wanted - there) as f64 / begun.elapsed().as_secs_f64();
        progress(&format!("  {wanted} tenants, {rate:.0} a second"));
        there = wanted;
        measured.push(look(cluster, there, None).await?);
    }
    let start = restart(cluster, there).await?;
    measured.push(look(cluster, there, Some(start)).await?);
    Ok(measured)
}

/// Stops KubeZoo and starts it with so many tenants there.
async fn restart(cluster: &mut Cluster, tenants: usize) -> Result<Start> {
    cluster.zoo.stop().await?;
    let begun = Instant::now();
    let ready = cluster.zoo.run().await?;
    // It may be ready before it has read them all.
    while cluster.zoo.metric("kubezoo_tenants").await? < tenants as f64 {
        ensure!(begun.elapsed() < WITHIN, "KubeZoo does not get to know {tenants} tenants within {WITHIN:?}");
        tokio::time::sleep(POLL).await;
    }
    Ok(Start { ready_seconds: ready.as_secs_f64(), known_seconds: begun.elapsed().as_secs_f64() })
}

async fn look(cluster: &Cluster, tenants: usize, start: Option<Start>) -> Result<Idle> {
    cluster.zoo.wait_until_idle().await?;
    tokio::time::sleep(SETTLE).await;
    let processes = cluster.with_zoo();
    let zoo = processes.zoo.context("KubeZoo does not run")?;
    let of_zoo = memory(zoo)?;
    Ok(Idle {
        tenants,
        start,
        resident_bytes: of_zoo.resident,
        resident_peak_bytes: of_zoo.resident_max,
        anonymous_bytes: of_zoo.anonymous,
        proportional_bytes: proportional_bytes(zoo)?,
        apiserver_resident_bytes: memory(processes.apiserver)?.resident,
        store_resident_bytes: memory(processes.store)?.resident,
    })
}
