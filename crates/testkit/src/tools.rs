//! Finds the real programs, and builds those that are missing.
//!
//! A program is looked for in the folder that `KUBEBUILDER_ASSETS` names, then in `PATH`, then in `target/tools/` of
//! the checkout. The first whose version fits is taken; what is not found is built into `target/tools/` from the Go
//! modules below `tests/tools`, which pin the versions. What fits:
//!
//! | program | version |
//! |---|---|
//! | kube-apiserver, kube-controller-manager | the pinned minor version, any patch |
//! | etcd, etcdctl, etcdutl, h2spec | the pinned minor version, any patch |
//! | kubectl | at most one minor version from the pinned one, which is what Kubernetes supports |
//! | kine | the pinned minor version, any patch; only a benchmark asks for it |
//!
//! Invariant: a program that this module built is never used for another pin than the one it was built from: a note
//! beside it tells the pin and the settings, and it is built again when they differ.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, TryLockError};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::process;

/// How often a build that runs says so.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);
/// How much of the end of a failed build's output is shown.
const OUTPUT_LINES_MAX: usize = 30;

/// A program of Kubernetes or etcd, or one that checks ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tool {
    /// The server that kubectl and controllers talk to.
    KubeApiserver,
    /// The controllers of Kubernetes itself.
    KubeControllerManager,
    /// The command-line client of Kubernetes.
    Kubectl,
    /// The store that KubeBrain replaces.
    Etcd,
    /// The command-line client of etcd.
    Etcdctl,
    /// The tool for etcd's data files.
    Etcdutl,
    /// Checks an HTTP/2 server against the protocol's rules.
    H2spec,
    /// Another store with etcd's API over PostgreSQL.
    Kine,
}

impl Tool {
    /// All that tests run. [`Tool::Kine`] is built when its benchmark asks for it.
    pub const ALL: &[Self] = &[
        Self::Etcd,
        Self::Etcdctl,
        Self::Etcdutl,
        Self::KubeApiserver,
        Self::KubeControllerManager,
        Self::Kubectl,
        Self::H2spec,
    ];

    /// What a cluster without nodes is made of, beside its store.
    pub const CLUSTER: &[Self] = &[Self::KubeApiserver, Self::KubeControllerManager, Self::Kubectl];

    /// The name of the program's file.
    pub fn name(self) -> &'static str {
        match self {
            Self::KubeApiserver => "kube-apiserver",
            Self::KubeControllerManager => "kube-controller-manager",
            Self::Kubectl => "kubectl",
            Self::Etcd => "etcd",
            Self::Etcdctl => "etcdctl",
            Self::Etcdutl => "etcdutl",
            Self::H2spec => "h2spec",
            Self::Kine => "kine",
        }
    }

    fn module(self) -> &'static Module {
        match self {
            Self::KubeApiserver | Self::KubeControllerManager | Self::Kubectl => &KUBERNETES,
            Self::Etcd | Self::Etcdctl | Self::Etcdutl => &ETCD,
            Self::H2spec => &H2SPEC,
            Self::Kine => &KINE,
        }
    }

    fn package(self) -> &'static str {
        match self {
            Self::KubeApiserver => "k8s.io/kubernetes/cmd/kube-apiserver",
            Self::KubeControllerManager => "k8s.io/kubernetes/cmd/kube-controller-manager",
            Self::Kubectl => "k8s.io/kubernetes/cmd/kubectl",
            Self::Etcd => "go.etcd.io/etcd/server/v3",
            Self::Etcdctl => "go.etcd.io/etcd/etcdctl/v3",
            Self::Etcdutl => "go.etcd.io/etcd/etcdutl/v3",
            Self::H2spec => "github.com/summerwind/h2spec/cmd/h2spec",
            Self::Kine => "github.com/k3s-io/kine",
        }
    }

    fn version_arguments(self) -> &'static [&'static str] {
        match self {
            Self::KubeApiserver | Self::KubeControllerManager | Self::Etcd | Self::H2spec | Self::Kine => {
                &["--version"]
            }
            Self::Kubectl => &["version", "--client"],
            Self::Etcdctl | Self::Etcdutl => &["version"],
        }
    }

    fn fits(self, found: Version, pinned: Version) -> bool {
        let minor_distance_max = if self == Self::Kubectl { 1 } else { 0 };
        found.major == pinned.major && found.minor.abs_diff(pinned.minor) <= minor_distance_max
    }
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A Go module under `tests/tools` that pins programs which are released together.
#[derive(Debug)]
struct Module {
    folder: &'static str,
    /// The required module whose version is the pin.
    pin: &'static str,
    /// How the linker fills in the version that a program tells, with `VERSION`, `MAJOR` and `MINOR` for its numbers.
    version_variables: &'static [&'static str],
}

static KUBERNETES: Module = Module {
    folder: "kubernetes",
    pin: "k8s.io/kubernetes",
    // Without them a kube-apiserver takes itself for v0.0.0, and with that all its features for not yet released.
    version_variables: &[
        "k8s.io/component-base/version.gitVersion=VERSION",
        "k8s.io/component-base/version.gitMajor=MAJOR",
        "k8s.io/component-base/version.gitMinor=MINOR",
        "k8s.io/component-base/version.gitTreeState=clean",
        "k8s.io/client-go/pkg/version.gitVersion=VERSION",
        "k8s.io/client-go/pkg/version.gitMajor=MAJOR",
        "k8s.io/client-go/pkg/version.gitMinor=MINOR",
        "k8s.io/client-go/pkg/version.gitTreeState=clean",
    ],
};

static ETCD: Module = Module { folder: "etcd", pin: "go.etcd.io/etcd/server/v3", version_variables: &[] };

static H2SPEC: Module = Module {
    folder: "h2spec",
    pin: "github.com/summerwind/h2spec",
    // Else it takes itself for 2.0.0.
    version_variables: &["main.VERSION=VERSION"],
};

static KINE: Module = Module {
    folder: "kine",
    pin: "github.com/k3s-io/kine",
    // Else it is a version `dev`.
    version_variables: &["github.com/k3s-io/kine/pkg/version.Version=VERSION"],
};

static MODULES: [&Module; 4] = [&ETCD, &KUBERNETES, &H2SPEC, &KINE];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

impl Version {
    /// The first `1.2.3` in a text such as `Kubernetes v1.2.3` or `etcd Version: 1.2.3`.
    fn find(text: &str) -> Option<Self> {
        text.split_ascii_whitespace().find_map(|word| {
            let word = word.trim_start_matches('v');
            // kubectl builds of distributions have versions such as v1.2.3-rev4.
            let release = word.split(['-', '+']).next().unwrap_or(word);
            let mut numbers = release.split('.').map(str::parse::<u32>);
            match (numbers.next(), numbers.next(), numbers.next(), numbers.next()) {
                (Some(Ok(major)), Some(Ok(minor)), Some(Ok(patch)), None) => Some(Self { major, minor, patch }),
                _ => None,
            }
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Where the wanted programs are.
#[derive(Debug, Clone)]
pub struct Tools {
    paths: BTreeMap<Tool, PathBuf>,
}

impl Tools {
    /// Finds the wanted programs, and builds those that are nowhere. `progress` is told what is being built, every few
    /// seconds; it is not called when everything is there.
    ///
    /// # Errors
    /// When a program is missing and cannot be built: the error says what to install.
    pub fn find_or_build(wanted: &[Tool], progress: &mut dyn FnMut(&str)) -> Result<Self> {
        let workspace = workspace();
        let mut paths = BTreeMap::new();
        let mut missing: Vec<Tool> = Vec::new();
        for &tool in wanted {
            match find_outside(tool, pinned_version(tool.module(), workspace.as_ref().ok())) {
                Some(path) => drop(paths.insert(tool, path)),
                None => missing.push(tool),
            }
        }
        if missing.is_empty() {
            return Ok(Self { paths });
        }
        let Ok(workspace) = workspace else {
            let start = std::env::current_dir().unwrap_or_default();
            return Err(Error::NoWorkspace { wanted: names(&missing), start });
        };
        let shop = Shop::open(&workspace, progress)?;
        for module in MODULES {
            let of_module: Vec<Tool> =
                missing.iter().copied().filter(|tool| std::ptr::eq(tool.module(), module)).collect();
            shop.provide(module, &of_module, progress)?;
            paths.extend(of_module.into_iter().map(|tool| (tool, shop.path(tool))));
        }
        Ok(Self { paths })
    }

    /// Where that program is.
    ///
    /// # Panics
    /// When it was not among those wanted from [`Tools::find_or_build`].
    pub fn path(&self, tool: Tool) -> &Path {
        self.paths.get(&tool).unwrap_or_else(|| panic!("{tool} was not asked for"))
    }
}

/// Where that program is, for tests: found or built at the first call, with progress on standard error.
///
/// # Errors
/// As [`Tools::find_or_build`].
pub fn shared(tool: Tool) -> Result<&'static Path> {
    static FOUND: Mutex<BTreeMap<Tool, &'static Path>> = Mutex::new(BTreeMap::new());
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = found.get(&tool) {
        return Ok(path);
    }
    let tools = Tools::find_or_build(&[tool], &mut |line| eprintln!("{line}"))?;
    // As many as there are tools, for as long as the tests run.
    let path: &'static Path = Box::leak(tools.path(tool).to_owned().into_boxed_path());
    found.insert(tool, path);
    Ok(path)
}

/// The root of the checkout: the nearest folder with `tests/tools` in it, from the working folder upwards, then from
/// the running program's file upwards.
///
/// # Errors
/// When there is none.
pub fn workspace() -> Result<PathBuf> {
    let here = std::env::current_dir().unwrap_or_default();
    let program = std::env::current_exe().unwrap_or_default();
    let is_root = |folder: &&Path| folder.join("tests/tools/kubernetes/go.mod").is_file();
    let root = here.ancestors().find(is_root).or_else(|| program.ancestors().find(is_root));
    root.map(Path::to_owned).ok_or_else(|| Error::NoWorkspace { wanted: "a checkout".to_owned(), start: here.clone() })
}

fn names(tools: &[Tool]) -> String {
    tools.iter().map(|tool| tool.name()).collect::<Vec<_>>().join(", ")
}

/// The version that the module's `go.mod` requires. A program away from any checkout holds its own copy of the pin.
fn pinned_version(module: &Module, workspace: Option<&PathBuf>) -> Version {
    let built_in = match module.folder {
        "kubernetes" => include_str!("../../../tests/tools/kubernetes/go.mod"),
        "h2spec" => include_str!("../../../tests/tools/h2spec/go.mod"),
        "kine" => include_str!("../../../tests/tools/kine/go.mod"),
        _ => include_str!("../../../tests/tools/etcd/go.mod"),
    };
    let text = workspace.and_then(|root| std::fs::read_to_string(module_folder(root, module).join("go.mod")).ok());
    required_version(text.as_deref().unwrap_or(built_in), module.pin)
        .or_else(|| required_version(built_in, module.pin))
        .expect("the pin of this source tree names a version")
}

fn required_version(go_mod: &str, module: &str) -> Option<Version> {
    go_mod.lines().find_map(|line| {
        let mut words = line.trim().trim_start_matches("require ").split_ascii_whitespace();
        (words.next() == Some(module)).then(|| Version::find(words.next()?))?
    })
}

fn module_folder(workspace: &Path, module: &Module) -> PathBuf {
    workspace.join("tests/tools").join(module.folder)
}

fn find_outside(tool: Tool, pinned: Version) -> Option<PathBuf> {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = assets.into_iter().chain(std::env::split_paths(&path));
    folders.map(|folder| folder.join(tool.name())).find(|candidate| {
        candidate.is_file() && version_of(tool, candidate).is_some_and(|found| tool.fits(found, pinned))
    })
}

fn version_of(tool: Tool, program: &Path) -> Option<Version> {
    Version::find(&process::run(Command::new(program).args(tool.version_arguments())).ok()?)
}

/// The folder `target/tools` of a checkout, held by one process at a time while it builds.
pub(crate) struct Shop {
    workspace: PathBuf,
    folder: PathBuf,
    _lock: File,
}

impl Shop {
    pub(crate) fn open(workspace: &Path, progress: &mut dyn FnMut(&str)) -> Result<Self> {
        let folder = workspace.join("target/tools");
        std::fs::create_dir_all(&folder).map_err(Error::file("create the folder", &folder))?;
        let lock_path = folder.join(".lock");
        let lock = File::create(&lock_path).map_err(Error::file("create", &lock_path))?;
        // Released when the file is closed, however this process ends.
        if let Err(TryLockError::WouldBlock) = lock.try_lock() {
            progress("waiting for another process that builds");
        }
        lock.lock().map_err(Error::file("lock", &lock_path))?;
        Ok(Self { workspace: workspace.to_owned(), folder, _lock: lock })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn path(&self, tool: Tool) -> PathBuf {
        self.folder.join(tool.name())
    }

    fn provide(&self, module: &Module, tools: &[Tool], progress: &mut dyn FnMut(&str)) -> Result<()> {
        let source = module_folder(&self.workspace, module);
        let pin = read(&source.join("go.mod"))? + &read(&source.join("go.sum"))?;
        let version = pinned_version(module, Some(&self.workspace));
        let flags = linker_flags(module, version);
        let note = format!("{flags}\n{pin}");
        let stale: Vec<Tool> = tools.iter().copied().filter(|&tool| !self.is_built(tool, &note)).collect();
        if stale.is_empty() {
            return Ok(());
        }
        let staging = tempfile::tempdir_in(&self.folder).map_err(Error::file("create a folder in", &self.folder))?;
        let out = staging.path().join("");
        let mut arguments = vec!["build", "-trimpath", "-buildvcs=false", "-v", "-ldflags", &flags, "-o"];
        arguments.push(out.to_str().ok_or_else(|| not_unicode(&out))?);
        arguments.extend(stale.iter().map(|tool| tool.package()));
        let wanted = format!("{} {version}", names(&stale));
        go(&source, &arguments, &wanted, progress)?;
        for tool in stale {
            let built = staging.path().join(file_name_by_go(tool.package()));
            let note_path = self.note_path(tool);
            // Program first: if this is cut short, the old note makes the next run build again.
            std::fs::rename(&built, self.path(tool)).map_err(Error::file("move", &built))?;
            std::fs::write(&note_path, &note).map_err(Error::file("write", &note_path))?;
        }
        Ok(())
    }

    fn is_built(&self, tool: Tool, note: &str) -> bool {
        self.path(tool).is_file() && std::fs::read_to_string(self.note_path(tool)).is_ok_and(|found| found == note)
    }

    fn note_path(&self, tool: Tool) -> PathBuf {
        self.folder.join(format!(".{tool}.built-from"))
    }
}

/// The name that `go build` gives a program: the last part of its package, not counting a major version.
fn file_name_by_go(package: &str) -> &str {
    let package = package.strip_suffix("/v3").unwrap_or(package);
    package.rsplit('/').next().unwrap_or(package)
}

fn linker_flags(module: &Module, version: Version) -> String {
    let mut flags = "-s -w".to_owned();
    for variable in module.version_variables {
        let (name, value) = variable.split_once('=').expect("a name and a value");
        let value = match value {
            "VERSION" => version.to_string(),
            "MAJOR" => version.major.to_string(),
            "MINOR" => version.minor.to_string(),
            value => value.to_owned(),
        };
        flags += &format!(" -X {name}={value}");
    }
    flags
}

pub(crate) fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(Error::file("read", path))
}

fn not_unicode(path: &Path) -> Error {
    Error::file("pass to go", path)(std::io::Error::other("the path is not valid Unicode"))
}

/// Runs `go` with its output of compiled packages turned into progress.
pub(crate) fn go(folder: &Path, arguments: &[&str], wanted: &str, progress: &mut dyn FnMut(&str)) -> Result<()> {
    let started = Instant::now();
    let mut child = go_command(folder)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => Error::NoGo { wanted: wanted.to_owned() },
            _ => Error::Start { program: "go".to_owned(), source },
        })?;
    let stderr = child.stderr.take().expect("stderr was asked to be a pipe");
    let (sender, lines) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(std::result::Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let mut output: Vec<String> = Vec::new();
    let mut compiled = 0_usize;
    let mut next_report = started + PROGRESS_INTERVAL;
    progress(&format!("building {wanted}"));
    loop {
        match lines.recv_timeout(next_report.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                // Its other lines are about modules that it downloads, or errors.
                compiled += usize::from(!line.starts_with("go: "));
                output.push(line);
            }
            Err(RecvTimeoutError::Timeout) => {
                let seconds = started.elapsed().as_secs();
                progress(&format!("building {wanted}: {compiled} packages compiled, {seconds} s"));
                next_report += PROGRESS_INTERVAL;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    reader.join().expect("reading lines does not panic");
    let status = child.wait().map_err(|source| Error::Start { program: "go".to_owned(), source })?;
    if !status.success() {
        let from = output.len().saturating_sub(OUTPUT_LINES_MAX);
        return Err(Error::Build {
            wanted: wanted.to_owned(),
            status: status.to_string(),
            output: output[from..].join("\n"),
        });
    }
    progress(&format!("built {wanted} in {} s", started.elapsed().as_secs()));
    Ok(())
}

/// `go`, with settings that the caller's own could spoil set to what the pinned modules need.
pub(crate) fn go_command(folder: &Path) -> Command {
    let in_path = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join("go").is_file()));
    // Where Go's own installer puts it, which not every PATH has.
    let usual = Path::new("/usr/local/go/bin/go");
    let program = if !in_path && usual.is_file() { usual } else { Path::new("go") };
    let mut command = Command::new(program);
    command
        .current_dir(folder)
        .env("CGO_ENABLED", "0")
        .env("GOWORK", "off")
        .env("GOFLAGS", "-mod=readonly")
        .env_remove("GOOS")
        .env_remove("GOARCH");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(major: u32, minor: u32, patch: u32) -> Version {
        Version { major, minor, patch }
    }

    #[test]
    fn versions_are_found_in_what_the_programs_print() {
        for (text, expected) in [
            ("Kubernetes v1.36.3\n", version(1, 36, 3)),
            ("Client Version: v1.32.4-dispatcher\nKustomize Version: v5.5.0\n", version(1, 32, 4)),
            ("etcd Version: 3.7.3\nGit SHA: GitNotFound\nGo Version: go1.26.8\n", version(3, 7, 3)),
            ("etcdctl version: 3.7.3\nAPI version: 3.7\n", version(3, 7, 3)),
            ("Kubernetes v1.37.0-alpha.1+abc\n", version(1, 37, 0)),
            ("Version: v2.2.1 ((Unknown))\n", version(2, 2, 1)),
            ("kine version v0.17.5 (HEAD)\n", version(0, 17, 5)),
        ] {
            assert_eq!(Version::find(text), Some(expected), "{text}");
        }
        assert_eq!(Version::find("no version here, 1.2 neither"), None);
    }

    #[test]
    fn a_program_of_another_minor_version_does_not_fit_but_a_near_kubectl_does() {
        let pinned = version(1, 36, 3);
        assert!(Tool::KubeApiserver.fits(version(1, 36, 0), pinned));
        assert!(!Tool::KubeApiserver.fits(version(1, 35, 3), pinned));
        assert!(!Tool::Etcd.fits(version(3, 6, 8), version(3, 7, 3)));
        assert!(Tool::Kubectl.fits(version(1, 35, 9), pinned));
        assert!(Tool::Kubectl.fits(version(1, 37, 0), pinned));
        assert!(!Tool::Kubectl.fits(version(1, 32, 4), pinned));
        assert!(!Tool::Kubectl.fits(version(2, 36, 3), pinned));
    }

    #[test]
    fn the_pins_are_read_from_the_modules_of_this_checkout() {
        let root = workspace().unwrap();
        assert_eq!(pinned_version(&KUBERNETES, Some(&root)).minor, 36);
        assert_eq!(pinned_version(&ETCD, Some(&root)).minor, 7);
        assert_eq!(pinned_version(&H2SPEC, Some(&root)), version(2, 2, 1));
        // The staging modules must be those of the same release.
        let go_mod = read(&module_folder(&root, &KUBERNETES).join("go.mod")).unwrap();
        let pinned = pinned_version(&KUBERNETES, Some(&root));
        let staging = format!("v0.{}.{}", pinned.minor, pinned.patch);
        let replaced: Vec<&str> = go_mod.lines().filter(|line| line.contains(" => ")).collect();
        assert!(replaced.len() > 20, "{replaced:?}");
        for line in replaced {
            assert!(line.ends_with(&staging), "{line} is not of {pinned}");
        }
    }

    #[test]
    fn a_pin_is_found_in_both_forms_of_a_requirement() {
        assert_eq!(required_version("require a.b/c v1.2.3\n", "a.b/c"), Some(version(1, 2, 3)));
        assert_eq!(required_version("require (\n\ta.b/d v9.9.9\n\ta.b/c v1.2.3\n)\n", "a.b/c"), Some(version(1, 2, 3)));
        assert_eq!(required_version("require a.b/c/v3 v3.2.3\n", "a.b/c"), None);
    }

    #[test]
    fn the_linker_is_told_the_version_where_it_has_to_be() {
        let flags = linker_flags(&KUBERNETES, version(1, 36, 3));
        assert!(flags.contains("-X k8s.io/component-base/version.gitVersion=v1.36.3 "), "{flags}");
        assert!(flags.contains("-X k8s.io/client-go/pkg/version.gitMinor=36 "), "{flags}");
        assert_eq!(linker_flags(&ETCD, version(3, 7, 3)), "-s -w");
        assert_eq!(linker_flags(&H2SPEC, version(2, 2, 1)), "-s -w -X main.VERSION=v2.2.1");
    }

    #[test]
    fn programs_are_expected_under_the_names_that_go_gives_them() {
        assert_eq!(file_name_by_go(Tool::Etcd.package()), "server");
        assert_eq!(file_name_by_go(Tool::Etcdctl.package()), "etcdctl");
        assert_eq!(file_name_by_go(Tool::Kubectl.package()), "kubectl");
        assert_eq!(file_name_by_go(Tool::Kine.package()), "kine");
    }

    #[test]
    fn a_broken_build_is_an_error_that_shows_what_go_said() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("go.mod"), "module example.com/broken\n\ngo 1.26.0\n").unwrap();
        std::fs::write(folder.path().join("main.go"), "package main\n\nfunc main() { undefinedName() }\n").unwrap();
        let mut told = Vec::new();
        let error = go(folder.path(), &["build", "-o", "out", "."], "a broken program", &mut |line| {
            told.push(line.to_owned());
        })
        .unwrap_err()
        .to_string();
        assert!(error.contains("a broken program") && error.contains("undefinedName"), "{error}");
        assert_eq!(told, ["building a broken program"]);
    }
}
