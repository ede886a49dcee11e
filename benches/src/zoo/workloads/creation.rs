//! New tenants: until one can be used, and how many there can be in a second.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, stream};
use http::{Method, StatusCode};
use kubewharf_zoo::tenant::CLUSTER_ROLE;
use serde_json::json;

use crate::histogram::Histogram;
use crate::https::{Ask, Connection, JSON};
use crate::zoo::cluster::{Cluster, WITHIN};
use crate::zoo::measure::Meter;
use crate::zoo::objects::{self, config_map};
use crate::zoo::results::{BulkTurn, CreationTurn, HandTurn, Spread};
use crate::zoo::tenants::{Tenant, credential, make, make_many};

/// Makes a first tenant. For the first two seconds of a new kind, a kube-apiserver lets whoever makes an object of it wait.
///
/// # Errors
/// When something is refused.
pub async fn warm_up(cluster: &Cluster) -> Result<()> {
    Tenant::make(cluster, "first").await?;
    cluster.zoo.wait_until_idle().await
}

/// Makes tenants, so many at a time. Each has an object of its own at the end, made with its own credential.
///
/// # Errors
/// When something is refused.
pub async fn usable(cluster: &Cluster, round: u32, tenants: usize, at_once: usize) -> Result<CreationTurn> {
    cluster.zoo.wait_until_idle().await?;
    let latencies: RefCell<[Histogram; 4]> = RefCell::default();
    let one = async |number: usize| {
        let name = format!("new-{round}-{at_once}-{number}");
        let begun = Instant::now();
        make(&cluster.admin, &name).await?;
        let made = begun.elapsed();
        let config = credential(&cluster.zoo, &name).await?;
        let known = begun.elapsed();
        let connection = Connection::open(&cluster.zoo.target(config)).await?;
        let path = objects::path("default");
        let ask = Ask::with(Method::POST, &path, JSON, config_map("first", &name, 0));
        connection.expect(StatusCode::CREATED, &ask).await.with_context(|| format!("tenant {name}"))?;
        let usable = begun.elapsed();
        for (histogram, duration) in latencies.borrow_mut().iter_mut().zip([made, known - made, usable - known, usable])
        {
            histogram.record(duration);
        }
        anyhow::Ok(())
    };
    let meter = Meter::start(cluster.with_zoo())?;
    let mut all = stream::iter(0..tenants).map(one).buffer_unordered(at_once);
    while let Some(done) = all.next().await {
        done?;
    }
    drop(all);
    let (wall_seconds, _) = meter.read()?;
    // What is left to be made in the background belongs to it too.
    cluster.zoo.wait_until_idle().await?;
    let (_, cpu_seconds) = meter.read()?;
    let [made, credential, first, whole] = latencies.into_inner().map(|histogram| spread(&histogram));
    Ok(CreationTurn { round, tenants, at_once, made, credential, first, whole, wall_seconds, cpu_seconds })
}

/// Does by hand what makes a namespace usable for somebody, so many at a time: what KubeZoo can't do faster than the kube-apiserver does it. A
/// namespace, a binding, and the object of a user who has a connection of its own.
///
/// # Errors
/// When something is refused.
pub async fn by_hand(cluster: &Cluster, round: u32, tenants: usize, at_once: usize) -> Result<HandTurn> {
    cluster.zoo.wait_until_idle().await?;
    let latencies: RefCell<Histogram> = RefCell::default();
    let one = async |number: usize| {
        let name = format!("hand-{round}-{at_once}-{number}");
        let begun = Instant::now();
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        cluster.create("/api/v1/namespaces", &namespace).await?;
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "user"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": CLUSTER_ROLE},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}],
        });
        let path = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{name}/rolebindings");
        cluster.create(&path, &binding).await?;
        let connection = Connection::open(&cluster.direct).await?;
        let path = objects::path(&name);
        let ask = Ask::with(Method::POST, &path, JSON, config_map("first", &name, 0)).acting_as(&name);
        let mut pause = Duration::from_millis(1);
        // A kube-apiserver takes a moment to know a new rule.
        while connection.ask(&ask, drop).await? == StatusCode::FORBIDDEN {
            ensure!(pause < WITHIN, "{name} may never write");
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        latencies.borrow_mut().record(begun.elapsed());
        anyhow::Ok(())
    };
    let meter = Meter::start(cluster.without_zoo())?;
    let mut all = stream::iter(0..tenants).map(one).buffer_unordered(at_once);
    while let Some(done) = all.next().await {
        done?;
    }
    drop(all);
    let (wall_seconds, cpu_seconds) = meter.read()?;
    Ok(HandTurn { round, tenants, at_once, whole: spread(&latencies.into_inner()), wall_seconds, cpu_seconds })
}

fn spread(histogram: &Histogram) -> Spread {
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    Spread { p50_ms: ms(histogram.quantile(0.5)), p99_ms: ms(histogram.quantile(0.99)), max_ms: ms(histogram.max()) }
}

/// Makes tenants as fast as they can be made, until all of their namespaces are there.
///
/// # Errors
/// When something is refused, or does not come.
pub async fn bulk(cluster: &Cluster, round: u32, tenants: usize) -> Result<BulkTurn> {
    cluster.zoo.wait_until_idle().await?;
    let meter = Meter::start(cluster.with_zoo())?;
    make_many(cluster, &format!("bulk-{round}-"), tenants, |_| {}).await?;
    let (wall_seconds, _) = meter.read()?;
    cluster.zoo.wait_until_idle().await?;
    let (_, cpu_seconds) = meter.read()?;
    Ok(BulkTurn { round, tenants, wall_seconds, cpu_seconds })
}
