//! Runs real programs beside the tests: etcd, kube-apiserver, kubectl, PostgreSQL, and the product itself.
//!
//! Everything listens on the loopback network, on addresses that no other process takes ([`address`]). Whatever is
//! started here ends with the process that started it ([`process`]).

pub mod address;
pub mod clock;
pub mod cluster;
pub mod error;
pub mod folder;
pub mod go_program;
pub mod http;
pub mod informers;
pub mod kubernetes;
pub mod members;
pub mod namespace;
pub mod network;
pub mod pki;
pub mod postgres;
pub mod process;
pub mod storage_tests;
pub mod store;
pub mod tikv;
pub mod tls;
pub mod tools;
pub mod usage;

pub use error::{Error, Result};
