//! When to stop, known to everyone who asks.
//!
//! Invariant: a phase is never left backwards, and whoever waits for a phase that has begun does not wait.

use std::future::Future;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::Error;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Running,
    /// Finish what was begun, take nothing new.
    Draining,
    /// Stop now.
    Now,
}

/// A handle on the end of the process, or of a part of it. Clones are the same.
#[derive(Clone, Debug)]
pub struct Shutdown {
    phase: Arc<watch::Sender<Phase>>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl Shutdown {
    /// Nobody has asked to stop yet.
    pub fn new() -> Self {
        Self { phase: Arc::new(watch::Sender::new(Phase::Running)) }
    }

    /// Asks for a graceful end.
    pub fn request(&self) {
        self.advance(Phase::Draining);
    }

    /// Asks for an end without waiting for anything.
    pub fn request_now(&self) {
        self.advance(Phase::Now);
    }

    /// Whether an end was asked for, graceful or not.
    pub fn is_requested(&self) -> bool {
        *self.phase.borrow() >= Phase::Draining
    }

    /// Waits until an end is asked for, graceful or not.
    pub fn requested(&self) -> impl Future<Output = ()> + Send + use<> {
        self.reached(Phase::Draining)
    }

    /// Waits until an end without waiting is asked for.
    pub fn requested_now(&self) -> impl Future<Output = ()> + Send + use<> {
        self.reached(Phase::Now)
    }

    /// Makes SIGTERM and SIGINT requests: the first for a graceful end, the second for one at once.
    ///
    /// Needs a Tokio runtime, which then never handles those signals by their defaults again.
    pub fn on_signals(&self) -> Result<(), Error> {
        let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signals)?;
        let shutdown = self.clone();
        tokio::spawn(async move {
            loop {
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                };
                if shutdown.is_requested() {
                    tracing::warn!(signal = name, "stopping at once");
                    return shutdown.request_now();
                }
                tracing::info!(signal = name, "stopping gracefully; a second signal stops at once");
                shutdown.request();
            }
        });
        Ok(())
    }

    fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let later = *phase < to;
            if later {
                *phase = to;
            }
            later
        });
    }

    fn reached(&self, wanted: Phase) -> impl Future<Output = ()> + Send + use<> {
        // The sender is kept, so that the wait can't end because all other handles are gone.
        let sender = self.phase.clone();
        async move {
            let mut receiver = sender.subscribe();
            let waited = receiver.wait_for(|phase| *phase >= wanted).await;
            debug_assert!(waited.is_ok(), "the sender is held here");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    async fn pending(future: impl Future) -> bool {
        tokio::time::timeout(Duration::from_millis(20), future).await.is_err()
    }

    #[tokio::test]
    async fn phases_only_go_forward() {
        let shutdown = Shutdown::new();
        assert!(!shutdown.is_requested());
        assert!(pending(shutdown.requested()).await);
        shutdown.request();
        shutdown.requested().await;
        assert!(pending(shutdown.requested_now()).await);
        shutdown.request_now();
        shutdown.request();
        shutdown.requested_now().await;
        shutdown.requested().await;
    }

    #[tokio::test]
    async fn a_waiter_is_woken_by_a_clone() {
        let shutdown = Shutdown::new();
        let waiter = tokio::spawn(shutdown.requested());
        tokio::task::yield_now().await;
        let clone = shutdown.clone();
        drop(shutdown);
        clone.request();
        waiter.await.expect("no panic");
    }
}
