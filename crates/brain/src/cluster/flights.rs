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
    /// The newest ticket that a look has served, and how that went.
    landed: signal::Sender<(u64, Result<(), Error>)>,
}

impl Default for Flights {
    fn default() -> Self {
        Self { tickets: AtomicU64::new(0), called: Notify::new(), landed: signal::Sender::new((0, Ok(()))) }
    }
}

impl Flights {
    /// Waits for a look that begins now or later.
    pub(crate) async fn join(&self) -> Result<(), Error> {
        let mut landed = self.landed.subscribe();
        let ticket = self.tickets.fetch_add(1, Ordering::AcqRel) + 1;
        self.call();
        let result = match landed.wait_for(|(served, _)| *served >= ticket).await {
            Ok(flight) => flight.1.clone(),
            Err(_) => Err(Error::Unavailable("the member has stopped".to_owned())),
        };
        result
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
    pub(crate) fn land(&self, served: u64, result: Result<(), Error>) {
        drop(self.landed.send_replace((served, result)));
    }
}
