//! Tests of KubeBrain as its users run it: the program, and real clients of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod client;
mod crash;
mod etcdctl;
mod faults;
mod kubernetes;
mod members;
mod oracle;
mod random;
