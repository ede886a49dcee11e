//! Keys in another order than the table's, as many as are wanted.
//!
//! Invariant: no more keys are held than the limit admits, and each is paid for.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::mem::size_of;
use std::ops::ControlFlow;

use kubewharf_engine::Direction;

use super::range::{RangeQuery, Receiver, SortTarget};
use super::record::Version;

/// The first keys by order among those seen so far, which come in the order of the table.
pub(super) struct Best {
    target: SortTarget,
    direction: Direction,
    keys_max: usize,
    keeps_values: bool,
    /// The last one by order on top.
    held: BinaryHeap<Held>,
    /// What is left to be passed on, the next at the end, once all were seen.
    sorted: Option<Vec<Held>>,
}

impl Best {
    pub(super) fn new(query: &RangeQuery, target: SortTarget, direction: Direction) -> Self {
        Self {
            target,
            direction,
            keys_max: if query.limit == 0 { usize::MAX } else { usize::try_from(query.limit).unwrap_or(usize::MAX) },
            keeps_values: !query.keys_only || target == SortTarget::Value,
            held: BinaryHeap::new(),
            sorted: None,
        }
    }

    /// Keeps the key if it is among the first; breaks if the receiver has no memory for it.
    pub(super) fn offer(&mut self, key: &[u8], version: &Version<'_>, receiver: &mut dyn Receiver) -> ControlFlow<()> {
        let rank = self.rank(key, version);
        let is_full = self.held.len() >= self.keys_max;
        if is_full && self.held.peek().is_none_or(|last| rank >= last.rank()) {
            return ControlFlow::Continue(());
        }
        let value = if self.keeps_values { version.value } else { &[] };
        receiver.hold(Held::weight_of(key, value))?;
        let held = Held {
            order: rank.order,
            by_value: rank.by_value,
            key_bytes: key.len(),
            version: Version { value: &[], ..*version },
            bytes: [key, value].concat().into_boxed_slice(),
        };
        if is_full && let Some(last) = self.held.pop() {
            receiver.release(last.weight());
        }
        self.held.push(held);
        ControlFlow::Continue(())
    }

    /// Passes on what is held, in order, until the receiver breaks; it gets that key again the next time.
    pub(super) fn pass_on(&mut self, receiver: &mut dyn Receiver) -> ControlFlow<()> {
        let sorted = self.sorted.get_or_insert_with(|| {
            let mut sorted = std::mem::take(&mut self.held).into_sorted_vec();
            sorted.reverse();
            sorted
        });
        while let Some(next) = sorted.last() {
            receiver.key(next.key(), &Version { value: next.value(), ..next.version })?;
            let weight = next.weight();
            sorted.pop();
            receiver.release(weight);
        }
        ControlFlow::Continue(())
    }

    fn rank<'k>(&self, key: &'k [u8], version: &Version<'k>) -> Rank<'k> {
        let number = match self.target {
            SortTarget::Key | SortTarget::Value => 0,
            SortTarget::Version => version.version,
            SortTarget::Create => version.create_revision,
            SortTarget::Mod => version.mod_revision,
        };
        // The complement turns the order of numbers round.
        let order = if self.direction == Direction::Forward { number } else { !number };
        let by_value = (self.target == SortTarget::Value).then_some(self.direction);
        Rank { order, by_value, value: version.value, key }
    }
}

/// What keys are ordered by; those that are equal otherwise stay in the order of the table.
#[derive(PartialEq, Eq)]
struct Rank<'k> {
    order: i64,
    by_value: Option<Direction>,
    value: &'k [u8],
    key: &'k [u8],
}

impl Ord for Rank<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_value = || match self.by_value {
            None => Ordering::Equal,
            Some(Direction::Forward) => self.value.cmp(other.value),
            Some(Direction::Reverse) => Reverse(self.value).cmp(&Reverse(other.value)),
        };
        self.order.cmp(&other.order).then_with(by_value).then_with(|| self.key.cmp(other.key))
    }
}

impl PartialOrd for Rank<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A key that is held, in one allocation.
struct Held {
    order: i64,
    by_value: Option<Direction>,
    key_bytes: usize,
    /// Without its value.
    version: Version<'static>,
    /// The key, then the value.
    bytes: Box<[u8]>,
}

impl Held {
    /// Memory that a key with this value takes: the list of them may have grown to twice its need.
    fn weight_of(key: &[u8], value: &[u8]) -> usize {
        2 * size_of::<Self>() + key.len() + value.len()
    }

    fn weight(&self) -> usize {
        2 * size_of::<Self>() + self.bytes.len()
    }

    fn key(&self) -> &[u8] {
        &self.bytes[..self.key_bytes]
    }

    fn value(&self) -> &[u8] {
        &self.bytes[self.key_bytes..]
    }

    fn rank(&self) -> Rank<'_> {
        Rank { order: self.order, by_value: self.by_value, value: self.value(), key: self.key() }
    }
}

impl Ord for Held {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Held {}
