//! Cuts the bytes of a request stream into gRPC messages.
//!
//! Invariant: a message that arrived in one piece is not copied, and a length alone reserves no more memory than
//! `MESSAGE_RESERVE_BYTES_MAX`.

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;

use crate::limits::{MESSAGE_RESERVE_BYTES_MAX, QUOTED_BYTES_MAX};
use crate::{Code, Status};

/// One byte of flags and four of length stand before each message.
pub(crate) const PREFIX_LEN: usize = 5;

pub(crate) struct Deframer {
    /// Received and not yet cut.
    piece: Bytes,
    /// The front of a message (prefix included) that did not arrive in one piece.
    partial: BytesMut,
    message_bytes_max: usize,
}

impl Deframer {
    pub(crate) fn new(message_bytes_max: usize) -> Self {
        Self { piece: Bytes::new(), partial: BytesMut::new(), message_bytes_max }
    }

    /// Adds received bytes. Only when `next` has said that it needs more.
    pub(crate) fn push(&mut self, piece: Bytes) {
        debug_assert!(self.piece.is_empty(), "the last piece must be used up first");
        self.piece = piece;
    }

    /// Whether bytes of an unfinished message are left.
    pub(crate) fn is_empty(&self) -> bool {
        self.piece.is_empty() && self.partial.is_empty()
    }

    /// Memory of the unfinished message, in bytes. Only when `next` has said that it needs more.
    pub(crate) fn held_bytes(&self) -> usize {
        self.partial.capacity()
    }

    /// The next whole message, `None` if more bytes are needed.
    pub(crate) fn next(&mut self, headers: &HeaderMap) -> Result<Option<Bytes>, Status> {
        if self.partial.is_empty() && self.piece.len() >= PREFIX_LEN {
            let len = self.message_len(&self.piece[..PREFIX_LEN], headers)?;
            if self.piece.len() - PREFIX_LEN >= len {
                self.piece.advance(PREFIX_LEN);
                return Ok(Some(self.piece.split_to(len)));
            }
            self.partial.reserve((PREFIX_LEN + len).min(MESSAGE_RESERVE_BYTES_MAX));
        }
        if self.partial.len() < PREFIX_LEN {
            self.fill(PREFIX_LEN);
            if self.partial.len() < PREFIX_LEN {
                return Ok(None);
            }
        }
        let len = self.message_len(&self.partial[..PREFIX_LEN], headers)?;
        self.fill(PREFIX_LEN + len);
        if self.partial.len() < PREFIX_LEN + len {
            return Ok(None);
        }
        let mut message = std::mem::take(&mut self.partial).freeze();
        message.advance(PREFIX_LEN);
        Ok(Some(message))
    }

    /// Moves bytes from the piece until the partial message has `target` bytes.
    fn fill(&mut self, target: usize) {
        let missing = target.saturating_sub(self.partial.len()).min(self.piece.len());
        self.partial.extend_from_slice(&self.piece.split_to(missing));
    }

    /// Checks a prefix; error texts are grpc-go's, which clients may match.
    fn message_len(&self, prefix: &[u8], headers: &HeaderMap) -> Result<usize, Status> {
        match prefix[0] {
            0 => {}
            1 => return Err(compressed(headers)),
            flag => {
                let text = format!("grpc: received unexpected payload format {flag}");
                return Err(Status::new(Code::Internal, text));
            }
        }
        let len = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        if len > self.message_bytes_max {
            let text = format!("grpc: received message larger than max ({len} vs. {})", self.message_bytes_max);
            return Err(Status::new(Code::ResourceExhausted, text));
        }
        Ok(len)
    }
}

fn compressed(headers: &HeaderMap) -> Status {
    let encoding = headers.get("grpc-encoding").map_or("", |value| value.to_str().unwrap_or("?"));
    if encoding.is_empty() || encoding == "identity" {
        return Status::internal("grpc: compressed flag set with identity or empty encoding");
    }
    let shown = &encoding[..encoding.len().min(QUOTED_BYTES_MAX)];
    let text = format!("grpc: Decompressor is not installed for grpc-encoding {shown:?}");
    Status::new(Code::Unimplemented, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(message: &[u8]) -> Vec<u8> {
        let mut framed = vec![0];
        framed.extend((message.len() as u32).to_be_bytes());
        framed.extend(message);
        framed
    }

    #[test]
    fn messages_come_out_whole_however_the_bytes_were_split() {
        let headers = HeaderMap::new();
        let messages: [&[u8]; 4] = [b"one", b"", b"a longer message", b"x"];
        let wire: Vec<u8> = messages.iter().flat_map(|message| frame(message)).collect();
        for size in 1..=wire.len() {
            let mut deframer = Deframer::new(100);
            let mut seen = Vec::new();
            for piece in wire.chunks(size) {
                deframer.push(Bytes::copy_from_slice(piece));
                while let Some(message) = deframer.next(&headers).expect("valid frames") {
                    seen.push(message.to_vec());
                }
            }
            assert_eq!(seen, messages, "split every {size} bytes");
            assert!(deframer.is_empty());
        }
    }

    #[test]
    fn a_message_in_one_piece_is_not_copied() {
        let mut deframer = Deframer::new(100);
        let piece = Bytes::from(frame(b"shared"));
        let address = piece[PREFIX_LEN..].as_ptr();
        deframer.push(piece);
        let message = deframer.next(&HeaderMap::new()).expect("valid").expect("whole");
        assert_eq!(message.as_ptr(), address);
    }

    #[test]
    fn a_message_over_the_limit_is_refused_with_both_numbers() {
        let mut deframer = Deframer::new(10);
        deframer.push(Bytes::from(frame(&[7; 11])));
        let status = deframer.next(&HeaderMap::new()).expect_err("too long");
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.message(), "grpc: received message larger than max (11 vs. 10)");
    }

    #[test]
    fn a_compressed_message_is_refused_by_its_encoding() {
        let refuse = |headers: &HeaderMap| {
            let mut deframer = Deframer::new(10);
            deframer.push(Bytes::from_static(&[1, 0, 0, 0, 1, 9]));
            deframer.next(headers).expect_err("compressed")
        };
        let mut headers = HeaderMap::new();
        assert_eq!(refuse(&headers).code(), Code::Internal);
        headers.insert("grpc-encoding", http::HeaderValue::from_static("gzip"));
        let status = refuse(&headers);
        assert_eq!(status.code(), Code::Unimplemented);
        assert!(status.message().contains("\"gzip\""), "{status}");
    }
}
