//! Multi-version concurrency control: what keys had which versions at which revision, as rows of an engine.
//!
//! Pure code: it takes rows and requests, and gives rows and responses. Durability and order are the [committer](crate::committer)'s,
//! bytes on the wire the [rpc](crate::rpc) module's.

mod history;
mod order;
mod range;
mod record;
mod txn;
pub mod validate;
mod view;
mod writer;

pub use range::{
    KeyRange, KeySink, Progress, RangeEnd, RangeOutcome, RangeQuery, Reading, Receiver, Share, SortTarget, range,
};
pub use record::{
    Change, Current, Ladder, LeaseRecord, Position, Previous, Rungs, Version, attached_key, attachment_key, lease_id,
    lease_key,
};
pub use txn::{Bounds, Evaluator, Refusal, Revisions, is_read_only, may_put, omits_lease, query, single_keys};
pub use view::{Layered, OneRow, Overlay, RecentRows, Rows, SnapshotRows};
pub use writer::{ChangeSink, Writer};

#[cfg(test)]
mod tests;
