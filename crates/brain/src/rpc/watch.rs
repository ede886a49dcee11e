//! The Watch method on the wire; what a stream does is [`crate::watch`]'s.

use std::sync::Arc;

use bytes::Bytes;
use kubewharf_etcd_api::EtcdError;
use kubewharf_etcd_api::etcdserverpb::WatchRequest;
use kubewharf_grpc::{CallContext, Reply, RequestStream, ResponseSink, Status, TrySendError};
use prost::Message as _;

use super::server::Server;
use super::status;
use crate::error::Error;
use crate::watch::{End, Gone, Message, Outlet, Requests, StreamOptions, WatchStream};

/// What etcd adds to the operator's limit of a request before it divides a response, in bytes.
const FRAGMENT_OVERHEAD_BYTES: usize = 512 << 10;

/// Serves a watch stream. The metadata `hasleader` asks for a member that has a leader: one that loses touch with it, and so has no more news,
/// ends the stream.
pub(super) async fn serve(server: Arc<Server>, context: CallContext, requests: RequestStream, responses: ResponseSink) {
    let options = StreamOptions {
        header: server.header(0),
        progress_interval: server.options.progress_notify_interval,
        fragment_bytes: server.options.request_bytes_max + FRAGMENT_OVERHEAD_BYTES,
    };
    let stream = WatchStream::new(server.store.clone(), options, &responses);
    let wants_leader = context.metadata("hasleader").is_some_and(|value| value == "true");
    let member = server.cluster.as_ref().filter(|_| wants_leader);
    let out_of_touch = async {
        match member {
            Some(cluster) => cluster.out_of_touch().await,
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        ended = stream.run(Messages(requests)) => ended,
        () = out_of_touch => return responses.finish(status::status(&Error::Api(EtcdError::NoLeader))),
    };
    let end = match ended {
        // Unavailable makes etcd's client open the stream again, elsewhere or after the restart.
        End::Ending => status::status(&Error::Api(EtcdError::Stopped)),
        End::Closed(why) => status::status(&Error::Unavailable(why.to_string())),
        End::Failed(error) => {
            tracing::error!(%error, "a watch stream ends because the history can't be read");
            status::status(&error)
        }
        End::Request(status) => status,
    };
    responses.finish(end);
}

struct Messages(RequestStream);

impl Requests for Messages {
    type Error = Status;

    async fn next(&mut self) -> Option<Result<WatchRequest, Status>> {
        let message = self.0.next().await?;
        Some(
            message.and_then(|message: Bytes| WatchRequest::decode(message).map_err(|error| status::malformed(&error))),
        )
    }
}

impl Outlet for ResponseSink {
    async fn send(&self, message: Message) -> Result<(), Gone> {
        match self.try_send(Reply::from_pieces(message.pieces)) {
            Ok(()) => Ok(()),
            Err(TrySendError::Closed) => Err(Gone),
            Err(TrySendError::Full(reply)) => tokio::select! {
                sent = ResponseSink::send(self, reply) => sent.map_err(|_| Gone),
                () = self.draining() => Err(Gone),
            },
        }
    }

    async fn ending(&self) {
        self.draining().await;
    }
}
