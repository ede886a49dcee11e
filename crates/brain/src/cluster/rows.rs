//! The rows that members share, and what they tell each other.

use bytes::Bytes;
use kubewharf_engine::{Cause, Direction, EngineError, Snapshot, Table};
use kubewharf_etcd_api::etcdserverpb::Member;
use prost::Message;

use crate::meta;

/// Who leads in an epoch; written by the commit that begins it.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Leadership {
    /// The epoch.
    #[prost(uint64, tag = "1")]
    pub(crate) epoch: u64,
    /// The leader; `None` if the leader before has let go.
    #[prost(message, optional, tag = "2")]
    pub(crate) leader: Option<Member>,
    /// Where nobody leads: the member that is to take over, 0 for any.
    #[prost(uint64, tag = "3")]
    pub(crate) successor: u64,
    /// The leader's process.
    #[prost(uint64, tag = "4")]
    pub(crate) process: u64,
    /// Why nobody may lead until an operator says so; empty for "somebody may".
    #[prost(string, tag = "5")]
    pub(crate) halted: String,
}

/// A follower's question: answered when there is more than `revision`, when leadership changes, or after a moment.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct FollowRequest {
    /// The epoch in which the answering process is thought to lead.
    #[prost(uint64, tag = "1")]
    pub(crate) epoch: u64,
    /// The process that is thought to lead.
    #[prost(uint64, tag = "5")]
    pub(crate) process: u64,
    /// What the follower has.
    #[prost(int64, tag = "2")]
    pub(crate) revision: i64,
    /// The compacted revision that it knows.
    #[prost(int64, tag = "3")]
    pub(crate) compacted: i64,
    /// The follower.
    #[prost(message, optional, tag = "4")]
    pub(crate) member: Option<Member>,
}

/// Whether a process leads in an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Leads {
    /// It is another process.
    NotMe = 0,
    /// It is about to.
    NotYet = 1,
    /// It does.
    Now = 2,
    /// It does no more.
    NoMore = 3,
}

/// The answer to [`FollowRequest`].
#[derive(Clone, PartialEq, Message)]
pub(crate) struct FollowResponse {
    /// Whether the answering process leads in that epoch.
    #[prost(enumeration = "Leads", tag = "1")]
    pub(crate) leads: i32,
    /// The newest revision that it has confirmed.
    #[prost(int64, tag = "2")]
    pub(crate) revision: i64,
    /// The compacted revision, likewise.
    #[prost(int64, tag = "3")]
    pub(crate) compacted: i64,
}

/// Reads who leads in an epoch: nobody in one that was not begun by a member.
pub(crate) fn leadership(snapshot: &dyn Snapshot, epoch: u64) -> Result<Leadership, EngineError> {
    let mut row = None;
    snapshot.get(Table::Meta, &meta::LEADER, &mut |found| row = Some(Leadership::decode(found)))?;
    let row = row.transpose().map_err(|error| Cause::Corrupt(format!("the leader's row: {error}")))?;
    let nobody = Leadership { epoch, ..Leadership::default() };
    Ok(row.filter(|row| row.epoch == epoch).unwrap_or(nobody))
}

/// Reads the members, in the order of their ids.
pub(crate) fn members(snapshot: &dyn Snapshot) -> Result<Vec<Member>, EngineError> {
    use std::ops::{Bound, ControlFlow};
    let mut members = Vec::new();
    let mut failed = Ok(());
    let range = (Bound::Included(meta::MEMBERS), Bound::Excluded(meta::MEMBERS_END));
    snapshot.scan(Table::Meta, range, Direction::Forward, &mut |_, row| match Member::decode(row) {
        Ok(member) => {
            members.push(member);
            ControlFlow::Continue(())
        }
        Err(error) => {
            failed = Err(Cause::Corrupt(format!("a member's row: {error}")));
            ControlFlow::Break(())
        }
    })?;
    failed?;
    Ok(members)
}

/// A member's row.
pub(crate) fn encode(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}
