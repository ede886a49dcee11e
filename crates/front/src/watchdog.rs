//! Ends an answer whose client has stopped reading, or whose time is over.
//!
//! The body of an answer is not asked for more while the client has no room for it, so it can't see by itself that time passes. The task
//! that writes it can: the answer is wrapped in a [`Watched`], which the body tells what to wait for by [`expect`], whenever it is asked, and which ends
//! the task if that does not come.
//!
//! Invariant: what is told within one poll of a task reaches that task's own watchdog and no other.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};

thread_local! {
    /// What was told within the poll that runs.
    static TOLD: Cell<Told> = const { Cell::new(Told::Nothing) };
    /// Why the answers end that are dropped now.
    static ENDING: Cell<Option<&'static str>> = const { Cell::new(None) };
}

#[derive(Clone, Copy, Default)]
enum Told {
    #[default]
    Nothing,
    Expect(Deadlines),
    Over,
}

/// When an answer ends even though it is not complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deadlines {
    /// If the body is not asked for more for so long: the client has no room for what it was given.
    pub unread: Option<Duration>,
    /// Whatever happens.
    pub end: Option<Instant>,
}

impl Deadlines {
    /// The next one, and what is written down of an answer that reaches it.
    fn next(&self) -> Option<(Instant, &'static str)> {
        let unread = self.unread.map(|unread| (Instant::now() + unread, "unread"));
        let end = self.end.map(|end| (end, "deadline"));
        unread.into_iter().chain(end).min_by_key(|(at, _)| *at)
    }
}

/// The task that is polled ends at these deadlines, and no longer at those told before.
pub fn expect(deadlines: Deadlines) {
    TOLD.set(Told::Expect(deadlines));
}

/// The answer is over; its task may wait for the next request as long as it likes.
pub fn over() {
    TOLD.set(Told::Over);
}

/// Why the answer that is dropped now is not complete, if a watchdog ends it.
#[must_use]
pub fn ending() -> Option<&'static str> {
    ENDING.get()
}

/// While it lives, [`ending`] tells why.
struct Ending;

impl Ending {
    fn because(why: &'static str) -> Self {
        ENDING.set(Some(why));
        Self
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        ENDING.set(None);
    }
}

pin_project! {
    /// A task that writes answers. Its output is `None` if it was ended.
    pub struct Watched<F> {
        #[pin]
        task: Option<F>,
        timer: Option<Pin<Box<Sleep>>>,
        why: Option<&'static str>,
    }
}

impl<F> Watched<F> {
    /// Nothing is expected of it yet.
    #[must_use]
    pub fn new(task: F) -> Self {
        Self { task: Some(task), timer: None, why: None }
    }

    /// The task, unless it has ended.
    pub fn task(self: Pin<&mut Self>) -> Option<Pin<&mut F>> {
        self.project().task.as_pin_mut()
    }
}

impl<F: Future> Future for Watched<F> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let Some(task) = this.task.as_mut().as_pin_mut() else { return Poll::Ready(None) };
        TOLD.set(Told::Nothing);
        if let Poll::Ready(output) = task.poll(context) {
            return Poll::Ready(Some(output));
        }
        match TOLD.take() {
            Told::Nothing => {}
            Told::Over => *this.why = None,
            Told::Expect(deadlines) => match (deadlines.next(), &mut *this.timer) {
                (None, _) => *this.why = None,
                (Some((at, why)), Some(timer)) => {
                    timer.as_mut().reset(at);
                    *this.why = Some(why);
                }
                (Some((at, why)), timer @ None) => {
                    *timer = Some(Box::pin(tokio::time::sleep_until(at)));
                    *this.why = Some(why);
                }
            },
        }
        if let (Some(why), Some(timer)) = (*this.why, this.timer)
            && timer.as_mut().poll(context).is_ready()
        {
            let _ending = Ending::because(why);
            this.task.set(None);
            return Poll::Ready(None);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    /// An answer of which a piece is taken at each of these times.
    async fn answer(deadlines: Deadlines, pieces: &[u64], ended: Arc<Mutex<Option<&'static str>>>) {
        struct AtEnd(Arc<Mutex<Option<&'static str>>>);
        impl Drop for AtEnd {
            fn drop(&mut self) {
                *self.0.lock() = ending();
            }
        }
        let _at_end = AtEnd(ended);
        let begun = Instant::now();
        expect(deadlines);
        for at in pieces {
            tokio::time::sleep_until(begun + Duration::from_secs(*at)).await;
            expect(deadlines);
        }
        over();
        tokio::time::sleep(Duration::from_secs(1000)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_ends_when_nobody_reads_it_or_its_time_is_over_and_not_before() {
        let seconds = Duration::from_secs;
        let begun = Instant::now();
        let unread = Deadlines { unread: Some(seconds(5)), end: None };
        let end = Deadlines { unread: None, end: Some(begun) };
        let both = Deadlines { unread: Some(seconds(5)), end: Some(begun) };
        for (deadlines, pieces, expected) in [
            (unread, &[4, 8, 12][..], None),
            (unread, &[4, 10], Some("unread")),
            (end, &[9], None),
            (end, &[1, 2, 3, 11], Some("deadline")),
            (both, &[4, 8, 11], Some("deadline")),
            (both, &[1, 7], Some("unread")),
            (Deadlines::default(), &[100], None),
        ] {
            let deadlines = Deadlines { end: deadlines.end.map(|_| Instant::now() + seconds(10)), ..deadlines };
            let ended = Arc::new(Mutex::new(None));
            let output = Watched::new(answer(deadlines, pieces, ended.clone())).await;
            assert_eq!((output.is_none(), *ended.lock()), (expected.is_some(), expected), "{deadlines:?} {pieces:?}");
            assert_eq!(ending(), None);
        }
    }
}
