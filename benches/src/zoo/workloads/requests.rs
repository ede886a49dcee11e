//! Reads and writes of objects.
//!
//! Invariant: both sides ask for the same: as many objects, of the same length, in namespaces that differ by name only. The list of all
//! namespaces goes, on the side without KubeZoo, by a label that only its own objects have, because the cluster has the tenants' objects
//! too.

use std::collections::BTreeMap;
use std::rc::Rc;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{Method, StatusCode};
use serde_json::json;

use super::Workload;
use crate::https::{Ask, Connection, JSON};
use crate::load::closed_loop;
use crate::zoo::cluster::{self, Cluster};
use crate::zoo::measure::{Measured, Meter};
use crate::zoo::objects::{self, LABEL, PROTOBUF, config_map};
use crate::zoo::options::{Options, Side};
use crate::zoo::tenants::Tenant;

/// Objects that are made at a time.
const MADE_AT_ONCE: usize = 32;
/// How much the length of a list may vary: by the digits of versions.
const LIST_SLACK_BYTES: usize = 64;
/// The object that is read, and those that are written.
const OBJECT: &str = "object";
const UPDATED: &str = "updated";
const PATCHED: &str = "patched";
const APPLIED: &str = "applied";

/// A side, with its objects and connections.
struct Place {
    /// The value of its objects' label.
    of: &'static str,
    /// Connections of the user who reads and writes single objects.
    connections: Vec<Rc<Connection>>,
    /// The path of single objects.
    points: String,
    /// The connection for lists of a namespace, and their target.
    list: (Rc<Connection>, String),
    /// The connection for lists of all namespaces, and their target.
    list_all: (Rc<Connection>, String),
    /// What no answer may tell.
    hidden: Vec<String>,
}

/// Both sides, ready for requests.
pub struct Requests<'a> {
    options: &'a Options,
    cluster: &'a Cluster,
    places: BTreeMap<Side, Place>,
}

impl<'a> Requests<'a> {
    /// Makes all objects.
    ///
    /// # Errors
    /// When one is refused.
    pub async fn prepare(options: &'a Options, cluster: &'a Cluster) -> Result<Self> {
        let mut places = BTreeMap::new();
        places.insert(Side::Direct, direct(options, cluster).await.context("objects of the host")?);
        places.insert(Side::Zoo, tenants(options, cluster).await.context("objects of tenants")?);
        Ok(Self { options, cluster, places })
    }

    /// One side's turn at a workload.
    ///
    /// # Errors
    /// When a request fails, or is answered wrongly.
    pub async fn turn(&self, side: Side, workload: Workload, round: u32) -> Result<Measured> {
        let place = &self.places[&side];
        match workload {
            Workload::GetJson | Workload::GetProtobuf => self.reads(side, workload, 1).await,
            Workload::ParallelGetJson | Workload::ParallelGetProtobuf => {
                self.reads(side, workload, self.options.in_flight).await
            }
            Workload::ListJson | Workload::ListProtobuf => self.lists(side, workload, &place.list).await,
            Workload::ListAllJson | Workload::ListAllProtobuf => self.lists(side, workload, &place.list_all).await,
            _ => self.writes(side, workload, round).await,
        }
    }

    async fn measure(
        &self,
        side: Side,
        in_flight: usize,
        operation: impl AsyncFn(usize, u64) -> Result<()>,
    ) -> Result<Measured> {
        let processes = match side {
            Side::Direct => self.cluster.without_zoo(),
            Side::Zoo => self.cluster.with_zoo(),
        };
        let done = closed_loop(in_flight, self.options.turn_time(), || Meter::start(processes), operation).await?;
        done.meter.stop(done.operations, &done.latency)
    }

    async fn reads(&self, side: Side, workload: Workload, in_flight: usize) -> Result<Measured> {
        let place = &self.places[&side];
        let target = format!("{}/{OBJECT}", place.points);
        let ask = read(&target, workload);
        let first = place.connections[0].expect(StatusCode::OK, &ask).await?;
        objects::check(&first, workload.is_protobuf(), false, 1, &place.hidden)?;
        let operation = async |worker: usize, _| {
            let mut bytes = 0;
            let connection = &place.connections[worker % place.connections.len()];
            let status = connection.ask(&ask, |piece| bytes += piece.len()).await?;
            ensure!(status == StatusCode::OK, "{target}: status {status}");
            ensure!(bytes == first.len(), "{target}: {bytes} bytes instead of {}", first.len());
            Ok(())
        };
        self.measure(side, in_flight, operation).await
    }

    async fn lists(&self, side: Side, workload: Workload, place: &(Rc<Connection>, String)) -> Result<Measured> {
        let (connection, target) = place;
        let ask = read(target, workload);
        let first = connection.expect(StatusCode::OK, &ask).await?;
        let hidden = &self.places[&side].hidden;
        objects::check(&first, workload.is_protobuf(), true, self.options.objects, hidden)
            .with_context(|| target.clone())?;
        let operation = async |_, _| {
            let mut bytes = 0_usize;
            let status = connection.ask(&ask, |piece| bytes += piece.len()).await?;
            ensure!(status == StatusCode::OK, "{target}: status {status}");
            let is_whole = bytes.abs_diff(first.len()) <= LIST_SLACK_BYTES;
            ensure!(is_whole, "{target}: {bytes} bytes instead of {}", first.len());
            Ok(())
        };
        self.measure(side, 1, operation).await
    }

    async fn writes(&self, side: Side, workload: Workload, round: u32) -> Result<Measured> {
        let place = &self.places[&side];
        let operation = async |_, number: u64| {
            let count = u64::from(round + 1) * 1_000_000_000 + number;
            let (connection, path) = (&place.connections[0], &place.points);
            let answer = match workload {
                Workload::Create => {
                    let body = config_map(&format!("new-{count}"), place.of, count);
                    connection.expect(StatusCode::CREATED, &Ask::with(Method::POST, path, JSON, body)).await?
                }
                Workload::Update => {
                    let target = format!("{path}/{UPDATED}");
                    let body = config_map(UPDATED, place.of, count);
                    connection.expect(StatusCode::OK, &Ask::with(Method::PUT, &target, JSON, body)).await?
                }
                Workload::Patch => {
                    let target = format!("{path}/{PATCHED}");
                    let body = format!(r#"{{"data":{{"count":"{count}"}}}}"#).into();
                    let kind = "application/merge-patch+json";
                    connection.expect(StatusCode::OK, &Ask::with(Method::PATCH, &target, kind, body)).await?
                }
                _ => connection.expect(StatusCode::OK, &apply(&applied(path), place.of, count)).await?,
            };
            let told = objects::count(&answer)?;
            ensure!(told == count, "the answer to a write tells {told} instead of {count}");
            Ok(())
        };
        self.measure(side, 1, operation).await
    }

    /// Lengths of the object and of the list, in JSON and as a client without KubeZoo gets them.
    ///
    /// # Errors
    /// When they can't be read.
    pub async fn lengths(&self) -> Result<(usize, usize)> {
        let place = &self.places[&Side::Direct];
        let target = format!("{}/{OBJECT}", place.points);
        let object = place.connections[0].expect(StatusCode::OK, &Ask::get(&target)).await?;
        let list = place.list.0.expect(StatusCode::OK, &Ask::get(&place.list.1)).await?;
        Ok((object.len(), list.len()))
    }
}

fn read(target: &str, workload: Workload) -> Ask<'_> {
    Ask::get(target).accepting(if workload.is_protobuf() { PROTOBUF } else { JSON })
}

fn applied(path: &str) -> String {
    format!("{path}/{APPLIED}?fieldManager=benchmark&force=true")
}

fn apply<'t>(target: &'t str, of: &str, count: u64) -> Ask<'t> {
    Ask::with(Method::PATCH, target, "application/apply-patch+yaml", config_map(APPLIED, of, count))
}

async fn connect(options: &Options, target: &crate::https::Target) -> Result<Vec<Rc<Connection>>> {
    let mut connections = Vec::new();
    for _ in 0..options.connections {
        connections.push(Rc::new(Connection::open(target).await?));
    }
    Ok(connections)
}

/// The objects of the host.
async fn direct(options: &Options, cluster: &Cluster) -> Result<Place> {
    let of = "host";
    let connections = connect(options, &cluster.direct).await?;
    let wide = (0..options.namespaces).map(|number| format!("host-wide-{number}"));
    let wide: Vec<String> = wide.collect();
    for namespace in ["host-points", "host-list"].into_iter().chain(wide.iter().map(String::as_str)) {
        make_namespace(&connections[0], namespace).await?;
    }
    let points = objects::path("host-points");
    make_points(&connections[0], &points, of).await?;
    make_objects(&cluster.admin, "host-list", of, options.objects).await?;
    for namespace in &wide {
        // Of another label than those of the other list.
        make_objects(&cluster.admin, namespace, "host-wide", options.objects / options.namespaces).await?;
    }
    let one = connections[0].clone();
    Ok(Place {
        of,
        connections,
        points,
        list: (one.clone(), objects::path("host-list")),
        list_all: (one, format!("/api/v1/configmaps?labelSelector={LABEL}%3Dhost-wide")),
        hidden: Vec::new(),
    })
}

/// The same objects of two tenants: of one that has single ones and a long list, and of one with several namespaces.
async fn tenants(options: &Options, cluster: &Cluster) -> Result<Place> {
    let of = "zoo";
    let tenant = Tenant::make(cluster, "points").await?;
    let connections = connect(options, &tenant.target).await?;
    let points = objects::path("default");
    make_points(&connections[0], &points, of).await?;
    make_namespace(&connections[0], "list").await?;
    make_objects(&cluster.admin, &tenant.names.inward("list"), of, options.objects).await?;

    let wide = Tenant::make(cluster, "wide").await?;
    let connection = Rc::new(Connection::open(&wide.target).await?);
    for number in 0..options.namespaces {
        let namespace = format!("wide-{number}");
        make_namespace(&connection, &namespace).await?;
        let upstream = wide.names.inward(&namespace);
        make_objects(&cluster.admin, &upstream, of, options.objects / options.namespaces).await?;
    }
    Ok(Place {
        of,
        list: (connections[0].clone(), objects::path("list")),
        list_all: (connection, "/api/v1/configmaps".to_owned()),
        hidden: [&tenant, &wide].map(|tenant| tenant.names.prefix().to_owned()).to_vec(),
        connections,
        points,
    })
}

async fn make_namespace(connection: &Connection, name: &str) -> Result<()> {
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    cluster::create(connection, "/api/v1/namespaces", &object).await.map(drop)
}

async fn make_points(connection: &Connection, path: &str, of: &str) -> Result<()> {
    for name in [OBJECT, UPDATED, PATCHED] {
        let ask = Ask::with(Method::POST, path, JSON, config_map(name, of, 0));
        connection.expect(StatusCode::CREATED, &ask).await?;
    }
    connection.expect(StatusCode::CREATED, &apply(&applied(path), of, 0)).await.map(drop)
}

/// Makes a namespace's objects upstream.
async fn make_objects(admin: &Connection, namespace: &str, of: &str, count: usize) -> Result<()> {
    let path = objects::path(namespace);
    let make = async |number: usize| {
        let body: Bytes = config_map(&format!("object-{number:05}"), of, number as u64);
        admin.expect(StatusCode::CREATED, &Ask::with(Method::POST, &path, JSON, body)).await
    };
    let mut made = stream::iter(0..count).map(make).buffer_unordered(MADE_AT_ONCE);
    while let Some(answer) = made.next().await {
        answer?;
    }
    Ok(())
}
