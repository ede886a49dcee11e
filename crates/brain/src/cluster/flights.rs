//! Many readers, one look at the engine.
//!
//! Invariant: who asks is answered by a look that was begun after the question.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Notify, watch as signal};

use crate::error::Error;

/// The looks at the engine, and those who wait for one.
pub(crate) struct Flights {
    /// The newest ticket given out.
    tickets: AtomicU64,
    called: Notify,
    /// The newest ticket that a look has served, and the revision that it has shown.
    landed: signal::Sender<(u64, Result<i64, Error>)>,
}

impl Default for Flights {
    fn default() -> Self {
        Self { tickets: AtomicU64::new(0), called: Notify::new(), landed: signal::Sender::new((0, Ok(0))) }
    }
}

impl Flights {
    /// Waits for a look that begins now or later, and gives the newest revision of the engine that it has shown.
    pub(crate) async fn join(&self) -> Result<i64, Error> {
        let mut landed = self.landed.subscribe();
        let ticket = self.tickets.fetch_add(1, Ordering::AcqRel) + 1;
        self.call();
        match landed.wait_for(|(served, _)| *served >= ticket).await {
            Ok(flight) => flight.1.clone(),
            Err(_) => Err(Error::Unavailable("the member has stopped".to_owned())),
        }
    }

    /// Asks for a look without waiting.
    pub(crate) fn call(&self) {
        self.called.notify_one();
    }

    /// Waits until somebody asks.
    pub(crate) async fn called(&self) {
        self.called.notified().await;
    }

    /// Whom a look that begins now serves.
    pub(crate) fn begin(&self) -> u64 {
        self.tickets.load(Ordering::Acquire)
    }

    /// Tells those.
    pub(crate) fn land(&self, served: u64, result: Result<i64, Error>) {
        drop(self.landed.send_replace((served, result)));
    }
}
