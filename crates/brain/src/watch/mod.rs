//! TEMPORARY stand-in so that the crate compiles; the watch helper replaces it.
use crate::mvcc::{Change, ChangeSink, Position};
#[derive(Default)]
#[allow(missing_docs)]
pub struct EventsBuilder { n: Vec<i64>, s: usize }
#[allow(missing_docs)]
pub struct EventBatch(pub Vec<i64>);
#[allow(missing_docs)]
impl EventsBuilder {
    pub fn savepoint(&mut self) { self.s = self.n.len(); }
    pub fn rollback(&mut self) { self.n.truncate(self.s); }
    pub fn finish(self) -> Option<EventBatch> { (!self.n.is_empty()).then_some(EventBatch(self.n)) }
}
impl ChangeSink for EventsBuilder { fn change(&mut self, p: Position, _: &Change<'_>) { self.n.push(p.revision); } }
#[allow(missing_docs)]
pub struct Hub(());
#[allow(missing_docs)]
impl Hub { pub fn new(_: i64, _: usize) -> Self { Hub(()) } pub fn append(&self, _: EventBatch) {} pub fn wake(&self) {} }
