//! One of the zoos of a host leads: it alone does what nobody waits for. This stands for election at the host's Lease `kubewharf-zoo`.
//!
//! Invariant: [`Leadership::leads`] is asked before each piece of work, and is false as soon as another one may lead. What requests need, every
//! zoo makes, whether it leads or not.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kubewharf_foundation::Shutdown;
use kubewharf_foundation::clock::{Clock, RealClock};
use serde_json::json;
use tokio::sync::watch;

use crate::upstream::{Upstream, UpstreamError};

use super::election::{Election, Now, RETRY_PERIOD_MS, Step};
use super::lease;

/// The lease of who leads.
const LEASE: &str = "kubewharf-zoo";
/// How long one try may take: half of what a leader has to renew its lease, as in client-go.
const ROUND_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether this zoo leads.
pub(crate) struct Leadership {
    /// Its name among the zoos.
    me: String,
    until_ms: AtomicU64,
    /// How often it has begun to lead.
    terms: watch::Sender<u64>,
}

impl Leadership {
    pub(super) fn new(me: String) -> Self {
        Self { me, until_ms: AtomicU64::new(0), terms: watch::Sender::new(0) }
    }

    /// The zoo's name among the zoos of the host.
    pub(super) fn me(&self) -> &str {
        &self.me
    }

    /// Whether it leads now.
    pub(crate) fn leads(&self) -> bool {
        RealClock.monotonic_ms() < self.until_ms.load(Ordering::Relaxed)
    }

    /// Changes each time that it begins to lead.
    pub(super) fn terms(&self) -> watch::Receiver<u64> {
        self.terms.subscribe()
    }

    fn set_until(&self, until_ms: u64) {
        let led = self.leads();
        self.until_ms.store(until_ms, Ordering::Relaxed);
        // Work that was left because the time was up is begun again, even if nobody else led meanwhile.
        if self.leads() && !led {
            self.terms.send_modify(|terms| *terms += 1);
        }
    }

    /// Stands for election until the shutdown, then lets go.
    pub(crate) async fn stand(&self, upstream: &Upstream, shutdown: &Shutdown) {
        let mut election = Election::new(self.me.clone());
        let mut told = None;
        loop {
            // Not broken off by a shutdown: what was written last must be known, to be taken back.
            match tokio::time::timeout(ROUND_TIMEOUT, self.round(&mut election, upstream)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the lease of the leading zoo can't be had"),
                Err(_) => tracing::warn!(within = ?ROUND_TIMEOUT, "the lease of the leading zoo: no answer"),
            }
            let state = (self.leads(), election.holder().unwrap_or_default().to_owned());
            if told.as_ref() != Some(&state) {
                let (leads, leader) = &state;
                tracing::info!(leads, leader, me = self.me, "which zoo leads");
                told = Some(state);
            }
            // As in client-go, a little more or less for each, so that they don't meet.
            let spread_ms = (RealClock.wall_ms() ^ u64::from(std::process::id())) % (RETRY_PERIOD_MS / 5);
            let pause_ms = if self.leads() { RETRY_PERIOD_MS } else { RETRY_PERIOD_MS + spread_ms };
            tokio::select! {
                () = shutdown.requested() => break,
                () = tokio::time::sleep(Duration::from_millis(pause_ms)) => {}
            }
        }
        let farewell = election.release(now());
        self.set_until(0);
        if let Some(Step::Update { version, spec }) = farewell {
            let written = lease::update(upstream, LEASE, &version, &spec);
            match tokio::time::timeout(ROUND_TIMEOUT, written).await {
                Ok(Ok(_)) => tracing::info!("another zoo may lead now"),
                _ => tracing::warn!("the lease of the leading zoo could not be given back; it runs out"),
            }
        }
    }

    /// One try. What a leader knows of its own lease it need not read, unless somebody has changed it.
    async fn round(&self, election: &mut Election, upstream: &Upstream) -> Result<(), UpstreamError> {
        let step = election.begin(now());
        if step != Step::Read && self.write(election, upstream, &step).await? {
            return Ok(());
        }
        let step = election.found(lease::read(upstream, LEASE).await?, now());
        self.set_until(election.until_ms());
        if step != Step::Stand {
            self.write(election, upstream, &step).await?;
        }
        Ok(())
    }

    /// Writes the lease; false if somebody has changed it.
    async fn write(&self, election: &mut Election, upstream: &Upstream, step: &Step) -> Result<bool, UpstreamError> {
        let sent_ms = now().monotonic_ms;
        let written = match step {
            Step::Create(spec) => lease::create(upstream, LEASE, &json!({}), spec).await?,
            Step::Update { version, spec } => lease::update(upstream, LEASE, version, spec).await?,
            Step::Read | Step::Stand => None,
        };
        let Some(lease) = written else { return Ok(false) };
        election.written(lease, sent_ms);
        self.set_until(election.until_ms());
        Ok(true)
    }
}

fn now() -> Now {
    Now { monotonic_ms: RealClock.monotonic_ms(), wall_ms: RealClock.wall_ms() }
}
