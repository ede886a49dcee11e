//! Waits for futures on a thread that may block, one or several at once. Only what needs a runtime's sockets and timers runs on the
//! engine's own.

use std::pin::Pin;
use std::task::Poll;

pub(crate) use kubewharf_engine::wait::until;

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
    use std::time::{Duration, Instant};

    use super::*;

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
