//! Sends the requests of a scenario to one store and records each with its reply, made comparable.

use std::fmt::Debug;
use std::time::Duration;

use kubewharf_etcd_api::etcdserverpb::*;
use tonic::{Response, Status};

use super::normal::{Ids, Normal};
use crate::client::Client;

/// A store that has not answered by then never will.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// How much of a request or reply is shown.
const SHOWN_BYTES: usize = 1500;

/// A request, or a look at a stream, and what came of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) request: String,
    pub(super) reply: String,
}

/// One store, under one scenario.
pub(super) struct Recorder {
    pub(super) client: Client,
    pub(super) ids: Ids,
    pub(super) base: i64,
    entries: Vec<Entry>,
}

impl Recorder {
    /// A recorder that has sent nothing yet.
    pub(super) fn new(client: Client) -> Self {
        Self { client, ids: Ids::default(), base: 0, entries: Vec::new() }
    }

    /// What was recorded since the last call.
    pub(super) fn take(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.entries)
    }

    /// The revision that many writes after the scenario began.
    pub(super) fn at(&self, writes: i64) -> i64 {
        self.base + writes
    }

    /// Records something that the scenario found out by itself.
    pub(super) fn note(&mut self, request: impl Debug, reply: impl Debug) {
        self.entries.push(Entry { request: shown(&format!("{request:?}")), reply: format!("{reply:#?}") });
    }

    /// Records a reply.
    pub(super) fn reply<R: Normal + Clone + Debug>(
        &mut self,
        request: String,
        reply: Result<R, Status>,
    ) -> Result<R, Status> {
        let reply = reply.map(|mut reply| {
            reply.normalise(&mut self.ids);
            reply
        });
        let text = match &reply {
            Ok(reply) => format!("{reply:#?}"),
            Err(status) => refusal(status),
        };
        let request = self.ids.in_text(shown(&request));
        self.entries.push(Entry { request, reply: text });
        reply
    }

    /// Grants a lease; an id that the store chooses is replaced in this and all later replies.
    pub(super) async fn grant(&mut self, request: LeaseGrantRequest) -> Result<LeaseGrantResponse, Status> {
        let name = format!("{request:?}");
        let reply = within(self.client.lease.lease_grant(request)).await;
        let id = reply.as_ref().map_or(0, |reply| reply.id);
        if request.id == 0 && id != 0 {
            self.ids.chosen_lease(id);
        }
        self.reply(name, reply).map(|reply| LeaseGrantResponse { id, ..reply })
    }

    /// Reads a range in parts and records the parts put together, as one reply.
    pub(super) async fn range_stream(&mut self, request: RangeRequest) -> Result<RangeResponse, Status> {
        let name = format!("stream of {request:?}");
        let reply = tokio::time::timeout(ANSWER_WITHIN, stream_of(&mut self.client, request)).await;
        let reply = reply.unwrap_or_else(|_| Err(no_answer()));
        self.reply(name, reply)
    }

    /// Sends one renewal on a stream of its own.
    pub(super) async fn keep_alive(&mut self, id: i64) -> Result<LeaseKeepAliveResponse, Status> {
        let requests = futures_util::stream::iter([LeaseKeepAliveRequest { id }]);
        let mut client = self.client.clone();
        let reply = tokio::time::timeout(ANSWER_WITHIN, async move {
            let mut replies = client.lease.lease_keep_alive(requests).await?.into_inner();
            replies.message().await?.ok_or_else(|| Status::unknown("the stream ended without a reply"))
        })
        .await;
        let reply = reply.unwrap_or_else(|_| Err(no_answer()));
        self.reply(format!("keep alive {id}"), reply)
    }
}

async fn stream_of(client: &mut Client, request: RangeRequest) -> Result<RangeResponse, Status> {
    let mut parts = client.kv.range_stream(request).await?.into_inner();
    let mut whole = RangeResponse::default();
    while let Some(part) = parts.message().await? {
        let part = part.range_response.unwrap_or_default();
        // As clients put the parts together: lists grow, and what else is set replaces what was.
        whole.kvs.extend(part.kvs);
        whole.count = if part.count == 0 { whole.count } else { part.count };
        whole.more |= part.more;
        whole.header = part.header.or(whole.header);
    }
    Ok(whole)
}

/// A refusal as it is compared: by code and text.
fn refusal(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

fn no_answer() -> Status {
    Status::deadline_exceeded(format!("no answer within {ANSWER_WITHIN:?}"))
}

pub(super) async fn within<R>(call: impl Future<Output = Result<Response<R>, Status>>) -> Result<R, Status> {
    match tokio::time::timeout(ANSWER_WITHIN, call).await {
        Ok(reply) => reply.map(Response::into_inner),
        Err(_) => Err(no_answer()),
    }
}

/// Shortens what nobody reads to its end.
pub(super) fn shown(text: &str) -> String {
    if text.len() <= SHOWN_BYTES {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(SHOWN_BYTES);
    format!("{}… ({} bytes)", &text[..end], text.len())
}

/// Calls with one request and one reply.
macro_rules! unary {
    ($($service:ident $($method:ident $request:ident -> $response:ident)*;)*) => {
        impl Recorder {
            $($(
                #[allow(dead_code, reason = "the list is that of the API")]
                pub(super) async fn $method(&mut self, request: $request) -> Result<$response, Status> {
                    let name = format!("{request:?}");
                    let reply = within(self.client.$service.$method(request)).await;
                    self.reply(name, reply)
                }
            )*)*
        }
    };
}

unary! {
    kv
        range RangeRequest -> RangeResponse
        put PutRequest -> PutResponse
        delete_range DeleteRangeRequest -> DeleteRangeResponse
        txn TxnRequest -> TxnResponse
        compact CompactionRequest -> CompactionResponse;
    lease
        lease_revoke LeaseRevokeRequest -> LeaseRevokeResponse
        lease_time_to_live LeaseTimeToLiveRequest -> LeaseTimeToLiveResponse
        lease_leases LeaseLeasesRequest -> LeaseLeasesResponse;
    cluster
        member_list MemberListRequest -> MemberListResponse
        member_remove MemberRemoveRequest -> MemberRemoveResponse
        member_update MemberUpdateRequest -> MemberUpdateResponse
        member_promote MemberPromoteRequest -> MemberPromoteResponse;
    maintenance
        status StatusRequest -> StatusResponse
        alarm AlarmRequest -> AlarmResponse
        defragment DefragmentRequest -> DefragmentResponse
        hash HashRequest -> HashResponse
        hash_kv HashKvRequest -> HashKvResponse
        move_leader MoveLeaderRequest -> MoveLeaderResponse
        downgrade DowngradeRequest -> DowngradeResponse;
    auth
        auth_enable AuthEnableRequest -> AuthEnableResponse
        auth_disable AuthDisableRequest -> AuthDisableResponse
        auth_status AuthStatusRequest -> AuthStatusResponse
        authenticate AuthenticateRequest -> AuthenticateResponse
        user_add AuthUserAddRequest -> AuthUserAddResponse
        user_get AuthUserGetRequest -> AuthUserGetResponse
        user_list AuthUserListRequest -> AuthUserListResponse
        user_delete AuthUserDeleteRequest -> AuthUserDeleteResponse
        user_change_password AuthUserChangePasswordRequest -> AuthUserChangePasswordResponse
        user_grant_role AuthUserGrantRoleRequest -> AuthUserGrantRoleResponse
        user_revoke_role AuthUserRevokeRoleRequest -> AuthUserRevokeRoleResponse
        role_add AuthRoleAddRequest -> AuthRoleAddResponse
        role_get AuthRoleGetRequest -> AuthRoleGetResponse
        role_list AuthRoleListRequest -> AuthRoleListResponse
        role_delete AuthRoleDeleteRequest -> AuthRoleDeleteResponse
        role_grant_permission AuthRoleGrantPermissionRequest -> AuthRoleGrantPermissionResponse
        role_revoke_permission AuthRoleRevokePermissionRequest -> AuthRoleRevokePermissionResponse;
}
