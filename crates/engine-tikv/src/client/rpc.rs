//! The calls that PD and the stores take.
//!
//! Job: which request goes to which method, and what of it the client fills in; one unary call with a deadline. Calls to stores are unary: a commit is
//! one message or a few large ones, and the committer sends one batch at a time, so there would be nothing to put together in a stream of
//! batched commands.

use std::error::Error as _;

use http::uri::PathAndQuery;
use prost::Message;
use tokio::time::{Instant, timeout_at};
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use super::text;
use crate::generated::{errorpb, keyspacepb, kvrpcpb, pdpb};

/// A page of the largest rows; see the pages of scans.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// The stream of timestamps.
pub(crate) const TSO_PATH: &str = "/pdpb.PD/Tso";

/// A request.
pub(crate) trait Rpc: Message + Clone + Default + 'static {
    const PATH: &'static str;
    type Answer: Message + Default + 'static;
}

/// A request to PD.
pub(crate) trait PdRpc: Rpc {
    fn set_header(&mut self, header: pdpb::RequestHeader);
    fn header(answer: &mut Self::Answer) -> Option<pdpb::ResponseHeader>;
}

/// A request to the leader of a region.
pub(crate) trait RegionRpc: Rpc {
    fn context(&mut self) -> &mut kvrpcpb::Context;
    fn region_error(answer: &mut Self::Answer) -> Option<errorpb::Error>;
}

macro_rules! pd {
    ($($request:path => $answer:path: $method:literal;)*) => {
        $(
            impl Rpc for $request {
                const PATH: &'static str = $method;
                type Answer = $answer;
            }

            impl PdRpc for $request {
                fn set_header(&mut self, header: pdpb::RequestHeader) {
                    self.header = Some(header);
                }

                fn header(answer: &mut $answer) -> Option<pdpb::ResponseHeader> {
                    answer.header.take()
                }
            }
        )*
    };
}

macro_rules! stores {
    ($($request:path => $answer:path: $method:literal;)*) => {
        $(
            impl Rpc for $request {
                const PATH: &'static str = $method;
                type Answer = $answer;
            }

            impl RegionRpc for $request {
                fn context(&mut self) -> &mut kvrpcpb::Context {
                    self.context.get_or_insert_default()
                }

                fn region_error(answer: &mut $answer) -> Option<errorpb::Error> {
                    answer.region_error.take()
                }
            }
        )*
    };
}

pd! {
    pdpb::GetMembersRequest => pdpb::GetMembersResponse: "/pdpb.PD/GetMembers";
    pdpb::GetStoreRequest => pdpb::GetStoreResponse: "/pdpb.PD/GetStore";
    pdpb::GetRegionRequest => pdpb::GetRegionResponse: "/pdpb.PD/GetPrevRegion";
    pdpb::ScanRegionsRequest => pdpb::ScanRegionsResponse: "/pdpb.PD/ScanRegions";
    pdpb::UpdateServiceGcSafePointRequest => pdpb::UpdateServiceGcSafePointResponse: "/pdpb.PD/UpdateServiceGCSafePoint";
    pdpb::UpdateGcSafePointRequest => pdpb::UpdateGcSafePointResponse: "/pdpb.PD/UpdateGCSafePoint";
    keyspacepb::LoadKeyspaceRequest => keyspacepb::LoadKeyspaceResponse: "/keyspacepb.Keyspace/LoadKeyspace";
}

stores! {
    kvrpcpb::BatchGetRequest => kvrpcpb::BatchGetResponse: "/tikvpb.Tikv/KvBatchGet";
    kvrpcpb::ScanRequest => kvrpcpb::ScanResponse: "/tikvpb.Tikv/KvScan";
    kvrpcpb::PrewriteRequest => kvrpcpb::PrewriteResponse: "/tikvpb.Tikv/KvPrewrite";
    kvrpcpb::CommitRequest => kvrpcpb::CommitResponse: "/tikvpb.Tikv/KvCommit";
    kvrpcpb::TxnHeartBeatRequest => kvrpcpb::TxnHeartBeatResponse: "/tikvpb.Tikv/KvTxnHeartBeat";
    kvrpcpb::CheckTxnStatusRequest => kvrpcpb::CheckTxnStatusResponse: "/tikvpb.Tikv/KvCheckTxnStatus";
    kvrpcpb::ScanLockRequest => kvrpcpb::ScanLockResponse: "/tikvpb.Tikv/KvScanLock";
    kvrpcpb::ResolveLockRequest => kvrpcpb::ResolveLockResponse: "/tikvpb.Tikv/KvResolveLock";
}

/// Why a call has no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nothing came until the deadline.
    NoAnswer,
    /// The other side says why.
    Refused(String),
    /// The connection is lost.
    Broken(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoAnswer => f.write_str("no answer in time"),
            Self::Refused(why) | Self::Broken(why) => f.write_str(why),
        }
    }
}

/// A client of that channel's other side.
pub(crate) fn grpc(channel: Channel) -> Grpc<Channel> {
    Grpc::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX).max_encoding_message_size(usize::MAX)
}

/// Makes a call, once.
pub(crate) async fn unary<R: Rpc>(channel: Channel, request: R, deadline: Instant) -> Result<R::Answer, Failure> {
    let call = async {
        let mut grpc = grpc(channel);
        grpc.ready().await.map_err(|error| Failure::Broken(text(&error)))?;
        let codec = ProstCodec::<R, R::Answer>::default();
        let answer = grpc.unary(Request::new(request), PathAndQuery::from_static(R::PATH), codec).await;
        answer.map(tonic::Response::into_inner).map_err(|status| sorted(&status))
    };
    timeout_at(deadline, call).await.unwrap_or(Err(Failure::NoAnswer))
}

/// Statuses of the other side come without a cause.
pub(crate) fn sorted(status: &Status) -> Failure {
    let why = format!("{:?}: {}", status.code(), status.message());
    match status.source() {
        None => Failure::Refused(why),
        Some(_) => Failure::Broken(text(status)),
    }
}
