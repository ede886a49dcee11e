//! What the Kubernetes API looks like on the wire: what a request asks for, how a failure is told, how reviews are
//! written.
//!
//! Invariant: pure. Values come in, values go out; nothing here reads, waits or keeps state, and no product word
//! appears.

pub mod content;
pub mod json;
pub mod labels;
pub mod quote;
pub mod request_info;
pub mod review;
pub mod status;
pub mod users;

pub use request_info::RequestInfo;
pub use status::Status;
