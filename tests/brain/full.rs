//! A database whose disk is full: clients are told, nothing that was acknowledged is lost, and all goes on once there is room.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::members::{Members, Place};
use kubewharf_testkit::namespace::Namespace;
use kubewharf_testkit::postgres::{Installation, Postgres, Setup};

use crate::client::get;
use crate::members::Trial;
use crate::random::seeds;

const SOON: Duration = Duration::from_secs(60);
const NO_SPACE: &str = "ResourceExhausted: etcdserver: mvcc: database space exceeded";
/// What is put there takes less than half of it at first.
const DISK_BYTES: u64 = 128 << 20;

/// A database with a small disk for its rows, or for its log.
struct Small {
    database: Postgres,
    _disk: Namespace,
    ballast: PathBuf,
}

impl Small {
    /// With what is in the folder `small` on that disk: `data`, where its rows are, or `log`.
    fn start(small: &str) -> Self {
        let folder = Folder::new("postgres").expect("a folder");
        let small = folder.path().join(small);
        std::fs::create_dir(&small).expect("a folder can have a folder");
        let owner = Installation::find().and_then(|installation| installation.owner);
        let disk = Namespace::with_disk(&folder, "disk", &small, DISK_BYTES, owner).expect("a disk");
        let log = format!("--waldir={}", folder.path().join("log").display());
        // The server takes room for its log by the file; so it does that often.
        let initialization = [log.as_str(), "--wal-segsize=1"];
        let setup = Setup { namespaces: vec![disk.inside()], initialization: &initialization, ..Setup::default() };
        let database = setup.start_in(folder).expect("the database starts");
        let ballast = disk.outside(&small.join("ballast"));
        Self { database, _disk: disk, ballast }
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let mut file = File::create(&self.ballast).expect("a file can be made");
        let error = loop {
            if let Err(error) = file.write_all(&[0; 4096]) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
    }

    fn make_room(&self) {
        std::fs::remove_file(&self.ballast).expect("a file can be removed");
    }
}

fn start(database: &Postgres, seed: u64) -> Trial {
    let flags = ["--log-level=info", "--log-format=console"];
    let places = [const { Place { host: None, namespaces: Vec::new(), environment: Vec::new() } }; 3];
    Trial::start(Members::at(&database.url(), &places, &flags).expect("the members start"), seed, 30)
}

#[test]
fn a_database_that_has_no_room_for_rows_refuses_writes_alone_until_it_has() {
    for seed in seeds(1) {
        eprintln!("seed {seed}");
        let small = Small::start("data");
        let mut trial = start(&small.database, seed);
        for _ in 0..2 {
            trial.work();
            let before = trial.failed(NO_SPACE);
            small.fill();
            trial.wait(|_| trial.failed(NO_SPACE) > before + 20, || "clients are not told".to_owned());
            trial.run(trial.client.clone().kv.range(get("shared/1"))).expect("a read needs no room");
            small.make_room();
            trial.recovers();
        }
        trial.finish();
    }
}

#[test]
fn a_database_that_ends_for_want_of_room_for_its_log_has_lost_nothing_when_it_comes_back() {
    for seed in seeds(1) {
        eprintln!("seed {seed}");
        let mut small = Small::start("log");
        let mut trial = start(&small.database, seed);
        for _ in 0..2 {
            trial.work();
            small.fill();
            let deadline = Instant::now() + SOON;
            while !small.database.has_ended() {
                assert!(Instant::now() < deadline, "PostgreSQL goes on without a log: {:?}", small.database.log_text());
                std::thread::sleep(Duration::from_millis(20));
            }
            small.make_room();
            // As whoever looks after the server does.
            small.database.restart().expect("the database starts again");
            trial.recovers();
        }
        trial.finish();
    }
}
