//! A disk that is really full: a small file system of its own, or a limit on the size of files.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use kubewharf_engine::conformance::{apply, delete, get, head, next_batch, put, rows};
use kubewharf_engine::lmdb::{DELTA_BYTES, Lmdb, Options};
use kubewharf_engine::{Batch, Cause, CommitError, Engine, Operation, Reserve, Table};

use crate::child;

const RESERVE_BYTES: u64 = 1 << 20;

/// A delta that is merged many times before the disk is full.
const SMALL_DELTA_BYTES: u64 = 512 << 10;

fn open(directory: &Path, delta_bytes: u64) -> Lmdb {
    Lmdb::open(Options { reserve_bytes: RESERVE_BYTES, delta_bytes, ..Options::new(directory) }).unwrap()
}

/// Removes rows, by way of all the room there is.
fn trim(engine: &Lmdb, operations: Vec<Operation>) {
    engine.commit(&Batch { reserve: Reserve::Whole, ..next_batch(engine, operations) }).unwrap();
}

/// Commits rows until there is no room for more; returns how many there are.
fn write_until_full(engine: &Lmdb, value: &[u8]) -> u32 {
    let mut written = rows(engine, Table::Log).len() as u32;
    loop {
        let before = head(engine);
        let batch = (0..10).map(|n| put(Table::Log, (written + n).to_be_bytes(), value)).collect();
        match engine.commit(&next_batch(engine, batch)) {
            Ok(()) => written += 10,
            Err(CommitError::NotApplied(Cause::NoSpace(_))) => {
                assert_eq!(head(engine), before, "a refused batch leaves the head");
                assert_eq!(rows(engine, Table::Log).len() as u32, written, "and no rows");
                return written;
            }
            Err(other) => panic!("{other}"),
        }
        assert!(written < 10_000, "the disk is not as small as it should be");
    }
}

/// The job: fills the disk, empties the store with the room kept back, and fills it again.
pub(crate) fn fill(directory: &Path, has_small_delta: bool) {
    let delta_bytes = if has_small_delta { SMALL_DELTA_BYTES } else { DELTA_BYTES };
    let ballast = directory.join("ballast");
    fs::write(&ballast, vec![0; 1 << 20]).unwrap();
    let engine = open(&directory.join("data"), delta_bytes);
    let value = vec![7; 3000];
    let written = write_until_full(&engine, &value);
    assert!(written >= 200, "most of the disk can be used: {written}");
    assert_eq!(get(&engine, Table::Log, &5_u32.to_be_bytes()), Some(value.clone()));

    for first in (0..written).step_by(10) {
        let mut batch = vec![put(Table::Meta, "compacted", first.to_be_bytes())];
        batch.extend((first..first + 10).map(|n| delete(Table::Log, n.to_be_bytes())));
        trim(&engine, batch);
    }
    assert_eq!(rows(&engine, Table::Log).len(), 0);
    let again = write_until_full(&engine, &value);
    assert!(again * 10 >= written * 7, "{again} of {written}");

    // Room that others give back is used without opening again, where it is the disk that is full.
    fs::remove_file(&ballast).unwrap();
    let more = write_until_full(&engine, &value);
    println!("written {written}, then {again}, then {more}");
    drop(engine);
    assert_eq!(rows(&open(&directory.join("data"), delta_bytes), Table::Log).len() as u32, more);
}

/// The job: fills the disk while the free pages that the engine counts on can't be used, because a snapshot holds them. LMDB
/// then meets the full disk itself, in the middle of writing a batch.
pub(crate) fn fill_with_pages_pinned(directory: &Path, has_small_delta: bool) {
    let delta_bytes = if has_small_delta { SMALL_DELTA_BYTES } else { DELTA_BYTES };
    let engine = open(&directory.join("data"), delta_bytes);
    let value = vec![7; 3000];
    let written = write_until_full(&engine, &value);
    let snapshot = engine.snapshot().unwrap();
    for first in (0..written).step_by(50) {
        let batch = (first..(first + 50).min(written)).map(|n| delete(Table::Log, n.to_be_bytes())).collect();
        trim(&engine, batch);
    }
    let mut kept = 0_u32;
    let refusal = loop {
        let batch = (0..20).map(|n| put(Table::Log, (kept + n).to_be_bytes(), &value)).collect();
        match engine.commit(&next_batch(&engine, batch)) {
            Ok(()) => kept += 20,
            Err(CommitError::NotApplied(Cause::NoSpace(text))) => break text,
            Err(other) => panic!("{other}"),
        }
    };
    println!("refused {refusal}");
    assert_eq!(rows(&engine, Table::Log).len() as u32, kept);
    drop(snapshot);
    // With the snapshot gone the free pages are free.
    let half = written / 20 * 10;
    for first in (kept..half).step_by(10) {
        apply(&engine, (first..first + 10).map(|n| put(Table::Log, n.to_be_bytes(), &value)).collect());
    }
    drop(engine);
    assert_eq!(rows(&open(&directory.join("data"), delta_bytes), Table::Log).len() as u32, half.max(kept));
}

/// Runs a job by way of a shell that first does `prepare` with `$DIRECTORY`.
fn run(shell: &[&str], prepare: &str, job: &str, directory: &Path) -> Result<String, String> {
    let script = format!("DIRECTORY=$1; shift; {prepare}; exec \"$@\"");
    let mut line: Vec<OsString> = shell.iter().map(OsString::from).collect();
    line.extend(["-c".into(), script.into(), "sh".into(), directory.into()]);
    line.extend(child::command_line());
    let output = child::command(&line, job, directory).output().map_err(|e| e.to_string())?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    if output.status.success() { Ok(text) } else { Err(text) }
}

const JOBS: [&str; 4] = ["fill", "fill small", "fill pinned", "fill pinned small"];

const MOUNT: &str = "set -e; mount -t tmpfs -o size=8m none \"$DIRECTORY\"";

/// How this machine lets a process have a file system of its own: as root, or in a user namespace.
fn private_mounts() -> Option<&'static [&'static str]> {
    let ways: [&[&str]; 2] =
        [&["unshare", "--mount", "sh"], &["unshare", "--user", "--map-root-user", "--mount", "sh"]];
    let scratch = tempfile::tempdir().unwrap();
    ways.into_iter().find(|way| {
        let script = format!("DIRECTORY=$1; {MOUNT}");
        let mut command = Command::new(way[0]);
        command.args(&way[1..]).args(["-c", &script, "sh"]).arg(scratch.path());
        command.output().is_ok_and(|output| output.status.success())
    })
}

#[test]
fn a_full_file_system_refuses_growth_and_recovers() {
    // Where nobody may mount, the limit on the size of files below has to do.
    let Some(shell) = private_mounts() else { return };
    for job in JOBS {
        let directory = tempfile::tempdir().unwrap();
        let output = run(shell, MOUNT, job, directory.path()).unwrap_or_else(|text| panic!("{job}: {text}"));
        let needed = if job.contains("pinned") { "refused" } else { "written" };
        assert!(output.contains(needed), "{output}");
        print!("{output}");
    }
}

#[test]
fn a_limit_on_the_size_of_files_refuses_growth_and_recovers() {
    // In units of 512 or, in some shells, 1024 bytes. The signal that goes with the limit is ignored, which the job inherits.
    let limit = "trap '' XFSZ; ulimit -f 7000";
    for job in JOBS {
        let directory = tempfile::tempdir().unwrap();
        let output = run(&["sh"], limit, job, directory.path()).unwrap_or_else(|text| panic!("{job}: {text}"));
        let needed = if job.contains("pinned") { "refused" } else { "written" };
        assert!(output.contains(needed), "{output}");
    }
}
