//! Who of several zoos leads, by the rules of client-go's leader election over a Lease: what to do next, and whether this one leads.
//!
//! Clocks are not compared: a holder's lease is over when its lease was seen unchanged, by one's own clock, for as long as it lasts. A leader
//! counts from before it sent the write that made or kept it one, and for less time than others wait.
//!
//! Invariant: no two lead at the same time, whatever gets lost or late, as long as their clocks run about equally fast.

use super::lease::{Lease, LeaseSpec, micro_time};

/// How long others wait for a leader that is silent.
pub(super) const LEASE_DURATION_MS: u64 = 15_000;
/// How long a leader leads without having been able to say so again.
pub(super) const RENEW_DEADLINE_MS: u64 = 10_000;
/// Pause between two tries to become or to stay it.
pub(super) const RETRY_PERIOD_MS: u64 = 2_000;

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Read the lease.
    Read,
    /// Make it.
    Create(LeaseSpec),
    /// Write it, if it is still at this version.
    Update {
        /// The version.
        version: String,
        /// What it then says.
        spec: LeaseSpec,
    },
    /// Nothing: another one leads.
    Stand,
}

/// The lease as it was seen last.
struct Seen {
    version: String,
    spec: LeaseSpec,
    since_ms: u64,
}

/// One candidate's view.
pub(super) struct Election {
    me: String,
    seen: Option<Seen>,
    /// Until when this one leads, by its own clock.
    until_ms: u64,
}

/// Now, by the clock that only goes forward and by the one that people read, both in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) monotonic_ms: u64,
    pub(super) wall_ms: u64,
}

impl Election {
    pub(super) fn new(me: String) -> Self {
        Self { me, seen: None, until_ms: 0 }
    }

    /// Until when this one leads; in the past if it doesn't.
    pub(super) fn until_ms(&self) -> u64 {
        self.until_ms
    }

    /// Who holds the lease, as it was seen last.
    pub(super) fn holder(&self) -> Option<&str> {
        self.seen.as_ref()?.spec.holder_identity.as_deref().filter(|holder| !holder.is_empty())
    }

    /// How a round begins: who leads needs not read what it wrote itself.
    pub(super) fn begin(&self, now: Now) -> Step {
        match &self.seen {
            Some(seen) if self.holder() == Some(&self.me) && seen.lasts(now) => self.claim(seen, now),
            _ => Step::Read,
        }
    }

    /// How it goes on when the lease was read.
    pub(super) fn found(&mut self, lease: Option<Lease>, now: Now) -> Step {
        let Some(lease) = lease else {
            self.seen = None;
            self.until_ms = 0;
            return Step::Create(self.spec(micro_time(now.wall_ms), 0, now));
        };
        self.see(lease, now.monotonic_ms);
        let seen = self.seen.as_ref().expect("just seen");
        let is_mine = self.holder() == Some(&self.me);
        let step =
            if self.holder().is_some() && !is_mine && seen.lasts(now) { Step::Stand } else { self.claim(seen, now) };
        if !is_mine {
            self.until_ms = 0;
        }
        step
    }

    /// The lease is written as this one wanted it, by a request that was sent then.
    pub(super) fn written(&mut self, lease: Lease, sent_ms: u64) {
        self.see(lease, sent_ms);
        let is_mine = self.holder() == Some(&self.me);
        self.until_ms = if is_mine { sent_ms + RENEW_DEADLINE_MS } else { 0 };
    }

    /// Leads no more from now on; what to write, so that others need not wait.
    pub(super) fn release(&mut self, now: Now) -> Option<Step> {
        self.until_ms = 0;
        let seen = self.seen.as_ref()?;
        if self.holder() != Some(&self.me) {
            return None;
        }
        let time = micro_time(now.wall_ms);
        let spec = LeaseSpec {
            holder_identity: None,
            lease_duration_seconds: 1,
            acquire_time: time.clone(),
            renew_time: time,
            lease_transitions: seen.spec.lease_transitions,
        };
        Some(Step::Update { version: seen.version.clone(), spec })
    }

    fn see(&mut self, lease: Lease, now_ms: u64) {
        let version = lease.metadata.resource_version;
        if self.seen.as_ref().is_none_or(|seen| seen.version != version) {
            self.seen = Some(Seen { version, spec: lease.spec, since_ms: now_ms });
        }
    }

    /// Takes the lease, or keeps it.
    fn claim(&self, seen: &Seen, now: Now) -> Step {
        let spec = if self.holder() == Some(&self.me) {
            self.spec(seen.spec.acquire_time.clone(), seen.spec.lease_transitions, now)
        } else {
            self.spec(micro_time(now.wall_ms), seen.spec.lease_transitions.saturating_add(1), now)
        };
        Step::Update { version: seen.version.clone(), spec }
    }

    fn spec(&self, acquire_time: String, lease_transitions: u32, now: Now) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: (LEASE_DURATION_MS / 1000) as u32,
            acquire_time,
            renew_time: micro_time(now.wall_ms),
            lease_transitions,
        }
    }
}

impl Seen {
    /// Whether its holder may still be at work.
    fn lasts(&self, now: Now) -> bool {
        now.monotonic_ms < self.since_ms + u64::from(self.spec.lease_duration_seconds) * 1000
    }
}

#[cfg(test)]
mod tests;
