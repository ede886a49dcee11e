//! The handle that answers a unary call.

use std::sync::Arc;

use crate::inbox::{Event, Shared};
use crate::slab::SlotId;
use crate::{Reply, Status};

/// Answers one unary call, inline or later, from any thread. Dropped without an answer, the client gets Internal.
///
/// An answer after the client's deadline or to a client that has gone is dropped.
#[must_use = "the client waits for an answer"]
pub struct UnaryReply {
    shared: Option<Arc<Shared>>,
    slot: SlotId,
}

impl UnaryReply {
    pub(crate) fn new(shared: Arc<Shared>, slot: SlotId) -> Self {
        Self { shared: Some(shared), slot }
    }

    /// Whether the connection is gone, so that nobody waits for an answer any more. A client that only gave up the call is not noticed.
    pub fn is_closed(&self) -> bool {
        self.shared.as_ref().is_none_or(|shared| shared.is_closed())
    }

    /// Ends the call with a message or an error. Never blocks.
    pub fn send(mut self, result: Result<Reply, Status>) {
        if let Some(shared) = self.shared.take() {
            shared.push(Event::Reply(self.slot, result));
        }
    }
}

impl Drop for UnaryReply {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.take() {
            let status = Status::internal("the call was dropped without an answer");
            shared.push(Event::Reply(self.slot, Err(status)));
        }
    }
}
