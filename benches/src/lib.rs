//! Side-by-side benchmarks: the same load on the product and on what it replaces, in one run on one machine.
//!
//! Servers are measured from outside, as the kernel counts ([`usage`]), so neither side can flatter itself. The load
//! comes from one thread that does as little as it can ([`client`]), so that two cores suffice; it still checks every
//! answer ([`wire`]), because a store that answers wrongly has no speed.
//!
//! Invariant: a number in a document comes from the JSON of a run; no text here holds one.

pub mod brain;
pub mod client;
pub mod document;
pub mod gateway;
pub mod histogram;
pub mod https;
pub mod load;
pub mod machine;
pub mod members;
pub mod program;
pub mod tls;
pub mod turns;
pub mod usage;
pub mod wire;
pub mod zoo;
