//! Namespaces of the kernel in which a program sees other disks or another clock than the rest of the machine.
//!
//! Invariant: nothing is left of one that was dropped, nor of one whose process was killed: a process that does nothing holds it, and ends
//! with the test.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::Result;
use crate::folder::Folder;
use crate::process::{self, Process, Spec};

const READY_WITHIN: Duration = Duration::from_secs(30);

/// A namespace that is there until it is dropped.
#[derive(Debug)]
pub struct Namespace {
    /// Which process within it holds it.
    inhabitant: i32,
    kind: &'static str,
    _holder: Process,
}

impl Namespace {
    /// One in which a folder is a disk of that size, in memory, that belongs to a user and a group. `name` is for its log. Only root may make one.
    ///
    /// # Errors
    /// When it can't be made, with what `unshare` and `mount` say to that.
    pub fn with_disk(folder: &Folder, name: &str, disk: &Path, bytes: u64, owner: Option<(u32, u32)>) -> Result<Self> {
        let (user, group) = owner.unwrap_or((0, 0));
        let options = format!("size={bytes},mode=700,uid={user},gid={group}");
        let script = "mount -t tmpfs -o \"$1\" none \"$2\" && echo ready && exec sleep infinity";
        let spec = Spec::new(name, "unshare", folder.path()).args(["--mount", "sh", "-c", script, "sh", &options]);
        let mut holder = spec.arg(disk).start()?;
        holder.wait_for_log(READY_WITHIN, "ready")?;
        let inhabitant = i32::try_from(holder.id()).expect("a process number fits its own type");
        Ok(Self { inhabitant, kind: "mnt", _holder: holder })
    }

    /// One in which the clocks that no one sets, which measure time, are ahead by so much. `name` is for its log. Only root may make one.
    ///
    /// # Errors
    /// When it can't be made, with what `unshare` says to that.
    pub fn with_uptime(folder: &Folder, name: &str, ahead: Duration) -> Result<Self> {
        let seconds = ahead.as_secs();
        let mut holder = Spec::new(name, "unshare", folder.path())
            .args(["--time", &format!("--monotonic={seconds}"), &format!("--boottime={seconds}"), "--fork"])
            .args(["sh", "-c", "echo ready && exec sleep infinity"])
            .start()?;
        holder.wait_for_log(READY_WITHIN, "ready")?;
        // Only what is started after that has other clocks.
        let inhabitant = process::children(holder.id()).first().copied().expect("who says that it is ready is there");
        Ok(Self { inhabitant, kind: "time", _holder: holder })
    }

    /// What [`Spec::inside`] takes for a program in it.
    #[must_use]
    pub fn inside(&self) -> String {
        let option = if self.kind == "mnt" { "mount" } else { self.kind };
        format!("--{option}=/proc/{}/ns/{}", self.inhabitant, self.kind)
    }

    /// Where a file of it is for those who are not in it.
    #[must_use]
    pub fn outside(&self, path: &Path) -> PathBuf {
        Path::new("/proc").join(self.inhabitant.to_string()).join("root").join(path.strip_prefix("/").unwrap_or(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_as_small_as_it_is_said_to_be_and_seen_by_nobody_else() {
        let folder = Folder::new("disk").unwrap();
        let disk = folder.path().join("small");
        std::fs::create_dir(&disk).unwrap();
        let namespace = Namespace::with_disk(&folder, "small", &disk, 1 << 20, None).unwrap();
        let write = |bytes: &str| {
            let file = format!("of={}", disk.join("file").display());
            let spec = Spec::new("dd", "dd", folder.path()).inside(namespace.inside());
            process::run(&mut spec.args(["if=/dev/zero", &file, "bs=1024", &format!("count={bytes}")]).command())
        };
        write("1000").unwrap();
        let error = write("2000").unwrap_err().to_string();
        assert!(error.contains("No space left"), "{error}");
        assert!(!disk.join("file").exists());
        assert!(namespace.outside(&disk.join("file")).exists());
    }

    #[test]
    fn a_clock_is_ahead_by_what_it_is_said_to_be() {
        const AHEAD: Duration = Duration::from_secs(1_000_000);
        let folder = Folder::new("uptime").unwrap();
        let namespace = Namespace::with_uptime(&folder, "ahead", AHEAD).unwrap();
        let spec = Spec::new("uptime", "cat", folder.path()).inside(namespace.inside()).arg("/proc/uptime");
        let seconds = |text: String| text.split('.').next().unwrap().parse::<u64>().unwrap();
        let here = seconds(std::fs::read_to_string("/proc/uptime").unwrap());
        let there = seconds(process::run(&mut spec.command()).unwrap());
        assert!((here..here + 60).contains(&(there - AHEAD.as_secs())), "{here} {there}");
    }
}
