//! What is on the disk when a commit returns, and what a failing disk does to it.
//!
//! The page cache survives a killed process, so killing proves nothing about `fsync`. Here the system calls of a process that commits
//! are recorded, and a simulated disk replays them up to any point: it keeps what was synced, and of the rest nothing, or a random part. From each
//! such disk the engine must open with every batch that had been acknowledged by then. Failures of the disk are put into the same
//! calls.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use kubewharf_engine::lmdb::Lmdb;
use kubewharf_engine::{Engine, EngineError};

use crate::child;
use crate::crash::{Delta, check_numbered};

/// The files of a store.
const FILES: [&str; 3] = ["data.mdb", "journal-0", "journal-1"];
const DATA_FILE: usize = 0;
const JOURNAL: usize = 1;

/// The content of each of [`FILES`].
type Contents = [Vec<u8>; FILES.len()];

/// Where each of [`FILES`] has a name, if it has one.
type Names = [Option<Place>; FILES.len()];

/// A directory in which a file may have its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The data directory.
    Home,
    /// Where a new store is made, in the data directory.
    Nursery,
}

impl Place {
    fn path(self, data_directory: &Path) -> PathBuf {
        match self {
            Self::Home => data_directory.to_owned(),
            Self::Nursery => data_directory.join("new"),
        }
    }

    /// The place and the number of one of [`FILES`] with this path.
    fn of(path: &Path, data_directory: &Path) -> Option<(Self, usize)> {
        let file = FILES.iter().position(|name| path.file_name().is_some_and(|of_path| of_path == *name))?;
        let place =
            [Self::Home, Self::Nursery].into_iter().find(|place| path.parent() == Some(&place.path(data_directory)))?;
        Some((place, file))
    }
}

const ALL_AT_HOME: Names = [Some(Place::Home); FILES.len()];

/// What a process did that a disk or its user could see.
#[derive(Clone, Debug)]
enum Event {
    /// A write to a file; `is_synced` if its descriptor makes every write durable before it returns.
    Write { file: usize, offset: usize, content: Vec<u8>, is_synced: bool },
    /// Room was added to a file up to here.
    Extend { file: usize, end: usize },
    /// A file was synced.
    Sync { file: usize },
    /// A file was made, or moved, and has its name here from now on.
    Name { file: usize, place: Place },
    /// A directory was synced.
    SyncDirectory { place: Place },
    /// The store was opened and is served.
    Open,
    /// The user was told of batch `seq`.
    Acknowledge { seq: u64 },
}

/// A traced run: what happened, and what the process wrote.
struct Trace {
    events: Vec<Event>,
    /// For each event that is a `pwrite64`, its position among all such calls of its thread, from 1.
    pwrites: HashMap<usize, usize>,
    /// The same for `fdatasync`.
    syncs: HashMap<usize, usize>,
    output: String,
}

const CALLS: &str = "trace=openat,open,creat,close,dup,dup2,dup3,fcntl,lseek,write,writev,pwrite64,pwritev,pwritev2,fsync,fdatasync,\
                     sync_file_range,msync,mmap,truncate,ftruncate,fallocate,sendfile,copy_file_range,splice,io_uring_setup,\
                     rename,renameat,renameat2,link,linkat,unlink,unlinkat";

/// Commits batches in a process of its own under strace, which may also put failures into its calls.
fn trace(directory: &Path, delta: Delta, batches: u64, inject: Option<&str>) -> Trace {
    let log = directory.join("trace");
    let data_directory = directory.join("data");
    let names = FILES.map(|name| data_directory.join(name).exists().then_some(Place::Home));
    let mut line: Vec<OsString> =
        ["strace", "-f", "-qq", "-xx", "-s", "10000000", "-e", CALLS].map(OsString::from).into();
    if let Some(inject) = inject {
        line.extend(["-e".into(), format!("inject={inject}").into()]);
    }
    line.extend(["-o".into(), log.clone().into(), "--".into()]);
    line.extend(child::command_line());
    let output = child::command(&line, &delta.job(batches), &data_directory).output();
    let output = output
        .unwrap_or_else(|e| panic!("strace, which this test needs, can't be run ({e}): install the package strace"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    let parsed = parse(&fs::read_to_string(&log).unwrap(), &data_directory, names);
    fs::remove_file(log).unwrap();
    Trace { output: text, ..parsed }
}

/// Reads strace's lines: `pid call(arguments) = result`.
fn parse(log: &str, data_directory: &Path, mut names: Names) -> Trace {
    let mut trace = Trace { events: vec![], pwrites: HashMap::new(), syncs: HashMap::new(), output: String::new() };
    // Descriptors of the files: which file, whether each write through it is durable, and the position.
    let mut open: HashMap<i64, (usize, bool, usize)> = HashMap::new();
    let mut directories: HashMap<i64, Place> = HashMap::new();
    let mut pwrites: HashMap<String, usize> = HashMap::new();
    let mut syncs = pwrites.clone();
    // Calls during which another thread made one, by thread: strace tells them in two halves.
    let mut halves: HashMap<&str, &str> = HashMap::new();
    for line in log.lines() {
        let (thread, call) = line.split_once(' ').unwrap();
        let call = call.trim_start();
        if call.starts_with("+++") || call.starts_with("---") {
            continue;
        }
        if let Some(half) = call.strip_suffix("<unfinished ...>") {
            halves.insert(thread, half.trim_end());
            continue;
        }
        let whole = match call.strip_prefix("<... ") {
            Some(half) => [halves.remove(thread).unwrap(), half.split_once(" resumed>").unwrap().1].concat(),
            None => call.to_owned(),
        };
        let call = whole.as_str();
        let (name, rest) = call.split_once('(').unwrap();
        let (arguments, result) = rest.rsplit_once(" = ").unwrap_or_else(|| panic!("{line}"));
        let arguments = arguments.trim_end().strip_suffix(')').unwrap_or_else(|| panic!("{line}"));
        let result: i64 = result.split_whitespace().next().unwrap().parse().unwrap_or(i64::MAX);
        let is_failed = result < 0;
        let numbers: Vec<i64> = arguments.split(", ").map(|argument| argument.parse().unwrap_or(-1)).collect();
        let pwrites = pwrites.entry(thread.to_owned()).or_default();
        *pwrites += usize::from(name == "pwrite64");
        let syncs = syncs.entry(thread.to_owned()).or_default();
        *syncs += usize::from(name == "fdatasync");
        match name {
            "openat" => {
                let mut parts = arguments.split(", ");
                let path = PathBuf::from(String::from_utf8(unescape(parts.nth(1).unwrap())).unwrap());
                let flags = parts.next().unwrap();
                let directory =
                    [Place::Home, Place::Nursery].into_iter().find(|place| path == place.path(data_directory));
                if let Some(place) = directory.filter(|_| !is_failed) {
                    directories.insert(result, place);
                }
                if let Some((place, file)) = Place::of(&path, data_directory).filter(|_| !is_failed) {
                    if names[file].is_none() {
                        names[file] = Some(place);
                        trace.events.push(Event::Name { file, place });
                    }
                    assert_eq!(names[file], Some(place), "{line}");
                    assert!(!flags.contains("O_TRUNC"), "{line}");
                    open.insert(result, (file, flags.contains("SYNC"), 0));
                }
            }
            "close" => {
                open.remove(&numbers[0]);
                directories.remove(&numbers[0]);
            }
            "rename" | "renameat" | "renameat2" if !is_failed => {
                let paths = strings(arguments);
                let [from, to] = [paths[0], paths[1]]
                    .map(|path| Place::of(Path::new(&String::from_utf8(unescape(path)).unwrap()), data_directory));
                let ((_, file), (place, same)) = (from.unwrap(), to.unwrap());
                assert_eq!(file, same, "{line}");
                names[file] = Some(place);
                trace.events.push(Event::Name { file, place });
            }
            "unlink" | "unlinkat" | "link" | "linkat" => {
                for path in strings(arguments) {
                    let path = PathBuf::from(String::from_utf8(unescape(path)).unwrap());
                    assert!(is_failed || !FILES.iter().any(|name| path.ends_with(name)), "{line}");
                }
            }
            "lseek" if open.contains_key(&numbers[0]) => {
                assert!(arguments.ends_with("SEEK_SET"), "{line}");
                open.get_mut(&numbers[0]).unwrap().2 = result as usize;
            }
            "write" if numbers[0] == 1 => {
                let text = String::from_utf8(unescape(arguments.split(", ").nth(1).unwrap())).unwrap();
                trace.events.extend(text.lines().filter_map(|line| match line.strip_prefix("acknowledged ") {
                    Some(seq) => Some(Event::Acknowledge { seq: seq.parse().unwrap() }),
                    None => (line == "opened").then_some(Event::Open),
                }));
            }
            "pwrite64" | "writev" if open.contains_key(&numbers[0]) && !is_failed => {
                let (file, is_synced, position) = open.get_mut(&numbers[0]).unwrap();
                let mut content: Vec<u8> = strings(arguments).iter().flat_map(|text| unescape(text)).collect();
                content.truncate(result as usize);
                assert_eq!(content.len(), result as usize, "all bytes are in the trace: {name}");
                let offset = if name == "writev" { *position } else { *numbers.last().unwrap() as usize };
                if name == "writev" {
                    *position += content.len();
                } else {
                    trace.pwrites.insert(trace.events.len(), *pwrites);
                }
                trace.events.push(Event::Write { file: *file, offset, content, is_synced: *is_synced });
            }
            "fdatasync" | "fsync" if open.contains_key(&numbers[0]) && !is_failed => {
                if name == "fdatasync" {
                    trace.syncs.insert(trace.events.len(), *syncs);
                }
                trace.events.push(Event::Sync { file: open[&numbers[0]].0 });
            }
            "fdatasync" | "fsync" if directories.contains_key(&numbers[0]) && !is_failed => {
                trace.events.push(Event::SyncDirectory { place: directories[&numbers[0]] });
            }
            "fallocate" | "ftruncate" if open.contains_key(&numbers[0]) && !is_failed => {
                let end = if name == "fallocate" { numbers[2] + numbers[3] } else { numbers[1] };
                trace.events.push(Event::Extend { file: open[&numbers[0]].0, end: end as usize });
            }
            "mmap" if open.contains_key(&numbers[4]) => {
                assert!(!arguments.contains("PROT_WRITE"), "writes through a map would not be traced: {line}");
            }
            // Flags of a descriptor; a copy of one is unknown below.
            "fcntl" if !arguments.contains("F_DUPFD") => {}
            // On other files.
            "lseek" | "write" | "writev" | "pwrite64" | "fsync" | "fdatasync" | "mmap" | "ftruncate" | "fallocate" => {}
            _ => assert!(
                is_failed || !open.contains_key(&numbers[0]),
                "a call that the simulated disk does not know: {line}"
            ),
        }
    }
    trace
}

/// The quoted strings of a call, quotes included.
fn strings(arguments: &str) -> Vec<&str> {
    // Every byte of a string is escaped, so no quote is inside one.
    arguments
        .match_indices('"')
        .map(|(at, _)| at)
        .collect::<Vec<_>>()
        .chunks(2)
        .map(|ends| &arguments[ends[0]..=ends[1]])
        .collect()
}

/// The bytes of a string in which strace has escaped all of them.
fn unescape(quoted: &str) -> Vec<u8> {
    let inner = quoted
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .unwrap_or_else(|| panic!("cut short: {quoted}"));
    inner.split("\\x").skip(1).map(|hex| u8::from_str_radix(hex, 16).unwrap()).collect()
}

/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;

/// A disk that forgets what was not synced: the content of a file, and, apart from it, the file's name.
#[derive(Clone)]
struct Disk {
    synced: Contents,
    names: Names,
    pending: Vec<Event>,
}

impl Disk {
    /// With files that are durable, names and all.
    fn new(synced: Contents) -> Self {
        Self { synced, names: ALL_AT_HOME, pending: vec![] }
    }

    /// With nothing on it.
    fn empty() -> Self {
        Self { synced: Contents::default(), names: Names::default(), pending: vec![] }
    }

    /// What every process sees as long as there is power.
    fn cache(&self) -> (Contents, Names) {
        self.after_power_loss(|| true)
    }

    fn apply(contents: &mut Contents, event: &Event) {
        match event {
            Event::Write { file, offset, content: written, .. } => {
                let content = &mut contents[*file];
                let end = offset + written.len();
                content.resize(content.len().max(end), 0);
                content[*offset..end].copy_from_slice(written);
            }
            Event::Extend { file, end } => {
                let content = &mut contents[*file];
                content.resize(content.len().max(*end), 0);
            }
            _ => unreachable!("no change of content"),
        }
    }

    fn see(&mut self, event: &Event) {
        match event {
            Event::Write { is_synced: true, .. } => Self::apply(&mut self.synced, event),
            Event::Write { .. } | Event::Extend { .. } | Event::Name { .. } => self.pending.push(event.clone()),
            Event::SyncDirectory { place: synced } => {
                for event in std::mem::take(&mut self.pending) {
                    match event {
                        Event::Name { file, place } if place == *synced => {
                            self.names[file] = Some(place);
                            // A name that it had before is gone.
                            self.pending
                                .retain(|earlier| !matches!(earlier, Event::Name { file: of, .. } if *of == file));
                        }
                        other => self.pending.push(other),
                    }
                }
            }
            Event::Sync { file: synced } => {
                let (durable, pending): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending).into_iter().partition(
                    |event| matches!(event, Event::Write { file, .. } | Event::Extend { file, .. } if file == synced),
                );
                for event in &durable {
                    Self::apply(&mut self.synced, event);
                }
                self.pending = pending;
            }
            Event::Acknowledge { .. } | Event::Open => {}
        }
    }

    /// What is found after a loss of power, if of the sectors and names that were not synced those survive that `survives` picks.
    fn after_power_loss(&self, mut survives: impl FnMut() -> bool) -> (Contents, Names) {
        let mut contents = self.synced.clone();
        let mut names = self.names;
        for event in &self.pending {
            if let Event::Name { file, place } = event {
                if survives() {
                    names[*file] = Some(*place);
                }
                continue;
            }
            let Event::Write { file, offset, content, is_synced } = event else {
                if survives() {
                    Self::apply(&mut contents, event);
                }
                continue;
            };
            for (number, sector) in content.chunks(SECTOR_BYTES).enumerate() {
                if survives() {
                    let offset = offset + number * SECTOR_BYTES;
                    let (file, content, is_synced) = (*file, sector.to_vec(), *is_synced);
                    Self::apply(&mut contents, &Event::Write { file, offset, content, is_synced });
                }
            }
        }
        (contents, names)
    }
}

/// A store with some batches in it, closed.
fn seasoned_store(directory: &Path, delta: Delta) {
    let engine = Lmdb::open(delta.options(&directory.join("data"))).unwrap();
    let batches = if delta == Delta::Wide { 1 } else { 20 };
    for _ in 0..batches {
        engine.commit(&delta.batch(&engine)).unwrap();
    }
}

/// Makes the files.
fn write_contents(data_directory: &Path, contents: &Contents, names: Names) {
    fs::create_dir_all(Place::Nursery.path(data_directory)).unwrap();
    for (file, name) in FILES.iter().enumerate() {
        if let Some(place) = names[file] {
            fs::write(place.path(data_directory).join(name), &contents[file]).unwrap();
        }
    }
}

/// The numbers of the batches in a store whose files have these contents, if it opens.
fn try_contents((contents, names): (Contents, Names)) -> Result<BTreeSet<u64>, EngineError> {
    let directory = tempfile::tempdir().unwrap();
    write_contents(directory.path(), &contents, names);
    Ok(check_numbered(&Lmdb::open(Delta::Large.options(directory.path()))?))
}

/// The numbers of the batches in a store whose files have these contents.
fn open_contents(found: (Contents, Names)) -> BTreeSet<u64> {
    try_contents(found).unwrap()
}

/// Picks at random in every second case, and nothing in the others.
struct Survivors(u64);

impl Survivors {
    fn pick(&mut self, position: usize) -> bool {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        position.is_multiple_of(2) && self.0 >> 63 == 0
    }
}

/// Contents of a store's files.
fn read_contents(data_directory: &Path) -> Contents {
    FILES.map(|name| fs::read(data_directory.join(name)).unwrap())
}

#[test]
fn power_loss_at_any_moment_loses_nothing_acknowledged() {
    for (delta, batches) in [(Delta::None, 12), (Delta::Small, 30), (Delta::Large, 12)] {
        lose_power_at_any_moment(delta, batches);
    }
}

fn lose_power_at_any_moment(delta: Delta, batches: u64) {
    let directory = tempfile::tempdir().unwrap();
    seasoned_store(directory.path(), delta);
    let before = read_contents(&directory.path().join("data"));
    let trace = trace(directory.path(), delta, batches, None);

    let mut disk = Disk::new(before.clone());
    let mut acknowledged = open_contents(disk.cache());
    let known = acknowledged.len();
    let mut survivors = Survivors(1);
    let mut lost = [false; FILES.len()];
    for (position, event) in trace.events.iter().enumerate() {
        disk.see(event);
        if let Event::Acknowledge { seq } = event {
            acknowledged.insert(*seq);
            // What a merge has under way is not what the batch rests on.
            let is_harmless = |event: &Event| match event {
                Event::Extend { .. } => true,
                Event::Write { file, .. } => delta == Delta::Small && *file == DATA_FILE,
                _ => false,
            };
            assert!(disk.pending.iter().all(is_harmless), "{delta:?}: batch {seq} is synced");
        }
        for event in &disk.pending {
            if let Event::Write { file, .. } = event {
                lost[*file] = true;
            }
        }
        // All that was not synced is lost; in every second case a random half of it is.
        let found = open_contents(disk.after_power_loss(|| survivors.pick(position)));
        let missing = acknowledged.difference(&found);
        assert!(found.is_superset(&acknowledged), "{delta:?}, after event {position}: {missing:?}");
        assert!(found.len() <= acknowledged.len() + 1, "at most the batch in flight is there besides");
    }
    assert_eq!(acknowledged.len(), known + batches as usize);
    let expected = match delta {
        Delta::None => [true, false, false],
        Delta::Small => [true; 3],
        Delta::Large | Delta::Wide => [true, true, false],
    };
    assert_eq!(lost, expected, "{delta:?}: there was something to lose");

    // The check can fail: a disk that ignores syncs loses acknowledged batches.
    let mut lying = Disk::new(before);
    for event in &trace.events {
        match event {
            Event::Sync { .. } => {}
            Event::Write { file, offset, content, .. } => {
                let (file, offset, content) = (*file, *offset, content.clone());
                lying.see(&Event::Write { file, offset, content, is_synced: false });
            }
            other => lying.see(other),
        }
    }
    assert!(!open_contents(lying.after_power_loss(|| false)).is_superset(&acknowledged));
}

/// A name is durable when its directory has been synced, whatever is with the content of the file.
#[test]
fn power_loss_while_a_store_is_made_leaves_one_that_opens() {
    for (delta, batches) in [(Delta::None, 3), (Delta::Large, 3)] {
        let directory = tempfile::tempdir().unwrap();
        let trace = trace(directory.path(), delta, batches, None);
        let mut disk = Disk::empty();
        let mut acknowledged = BTreeSet::new();
        let mut survivors = Survivors(2);
        let mut names_lost = [false; FILES.len()];
        for (position, event) in trace.events.iter().enumerate() {
            disk.see(event);
            if let Event::Acknowledge { seq } = event {
                acknowledged.insert(*seq);
            }
            for event in &disk.pending {
                if let Event::Name { file, .. } = event {
                    names_lost[*file] = true;
                }
            }
            // Often: what survives of few names is a small part of the cases.
            for case in 0..4 {
                let lost = disk.after_power_loss(|| survivors.pick(case));
                let names = lost.1;
                let found = try_contents(lost).unwrap_or_else(|e| panic!("after event {position}, {names:?}: {e}"));
                assert!(found.is_superset(&acknowledged), "{delta:?}, after event {position}: {names:?}");
                assert!(found.len() <= acknowledged.len() + 1);
            }
        }
        assert_eq!((acknowledged.len(), names_lost), (batches as usize, [true; FILES.len()]), "{delta:?}");
        assert_eq!(disk.names, ALL_AT_HOME);

        // The check can fail: each sync of the directory is needed. The store is not closed then, which would do without the journal's files.
        let last = trace.events.iter().rposition(|event| matches!(event, Event::Acknowledge { .. })).unwrap();
        let syncs = trace.events.iter().filter(|event| matches!(event, Event::SyncDirectory { .. })).count();
        for kept in 0..syncs {
            let (mut lying, mut seen) = (Disk::empty(), 0);
            for event in &trace.events[..=last] {
                if matches!(event, Event::SyncDirectory { .. }) {
                    seen += 1;
                    if seen > kept {
                        continue;
                    }
                }
                lying.see(event);
            }
            let found = try_contents(lying.after_power_loss(|| false));
            // Or the store is refused, for want of its journal.
            let is_whole = found.is_ok_and(|found| found.is_superset(&acknowledged));
            assert!(!is_whole, "{delta:?}: with {kept} syncs of the directory nothing is lost");
        }
    }
}

/// A killed process leaves what it has written in the system's memory, and the next one reads it there: what that one serves must be on
/// the disk, although whoever wrote it never synced it.
#[test]
fn power_loss_while_a_killed_process_is_recovered_from_loses_nothing_that_was_served() {
    for (delta, batches) in [(Delta::Wide, 4), (Delta::Small, 30)] {
        let directory = tempfile::tempdir().unwrap();
        seasoned_store(directory.path(), delta);
        let before = read_contents(&directory.path().join("data"));
        let killed = trace(directory.path(), delta, batches, None);
        // Some writes of each kind: to the journal, to LMDB's pages, and to its root.
        let kinds = [(JOURNAL, false), (DATA_FILE, false), (DATA_FILE, true)];
        let kills: BTreeSet<usize> = kinds.into_iter().flat_map(|kind| some_writes(&killed.events, kind)).collect();
        assert!(kills.len() >= 5, "{delta:?}: {kills:?}");

        let mut disk = Disk::new(before);
        let mut acknowledged = open_contents(disk.cache());
        for (position, event) in killed.events.iter().enumerate() {
            if let Event::Acknowledge { seq } = event {
                acknowledged.insert(*seq);
            }
            if let Event::Write { file, offset, content, .. } = event
                && kills.contains(&position)
            {
                // Killed in this call.
                let mut at_kill = disk.clone();
                let (file, offset, content) = (*file, *offset, content.clone());
                at_kill.see(&Event::Write { file, offset, content, is_synced: false });
                recover(&at_kill, delta, &acknowledged);
            }
            disk.see(event);
        }
    }
}

/// Four of the writes to this file that are durable by themselves, or of those that are not.
fn some_writes(events: &[Event], kind: (usize, bool)) -> Vec<usize> {
    let is_one = |event: &Event| matches!(event, Event::Write { file, is_synced, .. } if (*file, *is_synced) == kind);
    let found: Vec<usize> = (0..events.len()).filter(|at| is_one(&events[*at])).collect();
    found.iter().copied().step_by(found.len().div_ceil(4).max(1)).collect()
}

/// Recovers from what a killed process has left, and loses power at any moment of that.
fn recover(at_kill: &Disk, delta: Delta, acknowledged: &BTreeSet<u64>) {
    const BATCHES: u64 = 2;
    let directory = tempfile::tempdir().unwrap();
    let (contents, names) = at_kill.cache();
    let served = open_contents((contents.clone(), names));
    assert!(served.is_superset(acknowledged));
    write_contents(&directory.path().join("data"), &contents, names);
    let trace = trace(directory.path(), delta, BATCHES, None);
    let mut disk = at_kill.clone();
    let mut acknowledged = acknowledged.clone();
    let mut survivors = Survivors(3);
    let mut is_open = false;
    for (position, event) in trace.events.iter().enumerate() {
        disk.see(event);
        match event {
            Event::Open => {
                is_open = true;
                acknowledged.extend(&served);
            }
            Event::Acknowledge { seq } => {
                acknowledged.insert(*seq);
            }
            _ => {}
        }
        let found = open_contents(disk.after_power_loss(|| survivors.pick(position)));
        let missing = acknowledged.difference(&found);
        assert!(found.is_superset(&acknowledged), "{delta:?}, after event {position}: {missing:?}");
        assert!(found.len() <= acknowledged.union(&served).count() + 1);
    }
    assert!(is_open && acknowledged.len() == served.len() + BATCHES as usize, "{}", trace.output);
}

/// Runs the job with a failure put into one call, and returns what it wrote.
fn commit_with(delta: Delta, batches: u64, inject: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    seasoned_store(directory.path(), delta);
    let known = check_numbered(&Lmdb::open(delta.options(&directory.path().join("data"))).unwrap());
    let output = trace(directory.path(), delta, batches, Some(inject)).output;
    // Whatever happened, the next process finds all that was acknowledged.
    let acknowledged = output.lines().filter_map(|line| line.strip_prefix("acknowledged ")?.parse().ok());
    let acknowledged: BTreeSet<u64> = acknowledged.chain(known).collect();
    let found = check_numbered(&Lmdb::open(delta.options(&directory.path().join("data"))).unwrap());
    assert!(found.is_superset(&acknowledged), "{output}");
    assert!(found.len() <= acknowledged.len() + 1, "{output}");
    output
}

fn count(output: &str, prefix: &str) -> usize {
    output.lines().filter(|line| line.starts_with(prefix)).count()
}

/// Where the calls of the third batch of six are; all runs do the same.
struct Third {
    /// The first write whose durability a later sync brings.
    page: usize,
    sync: usize,
    /// The first write that is durable by itself.
    root: Option<usize>,
}

fn third_batch(delta: Delta) -> Third {
    let directory = tempfile::tempdir().unwrap();
    seasoned_store(directory.path(), delta);
    drop(Lmdb::open(delta.options(&directory.path().join("data"))).unwrap());
    let plain = trace(directory.path(), delta, 6, None);
    assert_eq!(count(&plain.output, "acknowledged"), 6, "{}", plain.output);
    let acknowledged: Vec<_> =
        (0..plain.events.len()).filter(|at| matches!(plain.events[*at], Event::Acknowledge { .. })).collect();
    let mut calls = acknowledged[1]..acknowledged[2];
    let write = |is_synced_wanted: bool| {
        calls.clone().find(|at| {
            matches!(&plain.events[*at], Event::Write { is_synced, .. } if *is_synced == is_synced_wanted)
                && plain.pwrites.contains_key(at)
        })
    };
    let (page, root) = (write(false), write(true));
    let sync = calls.find(|at| matches!(&plain.events[*at], Event::Sync { .. }) && plain.syncs.contains_key(at));
    Third {
        page: plain.pwrites[&page.expect("the third batch writes")],
        sync: plain.syncs[&sync.expect("the third batch syncs")],
        root: root.map(|root| plain.pwrites[&root]),
    }
}

fn assert_ends(delta: Delta, inject: &str) {
    let output = commit_with(delta, 6, inject);
    assert_eq!(count(&output, "acknowledged"), 2, "{inject}: {output}");
    assert_eq!(count(&output, "failed the engine failed, the process must end"), 1, "{inject}: {output}");
    assert_refuses_all(&output);
}

fn assert_refuses_all(output: &str) {
    let then = output.lines().find_map(|line| line.strip_prefix("then ")).unwrap_or_else(|| panic!("{output}"));
    assert_eq!(then.matches("stopped after an earlier failure").count(), 2, "reads and writes: {output}");
}

#[test]
fn a_failing_disk_stops_the_engine_and_a_full_one_does_not() {
    let Third { page, sync, root } = third_batch(Delta::None);
    let root = root.expect("a batch that goes to LMDB writes its root");
    let ends = [
        format!("pwrite64:error=EIO:when={page}"),
        format!("fdatasync:error=EIO:when={sync}"),
        format!("pwrite64:error=EIO:when={root}"),
        // The root page may have been written all the same.
        format!("pwrite64:error=ENOSPC:when={root}"),
        format!("pwrite64:retval=50:when={root}"),
    ];
    for inject in &ends {
        assert_ends(Delta::None, inject);
    }
    // A write that is cut short is a full disk, also if somebody has made room since.
    for full in ["error=ENOSPC", "error=EDQUOT", "error=EFBIG", "retval=512", "retval=0"] {
        let inject = format!("pwrite64:{full}:when={page}");
        let output = commit_with(Delta::None, 6, &inject);
        assert_eq!(count(&output, "refused out of space"), 1, "{inject}: {output}");
        assert_eq!(count(&output, "acknowledged"), 5, "{inject}: {output}");
    }
}

#[test]
fn a_failing_journal_stops_the_engine_and_a_full_one_is_done_without() {
    let Third { page, sync, root } = third_batch(Delta::Large);
    assert_eq!(root, None, "a batch that goes to the journal leaves LMDB alone");
    assert_ends(Delta::Large, &format!("pwrite64:error=EIO:when={page}"));
    for error in ["EIO", "ENOSPC"] {
        assert_ends(Delta::Large, &format!("fdatasync:error={error}:when={sync}"));
    }
    for error in ["ENOSPC", "EDQUOT", "EFBIG"] {
        let output = commit_with(Delta::Large, 6, &format!("pwrite64:error={error}:when={page}"));
        assert_eq!(count(&output, "acknowledged"), 6, "{error}: {output}");
    }
}

/// The calls are those of the thread that merges, which are its own to count.
#[test]
fn a_failing_merge_stops_the_engine() {
    for inject in ["fdatasync:error=EIO:when=100+", "pwrite64:error=EIO:when=300+"] {
        let output = commit_with(Delta::Small, 400, inject);
        assert_eq!(count(&output, "failed the engine failed, the process must end"), 1, "{inject}: {output}");
        assert_refuses_all(&output);
    }
}
