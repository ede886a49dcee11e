//! Three members over one PostgreSQL, and what happens to leaders: none of it loses, doubles or hides anything.

use std::time::{Duration, Instant};

use kubewharf_testkit::members::Members;
use tokio::runtime::Runtime;

use crate::client::Client;
use crate::crash::history::Outcome;
use crate::crash::load::{Load, Size};
use crate::crash::{compact_behind, compare};
use crate::random::{Random, seeds};

/// What happens to a leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// Its process is killed.
    Kill,
    /// Its process stands still for longer than others wait.
    Pause,
    /// It is told to stop.
    Stop,
    /// The database is killed and comes back.
    Database,
}

/// How long nothing was acknowledged around a fault.
struct Gap {
    fault: Fault,
    began: Instant,
}

/// Rounds of load with a fault each; gives for each fault how long nothing was acknowledged around it.
fn run(seed: u64, faults: &[Fault]) -> Vec<(Fault, Duration)> {
    let mut random = Random::new(seed);
    let runtime = Runtime::new().expect("a runtime starts");
    let mut members = Members::start(3, &["--log-level=info", "--log-format=console"]).expect("the members start");
    let urls = members.urls();
    let size = Size { writers: 6, readers: 3 };
    let (client, load) = runtime.block_on(async { (Client::new(&urls[0]), Load::start(&urls, size, seed)) });
    let mut gaps = Vec::new();
    let mut compacted = 0;
    for &fault in faults {
        let before = load.acknowledged();
        std::thread::sleep(Duration::from_millis(300 + random.below(500)));
        let deadline = Instant::now() + Duration::from_secs(60);
        while load.acknowledged() < before + 20 {
            assert!(Instant::now() < deadline, "nothing is acknowledged any more: {:?}", load.failures());
            std::thread::sleep(Duration::from_millis(10));
        }
        if random.once_in(3) {
            compacted = runtime.block_on(compact_behind(&client, load.watched(), compacted));
        }
        let leader = members.leader();
        gaps.push(Gap { fault, began: Instant::now() });
        match fault {
            Fault::Kill => {
                members.process(leader).kill();
                std::thread::sleep(Duration::from_millis(1000));
                members.start_again(leader).expect("a killed member starts again");
            }
            Fault::Pause => {
                members.process(leader).pause();
                std::thread::sleep(Duration::from_millis(2500));
                members.process(leader).resume();
            }
            Fault::Stop => {
                members.stop(leader);
                members.start_again(leader).expect("a stopped member starts again");
            }
            Fault::Database => {
                members.postgres().kill9();
                std::thread::sleep(Duration::from_millis(500));
                members.postgres().restart().expect("the database starts again");
            }
        }
    }
    std::thread::sleep(Duration::from_secs(1));
    eprintln!("{:?}", load.failures());
    let history = runtime.block_on(load.finish());
    runtime.block_on(compare(&client, &history, compacted, &mut random));
    let mut acknowledged: Vec<Instant> = history
        .attempts
        .iter()
        .filter(|attempt| matches!(attempt.outcome, Outcome::Applied { .. }))
        .map(|attempt| attempt.ended)
        .collect();
    acknowledged.sort_unstable();
    let ends = gaps.iter().skip(1).map(|gap| gap.began).chain([Instant::now()]);
    gaps.iter()
        .zip(ends)
        .map(|(gap, end)| {
            let around: Vec<Instant> = acknowledged
                .iter()
                .copied()
                .filter(|at| *at >= gap.began - Duration::from_millis(100) && *at < end)
                .collect();
            let longest = around.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
            (gap.fault, longest)
        })
        .collect()
}

fn report(mut gaps: Vec<(Fault, Duration)>) {
    gaps.sort_unstable();
    for fault in [Fault::Kill, Fault::Pause, Fault::Stop, Fault::Database] {
        let of: Vec<Duration> = gaps.iter().filter(|gap| gap.0 == fault).map(|gap| gap.1).collect();
        if let (Some(longest), median) = (of.last(), of.get(of.len() / 2)) {
            let ms = |gap: Option<&Duration>| gap.map_or(0, Duration::as_millis);
            let [median, longest] = [ms(median), ms(Some(longest))];
            eprintln!("{fault:?}: {} times, nothing acknowledged for {median} ms, at most {longest} ms", of.len());
        }
    }
}

#[test]
fn leaders_that_die_stand_still_or_stop_lose_nothing() {
    for seed in seeds(1) {
        eprintln!("seed {seed}");
        let faults = [
            Fault::Kill,
            Fault::Stop,
            Fault::Pause,
            Fault::Kill,
            Fault::Database,
            Fault::Stop,
            Fault::Kill,
            Fault::Pause,
        ];
        report(run(seed, &faults));
    }
}

#[test]
#[ignore = "takes many minutes"]
fn a_hundred_leaders_lose_nothing() {
    for seed in seeds(1) {
        eprintln!("seed {seed}");
        let faults: Vec<Fault> =
            (0..100).map(|number| [Fault::Kill, Fault::Kill, Fault::Pause, Fault::Stop][number % 4]).collect();
        report(run(seed, &faults));
    }
}
