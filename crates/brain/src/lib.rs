//! KubeBrain: etcd's v3 API over an ordered, durable engine.
//!
//! [`mvcc`] says what requests mean as rows, [`committer`] makes writes durable and orders them, [`watch`] and [`lease`] follow the
//! confirmed changes, [`rpc`] is the only part that knows the wire.

pub mod autocompact;
pub mod changelog;
pub mod cluster;
pub mod committer;
pub mod compaction;
pub mod config;
pub mod error;
pub mod lease;
pub mod limits;
mod meta;
pub mod mvcc;
pub mod rpc;
pub mod run;
#[cfg(test)]
mod simulation;
pub mod store;
pub mod watch;

pub use error::Error;
pub use meta::Identity;
pub use run::run;
pub use store::{Store, StoreOptions};
