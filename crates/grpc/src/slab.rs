//! Numbered places for a connection's calls.
//!
//! Invariant: an id is never valid again once its call was removed, so a late reply can't reach another call.

/// The place of a call, valid until the call is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotId {
    index: u32,
    generation: u32,
}

struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

pub(crate) struct Slab<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub(crate) fn new() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// The id that the next `insert` will give.
    pub(crate) fn next_id(&self) -> SlotId {
        match self.free.last() {
            Some(&index) => SlotId { index, generation: self.entries[index as usize].generation },
            None => SlotId { index: self.entries.len() as u32, generation: 0 },
        }
    }

    pub(crate) fn insert(&mut self, value: T) -> SlotId {
        let id = self.next_id();
        match self.free.pop() {
            Some(index) => self.entries[index as usize].value = Some(value),
            None => self.entries.push(Entry { generation: 0, value: Some(value) }),
        }
        id
    }

    pub(crate) fn get_mut(&mut self, id: SlotId) -> Option<&mut T> {
        let entry = self.entries.get_mut(id.index as usize)?;
        if entry.generation == id.generation { entry.value.as_mut() } else { None }
    }

    pub(crate) fn remove(&mut self, id: SlotId) -> Option<T> {
        let entry = self.entries.get_mut(id.index as usize)?;
        if entry.generation != id.generation {
            return None;
        }
        let value = entry.value.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(id.index);
        Some(value)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (SlotId, &mut T)> {
        self.entries.iter_mut().enumerate().filter_map(|(index, entry)| {
            let id = SlotId { index: index as u32, generation: entry.generation };
            entry.value.as_mut().map(|value| (id, value))
        })
    }

    pub(crate) fn drain(&mut self) -> impl Iterator<Item = T> {
        self.free.clear();
        self.entries.drain(..).filter_map(|entry| entry.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_id_stays_invalid_when_its_place_is_used_again() {
        let mut slab = Slab::new();
        let first = slab.insert("a");
        assert_eq!(slab.remove(first), Some("a"));
        assert_eq!(slab.next_id(), slab.insert("b"));
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.len(), 1);
        assert_eq!(slab.iter_mut().map(|(_, value)| *value).collect::<Vec<_>>(), ["b"]);
    }
}
