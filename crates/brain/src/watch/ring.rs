//! The recent history in memory, bounded in bytes.
//!
//! Invariant: the segments follow each other without a gap and end with the newest one appended, which is kept whatever
//! it weighs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use smallvec::SmallVec;

use super::events::Segment;

/// Some segments, in order.
pub(super) type Segments = SmallVec<[Arc<Segment>; 8]>;

/// The revision asked for is older than the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fallen {
    /// The first revision that the ring has, or the next that it will have.
    pub(super) first: i64,
}

/// The newest segments.
pub(super) struct Ring {
    segments: VecDeque<Arc<Segment>>,
    /// The revision that the next segment starts with.
    next: i64,
    weight: usize,
    weight_max: usize,
}

impl Ring {
    /// An empty ring behind `revision`, for `weight_max` bytes.
    pub(super) fn new(revision: i64, weight_max: usize) -> Self {
        Self { segments: VecDeque::new(), next: revision + 1, weight: 0, weight_max }
    }

    pub(super) fn append(&mut self, segment: Segment) {
        debug_assert_eq!(segment.first(), self.next, "revisions are dense");
        self.next = segment.last() + 1;
        self.weight += segment.weight();
        self.segments.push_back(Arc::new(segment));
        self.trim();
    }

    /// Counts memory that was added to `segment` since it was appended.
    pub(super) fn charge(&mut self, segment: &Segment, bytes: usize) {
        // Trimmed ones are whoever's who still holds them.
        if self.first() <= segment.first() {
            segment.selections_weight.fetch_add(bytes, Ordering::Relaxed);
            self.weight += bytes;
            self.trim();
        }
    }

    /// Forgets everything: the next segment is behind `revision`.
    pub(super) fn skip(&mut self, revision: i64) {
        self.segments.clear();
        (self.next, self.weight) = (revision + 1, 0);
    }

    fn trim(&mut self) {
        while self.weight > self.weight_max && self.segments.len() > 1 {
            let oldest = self.segments.pop_front().expect("there are several");
            self.weight -= oldest.weight() + oldest.selections_weight.load(Ordering::Relaxed);
        }
    }

    /// The first revision in the ring, or the next that it will have.
    pub(super) fn first(&self) -> i64 {
        self.segments.front().map_or(self.next, |segment| segment.first())
    }

    /// Memory in use, in bytes.
    pub(super) fn weight(&self) -> usize {
        self.weight
    }

    /// Adds to `segments` at most `count` of those with revisions from `from` to `last`, the earliest ones.
    pub(super) fn read(&self, from: i64, last: i64, count: usize, segments: &mut Segments) -> Result<(), Fallen> {
        let first = self.first();
        if from < first {
            return Err(Fallen { first });
        }
        // Most readers want the newest segment.
        let start = match self.segments.back() {
            Some(newest) if from >= newest.first() => self.segments.len() - 1,
            _ => self.segments.partition_point(|segment| segment.last() < from),
        };
        let wanted = self.segments.iter().skip(start).take(count);
        segments.extend(wanted.take_while(|segment| segment.last() >= from && segment.first() <= last).cloned());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::{Change, ChangeSink, Ladder, Position, Version};
    use crate::watch::EventsBuilder;

    fn segment(revisions: std::ops::RangeInclusive<i64>) -> Segment {
        let mut builder = EventsBuilder::default();
        for revision in revisions {
            let live =
                Version { create_revision: revision, mod_revision: revision, version: 1, lease: 0, value: &[7; 100] };
            let change = Change { time_ms: 0, key: b"k", live: Some(live), previous: None, ladder: Ladder::default() };
            builder.change(Position { revision, sub: 0 }, &change);
        }
        builder.finish().unwrap().segments.pop().unwrap()
    }

    fn read(ring: &Ring, from: i64, last: i64, count: usize) -> Result<Vec<(i64, i64)>, Fallen> {
        let mut segments = Segments::new();
        ring.read(from, last, count, &mut segments)?;
        Ok(segments.iter().map(|segment| (segment.first(), segment.last())).collect())
    }

    #[test]
    fn segments_are_read_from_any_revision_in_the_ring() {
        let mut ring = Ring::new(1, usize::MAX);
        assert_eq!(read(&ring, 2, 9, 9), Ok(vec![]));
        assert_eq!(read(&ring, 1, 9, 9), Err(Fallen { first: 2 }));
        ring.append(segment(2..=3));
        ring.append(segment(4..=4));
        ring.append(segment(5..=7));
        assert_eq!(read(&ring, 1, 9, 9), Err(Fallen { first: 2 }));
        assert_eq!(read(&ring, 2, 7, 9), Ok(vec![(2, 3), (4, 4), (5, 7)]));
        assert_eq!(read(&ring, 3, 4, 9), Ok(vec![(2, 3), (4, 4)]));
        assert_eq!(read(&ring, 3, 7, 1), Ok(vec![(2, 3)]));
        assert_eq!(read(&ring, 6, 7, 9), Ok(vec![(5, 7)]));
        assert_eq!(read(&ring, 8, 9, 9), Ok(vec![]));
        assert_eq!(read(&ring, 5, 4, 9), Ok(vec![]));
    }

    #[test]
    fn the_oldest_segments_go_when_the_bytes_are_used_up_and_all_overhead_counts() {
        let weight = segment(2..=2).weight();
        assert!(weight > 100 + 32 + 4 * 8);
        let mut ring = Ring::new(1, 3 * weight);
        for revision in 2..=4 {
            ring.append(segment(revision..=revision));
        }
        assert_eq!((ring.first(), ring.weight()), (2, 3 * weight));
        ring.append(segment(5..=5));
        assert_eq!((ring.first(), ring.weight()), (3, 3 * weight));

        let mut segments = Segments::new();
        ring.read(4, 4, 1, &mut segments).unwrap();
        ring.charge(&segments[0], 1);
        assert_eq!((ring.first(), ring.weight()), (4, 2 * weight + 1));
        ring.append(segment(6..=6));
        assert_eq!(ring.first(), 5, "what was charged goes with its segment");
        ring.charge(&segments[0], 1000);
        assert!(ring.weight() < 1000 + 2 * weight, "a segment that is gone is not charged");
    }

    #[test]
    fn the_newest_segment_stays_whatever_it_weighs() {
        let mut ring = Ring::new(1, 0);
        ring.append(segment(2..=9));
        assert_eq!(read(&ring, 2, 9, 9), Ok(vec![(2, 9)]));
        ring.append(segment(10..=10));
        assert_eq!(read(&ring, 10, 10, 9), Ok(vec![(10, 10)]));
        assert_eq!(ring.first(), 10);
    }
}
