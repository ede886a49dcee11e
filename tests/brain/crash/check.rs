//! Says whether a store kept its promises, from what its clients did and saw. It knows nothing of the store.
//!
//! The first watcher saw all keys from the beginning, so it tells the order of all transactions; everything else is held
//! against that order. The promises:
//!
//! 1. Revisions are dense: each one has exactly one transaction.
//! 2. An acknowledged write is there, whole, at the revision it was told, and its condition held there.
//! 3. A write without an answer is there once, whole, or not at all. Nothing is there that nobody wrote.
//! 4. A refused write is not there, and its condition did not hold.
//! 5. What began after another write was acknowledged comes after it; a read shows the state at the revision it names,
//!    and that is no older than what was acknowledged before the read began.
//! 6. Every watcher got each transaction of its keys exactly once, in order, whole, with the right versions.
//! 7. A lease ends after its time, not before, and takes all its keys at one revision.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use super::history::{Attempt, Change, Changes, History, Lease, Outcome, Transaction, Version};

/// The revision of an empty store.
const EMPTY: i64 = 1;
/// How many broken promises are told.
const TOLD_MAX: usize = 20;

/// The keys at some revision.
pub(crate) type State = BTreeMap<String, Version>;

/// What holds about the history as a whole.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// What is broken, in words.
    pub(crate) broken: Vec<String>,
    /// The keys at the end.
    pub(crate) state: State,
    /// How many writes without an answer turned out to be there, and how many not.
    pub(crate) unknown_applied: usize,
    pub(crate) unknown_absent: usize,
    pub(crate) leases_ended: usize,
}

impl Verdict {
    /// # Panics
    /// When a promise was broken.
    pub(crate) fn assert_kept(&self) {
        let told: Vec<&str> = self.broken.iter().take(TOLD_MAX).map(String::as_str).collect();
        assert!(told.is_empty(), "{} promises broken:\n{}", self.broken.len(), told.join("\n"));
    }

    fn broken(&mut self, text: String) {
        self.broken.push(text);
    }
}

/// Holds a history against the promises. Reads at old revisions and the state at the end are for the caller to compare:
/// `each` is shown the state behind every revision.
pub(crate) fn check(history: &History, mut each: impl FnMut(i64, &State)) -> Verdict {
    let mut verdict = Verdict::default();
    let Some(order) = history.watched.first() else {
        verdict.broken("nobody watched".to_owned());
        return verdict;
    };
    let mut claims = Claims::new(history, &mut verdict);
    let mut reads: HashMap<i64, Vec<usize>> = HashMap::new();
    for (index, read) in history.reads.iter().enumerate() {
        reads.entry(read.revision).or_default().push(index);
    }
    let mut state = State::new();
    let mut previous = EMPTY;
    check_reads(history, reads.remove(&EMPTY), &state, &mut verdict);
    for transaction in &order.transactions {
        if transaction.revision != previous + 1 {
            verdict.broken(format!("revision {} comes after {previous}", transaction.revision));
        }
        previous = transaction.revision;
        claims.claim(transaction, &state, &mut verdict);
        apply(transaction, &mut state, &mut verdict);
        claims.check_refused(transaction.revision, &state, &mut verdict);
        check_reads(history, reads.remove(&transaction.revision), &state, &mut verdict);
        each(transaction.revision, &state);
    }
    for revision in reads.into_keys() {
        verdict.broken(format!("a read names revision {revision}, of which no watcher knows"));
    }
    claims.finish(&mut verdict);
    check_real_time(history, &mut verdict);
    for (number, watched) in history.watched.iter().enumerate().skip(1) {
        let expected = order.transactions.iter().filter_map(|transaction| {
            let of_prefix = transaction.changes.iter().filter(|(key, _)| key.starts_with(&watched.prefix));
            let changes: BTreeMap<_, _> = of_prefix.map(|(key, version)| (key.clone(), version.clone())).collect();
            (!changes.is_empty()).then_some((transaction.revision, changes))
        });
        let got = watched.transactions.iter().map(|transaction| (transaction.revision, transaction.changes.clone()));
        check_same_events(number, expected, got, &mut verdict);
    }
    verdict.state = state;
    verdict
}

/// Which transaction is whose.
struct Claims<'a> {
    history: &'a History,
    acknowledged: HashMap<i64, &'a Attempt>,
    /// Those without an answer, by the first value that they put; values are never used twice.
    by_value: HashMap<&'a [u8], &'a Attempt>,
    /// Those without an answer that only delete, by their condition.
    by_condition: HashMap<&'a (String, i64), &'a Attempt>,
    refused: HashMap<i64, Vec<&'a Attempt>>,
    unknown: usize,
}

impl<'a> Claims<'a> {
    fn new(history: &'a History, verdict: &mut Verdict) -> Self {
        let mut claims = Self {
            history,
            acknowledged: HashMap::new(),
            by_value: HashMap::new(),
            by_condition: HashMap::new(),
            refused: HashMap::new(),
            unknown: 0,
        };
        for attempt in &history.attempts {
            match attempt.outcome {
                Outcome::Applied { revision } => {
                    if let Some(other) = claims.acknowledged.insert(revision, attempt) {
                        verdict.broken(format!("{} and {} were both told {revision}", other.name, attempt.name));
                    }
                }
                Outcome::Refused { revision } => claims.refused.entry(revision).or_default().push(attempt),
                Outcome::Unknown => {
                    claims.unknown += 1;
                    match (first_value(&attempt.changes), &attempt.condition) {
                        (Some(value), _) => drop(claims.by_value.insert(value, attempt)),
                        // Tried twice, it still happens once: then the key is another.
                        (None, Some(condition)) => drop(claims.by_condition.insert(condition, attempt)),
                        (None, None) => verdict.broken(format!("{} can't be told apart from others", attempt.name)),
                    }
                }
            }
        }
        claims
    }

    fn claim(&mut self, transaction: &Transaction, before: &State, verdict: &mut Verdict) {
        let revision = transaction.revision;
        if let Some(attempt) = self.acknowledged.remove(&revision) {
            return check_whole(attempt, transaction, before, verdict);
        }
        let value = transaction.changes.values().flatten().map(|version| version.value.as_slice()).next();
        let attempt = match value {
            Some(value) => self.by_value.remove(value).or_else(|| {
                let values = transaction.changes.values().flatten().map(|version| version.value.as_slice());
                values.skip(1).find_map(|value| self.by_value.remove(value))
            }),
            None => transaction.changes.keys().find_map(|key| {
                let condition = (key.clone(), before.get(key).map_or(0, |version| version.mod_revision));
                self.by_condition.remove(&condition)
            }),
        };
        if let Some(attempt) = attempt {
            verdict.unknown_applied += 1;
            return check_whole(attempt, transaction, before, verdict);
        }
        match ended_lease(self.history, transaction, before) {
            Some(lease) => {
                verdict.leases_ended += 1;
                check_ended(lease, transaction, before, verdict);
            }
            None => {
                verdict.broken(format!("nobody wrote what is at revision {revision}: {:?}", transaction.changes.keys()))
            }
        }
    }

    fn check_refused(&mut self, revision: i64, state: &State, verdict: &mut Verdict) {
        for attempt in self.refused.remove(&revision).unwrap_or_default() {
            if holds(attempt, state) {
                verdict.broken(format!("{} was refused at {revision}, where its condition holds", attempt.name));
            }
        }
    }

    fn finish(self, verdict: &mut Verdict) {
        for (revision, attempt) in self.acknowledged {
            verdict.broken(format!("{} was acknowledged at {revision}, and is not there", attempt.name));
        }
        for (revision, attempts) in self.refused {
            // Before the first transaction everything is absent.
            for attempt in attempts.iter().filter(|attempt| revision != EMPTY || holds(attempt, &State::new())) {
                verdict.broken(format!("{} was refused at {revision}, of which no watcher knows", attempt.name));
            }
        }
        verdict.unknown_absent = self.unknown - verdict.unknown_applied;
    }
}

fn first_value(changes: &Changes) -> Option<&[u8]> {
    changes.values().find_map(|change| match change {
        Change::Put { value, .. } => Some(value.as_slice()),
        Change::Delete => None,
    })
}

fn holds(attempt: &Attempt, state: &State) -> bool {
    let Some((key, revision)) = &attempt.condition else { return true };
    state.get(key).map_or(0, |version| version.mod_revision) == *revision
}

/// Everything that the attempt meant to do, and nothing else, is in the transaction.
fn check_whole(attempt: &Attempt, transaction: &Transaction, before: &State, verdict: &mut Verdict) {
    let revision = transaction.revision;
    // Deleting what is not there is no event.
    let meant = attempt.changes.iter().filter(|(key, change)| **change != Change::Delete || before.contains_key(*key));
    let meant: Changes = meant.map(|(key, change)| (key.clone(), change.clone())).collect();
    let found = transaction.changes.iter().map(|(key, version)| {
        let change = version
            .as_ref()
            .map_or(Change::Delete, |version| Change::Put { value: version.value.clone(), lease: version.lease });
        (key.clone(), change)
    });
    if meant != found.collect() {
        verdict.broken(format!("{} is not whole at revision {revision}", attempt.name));
    }
    if !holds(attempt, before) {
        verdict.broken(format!("{} was applied at {revision}, where its condition does not hold", attempt.name));
    }
}

/// Makes the transaction's changes, and checks the numbers that it gives its keys.
fn apply(transaction: &Transaction, state: &mut State, verdict: &mut Verdict) {
    for (key, version) in &transaction.changes {
        let before = state.remove(key);
        let Some(version) = version else {
            if before.is_none() {
                verdict.broken(format!("{key} was deleted at {}, and was not there", transaction.revision));
            }
            continue;
        };
        let (create_revision, count) =
            before.map_or((transaction.revision, 1), |before| (before.create_revision, before.version + 1));
        let right = version.mod_revision == transaction.revision
            && version.create_revision == create_revision
            && version.version == count;
        if !right {
            verdict.broken(format!("{key} has wrong numbers at revision {}: {version:?}", transaction.revision));
        }
        state.insert(key.clone(), version.clone());
    }
}

fn check_reads(history: &History, reads: Option<Vec<usize>>, state: &State, verdict: &mut Verdict) {
    for read in reads.unwrap_or_default().into_iter().map(|index| &history.reads[index]) {
        if state.get(&read.key) != read.found.as_ref() {
            let (key, revision) = (&read.key, read.revision);
            verdict.broken(format!("a read of {key} at {revision} shows {:?}, not {:?}", read.found, state.get(key)));
        }
    }
}

/// The lease whose end the transaction can be: it deletes all keys of that lease and nothing else.
fn ended_lease<'a>(history: &'a History, transaction: &Transaction, before: &State) -> Option<&'a Lease> {
    let first = transaction.changes.keys().next()?;
    let id = before.get(first)?.lease;
    let attached = before.iter().filter(|(_, version)| version.lease == id).map(|(key, _)| key);
    let deleted = transaction.changes.iter().filter(|(_, version)| version.is_none()).map(|(key, _)| key);
    let all = attached.collect::<BTreeSet<_>>() == deleted.collect::<BTreeSet<_>>();
    let only = transaction.changes.values().all(Option::is_none);
    if !(all && only && id != 0) {
        return None;
    }
    history.leases.iter().find(|lease| lease.id == id)
}

fn check_ended(lease: &Lease, transaction: &Transaction, _before: &State, verdict: &mut Verdict) {
    let answered = lease.renewals.iter().filter(|(_, answered)| *answered < transaction.arrived);
    let last = answered.map(|(asked, _)| *asked).chain([lease.asked]).max().unwrap_or(lease.asked);
    let lived = transaction.arrived.saturating_duration_since(last);
    if lived < Duration::from_secs(lease.ttl_seconds) {
        let (id, ttl, revision) = (lease.id, lease.ttl_seconds, transaction.revision);
        verdict.broken(format!("lease {id} of {ttl} s ended after {lived:?}, at revision {revision}"));
    }
}

/// What began after something was acknowledged comes after it.
fn check_real_time(history: &History, verdict: &mut Verdict) {
    let mut acknowledged: Vec<(Instant, i64, &str)> = Vec::new();
    let mut begun: Vec<(Instant, i64, String, bool)> = Vec::new();
    for attempt in &history.attempts {
        match attempt.outcome {
            Outcome::Applied { revision } => {
                acknowledged.push((attempt.ended, revision, &attempt.name));
                begun.push((attempt.began, revision, attempt.name.clone(), true));
            }
            Outcome::Refused { revision } => begun.push((attempt.began, revision, attempt.name.clone(), false)),
            Outcome::Unknown => {}
        }
    }
    for read in &history.reads {
        // A later read may not go back behind what an earlier one saw, either.
        acknowledged.push((read.ended, read.revision, "a read"));
        begun.push((read.began, read.revision, format!("a read of {}", read.key), false));
    }
    acknowledged.sort_unstable();
    begun.sort_unstable();
    let mut acknowledged = acknowledged.into_iter().peekable();
    let mut newest = (0, "nothing");
    for (began, revision, name, writes) in begun {
        while let Some((_, revision, name)) = acknowledged.next_if(|(ended, ..)| *ended < began) {
            newest = newest.max((revision, name));
        }
        if revision < newest.0 || (writes && revision == newest.0) {
            let (before, other) = newest;
            verdict.broken(format!("{name} is at {revision}, and began after {other} was told {before}"));
        }
    }
}

type Events = (i64, BTreeMap<String, Option<Version>>);

fn check_same_events(
    number: usize,
    mut expected: impl Iterator<Item = Events>,
    got: impl Iterator<Item = Events>,
    verdict: &mut Verdict,
) {
    let mut seen = HashSet::new();
    for (revision, changes) in got {
        if !seen.insert(revision) {
            return verdict.broken(format!("watcher {number} got revision {revision} twice, or in two parts"));
        }
        match expected.next() {
            Some((right, _)) if right != revision => {
                return verdict.broken(format!("watcher {number} got revision {revision} instead of {right}"));
            }
            Some((_, right)) if right != changes => {
                return verdict.broken(format!("watcher {number} got other events at revision {revision}"));
            }
            Some(_) => {}
            None => return verdict.broken(format!("watcher {number} got revision {revision}, of which no one knows")),
        }
    }
    if let Some((revision, _)) = expected.next() {
        verdict.broken(format!("watcher {number} never got revision {revision}"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::history::{Read, Watched};
    use super::*;

    fn version(value: &str, create_revision: i64, mod_revision: i64, version: i64) -> Option<Version> {
        Some(Version { value: value.into(), lease: 0, create_revision, mod_revision, version })
    }

    fn put(value: &str) -> Change {
        Change::Put { value: value.into(), lease: 0 }
    }

    /// Two writes, the second of two keys and without an answer; a refused one; a deletion; two watchers; a read.
    fn kept() -> History {
        let start = Instant::now();
        let at = |second: u64| start + Duration::from_secs(second);
        let attempt =
            |name: &str, second, condition: Option<(&str, i64)>, changes: &[(&str, Change)], outcome| Attempt {
                name: name.to_owned(),
                began: at(second),
                ended: at(second) + Duration::from_millis(500),
                condition: condition.map(|(key, revision)| (key.to_owned(), revision)),
                changes: changes.iter().map(|(key, change)| ((*key).to_owned(), change.clone())).collect(),
                outcome,
            };
        let transaction = |revision, changes: &[(&str, Option<Version>)]| Transaction {
            revision,
            arrived: at(30),
            changes: changes.iter().map(|(key, version)| ((*key).to_owned(), version.clone())).collect(),
        };
        let leased = Version { lease: 5, ..version("l", 5, 5, 1).unwrap() };
        let transactions = vec![
            transaction(2, &[("a", version("1", 2, 2, 1))]),
            transaction(3, &[("a", version("2", 2, 3, 2)), ("b", version("2b", 3, 3, 1))]),
            transaction(4, &[("a", None)]),
            transaction(5, &[("short", Some(leased))]),
            transaction(6, &[("short", None)]),
        ];
        let of_b = vec![transaction(3, &[("b", version("2b", 3, 3, 1))])];
        let lease_put = Change::Put { value: "l".into(), lease: 5 };
        History {
            attempts: vec![
                attempt("one", 1, Some(("a", 0)), &[("a", put("1"))], Outcome::Applied { revision: 2 }),
                attempt("two", 2, None, &[("a", put("2")), ("b", put("2b"))], Outcome::Unknown),
                attempt("refused", 3, Some(("a", 2)), &[("a", put("3"))], Outcome::Refused { revision: 3 }),
                attempt("delete", 4, Some(("a", 3)), &[("a", Change::Delete)], Outcome::Applied { revision: 4 }),
                attempt("absent", 4, None, &[("c", put("never"))], Outcome::Unknown),
                attempt("leased", 5, None, &[("short", lease_put)], Outcome::Applied { revision: 5 }),
            ],
            reads: vec![Read {
                began: at(6),
                ended: at(7),
                key: "b".to_owned(),
                revision: 5,
                found: version("2b", 3, 3, 1),
            }],
            watched: vec![
                Watched { prefix: String::new(), transactions },
                Watched { prefix: "b".to_owned(), transactions: of_b },
            ],
            leases: vec![Lease { id: 5, ttl_seconds: 3, asked: at(4), granted: true, renewals: Vec::new() }],
        }
    }

    fn broken(change: impl FnOnce(&mut History)) -> String {
        let mut history = kept();
        change(&mut history);
        check(&history, |_, _| {}).broken.join("; ")
    }

    #[test]
    fn kept_promises_are_found_kept() {
        let verdict = check(&kept(), |_, _| {});
        verdict.assert_kept();
        assert_eq!((verdict.unknown_applied, verdict.unknown_absent, verdict.leases_ended), (1, 1, 1));
        assert_eq!(verdict.state.keys().collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn a_lost_acknowledged_write_is_found() {
        let text = broken(|history| {
            history.watched[0].transactions.remove(4);
            history.watched[0].transactions.remove(3);
            history.reads.clear();
        });
        assert!(text.contains("leased was acknowledged at 5, and is not there"), "{text}");
    }

    #[test]
    fn a_gap_is_found() {
        let text = broken(|history| drop(history.watched[0].transactions.remove(1)));
        assert!(text.contains("revision 4 comes after 2"), "{text}");
    }

    #[test]
    fn a_revision_given_twice_is_found() {
        let text = broken(|history| history.attempts[3].outcome = Outcome::Applied { revision: 2 });
        assert!(text.contains("one and delete were both told 2"), "{text}");
    }

    #[test]
    fn half_a_transaction_is_found() {
        let text = broken(|history| drop(history.watched[0].transactions[1].changes.remove("b")));
        assert!(text.contains("two is not whole at revision 3"), "{text}");
    }

    #[test]
    fn what_nobody_wrote_is_found() {
        let text = broken(|history| drop(history.attempts.remove(1)));
        assert!(text.contains("nobody wrote what is at revision 3"), "{text}");
    }

    #[test]
    fn a_write_that_was_refused_without_reason_is_found() {
        let text = broken(|history| history.attempts[2].condition = Some(("a".to_owned(), 3)));
        assert!(text.contains("refused was refused at 3, where its condition holds"), "{text}");
    }

    #[test]
    fn a_condition_that_did_not_hold_is_found() {
        let text = broken(|history| history.attempts[3].condition = Some(("a".to_owned(), 2)));
        assert!(text.contains("delete was applied at 4, where its condition does not hold"), "{text}");
    }

    #[test]
    fn a_revision_that_goes_back_in_time_is_found() {
        let text = broken(|history| {
            let early = history.attempts[0].began.checked_sub(Duration::from_secs(1)).unwrap();
            history.attempts[5].ended = early;
            history.attempts[5].began = early;
        });
        assert!(text.contains("one is at 2, and began after leased was told 5"), "{text}");
    }

    #[test]
    fn a_stale_read_is_found() {
        let text = broken(|history| {
            history.reads[0].revision = 2;
            history.reads[0].found = None;
        });
        assert!(text.contains("a read of b is at 2, and began after leased was told 5"), "{text}");
    }

    #[test]
    fn a_wrong_read_is_found() {
        let text = broken(|history| history.reads[0].found = None);
        assert!(text.contains("a read of b at 5 shows None"), "{text}");
    }

    #[test]
    fn a_watcher_that_missed_something_or_got_it_twice_is_found() {
        let text = broken(|history| history.watched[1].transactions.clear());
        assert!(text.contains("watcher 1 never got revision 3"), "{text}");
        let text = broken(|history| {
            let again = history.watched[1].transactions[0].clone();
            history.watched[1].transactions.push(again);
        });
        assert!(text.contains("watcher 1 got revision 3 twice"), "{text}");
    }

    #[test]
    fn a_lease_that_ended_early_is_found() {
        let text = broken(|history| {
            let asked = history.leases[0].asked;
            history.watched[0].transactions[4].arrived = asked + Duration::from_secs(2);
        });
        assert!(text.contains("lease 5 of 3 s ended after 2s"), "{text}");
        let text = broken(|history| {
            let asked = history.watched[0].transactions[4].arrived.checked_sub(Duration::from_secs(1)).unwrap();
            history.leases[0].renewals.push((asked, asked));
        });
        assert!(text.contains("lease 5 of 3 s ended after 1s"), "{text}");
    }

    #[test]
    fn a_wrong_version_is_found() {
        let text = broken(|history| {
            history.watched[0].transactions[1].changes.get_mut("a").unwrap().as_mut().unwrap().version = 7
        });
        assert!(text.contains("a has wrong numbers at revision 3"), "{text}");
    }
}
