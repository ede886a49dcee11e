//! The tables of an engine.

/// A named, ordered set of rows. The number is the table's prefix byte in engines that have one keyspace; never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Table {
    /// Small rows about the store itself: format version, identity, compacted revision.
    Meta = 0,
    /// The latest version of each key, by key.
    Current = 1,
    /// The committed changes, by revision and position within it.
    Log = 2,
    /// Leases, by id.
    Lease = 3,
    /// Keys attached to a lease, by lease id and key.
    LeaseKey = 4,
}

impl Table {
    /// Every table, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Meta, Self::Current, Self::Log, Self::Lease, Self::LeaseKey];

    /// The table's position in [`Table::ALL`] and its prefix byte.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The name under which an engine with named tables keeps it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Current => "current",
            Self::Log => "log",
            Self::Lease => "lease",
            Self::LeaseKey => "lease_key",
        }
    }
}
