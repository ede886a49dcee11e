//! Watches: what was committed reaches whoever asked for it, in order, once, and a transaction at a time.
//!
//! The committer fills an [`EventsBuilder`] while it evaluates a batch and hands the events to the [`Hub`] when the
//! batch is confirmed. The hub keeps them in a ring bounded in bytes ([`ring`]), finds the groups of watches that a
//! piece of the ring concerns ([`index`]), and wakes the streams that have such a watch. A [`stream`] is one task; each
//! of its watches is a position in the history, never a queue, and takes what lies between there and the newest
//! revision from the ring. A watch whose position is not in the ring, because it starts in the past or its client reads
//! slowly, takes pages of the log until it is ([`replay`]).
//!
//! Encoded events are shared: all watches with the same range, filters and form of events send the same bytes, which
//! are usually the ring's own.
//!
//! Invariant: a watch gets every change of its range from its first revision on exactly once and in order, or is told
//! that the history from its position on is compacted. Nothing is sent that is not published.

mod events;
mod hub;
mod index;
mod replay;
mod response;
mod ring;
mod slab;
mod spec;
mod stream;
#[cfg(test)]
mod tests;

pub use events::{EventBatch, EventsBuilder};
pub use hub::{Hub, Statistics};
pub(crate) use response::Message;
pub(crate) use stream::{End, Gone, Outlet, Requests, StreamOptions, WatchStream};
