//! What a run was made on: without it a number means nothing.

use std::fs;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::histogram::Histogram;

/// Writes that the disk is tried with.
const SYNCS: u32 = 200;

/// A machine, as far as it bears on the results.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Memory, in GiB.
    pub memory_gib: f64,
    /// The kernel's release.
    pub kernel: String,
    /// The type of the file system that held the data.
    pub file_system: String,
    /// Median time to write 4 KiB to it and wait until they are durable, in microseconds.
    pub sync_p50_us: f64,
    /// 99 % of such writes took at most this, in microseconds.
    pub sync_p99_us: f64,
}

impl Machine {
    /// Any machine, for results that were made up.
    #[cfg(test)]
    pub(crate) fn example() -> Self {
        Self {
            processor: "a processor".to_owned(),
            cores: 2,
            memory_gib: 8.0,
            kernel: "6.1".to_owned(),
            file_system: "ext4".to_owned(),
            sync_p50_us: 100.0,
            sync_p99_us: 200.0,
        }
    }

    /// This machine, with data in that folder.
    ///
    /// # Errors
    /// When the folder cannot be written, or this is no Linux.
    pub fn here(data: &Path) -> io::Result<Self> {
        let syncs = try_disk(data)?;
        let us = |share| syncs.quantile(share).as_secs_f64() * 1e6;
        let memory = value_of(&fs::read_to_string("/proc/meminfo")?, "MemTotal");
        let memory_kib = memory.trim_end_matches(" kB").parse::<f64>().map_err(io::Error::other)?;
        Ok(Self {
            processor: value_of(&fs::read_to_string("/proc/cpuinfo")?, "model name"),
            cores: std::thread::available_parallelism()?.get(),
            memory_gib: memory_kib / f64::from(1 << 20),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            file_system: file_system(&fs::read_to_string("/proc/self/mountinfo")?, &data.canonicalize()?),
            sync_p50_us: us(0.5),
            sync_p99_us: us(0.99),
        })
    }
}

/// Today, UTC, as year-month-day.
///
/// # Panics
/// When the clock is set before 1970.
pub fn date() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    let (year, month, day) = civil(since.as_secs() / 86_400);
    format!("{year:04}-{month:02}-{day:02}")
}

/// The date that is so many days after 1970-01-01.
fn civil(mut days: u64) -> (u64, u64, u64) {
    let mut year = 1970;
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

/// The value of a line `name : value`.
fn value_of(text: &str, name: &str) -> String {
    let line = text.lines().find_map(|line| line.split_once(':').filter(|(found, _)| found.trim() == name));
    line.map_or_else(|| "unknown".to_owned(), |(_, value)| value.trim().to_owned())
}

/// The type of the file system with the longest mount point above `folder`; of several at one point, the last hides
/// the others.
fn file_system(mounts: &str, folder: &Path) -> String {
    let parse = |line: &str| {
        let (place, file_system) = line.split_once(" - ")?;
        Some((place.split(' ').nth(4)?.to_owned(), file_system.split(' ').next()?.to_owned()))
    };
    let above = mounts.lines().filter_map(parse).filter(|(point, _)| folder.starts_with(point));
    above.max_by_key(|(point, _)| point.len()).map_or_else(|| "unknown".to_owned(), |(_, kind)| kind)
}

fn try_disk(folder: &Path) -> io::Result<Histogram> {
    let path = folder.join(".sync-trial");
    let mut file = fs::File::create(&path)?;
    let mut histogram = Histogram::default();
    for turn in 0..SYNCS {
        let begun = Instant::now();
        // The same blocks over and over, as in a file that was made ahead.
        file.seek(SeekFrom::Start(u64::from(turn % 16) * 4096))?;
        file.write_all(&[turn as u8; 4096])?;
        file.sync_data()?;
        histogram.record(begun.elapsed());
    }
    fs::remove_file(&path)?;
    Ok(histogram)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_follow_the_calendar() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_453), (2025, 12, 31));
        assert_eq!(civil(20_454), (2026, 1, 1));
    }

    #[test]
    fn the_file_system_is_that_of_the_nearest_mount_point() {
        let mounts = "1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 8:2 / /data rw,x shared:1 - xfs /dev/b rw\n\
                      3 1 8:2 / /database rw - btrfs /dev/c rw\n";
        assert_eq!(file_system(mounts, Path::new("/data/base")), "xfs");
        assert_eq!(file_system(mounts, Path::new("/home")), "ext4");
    }

    #[test]
    fn this_machine_has_a_name_and_a_disk() {
        let folder = tempfile::tempdir().unwrap();
        let machine = Machine::here(folder.path()).unwrap();
        assert!(machine.cores > 0 && machine.memory_gib > 0.1 && machine.kernel.contains('.'), "{machine:?}");
        assert!(machine.sync_p99_us >= machine.sync_p50_us, "{machine:?}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
