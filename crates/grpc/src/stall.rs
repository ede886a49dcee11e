//! Replies that hold something of the server's until their clients have read them, and clients that have stopped reading.
//!
//! Job: follow the replies with guards that wait in the HTTP/2 layer, and find those of which nothing has left for a while.
//!
//! Invariant: a guarded reply is either followed here or on its way to be dropped. Replies without guards are not looked at: a
//! watch waits for a slow client for as long as it likes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use h2::SendStream;

use crate::reply::Payload;
use crate::slab::SlotId;

/// Looks in each [`ServerOptions::reply_stall_timeout`](crate::ServerOptions::reply_stall_timeout).
const LOOKS: u32 = 4;

/// How far the guarded replies of one call are.
#[derive(Default)]
pub(crate) struct Sending {
    /// Bytes that have left.
    taken: AtomicU64,
    /// Replies that have not left as a whole.
    waiting: AtomicUsize,
}

/// A reply that waits, or is being sent.
pub(crate) struct Waiting(Arc<Sending>);

impl Waiting {
    pub(crate) fn new(sending: Arc<Sending>) -> Self {
        sending.waiting.fetch_add(1, Ordering::Relaxed);
        Self(sending)
    }

    pub(crate) fn take(&self, bytes: usize) {
        self.0.taken.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Who can reset a call.
pub(crate) enum Owner {
    /// The call has a slot.
    Call(SlotId),
    /// All of the answer is queued.
    Answered(SendStream<Payload>),
}

/// One call with guarded replies.
struct Followed {
    owner: Owner,
    sending: Arc<Sending>,
    taken: u64,
    /// When something was last seen to have left, or nothing to wait.
    moved_at: Instant,
    /// It was reset, and what the socket's side had of it stays there.
    is_reset: bool,
}

/// What has to be done about a call.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stall {
    /// This call has to be reset, by its slot.
    Reset(SlotId),
    /// What was reset can't leave: the socket takes nothing.
    Stuck,
}

/// The calls of a connection that have guarded replies.
#[derive(Default)]
pub(crate) struct Followers {
    calls: Vec<Followed>,
    /// With so many, those that are done are looked for.
    sweep_at: usize,
    look_at: Option<Instant>,
    /// Calls that were reset here, to be told.
    resets: u64,
}

impl Followers {
    /// Follows a call.
    pub(crate) fn add(&mut self, owner: Owner, sending: Arc<Sending>, timeout: Duration) {
        let now = Instant::now();
        if self.calls.len() >= self.sweep_at {
            self.calls.retain(|call| matches!(call.owner, Owner::Call(_)) || call.is_waiting());
            // As many come in before the next look as this one has taken.
            self.sweep_at = (self.calls.len() * 2).max(32);
        }
        self.look_at.get_or_insert(now + timeout / LOOKS);
        self.calls.push(Followed { owner, sending, taken: 0, moved_at: now, is_reset: false });
    }

    /// The call in this slot is over; its answer, all of which is queued, or nothing if that was dropped.
    pub(crate) fn ended(&mut self, slot: SlotId, answer: Option<SendStream<Payload>>) {
        let Some(at) = self.calls.iter().position(|call| matches!(call.owner, Owner::Call(of) if of == slot)) else {
            return;
        };
        match answer {
            Some(stream) if self.calls[at].is_waiting() => self.calls[at].owner = Owner::Answered(stream),
            _ => drop(self.calls.swap_remove(at)),
        }
    }

    /// When to look next; `None` if there is nothing to look at.
    pub(crate) fn look_at(&self) -> Option<Instant> {
        self.look_at
    }

    /// Resets the answers that have stalled, and tells what else has to be done.
    pub(crate) fn look(&mut self, now: Instant, timeout: Duration) -> Vec<Stall> {
        let mut stalls = Vec::new();
        let resets = &mut self.resets;
        self.calls.retain_mut(|call| {
            let taken = call.sending.taken.load(Ordering::Relaxed);
            if !call.is_waiting() {
                call.moved_at = now;
                return matches!(call.owner, Owner::Call(_));
            }
            if taken != call.taken {
                call.taken = taken;
                call.moved_at = now;
            }
            if now.duration_since(call.moved_at) < timeout {
                return true;
            }
            if call.is_reset {
                stalls.push(Stall::Stuck);
                return true;
            }
            match &mut call.owner {
                Owner::Call(slot) => stalls.push(Stall::Reset(*slot)),
                Owner::Answered(stream) => {
                    reset(stream);
                    *resets += 1;
                }
            }
            call.is_reset = true;
            call.moved_at = now;
            true
        });
        self.look_at = (!self.calls.is_empty()).then(|| now + timeout / LOOKS);
        stalls
    }

    /// Calls that [`Followers::look`] has reset since the last time.
    pub(crate) fn take_resets(&mut self) -> u64 {
        std::mem::take(&mut self.resets)
    }
}

impl Followed {
    fn is_waiting(&self) -> bool {
        self.sending.waiting.load(Ordering::Relaxed) > 0
    }
}

/// Gives up what is queued for the client. gRPC's clients report this reason as ResourceExhausted.
pub(crate) fn reset(stream: &mut SendStream<Payload>) {
    stream.send_reset(h2::Reason::ENHANCE_YOUR_CALM);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slab::Slab;

    const TIMEOUT: Duration = Duration::from_secs(60);

    #[test]
    fn only_a_call_of_which_nothing_leaves_while_something_waits_has_stalled() {
        let slot = Slab::<()>::new().next_id();
        let sending = Arc::new(Sending::default());
        let mut followers = Followers::default();
        followers.add(Owner::Call(slot), sending.clone(), TIMEOUT);
        let mut now = Instant::now();
        let mut look_after = |followers: &mut Followers, seconds: u64| {
            now += Duration::from_secs(seconds);
            followers.look(now, TIMEOUT)
        };
        // Nothing waits.
        assert_eq!(look_after(&mut followers, 100), []);
        let reply = Waiting::new(sending.clone());
        assert_eq!(look_after(&mut followers, 59), []);
        // A byte a minute is progress.
        for _ in 0..5 {
            reply.take(1);
            assert_eq!(look_after(&mut followers, 59), []);
        }
        assert_eq!(look_after(&mut followers, 1), []);
        assert_eq!(look_after(&mut followers, 59), [Stall::Reset(slot)]);
        // It has gone from the queue, but not from the socket's side.
        assert_eq!(look_after(&mut followers, 59), []);
        assert_eq!(look_after(&mut followers, 1), [Stall::Stuck]);
        drop(reply);
        assert_eq!(look_after(&mut followers, 100), []);
        followers.ended(slot, None);
        assert_eq!(look_after(&mut followers, 1), []);
        assert_eq!(followers.look_at(), None);
    }
}
