//! The Cluster service: the members over one engine, or the one that an engine of its own has.
//!
//! A member adds itself when it starts, so there is nothing to add by hand; one that is gone for good can be removed.

use std::sync::Arc;

use kubewharf_etcd_api::EtcdError;
use kubewharf_etcd_api::etcdserverpb::{
    Member, MemberListRequest, MemberListResponse, MemberRemoveRequest, MemberRemoveResponse,
};

use super::server::Server;
use crate::error::Error;

pub(super) async fn member_list(server: Arc<Server>, request: MemberListRequest) -> Result<MemberListResponse, Error> {
    // etcd leaves the revision out of the headers of this service.
    let header = Some(server.header(0));
    let Some(cluster) = &server.cluster else {
        let member = Member {
            id: server.store.identity().member_id,
            name: server.options.name.clone(),
            peer_ur_ls: server.options.peer_urls.clone(),
            client_ur_ls: server.options.client_urls.clone(),
            is_learner: false,
        };
        return Ok(MemberListResponse { header, members: vec![member] });
    };
    if request.linearizable {
        cluster.linearize().await?;
    }
    Ok(MemberListResponse { header, members: cluster.members().await? })
}

pub(super) async fn member_remove(
    server: Arc<Server>,
    request: MemberRemoveRequest,
) -> Result<MemberRemoveResponse, Error> {
    let Some(cluster) = &server.cluster else {
        return Err(Error::Unimplemented("there is one member, which can't be removed"));
    };
    if request.id == cluster.member_id() {
        return Err(Error::Unimplemented("this member leads: let another one lead first (etcdctl move-leader)"));
    }
    if !cluster.remove(request.id).await? {
        return Err(Error::Api(EtcdError::MemberNotFound));
    }
    Ok(MemberRemoveResponse { header: Some(server.header(0)), members: cluster.members().await? })
}
