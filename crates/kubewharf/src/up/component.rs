//! A process of the control plane: its log, its state, its end.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use kubewharf_foundation::Shutdown;
use tokio::process::{Child, Command};

/// How long a process may take to end by itself.
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// Lines of a log that an error shows.
const LOG_LINES: usize = 15;

/// A running process.
pub(super) struct Component {
    name: &'static str,
    child: Child,
    log: PathBuf,
    begun: Instant,
}

/// Has the kernel end the process when the thread that starts it ends: the main thread, so even a killed program leaves nothing behind.
fn end_with_this_thread(command: &mut Command) {
    // SAFETY: between fork and exec this makes one system call, which allocates nothing and takes no lock.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
}

/// Whether a process lives.
pub(super) enum State {
    Running,
    Ended(ExitStatus),
}

impl Component {
    /// Starts a process that writes to `logs/NAME.log`, anew.
    pub(super) fn start(name: &'static str, program: &Path, arguments: &[String], logs: &Path) -> anyhow::Result<Self> {
        let path = logs.join(format!("{name}.log"));
        let mut log = File::create(&path).with_context(|| format!("can't write {}", path.display()))?;
        writeln!(log, "{} {}", program.display(), arguments.join(" ")).with_context(|| path.display().to_string())?;
        let errors = log.try_clone().with_context(|| path.display().to_string())?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            // Ctrl-C is for this program, which stops the others in order.
            .process_group(0)
            .kill_on_drop(true);
        end_with_this_thread(&mut command);
        let child = command.spawn().with_context(|| format!("can't start {}", program.display()))?;
        Ok(Self { name, child, log: path, begun: Instant::now() })
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    pub(super) fn state(&mut self) -> anyhow::Result<State> {
        let ended = self.child.try_wait().with_context(|| format!("can't watch {}", self.name))?;
        Ok(ended.map_or(State::Running, State::Ended))
    }

    /// Asks `ready`, which is given the log's path, until it says yes, and prints the component's line.
    pub(super) async fn wait_until_ready(
        &mut self,
        within: Duration,
        ready: impl AsyncFn(&Path) -> bool,
    ) -> anyhow::Result<()> {
        loop {
            if let State::Ended(how) = self.state()? {
                bail!("{} has ended ({how}) before it was ready; {}", self.name, self.end_of_log());
            }
            if ready(&self.log).await {
                let process = self.child.id().unwrap_or_default();
                println!(
                    "{:<24} ready after {:.1} s, process {process}",
                    self.name,
                    self.begun.elapsed().as_secs_f64()
                );
                return Ok(());
            }
            if self.begun.elapsed() > within {
                bail!("{} is not ready after {} s; {}", self.name, within.as_secs(), self.end_of_log());
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
        let begun = Instant::now();
        if matches!(self.state(), Ok(State::Ended(_))) {
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
            println!("{:<24} stopped after {:.1} s", self.name, begun.elapsed().as_secs_f64());
        } else {
            let killed = self.child.kill().await;
            println!("{:<24} killed{}", self.name, killed.err().map_or(String::new(), |error| format!(": {error}")));
        }
    }
}
