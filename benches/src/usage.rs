//! What a server uses, as the kernel counts it: processor time in nanoseconds, the peak of anonymous memory, disk.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use kubewharf_testkit::usage::memory;

/// Time between two looks at a server's memory.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(50);

/// Processor time of all threads of a process so far, those that have ended included. Unlike the ticks in
/// `/proc/PID/stat` it is not rounded.
///
/// # Errors
/// When there is no such process.
#[allow(unsafe_code, reason = "the standard library cannot read the clock of another process")]
pub fn cpu_time(pid: u32) -> io::Result<Duration> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from(io::ErrorKind::NotFound))?;
    // A clock's number has no room for all of a large process number, and would be another process's clock then.
    std::fs::metadata(format!("/proc/{pid}"))?;
    let mut clock: libc::clockid_t = 0;
    // SAFETY: the pointer is to a local that lives through the call.
    let error = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: as above.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let negative = "the kernel counts processor time from zero upwards";
    Ok(Duration::new(u64::try_from(time.tv_sec).expect(negative), u32::try_from(time.tv_nsec).expect(negative)))
}

/// Memory of a process, in bytes, with its share of the pages that others have too.
///
/// # Errors
/// When there is no such process, or it is somebody else's.
pub fn proportional_bytes(pid: u32) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let kib = text.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| io::Error::other("the kernel does not tell the share of a process"))
}

/// Bytes that the disk gave to the files of a folder.
///
/// # Errors
/// When the folder cannot be read; a file that goes away meanwhile counts nothing.
pub fn disk_bytes(folder: &Path) -> io::Result<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => total += disk_bytes(&entry.path())?,
            // stat(2) counts blocks of 512 bytes, whatever the file system's own are.
            Ok(metadata) => total += metadata.blocks() * 512,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(total)
}

/// Looks at the anonymous memory of processes until it is dropped, and keeps the most that it saw of all together. The kernel keeps such a
/// peak only of all resident pages, which would count the page cache of a store over a mapped file as its own.
#[derive(Debug)]
pub struct AnonymousPeak {
    shared: Arc<(AtomicU64, AtomicBool)>,
    thread: Option<JoinHandle<()>>,
}

impl AnonymousPeak {
    /// Starts to look.
    pub fn of(pids: Vec<u32>) -> Self {
        let shared = Arc::new((AtomicU64::new(0), AtomicBool::new(false)));
        let seen = shared.clone();
        let look = move || {
            while !seen.1.load(Ordering::Relaxed) {
                // An ended process has no memory.
                let anonymous = |pid: &u32| memory(*pid).map_or(0, |memory| memory.anonymous);
                seen.0.fetch_max(pids.iter().map(anonymous).sum(), Ordering::Relaxed);
                std::thread::park_timeout(SAMPLE_INTERVAL);
            }
        };
        let thread = std::thread::Builder::new().name("memory-peak".to_owned()).spawn(look);
        Self { shared, thread: Some(thread.expect("a benchmark can start one more thread")) }
    }

    /// The most that was seen, in bytes.
    pub fn bytes(&self) -> u64 {
        self.shared.0.load(Ordering::Relaxed)
    }
}

impl Drop for AnonymousPeak {
    fn drop(&mut self) {
        self.shared.1.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn processor_time_is_finer_than_a_tick_and_agrees_with_the_ticks() {
        let pid = std::process::id();
        let ticks_before = kubewharf_testkit::usage::cpu_time(pid).unwrap();
        let before = cpu_time(pid).unwrap();
        let begun = Instant::now();
        let mut x = 1_u64;
        while begun.elapsed() < Duration::from_millis(300) {
            for _ in 0..10_000 {
                x = std::hint::black_box(x.wrapping_mul(3));
            }
        }
        let used = cpu_time(pid).unwrap() - before;
        let ticks = kubewharf_testkit::usage::cpu_time(pid).unwrap() - ticks_before;
        assert!(used > Duration::ZERO && !used.as_nanos().is_multiple_of(10_000_000), "{used:?}");
        assert!(used.abs_diff(ticks) < Duration::from_millis(60), "{used:?} {ticks:?}");
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        assert!(cpu_time(u32::MAX).is_err());
        assert!(cpu_time(i32::MAX as u32).is_err());
    }

    #[test]
    fn a_share_is_part_of_what_is_resident() {
        let pid = std::process::id();
        let share = proportional_bytes(pid).unwrap();
        assert!(share > 0 && share <= memory(pid).unwrap().resident + (8 << 20), "{share}");
        assert!(proportional_bytes(u32::MAX).is_err());
    }

    #[test]
    fn disk_use_is_what_was_allocated_in_all_folders_below() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("below")).unwrap();
        std::fs::write(folder.path().join("below/file"), vec![1; 100_000]).unwrap();
        // A hole takes no space.
        std::fs::File::create(folder.path().join("hole")).unwrap().set_len(1 << 30).unwrap();
        let bytes = disk_bytes(folder.path()).unwrap();
        assert!((100_000..1_000_000).contains(&bytes), "{bytes}");
    }

    #[test]
    fn the_peak_stays_when_the_memory_is_given_back() {
        let peak = AnonymousPeak::of(vec![std::process::id()]);
        let block = std::hint::black_box(vec![1_u8; 64 << 20]);
        std::thread::sleep(SAMPLE_INTERVAL * 4);
        drop(block);
        assert!(peak.bytes() >= 64 << 20, "{}", peak.bytes());
    }
}
