//! Reading the file into memory after opening, if it fits.
//!
//! LMDB is told not to read ahead on page faults: neighbouring pages of the file have nothing to do with each other, so with more data
//! than memory each read ahead drives out pages that are needed, and what it brings in comes as large folios, which some file
//! systems write back whole bookkeeping for, page by page. The price is a slow first scan of a cold file: a page, a wait. So a
//! file that fits is asked for as a whole, in the order of the disk.
//!
//! Invariant: advice only; no failure here matters.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// Bytes asked for at a time, and the longest wait of a closing engine.
const STEP_BYTES: u64 = 1 << 20;

/// A thread that asks for the pages of a file; it ends when it has, or when this is dropped.
pub(super) struct Warmer {
    is_stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Warmer {
    /// Begins, if the file's `bytes` fit in half of the memory that is left to this process.
    pub(super) fn start(file: File, bytes: u64) -> Self {
        let is_stopped = Arc::new(AtomicBool::new(false));
        let budget_bytes = memory_bytes().unwrap_or(0) / 2;
        let thread = (bytes > 0 && bytes <= budget_bytes).then(|| {
            let is_stopped = Arc::clone(&is_stopped);
            thread::Builder::new().name("engine-warm".into()).spawn(move || {
                for start in (0..bytes).step_by(STEP_BYTES as usize) {
                    if is_stopped.load(Ordering::Relaxed) {
                        break;
                    }
                    will_need(&file, start);
                }
            })
        });
        // Without a thread to spare there is no warming.
        Self { is_stopped, thread: thread.and_then(Result::ok) }
    }
}

impl Drop for Warmer {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It can't panic, and nothing depends on how it ended.
            let _ = thread.join();
        }
    }
}

fn will_need(file: &File, start: u64) {
    let (Ok(start), Ok(length)) = (i64::try_from(start), i64::try_from(STEP_BYTES)) else { return };
    // SAFETY: a system call on a descriptor that `file` owns, with no pointers.
    #[allow(unsafe_code)]
    unsafe {
        libc::posix_fadvise(file.as_raw_fd(), start, length, libc::POSIX_FADV_WILLNEED);
    }
}

/// What the machine has available, or the limit of this process's control group if that is less.
fn memory_bytes() -> Option<u64> {
    let available = parse_available(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    // `max`, like a missing file, is no limit.
    let limits = limits.iter().filter_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok());
    limits.chain([available]).min()
}

fn parse_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_found() {
        let text = "MemTotal:       24609544 kB\nMemFree:        14868416 kB\nMemAvailable:   22548480 kB\n";
        assert_eq!(parse_available(text), Some(22_548_480 * 1024));
        assert_eq!(parse_available("MemTotal: 1 kB\n"), None);
        assert!(memory_bytes().is_some_and(|bytes| bytes > 1 << 20), "this machine tells too");
    }

    #[test]
    fn a_warmer_ends_by_itself_and_when_dropped() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 << 20).unwrap();
        let mut done = Warmer::start(file.try_clone().unwrap(), 8 << 20);
        done.thread.take().expect("8 MiB fit").join().unwrap();
        // Far more than there is of the file: ends because it is told to.
        drop(Warmer::start(file, memory_bytes().unwrap() / 4));
        assert!(done.thread.is_none());
    }
}
