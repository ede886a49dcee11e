//! gRPC clients of a store, made from the API's own descriptions.
//!
//! They never retry: a test sees each answer as it was given. A connection that is lost is made again for the next call.

use std::time::Duration;

use kubewharf_etcd_api::etcdserverpb::auth_client::AuthClient;
use kubewharf_etcd_api::etcdserverpb::cluster_client::ClusterClient;
use kubewharf_etcd_api::etcdserverpb::kv_client::KvClient;
use kubewharf_etcd_api::etcdserverpb::lease_client::LeaseClient;
use kubewharf_etcd_api::etcdserverpb::maintenance_client::MaintenanceClient;
use kubewharf_etcd_api::etcdserverpb::watch_client::WatchClient;
use kubewharf_etcd_api::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, request_op,
};
use tonic::transport::{Channel, Endpoint};

/// Replies of any size are taken: what limits there are is for the server to say.
const MESSAGE_BYTES_MAX: usize = 1 << 30;
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// The services of one store, over one connection.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) kv: KvClient<Channel>,
    pub(crate) watch: WatchClient<Channel>,
    pub(crate) lease: LeaseClient<Channel>,
    pub(crate) cluster: ClusterClient<Channel>,
    pub(crate) maintenance: MaintenanceClient<Channel>,
    pub(crate) auth: AuthClient<Channel>,
    pub(crate) channel: Channel,
}

impl Client {
    /// For the store at this URL; connects with the first call.
    pub(crate) fn new(url: &str) -> Self {
        let endpoint = Endpoint::from_shared(url.to_owned()).expect("a store's URL is one");
        Self::over(endpoint.connect_timeout(CONNECT_WITHIN).connect_lazy())
    }

    fn over(channel: Channel) -> Self {
        Self {
            kv: KvClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX),
            watch: WatchClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX),
            lease: LeaseClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX),
            cluster: ClusterClient::new(channel.clone()),
            maintenance: MaintenanceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX),
            auth: AuthClient::new(channel.clone()),
            channel,
        }
    }
}

/// A read of one key.
pub(crate) fn get(key: &str) -> RangeRequest {
    RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() }
}

/// A read of the keys from `key` on and before `end`.
pub(crate) fn range(key: &str, end: &str) -> RangeRequest {
    RangeRequest { range_end: end.to_owned().into(), ..get(key) }
}

/// A write of one key.
pub(crate) fn put(key: &str, value: impl AsRef<[u8]>) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: value.as_ref().to_vec().into(), ..PutRequest::default() }
}

/// A deletion of one key.
pub(crate) fn delete(key: &str) -> DeleteRangeRequest {
    DeleteRangeRequest { key: key.to_owned().into(), ..DeleteRangeRequest::default() }
}

/// A deletion of the keys from `key` on and before `end`.
pub(crate) fn delete_range(key: &str, end: &str) -> DeleteRangeRequest {
    DeleteRangeRequest { range_end: end.to_owned().into(), ..delete(key) }
}

/// A compaction at a revision.
pub(crate) fn compact(revision: i64) -> CompactionRequest {
    CompactionRequest { revision, physical: false }
}

/// Anything that may stand in a transaction.
pub(crate) trait Operation {
    /// It, as an operation of a transaction.
    fn op(self) -> RequestOp;
}

macro_rules! operations {
    ($($request:ident => $variant:ident,)*) => {
        $(impl Operation for $request {
            fn op(self) -> RequestOp {
                RequestOp { request: Some(request_op::Request::$variant(self)) }
            }
        })*
    };
}

operations! {
    RangeRequest => RequestRange,
    PutRequest => RequestPut,
    DeleteRangeRequest => RequestDeleteRange,
    TxnRequest => RequestTxn,
}
