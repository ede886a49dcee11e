//! gRPC's health service. As with etcd, the one service that has a status is the server as a whole, under the empty name.

use std::sync::Arc;

use kubewharf_etcd_api::EtcdError;
use kubewharf_etcd_api::errors::Code;
use kubewharf_etcd_api::health::health_check_response::ServingStatus;
use kubewharf_etcd_api::health::{HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse};
use kubewharf_grpc::{CallContext, RequestStream, ResponseSink, Status};
use prost::Message;

use super::server::Server;
use super::status;
use crate::error::Error;

/// The name of the server as a whole.
const ALL: &str = "";

pub(super) async fn check(server: Arc<Server>, request: HealthCheckRequest) -> Result<HealthCheckResponse, Error> {
    if request.service == ALL {
        Ok(response(current(&server)))
    } else {
        Err(Error::Api(EtcdError::Other { code: Code::NotFound, message: "unknown service".into() }))
    }
}

pub(super) async fn list(server: Arc<Server>, _: HealthListRequest) -> Result<HealthListResponse, Error> {
    Ok(HealthListResponse { statuses: [(ALL.to_owned(), response(current(&server)))].into() })
}

/// Serves Watch: the status now, and each change of it.
pub(super) async fn watch(
    server: Arc<Server>,
    _context: CallContext,
    mut requests: RequestStream,
    responses: ResponseSink,
) {
    let request = match requests.next().await {
        Some(Ok(message)) => HealthCheckRequest::decode(message).map_err(|error| status::malformed(&error)),
        Some(Err(status)) => Err(status),
        None => Err(Status::internal("the request is missing")),
    };
    let request = match request {
        Ok(request) => request,
        Err(status) => return responses.finish(status),
    };
    let known = request.service == ALL;
    let first = if known { current(&server) } else { ServingStatus::ServiceUnknown };
    if responses.send(response(first).encode_to_vec().into()).await.is_err() {
        return;
    }
    if known && first == ServingStatus::Serving {
        tokio::select! {
            _ = server.store.failed() => {
                let _ = responses.send(response(ServingStatus::NotServing).encode_to_vec().into()).await;
            }
            () = responses.draining() => {}
        }
    }
    responses.draining().await;
    responses.finish(status::status(&Error::Api(EtcdError::Stopped)));
}

fn current(server: &Server) -> ServingStatus {
    let is_ready = server.cluster.as_ref().is_none_or(|cluster| cluster.readiness().is_ok());
    if server.store.failure().is_none() && is_ready { ServingStatus::Serving } else { ServingStatus::NotServing }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}
