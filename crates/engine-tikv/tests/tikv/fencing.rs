//! Several engines on one store.

use std::sync::Barrier;
use std::thread;

use kubewharf_engine::conformance::{apply, get, head, next_batch, put, rows};
use kubewharf_engine::{Batch, CommitError, Engine, Head, Table};
use kubewharf_engine_tikv::Tikv;

use crate::stores::options;

pub(crate) fn a_deposed_process_is_fenced_and_sees_what_the_new_one_wrote() {
    let options = options();
    let (old, new) = (Tikv::open(options.clone()).unwrap(), Tikv::open(options).unwrap());
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

pub(crate) fn engines_that_race_take_turns_and_lose_nothing() {
    const COMMITS: u64 = 60;
    let options = options();
    let won: Vec<u64> = thread::scope(|scope| {
        let engines: Vec<_> = (1..=3_u128)
            .map(|number| {
                let options = options.clone();
                scope.spawn(move || {
                    let engine = Tikv::open(options).unwrap();
                    let mut stored = head(&engine);
                    let mut won = 0;
                    while stored.seq <= COMMITS {
                        let next = Head { seq: stored.seq + 1, batch_id: number << 64, ..stored };
                        let row = put(Table::Log, next.seq.to_be_bytes(), [number as u8]);
                        let batch = Batch { expected: stored, next, operations: vec![row], ..Batch::default() };
                        match engine.commit(&batch) {
                            Ok(()) => (stored, won) = (next, won + 1),
                            Err(CommitError::Fenced(found)) => stored = found,
                            // Others were in the way in between: the head tells what became of it.
                            Err(CommitError::Unknown(_)) => {
                                let found = head(&engine);
                                won += u64::from(found == next);
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
    let engine = Tikv::open(options).unwrap();
    let stored = rows(&engine, Table::Log);
    assert_eq!(stored.len() as u64, head(&engine).seq - 1, "each commit has left its row");
    let of = |number: u8| stored.values().filter(|row| **row == [number]).count() as u64;
    for (number, won) in (1..).zip(&won) {
        assert!(of(number) >= *won, "{number} has won {won} times, and left {} rows", of(number));
    }
}

/// Batches that take two phases and many messages.
pub(crate) fn large_batches_race_and_one_wins() {
    const ROWS: u32 = 300;
    let options = options();
    for _ in 0..3 {
        let opener = Tikv::open(options.clone()).unwrap();
        let base = next_batch(&opener, vec![]);
        let start = Barrier::new(3);
        let outcomes: Vec<_> = thread::scope(|scope| {
            let writers: Vec<_> = (1..=3_u8)
                .map(|number| {
                    let (mut batch, start, options) = (base.clone(), &start, options.clone());
                    scope.spawn(move || {
                        let engine = Tikv::open(options).unwrap();
                        batch.next.batch_id = u128::from(number) << 64 | u128::from(batch.next.seq);
                        let row = |row: u32| put(Table::Current, row.to_be_bytes(), vec![number; 500]);
                        batch.operations = (0..ROWS).map(row).collect();
                        start.wait();
                        (number, batch.next, engine.commit(&batch))
                    })
                })
                .collect();
            writers.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        let winners: Vec<_> = outcomes.iter().filter(|(_, _, outcome)| outcome.is_ok()).collect();
        assert_eq!(winners.len(), 1, "{outcomes:?}");
        let (number, won, _) = winners[0];
        assert_eq!(head(&opener), *won);
        for (_, _, outcome) in &outcomes {
            assert!(matches!(outcome, Ok(()) | Err(CommitError::Fenced(_))), "{outcome:?}");
        }
        let stored = rows(&opener, Table::Current);
        assert_eq!(stored.len(), ROWS as usize);
        assert!(stored.values().all(|value| *value == vec![*number; 500]), "all rows are the winner's");
    }
}
