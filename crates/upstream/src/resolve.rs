//! Where endpoints are, when the configuration names a place to look instead of the endpoints.
//!
//! Invariant: what was found last stays in force until something else is found. A lookup that fails, or finds nothing,
//! changes nothing: a broken resolver must not take a cluster away.

use std::path::PathBuf;
use std::time::Duration;

use tokio::io::AsyncReadExt;

use crate::error::SettingsError;
use crate::limits::{DISCOVERED_ENDPOINTS_MAX, ENDPOINT_FILE_BYTES_MAX};
use crate::settings::Address;

/// A place that tells where the endpoints of a cluster are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// All addresses of a name, each an endpoint. Their certificates are checked against the server name of the
    /// [`crate::ClientTls`], which should therefore be set.
    Dns {
        /// TLS or not.
        https: bool,
        /// The name.
        host: String,
        /// The port of all of them.
        port: u16,
    },
    /// A file with one URL a line; empty lines and lines that begin with `#` do not count. Replace it by renaming.
    File {
        /// Where it is.
        path: PathBuf,
    },
}

/// Why a source yields nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// The name has no address, or the resolver does not answer.
    #[error("{host}: {source}")]
    Dns {
        /// The name.
        host: String,
        /// What the resolver says.
        source: std::io::Error,
    },
    /// The file can't be read.
    #[error("endpoint file {}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is too large to be a list of endpoints.
    #[error("endpoint file {}: it is larger than {bytes_max} bytes", path.display())]
    FileTooLarge {
        /// Which file.
        path: PathBuf,
        /// The largest size.
        bytes_max: u64,
    },
    /// A line of the file is no endpoint. The whole file is not used.
    #[error("endpoint file {}, line {line}: {problem}", path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: SettingsError,
    },
    /// There is no endpoint in it.
    #[error("{place}: no endpoints")]
    Empty {
        /// The name or the file.
        place: String,
    },
    /// There are more endpoints than any cluster has.
    #[error("{place}: more than {endpoints_max} endpoints")]
    TooMany {
        /// The name or the file.
        place: String,
        /// The limit.
        endpoints_max: usize,
    },
}

impl Source {
    /// Looks once. The addresses are sorted, each is there once, and there is at least one.
    pub async fn resolve(&self) -> Result<Vec<Address>, ResolveError> {
        let (place, mut found) = match self {
            Self::Dns { https, host, port } => {
                let addresses = tokio::net::lookup_host((host.as_str(), *port))
                    .await
                    .map_err(|source| ResolveError::Dns { host: host.clone(), source })?;
                let found = addresses.map(|address| Address {
                    https: *https,
                    host: address.ip().to_string(),
                    port: address.port(),
                });
                (host.clone(), found.collect())
            }
            Self::File { path } => (path.display().to_string(), read(path).await?),
        };
        found.sort_unstable();
        found.dedup();
        if found.is_empty() {
            return Err(ResolveError::Empty { place });
        }
        if found.len() > DISCOVERED_ENDPOINTS_MAX {
            return Err(ResolveError::TooMany { place, endpoints_max: DISCOVERED_ENDPOINTS_MAX });
        }
        Ok(found)
    }

    /// Looks at once and then in each interval, and calls `changed` with the addresses when they are others than
    /// before. Never ends: drop it, or abort its task.
    pub async fn follow(self, interval: Duration, mut changed: impl FnMut(Vec<Address>)) -> std::convert::Infallible {
        let mut known = Vec::new();
        let mut complaint = String::new();
        loop {
            match self.resolve().await {
                Ok(found) => {
                    complaint.clear();
                    if found != known {
                        known.clone_from(&found);
                        changed(found);
                    }
                }
                Err(error) => {
                    // The same trouble is told once.
                    let text = error.to_string();
                    if text != complaint {
                        tracing::warn!(%error, "endpoints can't be looked up; the last ones stay");
                        complaint = text;
                    }
                }
            }
            tokio::time::sleep(interval).await;
        }
    }
}

async fn read(path: &PathBuf) -> Result<Vec<Address>, ResolveError> {
    let failed = |source| ResolveError::File { path: path.clone(), source };
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let mut text = String::new();
    let bytes = file.take(ENDPOINT_FILE_BYTES_MAX + 1).read_to_string(&mut text).await.map_err(failed)?;
    if bytes as u64 > ENDPOINT_FILE_BYTES_MAX {
        return Err(ResolveError::FileTooLarge { path: path.clone(), bytes_max: ENDPOINT_FILE_BYTES_MAX });
    }
    text.lines()
        .map(str::trim)
        .enumerate()
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(index, line)| {
            line.parse().map_err(|problem| ResolveError::Line { path: path.clone(), line: index + 1, problem })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_file_is_read_and_its_bad_line_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("endpoints");
        let source = Source::File { path: path.clone() };
        assert!(source.resolve().await.expect_err("no file").to_string().contains("endpoints"));
        std::fs::write(&path, "# two\nhttps://b:1\n\n https://a:2 \nhttps://b:1\n").expect("written");
        let found = source.resolve().await.expect("found");
        let shown: Vec<_> = found.iter().map(Address::to_string).collect();
        assert_eq!(shown, ["https://a:2", "https://b:1"]);
        std::fs::write(&path, "https://b:1\nb:1\n").expect("written");
        assert!(source.resolve().await.expect_err("a bad line").to_string().contains("line 2"));
        std::fs::write(&path, "#\n").expect("written");
        assert!(matches!(source.resolve().await, Err(ResolveError::Empty { .. })));
        std::fs::write(&path, vec![b'\n'; ENDPOINT_FILE_BYTES_MAX as usize + 1]).expect("written");
        assert!(matches!(source.resolve().await, Err(ResolveError::FileTooLarge { .. })));
    }

    #[tokio::test]
    async fn a_name_is_all_its_addresses() {
        let source = Source::Dns { https: true, host: "localhost".to_owned(), port: 6443 };
        let found = source.resolve().await.expect("found");
        assert!(found.iter().all(|address| address.https && address.port == 6443));
        assert!(found.iter().any(|address| address.host == "127.0.0.1" || address.host == "::1"), "{found:?}");
    }

    #[tokio::test]
    async fn changes_are_told_once_and_trouble_changes_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("endpoints");
        std::fs::write(&path, "https://a:1").expect("written");
        let (sender, told) = mpsc::channel();
        let source = Source::File { path: path.clone() };
        let task = tokio::spawn(source.follow(Duration::from_millis(5), move |found| {
            let _ = sender.send(found.len());
        }));
        let replace = |text: &str| {
            let staged = directory.path().join("staged");
            std::fs::write(&staged, text).expect("written");
            std::fs::rename(&staged, &path).expect("renamed");
        };
        let told = tokio::task::spawn_blocking(move || (told.recv_timeout(Duration::from_secs(10)), told));
        let (count, told) = told.await.expect("no panic");
        assert_eq!(count, Ok(1));
        for text in ["https://a:1", "", "nonsense", "https://a:1"] {
            replace(text);
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        replace("https://a:1\nhttps://b:1");
        let next = tokio::task::spawn_blocking(move || told.recv_timeout(Duration::from_secs(10)));
        // Nothing was told in between.
        assert_eq!(next.await.expect("no panic"), Ok(2));
        task.abort();
    }
}
