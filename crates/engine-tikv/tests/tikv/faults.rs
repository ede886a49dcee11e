//! What happens to a cluster while it is used: regions that are split and moved, PDs and stores that stand still or are killed.
//!
//! Regions are ordered about by PD's HTTP API, as operators of a cluster do it, so this works in any cluster. Processes are signalled where the environment
//! names the files that hold their numbers. One fault at a time: the next one comes when commits go on.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::thread;
use std::time::{Duration, Instant};

use kubewharf_engine::conformance::{apply, assert_scans, delete, put};
use kubewharf_engine::{Engine, Table};
use kubewharf_engine_tikv::{Options, Tikv};
use kubewharf_testkit::cluster::{Cluster, PD_PIDS_VARIABLE, STORE_PIDS_VARIABLE, Server};

use crate::random::Random;
use crate::stores::{options, with_parameter};
use crate::writer::{ROWS, duration, under_load};

const SPLIT_WITHIN: Duration = Duration::from_secs(30);
/// Some of the turns in which it moves.
const SAFE_POINT_WITHIN: Duration = Duration::from_secs(90);
const STARTED_AGAIN_WITHIN: Duration = Duration::from_secs(60);
/// Each region is work for the cluster's servers for ever, or until they merge it.
const SPLITS_MAX: u32 = 40;

/// A row's key as the engine stores it.
fn stored_key(options: &Options, table: Table, key: &[u8]) -> Vec<u8> {
    [b"kw/", options.schema.as_bytes(), b"\0t", &[table.number()], key].concat()
}

/// The first key of the store's, and the first one behind it.
fn stored_range(options: &Options) -> (Vec<u8>, Vec<u8>) {
    let prefix = [b"kw/", options.schema.as_bytes()].concat();
    ([&prefix[..], b"\0"].concat(), [&prefix[..], b"\x01"].concat())
}

/// Gives the leadership of one of the store's regions to another of its copies, if there is any. Says whether it was ordered.
fn move_a_leader(cluster: &Cluster, options: &Options, random: &mut Random) -> bool {
    let (start, end) = stored_range(options);
    let Ok(regions) = cluster.regions(&start, &end) else { return false };
    let Some(region) = random.pick(&regions) else { return false };
    let others: Vec<u64> = region.stores.iter().copied().filter(|store| region.leader != Some(*store)).collect();
    random.pick(&others).is_some_and(|store| cluster.move_leader(region, *store).is_ok())
}

/// A key of a table that batches write to, to split at.
fn key_of_load(random: &mut Random) -> (Table, Vec<u8>) {
    if random.once_in(4) {
        return (Table::Log, random.below(2000).to_be_bytes().to_vec());
    }
    let row = random.below(ROWS.into()) as u16;
    // Right at a row, or behind it.
    (Table::Current, [&row.to_be_bytes()[..], &vec![0; random.below(2) as usize]].concat())
}

pub(crate) fn the_safe_point_moves_where_that_is_wanted() {
    let cluster = Cluster::from_environment().unwrap();
    let before = cluster.safe_point().unwrap();
    let engine = Tikv::open(with_parameter(with_parameter(options(), "gc=true"), "gc_life_time=60s")).unwrap();
    let deadline = Instant::now() + SAFE_POINT_WITHIN;
    // Twice, as the first time may be another's.
    let mut moved = before;
    for _ in 0..2 {
        let last = moved;
        while moved == last {
            assert!(Instant::now() < deadline, "the safe point stays at {moved}");
            thread::sleep(Duration::from_millis(200));
            moved = cluster.safe_point().unwrap();
        }
        assert!(moved > last, "it went back from {last} to {moved}");
    }
    apply(&engine, vec![put(Table::Current, b"row", b"value")]);
    assert_scans(
        &engine,
        Table::Current,
        &BTreeMap::from([(b"row".to_vec(), b"value".to_vec())]),
        (Bound::Unbounded, Bound::Unbounded),
    );
}

pub(crate) fn regions_split_and_move_under_load() {
    let (cluster, options, mut random) = (Cluster::from_environment().unwrap(), options(), Random::of_now());
    under_load(&options, |load| {
        let end = Instant::now() + duration(12);
        let (mut splits, mut moves) = (0, 0);
        while Instant::now() < end {
            if splits < SPLITS_MAX && random.once_in(3) {
                let (table, key) = key_of_load(&mut random);
                cluster.split(&stored_key(&options, table, &key), SPLIT_WITHIN).unwrap();
                splits += 1;
            } else {
                moves += u32::from(move_a_leader(&cluster, &options, &mut random));
            }
            thread::sleep(Duration::from_millis(30 + random.below(150)));
        }
        load.goes_on();
        let (start, end) = stored_range(&options);
        let regions = cluster.regions(&start, &end).unwrap();
        eprintln!("{splits} splits, {moves} moves, {} regions", regions.len());
        assert!(splits > 0 && regions.len() > 1);
        assert!(moves > 0 || regions.iter().all(|region| region.stores.len() == 1));
    });
}

pub(crate) fn a_table_of_many_regions_is_one_table() {
    const COUNT: u32 = 3000;
    const REGIONS: u32 = 40;
    let (cluster, options, mut random) = (Cluster::from_environment().unwrap(), options(), Random::of_now());
    let engine = Tikv::open(options.clone()).unwrap();
    let key = |row: u32| row.to_be_bytes().to_vec();
    let mut model = BTreeMap::new();
    for rows in [0..COUNT / 2, COUNT / 2..COUNT] {
        let rows: Vec<_> = rows.map(|row| (key(row), vec![row as u8; 200])).collect();
        apply(&engine, rows.iter().map(|(key, value)| put(Table::Current, key, value)).collect());
        model.extend(rows);
    }
    // Right at a row, and between two.
    let borders: Vec<Vec<u8>> = (1..REGIONS)
        .map(|region| {
            let mut border = key(region * (COUNT / REGIONS));
            border.extend(vec![0; (region % 2) as usize]);
            border
        })
        .collect();
    for (number, border) in borders.iter().enumerate() {
        cluster.split(&stored_key(&options, Table::Current, border), SPLIT_WITHIN).unwrap();
        if number % 2 == 0 {
            move_a_leader(&cluster, &options, &mut random);
        }
    }
    let (start, end) = stored_range(&options);
    assert!(cluster.regions(&start, &end).unwrap().len() >= REGIONS as usize);

    let check = |engine: &Tikv, model: &BTreeMap<Vec<u8>, Vec<u8>>| {
        assert_scans(engine, Table::Current, model, (Bound::Unbounded, Bound::Unbounded));
        for pair in borders.windows(2).step_by(7) {
            let (one, other) = (&pair[0][..], &pair[1][..]);
            assert_scans(engine, Table::Current, model, (Bound::Included(one), Bound::Excluded(other)));
            assert_scans(engine, Table::Current, model, (Bound::Excluded(one), Bound::Unbounded));
            assert_scans(engine, Table::Current, model, (Bound::Unbounded, Bound::Included(other)));
        }
    };
    check(&engine, &model);
    // Batches that have rows in all of them.
    let begun = Instant::now();
    apply(&engine, (0..COUNT).map(|row| put(Table::Current, key(row), vec![!(row as u8); 300])).collect());
    model = (0..COUNT).map(|row| (key(row), vec![!(row as u8); 300])).collect();
    eprintln!("{COUNT} rows in {REGIONS} regions were written in {:.1?}", begun.elapsed());
    check(&engine, &model);
    let gone: Vec<_> = (0..COUNT).filter(|row| row % 3 != 1).map(key).collect();
    apply(&engine, gone.iter().map(|key| delete(Table::Current, key)).collect());
    model.retain(|key, _| !gone.contains(key));
    check(&engine, &model);
    // And one question for rows that are there and that are not.
    let keys: Vec<_> = (0..COUNT).step_by(5).map(key).collect();
    let wanted: Vec<_> = keys.iter().map(|key| (Table::Current, &key[..])).collect();
    let view = engine.snapshot_with(&wanted).unwrap();
    for key in &keys {
        let mut found = None;
        view.get(Table::Current, key, &mut |value| found = Some(value.to_vec())).unwrap();
        assert!(found.as_ref() == model.get(key), "{key:?}");
    }
    check(&Tikv::open(options.clone()).unwrap(), &model);
}

pub(crate) fn pds_that_stand_still_or_are_killed_are_waited_for() {
    servers_fail(PD_PIDS_VARIABLE);
}

pub(crate) fn stores_that_stand_still_or_are_killed_are_waited_for() {
    servers_fail(STORE_PIDS_VARIABLE);
}

/// One after the other stands still for some seconds, and is killed and comes back. The store has several regions, whose leaders are in all stores.
fn servers_fail(variable: &str) {
    const SPLITS: u32 = 8;
    let (cluster, options, mut random) = (Cluster::from_environment().unwrap(), options(), Random::of_now());
    let servers = Server::from_environment(variable);
    under_load(&options, |load| {
        for _ in 0..SPLITS {
            let (table, key) = key_of_load(&mut random);
            cluster.split(&stored_key(&options, table, &key), SPLIT_WITHIN).unwrap();
            move_a_leader(&cluster, &options, &mut random);
        }
        let begun = Instant::now();
        for round in 0.. {
            load.goes_on();
            if begun.elapsed() >= duration(40) {
                break;
            }
            let number = round % servers.len();
            if (round / servers.len()).is_multiple_of(2) {
                eprintln!("{:.1?}: {number} stands still", begun.elapsed());
                let paused = servers[number].pause().unwrap();
                wait(&mut random, 6000);
                drop(paused);
                eprintln!("{:.1?}: {number} goes on", begun.elapsed());
            } else {
                eprintln!("{:.1?}: {number} is killed", begun.elapsed());
                servers[number].kill(STARTED_AGAIN_WITHIN).unwrap();
            }
            wait(&mut random, 3000);
        }
    });
}

fn wait(random: &mut Random, at_most_ms: u64) {
    thread::sleep(Duration::from_millis(500 + random.below(at_most_ms)));
}
