//! How the system gives memory to the process.

use std::io;

/// Has the system give memory page by page, and not in huge pages of 2 MiB, from here on and for the whole process.
///
/// For a process whose memory is that of many connections, each of which uses a part of what it has: of a buffer of 16 KiB mostly its beginning.
/// In huge pages the rest counts, and is taken, as well.
///
/// # Errors
/// If the system can't (Linux before 3.15).
pub fn avoid_huge_pages() -> io::Result<()> {
    // SAFETY: the call takes integers and touches no memory of this process.
    #[allow(unsafe_code)]
    let result = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_knows_that_huge_pages_are_not_wanted() {
        avoid_huge_pages().expect("Linux can do that");
        let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells it");
        let line = status.lines().find(|line| line.starts_with("THP_enabled:")).expect("since Linux 5.0");
        assert!(line.ends_with('0'), "{line}");
    }
}
