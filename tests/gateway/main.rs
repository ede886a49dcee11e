//! Tests of KubeGateway as its users run it: the program in front of real kube-apiservers, and real clients of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod attacks;
mod connections;
mod endings;
mod faults;
mod fixture;
mod h2spec;
mod identity;
mod kubectl;
mod kubelet;
mod load;
mod mock;
mod nodes;
mod raw;
mod recorder;
mod reload;
mod rolling;
mod smuggling;
mod spoofing;
mod trace;
mod unprocessed;
mod upgrade;
