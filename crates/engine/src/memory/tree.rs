//! A persistent ordered map: clones share everything and never see each other's changes.
//!
//! A treap (a search tree by key, a heap by a priority drawn from the key) whose nodes are shared and copied when changed while
//! shared, so that a clone costs one reference count and a change the nodes on one path.
//!
//! Invariant: the shape depends on the set of keys only; the expected depth is about 1.4 log2 of their number, times two.

use std::cmp::Ordering;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;

use crate::{Direction, Visitor};

type Link = Option<Arc<Node>>;

#[derive(Clone)]
struct Node {
    key: Bytes,
    value: Bytes,
    priority: u64,
    left: Link,
    right: Link,
}

/// Rows by key.
#[derive(Clone, Default)]
pub(super) struct Tree {
    root: Link,
    rows: u64,
    payload_bytes: u64,
}

impl Tree {
    /// Rows in the tree.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// Bytes of all keys and values.
    pub(super) fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&Bytes> {
        let mut link = &self.root;
        while let Some(node) = link {
            link = match key.cmp(&node.key[..]) {
                Ordering::Equal => return Some(&node.value),
                Ordering::Less => &node.left,
                Ordering::Greater => &node.right,
            };
        }
        None
    }

    pub(super) fn put(&mut self, key: Bytes, value: Bytes) {
        let (key_bytes, value_bytes) = (key.len() as u64, value.len() as u64);
        match insert(&mut self.root, key, value) {
            Some(old) => self.payload_bytes = self.payload_bytes + value_bytes - old.len() as u64,
            None => {
                self.rows += 1;
                self.payload_bytes += key_bytes + value_bytes;
            }
        }
    }

    pub(super) fn delete(&mut self, key: &[u8]) {
        // Looked up first: a missing key copies no nodes.
        if self.get(key).is_some()
            && let Some(old) = remove(&mut self.root, key)
        {
            self.rows -= 1;
            self.payload_bytes -= (key.len() + old.len()) as u64;
        }
    }

    pub(super) fn scan(&self, range: (Bound<&[u8]>, Bound<&[u8]>), direction: Direction, visit: &mut Visitor<'_>) {
        // Breaking is the visitor's right, not an outcome.
        let _ = walk(&self.root, range, direction, visit);
    }
}

fn priority(key: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

fn insert(link: &mut Link, key: Bytes, value: Bytes) -> Option<Bytes> {
    let Some(shared) = link else {
        let priority = priority(&key);
        *link = Some(Arc::new(Node { key, value, priority, left: None, right: None }));
        return None;
    };
    let node = Arc::make_mut(shared);
    match key.cmp(&node.key) {
        Ordering::Equal => Some(std::mem::replace(&mut node.value, value)),
        Ordering::Less => {
            let old = insert(&mut node.left, key, value);
            if node.left.as_ref().is_some_and(|left| left.priority > node.priority) {
                let mut left = node.left.take().expect("just inserted into");
                let raised = Arc::make_mut(&mut left);
                node.left = raised.right.take();
                raised.right = link.take();
                *link = Some(left);
            }
            old
        }
        Ordering::Greater => {
            let old = insert(&mut node.right, key, value);
            if node.right.as_ref().is_some_and(|right| right.priority > node.priority) {
                let mut right = node.right.take().expect("just inserted into");
                let raised = Arc::make_mut(&mut right);
                node.right = raised.left.take();
                raised.left = link.take();
                *link = Some(right);
            }
            old
        }
    }
}

fn remove(link: &mut Link, key: &[u8]) -> Option<Bytes> {
    let shared = link.as_mut()?;
    match key.cmp(&shared.key[..]) {
        Ordering::Equal => {
            let node = Arc::make_mut(shared);
            let (left, right) = (node.left.take(), node.right.take());
            let old = std::mem::take(&mut node.value);
            *link = merge(left, right);
            Some(old)
        }
        Ordering::Less => remove(&mut Arc::make_mut(shared).left, key),
        Ordering::Greater => remove(&mut Arc::make_mut(shared).right, key),
    }
}

/// Joins two trees, every key of the left one being less than every key of the right one.
fn merge(left: Link, right: Link) -> Link {
    match (left, right) {
        (None, other) | (other, None) => other,
        (Some(mut left), Some(mut right)) => {
            if left.priority > right.priority {
                let node = Arc::make_mut(&mut left);
                node.right = merge(node.right.take(), Some(right));
                Some(left)
            } else {
                let node = Arc::make_mut(&mut right);
                node.left = merge(Some(left), node.left.take());
                Some(right)
            }
        }
    }
}

fn walk(
    link: &Link,
    range: (Bound<&[u8]>, Bound<&[u8]>),
    direction: Direction,
    visit: &mut Visitor<'_>,
) -> ControlFlow<()> {
    let Some(node) = link else {
        return ControlFlow::Continue(());
    };
    let key = &node.key[..];
    let (start, end) = range;
    let is_behind_start = match start {
        Bound::Included(start) => key >= start,
        Bound::Excluded(start) => key > start,
        Bound::Unbounded => true,
    };
    let is_before_end = match end {
        Bound::Included(end) => key <= end,
        Bound::Excluded(end) => key < end,
        Bound::Unbounded => true,
    };
    let (first, is_first_open, second, is_second_open) = match direction {
        Direction::Forward => (&node.left, is_behind_start, &node.right, is_before_end),
        Direction::Reverse => (&node.right, is_before_end, &node.left, is_behind_start),
    };
    if is_first_open {
        walk(first, range, direction, visit)?;
    }
    if is_behind_start && is_before_end {
        visit(key, &node.value)?;
    }
    if is_second_open {
        walk(second, range, direction, visit)?;
    }
    ControlFlow::Continue(())
}
