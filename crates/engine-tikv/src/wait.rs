//! Waits for a future on a thread that may block.
//!
//! The engine's trait blocks, and its callers are threads of any kind, a runtime's among them. A future is polled right on the caller's
//! thread, which sleeps in between: no other thread has to be woken to pass an answer on, and nothing panics within a runtime. Only what
//! needs a runtime's sockets and timers runs on the engine's own.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Instant;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

thread_local! {
    static WAKER: Waker = Waker::from(Arc::new(Unpark(thread::current())));
}

/// Waits for the future; `None` if it is not ready by the deadline. It is polled at least once.
pub(crate) fn until<T>(deadline: Instant, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    WAKER.with(|waker| {
        let mut context = Context::from_waker(waker);
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
                return Some(value);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            // Returns at once if there was a wake since the last time, and now and then for no reason.
            thread::park_timeout(left);
        }
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_wait_ends_with_the_future_or_at_the_deadline() {
        let soon = Instant::now() + Duration::from_millis(50);
        assert_eq!(until(soon, std::future::pending::<()>()), None);
        assert!(Instant::now() >= soon);
        assert_eq!(until(soon, async { 7 }), Some(7), "what is ready is taken even when it is late");
        let mut is_first = true;
        let woken_by_another_thread = std::future::poll_fn(move |context| {
            if !std::mem::take(&mut is_first) {
                return Poll::Ready(8);
            }
            let waker = context.waker().clone();
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(20));
                waker.wake();
            });
            Poll::Pending
        });
        assert_eq!(until(Instant::now() + Duration::from_secs(60), woken_by_another_thread), Some(8));
    }
}
