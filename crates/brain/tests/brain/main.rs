//! The store as a whole, without the wire.

mod committer;
