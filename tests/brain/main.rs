//! Tests of KubeBrain as its users run it: the program, and real clients of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod client;
mod clocks;
mod crash;
mod cuts;
mod etcdctl;
mod failover;
mod faults;
mod full;
mod kubernetes;
mod members;
mod oracle;
mod random;
