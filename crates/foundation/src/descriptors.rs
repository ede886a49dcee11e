//! How many files and sockets the process may have open at once.
//!
//! Systems start processes with a low limit, for programs that still use `select`, and let them raise it up to another
//! one. Go's runtime does so by itself; here a product asks for it.

use std::io;

/// Raises the limit as far as the system lets this process; returns it.
///
/// # Errors
/// If the system refuses; the limit is what it was then.
pub fn raise_limit() -> io::Result<u64> {
    let mut limit = limit()?;
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: the call reads `limit`, which lives through it, and touches nothing else of this process.
        #[allow(unsafe_code)]
        let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(limit.rlim_cur)
}

fn limit() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit that lives through the call, which writes to nothing else.
    #[allow(unsafe_code)]
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    if result == 0 { Ok(limit) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_becomes_the_highest_that_is_allowed() {
        let raised = raise_limit().expect("it may be raised");
        let now = limit().expect("it can be read");
        assert_eq!((now.rlim_cur, raised), (now.rlim_max, now.rlim_max));
        assert_eq!(raise_limit().expect("there is nothing to raise"), raised);
    }
}
