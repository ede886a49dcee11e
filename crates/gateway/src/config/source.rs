//! Keeps the snapshot as new as its folder.
//!
//! Invariant: what is served is always a snapshot without errors. A state of the folder that has errors is told once,
//! and the last good snapshot stays.

use std::collections::hash_map::DefaultHasher;
use std::convert::Infallible;
use std::fmt;
use std::hash::{Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};

use super::files::Seen;
use super::load::{Loaded, load};
use super::problem::{Problem, Severity};
use super::snapshot::Snapshot;
use super::watcher::Watcher;
use crate::limits::{CONFIG_POLL, CONFIG_QUIET, CONFIG_QUIET_WAIT_MAX};

/// Looks at a snapshot before it is used: what it returns as errors refuses it. It may prepare what the snapshot needs.
pub type Accept = dyn Fn(&Arc<Snapshot>) -> Vec<Problem> + Send + Sync;

/// Where the configuration comes from.
pub struct SourceOptions {
    /// The folder of manifests: all `*.yaml` and `*.yml` in it, but none in folders below it.
    pub directory: PathBuf,
    /// The cluster of clients that name none.
    pub default_cluster: Option<String>,
    /// Asked about each new snapshot, if given.
    pub accept: Option<Box<Accept>>,
}

impl fmt::Debug for SourceOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { directory, default_cluster, accept: _ } = self;
        formatter
            .debug_struct("SourceOptions")
            .field("directory", directory)
            .field("default_cluster", default_cluster)
            .finish_non_exhaustive()
    }
}

/// How the configuration is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The generation of the snapshot in use.
    pub generation: u64,
    /// When that snapshot was read.
    pub loaded_at: SystemTime,
    /// When the folder was last read, with whatever result.
    pub read_at: SystemTime,
    /// Since when the folder has errors; `None` if it has none.
    pub failing_since: Option<SystemTime>,
    /// Errors of the folder; empty if the snapshot in use is that of the folder.
    pub errors: Vec<Problem>,
    /// Warnings about the folder.
    pub warnings: Vec<Problem>,
    /// How often the folder was read and used since the start.
    pub successes: u64,
    /// How often it was read and not used since the start.
    pub failures: u64,
}

/// What came of a look at the folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// It is as it was.
    Unchanged,
    /// It has a new snapshot, which is now in use; its generation.
    Published(u64),
    /// It has errors; see [`Status::errors`].
    Refused,
}

/// A folder can't be served.
#[derive(Debug, thiserror::Error)]
#[error("the configuration can't be used:\n{}", lines(errors))]
pub struct LoadError {
    /// What is wrong with it.
    pub errors: Vec<Problem>,
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// A folder of manifests and the snapshot that is made of it.
pub struct Source {
    options: SourceOptions,
    current: Arc<ArcSwap<Snapshot>>,
    status: ArcSwap<Status>,
    subscribers: watch::Sender<Arc<Snapshot>>,
    look_now: Notify,
    /// Held through a look at the folder, so that there is one at a time.
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    seen: Option<Seen>,
    /// Of the problems that were told last: each state is told once.
    told: u64,
}

impl fmt::Debug for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Source").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Source {
    /// Reads the folder for the first time. Blocks. Nothing is read again until [`Source::watch`] runs.
    ///
    /// # Errors
    /// When the folder can't be read, or has errors.
    pub fn open(options: SourceOptions) -> Result<Arc<Self>, LoadError> {
        let previous = Snapshot::default();
        let Loaded { snapshot, problems, seen } =
            load(&options.directory, options.default_cluster.as_deref(), &previous);
        let snapshot = snapshot.map(Arc::new);
        let (errors, warnings) = judged(&options, snapshot.as_ref(), problems);
        let (Some(snapshot), []) = (snapshot, &errors[..]) else { return Err(LoadError { errors }) };
        let now = SystemTime::now();
        let status = Status {
            generation: snapshot.generation(),
            loaded_at: now,
            read_at: now,
            failing_since: None,
            errors,
            warnings,
            successes: 1,
            failures: 0,
        };
        tell(&status.warnings);
        Ok(Arc::new(Self {
            options,
            current: Arc::new(ArcSwap::new(snapshot.clone())),
            memory: Mutex::new(Memory { seen, told: hash_of(&status) }),
            status: ArcSwap::from_pointee(status),
            subscribers: watch::Sender::new(snapshot),
            look_now: Notify::new(),
        }))
    }

    /// The snapshot in use, for a short look.
    #[must_use]
    pub fn current(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// Where the snapshot in use always is; for caches of one thread.
    #[must_use]
    pub fn shared(&self) -> &Arc<ArcSwap<Snapshot>> {
        &self.current
    }

    /// Each new snapshot, from the one in use on.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.subscribers.subscribe()
    }

    /// How the configuration is doing.
    #[must_use]
    pub fn status(&self) -> Arc<Status> {
        self.status.load_full()
    }

    /// Makes [`Source::watch`] look at the folder soon.
    pub fn look_soon(&self) {
        self.look_now.notify_one();
    }

    /// Looks at the folder now, however it looks from outside. Blocks: it reads files.
    pub fn reload(&self) -> Reload {
        self.look(true)
    }

    fn look(&self, always_read: bool) -> Reload {
        let mut memory = self.memory.lock();
        if !always_read && memory.seen.as_ref().is_some_and(Seen::is_unchanged) {
            return Reload::Unchanged;
        }
        let previous = self.current.load_full();
        let default_cluster = self.options.default_cluster.as_deref();
        let Loaded { snapshot, problems, seen } = load(&self.options.directory, default_cluster, &previous);
        memory.seen = seen;
        let is_same = snapshot.as_ref().is_some_and(|snapshot| snapshot.is_same(&previous));
        let snapshot = snapshot.map(Arc::new);
        // What is in use already was accepted before.
        let (errors, warnings) =
            if is_same { split(problems) } else { judged(&self.options, snapshot.as_ref(), problems) };
        let now = SystemTime::now();
        let mut status = Status::clone(&self.status.load());
        status.read_at = now;
        let was_failing = status.failing_since.is_some();
        let reload = match snapshot {
            Some(snapshot) if errors.is_empty() => {
                status.failing_since = None;
                if is_same {
                    Reload::Unchanged
                } else {
                    let changes = snapshot.changes_since(&previous);
                    let generation = snapshot.generation();
                    status.generation = generation;
                    status.loaded_at = now;
                    status.successes += 1;
                    self.current.store(snapshot.clone());
                    self.subscribers.send_replace(snapshot);
                    tracing::info!(
                        generation,
                        added = ?changes.added,
                        changed = ?changes.changed,
                        removed = ?changes.removed,
                        "a new configuration is in use"
                    );
                    Reload::Published(generation)
                }
            }
            _ => {
                status.failing_since.get_or_insert(now);
                status.failures += 1;
                Reload::Refused
            }
        };
        status.errors = errors;
        status.warnings = warnings;
        let told = hash_of(&status);
        if memory.told != told {
            memory.told = told;
            tell(&status.errors);
            tell(&status.warnings);
            if !status.errors.is_empty() {
                let directory = self.options.directory.display();
                tracing::error!(%directory, errors = status.errors.len(), "the last good configuration stays in use");
            }
        }
        if was_failing && status.failing_since.is_none() && reload == Reload::Unchanged {
            tracing::info!(generation = status.generation, "the configuration is again as it is in use");
        }
        self.status.store(Arc::new(status));
        reload
    }

    /// Looks at the folder when something happens there, every [`CONFIG_POLL`], at each SIGHUP and at
    /// [`Source::look_soon`]. Never ends: drop it, or abort its task.
    ///
    /// # Errors
    /// When signals can't be received.
    pub async fn watch(self: Arc<Self>) -> Result<Infallible, std::io::Error> {
        let mut hangup = signal(SignalKind::hangup())?;
        let mut watcher = self.watcher();
        // What happened between the first look and here was not seen.
        self.clone().look_in_background(false).await;
        loop {
            let always_read = tokio::select! {
                happened = happened(&mut watcher) => {
                    self.quiet(&mut watcher).await;
                    if let Err(error) = happened {
                        tracing::warn!(%error, "changes of the configuration are now found by polling only");
                        watcher = None;
                    }
                    false
                }
                () = tokio::time::sleep(CONFIG_POLL) => {
                    // A folder that was removed and made again is not watched any more.
                    if let Some(watcher) = &watcher {
                        let _ = watcher.watch(&self.options.directory);
                    }
                    false
                }
                _ = hangup.recv() => true,
                () = self.look_now.notified() => true,
            };
            self.clone().look_in_background(always_read).await;
        }
    }

    fn watcher(&self) -> Option<Watcher> {
        Watcher::new(&self.options.directory)
            .inspect_err(|error| {
                let directory = self.options.directory.display();
                tracing::warn!(%directory, %error, "changes of the configuration are found by polling only");
            })
            .ok()
    }

    /// Waits until nothing has happened for [`CONFIG_QUIET`]: whoever writes one file often writes another.
    async fn quiet(&self, watcher: &mut Option<Watcher>) {
        let _ = tokio::time::timeout(CONFIG_QUIET_WAIT_MAX, async {
            while tokio::time::timeout(CONFIG_QUIET, happened(watcher)).await.is_ok_and(|happened| happened.is_ok()) {}
        })
        .await;
    }

    async fn look_in_background(self: Arc<Self>, always_read: bool) {
        if let Err(error) = tokio::task::spawn_blocking(move || self.look(always_read)).await {
            tracing::error!(%error, "a look at the configuration failed");
        }
    }
}

/// Never happens without a watcher.
async fn happened(watcher: &mut Option<Watcher>) -> std::io::Result<()> {
    match watcher {
        Some(watcher) => watcher.changed().await,
        None => std::future::pending().await,
    }
}

/// Errors and warnings, those of [`SourceOptions::accept`] among them.
fn judged(
    options: &SourceOptions,
    snapshot: Option<&Arc<Snapshot>>,
    mut problems: Vec<Problem>,
) -> (Vec<Problem>, Vec<Problem>) {
    if let (Some(snapshot), Some(accept)) = (snapshot, &options.accept) {
        problems.extend(accept(snapshot));
    }
    split(problems)
}

fn split(problems: Vec<Problem>) -> (Vec<Problem>, Vec<Problem>) {
    problems.into_iter().partition(|problem| problem.severity == Severity::Error)
}

fn hash_of(status: &Status) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&status.errors, &status.warnings).hash(&mut hasher);
    hasher.finish()
}

fn tell(problems: &[Problem]) {
    for problem in problems {
        match problem.severity {
            Severity::Error => tracing::error!("configuration: {problem}"),
            Severity::Warning => tracing::warn!("configuration: {problem}"),
        }
    }
}

/// Reads a folder once and tells all that is wrong with it, for a check before it is put in use. Blocks.
#[must_use]
pub fn check(directory: &Path, default_cluster: Option<&str>) -> Vec<Problem> {
    load(directory, default_cluster, &Snapshot::default()).problems
}
