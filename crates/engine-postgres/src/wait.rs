//! Waits for a future on a thread that may block.
//!
//! The engine's trait blocks, and its callers are threads of any kind, a runtime's among them. A future is polled right on the caller's
//! thread, which sleeps in between: no other thread has to be woken to pass an answer on, and nothing panics within a runtime. Only what
//! needs a runtime's sockets and timers runs on the engine's own.

use std::pin::{Pin, pin};
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

/// A future whose steps are begun in the order of the list.
pub(crate) type Step<'s, T> = Pin<Box<dyn Future<Output = T> + 's>>;

/// Runs futures at once, beginning each in the order of the list: what they send, they send in that order.
pub(crate) async fn in_order<T>(mut steps: Vec<Step<'_, T>>) -> Vec<T> {
    let mut results: Vec<Option<T>> = steps.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        let mut is_ready = true;
        for (step, result) in steps.iter_mut().zip(&mut results) {
            if result.is_none() {
                match step.as_mut().poll(context) {
                    Poll::Ready(value) => *result = Some(value),
                    Poll::Pending => is_ready = false,
                }
            }
        }
        if is_ready { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    results.into_iter().flatten().collect()
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

    #[test]
    fn steps_begin_in_order_and_all_end() {
        let begun = std::cell::RefCell::new(Vec::new());
        let steps = (0..50)
            .map(|number| {
                let begun = &begun;
                let mut polls = 0;
                Box::pin(std::future::poll_fn(move |context| {
                    polls += 1;
                    if polls == 1 {
                        begun.borrow_mut().push(number);
                    }
                    if polls > number % 3 {
                        return Poll::Ready(number);
                    }
                    context.waker().wake_by_ref();
                    Poll::Pending
                })) as Step<'_, usize>
            })
            .collect();
        let results = until(Instant::now() + Duration::from_secs(60), in_order(steps)).unwrap();
        assert_eq!(results, (0..50).collect::<Vec<_>>());
        assert_eq!(*begun.borrow(), results);
    }
}
