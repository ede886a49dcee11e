//! A program that runs beside the tests: started, watched, stopped, paused and killed by its process number.
//!
//! Its output goes to a file. It belongs to a process group of its own, so that Ctrl-C at a terminal reaches only the
//! program that started it, which then ends it in its own way.
//!
//! Invariant: no child outlives this process, however this process ends. The kernel kills a child when the *thread*
//! that started it ends, so one thread that never ends starts them all.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// How much of the end of a log an error shows.
const LOG_TAIL_BYTES: usize = 4 << 10;
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// What to start.
#[derive(Debug, Clone)]
pub struct Spec {
    name: String,
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    folder: Option<PathBuf>,
    owner: Option<(u32, u32)>,
    namespaces: Vec<String>,
    log: PathBuf,
}

impl Spec {
    /// `program`, called `name` in errors; its output is appended to `folder/name.log`.
    pub fn new(name: &str, program: impl Into<PathBuf>, folder: &Path) -> Self {
        Self {
            name: name.to_owned(),
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            folder: None,
            owner: None,
            namespaces: Vec::new(),
            log: folder.join(format!("{name}.log")),
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<I: IntoIterator<Item: AsRef<OsStr>>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Runs it in that folder instead of the one of this process.
    pub fn current_folder(mut self, folder: &Path) -> Self {
        self.folder = Some(folder.to_owned());
        self
    }

    /// Runs it as that user and group instead of as this process does. Only root may.
    pub fn owner(mut self, user: u32, group: u32) -> Self {
        self.owner = Some((user, group));
        self
    }

    /// Runs it in a namespace of the kernel, as `nsenter` is told of it: `--net=FILE`. Only root may.
    pub fn inside(mut self, namespace: impl Into<String>) -> Self {
        self.namespaces.push(namespace.into());
        self
    }

    /// The command, to be run to its end with [`run`].
    pub fn command(&self) -> Command {
        let mut command = if self.namespaces.is_empty() {
            let mut command = Command::new(&self.program);
            if let Some((user, group)) = self.owner {
                command.uid(user).gid(group);
            }
            command.envs(self.env.iter().map(|(name, value)| (name, value)));
            command
        } else {
            // Each of these is replaced by the next, so that the process stays this one's child.
            let mut command = Command::new("nsenter");
            command.args(&self.namespaces).arg("--");
            if let Some((user, group)) = self.owner {
                // Who becomes another user forgets that it is to end with its parent.
                command.args(["setpriv", "--pdeathsig=KILL", "--clear-groups"]);
                command.args([format!("--reuid={user}"), format!("--regid={group}")]).arg("--");
            }
            // Not for those in between: a library that is loaded before all others is for the program alone.
            command.arg("env").args(self.env.iter().map(|(name, value)| {
                let mut assignment = name.clone();
                assignment.push("=");
                assignment.push(value);
                assignment
            }));
            command.arg(&self.program);
            command
        };
        command.args(&self.args);
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        command
    }

    /// Starts it.
    ///
    /// # Errors
    /// When the log cannot be opened or the program cannot be executed.
    pub fn start(&self) -> Result<Process> {
        let log = File::options().create(true).append(true).open(&self.log).map_err(Error::file("open", &self.log))?;
        let log_again = log.try_clone().map_err(Error::file("open", &self.log))?;
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(log).stderr(log_again).process_group(0);
        let child =
            spawn(command).map_err(|source| Error::Start { program: self.program.display().to_string(), source })?;
        Ok(Process { name: self.name.clone(), log: self.log.clone(), child, ended: None })
    }
}

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
    ended: Option<ExitStatus>,
}

impl Process {
    /// The process number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The file that its output goes to.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Its output so far, over all starts that share the log.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn log_text(&self) -> Result<String> {
        let bytes = std::fs::read(&self.log).map_err(Error::file("read", &self.log))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("a child of ours can be waited for");
        }
        self.ended
    }

    /// Waits until `ready` says so.
    ///
    /// # Errors
    /// When the process ends first, or is not ready `within` that time; both show the end of the log.
    pub fn wait_until(&mut self, within: Duration, mut ready: impl FnMut(&Self) -> bool) -> Result<()> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.ended() {
                return Err(Error::EndedEarly {
                    name: self.name.clone(),
                    status: describe(status),
                    log: self.log.clone(),
                    tail: self.log_tail(),
                });
            }
            if ready(self) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Error::NotReady {
                    name: self.name.clone(),
                    within,
                    log: self.log.clone(),
                    tail: self.log_tail(),
                });
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Waits until the log holds `text`.
    ///
    /// # Errors
    /// As [`Process::wait_until`].
    pub fn wait_for_log(&mut self, within: Duration, text: &str) -> Result<()> {
        self.wait_until(within, |process| process.log_text().is_ok_and(|log| log.contains(text)))
    }

    /// Waits until it ends by itself, and says how; `None` if it still runs after that time.
    pub fn wait_for_end(&mut self, within: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + within;
        while self.ended().is_none() && Instant::now() < deadline {
            std::thread::sleep(POLL_INTERVAL);
        }
        self.ended
    }

    /// Asks it to end (SIGTERM) and waits; kills it if it has not ended `within` that time. Says how it ended.
    pub fn stop(&mut self, within: Duration) -> ExitStatus {
        self.signal(libc::SIGTERM);
        match self.wait_for_end(within) {
            Some(status) => status,
            None => self.kill(),
        }
    }

    /// Kills it and what it started (SIGKILL), as a power cut would as far as the process can tell, and waits until it is
    /// gone.
    pub fn kill(&mut self) -> ExitStatus {
        self.signal(libc::SIGKILL);
        let status = self.child.wait().expect("a child of ours can be waited for");
        self.ended = Some(status);
        status
    }

    /// Stops its execution (SIGSTOP) until [`Process::resume`]: a very long pause of the machine, as its peers see it.
    pub fn pause(&mut self) {
        self.signal(libc::SIGSTOP);
    }

    /// Lets it go on after [`Process::pause`] (SIGCONT).
    pub fn resume(&mut self) {
        self.signal(libc::SIGCONT);
    }

    /// Sends it any signal, unless it has ended.
    pub(crate) fn signal(&mut self, signal: libc::c_int) {
        // An ended child's number may already be someone else's. While it is not waited for, it cannot be.
        if self.ended().is_some() {
            return;
        }
        let pid = libc::pid_t::try_from(self.id()).expect("a process number fits its own type");
        // Its group has the same number. Whatever else is sent to a shell's children is the shell's to decide.
        let target = if signal == libc::SIGKILL { -pid } else { pid };
        send(target, signal);
    }

    fn log_tail(&self) -> String {
        let text = self.log_text().unwrap_or_else(|error| error.to_string());
        let mut from = text.len().saturating_sub(LOG_TAIL_BYTES);
        while !text.is_char_boundary(from) {
            from += 1;
        }
        text[from..].to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.kill();
        }
    }
}

/// Sends a signal to a process, or with a negative number to a group.
#[allow(unsafe_code, reason = "the standard library can send SIGKILL only")]
pub(crate) fn send(target: libc::pid_t, signal: libc::c_int) {
    // SAFETY: kill takes two integers and touches no memory of this process.
    unsafe { libc::kill(target, signal) };
}

/// The processes that this one has started and that are still there.
pub fn children(parent: u32) -> Vec<libc::pid_t> {
    let parent = parent.to_string();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(|&number| stat(number).is_some_and(|(_, its_parent)| its_parent == parent)).collect()
}

/// The state and the parent of a process.
pub(crate) fn stat(number: libc::pid_t) -> Option<(String, String)> {
    let text = std::fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let mut rest = text.rsplit_once(") ")?.1.split(' ');
    Some((rest.next()?.to_owned(), rest.next()?.to_owned()))
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// Runs a command to its end and returns what it printed to its standard output.
///
/// # Errors
/// When it cannot be started, or does not end well; the error holds what it printed.
pub fn run(command: &mut Command) -> Result<String> {
    let text = format!("{command:?}");
    let output = command.output().map_err(|source| Error::Start { program: text.clone(), source })?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(Error::Command { command: text, status: describe(output.status), stderr: format!("{stdout}{stderr}") })
}

type Request = (Command, mpsc::Sender<io::Result<Child>>);

static STARTER: LazyLock<Mutex<mpsc::Sender<Request>>> = LazyLock::new(|| {
    let (sender, requests) = mpsc::channel::<Request>();
    std::thread::Builder::new()
        .name("process-starter".to_owned())
        .spawn(move || {
            for (mut command, answer) in requests {
                // Nobody listening means that the caller is gone; the child is then killed and reaped here.
                if let Err(mpsc::SendError(Ok(mut child))) = answer.send(command.spawn()) {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
        })
        .expect("a test program can start one thread");
    Mutex::new(sender)
});

#[allow(unsafe_code, reason = "only a child itself can ask to be killed with its parent")]
fn spawn(mut command: Command) -> io::Result<Child> {
    let parent = std::process::id();
    let die_with_parent = move || {
        // SAFETY: both calls take integers, touch no memory, and may be made between fork and exec.
        let parent_now = unsafe {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            libc::getppid()
        };
        // The parent may have ended before the wish was known to the kernel.
        if u32::try_from(parent_now) == Ok(parent) { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    };
    // SAFETY: the closure allocates nothing, takes no lock and calls only what is allowed between fork and exec.
    unsafe { command.pre_exec(die_with_parent) };

    let (sender, answer) = mpsc::channel();
    STARTER
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send((command, sender))
        .expect("the starting thread lives as long as its channel");
    answer.recv().expect("the starting thread answers each request")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::Folder;

    const SOON: Duration = Duration::from_secs(10);

    fn shell(folder: &Folder, script: &str) -> Process {
        Spec::new("shell", "/bin/sh", folder.path()).args(["-c", script]).start().unwrap()
    }

    #[test]
    fn output_goes_to_the_log_and_can_be_waited_for() {
        let folder = Folder::new("process").unwrap();
        let mut process = shell(&folder, "echo one; echo two >&2; sleep 60");
        process.wait_for_log(SOON, "one").unwrap();
        process.wait_for_log(SOON, "two").unwrap();
        assert!(process.ended().is_none());
    }

    #[test]
    fn an_early_end_is_an_error_that_shows_the_log() {
        let folder = Folder::new("process").unwrap();
        let mut process = shell(&folder, "echo wrong flag; exit 3");
        let error = process.wait_for_log(SOON, "ready").unwrap_err().to_string();
        assert!(error.contains("exit code 3") && error.contains("wrong flag"), "{error}");
    }

    #[test]
    fn what_is_not_ready_in_time_is_an_error() {
        let folder = Folder::new("process").unwrap();
        let mut process = shell(&folder, "sleep 60");
        let result = process.wait_for_log(Duration::from_millis(50), "ready");
        assert!(matches!(result, Err(Error::NotReady { .. })), "{result:?}");
    }

    #[test]
    fn stop_asks_first() {
        let folder = Folder::new("process").unwrap();
        let mut process = shell(&folder, "trap 'exit 7' TERM; echo ready; while :; do sleep 0.02; done");
        process.wait_for_log(SOON, "ready").unwrap();
        assert_eq!(process.stop(SOON).code(), Some(7));
    }

    #[test]
    fn stop_kills_what_does_not_listen() {
        let folder = Folder::new("process").unwrap();
        let mut process = shell(&folder, "trap '' TERM; echo ready; while :; do sleep 0.02; done");
        process.wait_for_log(SOON, "ready").unwrap();
        assert_eq!(process.stop(Duration::from_millis(100)).signal(), Some(libc::SIGKILL));
    }

    #[test]
    fn a_paused_process_does_nothing_until_it_is_resumed() {
        let folder = Folder::new("process").unwrap();
        let mut process = shell(&folder, "while :; do echo tick; sleep 0.02; done");
        process.wait_for_log(SOON, "tick").unwrap();
        process.pause();
        let state = || std::fs::read_to_string(format!("/proc/{}/stat", process.id())).unwrap();
        let deadline = Instant::now() + SOON;
        while !state().contains(") T ") {
            assert!(Instant::now() < deadline, "never stopped: {}", state());
        }
        let before = process.log_text().unwrap().len();
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(process.log_text().unwrap().len(), before);
        process.resume();
        process.wait_until(SOON, |process| process.log_text().unwrap().len() > before).unwrap();
    }

    #[test]
    fn a_process_outlives_the_thread_that_asked_for_it() {
        let folder = Folder::new("process").unwrap();
        let mut process = std::thread::scope(|scope| scope.spawn(|| shell(&folder, "sleep 60")).join().unwrap());
        assert_eq!(process.wait_for_end(Duration::from_millis(300)), None);
    }

    /// Not a test by itself: the next test runs it in a process of its own, which it kills.
    #[test]
    fn starts_a_child_and_waits_to_be_killed() {
        let Some(folder) = std::env::var_os("CHILD_OF_A_KILLED_PARENT") else {
            return;
        };
        let child = Spec::new("child", "/bin/sleep", Path::new(&folder)).arg("600").start().unwrap();
        std::fs::write(Path::new(&folder).join("pid.new"), child.id().to_string()).unwrap();
        std::fs::rename(Path::new(&folder).join("pid.new"), Path::new(&folder).join("pid")).unwrap();
        std::thread::sleep(Duration::from_secs(600));
    }

    #[test]
    fn a_child_dies_with_a_parent_that_is_killed() {
        let folder = Folder::new("process").unwrap();
        let mut parent = Spec::new("parent", std::env::current_exe().unwrap(), folder.path())
            .args(["--exact", "process::tests::starts_a_child_and_waits_to_be_killed"])
            .env("CHILD_OF_A_KILLED_PARENT", folder.path())
            .start()
            .unwrap();
        let pid = || std::fs::read_to_string(folder.path().join("pid"));
        parent.wait_until(SOON, |_| pid().is_ok()).unwrap();
        let child = format!("/proc/{}/stat", pid().unwrap());
        assert!(std::fs::read_to_string(&child).unwrap().contains("(sleep)"));
        parent.kill();
        let deadline = Instant::now() + SOON;
        // Its new parent may not have waited for it yet; then it shows as a zombie.
        while std::fs::read_to_string(&child).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(Instant::now() < deadline, "the child outlived its parent");
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let folder = Folder::new("process").unwrap();
        let process = shell(&folder, "sleep 60");
        let stat = format!("/proc/{}/stat", process.id());
        assert!(Path::new(&stat).exists());
        drop(process);
        assert!(!Path::new(&stat).exists());
    }

    #[test]
    fn a_command_that_fails_says_why() {
        let error = run(Command::new("/bin/sh").args(["-c", "echo because >&2; exit 4"])).unwrap_err().to_string();
        assert!(error.contains("exit code 4") && error.contains("because"), "{error}");
        assert_eq!(run(Command::new("/bin/sh").args(["-c", "echo fine"])).unwrap(), "fine\n");
    }
}
