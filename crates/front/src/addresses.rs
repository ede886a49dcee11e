//! How much of something each address has, such as connections, so that one client can't take the places of all.
//!
//! Invariant: an address is remembered as long as it has a place, and no longer; what is remembered is therefore bounded by the places that
//! there are for all.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::limits::REFUSALS_TOLD_INTERVAL;
use crate::places::{Place, Places, network};

/// The limit for each address, and the counts.
pub struct Addresses {
    max: usize,
    places: Arc<Places<IpAddr>>,
    refusals: Mutex<Refusals>,
}

/// Refused connections that were not told yet.
#[derive(Default)]
struct Refusals {
    untold: u64,
    told_at: Option<Instant>,
}

impl Addresses {
    /// So many places for each address, or for each /64 of IPv6; 0: as many as it likes.
    #[must_use]
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, places: Places::new(max), refusals: Mutex::default() })
    }

    /// One more place; `None` if the address has as many as it may.
    #[must_use]
    pub fn enter(&self, address: IpAddr) -> Option<Place<IpAddr>> {
        self.places.enter(network(address))
    }

    /// Logs that a connection was refused, but not each one: whoever is refused may come back at once, and often. Returns how many were told.
    pub fn tell_refusal(&self, address: IpAddr, now: Instant) -> u64 {
        let refused = {
            let mut refusals = self.refusals.lock();
            refusals.untold += 1;
            if refusals.told_at.is_some_and(|told_at| now.duration_since(told_at) < REFUSALS_TOLD_INTERVAL) {
                return 0;
            }
            refusals.told_at = Some(now);
            std::mem::take(&mut refusals.untold)
        };
        let connections_max = self.max;
        tracing::warn!(
            %address, refused, connections_max,
            "an address has as many connections as it may (--connections-per-address-max); further ones are closed"
        );
        refused
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn an_address_is_the_same_however_a_socket_tells_it() {
        let all = Addresses::new(1);
        let _first = all.enter(address("10.0.0.1")).expect("a place");
        assert!(all.enter(address("::ffff:10.0.0.1")).is_none());
        let _other = all.enter(address("10.0.0.2")).expect("another one's place");
    }

    #[test]
    fn refusals_are_told_together() {
        let all = Addresses::new(1);
        let (one, begun) = (address("10.0.0.1"), Instant::now());
        assert_eq!(all.tell_refusal(one, begun), 1);
        assert_eq!(all.tell_refusal(one, begun + Duration::from_millis(1)), 0);
        assert_eq!(all.tell_refusal(one, begun + REFUSALS_TOLD_INTERVAL - Duration::from_millis(1)), 0);
        assert_eq!(all.tell_refusal(one, begun + REFUSALS_TOLD_INTERVAL), 3);
    }
}
