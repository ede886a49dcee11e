//! Which region holds a key, as far as this process has heard.
//!
//! Invariant: regions in the cache do not overlap, and one that is heard of takes the place of all that it overlaps, unless one of these is newer. The
//! cache is a guess that the stores correct: they refuse what is not meant for them. Its size is bounded.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;

use super::codec;
use crate::generated::metapb;

/// Beyond these all are forgotten: a few tens of megabytes.
const REGIONS_MAX: usize = 1 << 16;

/// A region.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Region {
    pub(crate) id: u64,
    pub(crate) epoch: metapb::RegionEpoch,
    /// First key.
    pub(crate) start: Bytes,
    /// First key behind; empty means none.
    pub(crate) end: Bytes,
    /// The peer that is thought to lead.
    pub(crate) leader: metapb::Peer,
}

impl Region {
    /// What PD or a store says; `None` if it makes no sense, or nobody could lead.
    pub(crate) fn new(region: &metapb::Region, leader: Option<metapb::Peer>) -> Option<Self> {
        let may_lead = |peer: &&metapb::Peer| {
            !peer.is_witness && matches!(peer.role(), metapb::PeerRole::Voter | metapb::PeerRole::IncomingVoter)
        };
        let leader = leader.filter(|leader| leader.id != 0).or_else(|| region.peers.iter().find(may_lead).copied())?;
        let (start, end) = (codec::decode_bound(&region.start_key)?, codec::decode_bound(&region.end_key)?);
        Some(Self { id: region.id, epoch: region.region_epoch?, start, end, leader })
    }

    pub(crate) fn holds(&self, key: &[u8]) -> bool {
        self.start <= key && (self.end.is_empty() || key < self.end)
    }

    /// Whether the keys just before this one are in it.
    fn holds_before(&self, key: &[u8]) -> bool {
        self.start < key && (self.end.is_empty() || key <= self.end)
    }

    fn is_newer_than(&self, other: &Self) -> bool {
        let age = |region: &Self| (region.epoch.version, region.epoch.conf_ver);
        age(self) > age(other)
    }
}

/// The cache, by first key.
#[derive(Debug, Default)]
pub(crate) struct Regions {
    by_start: RwLock<BTreeMap<Bytes, Arc<Region>>>,
}

impl Regions {
    pub(crate) fn holding(&self, key: &[u8]) -> Option<Arc<Region>> {
        let by_start = self.by_start.read();
        let (_, region) = by_start.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back()?;
        region.holds(key).then(|| region.clone())
    }

    /// The region of the keys just before that one.
    pub(crate) fn before(&self, key: &[u8]) -> Option<Arc<Region>> {
        let by_start = self.by_start.read();
        let (_, region) = by_start.range::<[u8], _>((Bound::Unbounded, Bound::Excluded(key))).next_back()?;
        region.holds_before(key).then(|| region.clone())
    }

    /// Learns of a region, unless it knows better.
    pub(crate) fn insert(&self, region: Region) -> Arc<Region> {
        let region = Arc::new(region);
        let mut by_start = self.by_start.write();
        let overlapping: Vec<Arc<Region>> = by_start
            .range::<[u8], _>((
                Bound::Unbounded,
                if region.end.is_empty() { Bound::Unbounded } else { Bound::Excluded(&region.end[..]) },
            ))
            .rev()
            .map(|(_, other)| other)
            .take_while(|other| other.end.is_empty() || other.end > region.start)
            .cloned()
            .collect();
        if overlapping.iter().any(|other| other.is_newer_than(&region)) {
            return region;
        }
        for other in &overlapping {
            by_start.remove(&other.start);
        }
        if by_start.len() >= REGIONS_MAX {
            by_start.clear();
        }
        by_start.insert(region.start.clone(), region.clone());
        region
    }

    /// Another peer of the region leads.
    pub(crate) fn set_leader(&self, region: &Region, leader: metapb::Peer) {
        if let Some(cached) = self.by_start.write().get_mut(&region.start)
            && (cached.id, cached.epoch) == (region.id, region.epoch)
        {
            *cached = Arc::new(Region { leader, ..region.clone() });
        }
    }

    /// The region is not as it was, or not where it was.
    pub(crate) fn forget(&self, region: &Region) {
        let mut by_start = self.by_start.write();
        if by_start.get(&region.start).is_some_and(|cached| cached.id == region.id && !cached.is_newer_than(region)) {
            by_start.remove(&region.start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(id: u64, version: u64, start: &'static str, end: &'static str) -> Region {
        let leader = metapb::Peer { id: id * 10, store_id: 1, ..Default::default() };
        let epoch = metapb::RegionEpoch { conf_ver: 1, version };
        Region { id, epoch, start: start.into(), end: end.into(), leader }
    }

    fn id(region: Option<Arc<Region>>) -> Option<u64> {
        region.map(|region| region.id)
    }

    #[test]
    fn a_key_is_in_the_region_between_whose_bounds_it_is() {
        let regions = Regions::default();
        assert_eq!(regions.holding(b"a"), None);
        regions.insert(region(1, 1, "", "c"));
        regions.insert(region(2, 1, "c", "f"));
        regions.insert(region(3, 1, "h", ""));
        for (key, holding, before) in [
            (&b""[..], Some(1), None),
            (b"a", Some(1), Some(1)),
            (b"c", Some(2), Some(1)),
            (b"c\0", Some(2), Some(2)),
            (b"f", None, Some(2)),
            (b"g", None, None),
            (b"h", Some(3), None),
            (b"zz", Some(3), Some(3)),
        ] {
            assert_eq!((id(regions.holding(key)), id(regions.before(key))), (holding, before), "{key:?}");
        }
    }

    #[test]
    fn splits_and_merges_take_the_place_of_what_they_overlap() {
        let regions = Regions::default();
        regions.insert(region(1, 1, "", ""));
        regions.insert(region(2, 2, "", "m"));
        assert_eq!((id(regions.holding(b"a")), id(regions.holding(b"m"))), (Some(2), None));
        regions.insert(region(1, 2, "m", ""));
        // What PD has not heard of yet is no news.
        regions.insert(region(1, 1, "", ""));
        assert_eq!((id(regions.holding(b"a")), id(regions.holding(b"m"))), (Some(2), Some(1)));
        regions.insert(region(3, 2, "d", "e"));
        assert_eq!(id(regions.holding(b"a")), None, "what is left of the one that was split has to be asked for");
        regions.insert(region(2, 3, "a", "x"));
        for (key, expected) in [(&b"b"[..], Some(2)), (b"d", Some(2)), (b"m", Some(2)), (b"x", None)] {
            assert_eq!(id(regions.holding(key)), expected, "{key:?}");
        }
    }

    #[test]
    fn a_leader_is_changed_and_a_region_forgotten_only_as_it_was_meant() {
        let regions = Regions::default();
        let (old, new) = (region(1, 1, "a", "c"), region(1, 2, "a", "b"));
        regions.insert(new.clone());
        let other = metapb::Peer { id: 7, store_id: 2, ..Default::default() };
        regions.set_leader(&old, other);
        assert_eq!(regions.holding(b"a").unwrap().leader.id, 10);
        regions.set_leader(&new, other);
        assert_eq!(regions.holding(b"a").unwrap().leader.id, 7);
        regions.forget(&old);
        assert_eq!(id(regions.holding(b"a")), Some(1));
        regions.forget(&new);
        assert_eq!(regions.holding(b"a"), None);
    }

    #[test]
    fn nobody_can_lead_a_region_of_learners() {
        let peer = |id, role: metapb::PeerRole| metapb::Peer { id, role: role.into(), ..Default::default() };
        let mut region = metapb::Region {
            region_epoch: Some(metapb::RegionEpoch::default()),
            peers: vec![peer(1, metapb::PeerRole::Learner)],
            ..Default::default()
        };
        assert_eq!(Region::new(&region, None), None);
        region.peers.push(peer(2, metapb::PeerRole::Voter));
        assert_eq!(Region::new(&region, None).map(|region| region.leader.id), Some(2));
        assert_eq!(Region::new(&region, Some(metapb::Peer::default())).map(|region| region.leader.id), Some(2));
        region.end_key = "not encoded".into();
        assert_eq!(Region::new(&region, None), None);
    }
}
