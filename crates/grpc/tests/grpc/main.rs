//! The server against real clients: tonic, raw HTTP/2 frames, and plain sockets.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod drain;
mod http;
mod limits;
mod streams;
mod support;
mod tls;
mod unary;
