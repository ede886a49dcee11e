//! How much of something each one has, so that one can't take what all need: an address connections, a tenant watches.
//!
//! Invariant: who has a place is remembered, and nobody else; a place is given back when it is dropped.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;

/// So many places for each.
pub struct Places<K> {
    /// 0: there is no limit, and nothing is counted.
    max: usize,
    taken: Mutex<HashMap<K, usize>>,
}

/// One of them.
pub struct Place<K: Copy + Eq + Hash>(Option<(Arc<Places<K>>, K)>);

impl<K: Copy + Eq + Hash> Places<K> {
    /// So many places for each; 0: as many as they like.
    #[must_use]
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, taken: Mutex::default() })
    }

    /// One more place; none if this one has as many as it may.
    pub fn enter(self: &Arc<Self>, key: K) -> Option<Place<K>> {
        if self.max == 0 {
            return Some(Place(None));
        }
        let mut taken = self.taken.lock();
        let count = taken.entry(key).or_default();
        if *count >= self.max {
            return None;
        }
        *count += 1;
        Some(Place(Some((self.clone(), key))))
    }
}

impl<K: Copy + Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let Some((places, key)) = self.0.take() else { return };
        let mut taken = places.taken.lock();
        if let Some(count) = taken.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&key);
                // After a crowd has left, so has what it took.
                if taken.capacity() > 4 * taken.len() + 1024 {
                    taken.shrink_to_fit();
                }
            }
        }
    }
}

/// What is counted as one address. Whoever has an address of IPv6 has all others of its /64 too.
#[must_use]
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_so_many_places_and_gets_them_back() {
        let places = Places::new(2);
        let first = places.enter('a').expect("a place");
        let _second = places.enter('a').expect("a place");
        assert!(places.enter('a').is_none());
        let _other = places.enter('b').expect("another one's place");
        drop(first);
        let _third = places.enter('a').expect("the place that was given back");
        assert!(places.enter('a').is_none());
    }

    #[test]
    fn nothing_is_remembered_of_who_has_left() {
        let places = Places::new(3);
        let taken: Vec<_> = (0..5000).map(|number| places.enter(number).expect("a place")).collect();
        drop(taken);
        assert_eq!(places.taken.lock().len(), 0);
        assert!(places.taken.lock().capacity() < 5000);
        let unlimited = Places::new(0);
        let _all: Vec<_> = (0..10).map(|_| unlimited.enter(1).expect("a place")).collect();
        assert_eq!(unlimited.taken.lock().len(), 0);
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let of = |text: &str| network(text.parse().expect("an address"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.2"), of("10.0.0.1"));
    }
}
