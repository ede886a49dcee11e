//! A list of changes to a text of bytes.
//!
//! A body is walked once; what is to be changed is noted, and the rest is copied in one go at the end.
//!
//! Invariant: changes don't overlap.

/// One change: at a place, some bytes are taken away and others put there.
#[derive(Debug)]
struct Edit {
    at: usize,
    remove: usize,
    insert: Insert,
}

#[derive(Debug)]
enum Insert {
    Nothing,
    /// The tenant's prefix: by far the most frequent.
    Prefix,
    /// A length of protobuf.
    Varint(u64),
    /// A part of the scratch.
    Scratch {
        start: usize,
        end: usize,
    },
}

/// The changes to one body.
#[derive(Debug)]
pub(super) struct Edits<'n> {
    prefix: &'n [u8],
    list: Vec<Edit>,
    scratch: Vec<u8>,
    unordered: bool,
}

impl<'n> Edits<'n> {
    pub(super) fn new(prefix: &'n str) -> Self {
        Self { prefix: prefix.as_bytes(), list: Vec::new(), scratch: Vec::new(), unordered: false }
    }

    /// How many changes there are: a mark to come back to with [`Self::truncate`].
    pub(super) fn mark(&self) -> usize {
        self.list.len()
    }

    /// Forgets the changes that were noted after a mark.
    pub(super) fn truncate(&mut self, mark: usize) {
        self.list.truncate(mark);
    }

    fn push(&mut self, at: usize, remove: usize, insert: Insert) {
        self.unordered |= self.list.last().is_some_and(|last| last.at > at);
        self.list.push(Edit { at, remove, insert });
    }

    /// Takes bytes away.
    pub(super) fn remove(&mut self, start: usize, end: usize) {
        self.push(start, end - start, Insert::Nothing);
    }

    /// Puts the tenant's prefix somewhere.
    pub(super) fn prefix(&mut self, at: usize) {
        self.push(at, 0, Insert::Prefix);
    }

    /// Puts other bytes in the place of some.
    pub(super) fn replace(&mut self, start: usize, end: usize, bytes: &[u8]) {
        let from = self.scratch.len();
        self.scratch.extend_from_slice(bytes);
        self.push(start, end - start, Insert::Scratch { start: from, end: self.scratch.len() });
    }

    /// Keeps a place in the list for a length that is not known yet.
    pub(super) fn reserve_length(&mut self, at: usize) {
        self.push(at, 0, Insert::Nothing);
    }

    /// Fills a place that was kept at a mark.
    pub(super) fn fill_length(&mut self, mark: usize, end: usize, length: u64) {
        let edit = &mut self.list[mark];
        edit.remove = end - edit.at;
        edit.insert = Insert::Varint(length);
    }

    /// By how much longer the text is for the changes that were noted after a mark.
    pub(super) fn growth_since(&self, mark: usize) -> i64 {
        let growth = |edit: &Edit| self.length_of(&edit.insert) as i64 - edit.remove as i64;
        self.list[mark..].iter().map(growth).sum()
    }

    fn length_of(&self, insert: &Insert) -> usize {
        match insert {
            Insert::Nothing => 0,
            Insert::Prefix => self.prefix.len(),
            Insert::Varint(value) => varint_length(*value),
            Insert::Scratch { start, end } => end - start,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Appends the text with its changes.
    pub(super) fn apply(&mut self, input: &[u8], output: &mut Vec<u8>) {
        if self.unordered {
            // Stable: what is put at one place stays in the order in which it was noted.
            self.list.sort_by_key(|edit| edit.at);
            self.unordered = false;
        }
        output.reserve((input.len() as i64 + self.growth_since(0)).max(0) as usize);
        let mut done = 0;
        for edit in &self.list {
            output.extend_from_slice(&input[done..edit.at]);
            done = edit.at + edit.remove;
            match edit.insert {
                Insert::Nothing => {}
                Insert::Prefix => output.extend_from_slice(self.prefix),
                Insert::Varint(value) => put_varint(value, output),
                Insert::Scratch { start, end } => output.extend_from_slice(&self.scratch[start..end]),
            }
        }
        output.extend_from_slice(&input[done..]);
    }
}

/// Bytes of a number of protobuf.
pub(super) fn varint_length(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Appends a number of protobuf.
pub(super) fn put_varint(mut value: u64, output: &mut Vec<u8>) {
    while value >= 0x80 {
        output.push(value as u8 | 0x80);
        value >>= 7;
    }
    output.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_applied_in_the_order_of_their_places() {
        let mut edits = Edits::new("p-");
        edits.replace(8, 9, b"II");
        edits.prefix(2);
        edits.remove(4, 6);
        let mark = edits.mark();
        edits.reserve_length(6);
        edits.fill_length(mark, 7, 300);
        let mut output = b"> ".to_vec();
        assert_eq!(edits.growth_since(0), 1 + 2 - 2 + 1);
        edits.apply(b"abcdefghi", &mut output);
        assert_eq!(output, b"> abp-cd\xac\x02hII");
    }

    #[test]
    fn a_varint_is_as_long_as_it_says() {
        for value in [0, 1, 127, 128, 16383, 16384, u64::from(u32::MAX), u64::MAX] {
            let mut bytes = Vec::new();
            put_varint(value, &mut bytes);
            assert_eq!(bytes.len(), varint_length(value), "{value}");
        }
    }
}
