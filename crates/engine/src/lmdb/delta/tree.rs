//! A persistent ordered map from keys to places: clones share everything and never see each other's changes.
//!
//! A B+ tree of small fixed nodes, copied when changed while shared. A leaf is an array of places, so copying one is copying
//! a kilobyte, and keys are read where they lie, in the records.
//!
//! Rows are never taken out: a row that is removed is a place that says so. Keys that come in at the end, as those of the log do, fill
//! the leaves and are not searched for.

use std::ops::Bound;
use std::sync::Arc;

use smallvec::SmallVec;

use super::records::{Place, Records};
use crate::Direction;

/// Places of a leaf: one of a kilobyte.
const LEAF_MAX: usize = 64;
/// Children of a branch: a copy counts a reference to each.
const BRANCH_MAX: usize = 32;
/// More levels than a tree of 2^32 rows has.
const DEPTH_MAX: usize = 8;

#[derive(Clone)]
#[allow(clippy::large_enum_variant, reason = "nearly all nodes are of the larger kind")]
enum Node {
    Leaf(List<Place, LEAF_MAX>),
    /// Each child with the first of its keys.
    Branch(List<Place, BRANCH_MAX>, List<Option<Arc<Node>>, BRANCH_MAX>),
}

/// An array with a length.
#[derive(Clone)]
struct List<T, const N: usize> {
    length: usize,
    items: [T; N],
}

impl<T: Default + Clone, const N: usize> List<T, N> {
    fn of(items: impl IntoIterator<Item = T>) -> Self {
        let mut list = Self { length: 0, items: std::array::from_fn(|_| T::default()) };
        for item in items {
            list.items[list.length] = item;
            list.length += 1;
        }
        list
    }

    fn slice(&self) -> &[T] {
        &self.items[..self.length]
    }

    fn is_full(&self) -> bool {
        self.length == N
    }

    fn insert(&mut self, at: usize, item: T) {
        self.items[self.length] = item;
        self.items[at..=self.length].rotate_right(1);
        self.length += 1;
    }

    /// Cuts the items from `at` on off.
    fn split_off(&mut self, at: usize) -> Self {
        let rest = Self::of(self.items[at..self.length].iter_mut().map(std::mem::take));
        self.length = at;
        rest
    }
}

/// Places by key.
#[derive(Clone, Default)]
pub(super) struct Tree {
    root: Option<Arc<Node>>,
    rows: u64,
}

/// What an insertion does to the node above.
enum Outcome {
    Replaced(Place),
    Added,
    /// The node was full: a right sibling, and its first key.
    Split(Place, Arc<Node>),
}

impl Tree {
    /// Rows, those that say that one is removed too.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    pub(super) fn get(&self, records: &Records, key: &[u8]) -> Option<&Place> {
        let mut node = self.root.as_deref()?;
        loop {
            match node {
                Node::Leaf(places) => {
                    let places = places.slice();
                    return places.binary_search_by(|place| records.key(place).cmp(key)).ok().map(|at| &places[at]);
                }
                Node::Branch(firsts, children) => node = child(children, child_of(records, firsts.slice(), key)),
            }
        }
    }

    /// Sets the place of its key, and returns the one that it replaces.
    pub(super) fn set(&mut self, records: &Records, place: Place) -> Option<Place> {
        let Some(root) = &mut self.root else {
            self.root = Some(Arc::new(Node::Leaf(List::of([place]))));
            self.rows = 1;
            return None;
        };
        match insert(root, records, place) {
            Outcome::Replaced(old) => return Some(old),
            Outcome::Added => {}
            Outcome::Split(first, sibling) => {
                let old_first = *root.first();
                let children = [Some(root.clone()), Some(sibling)];
                self.root = Some(Arc::new(Node::Branch(List::of([old_first, first]), List::of(children))));
            }
        }
        self.rows += 1;
        None
    }

    /// The places between the bounds.
    pub(super) fn range<'t>(
        &'t self,
        records: &'t Records,
        (start, end): (Bound<&[u8]>, Bound<&'t [u8]>),
        direction: Direction,
    ) -> Cursor<'t> {
        let mut cursor = Cursor { path: SmallVec::new(), direction, end };
        if let Some(root) = self.root.as_deref() {
            cursor.seek(root, records, start);
        }
        cursor
    }
}

impl Node {
    fn first(&self) -> &Place {
        match self {
            Self::Leaf(places) => &places.items[0],
            Self::Branch(firsts, _) => &firsts.items[0],
        }
    }
}

fn child(children: &List<Option<Arc<Node>>, BRANCH_MAX>, at: usize) -> &Node {
    children.slice()[at].as_deref().expect("a branch has each of its children")
}

/// The child that has the key, if any has.
fn child_of(records: &Records, firsts: &[Place], key: &[u8]) -> usize {
    firsts.partition_point(|first| records.key(first) <= key).saturating_sub(1)
}

fn insert(link: &mut Arc<Node>, records: &Records, place: Place) -> Outcome {
    let key = records.key(&place);
    match Arc::make_mut(link) {
        Node::Leaf(places) => {
            let is_last = places.slice().last().is_none_or(|last| records.key(last) < key);
            let found = if is_last {
                Err(places.length)
            } else {
                places.slice().binary_search_by(|other| records.key(other).cmp(key))
            };
            match found {
                Ok(at) => Outcome::Replaced(std::mem::replace(&mut places.items[at], place)),
                Err(at) if !places.is_full() => {
                    places.insert(at, place);
                    Outcome::Added
                }
                // Keys that keep coming in at the end leave full leaves.
                Err(LEAF_MAX) => Outcome::Split(place, Arc::new(Node::Leaf(List::of([place])))),
                Err(at) => {
                    let mut right = places.split_off(LEAF_MAX / 2);
                    if at <= LEAF_MAX / 2 {
                        places.insert(at, place);
                    } else {
                        right.insert(at - LEAF_MAX / 2, place);
                    }
                    Outcome::Split(right.items[0], Arc::new(Node::Leaf(right)))
                }
            }
        }
        Node::Branch(firsts, children) => {
            let at = child_of(records, firsts.slice(), key);
            let below = children.items[at].as_mut().expect("a branch has each of its children");
            let outcome = insert(below, records, place);
            // A key before all others becomes the first one.
            firsts.items[at] = *below.first();
            let Outcome::Split(first, sibling) = outcome else { return outcome };
            if !firsts.is_full() {
                firsts.insert(at + 1, first);
                children.insert(at + 1, Some(sibling));
                return Outcome::Added;
            }
            let keep = if at + 1 == BRANCH_MAX { BRANCH_MAX } else { BRANCH_MAX / 2 };
            let (mut right_firsts, mut right_children) = (firsts.split_off(keep), children.split_off(keep));
            if at < keep && keep < BRANCH_MAX {
                firsts.insert(at + 1, first);
                children.insert(at + 1, Some(sibling));
            } else {
                right_firsts.insert(at + 1 - keep, first);
                right_children.insert(at + 1 - keep, Some(sibling));
            }
            Outcome::Split(right_firsts.items[0], Arc::new(Node::Branch(right_firsts, right_children)))
        }
    }
}

/// Goes from place to place.
#[derive(Clone)]
pub(super) struct Cursor<'t> {
    /// The nodes from the root to a leaf, each with the position in it. Empty at the end.
    path: SmallVec<[(&'t Node, usize); DEPTH_MAX]>,
    direction: Direction,
    /// Where it ends: the upper bound going forward, the lower one in reverse.
    end: Bound<&'t [u8]>,
}

impl<'t> Cursor<'t> {
    /// Goes to the first place in the direction that is not in front of `start`.
    fn seek(&mut self, root: &'t Node, records: &Records, start: Bound<&[u8]>) {
        let is_forward = self.direction == Direction::Forward;
        let mut node = root;
        loop {
            match node {
                Node::Branch(firsts, children) => {
                    let at = match start {
                        Bound::Unbounded if is_forward => 0,
                        Bound::Unbounded => firsts.length - 1,
                        Bound::Included(key) | Bound::Excluded(key) => child_of(records, firsts.slice(), key),
                    };
                    self.path.push((node, at));
                    node = child(children, at);
                }
                Node::Leaf(places) => {
                    // How many places are below the bound.
                    let below = places.slice().partition_point(|place| {
                        let key = records.key(place);
                        match start {
                            Bound::Included(start) if is_forward => key < start,
                            Bound::Excluded(start) if is_forward => key <= start,
                            Bound::Included(start) => key <= start,
                            Bound::Excluded(start) => key < start,
                            Bound::Unbounded => !is_forward,
                        }
                    });
                    if is_forward {
                        self.path.push((node, below));
                        if below == places.length {
                            self.climb();
                        }
                    } else if below > 0 {
                        self.path.push((node, below - 1));
                    } else {
                        self.climb();
                    }
                    return;
                }
            }
        }
    }

    /// The place here; `None` at the end.
    pub(super) fn peek(&mut self, records: &Records) -> Option<Place> {
        let (Node::Leaf(places), at) = *self.path.last()? else { return None };
        let place = places.items[at];
        let key = records.key(&place);
        let is_inside = match (self.end, self.direction) {
            (Bound::Unbounded, _) => true,
            (Bound::Included(end), Direction::Forward) => key <= end,
            (Bound::Excluded(end), Direction::Forward) => key < end,
            (Bound::Included(end), Direction::Reverse) => key >= end,
            (Bound::Excluded(end), Direction::Reverse) => key > end,
        };
        if !is_inside {
            self.path.clear();
            return None;
        }
        Some(place)
    }

    /// Goes on by one.
    pub(super) fn advance(&mut self) {
        let Some((Node::Leaf(places), at)) = self.path.last_mut() else { return };
        match self.direction {
            Direction::Forward if *at + 1 < places.length => *at += 1,
            Direction::Reverse if *at > 0 => *at -= 1,
            _ => self.climb(),
        }
    }

    /// Goes to the next leaf's nearest place: up as far as need be, and down again.
    fn climb(&mut self) {
        if matches!(self.path.last(), Some((Node::Leaf(_), _))) {
            self.path.pop();
        }
        while let Some((Node::Branch(firsts, children), at)) = self.path.last_mut() {
            let next = match self.direction {
                Direction::Forward => (*at + 1 < firsts.length).then_some(*at + 1),
                Direction::Reverse => at.checked_sub(1),
            };
            let Some(next) = next else {
                self.path.pop();
                continue;
            };
            *at = next;
            let mut node = child(children, next);
            loop {
                let last = match node {
                    Node::Leaf(places) => places.length - 1,
                    Node::Branch(firsts, _) => firsts.length - 1,
                };
                let at = if self.direction == Direction::Forward { 0 } else { last };
                self.path.push((node, at));
                match node {
                    Node::Leaf(_) => return,
                    Node::Branch(_, children) => node = child(children, at),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Rows whose keys and values are in records of one row each.
    #[derive(Default)]
    struct Rows {
        tree: Tree,
        model: BTreeMap<Vec<u8>, u32>,
    }

    fn check(rows: &Rows, records: &Records, bounds: &[Vec<u8>]) {
        assert_eq!(rows.tree.rows(), rows.model.len() as u64);
        for (key, number) in &rows.model {
            assert_eq!(rows.tree.get(records, key).map(|place| place.record), Some(*number));
        }
        let mut kinds = vec![Bound::Unbounded];
        kinds.extend(bounds.iter().flat_map(|key| [Bound::Included(&key[..]), Bound::Excluded(&key[..])]));
        for &low in &kinds {
            for &high in &kinds {
                let is_above = |key: &[u8]| match low {
                    Bound::Included(low) => key >= low,
                    Bound::Excluded(low) => key > low,
                    Bound::Unbounded => true,
                };
                let is_below = |key: &[u8]| match high {
                    Bound::Included(high) => key <= high,
                    Bound::Excluded(high) => key < high,
                    Bound::Unbounded => true,
                };
                let inside = rows.model.iter().filter(|(key, _)| is_above(key) && is_below(key));
                let mut expected: Vec<u32> = inside.map(|(_, number)| *number).collect();
                for (direction, start, end) in [(Direction::Forward, low, high), (Direction::Reverse, high, low)] {
                    let mut cursor = rows.tree.range(records, (start, end), direction);
                    let mut found = Vec::new();
                    while let Some(place) = cursor.peek(records) {
                        found.push(place.record);
                        cursor.advance();
                    }
                    assert_eq!(found, expected, "{direction:?} {low:?} {high:?}");
                    expected.reverse();
                }
            }
        }
    }

    #[test]
    fn a_tree_is_an_ordered_map_and_its_clones_keep_their_content() {
        let records = Records::new();
        let mut rows = Rows::default();
        let mut random = 1_u64;
        let mut old = Vec::new();
        for number in 0..9000_u32 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // At random, at the end, in front.
            let key = match number / 1000 % 3 {
                0 => (random >> 40) as u32 % 100_000 + (1 << 20),
                1 => (1 << 24) + number,
                _ => (1 << 20) - number,
            };
            let key = key.to_be_bytes();
            records.set(number, bytes::Bytes::copy_from_slice(&key));
            let place = Place { record: number, offset: 0, value_bytes: 0, key_bytes: 4 };
            let replaced = rows.tree.set(&records, place).map(|place| place.record);
            assert_eq!(replaced, rows.model.insert(key.to_vec(), number));
            if number % 2500 == 100 {
                old.push(Rows { tree: rows.tree.clone(), model: rows.model.clone() });
            }
        }
        let keys: Vec<_> = rows.model.keys().collect();
        let mut bounds = vec![vec![], vec![0xff; 5], keys[0].clone(), keys[keys.len() - 1].clone()];
        for at in (0..keys.len()).step_by(1203) {
            bounds.push(keys[at].clone());
            bounds.push([&keys[at][..], &[0]].concat());
        }
        let few = &bounds[..8];
        check(&rows, &records, &bounds);
        old.iter().for_each(|rows| check(rows, &records, few));
        check(&Rows::default(), &records, few);
    }
}
