//! A process of the control plane: its log, its state, its end.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use kubewharf_foundation::Shutdown;
use tokio::process::{Child, Command};

use super::kubectl::{Kubectl, Url};

/// How long a process may take to get ready.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// How long a process may take to end by itself.
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// Lines of a log that an error shows.
const LOG_LINES: usize = 15;

/// What to run.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub(super) name: &'static str,
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
    /// Variables that are not for everybody's eyes, as arguments are.
    pub(super) environment: Vec<(&'static str, String)>,
    /// The user and the group that it runs as, if not this program's own.
    pub(super) owner: Option<(u32, u32)>,
    pub(super) orphaned: Orphaned,
    pub(super) ready: Ready,
}

/// How a process is ended when this program was killed and can't end it in order.
#[derive(Clone, Copy, Debug)]
pub(super) enum Orphaned {
    /// It is asked to.
    Stops,
    /// At once: it keeps nothing, and would wait for others that are gone.
    Dies,
}

/// How it is told that a process is ready.
#[derive(Clone, Debug)]
pub(super) enum Ready {
    /// Its log says so, in these words.
    Says(&'static str),
    /// It answers kubectl at this URL that it is.
    Serves(Url),
}

/// A running process.
pub(super) struct Component {
    spec: Spec,
    child: Child,
    log: PathBuf,
    begun: Instant,
}

/// Has the kernel end the process when the thread that starts it ends: the main thread, so even a killed program leaves nothing behind.
fn end_with_this_thread(command: &mut Command, orphaned: Orphaned) {
    let signal = match orphaned {
        Orphaned::Stops => libc::SIGTERM,
        Orphaned::Dies => libc::SIGKILL,
    };
    // SAFETY: between fork and exec this makes one system call, which allocates nothing and takes no lock.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(move || match libc::prctl(libc::PR_SET_PDEATHSIG, signal) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
}

impl Component {
    /// Starts a process that writes to `logs/NAME.log`, anew.
    pub(super) fn start(spec: Spec, logs: &Path) -> anyhow::Result<Self> {
        let path = logs.join(format!("{}.log", spec.name));
        let log = File::create(&path).with_context(|| format!("can't write {}", path.display()))?;
        let child = run(&spec, log).with_context(|| format!("can't start {}", spec.program.display()))?;
        Ok(Self { spec, child, log: path, begun: Instant::now() })
    }

    /// Starts it again after its end. Its log goes on.
    pub(super) fn start_again(&mut self) -> anyhow::Result<()> {
        let log = File::options().append(true).open(&self.log);
        let log = log.with_context(|| format!("can't write {}", self.log.display()))?;
        self.child = run(&self.spec, log).with_context(|| format!("can't start {}", self.spec.program.display()))?;
        self.begun = Instant::now();
        Ok(())
    }

    pub(super) fn name(&self) -> &'static str {
        self.spec.name
    }

    /// Waits for its end.
    pub(super) async fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        self.child.wait().await.with_context(|| format!("can't watch {}", self.spec.name))
    }

    /// Waits until it is ready, and prints its line.
    pub(super) async fn wait_until_ready(&mut self, kubectl: &Kubectl) -> anyhow::Result<()> {
        let name = self.spec.name;
        loop {
            if let Some(how) = self.child.try_wait().with_context(|| format!("can't watch {name}"))? {
                bail!("{name} has ended ({how}) before it was ready; {}", self.end_of_log());
            }
            let is_ready = match &self.spec.ready {
                Ready::Says(words) => {
                    std::fs::read(&self.log).is_ok_and(|log| String::from_utf8_lossy(&log).contains(words))
                }
                Ready::Serves(url) => kubectl.finds_ready(*url).await,
            };
            if is_ready {
                let process = self.child.id().unwrap_or_default();
                println!("{name:<24} ready after {:.1} s, process {process}", self.begun.elapsed().as_secs_f64());
                return Ok(());
            }
            if self.begun.elapsed() > READY_WITHIN {
                bail!("{name} is not ready after {} s; {}", READY_WITHIN.as_secs(), self.end_of_log());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Where the log is, and how it ends.
    pub(super) fn end_of_log(&self) -> String {
        let content = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&content);
        let lines: Vec<&str> = text.lines().collect();
        let end = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n  ");
        format!("its log {} ends:\n  {end}", self.log.display())
    }

    /// Asks it to end, and makes it end if it takes too long or `shutdown` is urged.
    pub(super) async fn stop(&mut self, shutdown: &Shutdown) {
        let name = self.spec.name;
        let begun = Instant::now();
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        if let Some(process) = self.child.id().and_then(|id| libc::pid_t::try_from(id).ok()) {
            // SAFETY: sends a signal to a child that was not waited for yet, so the number is still its own.
            #[allow(unsafe_code)]
            unsafe {
                libc::kill(process, libc::SIGTERM);
            }
        }
        let ended = tokio::select! {
            ended = tokio::time::timeout(STOP_WITHIN, self.child.wait()) => ended.is_ok(),
            () = shutdown.requested_now() => false,
        };
        if ended {
            println!("{name:<24} stopped after {:.1} s", begun.elapsed().as_secs_f64());
        } else {
            let killed = self.child.kill().await;
            println!("{name:<24} killed{}", killed.err().map_or(String::new(), |error| format!(": {error}")));
        }
    }
}

fn run(spec: &Spec, mut log: File) -> anyhow::Result<Child> {
    let Spec { program, arguments, .. } = spec;
    writeln!(log, "{} {}", program.display(), arguments.join(" "))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(log.try_clone()?)
        .stdout(log)
        // Ctrl-C is for this program, which stops the others in order.
        .process_group(0)
        .kill_on_drop(true);
    // The store takes them for its settings, and a configuration file would make it ignore its flags.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"ETCD_")) {
        command.env_remove(name);
    }
    command.envs(spec.environment.iter().map(|(name, value)| (name, value)));
    if let Some((user, group)) = spec.owner {
        command.uid(user).gid(group);
    }
    end_with_this_thread(&mut command, spec.orphaned);
    Ok(command.spawn()?)
}
