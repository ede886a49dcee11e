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

use kubewharf_engine::Engine;
use kubewharf_engine::lmdb::Lmdb;

use crate::child;
use crate::crash::{check_numbered, numbered_batch, options};

/// What a process did that a disk or its user could see.
#[derive(Clone, Debug)]
enum Event {
    /// A write to the data file; `is_synced` if its descriptor makes every write durable before it returns.
    Write { offset: usize, content: Vec<u8>, is_synced: bool },
    /// Room was added to the data file up to here.
    Extend { end: usize },
    /// The data file was synced.
    Sync,
    /// The user was told of batch `seq`.
    Acknowledge { seq: u64 },
}

/// A traced run: what happened, and what the process wrote.
struct Trace {
    events: Vec<Event>,
    /// For each event that is a `pwrite64`, its position among all such calls of the process, from 1.
    pwrites: HashMap<usize, usize>,
    /// The same for `fdatasync`.
    syncs: HashMap<usize, usize>,
    output: String,
}

const CALLS: &str = "trace=openat,open,creat,close,dup,dup2,dup3,fcntl,lseek,write,writev,pwrite64,pwritev,pwritev2,fsync,fdatasync,\
                     sync_file_range,msync,mmap,truncate,ftruncate,fallocate,sendfile,copy_file_range,splice,io_uring_setup";

/// Commits batches in a process of its own under strace, which may also put failures into its calls.
fn trace(directory: &Path, batches: u64, inject: Option<&str>) -> Trace {
    let log = directory.join("trace");
    let mut line: Vec<OsString> =
        ["strace", "-f", "-qq", "-xx", "-s", "10000000", "-e", CALLS].map(OsString::from).into();
    if let Some(inject) = inject {
        line.extend(["-e".into(), format!("inject={inject}").into()]);
    }
    line.extend(["-o".into(), log.clone().into(), "--".into()]);
    line.extend(child::command_line());
    let output = child::command(&line, &format!("commit {batches}"), &directory.join("data")).output();
    let output = output
        .unwrap_or_else(|e| panic!("strace, which this test needs, can't be run ({e}): install the package strace"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    let parsed = parse(&fs::read_to_string(&log).unwrap(), &directory.join("data/data.mdb"));
    fs::remove_file(log).unwrap();
    Trace { output: text, ..parsed }
}

/// Reads strace's lines: `pid call(arguments) = result`.
fn parse(log: &str, data_file: &Path) -> Trace {
    let mut trace = Trace { events: vec![], pwrites: HashMap::new(), syncs: HashMap::new(), output: String::new() };
    // Descriptors of the data file: whether each write through it is durable, and the position.
    let mut open: HashMap<i64, (bool, usize)> = HashMap::new();
    let mut pwrites = 0;
    let mut syncs = 0;
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
        pwrites += usize::from(name == "pwrite64");
        syncs += usize::from(name == "fdatasync");
        match name {
            "openat" => {
                let mut parts = arguments.split(", ");
                let path = PathBuf::from(String::from_utf8(unescape(parts.nth(1).unwrap())).unwrap());
                let flags = parts.next().unwrap();
                if !is_failed && path == data_file {
                    open.insert(result, (flags.contains("SYNC"), 0));
                }
            }
            "close" => drop(open.remove(&numbers[0])),
            "lseek" if open.contains_key(&numbers[0]) => {
                assert!(arguments.ends_with("SEEK_SET"), "{line}");
                open.get_mut(&numbers[0]).unwrap().1 = result as usize;
            }
            "write" if numbers[0] == 1 => {
                let text = String::from_utf8(unescape(arguments.split(", ").nth(1).unwrap())).unwrap();
                for seq in text.lines().filter_map(|line| line.strip_prefix("acknowledged ")) {
                    trace.events.push(Event::Acknowledge { seq: seq.parse().unwrap() });
                }
            }
            "pwrite64" | "writev" if open.contains_key(&numbers[0]) && !is_failed => {
                let (is_synced, position) = open.get_mut(&numbers[0]).unwrap();
                let mut content: Vec<u8> = strings(arguments).iter().flat_map(|text| unescape(text)).collect();
                content.truncate(result as usize);
                assert_eq!(content.len(), result as usize, "all bytes are in the trace: {name}");
                let offset = if name == "writev" { *position } else { *numbers.last().unwrap() as usize };
                if name == "writev" {
                    *position += content.len();
                } else {
                    trace.pwrites.insert(trace.events.len(), pwrites);
                }
                trace.events.push(Event::Write { offset, content, is_synced: *is_synced });
            }
            "fdatasync" | "fsync" if open.contains_key(&numbers[0]) && !is_failed => {
                if name == "fdatasync" {
                    trace.syncs.insert(trace.events.len(), syncs);
                }
                trace.events.push(Event::Sync);
            }
            "fallocate" | "ftruncate" if open.contains_key(&numbers[0]) && !is_failed => {
                let end = if name == "fallocate" { numbers[2] + numbers[3] } else { numbers[1] };
                trace.events.push(Event::Extend { end: end as usize });
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

/// A disk that forgets what was not synced.
#[derive(Clone)]
struct Disk {
    synced: Vec<u8>,
    pending: Vec<Event>,
}

impl Disk {
    fn apply(content: &mut Vec<u8>, event: &Event) {
        match event {
            Event::Write { offset, content: written, .. } => {
                let end = offset + written.len();
                content.resize(content.len().max(end), 0);
                content[*offset..end].copy_from_slice(written);
            }
            Event::Extend { end } => content.resize(content.len().max(*end), 0),
            Event::Sync | Event::Acknowledge { .. } => unreachable!("no change of content"),
        }
    }

    fn see(&mut self, event: &Event) {
        match event {
            Event::Write { is_synced: true, .. } => Self::apply(&mut self.synced, event),
            Event::Write { .. } | Event::Extend { .. } => self.pending.push(event.clone()),
            Event::Sync => {
                for event in self.pending.drain(..) {
                    Self::apply(&mut self.synced, &event);
                }
            }
            Event::Acknowledge { .. } => {}
        }
    }

    /// What is found after a loss of power, if of the changes that were not synced those survive that `survives` picks.
    fn after_power_loss(&self, mut survives: impl FnMut() -> bool) -> Vec<u8> {
        let mut content = self.synced.clone();
        for event in self.pending.iter().filter(|_| survives()) {
            Self::apply(&mut content, event);
        }
        content
    }
}

/// A store with some batches in it, closed.
fn seasoned_store(directory: &Path) {
    let engine = Lmdb::open(options(&directory.join("data"))).unwrap();
    for _ in 0..20 {
        engine.commit(&numbered_batch(&engine)).unwrap();
    }
}

/// The numbers of the batches in a store whose data file has this content.
fn open_content(content: &[u8]) -> BTreeSet<u64> {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("data.mdb"), content).unwrap();
    check_numbered(&Lmdb::open(options(directory.path())).unwrap())
}

#[test]
fn power_loss_at_any_moment_loses_nothing_acknowledged() {
    const BATCHES: u64 = 12;
    let directory = tempfile::tempdir().unwrap();
    seasoned_store(directory.path());
    let before = fs::read(directory.path().join("data/data.mdb")).unwrap();
    let trace = trace(directory.path(), BATCHES, None);

    let mut disk = Disk { synced: before.clone(), pending: vec![] };
    let mut acknowledged = open_content(&before);
    let known = acknowledged.len();
    let mut random = 1_u64;
    let mut is_pending_lost = false;
    for (position, event) in trace.events.iter().enumerate() {
        disk.see(event);
        if let Event::Acknowledge { seq } = event {
            acknowledged.insert(*seq);
            assert!(disk.pending.iter().all(|event| matches!(event, Event::Extend { .. })), "batch {seq} is synced");
        }
        is_pending_lost |= !disk.pending.is_empty();
        // All that was not synced is lost; in every third case a random half of it is.
        let content = disk.after_power_loss(|| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            position % 3 == 0 && random >> 63 == 0
        });
        let found = open_content(&content);
        assert!(found.is_superset(&acknowledged), "after event {position}: {:?}", acknowledged.difference(&found));
        assert!(found.len() <= acknowledged.len() + 1, "at most the batch in flight is there besides");
    }
    assert_eq!(acknowledged.len(), known + BATCHES as usize);
    assert!(is_pending_lost, "there was something to lose");

    // The check can fail: a disk that ignores syncs loses acknowledged batches.
    let mut lying = Disk { synced: before, pending: vec![] };
    for event in &trace.events {
        match event {
            Event::Sync => {}
            Event::Write { offset, content, .. } => {
                lying.see(&Event::Write { offset: *offset, content: content.clone(), is_synced: false });
            }
            other => lying.see(other),
        }
    }
    assert!(!open_content(&lying.after_power_loss(|| false)).is_superset(&acknowledged));
}

/// Runs the job with a failure put into one call, and returns what it wrote.
fn commit_with(inject: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    seasoned_store(directory.path());
    let known = check_numbered(&Lmdb::open(options(&directory.path().join("data"))).unwrap());
    let output = trace(directory.path(), 6, Some(inject)).output;
    // Whatever happened, the next process finds all that was acknowledged.
    let acknowledged = output.lines().filter_map(|line| line.strip_prefix("acknowledged ")?.parse().ok());
    let acknowledged: BTreeSet<u64> = acknowledged.chain(known).collect();
    let found = check_numbered(&Lmdb::open(options(&directory.path().join("data"))).unwrap());
    assert!(found.is_superset(&acknowledged), "{output}");
    assert!(found.len() <= acknowledged.len() + 1, "{output}");
    output
}

fn count(output: &str, prefix: &str) -> usize {
    output.lines().filter(|line| line.starts_with(prefix)).count()
}

#[test]
fn a_failing_disk_stops_the_engine_and_a_full_one_does_not() {
    // Where in the run the calls of the third batch are; all runs do the same.
    let directory = tempfile::tempdir().unwrap();
    seasoned_store(directory.path());
    drop(Lmdb::open(options(&directory.path().join("data"))).unwrap());
    let plain = trace(directory.path(), 6, None);
    assert_eq!(count(&plain.output, "acknowledged"), 6, "{}", plain.output);
    let acknowledged: Vec<_> =
        (0..plain.events.len()).filter(|at| matches!(plain.events[*at], Event::Acknowledge { .. })).collect();
    let third = acknowledged[1]..acknowledged[2];
    let nth = |calls: &HashMap<usize, usize>, is_synced_wanted: bool| {
        let mut found = third.clone().filter(|at| match &plain.events[*at] {
            Event::Write { is_synced, .. } => *is_synced == is_synced_wanted && calls.contains_key(at),
            Event::Sync => calls.contains_key(at),
            _ => false,
        });
        calls[&found.next().expect("the third batch makes such a call")]
    };
    let page = nth(&plain.pwrites, false);
    let root = nth(&plain.pwrites, true);
    let sync = nth(&plain.syncs, false);

    let ends = [
        format!("pwrite64:error=EIO:when={page}"),
        // A write that is cut short on a disk with room is no full disk.
        format!("pwrite64:retval=512:when={page}"),
        format!("fdatasync:error=EIO:when={sync}"),
        format!("pwrite64:error=EIO:when={root}"),
        // The root page may have been written all the same.
        format!("pwrite64:error=ENOSPC:when={root}"),
    ];
    for inject in &ends {
        let output = commit_with(inject);
        assert_eq!(count(&output, "acknowledged"), 2, "{inject}: {output}");
        assert_eq!(count(&output, "failed the engine failed, the process must end"), 1, "{inject}: {output}");
        let then =
            output.lines().find_map(|line| line.strip_prefix("then ")).unwrap_or_else(|| panic!("{inject}: {output}"));
        assert_eq!(then.matches("stopped after an earlier failure").count(), 2, "reads and writes: {output}");
    }
    for error in ["ENOSPC", "EDQUOT", "EFBIG"] {
        let inject = format!("pwrite64:error={error}:when={page}");
        let output = commit_with(&inject);
        assert_eq!(count(&output, "refused out of space"), 1, "{inject}: {output}");
        assert_eq!(count(&output, "acknowledged"), 5, "{inject}: {output}");
    }
}
