//! What every product needs around its own work: shutdown, clock, listeners, TLS, logs, readiness. No product words here.

pub mod clock;
pub mod listener;
pub mod shutdown;
pub mod systemd;
pub mod telemetry;
