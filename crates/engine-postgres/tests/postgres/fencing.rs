//! Several engines on one store.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use kubewharf_engine::conformance::{apply, get, head, next_batch, put};
use kubewharf_engine::{Batch, CommitError, Engine, Head, Table};
use kubewharf_engine_postgres::{Options, Postgres};
use kubewharf_testkit::postgres::Postgres as Server;

use crate::stores::options;

#[test]
fn a_deposed_process_is_fenced_and_sees_what_the_new_one_wrote() {
    let server = Server::start().unwrap();
    let options = options(&server.url());
    let (old, new) = (Postgres::open(options.clone()).unwrap(), Postgres::open(options).unwrap());
    let before = apply(&old, vec![put(Table::Current, "k", "old")]);
    assert_eq!(head(&new), before, "what one has confirmed, the other sees");

    let mut takeover = next_batch(&new, vec![put(Table::Current, "k", "new")]);
    takeover.next.epoch += 1;
    let late = next_batch(&old, vec![put(Table::Current, "k", "late")]);
    let view = old.snapshot().unwrap();
    assert_eq!(new.commit(&takeover), Ok(()));
    assert_eq!(old.commit(&late), Err(CommitError::Fenced(takeover.next)));
    assert_eq!(get(&old, Table::Current, b"k"), Some(b"new".to_vec()));
    assert_eq!(view.head(), Ok(before), "a view stays what it was");
}

#[test]
fn engines_that_race_take_turns_and_lose_nothing() {
    const COMMITS: u64 = 60;
    let server = Server::start().unwrap();
    let options = options(&server.url());
    let won: Vec<u64> = thread::scope(|scope| {
        let engines: Vec<_> = (1..=3_u128)
            .map(|number| {
                let options: Options = options.clone();
                scope.spawn(move || {
                    let engine = Postgres::open(options).unwrap();
                    let mut stored = head(&engine);
                    let mut won = 0;
                    while stored.seq <= COMMITS {
                        let next = Head { seq: stored.seq + 1, batch_id: number << 64, ..stored };
                        let row = put(Table::Log, next.seq.to_be_bytes(), [number as u8]);
                        let batch = Batch { expected: stored, next, operations: vec![row], ..Batch::default() };
                        match engine.commit(&batch) {
                            Ok(()) => (stored, won) = (next, won + 1),
                            Err(CommitError::Fenced(found)) => {
                                assert!(found.seq > stored.seq);
                                stored = found;
                            }
                            Err(error) => panic!("{error}"),
                        }
                    }
                    won
                })
            })
            .collect();
        engines.into_iter().map(|engine| engine.join().unwrap()).collect()
    });
    let engine = Postgres::open(options).unwrap();
    let stored = head(&engine);
    assert_eq!(won.iter().sum::<u64>(), stored.seq - 1, "{won:?}");
    assert_eq!(kubewharf_engine::conformance::rows(&engine, Table::Log).len() as u64, stored.seq - 1);
}

#[test]
fn views_beyond_the_pool_wait_and_then_say_why() {
    let server = Server::start().unwrap();
    let read_timeout = std::time::Duration::from_millis(500);
    let options = Options { connections: 2, read_timeout, ..options(&server.url()) };
    let engine = Postgres::open(options).unwrap();
    let views = [engine.snapshot().unwrap(), engine.snapshot().unwrap()];
    let error = engine.snapshot().map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("all 2 connections"), "{error}");
    // Commits have a connection of their own; a fenced one reads the head there.
    let expected = views[0].head().unwrap();
    let next = Head { seq: expected.seq + 1, ..expected };
    let batch = Batch { expected, next, ..Batch::default() };
    assert_eq!(engine.commit(&batch), Ok(()));
    assert_eq!(engine.commit(&batch), Err(CommitError::Fenced(next)));
    let is_given_back = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let view = engine.snapshot().unwrap();
            assert!(is_given_back.load(Ordering::Acquire));
            assert_eq!(view.head(), Ok(next));
        });
        thread::sleep(std::time::Duration::from_millis(100));
        is_given_back.store(true, Ordering::Release);
        drop(views);
    });
}
