//! Reads files, and remembers what they looked like, so that a change is seen later.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A file younger than this when it was read may change again without looking different: clocks of file systems are
/// coarse.
const SETTLED_AGE: Duration = Duration::from_secs(2);

/// What a file looks like from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Looks {
    device: u64,
    inode: u64,
    bytes: u64,
    modified_ns: (i64, i64),
    changed_ns: (i64, i64),
}

impl Looks {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified_ns: (metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    fn is_settled(self, now: SystemTime) -> bool {
        let (seconds, _) = self.changed_ns;
        let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.unsigned_abs());
        now.duration_since(changed).is_ok_and(|age| age > SETTLED_AGE)
    }
}

/// The files of one look at the configuration.
#[derive(Debug)]
pub(super) struct Seen {
    folder: PathBuf,
    manifests: Vec<PathBuf>,
    looks: BTreeMap<PathBuf, Option<Looks>>,
    is_settled: bool,
}

impl Seen {
    /// Whether everything still looks as it did. False as well if it was too young to tell.
    pub(super) fn is_unchanged(&self) -> bool {
        self.is_settled
            && manifests(&self.folder).is_ok_and(|manifests| manifests == self.manifests)
            && self.looks.iter().all(|(path, looks)| Looks::of(path) == *looks)
    }
}

/// Reads files for one look at the configuration.
#[derive(Debug)]
pub(super) struct Files {
    seen: Seen,
    now: SystemTime,
}

impl Files {
    /// Lists the manifests of a folder, in the order of their names.
    pub(super) fn list(folder: &Path) -> io::Result<Self> {
        let manifests = manifests(folder)?;
        let seen = Seen { folder: folder.to_owned(), manifests, looks: BTreeMap::new(), is_settled: true };
        Ok(Self { seen, now: SystemTime::now() })
    }

    pub(super) fn manifests(&self) -> &[PathBuf] {
        &self.seen.manifests
    }

    /// Reads a file. One that is longer than `bytes_max` is an error.
    pub(super) fn read(&mut self, path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
        // The looks are taken first: a change in between is then seen as a change.
        let looks = Looks::of(path);
        self.seen.is_settled &= looks.is_none_or(|looks| looks.is_settled(self.now));
        self.seen.looks.entry(path.to_owned()).or_insert(looks);
        read_bounded(path, bytes_max)
    }

    pub(super) fn finish(self) -> Seen {
        self.seen
    }
}

fn read_bounded(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    // A pipe or a device would never end.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
    }
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {bytes_max} bytes")));
    }
    Ok(bytes)
}

/// Names that begin with a dot are those of editors, and of the folders behind a mounted ConfigMap.
fn manifests(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut manifests = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        let is_yaml = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        // A link that leads nowhere is kept: it is told when it is read.
        if is_yaml && !is_hidden && !path.is_dir() {
            manifests.push(path);
        }
    }
    manifests.sort_unstable();
    Ok(manifests)
}
