//! Tasks that wait for something which happens to all of them at once.

use std::task::Waker;

/// The tasks, each in a place of its own.
#[derive(Default)]
pub struct Wakers {
    places: Vec<Option<Waker>>,
    free: Vec<usize>,
}

impl Wakers {
    /// Waits at this place, or at a new one. To be given back by [`Wakers::leave`].
    pub fn enter(&mut self, place: Option<usize>, waker: &Waker) -> usize {
        let place = place.or_else(|| self.free.pop()).unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        match &mut self.places[place] {
            Some(known) if known.will_wake(waker) => {}
            other => *other = Some(waker.clone()),
        }
        place
    }

    /// Waits no longer. The place may then be another task's.
    pub fn leave(&mut self, place: usize) {
        self.places[place] = None;
        self.free.push(place);
    }

    /// All that wait, to be woken without a lock. They keep their places.
    pub fn take_all(&mut self) -> Vec<Waker> {
        self.places.iter_mut().filter_map(Option::take).collect()
    }
}
