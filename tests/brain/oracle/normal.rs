//! Makes a reply comparable with the reply of another store to the same request.
//!
//! Ids and times differ between any two stores: they are replaced by what must be the same about them, such as that an
//! id is set and never changes. Invariant: nothing else of a reply is touched.

use std::collections::HashMap;

use kubewharf_etcd_api::etcdserverpb::response_op::Response;
use kubewharf_etcd_api::etcdserverpb::*;

/// How far a remaining time to live may be from the full one, in seconds, and still count as the full one. A store that
/// was started again may give a lease its full time once more.
const TTL_TOLERANCE_SECONDS: i64 = 60;
/// What an id that is set is replaced by.
const SET: u64 = 1;
/// What an id that changed without need is replaced by.
const CHANGED: u64 = 999;
/// Leases whose ids the store chose are numbered from here on.
const LEASES_FROM: i64 = 1_000_000_001;

/// The ids of one store.
#[derive(Debug, Default)]
pub(super) struct Ids {
    cluster: u64,
    member: u64,
    term: u64,
    leases: HashMap<i64, i64>,
}

impl Ids {
    /// Takes note that the store chose this id for a lease.
    pub(super) fn chosen_lease(&mut self, id: i64) {
        let number = LEASES_FROM + i64::try_from(self.leases.len()).expect("a count fits");
        self.leases.entry(id).or_insert(number);
    }

    /// A request's text with the numbers of such leases in place of their ids.
    pub(super) fn in_text(&self, text: String) -> String {
        self.leases.iter().fold(text, |text, (id, number)| text.replace(&id.to_string(), &number.to_string()))
    }

    /// Takes note that the store was started again, which may change its term.
    pub(super) fn restarted(&mut self) {
        self.term = 0;
    }

    fn lease(&self, id: &mut i64) {
        if let Some(number) = self.leases.get(id) {
            *id = *number;
        }
    }

    fn member(&mut self, id: &mut u64) {
        constant(&mut self.member, id);
    }
}

fn constant(known: &mut u64, id: &mut u64) {
    if *id == 0 {
        return;
    }
    if *known == 0 {
        *known = *id;
    }
    *id = if *known == *id { SET } else { CHANGED };
}

fn is_set<T: PartialEq + Default + From<u8>>(value: &mut T) {
    if *value != T::default() {
        *value = T::from(1);
    }
}

/// A reply that can be made comparable.
pub(super) trait Normal {
    fn normalise(&mut self, ids: &mut Ids);
}

impl<T: Normal> Normal for Option<T> {
    fn normalise(&mut self, ids: &mut Ids) {
        if let Some(inner) = self {
            inner.normalise(ids);
        }
    }
}

impl<T: Normal> Normal for Vec<T> {
    fn normalise(&mut self, ids: &mut Ids) {
        self.iter_mut().for_each(|inner| inner.normalise(ids));
    }
}

impl Normal for ResponseHeader {
    fn normalise(&mut self, ids: &mut Ids) {
        constant(&mut ids.cluster, &mut self.cluster_id);
        constant(&mut ids.member, &mut self.member_id);
        constant(&mut ids.term, &mut self.raft_term);
    }
}

impl Normal for kubewharf_etcd_api::mvccpb::KeyValue {
    fn normalise(&mut self, ids: &mut Ids) {
        ids.lease(&mut self.lease);
    }
}

impl Normal for kubewharf_etcd_api::mvccpb::Event {
    fn normalise(&mut self, ids: &mut Ids) {
        self.kv.normalise(ids);
        self.prev_kv.normalise(ids);
    }
}

impl Normal for ResponseOp {
    fn normalise(&mut self, ids: &mut Ids) {
        match &mut self.response {
            None => {}
            Some(Response::ResponseRange(response)) => response.normalise(ids),
            Some(Response::ResponsePut(response)) => response.normalise(ids),
            Some(Response::ResponseDeleteRange(response)) => response.normalise(ids),
            Some(Response::ResponseTxn(response)) => response.normalise(ids),
        }
    }
}

/// Replies of which these fields hold ids or messages that do.
macro_rules! fields {
    ($($reply:ident: $($field:ident)*;)*) => {
        $(impl Normal for $reply {
            fn normalise(&mut self, ids: &mut Ids) {
                self.header.normalise(ids);
                $(self.$field.normalise(ids);)*
            }
        })*
    };
}

fields! {
    RangeResponse: kvs;
    PutResponse: prev_kv;
    DeleteRangeResponse: prev_kvs;
    TxnResponse: responses;
    CompactionResponse: ;
    WatchResponse: events;
    LeaseRevokeResponse: ;
    AlarmResponse: alarms;
    DefragmentResponse: ;
    MoveLeaderResponse: ;
    DowngradeResponse: ;
    MemberListResponse: members;
    MemberRemoveResponse: members;
    MemberUpdateResponse: members;
    MemberPromoteResponse: members;
    AuthEnableResponse: ;
    AuthDisableResponse: ;
    AuthStatusResponse: ;
    AuthenticateResponse: ;
    AuthUserAddResponse: ;
    AuthUserGetResponse: ;
    AuthUserListResponse: ;
    AuthUserDeleteResponse: ;
    AuthUserChangePasswordResponse: ;
    AuthUserGrantRoleResponse: ;
    AuthUserRevokeRoleResponse: ;
    AuthRoleAddResponse: ;
    AuthRoleGetResponse: ;
    AuthRoleListResponse: ;
    AuthRoleDeleteResponse: ;
    AuthRoleGrantPermissionResponse: ;
    AuthRoleRevokePermissionResponse: ;
}

impl Normal for AlarmMember {
    fn normalise(&mut self, ids: &mut Ids) {
        ids.member(&mut self.member_id);
    }
}

impl Normal for LeaseGrantResponse {
    fn normalise(&mut self, ids: &mut Ids) {
        self.header.normalise(ids);
        ids.lease(&mut self.id);
    }
}

impl Normal for LeaseKeepAliveResponse {
    fn normalise(&mut self, ids: &mut Ids) {
        self.header.normalise(ids);
        ids.lease(&mut self.id);
    }
}

impl Normal for LeaseTimeToLiveResponse {
    fn normalise(&mut self, ids: &mut Ids) {
        self.header.normalise(ids);
        ids.lease(&mut self.id);
        if (0..=TTL_TOLERANCE_SECONDS).contains(&(self.granted_ttl - self.ttl)) {
            self.ttl = self.granted_ttl;
        }
        // etcd keeps the keys of a lease in no order.
        self.keys.sort();
    }
}

impl Normal for LeaseLeasesResponse {
    fn normalise(&mut self, ids: &mut Ids) {
        self.header.normalise(ids);
        self.leases.iter_mut().for_each(|lease| ids.lease(&mut lease.id));
    }
}

impl Normal for Member {
    fn normalise(&mut self, ids: &mut Ids) {
        ids.member(&mut self.id);
        let scheme = |url: &mut String| *url = url.split("://").next().unwrap_or_default().to_owned();
        self.peer_ur_ls.iter_mut().for_each(scheme);
        self.client_ur_ls.iter_mut().for_each(scheme);
    }
}

impl Normal for StatusResponse {
    fn normalise(&mut self, ids: &mut Ids) {
        self.header.normalise(ids);
        ids.member(&mut self.leader);
        is_set(&mut self.db_size);
        is_set(&mut self.db_size_in_use);
        // Each store has a default of its own.
        is_set(&mut self.db_size_quota);
        is_set(&mut self.raft_index);
        is_set(&mut self.raft_applied_index);
        constant(&mut ids.term, &mut self.raft_term);
        // A text with an id in it: "memberID:1  alarm:NOSPACE".
        for error in &mut self.errors {
            // Go puts one space or two between the parts, so that nobody relies on it.
            let words =
                error.split_whitespace().map(|word| if word.starts_with("memberID:") { "memberID:" } else { word });
            *error = words.collect::<Vec<_>>().join(" ");
        }
        // The patch release is the program's own matter.
        self.version = self.version.rsplit_once('.').map_or(String::new(), |(minor, _)| minor.to_owned());
    }
}

impl Normal for HashResponse {
    fn normalise(&mut self, ids: &mut Ids) {
        self.header.normalise(ids);
        is_set(&mut self.hash);
    }
}

impl Normal for HashKvResponse {
    fn normalise(&mut self, ids: &mut Ids) {
        self.header.normalise(ids);
        is_set(&mut self.hash);
    }
}
