//! The Cluster service: one member, which is what this store has.

use std::sync::Arc;

use kubewharf_etcd_api::etcdserverpb::{Member, MemberListRequest, MemberListResponse};

use super::server::Server;
use crate::error::Error;

pub(super) async fn member_list(server: Arc<Server>, _: MemberListRequest) -> Result<MemberListResponse, Error> {
    let member = Member {
        id: server.store.identity().member_id,
        name: server.options.name.clone(),
        peer_ur_ls: server.options.peer_urls.clone(),
        client_ur_ls: server.options.client_urls.clone(),
        is_learner: false,
    };
    // etcd leaves the revision out of the headers of this service.
    Ok(MemberListResponse { header: Some(server.header(0)), members: vec![member] })
}
