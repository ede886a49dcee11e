//! What waits for one watcher, bounded by bytes.
//!
//! Invariant: frames come out in the order in which they went in; the end comes after them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use crate::limits::{WATCH_PIECE_BYTES, WATCHER_BYTES_MAX};

/// What a frame takes besides its bytes.
const FRAME_BYTES: usize = 64;

#[derive(Default)]
struct State {
    frames: VecDeque<Bytes>,
    bytes: usize,
    /// Who waits for the next frame.
    waker: Option<Waker>,
    has_ended: bool,
    is_abandoned: bool,
}

/// Where frames go in. When it is gone, they end.
pub(super) struct Sender(Arc<Mutex<State>>);

/// Where they come out.
pub(crate) struct Receiver(Arc<Mutex<State>>);

/// The watcher has more waiting than it may, or is gone.
#[derive(Debug)]
pub(super) struct Behind;

pub(super) fn queue() -> (Sender, Receiver) {
    let state = Arc::new(Mutex::new(State::default()));
    (Sender(state.clone()), Receiver(state))
}

impl Sender {
    /// Puts a frame in; whoever is to be woken then.
    pub(super) fn send(&self, frame: Bytes) -> Result<Option<Waker>, Behind> {
        let mut state = self.0.lock();
        let bytes = state.bytes + frame.len() + FRAME_BYTES;
        // One that has nothing waiting gets whatever comes next.
        if state.is_abandoned || (bytes > WATCHER_BYTES_MAX && !state.frames.is_empty()) {
            return Err(Behind);
        }
        state.bytes = bytes;
        state.frames.push_back(frame);
        Ok(state.waker.take())
    }

    /// Whether nobody is there to receive.
    pub(super) fn is_abandoned(&self) -> bool {
        self.0.lock().is_abandoned
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.has_ended = true;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Receiver {
    /// What waits, in one piece up to some length; none at the end.
    pub(super) fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut state = self.0.lock();
        if state.frames.is_empty() {
            if state.has_ended {
                return Poll::Ready(None);
            }
            match &mut state.waker {
                Some(waker) => waker.clone_from(context.waker()),
                none => *none = Some(context.waker().clone()),
            }
            return Poll::Pending;
        }
        let (first, rest) = take(&mut state.frames);
        let count = 1 + rest.len();
        let length = first.len() + rest.iter().map(Bytes::len).sum::<usize>();
        state.bytes -= length + count * FRAME_BYTES;
        drop(state);
        Poll::Ready(Some(join(first, &rest, length)))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_abandoned = true;
        state.waker = None;
        state.frames = VecDeque::new();
    }
}

/// The frames at the front in one piece up to some length; none if there are none.
pub(super) fn piece(frames: &mut VecDeque<Bytes>) -> Option<Bytes> {
    if frames.is_empty() {
        return None;
    }
    let (first, rest) = take(frames);
    let length = first.len() + rest.iter().map(Bytes::len).sum::<usize>();
    Some(join(first, &rest, length))
}

/// The first frame, of which there is one, and those behind it that fit in a piece with it.
fn take(frames: &mut VecDeque<Bytes>) -> (Bytes, Vec<Bytes>) {
    let first = frames.pop_front().expect("there is one");
    let (mut rest, mut bytes) = (Vec::new(), first.len());
    while let Some(next) = frames.front()
        && bytes + next.len() <= WATCH_PIECE_BYTES
    {
        bytes += next.len();
        rest.extend(frames.pop_front());
    }
    // An idle watcher has nothing to keep.
    if frames.is_empty() && frames.capacity() > 16 {
        *frames = VecDeque::new();
    }
    (first, rest)
}

fn join(first: Bytes, rest: &[Bytes], length: usize) -> Bytes {
    if rest.is_empty() {
        return first;
    }
    let mut piece = BytesMut::with_capacity(length);
    piece.extend_from_slice(&first);
    for frame in rest {
        piece.extend_from_slice(frame);
    }
    piece.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll(receiver: &mut Receiver) -> Poll<Option<Bytes>> {
        receiver.poll_piece(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn what_waits_comes_in_one_piece_and_the_end_after_it() {
        let (sender, mut receiver) = queue();
        assert!(poll(&mut receiver).is_pending());
        // The waiting one is woken once, and not by what follows.
        assert!(sender.send(Bytes::from_static(b"one")).expect("room").is_some());
        assert!(sender.send(Bytes::from_static(b"two")).expect("room").is_none());
        assert_eq!(poll(&mut receiver), Poll::Ready(Some(Bytes::from_static(b"onetwo"))));
        assert!(poll(&mut receiver).is_pending());
        sender.send(Bytes::from_static(b"three")).expect("room");
        drop(sender);
        assert_eq!(poll(&mut receiver), Poll::Ready(Some(Bytes::from_static(b"three"))));
        assert_eq!(poll(&mut receiver), Poll::Ready(None));
    }

    #[test]
    fn a_piece_is_bounded() {
        let (sender, mut receiver) = queue();
        let frame = Bytes::from(vec![7; WATCH_PIECE_BYTES / 2]);
        for _ in 0..3 {
            sender.send(frame.clone()).expect("room");
        }
        for length in [2, 1] {
            let Poll::Ready(Some(piece)) = poll(&mut receiver) else { panic!("something waits") };
            assert_eq!(piece.len(), length * frame.len());
        }
        assert_eq!(receiver.0.lock().bytes, 0);
    }

    #[test]
    fn a_watcher_has_so_many_bytes_waiting() {
        let (sender, mut receiver) = queue();
        let frame = Bytes::from(vec![7; 1 << 20]);
        // One that is longer than all may be comes alone.
        sender.send(Bytes::from(vec![7; WATCHER_BYTES_MAX + 1])).expect("it is the first");
        assert!(sender.send(frame.clone()).is_err());
        assert!(poll(&mut receiver).is_ready());
        let sent = (0..100).take_while(|_| sender.send(frame.clone()).is_ok()).count();
        assert_eq!(sent, WATCHER_BYTES_MAX / (frame.len() + FRAME_BYTES));
        // What was received makes room.
        assert!(poll(&mut receiver).is_ready());
        sender.send(frame).expect("room");
        drop(receiver);
        assert!(sender.is_abandoned());
        assert!(sender.send(Bytes::new()).is_err());
    }
}
