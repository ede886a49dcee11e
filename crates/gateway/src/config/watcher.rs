//! Tells that something happens in a folder, by inotify.
//!
//! Which file it is about is not looked at: whoever is told looks at all of them. A ConfigMap's change is a rename in
//! the folder. What inotify does not see (files elsewhere, a folder on a network) is left to polling.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A watched folder.
#[derive(Debug)]
pub(super) struct Watcher {
    inotify: AsyncFd<File>,
}

impl Watcher {
    /// Watches a folder. Needs a Tokio runtime.
    pub(super) fn new(folder: &Path) -> io::Result<Self> {
        // SAFETY: the call takes no memory, and nothing else owns the descriptor that it makes.
        #[allow(unsafe_code)]
        let inotify = unsafe {
            let descriptor = libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC);
            if descriptor < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(descriptor)
        };
        // SAFETY: the file keeps its descriptor open until it is dropped, and is never exchanged for another: it is
        // only read.
        #[allow(unsafe_code)]
        let inotify = unsafe { AsyncFd::register_with_interest(File::from(inotify), Interest::READABLE) }?;
        let watcher = Self { inotify };
        watcher.watch(folder)?;
        Ok(watcher)
    }

    /// Watches a folder that may be watched already; one that was removed and made again is another folder.
    pub(super) fn watch(&self, folder: &Path) -> io::Result<()> {
        const EVENTS: u32 = libc::IN_CREATE
            | libc::IN_CLOSE_WRITE
            | libc::IN_MOVED_TO
            | libc::IN_MOVED_FROM
            | libc::IN_DELETE
            | libc::IN_ATTRIB
            | libc::IN_DELETE_SELF
            | libc::IN_MOVE_SELF
            | libc::IN_ONLYDIR;
        let path = CString::new(folder.as_os_str().as_bytes())?;
        // SAFETY: the descriptor is open, and `path` ends with a zero byte and lives through the call.
        #[allow(unsafe_code)]
        let result = unsafe { libc::inotify_add_watch(self.inotify.get_ref().as_raw_fd(), path.as_ptr(), EVENTS) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits until something has happened, and forgets it.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        // Room for any event; more of them are read at the next call.
        let mut events = [0; 1 << 10];
        loop {
            let mut guard = self.inotify.readable_mut().await?;
            match guard.try_io(|inotify| inotify.get_mut().read(&mut events)) {
                Ok(read) => return read.map(|_| ()),
                Err(_would_block) => {}
            }
        }
    }
}
