//! Answers that are wanted as a whole.
//!
//! Invariant: what is held is at most what the caller allows.

use bytes::{Bytes, BytesMut};
use h2::RecvStream;

use crate::error::BodyError;

/// Reads a body to its end, and gives the room of each piece back to its stream. How long that may take, the caller says.
///
/// Fails if the body is longer than `bytes_max` or breaks off. What is left of it is cut off when the stream is dropped.
pub async fn read_whole(stream: &mut RecvStream, bytes_max: usize) -> Result<Bytes, BodyError> {
    let mut whole = BytesMut::new();
    while let Some(piece) = stream.data().await {
        let piece = piece?;
        if piece.len() > bytes_max - whole.len() {
            return Err(BodyError::TooLong { bytes_max });
        }
        // Fails only when the stream is over, which the next look tells.
        let _ = stream.flow_control().release_capacity(piece.len());
        whole.extend_from_slice(&piece);
    }
    Ok(whole.freeze())
}
