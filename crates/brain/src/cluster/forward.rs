//! Calls that only the leader can answer, sent on by the member that a client has asked.
//!
//! Invariant: a call is sent again only if it was certainly not carried out. However many there are, they take a bounded number of bytes.

use std::time::Instant;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kubewharf_etcd_api::etcdserverpb::ResponseHeader;
use kubewharf_etcd_api::{EtcdError, Method};
use kubewharf_grpc::{Code, Status};
use prost::Message;

use super::Cluster;
use super::link::{CallError, Link};
use crate::error::Error;
use crate::limits::{FORWARD_BYTES_MAX, FORWARD_CALL_BYTES, FORWARD_GRACE, FORWARD_TIMEOUT, PEER_RETRY};
use crate::rpc::status;

/// The path of a renewal of one lease on the peers' port.
pub(crate) const KEEP_ALIVE: &str = "/kubebrain.Peer/LeaseKeepAlive";

/// What became of a call.
pub(crate) enum Forwarded {
    /// The leader's answer, or why there is none.
    Answer(Result<Bytes, Status>),
    /// This member leads by now: it can answer itself.
    Here,
}

impl Cluster {
    /// Sends a call to the leader, as soon as there is one. `deadline` is the client's.
    pub(crate) async fn forward(&self, path: &'static str, message: Bytes, deadline: Option<Instant>) -> Forwarded {
        let room = u32::try_from(message.len() + FORWARD_CALL_BYTES).ok();
        let Some(_room) = room.and_then(|bytes| self.forwarding.try_acquire_many(bytes).ok()) else {
            let refusal = Error::TooManyRequests { limit: FORWARD_BYTES_MAX, flag: "a fixed bound of forwarded bytes" };
            return Forwarded::Answer(Err(status(&refusal)));
        };
        let begun = Instant::now();
        let until = deadline.map_or(begun + FORWARD_TIMEOUT, |deadline| deadline.min(begun + FORWARD_TIMEOUT));
        loop {
            if Instant::now() >= until {
                return Forwarded::Answer(Err(status(&Error::Api(EtcdError::Timeout))));
            }
            let link = match tokio::time::timeout_at(until.into(), self.way()).await {
                Ok(Some(link)) => link,
                Ok(None) => return Forwarded::Here,
                Err(_) => return Forwarded::Answer(Err(status(&Error::Api(EtcdError::NoLeader)))),
            };
            let why = tokio::select! {
                answer = link.call(path, message.clone()) => match answer {
                    Ok(answer) => {
                        let (answer, revision) = answered_by(answer, self.me.id);
                        // What a client has been told of, it finds on the same member, in watches too.
                        self.shows(revision).await;
                        if path == Method::Compact.path() {
                            let _ = self.flights.join().await;
                        }
                        return Forwarded::Answer(Ok(answer));
                    }
                    Err(CallError::Answer(answer)) => {
                        if !is_not_leader(&answer) {
                            return Forwarded::Answer(Err(translate(&answer)));
                        }
                        // It was not carried out: once more, where the leader is by then.
                        tokio::time::sleep(PEER_RETRY / 5).await;
                        self.flights.call();
                        continue;
                    }
                    Err(CallError::NotSent) => {
                        tokio::time::sleep(PEER_RETRY / 5).await;
                        continue;
                    }
                    Err(CallError::Broken(why)) => format!("the connection to the leader has ended: {why}"),
                },
                () = self.is_over(&link) => "another member leads now".to_owned(),
            };
            return Forwarded::Answer(Err(status(&Error::OutcomeUnknown(why))));
        }
    }

    /// Waits for a connection to the leader; `None` if this member leads.
    async fn way(&self) -> Option<Link> {
        let mut known = self.known.subscribe();
        loop {
            if self.store.is_leading() {
                return None;
            }
            if let Some(link) = known.borrow_and_update().link.clone() {
                return Some(link);
            }
            if known.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until the member leads no more, and then a little for its last answers.
    async fn is_over(&self, link: &Link) {
        let mut known = self.known.subscribe();
        if known.wait_for(|known| known.epoch > link.epoch).await.is_err() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(FORWARD_GRACE).await;
    }
}

/// The answer with another member in its header, which is the first field of every message that is forwarded: clients are told who has answered
/// them. And the header's revision.
fn answered_by(answer: Bytes, member_id: u64) -> (Bytes, i64) {
    /// The tag of a message in field 1.
    const HEADER: u8 = 0x0a;
    let mut rest = answer.clone();
    if rest.first() != Some(&HEADER) {
        return (answer, 0);
    }
    rest.advance(1);
    let Ok(header) = ResponseHeader::decode_length_delimited(&mut rest) else { return (answer, 0) };
    let header = ResponseHeader { member_id, ..header };
    let mut changed = BytesMut::with_capacity(answer.len() + 16);
    changed.put_u8(HEADER);
    changed.put_slice(&header.encode_length_delimited_to_vec());
    changed.put(rest);
    (changed.freeze(), header.revision)
}

/// Whether a member refused because it does not lead.
fn is_not_leader(answer: &tonic::Status) -> bool {
    let expected = status(&Error::NotLeader);
    answer.code() as i32 == expected.code() as i32 && answer.message() == expected.message()
}

fn translate(answer: &tonic::Status) -> Status {
    Status::new(Code::from_number(answer.code() as u32), answer.message().to_owned())
}

#[cfg(test)]
mod tests {
    use kubewharf_etcd_api::etcdserverpb::PutResponse;

    use super::*;

    #[test]
    fn a_forwarded_answer_names_the_member_that_was_asked() {
        let header = ResponseHeader { cluster_id: 1, member_id: 2, revision: 3, raft_term: 4 };
        let answer = PutResponse { header: Some(header), prev_kv: Some(Default::default()) };
        let (changed, revision) = answered_by(answer.encode_to_vec().into(), u64::MAX);
        let expected = PutResponse { header: Some(ResponseHeader { member_id: u64::MAX, ..header }), ..answer };
        assert_eq!((PutResponse::decode(changed), revision), (Ok(expected), 3));
        for odd in [&b""[..], b"\x0a", b"\x0a\x05", b"\x12\x00"] {
            assert_eq!(
                answered_by(Bytes::from_static(odd), 1),
                (Bytes::from_static(odd), 0),
                "what is not understood stays as it is"
            );
        }
    }
}
