//! What every product needs and no product owns: shutdown, TLS files, listeners, clocks, logs, the limit of open files,
//! memory, the service manager.
//!
//! Invariant: no product word appears here, and nothing here starts by itself; a product asks for each part.

pub mod clock;
pub mod descriptors;
mod error;
pub mod listener;
pub mod memory;
pub mod shutdown;
pub mod systemd;
pub mod telemetry;
pub mod tls;

pub use error::Error;
pub use shutdown::Shutdown;
