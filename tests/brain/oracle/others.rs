//! Cluster, Maintenance, Auth while it is off, what there is not, and plain HTTP on the same port.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use kubewharf_etcd_api::Method;
use kubewharf_etcd_api::etcdserverpb::*;
use kubewharf_etcd_api::v3electionpb::LeaderRequest;
use kubewharf_etcd_api::v3electionpb::election_client::ElectionClient;
use kubewharf_etcd_api::v3lockpb::LockRequest;
use kubewharf_etcd_api::v3lockpb::lock_client::LockClient;
use tonic::codegen::http::uri::PathAndQuery;

use super::pair::Pair;
use super::recorder::{Recorder, within};
use crate::client::{Operation, delete, get, put};

#[tokio::test(flavor = "multi_thread")]
async fn members_and_maintenance_are_answered_as_by_etcd() {
    let mut pair = Pair::start(&[]);
    pair.same("members", async |recorder| {
        for linearizable in [false, true] {
            let _ = recorder.member_list(MemberListRequest { linearizable }).await;
        }
        for id in [0, 12345] {
            let _ = recorder.member_remove(MemberRemoveRequest { id }).await;
            let _ = recorder.member_promote(MemberPromoteRequest { id }).await;
            let peer_ur_ls = vec!["http://127.0.0.1:1".to_owned()];
            let _ = recorder.member_update(MemberUpdateRequest { id, peer_ur_ls }).await;
        }
    })
    .await;
    pair.same("status", async |recorder| {
        let _ = recorder.put(put("a", "1")).await;
        let _ = recorder.status(StatusRequest {}).await;
        let _ = recorder.defragment(DefragmentRequest {}).await;
        let _ = recorder.hash(HashRequest {}).await;
        let _ = recorder.status(StatusRequest {}).await;
    })
    .await;
    pair.same("leadership and downgrades", async |recorder| {
        for target_id in [0, 12345] {
            let _ = recorder.move_leader(MoveLeaderRequest { target_id }).await;
        }
        for version in ["", "x", "3.7.0", "3.6.0", "3.5.0"] {
            let _ = recorder.downgrade(DowngradeRequest { action: 0, version: version.to_owned() }).await;
        }
        let _ = recorder.downgrade(DowngradeRequest { action: 2, version: String::new() }).await;
        let _ = recorder.downgrade(DowngradeRequest { action: 9, version: String::new() }).await;
    })
    .await;
    pair.same("alarms", async |recorder| {
        const GET: i32 = 0;
        const ACTIVATE: i32 = 1;
        const DEACTIVATE: i32 = 2;
        const NOSPACE: i32 = 1;
        let _ = recorder.put(put("a", "1")).await;
        let _ = recorder.alarm(AlarmRequest { action: GET, member_id: 0, alarm: 0 }).await;
        let _ = recorder.alarm(AlarmRequest { action: DEACTIVATE, member_id: 0, alarm: NOSPACE }).await;
        let id = own_id(recorder).await;
        set_alarm(recorder, AlarmRequest { action: ACTIVATE, member_id: id, alarm: NOSPACE }).await;
        for alarm in [0, 1, 2, 7] {
            let _ = recorder.alarm(AlarmRequest { action: GET, member_id: 0, alarm }).await;
        }
        let _ = recorder.status(StatusRequest {}).await;
        let _ = recorder.put(put("a", "2")).await;
        let _ = recorder.grant(LeaseGrantRequest { id: 3, ttl: 100 }).await;
        let _ = recorder.txn(TxnRequest { success: vec![put("a", "3").op()], ..TxnRequest::default() }).await;
        let _ = recorder.txn(TxnRequest { success: vec![get("a").op()], ..TxnRequest::default() }).await;
        let _ = recorder.txn(TxnRequest { success: vec![delete("b").op()], ..TxnRequest::default() }).await;
        let _ = recorder.range(get("a")).await;
        let _ = recorder.delete_range(delete("a")).await;
        set_alarm(recorder, AlarmRequest { action: DEACTIVATE, member_id: id, alarm: NOSPACE }).await;
        let _ = recorder.alarm(AlarmRequest { action: GET, member_id: 0, alarm: 0 }).await;
        let _ = recorder.put(put("a", "4")).await;
    })
    .await;
    pair.same("services beside the store", async |recorder| {
        let mut maintenance = recorder.client.maintenance.clone();
        let parts = within(maintenance.snapshot(SnapshotRequest {})).await;
        let first = match parts {
            Ok(mut parts) => parts.message().await.map(|part| part.is_some()),
            Err(status) => Err(status),
        };
        recorder.note("Snapshot", first.map_err(|status| status.code()));
        let mut lock = LockClient::new(recorder.client.channel.clone());
        let reply = within(lock.lock(LockRequest { name: "a".into(), lease: 0 })).await;
        recorder.note("Lock", reply.map(|reply| !reply.key.is_empty()).map_err(|status| status.code()));
        let mut election = ElectionClient::new(recorder.client.channel.clone());
        let reply = within(election.leader(LeaderRequest { name: "a".into() })).await;
        recorder.note("Leader", reply.map(|_| ()).map_err(|status| (status.code(), status.message().to_owned())));
    })
    .await;
    pair.finish("maintenance");
}

/// Changes an alarm; the request is recorded without the id.
async fn set_alarm(recorder: &mut Recorder, request: AlarmRequest) {
    let reply = within(recorder.client.maintenance.alarm(request)).await;
    let _ = recorder.reply(format!("alarm action {}", request.action), reply);
}

/// The id of the store's one member.
async fn own_id(recorder: &mut Recorder) -> u64 {
    let reply = within(recorder.client.maintenance.status(StatusRequest {})).await.expect("a status");
    reply.header.expect("replies have headers").member_id
}

#[tokio::test(flavor = "multi_thread")]
async fn auth_that_is_off_is_answered_as_by_etcd() {
    let mut pair = Pair::start(&[]);
    let text = |text: &str| text.to_owned();
    pair.same("what is refused", async |recorder| {
        let _ = recorder.auth_status(AuthStatusRequest {}).await;
        let _ = recorder.auth_enable(AuthEnableRequest {}).await;
        let _ = recorder.auth_disable(AuthDisableRequest {}).await;
        let _ = recorder.authenticate(AuthenticateRequest { name: text("root"), password: text("x") }).await;
        let _ = recorder.user_get(AuthUserGetRequest { name: text("a") }).await;
        let _ = recorder.user_list(AuthUserListRequest {}).await;
        let _ = recorder.user_delete(AuthUserDeleteRequest { name: text("a") }).await;
        let request = AuthUserChangePasswordRequest { name: text("a"), password: text("x"), ..Default::default() };
        let _ = recorder.user_change_password(request).await;
        let _ = recorder.user_grant_role(AuthUserGrantRoleRequest { user: text("a"), role: text("r") }).await;
        let _ = recorder.user_revoke_role(AuthUserRevokeRoleRequest { name: text("a"), role: text("r") }).await;
        let _ = recorder.role_get(AuthRoleGetRequest { role: text("r") }).await;
        let _ = recorder.role_list(AuthRoleListRequest {}).await;
        let _ = recorder.role_delete(AuthRoleDeleteRequest { role: text("r") }).await;
        let _ = recorder.role_grant_permission(AuthRoleGrantPermissionRequest { name: text("r"), perm: None }).await;
        let request = AuthRoleRevokePermissionRequest { role: text("r"), ..Default::default() };
        let _ = recorder.role_revoke_permission(request).await;
    })
    .await;
    pair.same("what is added", async |recorder| {
        let user = AuthUserAddRequest { name: "u".to_owned(), password: "p".to_owned(), ..Default::default() };
        let _ = recorder.user_add(user).await;
        let _ = recorder.role_add(AuthRoleAddRequest { name: "r".to_owned() }).await;
    })
    .await;
    pair.finish("auth");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_calls_and_plain_http_are_answered_as_by_etcd() {
    let mut pair = Pair::start(&[]);
    pair.same("paths that are none", async |recorder| {
        for path in [
            "/etcdserverpb.KV/Nothing",
            "/etcdserverpb.Nothing/Range",
            "/nothing",
            "/",
            "/etcdserverpb.KV/",
            "/etcdserverpb.KV",
            "/etcdserverpb.KV/range",
            "/a/b/c",
        ] {
            let mut grpc = tonic::client::Grpc::new(recorder.client.channel.clone());
            grpc.ready().await.expect("the store is there");
            let codec = tonic_prost::ProstCodec::<RangeRequest, RangeResponse>::default();
            let reply = within(grpc.unary(tonic::Request::new(get("a")), PathAndQuery::from_static(path), codec)).await;
            let _ = recorder.reply(format!("call {path}"), reply);
        }
    })
    .await;
    pair.same("fields of another type", async |recorder| {
        for method in [Method::Range, Method::Put, Method::Txn, Method::LeaseGrant, Method::Compact] {
            let mut grpc = tonic::client::Grpc::new(recorder.client.channel.clone());
            grpc.ready().await.expect("the store is there");
            let codec = tonic_prost::ProstCodec::<NotARequest, RangeResponse>::default();
            let request = tonic::Request::new(NotARequest { number: 1, unknown: "x".to_owned() });
            let reply = within(grpc.unary(request, PathAndQuery::from_static(method.path()), codec)).await;
            // The text is the decoder's own.
            recorder
                .note(format!("{} with a number", method.name()), reply.map(|_| ()).map_err(|status| status.code()));
        }
    })
    .await;
    pair.same("messages that are cut off", async |recorder| {
        for method in [Method::Range, Method::Put, Method::Txn, Method::LeaseGrant, Method::Compact, Method::Watch] {
            let mut grpc = tonic::client::Grpc::new(recorder.client.channel.clone());
            grpc.ready().await.expect("the store is there");
            let codec = tonic_prost::ProstCodec::<CutOff, RangeResponse>::default();
            // The name of a string of 100 bytes, without the string.
            let request = tonic::Request::new(CutOff { bytes: vec![0x0a, 100, b'a'] });
            let reply = within(grpc.unary(request, PathAndQuery::from_static(method.path()), codec)).await;
            recorder.note(format!("a malformed {}", method.name()), reply.map(|_| ()).map_err(|status| status.code()));
        }
    })
    .await;
    let addresses = pair.addresses();
    let paths = [
        ("GET", "/health"),
        ("GET", "/health?serializable=true"),
        ("GET", "/health?exclude=NOSPACE"),
        ("POST", "/health"),
        ("GET", "/livez"),
        ("GET", "/livez?verbose"),
        ("GET", "/livez/serializable_read"),
        ("GET", "/livez/nothing"),
        ("GET", "/readyz"),
        ("GET", "/readyz?verbose"),
        ("GET", "/readyz?verbose&exclude=data_corruption"),
        ("GET", "/readyz?exclude=nothing"),
        ("GET", "/readyz/linearizable_read"),
        ("GET", "/readyz/nothing"),
        ("POST", "/readyz"),
        ("GET", "/nothing"),
        ("GET", "/"),
        ("POST", "/version"),
    ];
    for (method, path) in paths {
        for (recorder, address) in [&mut pair.etcd, &mut pair.ours].into_iter().zip(&addresses) {
            let (status, body) = http(address, method, path);
            // etcd writes the checks of /readyz in no order.
            let mut lines: Vec<&str> = body.lines().collect();
            lines.sort_unstable();
            recorder.note(format!("{method} {path}"), (status, lines));
        }
    }
    pair.compare("plain HTTP");
    for (recorder, address) in [&mut pair.etcd, &mut pair.ours].into_iter().zip(&addresses) {
        let (status, body) = http(address, "GET", "/version");
        let body: serde_json::Value = serde_json::from_str(&body).expect("a version in JSON");
        recorder.note("GET /version", (status, body["etcdcluster"].clone(), body["storage"].clone()));
    }
    pair.compare("plain HTTP");
    pair.finish("others");
}

/// Decodes as none of the requests.
#[derive(Clone, PartialEq, prost::Message)]
struct NotARequest {
    #[prost(fixed32, tag = "1")]
    number: u32,
    #[prost(string, tag = "900")]
    unknown: String,
}

/// Bytes that are sent as they are.
#[derive(Clone, Debug, Default)]
struct CutOff {
    bytes: Vec<u8>,
}

impl prost::Message for CutOff {
    fn encode_raw(&self, buf: &mut impl prost::bytes::BufMut) {
        buf.put_slice(&self.bytes);
    }

    fn merge_field(
        &mut self,
        _: u32,
        _: prost::encoding::WireType,
        _: &mut impl prost::bytes::Buf,
        _: prost::encoding::DecodeContext,
    ) -> Result<(), prost::DecodeError> {
        Ok(())
    }

    fn encoded_len(&self) -> usize {
        self.bytes.len()
    }

    fn clear(&mut self) {
        self.bytes.clear();
    }
}

/// A status line and body, of a server that closes the connection after its answer.
fn http(address: &str, method: &str, path: &str) -> (String, String) {
    let mut connection = TcpStream::connect(address).expect("the store listens");
    connection.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket takes a timeout");
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    connection.write_all(head.as_bytes()).expect("the request is sent");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).expect("the answer is text");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
}
