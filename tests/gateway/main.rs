//! Tests of KubeGateway as its users run it: the program in front of real kube-apiservers, and real clients of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod connections;
mod faults;
mod fixture;
mod identity;
mod kubectl;
mod load;
mod mock;
mod nodes;
mod reload;
mod rolling;
mod trace;
mod unprocessed;
mod upgrade;
