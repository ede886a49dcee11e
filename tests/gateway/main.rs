//! Tests of KubeGateway as its users run it: the program in front of real kube-apiservers, and real clients of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod fixture;
mod identity;
mod kubectl;
mod load;
mod reload;
mod rolling;
mod upgrade;
