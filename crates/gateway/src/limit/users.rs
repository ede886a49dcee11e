//! The gates of a schema's users.
//!
//! Invariant: a user with a request in flight is never forgotten, so its count is right; of the others a bounded number
//! is remembered. Whose bucket is the fullest is forgotten first, because a forgotten user's bucket is full.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use parking_lot::Mutex;
use smallvec::SmallVec;

use super::gate::Gate;
use crate::limits::{LIMITED_USER_SHARDS, LIMITED_USERS_LOOKED_AT, LIMITED_USERS_MAX};

/// Users of one shard that are remembered.
const USERS_MAX: usize = LIMITED_USERS_MAX / LIMITED_USER_SHARDS;

/// The gates of the users, by name.
#[derive(Debug)]
pub(super) struct Users {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Shard {
    places: HashMap<Arc<str>, usize>,
    entries: Vec<Entry>,
    /// Where the next look for one to forget begins.
    hand: usize,
}

#[derive(Debug)]
struct Entry {
    name: Arc<str>,
    gate: Arc<Gate>,
}

impl Users {
    pub(super) fn new() -> Self {
        let shards = std::iter::repeat_with(Mutex::default).take(LIMITED_USER_SHARDS).collect();
        Self { shards, hasher: RandomState::new() }
    }

    /// The gate of a user. Takes one lock for a moment; allocates only for a new one.
    pub(super) fn gate(&self, name: &str) -> Arc<Gate> {
        let shard = (self.hasher.hash_one(name) % LIMITED_USER_SHARDS as u64) as usize;
        self.shards[shard].lock().gate(name)
    }

    pub(super) fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().entries.len()).sum()
    }
}

impl Shard {
    fn gate(&mut self, name: &str) -> Arc<Gate> {
        if let Some(&place) = self.places.get(name) {
            return self.entries[place].gate.clone();
        }
        let entry = Entry { name: name.into(), gate: Arc::default() };
        let gate = entry.gate.clone();
        match self.forget_one() {
            Some(place) => {
                self.places.insert(entry.name.clone(), place);
                self.entries[place] = entry;
            }
            None => {
                self.places.insert(entry.name.clone(), self.entries.len());
                self.entries.push(entry);
            }
        }
        gate
    }

    /// Forgets somebody if there are many, and tells the place, which is to be filled. If all that are looked at have
    /// requests in flight, nobody is forgotten, and there is one more than there should be; as soon as some have not,
    /// there is one less again.
    fn forget_one(&mut self) -> Option<usize> {
        let count = self.entries.len();
        if count < USERS_MAX {
            return None;
        }
        // Nobody else can take hold of a gate while the shard is locked.
        let idle = |place: &usize| Arc::strong_count(&self.entries[*place].gate) == 1;
        let looked_at = (self.hand..).take(LIMITED_USERS_LOOKED_AT.min(count)).map(|place| place % count);
        let mut idle: SmallVec<[usize; LIMITED_USERS_LOOKED_AT]> = looked_at.filter(idle).collect();
        self.hand = (self.hand + LIMITED_USERS_LOOKED_AT) % count;
        // From the last place on, so that no place moves that is yet to be looked at.
        idle.sort_unstable();
        while self.entries.len() > USERS_MAX && idle.len() > 1 {
            self.remove(idle.pop()?);
        }
        let place = idle.into_iter().min_by_key(|place| self.entries[*place].gate.full_at_ns())?;
        self.places.remove(&self.entries[place].name);
        Some(place)
    }

    fn remove(&mut self, place: usize) {
        let removed = self.entries.swap_remove(place);
        self.places.remove(&removed.name);
        if let Some(moved) = self.entries.get(place) {
            self.places.insert(moved.name.clone(), place);
        }
    }
}
