//! The end of watches when the gateway stops.
//!
//! A watch has no end of its own: it would last as long as the gateway waits, and then break off together with all others. So each ends
//! well at a moment of its own in the first half of that time, and its client goes on at another gateway, which these clients reach one
//! after another.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use kubewharf_upstream::wakers::Wakers;
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep};

use crate::ids::random_u128;
use crate::limits::{DRAIN_FIRST_WATCH_PERCENT, DRAIN_LAST_WATCH_PERCENT};

/// Whether the gateway stops, and who must know.
pub(crate) struct Drain {
    timeout: Duration,
    begun: OnceLock<Instant>,
    watches: Mutex<Wakers>,
}

impl Drain {
    /// For a gateway that takes so long to stop.
    pub(crate) fn new(timeout: Duration) -> Arc<Self> {
        Arc::new(Self { timeout, begun: OnceLock::new(), watches: Mutex::default() })
    }

    /// The gateway stops.
    pub(crate) fn begin(&self) {
        self.begun.get_or_init(Instant::now);
        let watches = self.watches.lock().take_all();
        watches.into_iter().for_each(Waker::wake);
    }

    /// When a watch ends, by chance.
    fn turn(&self, begun: Instant) -> Instant {
        let part = random_u128() as u32;
        let (first, last) =
            (self.timeout * DRAIN_FIRST_WATCH_PERCENT / 100, self.timeout * DRAIN_LAST_WATCH_PERCENT / 100);
        begun + first + (last - first).mul_f64(f64::from(part) / f64::from(u32::MAX))
    }
}

/// The turn of one watch.
pub(crate) struct Turn {
    drain: Arc<Drain>,
    /// Where it waits for the drain to begin, and as which task.
    waits: Option<(usize, Waker)>,
    /// Its moment, once the drain has begun.
    due: Option<Pin<Box<Sleep>>>,
}

impl Turn {
    pub(crate) fn new(drain: Arc<Drain>) -> Self {
        Self { drain, waits: None, due: None }
    }

    /// Ready when the watch is to end, from then on. Costs next to nothing until the drain has begun.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Some(due) = &mut self.due {
            return due.as_mut().poll(context);
        }
        let waker = context.waker();
        if !self.waits.as_ref().is_some_and(|(_, known)| known.will_wake(waker)) {
            let place = self.waits.take().map(|(place, _)| place);
            let place = self.drain.watches.lock().enter(place, waker);
            self.waits = Some((place, waker.clone()));
        }
        // After the waker is in place: a drain that begins now is seen here, a later one wakes us.
        let Some(begun) = self.drain.begun.get() else { return Poll::Pending };
        let due = self.due.insert(Box::pin(tokio::time::sleep_until(self.drain.turn(*begun))));
        due.as_mut().poll(context)
    }

    /// Its turn has come, and comes again.
    pub(crate) fn put_off(&mut self, until: Instant, context: &mut Context<'_>) -> Poll<()> {
        let due = self.due.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        due.as_mut().reset(until);
        due.as_mut().poll(context)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some((place, _)) = self.waits.take() {
            self.drain.watches.lock().leave(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn every_watch_has_a_turn_of_its_own_in_the_first_half() {
        let drain = Drain::new(Duration::from_secs(30));
        let watches: Vec<_> = (0..100)
            .map(|_| {
                let mut turn = Turn::new(drain.clone());
                tokio::spawn(async move {
                    std::future::poll_fn(|context| turn.poll(context)).await;
                    Instant::now()
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert!(watches.iter().all(|watch| !watch.is_finished()));
        drain.begin();
        let begun = Instant::now();
        // One that begins too late to have waited.
        let mut late = Turn::new(drain.clone());
        let mut ends = Vec::new();
        for watch in watches {
            ends.push(watch.await.expect("no panic") - begun);
        }
        std::future::poll_fn(|context| late.poll(context)).await;
        assert!(begun.elapsed() <= Duration::from_millis(15_010), "{:?}", begun.elapsed());
        ends.sort_unstable();
        assert!(ends[0] >= Duration::from_millis(1500) && ends[99] <= Duration::from_millis(15_010), "{ends:?}");
        let most = ends.windows(10).map(|some| some[9] - some[0]).min().expect("some");
        assert!(most > Duration::from_millis(100), "ten at once: {ends:?}");
    }

    #[tokio::test]
    async fn who_has_left_leaves_nothing() {
        let drain = Drain::new(Duration::from_secs(30));
        for _ in 0..3 {
            let mut turns: Vec<_> = (0..10).map(|_| Turn::new(drain.clone())).collect();
            for turn in &mut turns {
                let polled = std::future::poll_fn(|context| Poll::Ready(turn.poll(context))).await;
                assert!(polled.is_pending());
            }
            drop(turns);
            assert!(drain.watches.lock().take_all().is_empty());
        }
    }
}
