//! What a leader does: evaluates requests upon what it knows, has one batch under way, and answers what is confirmed.
//!
//! It follows the committer's loop step by step, and shares with it the rules of what becomes of a batch. Instead of a snapshot it reads
//! rows from a cache, which it fills with single looks: so it relies even more on being the only one who writes in its epoch.
//!
//! Invariant: the cache holds what the confirmed head says of its keys.

use std::collections::VecDeque;
use std::sync::Arc;

use kubewharf_engine::{Batch, CommitError, Head};

use super::engine::{Event, Row, View, grant};
use super::history::{Answer, Request, appended};
use super::network::{Address, Demand, Happening, Input, MS, Outside, Timer};
use super::{Bug, KEYS, OpId};
use crate::committer::{Resolution, Step, next_head};
use crate::limits::RESOLVE_MS_MAX;

/// What a member shows its clients.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Published {
    pub(super) revision: i64,
    pub(super) rows: [Row; KEYS],
}

impl Published {
    pub(super) fn publish(&mut self, event: Event, outside: &mut Outside) {
        outside.history.publish(self.revision, event, &outside.engine);
        self.revision = event.revision;
        self.rows[event.key] = Row { modified: event.revision, value: event.value };
    }
}

/// Why a leader leads no more, other than by being told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Deposed,
    GivenUp,
    Lost,
}

/// A batch and the answers that wait for it.
#[derive(Default)]
struct Content {
    entries: Vec<(OpId, Answer)>,
    rows: [Option<Row>; KEYS],
    events: Vec<Event>,
    grants: Vec<OpId>,
    newest: i64,
    renews: bool,
}

impl Content {
    fn behind(newest: i64) -> Self {
        Self { newest, ..Self::default() }
    }

    fn writes(&self) -> bool {
        self.renews || !self.events.is_empty() || !self.grants.is_empty()
    }

    fn is_empty(&self) -> bool {
        self.entries.is_empty() && !self.renews
    }

    fn to_batch(&self, head: Head) -> Arc<Batch> {
        let grants = self.grants.iter().map(|&id| grant(id));
        let operations = self.events.iter().map(Event::operation).chain(grants).collect();
        Arc::new(Batch { expected: head, next: next_head(head, self.newest), operations, ..Batch::default() })
    }
}

/// A batch under way.
struct InFlight {
    resolution: Resolution,
    attempt: Arc<Batch>,
    content: Content,
    call: u64,
}

/// A batch whose leader was deposed, and the look that may tell what became of it.
pub(super) struct Fate {
    pub(super) call: u64,
    resolution: Resolution,
    entries: Vec<(OpId, Answer)>,
}

impl Fate {
    pub(super) fn settle(self, view: Option<&View>, outside: &mut Outside) {
        let was_applied = view.and_then(View::previous).and_then(|previous| self.resolution.was_applied(previous));
        outside.history.counts.fates += u64::from(was_applied.is_some());
        for (id, answer) in self.entries {
            outside.answer(
                id,
                match was_applied {
                    Some(true) => answer,
                    Some(false) => Answer::NotDone,
                    None => Answer::Unknown,
                },
            );
        }
    }
}

/// A member that leads.
pub(super) struct Leader {
    me: Address,
    head: Head,
    cache: [Option<Row>; KEYS],
    queue: VecDeque<OpId>,
    /// The look that fills the cache for the first in the queue.
    fetch: Option<(u64, usize)>,
    growing: Content,
    in_flight: Option<InFlight>,
    /// Answers that only rest on what was found, and the look that tells whether this member still leads.
    check: Option<(u64, Content)>,
    /// How many of the next requests get a batch of their own.
    alone: usize,
    /// When looks began to fail.
    unread_since: Option<u64>,
    /// Commits confirmed, and how many of them there were at the last renewal.
    commits: (u64, u64),
    /// Whom it hands over to once all is done, 0 for any.
    pub(super) successor: Option<u64>,
}

impl Leader {
    pub(super) fn new(me: Address, head: Head, cache: [Option<Row>; KEYS]) -> Self {
        Self {
            me,
            head,
            cache,
            queue: VecDeque::new(),
            fetch: None,
            growing: Content::behind(head.revision),
            in_flight: None,
            check: None,
            alone: 0,
            unread_since: None,
            commits: (0, 0),
            successor: None,
        }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.head.epoch
    }

    pub(super) fn cache(&self) -> [Option<Row>; KEYS] {
        self.cache
    }

    /// Whether nothing that was accepted is left.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.in_flight.is_none() && self.check.is_none() && self.growing.is_empty()
    }

    pub(super) fn submit(&mut self, id: OpId, outside: &mut Outside) {
        if self.successor.is_some() {
            return outside.answer(id, Answer::NotDone);
        }
        self.queue.push_back(id);
        self.advance(outside);
    }

    /// Commits something if nothing was for a while.
    pub(super) fn renew(&mut self, outside: &mut Outside) {
        if self.commits.0 == self.commits.1 {
            self.growing.renews = true;
            self.advance(outside);
        }
        self.commits.1 = self.commits.0;
    }

    fn advance(&mut self, outside: &mut Outside) {
        loop {
            self.evaluate(outside);
            if self.in_flight.is_some() || self.check.is_some() || self.growing.is_empty() {
                return;
            }
            let newest = self.growing.newest;
            let content = std::mem::replace(&mut self.growing, Content::behind(newest));
            if content.writes() {
                let attempt = content.to_batch(self.head);
                let resolution = Resolution::new(attempt.clone());
                let call = outside.ask(self.me, Demand::Commit(attempt.clone()));
                self.in_flight = Some(InFlight { resolution, attempt, content, call });
            } else if outside.bug == Some(Bug::RefusesWithoutLook) {
                content.entries.into_iter().for_each(|(id, answer)| outside.answer(id, answer));
            } else {
                let call = outside.ask(self.me, Demand::View { after: i64::MAX });
                self.check = Some((call, content));
            }
        }
    }

    /// Evaluates the queue as far as the rows are known.
    fn evaluate(&mut self, outside: &mut Outside) {
        while self.fetch.is_none() {
            let Some(&id) = self.queue.front() else { return };
            if self.alone > 0 && !self.growing.is_empty() {
                return;
            }
            let answer = match outside.history.request(id) {
                Request::Append { key } => match self.row(key) {
                    Some(row) => self.write(id, key, row),
                    None => return self.fetch(key, outside),
                },
                Request::Swap { key, expected } => match self.row(key) {
                    Some(row) if row.modified == expected => self.write(id, key, row),
                    Some(row) => Answer::Found { row },
                    None => return self.fetch(key, outside),
                },
                Request::Grant => {
                    self.growing.grants.push(id);
                    Answer::Granted
                }
                Request::Read { .. } => unreachable!("reads are not queued"),
            };
            self.growing.entries.push((id, answer));
            self.alone = self.alone.saturating_sub(1);
            self.queue.pop_front();
        }
    }

    fn row(&self, key: usize) -> Option<Row> {
        let in_flight = || self.in_flight.as_ref().and_then(|in_flight| in_flight.content.rows[key]);
        self.growing.rows[key].or_else(in_flight).or(self.cache[key])
    }

    fn write(&mut self, id: OpId, key: usize, row: Row) -> Answer {
        let content = &mut self.growing;
        content.newest += 1;
        let revision = content.newest;
        let value = appended(row.value, id);
        content.events.push(Event { revision, id, key, value });
        content.rows[key] = Some(Row { modified: revision, value });
        Answer::Written { revision }
    }

    fn fetch(&mut self, key: usize, outside: &mut Outside) {
        let call = outside.ask(self.me, Demand::View { after: i64::MAX });
        self.fetch = Some((call, key));
    }

    /// Takes what a look shows, if it was this leader's.
    pub(super) fn viewed(&mut self, call: u64, view: Option<&View>, outside: &mut Outside) -> Option<End> {
        let is_deposed = view.is_some_and(|view| view.head.epoch != self.head.epoch);
        if let Some((_, key)) = self.fetch.take_if(|(wanted, _)| *wanted == call) {
            match view {
                _ if is_deposed => return Some(End::Deposed),
                Some(view) => self.cache[key] = Some(view.rows[key]),
                None => return self.read_again(outside),
            }
        } else if let Some((_, content)) = self.check.take_if(|(wanted, _)| *wanted == call) {
            if view.is_some() && !is_deposed {
                content.entries.into_iter().for_each(|(id, answer)| outside.answer(id, answer));
            } else {
                content.entries.iter().rev().for_each(|(id, _)| self.queue.push_front(*id));
                return if is_deposed { Some(End::Deposed) } else { self.read_again(outside) };
            }
        } else {
            return None;
        }
        self.unread_since = None;
        self.advance(outside);
        None
    }

    /// Tries again after a look has failed, unless that goes on for too long. What was evaluated is evaluated again.
    fn read_again(&mut self, outside: &mut Outside) -> Option<End> {
        let since = *self.unread_since.get_or_insert(outside.now);
        if outside.now - since >= RESOLVE_MS_MAX * MS {
            return Some(End::GivenUp);
        }
        self.evaluate_again();
        self.advance(outside);
        None
    }

    /// Takes back what was evaluated and is not under way.
    fn evaluate_again(&mut self) {
        let newest = self.in_flight.as_ref().map_or(self.head.revision, |in_flight| in_flight.content.newest);
        let growing = std::mem::replace(&mut self.growing, Content::behind(newest));
        self.growing.renews = growing.renews;
        growing.entries.iter().rev().for_each(|(id, _)| self.queue.push_front(*id));
    }

    /// Sends the batch under way once more.
    pub(super) fn again(&mut self, call: u64, outside: &mut Outside) {
        if let Some(in_flight) = self.in_flight.as_mut().filter(|in_flight| in_flight.call == call) {
            in_flight.call = outside.ask(self.me, Demand::Commit(in_flight.attempt.clone()));
        }
    }

    /// Takes the result of a commit, if it was this leader's.
    pub(super) fn committed(
        &mut self,
        call: u64,
        result: Result<(), CommitError>,
        published: &mut Published,
        outside: &mut Outside,
    ) -> Option<End> {
        let in_flight = self.in_flight.as_mut().filter(|in_flight| in_flight.call == call)?;
        match step(in_flight, result, outside) {
            Step::Applied(head) => self.confirm(head, published, outside),
            Step::NotApplied(_) => self.refuse(outside),
            Step::Retry { batch, after_ms } => {
                in_flight.attempt = batch;
                let input = Input::Timer(Timer::Again(call));
                outside.schedule(outside.now + after_ms * MS, Happening::Input(self.me, input));
                return None;
            }
            Step::Deposed(_) => return Some(End::Deposed),
            Step::GivenUp(_) => return Some(End::GivenUp),
            Step::Lost(_) => return Some(End::Lost),
            Step::Fatal(_) => unreachable!("no engine here asks for that"),
        }
        self.advance(outside);
        None
    }

    fn confirm(&mut self, head: Head, published: &mut Published, outside: &mut Outside) {
        let Some(InFlight { content, .. }) = self.in_flight.take() else { return };
        self.head = head;
        self.commits.0 += 1;
        for (cached, row) in self.cache.iter_mut().zip(content.rows) {
            // A cache may drop what it likes.
            if row.is_some() {
                *cached = row.filter(|_| !outside.random.chance(50));
            }
        }
        for event in content.events {
            published.publish(event, outside);
        }
        content.entries.into_iter().for_each(|(id, answer)| outside.answer(id, answer));
    }

    /// The engine certainly did not take the batch. If it held several requests, each is tried again by itself.
    fn refuse(&mut self, outside: &mut Outside) {
        let Some(InFlight { content, .. }) = self.in_flight.take() else { return };
        // What was evaluated on top of it is evaluated again.
        self.evaluate_again();
        match content.entries[..] {
            [(id, _)] => outside.answer(id, Answer::NotDone),
            _ => {
                self.alone = content.entries.len();
                content.entries.iter().rev().for_each(|(id, _)| self.queue.push_front(*id));
            }
        }
    }

    /// Ends: answers everybody, or leaves that to what a look tells of the last batch.
    pub(super) fn end(self, end: End, outside: &mut Outside) -> Option<Fate> {
        let not_done =
            self.growing.entries.into_iter().chain(self.check.into_iter().flat_map(|(_, check)| check.entries));
        not_done.map(|(id, _)| id).chain(self.queue).for_each(|id| outside.answer(id, Answer::NotDone));
        let InFlight { resolution, content, .. } = self.in_flight?;
        if end == End::Deposed {
            let call = outside.ask(self.me, Demand::View { after: i64::MAX });
            return Some(Fate { call, resolution, entries: content.entries });
        }
        content.entries.into_iter().for_each(|(id, _)| outside.answer(id, Answer::Unknown));
        None
    }
}

/// The committer's own rule, or a broken one.
fn step(in_flight: &mut InFlight, result: Result<(), CommitError>, outside: &mut Outside) -> Step {
    match (&result, outside.bug) {
        (Err(CommitError::Unknown(cause)), Some(Bug::OldHeadIsNotApplied))
            if outside.engine.head() == in_flight.attempt.expected =>
        {
            return Step::NotApplied(cause.clone());
        }
        (Err(CommitError::Fenced(head)), Some(Bug::SeenIsApplied)) if *head == in_flight.attempt.next => {
            return Step::Applied(*head);
        }
        (Err(CommitError::Fenced(head)), _) if *head == in_flight.attempt.next => outside.history.counts.seen += 1,
        _ => {}
    }
    in_flight.resolution.step(result)
}
