//! Memory of records, used again.
//!
//! A delta that has been merged gives back tens of megabytes at once, and the next one takes as much: from the system, that is a page fault
//! and a page of zeros for every four kilobytes. So the chunks that records are written to are kept, and used again as soon as
//! nobody has a part of them any more.

use std::collections::VecDeque;

use bytes::BytesMut;

/// Bytes of a chunk; larger records get one of their own.
const CHUNK_BYTES: usize = 1 << 20;

/// Chunks that are kept: two deltas' worth and some. A reader that stays for long holds its own chunks, and those behind it are not kept for
/// its sake.
const CHUNKS_MAX: usize = 80;

/// The chunks, in the order in which they were filled. The last one is being filled.
#[derive(Default)]
pub(in crate::lmdb) struct Arena {
    chunks: VecDeque<BytesMut>,
}

impl Arena {
    /// An empty buffer with room for so many bytes. What is split off it stays for as long as somebody has it.
    pub(super) fn room(&mut self, bytes: usize) -> &mut BytesMut {
        let has_room = self.chunks.back().is_some_and(|chunk| chunk.capacity() >= bytes);
        if !has_room {
            // The oldest one is the first to be free.
            let free = self.chunks.pop_front_if(|chunk| chunk.try_reclaim(CHUNK_BYTES));
            let chunk = match free.filter(|chunk| chunk.capacity() >= bytes) {
                Some(chunk) => chunk,
                None => BytesMut::with_capacity(bytes.max(CHUNK_BYTES)),
            };
            self.chunks.push_back(chunk);
            if self.chunks.len() > CHUNKS_MAX {
                // Freed by the last who has a part of it.
                self.chunks.pop_front();
            }
        }
        let chunk = self.chunks.back_mut().expect("one was put there");
        // Of a batch that was not written.
        chunk.clear();
        chunk
    }

    /// Gives the memory back that is not in use. For a store that is at rest.
    pub(in crate::lmdb) fn release(&mut self) {
        self.chunks.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_that_nobody_uses_are_used_again() {
        let mut arena = Arena::default();
        let fill = |arena: &mut Arena, records: usize| -> Vec<_> {
            let record = |arena: &mut Arena| {
                let room = arena.room(300 << 10);
                room.resize(300 << 10, 1);
                room.split().freeze()
            };
            (0..records).map(|_| record(arena)).collect()
        };
        let first = fill(&mut arena, 9);
        assert_eq!(arena.chunks.len(), 3);
        let address = first[0].as_ptr();
        // In use: two further chunks.
        let second = fill(&mut arena, 6);
        assert_eq!(arena.chunks.len(), 5);
        drop(first);
        let third = fill(&mut arena, 3);
        assert_eq!((arena.chunks.len(), third[0].as_ptr()), (5, address));
        assert!(second.iter().chain(&third).all(|record| record.iter().all(|byte| *byte == 1)));
        // A large one has a chunk to itself.
        assert!(arena.room(3 << 20).capacity() >= 3 << 20);
        arena.release();
        assert_eq!(arena.chunks.len(), 0);
    }
}
