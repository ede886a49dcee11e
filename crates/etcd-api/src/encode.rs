//! Encoders for the answers that make up nearly all traffic: ranges and watch events.
//!
//! They write a message field by field from borrowed parts, so a row goes from the store to the wire with one copy and
//! no allocation but the buffer's. A message is written in the order of its field numbers: head, rows, trailer.
//! Invariant: the bytes, and the sizes given beforehand, are exactly those of the generated code. Framing and size
//! limits are left to the caller.
//!
//! Each `put_` function grows the buffer when it must; a caller that writes many rows adds up the `_len` functions and
//! reserves once.

use bytes::BytesMut;
use prost::Message;
use prost::encoding::encoded_len_varint;

use crate::etcdserverpb::ResponseHeader;
use crate::mvccpb::KeyValue;
use crate::mvccpb::event::EventType;

/// A field that is a message, a string or bytes: its length comes first.
const fn delimited(field: u8) -> u8 {
    field << 3 | 2
}

/// A field that is a number.
const fn varint(field: u8) -> u8 {
    field << 3
}

const KV_KEY: u8 = delimited(1);
const KV_CREATE_REVISION: u8 = varint(2);
const KV_MOD_REVISION: u8 = varint(3);
const KV_VERSION: u8 = varint(4);
const KV_VALUE: u8 = delimited(5);
const KV_LEASE: u8 = varint(6);

const EVENT_TYPE: u8 = varint(1);
const EVENT_KV: u8 = delimited(2);
const EVENT_PREV_KV: u8 = delimited(3);

const HEADER: u8 = delimited(1);
const HEADER_CLUSTER_ID: u8 = varint(1);
const HEADER_MEMBER_ID: u8 = varint(2);
const HEADER_REVISION: u8 = varint(3);
const HEADER_RAFT_TERM: u8 = varint(4);

const RANGE_KVS: u8 = delimited(2);
const RANGE_MORE: u8 = varint(3);
const RANGE_COUNT: u8 = varint(4);
const RANGE_STREAM_RESPONSE: u8 = delimited(1);

const WATCH_ID: u8 = varint(2);
const WATCH_FRAGMENT: u8 = varint(7);
const WATCH_EVENTS: u8 = delimited(11);

/// The parts of an `mvccpb.KeyValue`, borrowed from wherever they are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyValueRef<'a> {
    /// The key.
    pub key: &'a [u8],
    /// Revision that created this life of the key.
    pub create_revision: i64,
    /// Revision that wrote this value.
    pub mod_revision: i64,
    /// 1 at creation, plus one a write.
    pub version: i64,
    /// The value.
    pub value: &'a [u8],
    /// Lease the key dies with, 0 for none.
    pub lease: i64,
}

impl KeyValueRef<'_> {
    /// Bytes of the encoded message, without the tag and length that stand before it in another message.
    pub fn encoded_len(&self) -> usize {
        bytes_len(self.key)
            + number_len(self.create_revision as u64)
            + number_len(self.mod_revision as u64)
            + number_len(self.version as u64)
            + bytes_len(self.value)
            + number_len(self.lease as u64)
    }
}

impl<'a> From<&'a KeyValue> for KeyValueRef<'a> {
    fn from(kv: &'a KeyValue) -> Self {
        Self {
            key: &kv.key,
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
            value: &kv.value,
            lease: kv.lease,
        }
    }
}

/// Bytes [`put_header`] writes.
pub fn header_len(header: &ResponseHeader) -> usize {
    message_len(header.encoded_len())
}

/// Writes the field `header` of any response.
pub fn put_header(buf: &mut BytesMut, header: &ResponseHeader) {
    let body_len = header.encoded_len();
    buf.reserve(message_len(body_len));
    let mut small = Small::new();
    small.message(HEADER, body_len);
    small.number(HEADER_CLUSTER_ID, header.cluster_id);
    small.number(HEADER_MEMBER_ID, header.member_id);
    small.number(HEADER_REVISION, header.revision as u64);
    small.number(HEADER_RAFT_TERM, header.raft_term);
    small.flush(buf);
}

/// Bytes [`put_range_kv`] writes.
pub fn range_kv_len(kv: &KeyValueRef<'_>) -> usize {
    message_len(kv.encoded_len())
}

/// Writes one entry of the field `kvs` of a `RangeResponse`.
pub fn put_range_kv(buf: &mut BytesMut, kv: &KeyValueRef<'_>) {
    let body_len = kv.encoded_len();
    buf.reserve(message_len(body_len));
    let mut small = Small::new();
    small.message(RANGE_KVS, body_len);
    put_key_value(buf, &mut small, kv);
    small.flush(buf);
}

/// Bytes [`put_range_trailer`] writes.
pub fn range_trailer_len(more: bool, count: i64) -> usize {
    number_len(u64::from(more)) + number_len(count as u64)
}

/// Writes the fields of a `RangeResponse` that stand after `kvs`.
pub fn put_range_trailer(buf: &mut BytesMut, more: bool, count: i64) {
    let mut small = Small::new();
    small.number(RANGE_MORE, u64::from(more));
    small.number(RANGE_COUNT, count as u64);
    small.flush(buf);
}

/// Bytes [`put_range_stream_head`] writes.
pub fn range_stream_head_len(range_response_len: usize) -> usize {
    message_len(range_response_len) - range_response_len
}

/// Begins a `RangeStreamResponse`: a `RangeResponse` of `range_response_len` bytes must follow.
pub fn put_range_stream_head(buf: &mut BytesMut, range_response_len: usize) {
    let mut small = Small::new();
    small.message(RANGE_STREAM_RESPONSE, range_response_len);
    small.flush(buf);
}

/// Bytes [`put_watch_head`] writes.
pub fn watch_head_len(header: &ResponseHeader, watch_id: i64, fragment: bool) -> usize {
    header_len(header) + number_len(watch_id as u64) + number_len(u64::from(fragment))
}

/// Writes the fields of a `WatchResponse` that stand before `events`, for a response that is only about events.
///
/// Events are the same for every watch that sees them, this head is not: events can be encoded once and shared.
pub fn put_watch_head(buf: &mut BytesMut, header: &ResponseHeader, watch_id: i64, fragment: bool) {
    put_header(buf, header);
    let mut small = Small::new();
    small.number(WATCH_ID, watch_id as u64);
    small.number(WATCH_FRAGMENT, u64::from(fragment));
    small.flush(buf);
}

/// Bytes [`put_event`] writes.
pub fn event_len(kind: EventType, kv: &KeyValueRef<'_>, prev_kv: Option<&KeyValueRef<'_>>) -> usize {
    message_len(event_body_len(kind, kv.encoded_len(), prev_kv.map(KeyValueRef::encoded_len)))
}

/// Writes one entry of the field `events` of a `WatchResponse`.
pub fn put_event(buf: &mut BytesMut, kind: EventType, kv: &KeyValueRef<'_>, prev_kv: Option<&KeyValueRef<'_>>) {
    let kv_len = kv.encoded_len();
    let prev_kv = prev_kv.map(|prev_kv| (prev_kv, prev_kv.encoded_len()));
    let body_len = event_body_len(kind, kv_len, prev_kv.map(|(_, len)| len));
    buf.reserve(message_len(body_len));
    let mut small = Small::new();
    small.message(WATCH_EVENTS, body_len);
    small.number(EVENT_TYPE, kind as u64);
    small.message(EVENT_KV, kv_len);
    put_key_value(buf, &mut small, kv);
    if let Some((prev_kv, len)) = prev_kv {
        // What is pending of `kv` and the run of `prev_kv` together could be too long for `Small`.
        small.flush(buf);
        small.message(EVENT_PREV_KV, len);
        put_key_value(buf, &mut small, prev_kv);
    }
    small.flush(buf);
}

/// Writes the body of an `Event` without previous version: what [`put_event_head`] announces.
///
/// An event that is kept as a body, followed by the field of [`put_event_prev_kv`], can be sent with and without it.
pub fn put_event_body(buf: &mut BytesMut, kind: EventType, kv: &KeyValueRef<'_>) {
    let kv_len = kv.encoded_len();
    buf.reserve(event_body_len(kind, kv_len, None));
    let mut small = Small::new();
    small.number(EVENT_TYPE, kind as u64);
    small.message(EVENT_KV, kv_len);
    put_key_value(buf, &mut small, kv);
    small.flush(buf);
}

/// Writes the field `prev_kv` of an `Event`, behind its body.
pub fn put_event_prev_kv(buf: &mut BytesMut, prev_kv: &KeyValueRef<'_>) {
    let len = prev_kv.encoded_len();
    buf.reserve(message_len(len));
    let mut small = Small::new();
    small.message(EVENT_PREV_KV, len);
    put_key_value(buf, &mut small, prev_kv);
    small.flush(buf);
}

/// Bytes [`put_event_head`] writes, and those that it announces.
pub fn event_entry_len(body_len: usize) -> usize {
    message_len(body_len)
}

/// Begins one entry of the field `events` of a `WatchResponse`: `body_len` bytes of an `Event` must follow.
pub fn put_event_head(buf: &mut BytesMut, body_len: usize) {
    let mut small = Small::new();
    small.message(WATCH_EVENTS, body_len);
    small.flush(buf);
}

/// Bytes [`put_encoded_event`] writes.
pub fn encoded_event_len(event_len: usize) -> usize {
    message_len(event_len)
}

/// Writes one entry of the field `events` of a `WatchResponse` from an encoded `Event`.
///
/// The fields of an event stand in the order of their numbers and `prev_kv` is the last: an encoded event is also one
/// without `prev_kv` up to there.
pub fn put_encoded_event(buf: &mut BytesMut, event: &[u8]) {
    let mut small = Small::new();
    small.message(WATCH_EVENTS, event.len());
    small.flush(buf);
    buf.extend_from_slice(event);
}

fn event_body_len(kind: EventType, kv_len: usize, prev_kv_len: Option<usize>) -> usize {
    number_len(kind as u64) + message_len(kv_len) + prev_kv_len.map_or(0, message_len)
}

/// Writes the fields of a key-value after what is pending in `small`; may leave the last of them pending.
#[inline]
fn put_key_value(buf: &mut BytesMut, small: &mut Small, kv: &KeyValueRef<'_>) {
    small.bytes(buf, KV_KEY, kv.key);
    small.number(KV_CREATE_REVISION, kv.create_revision as u64);
    small.number(KV_MOD_REVISION, kv.mod_revision as u64);
    small.number(KV_VERSION, kv.version as u64);
    small.bytes(buf, KV_VALUE, kv.value);
    small.number(KV_LEASE, kv.lease as u64);
}

/// Bytes of a message field: tag, length and body. All tags here take one byte.
#[inline]
fn message_len(body_len: usize) -> usize {
    1 + encoded_len_varint(body_len as u64) + body_len
}

/// Bytes of a number field; zero is not written.
#[inline]
fn number_len(number: u64) -> usize {
    if number == 0 { 0 } else { 1 + encoded_len_varint(number) }
}

/// Bytes of a bytes field; nothing is not written.
#[inline]
fn bytes_len(bytes: &[u8]) -> usize {
    if bytes.is_empty() { 0 } else { message_len(bytes.len()) }
}

/// Room for the most that can be pending between two flushes: two message heads of 11 bytes, an event type of 2, and
/// four numbers of 11 (a key-value without key and value). A longer run panics; a test writes the longest.
const SMALL_LEN_MAX: usize = 68;

/// Tags, lengths and numbers on their way to the buffer, gathered so that the buffer is appended to only around keys
/// and values.
struct Small {
    bytes: [u8; SMALL_LEN_MAX],
    len: usize,
}

impl Small {
    #[inline]
    fn new() -> Self {
        Self { bytes: [0; SMALL_LEN_MAX], len: 0 }
    }

    #[inline]
    fn byte(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    #[inline]
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.byte(number as u8 | 0x80);
            number >>= 7;
        }
        self.byte(number as u8);
    }

    /// A number field; zero is not written.
    #[inline]
    fn number(&mut self, tag: u8, number: u64) {
        if number != 0 {
            self.byte(tag);
            self.varint(number);
        }
    }

    /// The tag and length of a message that follows.
    #[inline]
    fn message(&mut self, tag: u8, body_len: usize) {
        self.byte(tag);
        self.varint(body_len as u64);
    }

    /// A bytes field, after all that is pending; nothing is not written.
    #[inline]
    fn bytes(&mut self, buf: &mut BytesMut, tag: u8, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.message(tag, bytes.len());
            self.flush(buf);
            buf.extend_from_slice(bytes);
        }
    }

    #[inline]
    fn flush(&mut self, buf: &mut BytesMut) {
        buf.extend_from_slice(&self.bytes[..self.len]);
        self.len = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::etcdserverpb::{RangeResponse, RangeStreamResponse, WatchResponse};
    use crate::mvccpb::Event;

    /// Numbers of every encoded length, zero and negative ones among them.
    fn number() -> impl Strategy<Value = i64> {
        prop_oneof![Just(0), Just(i64::MIN), Just(-1), (0u32..63, any::<i64>()).prop_map(|(bits, n)| n >> bits)]
    }

    /// Byte strings on both sides of the sizes at which a length takes one byte more.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![vec(any::<u8>(), 0..40), vec(any::<u8>(), 120..136), vec(any::<u8>(), 16_370..16_400)]
    }

    prop_compose! {
        fn key_value()(
            key in bytes(), create_revision in number(), mod_revision in number(), version in number(),
            value in bytes(), lease in number(),
        ) -> KeyValue {
            KeyValue { key: key.into(), create_revision, mod_revision, version, value: value.into(), lease }
        }
    }

    prop_compose! {
        fn header()(
            cluster_id in number(), member_id in number(), revision in number(), raft_term in number(),
        ) -> ResponseHeader {
            ResponseHeader {
                cluster_id: cluster_id as u64, member_id: member_id as u64, revision, raft_term: raft_term as u64,
            }
        }
    }

    prop_compose! {
        fn event()(
            delete in any::<bool>(), kv in key_value(), prev_kv in proptest::option::of(key_value()),
        ) -> Event {
            Event { r#type: i32::from(delete), kv: Some(kv), prev_kv }
        }
    }

    fn event_parts(event: &Event) -> (EventType, KeyValueRef<'_>, Option<KeyValueRef<'_>>) {
        let kv = event.kv.as_ref().expect("the strategy always gives one");
        (event.r#type(), kv.into(), event.prev_kv.as_ref().map(KeyValueRef::from))
    }

    fn put_range(buf: &mut BytesMut, response: &RangeResponse) {
        put_header(buf, response.header.as_ref().expect("the strategy always gives one"));
        for kv in &response.kvs {
            put_range_kv(buf, &kv.into());
        }
        put_range_trailer(buf, response.more, response.count);
    }

    fn range_len(response: &RangeResponse) -> usize {
        header_len(response.header.as_ref().expect("the strategy always gives one"))
            + response.kvs.iter().map(|kv| range_kv_len(&kv.into())).sum::<usize>()
            + range_trailer_len(response.more, response.count)
    }

    prop_compose! {
        fn range_response()(
            header in header(), kvs in vec(key_value(), 0..4), more in any::<bool>(), count in number(),
        ) -> RangeResponse {
            RangeResponse { header: Some(header), kvs, more, count }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn an_encoded_event_without_its_end_is_one_without_prev_kv(event in event()) {
            let (kind, kv, prev_kv) = event_parts(&event);
            let mut whole = BytesMut::new();
            put_event(&mut whole, kind, &kv, prev_kv.as_ref());
            let mut plain = BytesMut::new();
            put_event(&mut plain, kind, &kv, None);
            let body = event.encode_to_vec();
            let plain_body_len = Event { prev_kv: None, ..event.clone() }.encoded_len();
            for (body, entry) in [(&body[..], &whole), (&body[..plain_body_len], &plain)] {
                let mut again = BytesMut::new();
                put_encoded_event(&mut again, body);
                prop_assert_eq!(again.len(), encoded_event_len(body.len()));
                prop_assert_eq!(&again, entry);
            }
        }

        #[test]
        fn a_range_response_is_what_prost_writes(response in range_response()) {
            let expected = response.encode_to_vec();
            prop_assert_eq!(range_len(&response), expected.len());

            let mut buf = BytesMut::new();
            put_range(&mut buf, &response);
            prop_assert_eq!(&buf[..], &expected[..]);
            prop_assert_eq!(RangeResponse::decode(buf.freeze()).unwrap(), response);
        }

        #[test]
        fn a_buffer_of_the_computed_size_is_not_grown(response in range_response()) {
            let mut buf = BytesMut::with_capacity(range_len(&response));
            let (start, capacity) = (buf.as_ptr(), buf.capacity());
            put_range(&mut buf, &response);
            prop_assert_eq!((buf.as_ptr(), buf.capacity()), (start, capacity));
        }

        #[test]
        fn a_range_stream_response_is_what_prost_writes(response in range_response()) {
            let mut buf = BytesMut::new();
            let len = range_len(&response);
            put_range_stream_head(&mut buf, len);
            prop_assert_eq!(buf.len(), range_stream_head_len(len));
            put_range(&mut buf, &response);
            prop_assert_eq!(&buf[..], RangeStreamResponse { range_response: Some(response) }.encode_to_vec());
        }

        #[test]
        fn a_watch_response_is_what_prost_writes(
            header in header(), watch_id in number(), fragment in any::<bool>(), events in vec(event(), 0..4),
        ) {
            let mut buf = BytesMut::new();
            put_watch_head(&mut buf, &header, watch_id, fragment);
            prop_assert_eq!(buf.len(), watch_head_len(&header, watch_id, fragment));
            for event in &events {
                let (kind, kv, prev_kv) = event_parts(event);
                let before = buf.len();
                put_event(&mut buf, kind, &kv, prev_kv.as_ref());
                prop_assert_eq!(buf.len() - before, event_len(kind, &kv, prev_kv.as_ref()));
                let mut body = BytesMut::new();
                put_event_body(&mut body, kind, &kv);
                if let Some(prev_kv) = &prev_kv {
                    put_event_prev_kv(&mut body, prev_kv);
                }
                let mut whole = BytesMut::new();
                put_event_head(&mut whole, body.len());
                whole.extend_from_slice(&body);
                prop_assert_eq!(whole.len(), event_entry_len(body.len()));
                prop_assert_eq!(&buf[before..], &whole[..]);
            }
            let response = WatchResponse { header: Some(header), watch_id, fragment, events, ..Default::default() };
            prop_assert_eq!(&buf[..], response.encode_to_vec());
            prop_assert_eq!(WatchResponse::decode(buf.freeze()).unwrap(), response);
        }
    }

    /// Longest numbers and no bytes to flush on: the most that `Small` ever holds.
    #[test]
    fn the_longest_numbers_fit() {
        let longest = KeyValue { create_revision: -1, mod_revision: -1, version: -1, lease: -1, ..Default::default() };
        let event =
            Event { r#type: EventType::Delete.into(), kv: Some(longest.clone()), prev_kv: Some(longest.clone()) };
        let mut buf = BytesMut::new();
        let (kind, kv, prev_kv) = event_parts(&event);
        put_event(&mut buf, kind, &kv, prev_kv.as_ref());
        assert_eq!(&buf[..], WatchResponse { events: vec![event], ..Default::default() }.encode_to_vec());
    }
}
