//! The Maintenance service.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use kubewharf_etcd_api::EtcdError;
use kubewharf_etcd_api::etcdserverpb::alarm_request::AlarmAction;
use kubewharf_etcd_api::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse, DowngradeInfo,
    HashKvRequest, HashKvResponse, HashRequest, HashResponse, MoveLeaderRequest, MoveLeaderResponse, StatusRequest,
    StatusResponse,
};

use super::server::Server;
use crate::error::Error;
use crate::limits::HASH_PAGE_KEYS;
use crate::mvcc::{KeyRange, RangeEnd, RangeQuery, SnapshotRows, range};

/// The version of etcd whose behaviour this server has. kube-apiserver turns features on by it, etcdctl compares it with its own.
pub const ETCD_VERSION: &str = "3.7.3";
/// The version that a cluster and its data have where all members are [`ETCD_VERSION`].
pub(super) const ETCD_CLUSTER_VERSION: &str = "3.7.0";

pub(super) async fn status(server: Arc<Server>, _: StatusRequest) -> Result<StatusResponse, Error> {
    let size = server.size()?;
    let reading = server.clone();
    let seq = tokio::task::spawn_blocking(move || reading.store.snapshot()?.head().map(|head| head.seq))
        .await
        .map_err(|error| Error::Unavailable(error.to_string()))??;
    let applied = server.cluster.as_ref().map_or(seq, |cluster| cluster.seq().min(seq));
    let member_id = server.store.identity().member_id;
    let quota = match server.options.quota_bytes {
        0 => size.capacity_bytes.unwrap_or(0),
        quota => quota,
    };
    Ok(StatusResponse {
        header: Some(server.header(server.store.published().newest())),
        version: ETCD_VERSION.to_owned(),
        db_size: signed(size.allocated_bytes),
        leader: server.cluster.as_ref().map_or(member_id, |cluster| cluster.leader_id()),
        raft_index: seq,
        raft_term: server.store.epoch(),
        raft_applied_index: applied,
        errors: errors(&server),
        db_size_in_use: signed(size.in_use_bytes),
        is_learner: false,
        storage_version: ETCD_CLUSTER_VERSION.to_owned(),
        db_size_quota: signed(quota),
        downgrade_info: Some(DowngradeInfo { enabled: false, target_version: String::new() }),
    })
}

/// What is wrong with this member.
fn errors(server: &Server) -> Vec<String> {
    let no_leader = server.cluster.as_ref().filter(|cluster| cluster.leader_id() == 0);
    let no_leader = no_leader.map(|_| EtcdError::NoLeader.to_string());
    server.store.failure().into_iter().chain(no_leader).chain(alarms(server).iter().map(text)).collect()
}

/// Lets another member lead. As in etcd, only the leader does that.
pub(super) async fn move_leader(server: Arc<Server>, request: MoveLeaderRequest) -> Result<MoveLeaderResponse, Error> {
    let Some(cluster) = &server.cluster else {
        return Err(Error::Unimplemented("there is one member, which leads"));
    };
    if !server.store.is_leading() {
        return Err(Error::Api(EtcdError::NotLeader));
    }
    let target = request.target_id;
    if target != cluster.member_id() {
        if !cluster.members().await?.iter().any(|member| member.id == target) {
            return Err(Error::Api(EtcdError::BadLeaderTransferee));
        }
        cluster.hand_over(target).await;
        if !cluster.leads(target).await {
            return Err(Error::Api(EtcdError::LeaderTransferTimeout));
        }
    }
    Ok(MoveLeaderResponse { header: Some(server.header(server.store.published().newest())) })
}

pub(super) async fn alarm(server: Arc<Server>, request: AlarmRequest) -> Result<AlarmResponse, Error> {
    if request.action() == AlarmAction::Activate {
        return Err(Error::Unimplemented("an alarm shows the size of the database; it can't be raised by hand"));
    }
    // Deactivating one changes nothing: it ends when there is room again.
    let header = Some(server.header(server.store.published().newest()));
    Ok(AlarmResponse { header, alarms: alarms(&server) })
}

fn alarms(server: &Server) -> Vec<AlarmMember> {
    let no_space = AlarmMember { member_id: server.store.identity().member_id, alarm: AlarmType::Nospace.into() };
    server.quota.is_exceeded().then_some(no_space).into_iter().collect()
}

/// An alarm as etcd writes it among the errors of its status.
fn text(alarm: &AlarmMember) -> String {
    format!("memberID:{} alarm:{}", alarm.member_id, alarm.alarm().as_str_name())
}

/// Nothing to do: space that is freed is used again, and nothing is rewritten.
pub(super) async fn defragment(_: Arc<Server>, _: DefragmentRequest) -> Result<DefragmentResponse, Error> {
    Ok(DefragmentResponse { header: None })
}

pub(super) async fn hash(server: Arc<Server>, _: HashRequest) -> Result<HashResponse, Error> {
    let (hash, revision) = hash_at(&server, 0).await?;
    Ok(HashResponse { header: Some(server.header(revision)), hash })
}

pub(super) async fn hash_kv(server: Arc<Server>, request: HashKvRequest) -> Result<HashKvResponse, Error> {
    let (hash, hash_revision) = hash_at(&server, request.revision).await?;
    let revisions = server.store.revisions();
    Ok(HashKvResponse {
        header: Some(server.header(revisions.newest)),
        hash,
        compact_revision: revisions.compacted,
        hash_revision,
    })
}

/// The CRC-32C of the keys as of `revision`, the newest if that is 0, and the revision. It depends on nothing else: not on the engine,
/// nor on compaction. etcd's hashes are over its own rows, so the two can't be compared.
async fn hash_at(server: &Arc<Server>, revision: i64) -> Result<(u32, i64), Error> {
    server.linearize().await?;
    let revision = server.store.revisions().resolve(revision)?;
    let mut page = Page { hash: 0, start: Some(Bytes::from_static(&[0])), revision };
    while page.start.is_some() {
        let reader = server.clone();
        page = tokio::task::spawn_blocking(move || page.read(&reader))
            .await
            .map_err(|error| Error::Unavailable(error.to_string()))??;
    }
    Ok((page.hash, revision))
}

/// Where a hash stands.
struct Page {
    hash: u32,
    /// The next key; `None` at the end.
    start: Option<Bytes>,
    revision: i64,
}

impl Page {
    fn read(mut self, server: &Server) -> Result<Self, Error> {
        let Some(start) = self.start.take() else { return Ok(self) };
        let (revisions, snapshot) = server.store.view(None)?;
        if self.revision < revisions.compacted {
            return Err(Error::Compacted);
        }
        let keys = KeyRange { start, end: RangeEnd::Unbounded };
        let query = RangeQuery { limit: HASH_PAGE_KEYS, ..RangeQuery::all(keys, self.revision) };
        let mut last = BytesMut::new();
        let outcome = range(&SnapshotRows(snapshot.as_ref()), &query, &mut |key, version| {
            let mut add = |bytes: &[u8]| self.hash = crc32c::crc32c_append(self.hash, bytes);
            // Lengths first, so that no two sets of keys have the same bytes.
            add(&(key.len() as u64).to_le_bytes());
            add(key);
            for number in [version.create_revision, version.mod_revision, version.version, version.lease] {
                add(&number.to_le_bytes());
            }
            add(&(version.value.len() as u64).to_le_bytes());
            add(version.value);
            last.clear();
            last.extend_from_slice(key);
            ControlFlow::Continue(())
        })?;
        if outcome.more {
            last.extend_from_slice(&[0]);
            self.start = Some(last.freeze());
        }
        Ok(self)
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
