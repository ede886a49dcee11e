//! The server's half of a call: headers, messages, status.

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use h2::client::ResponseFuture;
use http::HeaderMap;

use super::PREFIX_BYTES;

/// What the server sends, in the pieces in which it comes.
pub(super) struct Incoming {
    state: State,
}

enum State {
    /// A stream's headers may come only with its first message, so they are not waited for before.
    Headers(ResponseFuture),
    Body(RecvStream),
    Ended,
}

impl Incoming {
    pub(super) fn new(response: ResponseFuture) -> Self {
        Self { state: State::Headers(response) }
    }

    /// The next piece, or `None` when the call has ended with the status 0.
    pub(super) async fn piece(&mut self) -> Result<Option<Bytes>> {
        if let State::Headers(response) = &mut self.state {
            let (head, body) = response.await?.into_parts();
            ensure!(head.status == 200, "HTTP status {}", head.status);
            if head.headers.contains_key("grpc-status") {
                // No message comes; the headers are the trailers as well.
                check_status(&head.headers)?;
            }
            self.state = State::Body(body);
        }
        let State::Body(body) = &mut self.state else { return Ok(None) };
        if let Some(piece) = body.data().await {
            let piece = piece?;
            body.flow_control().release_capacity(piece.len())?;
            return Ok(Some(piece));
        }
        let trailers = body.trailers().await?.context("the call ended without a status")?;
        self.state = State::Ended;
        check_status(&trailers)?;
        Ok(None)
    }
}

fn check_status(headers: &HeaderMap) -> Result<()> {
    let status = headers.get("grpc-status").context("the call ended without a status")?;
    if status != "0" {
        let message = headers.get("grpc-message").map(|text| String::from_utf8_lossy(text.as_bytes()));
        bail!("status {}: {}", String::from_utf8_lossy(status.as_bytes()), message.unwrap_or_default());
    }
    Ok(())
}

/// Takes the prefix off the one message of a unary reply, and checks the length that it tells.
#[derive(Default)]
pub(super) struct OneMessage {
    prefix: BytesMut,
    left: usize,
}

impl OneMessage {
    /// What of the piece is the message's.
    pub(super) fn take(&mut self, mut piece: Bytes) -> Result<Option<Bytes>> {
        if self.prefix.len() < PREFIX_BYTES {
            let missing = (PREFIX_BYTES - self.prefix.len()).min(piece.len());
            self.prefix.extend_from_slice(&piece.split_to(missing));
            if self.prefix.len() < PREFIX_BYTES {
                return Ok(None);
            }
            self.left = message_bytes(&self.prefix)?;
        }
        self.left = self.left.checked_sub(piece.len()).context("more than one message answers a unary call")?;
        Ok((!piece.is_empty()).then_some(piece))
    }

    pub(super) fn finish(&self) -> Result<()> {
        ensure!(self.prefix.len() == PREFIX_BYTES && self.left == 0, "the reply is cut short");
        Ok(())
    }
}

/// The length that a prefix tells.
fn message_bytes(prefix: &[u8]) -> Result<usize> {
    let [compressed, length @ ..] = prefix else { bail!("a prefix is cut short") };
    ensure!(*compressed == 0, "a compressed message, which was not asked for");
    Ok(u32::from_be_bytes(length.try_into().context("a prefix has five bytes")?) as usize)
}

/// The messages of a stream.
pub struct Responses {
    incoming: Incoming,
    /// What came of a message whose end is still to come.
    part: BytesMut,
}

impl Responses {
    pub(super) fn new(incoming: Incoming) -> Self {
        Self { incoming, part: BytesMut::new() }
    }

    /// Waits for more, and hands on each message that is then whole: none, one or many. `false` when the stream has
    /// ended in good order.
    ///
    /// # Errors
    /// When the stream ends otherwise, or `each` fails.
    pub async fn more(&mut self, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<bool> {
        let Some(piece) = self.incoming.piece().await? else {
            ensure!(self.part.is_empty(), "the stream ended within a message");
            return Ok(false);
        };
        // Mostly nothing is left over, and the piece needs no copy.
        if self.part.is_empty() {
            let used = whole_messages(&piece, &mut each)?;
            self.part.extend_from_slice(&piece[used..]);
        } else {
            self.part.extend_from_slice(&piece);
            let used = whole_messages(&self.part, &mut each)?;
            let _ = self.part.split_to(used);
        }
        Ok(true)
    }
}

/// Hands on the whole messages at the front, and returns how many bytes they are.
fn whole_messages(bytes: &[u8], each: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<usize> {
    let mut used = 0;
    while let Some((prefix, rest)) = bytes[used..].split_at_checked(PREFIX_BYTES) {
        let Some(message) = rest.get(..message_bytes(prefix)?) else { break };
        each(message)?;
        used += PREFIX_BYTES + message.len();
    }
    Ok(used)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unary_reply_is_the_same_in_pieces_of_any_size() {
        let bytes = Bytes::from([&[0, 0, 0, 1, 4][..], &[7; 260]].concat());
        for size in [1, 3, 5, 6, 264, 265] {
            let mut message = OneMessage::default();
            let mut whole = Vec::new();
            for start in (0..bytes.len()).step_by(size) {
                assert!(message.finish().is_err());
                let piece = bytes.slice(start..bytes.len().min(start + size));
                whole.extend_from_slice(&message.take(piece).unwrap().unwrap_or_default());
            }
            message.finish().unwrap();
            assert_eq!(whole, [7; 260], "{size}");
            assert!(message.take(Bytes::from_static(&[1])).is_err());
        }
        assert!(OneMessage::default().take(Bytes::from_static(&[1, 0, 0, 0, 0])).is_err());
    }

    #[test]
    fn messages_are_handed_on_once_whole() {
        let bytes = [&[0, 0, 0, 0, 2, 8, 9][..], &[0, 0, 0, 0, 0], &[0, 0, 0, 0, 1]].concat();
        let mut messages = Vec::new();
        let used = whole_messages(&bytes, &mut |message| {
            messages.push(message.to_vec());
            Ok(())
        });
        assert_eq!((used.unwrap(), messages), (12, vec![vec![8, 9], vec![]]));
    }
}
