//! Responses of a watch stream as bytes.
//!
//! A response with events is a small head of its own and the shared bytes of the events behind it.

use bytes::{Bytes, BytesMut};
use kubewharf_etcd_api::encode::{put_watch_head, watch_head_len};
use kubewharf_etcd_api::etcdserverpb::{ResponseHeader, WatchResponse};
use prost::Message as _;
use smallvec::SmallVec;

use crate::limits::{WATCH_PIECE_BYTES_MIN, WATCH_PIECES_MAX};

/// An encoded `WatchResponse`, in pieces.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message {
    pub(crate) pieces: SmallVec<[Bytes; 3]>,
}

impl Message {
    /// A response without events.
    pub(super) fn control(response: &WatchResponse) -> Self {
        Self { pieces: SmallVec::from_elem(response.encode_to_vec().into(), 1) }
    }
}

/// Entries of the field `events`, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Entries {
    pieces: SmallVec<[Bytes; 2]>,
    bytes: usize,
    events: u64,
}

impl Entries {
    pub(super) fn push(&mut self, entries: Bytes, events: u64) {
        if !entries.is_empty() {
            self.bytes += entries.len();
            self.events += events;
            self.pieces.push(entries);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn events(&self) -> u64 {
        self.events
    }

    /// One response of all events.
    pub(super) fn whole(self, header: &ResponseHeader, watch_id: i64) -> Message {
        let mut pieces = SmallVec::new();
        pieces.push(head(header, watch_id, false));
        if self.pieces.len() > WATCH_PIECES_MAX && self.bytes < self.pieces.len() * WATCH_PIECE_BYTES_MIN {
            pieces.push(self.join());
        } else {
            pieces.extend(self.pieces);
        }
        Message { pieces }
    }

    /// As etcd divides a response for clients that asked for it: one response if it is shorter than `bytes_max`, else
    /// several, each with as many events as stay below that, one at least.
    pub(super) fn fragments(self, header: &ResponseHeader, watch_id: i64, bytes_max: usize) -> Vec<Message> {
        if watch_head_len(header, watch_id, false) + self.bytes < bytes_max || self.events < 2 {
            return vec![self.whole(header, watch_id)];
        }
        let head_len = watch_head_len(header, watch_id, true);
        let entries = self.join();
        let mut fragments = Vec::new();
        let mut start = 0;
        while start < entries.len() {
            let mut end = start + entry_len(&entries[start..]);
            while end < entries.len() {
                let next = end + entry_len(&entries[end..]);
                if head_len + next - start >= bytes_max {
                    break;
                }
                end = next;
            }
            let more = end < entries.len();
            let pieces = [head(header, watch_id, more), entries.slice(start..end)];
            fragments.push(Message { pieces: pieces.into_iter().collect() });
            start = end;
        }
        fragments
    }

    fn join(mut self) -> Bytes {
        if self.pieces.len() == 1 {
            return self.pieces.pop().expect("there is one");
        }
        let mut joined = BytesMut::with_capacity(self.bytes);
        for piece in &self.pieces {
            joined.extend_from_slice(piece);
        }
        joined.freeze()
    }
}

fn head(header: &ResponseHeader, watch_id: i64, fragment: bool) -> Bytes {
    let mut head = BytesMut::with_capacity(watch_head_len(header, watch_id, fragment));
    put_watch_head(&mut head, header, watch_id, fragment);
    head.freeze()
}

/// The length of the first of some entries, tag and length included.
fn entry_len(entries: &[u8]) -> usize {
    let mut rest = &entries[1..];
    let body = prost::encoding::decode_varint(&mut rest).expect("entries are written by this crate");
    entries.len() - rest.len() + usize::try_from(body).expect("it is in memory")
}

#[cfg(test)]
mod tests {
    use kubewharf_etcd_api::mvccpb::{Event, KeyValue};

    use super::*;

    const HEADER: ResponseHeader = ResponseHeader { cluster_id: u64::MAX, member_id: 7, revision: 300, raft_term: 2 };

    fn event(number: usize) -> Event {
        let value = vec![7; number * 50];
        let kv = KeyValue { key: format!("k{number}").into(), value: value.into(), ..KeyValue::default() };
        Event { kv: Some(kv), ..Event::default() }
    }

    fn entries(numbers: std::ops::Range<usize>) -> Entries {
        let mut entries = Entries::default();
        for number in numbers {
            let response = WatchResponse { events: vec![event(number)], ..WatchResponse::default() };
            entries.push(response.encode_to_vec().into(), 1);
        }
        entries
    }

    fn decode(message: Message) -> WatchResponse {
        WatchResponse::decode(message.pieces.concat().as_slice()).unwrap()
    }

    #[test]
    fn a_whole_response_has_all_events_whether_they_were_joined_or_not() {
        for count in [1, 2, WATCH_PIECES_MAX + 1, WATCH_PIECES_MAX * 10] {
            let response = decode(entries(0..count).whole(&HEADER, -3));
            let expected = WatchResponse {
                header: Some(HEADER),
                watch_id: -3,
                events: (0..count).map(event).collect(),
                ..WatchResponse::default()
            };
            assert_eq!(response, expected);
        }
        assert!(entries(0..WATCH_PIECES_MAX * 10).whole(&HEADER, 1).pieces.len() > 1);
    }

    /// Sizes and cuts as etcd computes them, from the messages themselves.
    #[test]
    fn fragments_are_cut_where_etcd_cuts() {
        let whole = WatchResponse {
            header: Some(HEADER),
            watch_id: 9,
            events: (0..30).map(event).collect(),
            ..WatchResponse::default()
        };
        for bytes_max in (1..whole.encoded_len() + 3).step_by(7).chain([whole.encoded_len(), whole.encoded_len() + 1]) {
            let mut expected = Vec::new();
            if whole.encoded_len() < bytes_max {
                expected.push(whole.clone());
            } else {
                let mut left = whole.events.as_slice();
                while !left.is_empty() {
                    let mut fragment = WatchResponse { fragment: true, events: Vec::new(), ..whole.clone() };
                    for event in left {
                        fragment.events.push(event.clone());
                        if fragment.events.len() > 1 && fragment.encoded_len() >= bytes_max {
                            fragment.events.pop();
                            break;
                        }
                    }
                    left = &left[fragment.events.len()..];
                    fragment.fragment = !left.is_empty();
                    expected.push(fragment);
                }
            }
            let fragments = entries(0..30).fragments(&HEADER, 9, bytes_max);
            let fragments: Vec<_> = fragments.into_iter().map(decode).collect();
            assert_eq!(fragments, expected, "at {bytes_max}");
        }
    }

    #[test]
    fn a_single_event_is_never_divided() {
        let fragments = entries(20..21).fragments(&HEADER, 1, 10);
        assert_eq!(fragments.len(), 1);
        assert!(!decode(fragments[0].clone()).fragment);
    }
}
