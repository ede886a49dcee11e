//! Between members: calls that a follower sends on, and the port where a leader takes them.
//!
//! Invariant: what comes to the peers' port is answered there and never sent on, so a call makes one hop at most.

use std::sync::Arc;

use bytes::Bytes;
use kubewharf_etcd_api::Method;
use kubewharf_grpc::{
    CallContext, Code, Dispatch, HttpFuture, MethodId, Peer, RequestStream, ResponseSink, Route, Status, UnaryReply,
};
use prost::Message;

use super::http::not_found;
use super::lease;
use super::server::Server;
use crate::cluster::{Cluster, FOLLOW, FollowRequest, Forwarded, KEEP_ALIVE};

/// Ids of the methods that only members call; those of the API are far below.
const FOLLOW_ID: MethodId = MethodId(u16::MAX);
const KEEP_ALIVE_ID: MethodId = MethodId(u16::MAX - 1);

/// Whether only the leader can answer the method.
pub(super) fn is_for_leader(method: Method) -> bool {
    matches!(
        method,
        Method::Put
            | Method::DeleteRange
            | Method::Txn
            | Method::Compact
            | Method::LeaseGrant
            | Method::LeaseRevoke
            | Method::LeaseTimeToLive
            | Method::LeaseLeases
            | Method::MemberRemove
            | Method::Alarm
    )
}

/// Sends a call on to the leader, and answers with what that says.
pub(super) fn forward(
    server: &Arc<Server>,
    cluster: Arc<Cluster>,
    method: Method,
    context: CallContext,
    message: Bytes,
    reply: UnaryReply,
) {
    let server = server.clone();
    let runtime = server.runtime.clone();
    runtime.spawn(async move {
        match cluster.forward(method.path(), message.clone(), context.deadline()).await {
            Forwarded::Answer(answer) => reply.send(answer.map(Into::into)),
            Forwarded::Here => super::answer(&server, method, context, message, reply),
        }
    });
}

/// What the peers' port answers.
pub struct PeerApi(pub Arc<Server>);

impl Dispatch for PeerApi {
    fn route(&self, path: &str) -> Route {
        match path {
            FOLLOW => Route::Unary(FOLLOW_ID),
            KEEP_ALIVE => Route::Unary(KEEP_ALIVE_ID),
            path => match Method::from_path(path).filter(|method| is_for_leader(*method)) {
                Some(method) => Route::Unary(MethodId(method as u16)),
                None => Route::UnknownMethod,
            },
        }
    }

    fn unary(&self, method: MethodId, context: CallContext, message: Bytes, reply: UnaryReply) {
        let server = self.0.clone();
        let runtime = server.runtime.clone();
        match method {
            FOLLOW_ID => {
                let (Some(cluster), Ok(request)) = (server.cluster.clone(), FollowRequest::decode(message)) else {
                    return reply.send(Err(Status::new(Code::InvalidArgument, "not a follower's question")));
                };
                runtime.spawn(async move {
                    let answer = cluster.answer_follower(request).await;
                    reply.send(Ok(Bytes::from(answer.encode_to_vec()).into()));
                });
            }
            KEEP_ALIVE_ID => {
                runtime.spawn(async move {
                    let answer = lease::renew(&server, message).await;
                    reply.send(answer.map(|answer| Bytes::from(answer.encode_to_vec()).into()));
                });
            }
            method => super::answer(&server, Method::ALL[usize::from(method.0)], context, message, reply),
        }
    }

    fn stream(&self, _: MethodId, _: CallContext, _: RequestStream, responses: ResponseSink) {
        responses.finish(Status::new(Code::Unimplemented, "members call no streams"));
    }

    /// Each call was counted where the client made it.
    fn ended(&self, _: MethodId, _: Code) {}

    fn http(&self, _: ::http::Request<Bytes>, _: Arc<Peer>) -> HttpFuture {
        Box::pin(async { not_found() })
    }
}
