//! The one signal that ends a product.
//!
//! Invariant: once triggered it stays triggered, and everyone who waits hears of it, also those who come later.

use std::sync::Arc;

use tokio::sync::watch;

/// A handle to a product's end. Clones share it.
#[derive(Clone, Debug)]
pub struct Shutdown {
    triggered: Arc<watch::Sender<bool>>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl Shutdown {
    /// A handle that nobody has triggered.
    #[must_use]
    pub fn new() -> Self {
        Self { triggered: Arc::new(watch::Sender::new(false)) }
    }

    /// A handle that SIGTERM and SIGINT trigger. A second signal ends the process at once, with code 130.
    ///
    /// # Errors
    /// If the signals can't be listened to.
    pub fn on_signals() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let shutdown = Self::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let triggered = shutdown.clone();
        tokio::spawn(async move {
            for first in [true, false] {
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                };
                if first {
                    tracing::info!(signal = name, "stopping");
                    triggered.trigger();
                }
            }
            tracing::warn!("a second signal: ending at once");
            std::process::exit(130);
        });
        Ok(shutdown)
    }

    /// Says that it is time to end.
    pub fn trigger(&self) {
        self.triggered.send_replace(true);
    }

    /// Whether it is time to end.
    #[must_use]
    pub fn is_triggered(&self) -> bool {
        *self.triggered.borrow()
    }

    /// Waits until it is time to end.
    pub async fn wait(&self) {
        // The sender lives as long as `self`.
        let _ = self.triggered.subscribe().wait_for(|triggered| *triggered).await;
    }
}

#[cfg(test)]
mod tests {
    use super::Shutdown;

    #[tokio::test]
    async fn early_and_late_waiters_hear_of_it() {
        let shutdown = Shutdown::new();
        let early = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { shutdown.wait().await }
        });
        tokio::task::yield_now().await;
        assert!(!shutdown.is_triggered());
        shutdown.trigger();
        early.await.unwrap();
        shutdown.wait().await;
    }
}
