//! Reply messages, and the buffer form in which they wait in the HTTP/2 layer.
//!
//! Invariant: every byte that waits for a client is charged to its connection (and its stream) until the socket's write
//! batch has it, or the stream is gone; the charge is returned by `Drop`, so no path forgets it.

use std::any::Any;
use std::io::IoSlice;
use std::sync::Arc;

use bytes::{Buf, Bytes};

use crate::deframer::PREFIX_LEN;
use crate::inbox::Shared;
use crate::stall::{Sending, Waiting};
use crate::stream::StreamShared;

/// A reply message: its encoded bytes in one or several pieces, without the 5-byte gRPC prefix.
///
/// Pieces are never joined, so large shared bytes (the same events for thousands of watchers) are not copied to be put
/// together with a small head.
#[derive(Default)]
pub struct Reply {
    first: Bytes,
    rest: Vec<Bytes>,
    guard: Option<Box<dyn Any + Send>>,
}

impl Reply {
    /// A message of these pieces, in order.
    pub fn from_pieces(pieces: impl IntoIterator<Item = Bytes>) -> Self {
        let mut pieces = pieces.into_iter();
        Self { first: pieces.next().unwrap_or_default(), rest: pieces.collect(), guard: None }
    }

    /// Adds a piece at the end.
    pub fn push(&mut self, piece: Bytes) {
        if self.first.is_empty() && self.rest.is_empty() {
            self.first = piece;
        } else {
            self.rest.push(piece);
        }
    }

    /// Something to drop when the last byte has left for the socket, or can't leave any more.
    #[must_use]
    pub fn with_guard(mut self, guard: impl Send + 'static) -> Self {
        self.guard = Some(Box::new(guard));
        self
    }

    /// Whether something is dropped when the reply has left.
    pub(crate) fn has_guard(&self) -> bool {
        self.guard.is_some()
    }

    /// The length of the message in bytes, without the prefix.
    pub fn message_len(&self) -> usize {
        self.first.len() + self.rest.iter().map(Bytes::len).sum::<usize>()
    }
}

impl From<Bytes> for Reply {
    fn from(message: Bytes) -> Self {
        Self { first: message, rest: Vec::new(), guard: None }
    }
}

impl From<Vec<u8>> for Reply {
    fn from(message: Vec<u8>) -> Self {
        Self::from(Bytes::from(message))
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Reply").field("message_len", &self.message_len()).finish_non_exhaustive()
    }
}

/// To whom waiting bytes are charged.
pub(crate) enum Account {
    Connection(Arc<Shared>),
    Stream(Arc<StreamShared>),
}

/// Bytes that wait; gives the charge back when dropped.
struct Charge {
    account: Account,
    bytes: usize,
}

impl Drop for Charge {
    fn drop(&mut self) {
        match &self.account {
            Account::Connection(shared) => shared.discharge(self.bytes),
            Account::Stream(stream) => stream.discharge(self.bytes),
        }
    }
}

/// The DATA of the HTTP/2 layer: a gRPC prefix and the pieces of a message, or the body of a plain HTTP response.
pub(crate) struct Payload {
    prefix: [u8; PREFIX_LEN],
    prefix_sent: u8,
    /// Pieces of `rest` that are sent.
    rest_sent: u32,
    first: Bytes,
    rest: Vec<Bytes>,
    remaining: usize,
    _charge: Charge,
    _guard: Option<Box<dyn Any + Send>>,
    waiting: Option<Waiting>,
}

impl Payload {
    /// Frames a message, the way of which is noted in `sending`. `None` if it is longer than a gRPC prefix can tell.
    pub(crate) fn message(reply: Reply, account: Account, sending: Option<Arc<Sending>>) -> Option<Self> {
        let len = reply.message_len();
        let [a, b, c, d] = u32::try_from(len).ok()?.to_be_bytes();
        let remaining = len + PREFIX_LEN;
        match &account {
            Account::Connection(shared) => shared.charge(remaining),
            // A stream's message was charged when it was queued.
            Account::Stream(_) => {}
        }
        Some(Self {
            prefix: [0, a, b, c, d],
            prefix_sent: 0,
            rest_sent: 0,
            first: reply.first,
            rest: reply.rest,
            remaining,
            _charge: Charge { account, bytes: remaining },
            _guard: reply.guard,
            waiting: sending.map(Waiting::new),
        })
    }

    /// A body without gRPC framing.
    pub(crate) fn plain(body: Bytes, shared: Arc<Shared>) -> Self {
        let remaining = body.len();
        shared.charge(remaining);
        Self {
            prefix: [0; PREFIX_LEN],
            prefix_sent: PREFIX_LEN as u8,
            rest_sent: 0,
            first: body,
            rest: Vec::new(),
            remaining,
            _charge: Charge { account: Account::Connection(shared), bytes: remaining },
            _guard: None,
            waiting: None,
        }
    }

    fn prefix_left(&self) -> &[u8] {
        &self.prefix[usize::from(self.prefix_sent)..]
    }
}

impl Buf for Payload {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        let prefix = self.prefix_left();
        if !prefix.is_empty() {
            return prefix;
        }
        if !self.first.is_empty() {
            return &self.first;
        }
        let rest = &self.rest[self.rest_sent as usize..];
        rest.iter().find(|piece| !piece.is_empty()).map_or(&[], |piece| &piece[..])
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let rest = &self.rest[self.rest_sent as usize..];
        let pieces = [self.prefix_left(), &self.first].into_iter().chain(rest.iter().map(|piece| &piece[..]));
        let mut filled = 0;
        for (slice, piece) in slices.iter_mut().zip(pieces.filter(|piece| !piece.is_empty())) {
            *slice = IoSlice::new(piece);
            filled += 1;
        }
        filled
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.remaining, "advanced past the end of a payload");
        self.remaining -= count;
        if let Some(waiting) = &self.waiting {
            waiting.take(count);
        }
        let prefix = count.min(self.prefix_left().len());
        self.prefix_sent += prefix as u8;
        count -= prefix;
        let first = count.min(self.first.len());
        self.first.advance(first);
        count -= first;
        while count > 0 {
            let piece = &mut self.rest[self.rest_sent as usize];
            let taken = count.min(piece.len());
            piece.advance(taken);
            count -= taken;
            if piece.is_empty() {
                self.rest_sent += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ServerOptions;

    fn payload(pieces: &[&'static [u8]]) -> (Payload, Arc<Shared>) {
        let shared = Shared::new(&ServerOptions::default());
        let reply = Reply::from_pieces(pieces.iter().map(|piece| Bytes::from_static(piece)));
        let payload = Payload::message(reply, Account::Connection(shared.clone()), None);
        (payload.expect("a short message"), shared)
    }

    #[test]
    fn a_payload_is_the_prefix_and_the_pieces_in_order_at_every_step() {
        for step in 1..8 {
            let (mut payload, _shared) = payload(&[b"ab", b"", b"cde", b"f"]);
            let mut seen = Vec::new();
            while payload.has_remaining() {
                let mut slices = [IoSlice::new(&[]); 8];
                let filled = payload.chunks_vectored(&mut slices);
                let total: usize = slices[..filled].iter().map(|slice| slice.len()).sum();
                assert_eq!(total, payload.remaining());
                assert_eq!(&slices[0][..], payload.chunk());
                let take = step.min(payload.remaining());
                seen.extend_from_slice(&payload.copy_to_bytes(take));
            }
            assert_eq!(seen, b"\0\0\0\0\x06abcdef");
        }
    }

    #[test]
    fn waiting_bytes_are_charged_until_the_payload_is_dropped() {
        let (payload, shared) = payload(&[b"abc"]);
        assert_eq!(shared.outstanding(), 8);
        drop(payload);
        assert_eq!(shared.outstanding(), 0);
    }

    #[test]
    fn the_guard_lives_as_long_as_the_payload() {
        let shared = Shared::new(&ServerOptions::default());
        let guard = Arc::new(());
        let reply = Reply::from(Bytes::from_static(b"x")).with_guard(guard.clone());
        let payload = Payload::message(reply, Account::Connection(shared), None).expect("a short message");
        assert_eq!(Arc::strong_count(&guard), 2);
        drop(payload);
        assert_eq!(Arc::strong_count(&guard), 1);
    }
}
