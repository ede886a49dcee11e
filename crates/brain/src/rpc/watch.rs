//! TEMPORARY stand-in; the watch helper replaces it.
use std::sync::Arc;
use kubewharf_grpc::{CallContext, Code, RequestStream, ResponseSink, Status};
use super::server::Server;
pub(super) async fn serve(_server: Arc<Server>, _context: CallContext, _requests: RequestStream, responses: ResponseSink) {
    responses.finish(Status::new(Code::Unimplemented, "watch is being written"));
}
