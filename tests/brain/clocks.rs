//! Clocks that are wrong, and that jump by hours both ways while their members lead.
//!
//! What measures time in a process is the kernel's monotonic clock, which nobody can set; it begins anew with each boot, so each member here
//! has one that is days away from those of the others, and nothing that one of them measured can mean anything to another. The wall
//! clocks of members and of the database jump: PostgreSQL tells by its own when a statement or a transaction has taken too long.

use std::time::Duration;

use kubewharf_testkit::clock::WallClock;
use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::members::{Members, Place};
use kubewharf_testkit::namespace::Namespace;
use kubewharf_testkit::postgres::{Installation, Setup};

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

#[test]
fn clocks_that_jump_by_hours_end_no_lease_and_no_reign_and_lose_nothing() {
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
        let mut trial = Trial::start(members, seed);
        for event in [
            Event::Leader(5),
            Event::Killed,
            Event::Database(30),
            Event::Leader(-50),
            Event::Killed,
            Event::Database(-30),
            Event::Leader(0),
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
            trial.recovers();
        }
        trial.finish();
    }
}
