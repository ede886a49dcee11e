//! What a process has used of the machine, as the kernel counts it.
//!
//! Memory is told apart: anonymous pages belong to the process, mapped file pages are the page cache's and are given
//! back when someone else needs them. A store over a memory-mapped file shows most of its data as the latter.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result};

/// Memory of a process, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Resident pages that no file stands behind.
    pub anonymous: u64,
    /// All resident pages.
    pub resident: u64,
    /// The most resident pages there ever were.
    pub resident_max: u64,
}

/// Processor time that all threads of the process have used so far, those that have ended included. The kernel counts
/// it in steps of 10 ms.
///
/// # Errors
/// When there is no such process.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    cpu_time_of(pid, OWN_FIELD)
}

/// Processor time of the children of a process that have ended and that it has waited for, in the same steps.
///
/// # Errors
/// When there is no such process.
pub fn cpu_time_of_ended_children(pid: u32) -> Result<Duration> {
    cpu_time_of(pid, CHILDREN_FIELD)
}

/// Memory that the process holds now.
///
/// # Errors
/// When there is no such process.
pub fn memory(pid: u32) -> Result<Memory> {
    let path = PathBuf::from(format!("/proc/{pid}/status"));
    let text = std::fs::read_to_string(&path).map_err(Error::file("read", &path))?;
    let bytes = |field: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.and_then(|value| value.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.unwrap_or_else(|| panic!("no {field} in {}:\n{text}", path.display())) * 1024
    };
    Ok(Memory { anonymous: bytes("RssAnon:"), resident: bytes("VmRSS:"), resident_max: bytes("VmHWM:") })
}

/// Where in `proc_pid_stat(5)` a process's own time begins, and that of its children: user's and system's.
const OWN_FIELD: usize = 14;
const CHILDREN_FIELD: usize = 16;

fn cpu_time_of(pid: u32, field: usize) -> Result<Duration> {
    let path = PathBuf::from(format!("/proc/{pid}/stat"));
    let text = std::fs::read_to_string(&path).map_err(Error::file("read", &path))?;
    let ticks = cpu_ticks(&text, field).unwrap_or_else(|| panic!("not the form of proc_pid_stat(5): {text}"));
    Ok(Duration::from_micros(ticks * 1_000_000 / ticks_per_second()))
}

/// The sum of that field and the next. Fields count from 1, and the second is the program's name, which may hold spaces and brackets.
fn cpu_ticks(stat: &str, field: usize) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(field - 3);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[allow(unsafe_code, reason = "the standard library does not tell the length of a clock tick")]
fn ticks_per_second() -> u64 {
    // SAFETY: sysconf takes an integer and touches no memory of this process.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    u64::try_from(ticks).expect("every Linux has clock ticks")
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn processor_time_grows_with_work_and_not_with_waiting() {
        let pid = std::process::id();
        let start = cpu_time(pid).unwrap();
        let begun = Instant::now();
        let mut x = 1_u64;
        // Other tests of this process run at the same time, so only a lower bound can be checked here.
        while cpu_time(pid).unwrap() < start + Duration::from_millis(100) {
            for _ in 0..100_000 {
                x = std::hint::black_box(x.wrapping_mul(3));
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "60 s of work do not show");
        }
    }

    #[test]
    fn a_name_with_spaces_and_brackets_does_not_shift_the_fields() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 900 0 0 0 250 50 30 4 20 0 4 0 100 5 6";
        assert_eq!(cpu_ticks(stat, OWN_FIELD), Some(300));
        assert_eq!(cpu_ticks(stat, CHILDREN_FIELD), Some(34));
    }

    #[test]
    fn anonymous_memory_grows_with_what_is_written_to() {
        let pid = std::process::id();
        let before = memory(pid).unwrap();
        let block = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = memory(pid).unwrap();
        assert!(after.anonymous >= before.anonymous + (32 << 20), "{before:?} {after:?}");
        assert!(after.resident_max >= after.anonymous);
        assert_eq!(block[1 << 20], 1);
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        assert!(cpu_time(u32::MAX).is_err());
        assert!(memory(u32::MAX).is_err());
    }
}
