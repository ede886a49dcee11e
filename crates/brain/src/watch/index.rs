//! Finds the ranges that have a key, without asking each range.
//!
//! Ranges of a single key are in a hash map. The others are in an interval tree: a treap ordered by the ranges' starts,
//! each node of which knows the range below it that ends last. A lookup takes O(log n) steps, and about as many again
//! for each range found.
//!
//! Invariant: what is found for a key is exactly what was inserted with a range that has the key and was not removed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::mvcc::{KeyRange, RangeEnd};
use crate::store::random_u64;

/// Ranges of keys, each with a value.
pub(super) struct Index<T> {
    singles: HashMap<Bytes, SmallVec<[T; 2]>>,
    ranges: Intervals<T>,
}

impl<T> Default for Index<T> {
    fn default() -> Self {
        Self { singles: HashMap::new(), ranges: Intervals::default() }
    }
}

impl<T: Copy + Ord> Index<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.singles.is_empty() && self.ranges.root == NONE
    }

    /// Adds a value; it must not be there yet.
    pub(super) fn insert(&mut self, range: &KeyRange, value: T) {
        match &range.end {
            RangeEnd::Single => self.singles.entry(range.start.clone()).or_default().push(value),
            RangeEnd::Before(end) => self.ranges.insert(range.start.clone(), Some(end.clone()), value),
            RangeEnd::Unbounded => self.ranges.insert(range.start.clone(), None, value),
        }
    }

    /// Removes a value that was inserted with this range.
    pub(super) fn remove(&mut self, range: &KeyRange, value: T) {
        if range.end != RangeEnd::Single {
            self.ranges.remove(&range.start, value);
            return;
        }
        if let Entry::Occupied(mut values) = self.singles.entry(range.start.clone()) {
            values.get_mut().retain(|other| *other != value);
            if values.get().is_empty() {
                values.remove();
            }
        }
    }

    /// Calls `visit` with the values of all ranges that have `key`.
    pub(super) fn find(&self, key: &[u8], mut visit: impl FnMut(T)) {
        if let Some(values) = self.singles.get(key) {
            values.iter().copied().for_each(&mut visit);
        }
        self.ranges.find(key, &mut visit);
    }
}

/// No node.
const NONE: u32 = u32::MAX;

struct Intervals<T> {
    nodes: Vec<Node<T>>,
    free: Vec<u32>,
    root: u32,
    /// The state of the priorities' generator; its seed is secret, so that no client can unbalance the tree.
    random: u64,
}

struct Node<T> {
    start: Bytes,
    /// The first key behind the range; `None` if it has no end.
    end: Option<Bytes>,
    value: T,
    priority: u32,
    left: u32,
    right: u32,
    /// The node of this subtree whose range ends last.
    longest: u32,
}

impl<T> Default for Intervals<T> {
    fn default() -> Self {
        Self { nodes: Vec::new(), free: Vec::new(), root: NONE, random: random_u64() | 1 }
    }
}

impl<T: Copy + Ord> Intervals<T> {
    fn insert(&mut self, start: Bytes, end: Option<Bytes>, value: T) {
        // xorshift64*
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let priority = (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32;
        let node = Node { start, end, value, priority, left: NONE, right: NONE, longest: NONE };
        let new = match self.free.pop() {
            Some(place) => {
                self.nodes[place as usize] = node;
                place
            }
            None => {
                self.nodes.push(node);
                u32::try_from(self.nodes.len() - 1).expect("watches are limited far below 2^32")
            }
        };
        self.root = self.insert_at(self.root, new);
    }

    fn insert_at(&mut self, at: u32, new: u32) -> u32 {
        if at == NONE || self.node(new).priority > self.node(at).priority {
            let (left, right) = self.split(at, new);
            self.node_mut(new).left = left;
            self.node_mut(new).right = right;
            self.update(new);
            return new;
        }
        if self.is_before(new, at) {
            let left = self.insert_at(self.node(at).left, new);
            self.node_mut(at).left = left;
        } else {
            let right = self.insert_at(self.node(at).right, new);
            self.node_mut(at).right = right;
        }
        self.update(at);
        at
    }

    /// Divides a subtree into what is before `new` and the rest.
    fn split(&mut self, at: u32, new: u32) -> (u32, u32) {
        if at == NONE {
            return (NONE, NONE);
        }
        if self.is_before(at, new) {
            let (left, right) = self.split(self.node(at).right, new);
            self.node_mut(at).right = left;
            self.update(at);
            (at, right)
        } else {
            let (left, right) = self.split(self.node(at).left, new);
            self.node_mut(at).left = right;
            self.update(at);
            (left, at)
        }
    }

    fn remove(&mut self, start: &[u8], value: T) {
        self.root = self.remove_at(self.root, start, value);
    }

    fn remove_at(&mut self, at: u32, start: &[u8], value: T) -> u32 {
        if at == NONE {
            return NONE;
        }
        let node = self.node(at);
        match start.cmp(&node.start).then(value.cmp(&node.value)) {
            std::cmp::Ordering::Equal => {
                let (left, right) = (node.left, node.right);
                // The place is kept for a later node; its keys are not.
                let node = self.node_mut(at);
                node.start = Bytes::new();
                node.end = None;
                self.free.push(at);
                return self.merge(left, right);
            }
            std::cmp::Ordering::Less => {
                let left = self.remove_at(node.left, start, value);
                self.node_mut(at).left = left;
            }
            std::cmp::Ordering::Greater => {
                let right = self.remove_at(node.right, start, value);
                self.node_mut(at).right = right;
            }
        }
        self.update(at);
        at
    }

    /// Joins two subtrees, the first of which is before the second.
    fn merge(&mut self, left: u32, right: u32) -> u32 {
        if left == NONE || right == NONE {
            return if left == NONE { right } else { left };
        }
        if self.node(left).priority > self.node(right).priority {
            let middle = self.merge(self.node(left).right, right);
            self.node_mut(left).right = middle;
            self.update(left);
            left
        } else {
            let middle = self.merge(left, self.node(right).left);
            self.node_mut(right).left = middle;
            self.update(right);
            right
        }
    }

    fn update(&mut self, at: u32) {
        let node = self.node(at);
        let mut longest = at;
        for child in [node.left, node.right] {
            if child != NONE && self.ends_before(longest, self.node(child).longest) {
                longest = self.node(child).longest;
            }
        }
        self.node_mut(at).longest = longest;
    }

    fn find(&self, key: &[u8], visit: &mut impl FnMut(T)) {
        let mut to_visit: SmallVec<[u32; 32]> = SmallVec::new();
        to_visit.push(self.root);
        while let Some(at) = to_visit.pop() {
            if at == NONE {
                continue;
            }
            let node = self.node(at);
            let reaches = |end: &Option<Bytes>| end.as_ref().is_none_or(|end| key < end.as_ref());
            if !reaches(&self.node(node.longest).end) {
                continue;
            }
            to_visit.push(node.left);
            if node.start <= key {
                if reaches(&node.end) {
                    visit(node.value);
                }
                to_visit.push(node.right);
            }
        }
    }

    fn is_before(&self, a: u32, b: u32) -> bool {
        let (a, b) = (self.node(a), self.node(b));
        (&a.start, a.value) < (&b.start, b.value)
    }

    fn ends_before(&self, a: u32, b: u32) -> bool {
        match (&self.node(a).end, &self.node(b).end) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(a), Some(b)) => a < b,
        }
    }

    fn node(&self, at: u32) -> &Node<T> {
        &self.nodes[at as usize]
    }

    fn node_mut(&mut self, at: u32) -> &mut Node<T> {
        &mut self.nodes[at as usize]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = Vec<u8>> {
        vec(0u8..3, 0..4)
    }

    fn range() -> impl Strategy<Value = KeyRange> {
        (key(), key(), 0..4).prop_map(|(a, b, kind)| {
            let (start, end) = if a < b { (a, b) } else { (b, a) };
            let end = match kind {
                0 => RangeEnd::Single,
                1 => RangeEnd::Unbounded,
                _ => RangeEnd::Before(end.into()),
            };
            KeyRange { start: start.into(), end }
        })
    }

    proptest! {
        #[test]
        fn the_index_finds_what_asking_every_range_finds(
            steps in vec((range(), any::<prop::sample::Index>(), 0..3), 1..80),
            keys in vec(key(), 20),
        ) {
            let mut index = Index::default();
            let mut model: BTreeMap<u32, KeyRange> = BTreeMap::new();
            for (number, (range, victim, kind)) in (0u32..).zip(steps) {
                if kind == 0 && !model.is_empty() {
                    let victim = *victim.get(&model.keys().copied().collect::<Vec<_>>());
                    let range = model.remove(&victim).unwrap();
                    index.remove(&range, victim);
                } else {
                    index.insert(&range, number);
                    model.insert(number, range);
                }
                prop_assert_eq!(index.is_empty(), model.is_empty());
                for key in &keys {
                    let mut found = Vec::new();
                    index.find(key, |value| found.push(value));
                    found.sort_unstable();
                    let expected: Vec<u32> = model
                        .iter()
                        .filter(|(_, range)| range.contains(key))
                        .map(|(value, _)| *value)
                        .collect();
                    prop_assert_eq!(found, expected);
                }
            }
        }
    }

    #[test]
    fn ten_thousand_ranges_make_no_deep_tree() {
        let mut index = Index::default();
        for number in 0u32..10_000 {
            let start = Bytes::from(format!("/registry/{number:05}/"));
            let end = Bytes::from(format!("/registry/{number:05}0"));
            index.insert(&KeyRange { start, end: RangeEnd::Before(end) }, number);
        }
        fn depth(intervals: &Intervals<u32>, at: u32) -> usize {
            if at == NONE {
                return 0;
            }
            let node = intervals.node(at);
            1 + depth(intervals, node.left).max(depth(intervals, node.right))
        }
        assert!(depth(&index.ranges, index.ranges.root) < 60);
        let mut found = Vec::new();
        index.find(b"/registry/01234/x", |number| found.push(number));
        assert_eq!(found, [1234]);
        for number in 0u32..10_000 {
            let start = Bytes::from(format!("/registry/{number:05}/"));
            index.remove(&KeyRange { start, end: RangeEnd::Unbounded }, number);
        }
        assert!(index.is_empty());
    }
}
