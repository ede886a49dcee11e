//! The wall clock of a process, which jumps when the test says so.
//!
//! The kernel has one wall clock for all of a machine, so programs are lied to by a library that is loaded before all others
//! (`libfaketime`). The clock that measures time and is never set stays the kernel's; [`crate::namespace::Namespace::with_uptime`] makes
//! that another one.
//!
//! Invariant: nothing is left of it. The library keeps files in `/dev/shm`, so its programs have one of their own.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::namespace::Namespace;

const SHARED_MEMORY_BYTES: u64 = 64 << 20;

/// A wall clock, which is right at first.
#[derive(Debug)]
pub struct WallClock {
    library: PathBuf,
    file: PathBuf,
    namespace: Namespace,
}

impl WallClock {
    /// A clock for the programs of that user and group, or of this process's own. Only root may make one.
    ///
    /// # Errors
    /// When there can be no file or namespace for it.
    ///
    /// # Panics
    /// When the package faketime is not installed.
    pub fn new(folder: &Folder, name: &str, owner: Option<(u32, u32)>) -> Result<Self> {
        let library = library().unwrap_or_else(|| {
            panic!("libfaketime is missing, by which the clocks of processes jump: run `make fault-tools`")
        });
        let shared_memory = Path::new("/dev/shm");
        let namespace = Namespace::with_disk(folder, name, shared_memory, SHARED_MEMORY_BYTES, owner)?;
        let clock = Self { library, file: folder.path().join(format!("{name}.clock")), namespace };
        clock.jump_to(0)?;
        Ok(clock)
    }

    /// Makes the clock so many hours wrong, at once.
    ///
    /// # Errors
    /// When its file can't be written.
    pub fn jump_to(&self, hours: i64) -> Result<()> {
        // Programs read it all the time.
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{hours:+}h\n")).map_err(Error::file("write", &new))?;
        std::fs::rename(&new, &self.file).map_err(Error::file("replace", &self.file))
    }

    /// What [`crate::process::Spec::inside`] takes for a program with this clock.
    #[must_use]
    pub fn inside(&self) -> String {
        self.namespace.inside()
    }

    /// The variables that such a program needs.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        vec![
            variable("LD_PRELOAD", &self.library.display().to_string()),
            variable("FAKETIME_TIMESTAMP_FILE", &self.file.display().to_string()),
            // A jump is seen with the next look at the clock.
            variable("FAKETIME_NO_CACHE", "1"),
            variable("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            variable("NO_FAKE_STAT", "1"),
        ]
    }
}

/// Where Debian has it, and others.
fn library() -> Option<PathBuf> {
    let of_architecture = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
    let folders = of_architecture.chain(["/usr/lib".into(), "/usr/lib64".into()]);
    folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;
    use crate::process::{self, Spec};

    #[test]
    fn a_clock_jumps_both_ways_for_its_programs_alone() {
        let folder = Folder::new("clock").unwrap();
        let clock = WallClock::new(&folder, "clock", None).unwrap();
        for hours in [0, 5, -7] {
            clock.jump_to(hours).unwrap();
            let mut spec = Spec::new("date", "date", folder.path()).inside(clock.inside()).arg("+%s");
            for (name, value) in clock.environment() {
                spec = spec.env(name, value);
            }
            let there: i64 = process::run(&mut spec.command()).unwrap().trim().parse().unwrap();
            let here = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
            let wrong = there - i64::try_from(here).unwrap();
            assert!((wrong - hours * 3600).abs() < 60, "{wrong} s wrong, not {hours} h");
        }
    }
}
