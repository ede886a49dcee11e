//! A gRPC server straight on HTTP/2.
//!
//! Job: accept connections (plaintext or TLS, HTTP/2 or HTTP/1.1 on one port), frame and unframe gRPC messages, keep
//! every limit, and hand calls to a [`Dispatch`]. It knows no service and no message type: a message is [`Bytes`].
//!
//! Invariant: one task drives a connection and is the only one that writes to it. Handlers on any thread leave their
//! replies in the connection's inbox; the task is woken once for all of them and sends them with one write. A unary call
//! costs no task, and whatever waits for a client (reply bytes, streams, half-read requests) is bounded by
//! [`ServerOptions`].
//!
//! Left to the user of the crate: decoding, authorization, and what the methods do.
//!
//! ```no_run
//! use std::sync::Arc;
//! use bytes::Bytes;
//! use kubewharf_grpc::*;
//!
//! struct Echo;
//!
//! impl Dispatch for Echo {
//!     fn route(&self, path: &str) -> Route {
//!         match path {
//!             "/echo.Echo/Unary" => Route::Unary(MethodId(1)),
//!             path if path.starts_with("/echo.Echo/") => Route::UnknownMethod,
//!             _ => Route::UnknownService,
//!         }
//!     }
//!     fn unary(&self, _: MethodId, _: CallContext, message: Bytes, reply: UnaryReply) {
//!         reply.send(Ok(Reply::from(message)));
//!     }
//!     fn stream(&self, _: MethodId, _: CallContext, _: RequestStream, responses: ResponseSink) {
//!         responses.finish(Status::new(Code::Unimplemented, "no streams here"));
//!     }
//! }
//!
//! # async fn run() -> std::io::Result<()> {
//! let server = Server::new(Arc::new(Echo), ServerOptions::default());
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:2379").await?;
//! server.serve(listener, None, std::future::pending()).await;
//! # Ok(())
//! # }
//! ```

mod call;
mod connection;
mod deframer;
mod dispatch;
mod http1;
mod inbox;
mod limits;
mod reply;
mod server;
mod slab;
mod stall;
mod stats;
mod status;
mod stream;
mod unary;
mod wire;

pub use bytes::Bytes;

pub use call::{CallContext, Peer, PeerAddress};
pub use dispatch::{Dispatch, HttpFuture, MethodId, Route};
pub use inbox::WakeBatch;
pub use limits::ServerOptions;
pub use reply::Reply;
pub use server::{Listener, Server, TlsSource};
pub use stats::Stats;
pub use status::{Code, Status};
pub use stream::{Closed, RequestStream, ResponseSink, TrySendError};
pub use unary::UnaryReply;
