//! What the user of the crate implements: which methods exist, and what they do.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};

use crate::{CallContext, Code, Peer, RequestStream, ResponseSink, UnaryReply};

/// A method, by a number that the [`Dispatch`] chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MethodId(pub u16);

/// Where a request path leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// A method with one request message and one reply.
    Unary(MethodId),
    /// A method where either side may send many messages.
    Streaming(MethodId),
    /// The service exists, the method doesn't.
    UnknownMethod,
    /// There is no such service.
    UnknownService,
}

/// The future of a plain HTTP exchange.
pub type HttpFuture = Pin<Box<dyn Future<Output = Response<Bytes>> + Send>>;

/// The methods of a server.
///
/// `route`, `unary` and `stream` run on the connection's task. They must not block: whatever waits hands its reply
/// handle to a thread or a task of its own. A panic in them ends the one call with an Internal status.
pub trait Dispatch: Send + Sync + 'static {
    /// Finds the method of a path such as `/package.Service/Method`.
    fn route(&self, path: &str) -> Route;

    /// Starts a unary call whose request message has arrived as a whole.
    ///
    /// `message` may share a larger receive buffer: copy what is kept for long.
    fn unary(&self, method: MethodId, context: CallContext, message: Bytes, reply: UnaryReply);

    /// Starts a streaming call. Usually spawns a task that owns both ends.
    fn stream(&self, method: MethodId, context: CallContext, requests: RequestStream, responses: ResponseSink);

    /// Takes note that a call of this method has ended, and how: with the handler's status, or with that of a client that went away, a
    /// deadline that passed, or a message that broke the protocol. For counting: runs on the connection's task for every call.
    fn ended(&self, method: MethodId, code: Code) {
        let _ = (method, code);
    }

    /// Answers a request that is not gRPC, over HTTP/1.1 or HTTP/2. The body was collected within the limit.
    ///
    /// The default says 415 Unsupported Media Type to everything.
    fn http(&self, request: Request<Bytes>, peer: Arc<Peer>) -> HttpFuture {
        let _ = (request, peer);
        Box::pin(async {
            let mut response = Response::new(Bytes::from_static(b"this port speaks gRPC\n"));
            *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            response
        })
    }
}
