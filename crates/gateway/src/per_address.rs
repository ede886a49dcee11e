//! How much of something each address has, such as connections, so that one client can't take the places of all.
//!
//! Invariant: an address is remembered as long as it has a place, and no longer; what is remembered is therefore bounded by the places that
//! there are for all.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::limits::REFUSALS_TOLD_INTERVAL;

/// The limit for each address, and the counts.
pub(crate) struct PerAddress {
    /// 0: there is no limit, and nothing is counted.
    max: usize,
    counts: Mutex<HashMap<IpAddr, usize>>,
    refusals: Mutex<Refusals>,
}

/// Refused connections that were not told yet.
#[derive(Default)]
struct Refusals {
    untold: u64,
    told_at: Option<Instant>,
}

/// A place among those of an address.
pub(crate) struct AddressPlace(Option<(Arc<PerAddress>, IpAddr)>);

impl PerAddress {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, counts: Mutex::default(), refusals: Mutex::default() })
    }

    /// One more place; `None` if the address has as many as it may.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<AddressPlace> {
        if self.max == 0 {
            return Some(AddressPlace(None));
        }
        let key = key(address);
        let mut counts = self.counts.lock();
        let count = counts.entry(key).or_default();
        if *count >= self.max {
            return None;
        }
        *count += 1;
        Some(AddressPlace(Some((self.clone(), key))))
    }

    /// Logs that a connection was refused, but not each one: whoever is refused may come back at once, and often. Returns how many were told.
    pub(crate) fn tell_refusal(&self, address: IpAddr, now: Instant) -> u64 {
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

impl Drop for AddressPlace {
    fn drop(&mut self) {
        let Some((all, key)) = self.0.take() else { return };
        let mut counts = all.counts.lock();
        if let Some(count) = counts.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&key);
                // After a crowd has left, so has what it took.
                if counts.capacity() > 4 * counts.len() + 1024 {
                    counts.shrink_to_fit();
                }
            }
        }
    }
}

/// What is counted as one address. Whoever has an address of IPv6 has all others of its /64 too.
fn key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address => address,
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
    fn an_address_has_so_many_places_and_gets_them_back() {
        let all = PerAddress::new(2);
        let one = address("10.0.0.1");
        let first = all.enter(one).expect("a place");
        // The same, as a socket for both protocols tells it.
        let _second = all.enter(address("::ffff:10.0.0.1")).expect("a place");
        assert!(all.enter(one).is_none());
        let _other = all.enter(address("10.0.0.2")).expect("another one's place");
        drop(first);
        let _third = all.enter(one).expect("the place that was given back");
        assert!(all.enter(one).is_none());
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let all = PerAddress::new(1);
        let _first = all.enter(address("2001:db8::1")).expect("a place");
        assert!(all.enter(address("2001:db8::ffff:1")).is_none());
        assert!(all.enter(address("2001:db8:0:1::1")).is_some());
    }

    #[test]
    fn nothing_is_remembered_of_who_has_left() {
        let all = PerAddress::new(3);
        let places: Vec<_> = (0..5000).map(|number| all.enter(IpAddr::V4(number.into())).expect("a place")).collect();
        assert_eq!(all.counts.lock().len(), 5000);
        drop(places);
        assert_eq!(all.counts.lock().len(), 0);
        assert!(all.counts.lock().capacity() <= 2048);
    }

    #[test]
    fn without_a_limit_nothing_is_counted() {
        let all = PerAddress::new(0);
        let _places: Vec<_> = (0..100).map(|_| all.enter(address("10.0.0.1")).expect("a place")).collect();
        assert!(all.counts.lock().is_empty());
    }

    #[test]
    fn refusals_are_told_together() {
        let all = PerAddress::new(1);
        let (one, begun) = (address("10.0.0.1"), Instant::now());
        assert_eq!(all.tell_refusal(one, begun), 1);
        assert_eq!(all.tell_refusal(one, begun + Duration::from_millis(1)), 0);
        assert_eq!(all.tell_refusal(one, begun + REFUSALS_TOLD_INTERVAL - Duration::from_millis(1)), 0);
        assert_eq!(all.tell_refusal(one, begun + REFUSALS_TOLD_INTERVAL), 3);
    }
}
