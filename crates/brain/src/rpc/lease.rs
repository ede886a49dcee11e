//! The Lease service.

use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;
use kubewharf_engine::{Direction, Table};
use kubewharf_etcd_api::EtcdError;
use kubewharf_etcd_api::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
};
use kubewharf_grpc::{CallContext, RequestStream, ResponseSink, Status};
use prost::Message;

use super::server::Server;
use super::status::{self, status};
use crate::cluster::{Forwarded, KEEP_ALIVE};
use crate::committer::{WriteRequest, WriteResponse};
use crate::error::Error;
use crate::lease::{attachment_bounds, keeper};
use crate::limits::LEASE_WRITE_BYTES;
use crate::mvcc::attached_key;

pub(super) async fn grant(server: Arc<Server>, request: LeaseGrantRequest) -> Result<LeaseGrantResponse, Error> {
    server.quota.check()?;
    let write = WriteRequest::LeaseGrant { id: request.id, ttl_seconds: request.ttl };
    match server.store.write(write, LEASE_WRITE_BYTES).await? {
        WriteResponse::LeaseGrant { id, ttl_seconds, revision } => {
            Ok(LeaseGrantResponse { header: Some(server.header(revision)), id, ttl: ttl_seconds, error: String::new() })
        }
        _ => Err(Error::Corrupt("a grant was answered as another write".to_owned())),
    }
}

pub(super) async fn revoke(server: Arc<Server>, request: LeaseRevokeRequest) -> Result<LeaseRevokeResponse, Error> {
    let revision = keeper::revoke(&server.store, request.id).await?;
    Ok(LeaseRevokeResponse { header: Some(server.header(revision)) })
}

pub(super) async fn time_to_live(
    server: Arc<Server>,
    request: LeaseTimeToLiveRequest,
) -> Result<LeaseTimeToLiveResponse, Error> {
    let id = request.id;
    let reign = server.reign()?;
    let Some(time) = server.store.published().leases().time_to_live(id) else {
        server.still(reign).await?;
        let header = Some(server.header(server.store.published().newest()));
        return Ok(LeaseTimeToLiveResponse { header, id, ttl: -1, granted_ttl: 0, keys: Vec::new() });
    };
    let keys = if request.keys {
        let reading = server.clone();
        tokio::task::spawn_blocking(move || attached_keys(&reading, id))
            .await
            .map_err(|error| Error::Unavailable(error.to_string()))??
    } else {
        Vec::new()
    };
    server.still(reign).await?;
    Ok(LeaseTimeToLiveResponse {
        header: Some(server.header(server.store.published().newest())),
        id,
        ttl: time.remaining_seconds,
        granted_ttl: time.granted_seconds,
        keys,
    })
}

fn attached_keys(server: &Server, id: i64) -> Result<Vec<Bytes>, Error> {
    let (start, end) = attachment_bounds(id);
    let range = (Bound::Included(&start[..]), end.as_ref().map(|end| &end[..]));
    let mut keys = Vec::new();
    let mut failed = Ok(());
    server.store.snapshot()?.scan(Table::LeaseKey, range, Direction::Forward, &mut |row_key, _| match attached_key(
        row_key,
    ) {
        Ok(key) => {
            keys.push(Bytes::copy_from_slice(key));
            ControlFlow::Continue(())
        }
        Err(cause) => {
            failed = Err(cause);
            ControlFlow::Break(())
        }
    })?;
    failed?;
    Ok(keys)
}

pub(super) async fn leases(server: Arc<Server>, _: LeaseLeasesRequest) -> Result<LeaseLeasesResponse, Error> {
    let reign = server.reign()?;
    let leases = server.store.published().leases().list().into_iter().map(|id| LeaseStatus { id }).collect();
    server.still(reign).await?;
    Ok(LeaseLeasesResponse { header: Some(server.header(server.store.published().newest())), leases })
}

/// Serves LeaseKeepAlive: each request is answered in its turn.
pub(super) async fn keep_alive(
    server: Arc<Server>,
    _context: CallContext,
    mut requests: RequestStream,
    responses: ResponseSink,
) {
    let end = loop {
        let message = tokio::select! {
            message = requests.next() => message,
            // Unavailable makes etcd's client open the stream again, elsewhere or after the restart.
            () = responses.draining() => break status(&Error::Api(EtcdError::Stopped)),
        };
        let message = match message {
            Some(Ok(message)) => message,
            Some(Err(status)) => break status,
            None => break Status::ok(),
        };
        match renew_anywhere(&server, message).await {
            Ok(answer) if responses.send(answer.encode_to_vec().into()).await.is_ok() => {}
            Ok(_) => return,
            Err(status) => break status,
        }
    };
    responses.finish(end);
}

/// Renews a lease, on the leader if that is another member.
async fn renew_anywhere(server: &Server, message: Bytes) -> Result<LeaseKeepAliveResponse, Status> {
    if let Some(cluster) = server.cluster.as_ref().filter(|_| !server.store.is_leading())
        && let Forwarded::Answer(answer) = cluster.forward(KEEP_ALIVE, message.clone(), None).await
    {
        return LeaseKeepAliveResponse::decode(answer?)
            .map_err(|error| Status::internal(format!("the leader's answer: {error}")));
    }
    renew(server, message).await
}

/// Renews a lease here.
pub(super) async fn renew(server: &Server, message: Bytes) -> Result<LeaseKeepAliveResponse, Status> {
    let id = LeaseKeepAliveRequest::decode(message).map_err(|error| status::malformed(&error))?.id;
    let renewed = async {
        let reign = server.reign()?;
        // Before the renewal: a revision at which the lease was certainly alive, should it end next.
        let header = Some(server.header(server.store.published().newest()));
        let ttl = keeper::renew(&server.store, id).await?.unwrap_or(0);
        // Whoever leads after this reign has given the lease all of its time, or ended it.
        server.still(reign).await?;
        Ok(LeaseKeepAliveResponse { header, id, ttl })
    };
    renewed.await.map_err(|error| status(&error))
}
