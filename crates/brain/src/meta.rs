//! Rows about the store itself.

use bytes::Bytes;
use kubewharf_engine::Cause;

/// The compacted revision.
pub(crate) const COMPACTED: Bytes = Bytes::from_static(b"compacted");
/// The cluster's id and the member's.
pub(crate) const IDENTITY: Bytes = Bytes::from_static(b"identity");

/// Which member leads, or that one has let go.
pub(crate) const LEADER: Bytes = Bytes::from_static(b"leader");
/// The head that the newest takeover has found.
pub(crate) const PREVIOUS: Bytes = Bytes::from_static(b"previous");
/// Begins the keys of the members' rows; the end of their range is the same with the last byte one higher.
pub(crate) const MEMBERS: &[u8] = b"member/";
/// The end of the members' rows.
pub(crate) const MEMBERS_END: &[u8] = b"member0";

/// The key of a member's row.
pub(crate) fn member_key(id: u64) -> Bytes {
    [MEMBERS, &id.to_be_bytes()].concat().into()
}

pub(crate) fn encode_revision(revision: i64) -> Bytes {
    Bytes::copy_from_slice(&revision.to_le_bytes())
}

pub(crate) fn decode_revision(row: &[u8]) -> Result<i64, Cause> {
    row.try_into()
        .map(i64::from_le_bytes)
        .map_err(|_| Cause::Corrupt("the row of the compacted revision is not 8 bytes long".to_owned()))
}

/// Who answers: both ids stand in every response header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The same for all members over one engine.
    pub cluster_id: u64,
    /// This member's.
    pub member_id: u64,
}

impl Identity {
    pub(crate) fn encode(self) -> Bytes {
        let mut row = [0; 16];
        row[..8].copy_from_slice(&self.cluster_id.to_le_bytes());
        row[8..].copy_from_slice(&self.member_id.to_le_bytes());
        Bytes::copy_from_slice(&row)
    }

    pub(crate) fn decode(row: &[u8]) -> Result<Self, Cause> {
        let row: &[u8; 16] =
            row.try_into().map_err(|_| Cause::Corrupt("the identity row is not 16 bytes long".to_owned()))?;
        let (cluster, member) = row.split_at(8);
        Ok(Self {
            cluster_id: u64::from_le_bytes(cluster.try_into().expect("half of 16 bytes")),
            member_id: u64::from_le_bytes(member.try_into().expect("half of 16 bytes")),
        })
    }
}
