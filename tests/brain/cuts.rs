//! Members and their database on hosts of their own, and networks that are cut between any two of them: nothing is lost, doubled or hidden,
//! and whoever can go on does, while the cut lasts.

use std::time::{Duration, Instant};

use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::members::{Members, Place};
use kubewharf_testkit::network::{Network, TEST};
use kubewharf_testkit::postgres::{Postgres, Setup};

use crate::members::Trial;
use crate::random::seeds;

/// The node of the database.
const DATABASE: usize = 4;
const DATABASE_PORT: u16 = 5432;

/// Which way is cut.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// Between the leader and the database.
    LeaderFromDatabase,
    /// From the database to the leader alone: what the leader writes arrives, and it never hears of it.
    AnswersToLeader,
    /// From the leader to the database alone.
    WritesOfLeader,
    /// Between the leader and a follower.
    LeaderFromFollower,
    /// Between the leader and all other members.
    LeaderFromFollowers,
    /// Between a follower and the database.
    FollowerFromDatabase,
    /// Between clients and the leader.
    LeaderFromClients,
    /// All of the leader's.
    Leader,
    /// All of the database's.
    Database,
}

/// The node that a member is on.
fn node(member: usize) -> usize {
    member + 1
}

/// Members and their database, each on a node of its own.
struct Hosts {
    // In this order they end.
    trial: Trial,
    _database: Postgres,
    network: Network,
}

impl Hosts {
    fn start(seed: u64, kept_ttl_seconds: u64) -> Self {
        let network = Network::start(4).expect("a network");
        let address = (network.address(DATABASE), DATABASE_PORT).into();
        let setup = Setup { address: Some(address), namespaces: vec![network.inside(DATABASE)], ..Setup::default() };
        let database = setup.start_in(Folder::new("postgres").expect("a folder")).expect("the database starts");
        let place = |member| Place {
            host: Some(network.address(node(member))),
            namespaces: vec![network.inside(node(member))],
            ..Place::default()
        };
        let flags = ["--log-level=info", "--log-format=console"];
        let members = Members::at(&database.url(), &[0, 1, 2].map(place), &flags).expect("the members start");
        Self { trial: Trial::start(members, seed, kept_ttl_seconds), _database: database, network }
    }

    /// Cuts, sees that whoever can go on does, heals, and sees that all go on.
    fn cut(&mut self, cut: Cut, at_least: Duration) {
        self.trial.work();
        let leader = self.trial.members.leader();
        let [follower, other] = [1, 2].map(|step| (leader + step) % 3);
        let network = &mut self.network;
        let begun = Instant::now();
        // On whom writes go on, and who must say that it can't serve.
        let (going_on, not_ready) = match cut {
            Cut::LeaderFromDatabase => {
                network.cut(node(leader), DATABASE).expect("a cut");
                (vec![follower, other], Some(leader))
            }
            Cut::AnswersToLeader => {
                network.cut_from(DATABASE, node(leader)).expect("a cut");
                (vec![follower, other], Some(leader))
            }
            Cut::WritesOfLeader => {
                network.cut_from(node(leader), DATABASE).expect("a cut");
                (vec![follower, other], Some(leader))
            }
            Cut::LeaderFromFollower => {
                network.cut(node(leader), node(follower)).expect("a cut");
                (vec![leader, other], Some(follower))
            }
            Cut::LeaderFromFollowers => {
                network.cut(node(leader), node(follower)).expect("a cut");
                network.cut(node(leader), node(other)).expect("a cut");
                (vec![leader], Some(follower))
            }
            Cut::FollowerFromDatabase => {
                network.cut(node(follower), DATABASE).expect("a cut");
                (vec![leader, other], Some(follower))
            }
            Cut::LeaderFromClients => {
                network.cut(node(leader), TEST).expect("a cut");
                (vec![follower, other], None)
            }
            Cut::Leader => {
                network.unplug(node(leader)).expect("a cable");
                (vec![follower, other], None)
            }
            Cut::Database => {
                network.unplug(DATABASE).expect("a cable");
                (vec![], Some(leader))
            }
        };
        self.trial.goes_on(&going_on);
        let gone_on = begun.elapsed();
        if let Some(member) = not_ready {
            self.trial.wait(|_| !self.trial.members.is_ready(member), || format!("member {member} says it is ready"));
        }
        std::thread::sleep(at_least.saturating_sub(begun.elapsed()));
        let lasted = begun.elapsed();
        self.network.heal().expect("the network heals");
        let healed = Instant::now();
        self.trial.recovers();
        eprintln!(
            "{cut:?}: writes went on after {gone_on:.1?}, all after {lasted:.1?} of it and {:.1?}",
            healed.elapsed()
        );
    }
}

const ALL: [Cut; 9] = [
    Cut::LeaderFromDatabase,
    Cut::LeaderFromFollower,
    Cut::AnswersToLeader,
    Cut::FollowerFromDatabase,
    Cut::LeaderFromClients,
    Cut::WritesOfLeader,
    Cut::Leader,
    Cut::Database,
    Cut::LeaderFromFollowers,
];

#[test]
fn a_network_that_is_cut_anywhere_hides_and_loses_nothing() {
    for seed in seeds(1) {
        eprintln!("seed {seed}");
        let mut hosts = Hosts::start(seed, 30);
        for cut in ALL {
            hosts.cut(cut, Duration::from_secs(3));
        }
        hosts.trial.finish();
    }
}

#[test]
#[ignore = "takes five minutes"]
fn a_network_that_is_cut_for_longer_than_anybody_waits_hides_and_loses_nothing() {
    for seed in seeds(1) {
        eprintln!("seed {seed}");
        let mut hosts = Hosts::start(seed, 600);
        for cut in
            [Cut::LeaderFromDatabase, Cut::AnswersToLeader, Cut::FollowerFromDatabase, Cut::Leader, Cut::Database]
        {
            // Outcomes are pursued for half a minute, and a connection that gets no answer is given up before.
            hosts.cut(cut, Duration::from_secs(50));
        }
        hosts.trial.finish();
    }
}
