//! Waits for a future on a thread that may block.
//!
//! The engine's trait blocks, and its callers are threads of any kind, a runtime's among them. A future is polled right on the caller's
//! thread, which moves the bytes of the connection itself and sleeps in between ([`crate::socket`]).

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use crate::socket::Waiter;

/// Notes that a future, or the connection, can go on.
pub(crate) struct Bell {
    has_rung: Arc<HasRung>,
    waker: Waker,
}

#[derive(Default)]
struct HasRung(AtomicBool);

impl Wake for HasRung {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Bell {
    /// What is polled in this context rings it.
    pub(crate) fn context(&self) -> Context<'_> {
        Context::from_waker(&self.waker)
    }
}

impl Default for Bell {
    fn default() -> Self {
        let has_rung = Arc::new(HasRung::default());
        Self { waker: Waker::from(has_rung.clone()), has_rung }
    }
}

/// Waits for the future; `None` if it is not ready by the deadline. It is polled at least once, and what it sends then is sent. `moves`
/// moves the bytes that can be moved without waiting.
pub(crate) fn until<T>(
    deadline: Instant,
    waiter: &Waiter,
    bell: &Bell,
    future: impl Future<Output = T>,
    mut moves: impl FnMut(&mut Context<'_>),
) -> Option<T> {
    let mut future = pin!(future);
    let mut context = bell.context();
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return Some(value);
        }
        moves(&mut context);
        if bell.has_rung.0.swap(false, Ordering::Relaxed) {
            continue;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        waiter.wait(left);
    }
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
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn steps_begin_in_order_and_all_end() {
        let begun = RefCell::new(Vec::new());
        let steps = (0..50)
            .map(|number| {
                let begun = &begun;
                let mut polls = 0;
                Box::pin(std::future::poll_fn(move |_| {
                    polls += 1;
                    if polls == 1 {
                        begun.borrow_mut().push(number);
                    }
                    if polls > number % 3 { Poll::Ready(number) } else { Poll::Pending }
                })) as Step<'_, usize>
            })
            .collect();
        let mut all = pin!(in_order(steps));
        let mut context = Context::from_waker(Waker::noop());
        let results = loop {
            if let Poll::Ready(results) = all.as_mut().poll(&mut context) {
                break results;
            }
        };
        assert_eq!(results, (0..50).collect::<Vec<_>>());
        assert_eq!(*begun.borrow(), results);
    }
}
