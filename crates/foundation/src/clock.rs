//! Time that never goes back.

use std::time::Duration;

/// The time since the machine's start, its sleep included (`CLOCK_BOOTTIME`): for deadlines that mean real time.
#[must_use]
pub fn boot_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the call to fill.
    #[allow(unsafe_code)]
    let result = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    assert_eq!(result, 0, "CLOCK_BOOTTIME exists since Linux 2.6.39");
    let seconds = u64::try_from(time.tv_sec).expect("the time since boot is positive");
    Duration::new(seconds, u32::try_from(time.tv_nsec).expect("below a thousand million"))
}

#[cfg(test)]
mod tests {
    use super::boot_time;

    #[test]
    fn boot_time_goes_on() {
        let before = boot_time();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(boot_time() >= before + std::time::Duration::from_millis(2));
    }
}
