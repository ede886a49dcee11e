//! Whatever happens, each watch gets exactly the history of its range: nothing twice, nothing left out, in order,
//! transactions whole.

use std::collections::{BTreeMap, HashMap};

use kubewharf_etcd_api::mvccpb::{Event, KeyValue};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::limits::WATCH_PAGES_BYTES_MAX;
use crate::mvcc::KeyRange;

const KEYS: [&str; 6] = ["a", "aa", "ab", "b", "ba", "c"];
const BOUNDS: [&str; 6] = ["", "\0", "ab", "b", "bz", "d"];
const CLIENTS: usize = 2;

#[derive(Clone, Debug)]
enum Operation {
    Put { key: usize, value_bytes: usize },
    Delete { key: usize, end: usize },
}

#[derive(Clone, Debug)]
struct Wanted {
    key: usize,
    end: usize,
    filters: Vec<i32>,
    prev_kv: bool,
    fragment: bool,
    /// Now, in the past, or a little later.
    start: Option<(Index, i64)>,
}

#[derive(Clone, Debug)]
enum Step {
    Transaction(Vec<Operation>),
    Create {
        client: usize,
        wanted: Wanted,
    },
    Cancel {
        client: usize,
        watch: Index,
    },
    Compact(Index),
    Progress {
        client: usize,
    },
    StopReading {
        client: usize,
        after: usize,
    },
    ReadOn {
        client: usize,
    },
    /// Others' pages of history take all memory for them, or no more.
    Pages {
        take_all: bool,
    },
    Pause,
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        5 => (0..KEYS.len(), prop_oneof![0..40usize, 100..300usize])
            .prop_map(|(key, value_bytes)| Operation::Put { key, value_bytes }),
        2 => (0..KEYS.len(), 0..BOUNDS.len()).prop_map(|(key, end)| Operation::Delete { key, end }),
    ]
}

fn wanted() -> impl Strategy<Value = Wanted> {
    (
        0..KEYS.len(),
        0..BOUNDS.len(),
        prop_oneof![4 => Just(vec![]), 1 => Just(vec![0]), 1 => Just(vec![1])],
        any::<bool>(),
        proptest::bool::weighted(0.2),
        proptest::option::of((any::<Index>(), 0..4i64)),
    )
        .prop_map(|(key, end, filters, prev_kv, fragment, start)| Wanted {
            key,
            end,
            filters,
            prev_kv,
            fragment,
            start,
        })
}

fn step() -> impl Strategy<Value = Step> {
    let client = || 0..CLIENTS;
    prop_oneof![
        12 => vec(operation(), 1..5).prop_map(Step::Transaction),
        5 => (client(), wanted()).prop_map(|(client, wanted)| Step::Create { client, wanted }),
        1 => (client(), any::<Index>()).prop_map(|(client, watch)| Step::Cancel { client, watch }),
        1 => any::<Index>().prop_map(Step::Compact),
        3 => client().prop_map(|client| Step::Progress { client }),
        2 => (client(), 0..3usize).prop_map(|(client, after)| Step::StopReading { client, after }),
        2 => client().prop_map(|client| Step::ReadOn { client }),
        1 => any::<bool>().prop_map(|take_all| Step::Pages { take_all }),
        2 => Just(Step::Pause),
    ]
}

/// What the store should have done, made without it.
struct Model {
    live: BTreeMap<String, KeyValue>,
    /// The events of each revision from 2 on, with the key-values before.
    history: Vec<Vec<Event>>,
    compacted: i64,
}

impl Model {
    fn newest(&self) -> i64 {
        self.history.len() as i64 + 1
    }

    /// Applies a transaction; gives the store's operations.
    fn apply(&mut self, operations: &[Operation]) -> Vec<Request> {
        let revision = self.newest() + 1;
        let before = self.live.clone();
        let mut requests = Vec::new();
        let mut events = Vec::new();
        let mut put = Vec::new();
        for operation in operations {
            match operation {
                // A second put of a key is refused before it gets to the store.
                Operation::Put { key, .. } if put.contains(key) => {}
                Operation::Put { key, value_bytes } => {
                    put.push(*key);
                    let name = KEYS[*key];
                    let value = vec![revision as u8; *value_bytes];
                    requests.push(Request::RequestPut(put_request(name, &value)));
                    let old = self.live.get(name);
                    let kv = KeyValue {
                        key: name.into(),
                        value: value.into(),
                        create_revision: old.map_or(revision, |old| old.create_revision),
                        mod_revision: revision,
                        version: old.map_or(1, |old| old.version + 1),
                        lease: 0,
                    };
                    let prev_kv = before.get(name).filter(|_| kv.create_revision != revision).cloned();
                    self.live.insert(name.to_owned(), kv.clone());
                    events.push(Event { r#type: 0, kv: Some(kv), prev_kv });
                }
                Operation::Delete { key, end } => {
                    let (key, end) = (KEYS[*key], BOUNDS[*end]);
                    requests.push(Request::RequestDeleteRange(delete_request(key.as_bytes(), end.as_bytes())));
                    let range = KeyRange::from_request(key.into(), end.into());
                    let gone: Vec<_> = self.live.keys().filter(|key| range.contains(key.as_bytes())).cloned().collect();
                    for name in gone {
                        self.live.remove(&name);
                        let prev_kv = before.get(&name).cloned();
                        let kv = KeyValue { key: name.into(), mod_revision: revision, ..KeyValue::default() };
                        events.push(Event { r#type: 1, kv: Some(kv), prev_kv });
                    }
                }
            }
        }
        if !events.is_empty() {
            self.history.push(events);
        }
        requests
    }
}

/// What a client was promised of one watch, and how far it got.
struct Promise {
    client: usize,
    watch_id: i64,
    request: WatchCreateRequest,
    /// The newest revision when it was asked for.
    asked_at: i64,
    cancelled: bool,
}

impl Promise {
    fn wants(&self, event: &Event) -> bool {
        let range = KeyRange::from_request(self.request.key.clone(), self.request.range_end.clone());
        range.contains(&event.kv.as_ref().unwrap().key) && !self.request.filters.contains(&event.r#type)
    }
}

/// A watch on its way through the responses.
struct Progress<'a> {
    promise: &'a Promise,
    /// Its events in the history, with their revisions.
    expected: Vec<(i64, &'a Event)>,
    got: usize,
    in_fragments: bool,
    ended: bool,
}

impl Progress<'_> {
    /// The revision of the next event that it waits for.
    fn next(&self) -> i64 {
        self.expected.get(self.got).map_or(i64::MAX, |(revision, _)| *revision)
    }
}

fn check_client(model: &Model, promises: &[&Promise], responses: &[WatchResponse]) -> Result<bool, TestCaseError> {
    let mut watches: HashMap<i64, Progress<'_>> = HashMap::new();
    let promise_of: HashMap<i64, &Promise> = promises.iter().map(|promise| (promise.watch_id, *promise)).collect();
    for response in responses {
        let at = revision(response);
        prop_assert!(at <= model.newest(), "nothing is sent that is not published");
        if response.created {
            prop_assert!(!response.canceled, "{:?}", response);
            let promise = promise_of[&response.watch_id];
            prop_assert!(at >= promise.asked_at);
            let start = if promise.request.start_revision == 0 { at + 1 } else { promise.request.start_revision };
            let expected = (2..)
                .zip(&model.history)
                .filter(|(revision, _)| *revision >= start)
                .flat_map(|(revision, events)| events.iter().map(move |event| (revision, event)))
                .filter(|(_, event)| promise.wants(event))
                .collect();
            let progress = Progress { promise, expected, got: 0, in_fragments: false, ended: false };
            prop_assert!(watches.insert(response.watch_id, progress).is_none(), "created twice");
            continue;
        }
        if response.watch_id == -1 {
            for watch in watches.values() {
                prop_assert!(!watch.in_fragments);
                prop_assert!(watch.ended || watch.next() > at, "progress {} is ahead of an event", at);
            }
            continue;
        }
        let Some(watch) = watches.get_mut(&response.watch_id) else {
            return Err(TestCaseError::fail("a response before the watch was created"));
        };
        if response.canceled {
            if response.compact_revision == 0 {
                prop_assert!(watch.promise.cancelled);
            } else {
                prop_assert_eq!(at, 0);
                prop_assert!(!watch.ended);
                prop_assert!(response.compact_revision <= model.compacted);
            }
            prop_assert!(!watch.in_fragments);
            watch.ended = true;
            continue;
        }
        prop_assert!(!watch.ended, "an event behind the end");
        prop_assert!(!response.events.is_empty());
        for event in &response.events {
            let Some((revision, expected)) = watch.expected.get(watch.got) else {
                return Err(TestCaseError::fail(format!("an event too many: {event:?}")));
            };
            prop_assert!(*revision <= at, "the header's revision is before the event's");
            let mut expected = Event::clone(expected);
            let trimmed = revision - 1 < model.compacted;
            if !watch.promise.request.prev_kv || (trimmed && event.prev_kv.is_none()) {
                expected.prev_kv = None;
            }
            prop_assert_eq!(event, &expected);
            watch.got += 1;
        }
        if response.fragment {
            prop_assert!(watch.promise.request.fragment);
        } else {
            prop_assert!(watch.next() > at, "a transaction is cut, or the header is ahead of an event");
        }
        watch.in_fragments = response.fragment;
    }
    // A watch that was cancelled may end anywhere, but its cancellation must have been answered.
    Ok(watches.len() == promises.len()
        && watches.values().all(|watch| {
            watch.ended || (!watch.promise.cancelled && watch.got == watch.expected.len() && !watch.in_fragments)
        }))
}

async fn run(ring_bytes: usize, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let store = store(ring_bytes);
    let trimmer = tokio::spawn(crate::compaction::run(store.clone()));
    let mut model = Model { live: BTreeMap::new(), history: Vec::new(), compacted: -1 };
    let clients: Vec<_> =
        (0..CLIENTS).map(|_| Client::open(&store, StreamOptions { fragment_bytes: 300, ..options() })).collect();
    let mut promises: Vec<Promise> = Vec::new();
    let mut writes = Vec::new();
    let mut others = None;
    for step in steps {
        match step {
            Step::Transaction(operations) => {
                let requests = model.apply(&operations);
                if requests.is_empty() {
                    continue;
                }
                let success = requests.into_iter().map(|request| RequestOp { request: Some(request) }).collect();
                let request = WriteRequest::Txn(TxnRequest { success, ..TxnRequest::default() });
                // Several wait together, so that batches have several transactions.
                let (store, newest) = (store.clone(), model.newest());
                let (sender, receiver) = tokio::sync::oneshot::channel();
                store.submit(request, 1, Box::new(move |result| drop(sender.send((result, newest)))));
                writes.push(receiver);
                continue;
            }
            Step::Create { client, wanted } => {
                settle(&mut writes).await;
                let start_revision = match wanted.start {
                    None => 0,
                    Some((_, ahead @ 1..)) => model.newest() + ahead,
                    Some((at, _)) => at.index(model.newest() as usize) as i64 + 1,
                };
                let request = WatchCreateRequest {
                    start_revision,
                    filters: wanted.filters,
                    prev_kv: wanted.prev_kv,
                    fragment: wanted.fragment,
                    watch_id: promises.len() as i64 + 1,
                    ..range(KEYS[wanted.key], if wanted.end == 0 { "" } else { BOUNDS[wanted.end] })
                };
                // Ranges that etcd refuses are another test's.
                if wanted.end > 1 && KEYS[wanted.key] >= BOUNDS[wanted.end] {
                    continue;
                }
                clients[client].create(request.clone());
                let (watch_id, asked_at) = (request.watch_id, model.newest());
                promises.push(Promise { client, watch_id, request, asked_at, cancelled: false });
            }
            Step::Cancel { client, watch } => {
                let mut of_client: Vec<_> =
                    promises.iter_mut().filter(|promise| promise.client == client && !promise.cancelled).collect();
                if !of_client.is_empty() {
                    let number = watch.index(of_client.len());
                    of_client[number].cancelled = true;
                    clients[client].cancel(of_client[number].watch_id);
                }
            }
            Step::Compact(at) => {
                settle(&mut writes).await;
                let revision = at.index(model.newest() as usize) as i64 + 1;
                if revision > model.compacted {
                    model.compacted = revision;
                    compact(&store, revision).await;
                }
            }
            Step::Progress { client } => clients[client].ask_for_progress(),
            Step::StopReading { client, after } => clients[client].stop_reading_after(after),
            Step::ReadOn { client } => clients[client].read_on(),
            Step::Pages { take_all } => {
                let pages = &store.published().hub().shared().pages;
                others = take_all.then(|| pages.hold(WATCH_PAGES_BYTES_MAX));
            }
            Step::Pause => {
                settle(&mut writes).await;
                tokio::time::sleep(Duration::from_micros(300)).await;
            }
        }
    }
    drop(others);
    settle(&mut writes).await;
    prop_assert_eq!(store.published().newest(), model.newest());
    for (number, client) in clients.into_iter().enumerate() {
        client.read_on();
        let promises: Vec<&Promise> = promises.iter().filter(|promise| promise.client == number).collect();
        let mut failed = Ok(());
        client
            .until(|responses| match check_client(&model, &promises, responses) {
                Ok(done) => done,
                Err(error) => {
                    failed = Err(error);
                    true
                }
            })
            .await;
        failed?;
        // Nothing comes behind what was expected.
        tokio::time::sleep(Duration::from_millis(2)).await;
        let responses = client.inbox.received.lock().clone();
        prop_assert!(check_client(&model, &promises, &responses)?);
        let end = client.end().await;
        prop_assert!(matches!(end, End::Ending), "{:?}", end);
    }
    let statistics = store.published().hub().statistics();
    prop_assert_eq!((statistics.streams, statistics.watches, statistics.slow_watches), (0, 0, 0));
    trimmer.abort();
    store.close();
    Ok(())
}

type Write = tokio::sync::oneshot::Receiver<(Result<WriteResponse, Error>, i64)>;

/// Waits for the writes under way.
async fn settle(writes: &mut Vec<Write>) {
    for write in writes.drain(..) {
        let (response, newest) = write.await.expect("answered");
        let WriteResponse::Txn(response) = response.expect("written") else { panic!("another answer") };
        assert_eq!(response.header.unwrap().revision, newest, "the model counts revisions as the store does");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_watch_gets_exactly_its_history(
        // None, a few transactions, and enough for all.
        ring_bytes in prop_oneof![Just(0), Just(1500), Just(4000), Just(1 << 20)],
        steps in vec(step(), 1..150),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(run(ring_bytes, steps))?;
    }
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(96)
}
