//! The head row: the store's position, compared whole and replaced by every commit.

/// Where the store stands. Every commit names the head it expects and the one that it leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Head {
    /// Grows when a process takes the store over; a writer of an older epoch is fenced.
    pub epoch: u64,
    /// Grows by one with every commit, also with those that leave `revision` alone.
    pub seq: u64,
    /// The newest revision; 1 in an empty store, as in etcd.
    pub revision: i64,
    /// Unique to the batch that left this head: the writer's random incarnation and `seq`.
    pub batch_id: u128,
}

impl Head {
    /// Bytes of an encoded head.
    pub const ENCODED_BYTES: usize = 40;

    /// The head's stored form: epoch, seq, revision, batch id, each little-endian.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::ENCODED_BYTES] {
        let mut row = [0; Self::ENCODED_BYTES];
        row[..8].copy_from_slice(&self.epoch.to_le_bytes());
        row[8..16].copy_from_slice(&self.seq.to_le_bytes());
        row[16..24].copy_from_slice(&self.revision.to_le_bytes());
        row[24..].copy_from_slice(&self.batch_id.to_le_bytes());
        row
    }

    /// Reads [`Head::encode`]'s form; `None` if it has another length.
    #[must_use]
    pub fn decode(row: &[u8]) -> Option<Self> {
        let row: &[u8; Self::ENCODED_BYTES] = row.try_into().ok()?;
        Some(Self {
            epoch: u64::from_le_bytes(row[..8].try_into().ok()?),
            seq: u64::from_le_bytes(row[8..16].try_into().ok()?),
            revision: i64::from_le_bytes(row[16..24].try_into().ok()?),
            batch_id: u128::from_le_bytes(row[24..].try_into().ok()?),
        })
    }
}
