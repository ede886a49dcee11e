//! The store as a whole: without the wire, and over it.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test, and says where")]

mod cluster;
mod committer;
mod damage;
mod lists;
mod product;
