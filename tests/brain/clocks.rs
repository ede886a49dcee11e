//! Clocks that are wrong, and that jump by hours both ways while their members lead.
//!
//! What measures time in a process is the kernel's monotonic clock, which nobody can set; it begins anew with each boot, so each member here
//! has one that is days away from those of the others, and nothing that one of them measured can mean anything to another. The wall
//! clocks of members and of the database jump: PostgreSQL tells by its own when a statement or a transaction has taken too long.

use std::process::Command;
use std::time::Duration;

use kubewharf_testkit::clock::WallClock;
use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::members::{Members, Place};
use kubewharf_testkit::namespace::Namespace;
use kubewharf_testkit::postgres::{Installation, Setup};
use kubewharf_testkit::process;
use kubewharf_testkit::store::product;
use serde_json::Value;

use crate::members::{Fault, Trial, strike_at};
use crate::random::seeds;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// What happens.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// The leader's wall clock is wrong by so many hours from now on.
    Leader(i64),
    /// The database's is.
    Database(i64),
    /// The leader's process is killed, so that a member takes over whose clocks are others.
    Killed,
}

/// The hour that it is a minute before and after a time so many hours from now.
fn hours_later(hours: i64) -> [String; 2] {
    [-1, 1].map(|minutes| {
        let seconds = hours * 3600 + minutes * 60;
        let date = format!("now {seconds:+} seconds");
        process::run(Command::new("date").args(["-u", "-d", &date, "+%Y-%m-%dT%H"]))
            .expect("a date")
            .trim_end()
            .to_owned()
    })
}

/// The hour that the store's log gives for its newest change.
fn last_time(url: &str, from: i64) -> String {
    let from = format!("--from={from}");
    let program = product().expect("the product is built");
    let log = process::run(Command::new(program).args(["brain", "log", "--endpoint", url, &from])).expect("a log");
    let line: Value = serde_json::from_str(log.lines().last().expect("a change")).expect("a line of JSON");
    line["time"].as_str().expect("a time")[.."2026-01-01T00".len()].to_owned()
}

#[test]
fn clocks_that_jump_by_hours_end_no_lease_and_lose_nothing() {
    for seed in seeds(1) {
        eprintln!("seed {seed}");
        let folder = Folder::new("clocks").expect("a folder");
        let owner = Installation::find().and_then(|installation| installation.owner);
        let clock = WallClock::new(&folder, "database", owner).expect("a clock");
        let setup = Setup { namespaces: vec![clock.inside()], environment: clock.environment(), ..Setup::default() };
        let database = setup.start_in(Folder::new("postgres").expect("a folder")).expect("the database starts");
        let clocks = ["one", "two", "three"].map(|name| WallClock::new(&folder, name, None).expect("a clock"));
        let uptimes = [("days", DAY * 40), ("years", DAY * 4000)];
        let uptimes = uptimes.map(|(name, ahead)| Namespace::with_uptime(&folder, name, ahead).expect("a clock"));
        let places: Vec<Place> = clocks
            .iter()
            .zip([None, Some(&uptimes[0]), Some(&uptimes[1])])
            .map(|(clock, uptime)| Place {
                namespaces: [clock.inside()].into_iter().chain(uptime.map(Namespace::inside)).collect(),
                environment: clock.environment(),
                ..Place::default()
            })
            .collect();
        let flags = ["--log-level=info", "--log-format=console"];
        let members = Members::at(&database.url(), &places, &flags).expect("the members start");
        let mut trial = Trial::start(members, seed, 15);
        for event in [
            Event::Leader(5),
            Event::Killed,
            Event::Database(30),
            Event::Leader(-50),
            Event::Killed,
            Event::Database(-30),
            Event::Leader(-9),
            Event::Killed,
        ] {
            trial.work();
            eprintln!("{event:?}");
            let leader = trial.members.leader();
            match event {
                Event::Leader(hours) => clocks[leader].jump_to(hours).expect("a clock that jumps"),
                Event::Database(hours) => clock.jump_to(hours).expect("a clock that jumps"),
                Event::Killed => strike_at(&mut trial.members, leader, Fault::Kill),
            }
            let from = trial.watched();
            trial.recovers();
            // It is not only the test that believes in the jump.
            match event {
                Event::Leader(hours) if trial.members.leader() == leader => {
                    let last = last_time(&trial.members.urls()[leader], from);
                    assert!(
                        hours_later(hours).contains(&last),
                        "the newest change is of {last}: {:?}",
                        hours_later(hours)
                    );
                }
                Event::Database(hours) => {
                    let time = database.psql("SELECT to_char(now(), 'YYYY-MM-DD\"T\"HH24')").expect("a time");
                    assert!(hours_later(hours).contains(&time), "the database has {time}");
                }
                Event::Leader(_) | Event::Killed => {}
            }
        }
        trial.finish();
    }
}
