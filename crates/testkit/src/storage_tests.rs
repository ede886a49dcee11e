//! Kubernetes' own tests of its storage layer, compiled once and run one by one against a store of our choice.
//!
//! The tests come from the pinned `k8s.io/apiserver`. Its `testserver` package, which would start an etcd inside the
//! test, is replaced by ours (`tests/go/storage/testserver`), which starts the store's program for each test. Go does not
//! let a file of its module cache be replaced, so the module is copied into `target/tools/storage` first.
//!
//! Invariant: a test counts as passed only if it says so by its name; a test that has gone away fails.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::process::{self, Spec};
use crate::store::Kind;
use crate::tools::{self, Shop};

/// The module of Kubernetes that holds the tests.
const MODULE: &str = "k8s.io/apiserver";
/// The file in it that ours takes the place of.
const REPLACED_FILE: &str = "pkg/storage/etcd3/testserver/test_server.go";
/// The longest one takes 20 s with etcd on two cores that nobody else uses.
const TEST_TIMEOUT: Duration = Duration::from_secs(300);

/// One test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// The package, as a path below `k8s.io/apiserver/pkg`.
    pub package: String,
    /// The name of the test function.
    pub test: String,
}

/// The compiled tests.
#[derive(Debug, Clone)]
pub struct StorageTests {
    folder: PathBuf,
    cases: Vec<Case>,
}

impl StorageTests {
    /// Compiles the tests unless that was done before; `progress` is as in [`tools::Tools::find_or_build`].
    ///
    /// # Errors
    /// When they cannot be compiled, or the list of tests cannot be read.
    pub fn build(progress: &mut dyn FnMut(&str)) -> Result<Self> {
        let workspace = tools::workspace()?;
        let source = workspace.join("tests/go/storage");
        let cases = parse_list(&tools::read(&source.join("tests.txt"))?);
        let shop = Shop::open(&workspace, progress)?;
        let this = Self { folder: shop.folder().join("storage"), cases };
        let packages = this.packages();
        let go_mod = tools::read(&source.join("go.mod"))?;
        let go_sum = tools::read(&source.join("go.sum"))?;
        let test_server = tools::read(&source.join("testserver/test_server.go"))?;
        let note = format!("{packages:?}\n{go_mod}\n{go_sum}\n{test_server}");
        let note_path = this.folder.join("built-from");
        if std::fs::read_to_string(&note_path).is_ok_and(|found| found == note) {
            return Ok(this);
        }
        if this.folder.exists() {
            std::fs::remove_dir_all(&this.folder).map_err(Error::file("remove", &this.folder))?;
        }

        let copy = this.folder.join("apiserver");
        copy_folder(&module_folder(&source)?, &copy)?;
        let replaced = copy.join(REPLACED_FILE);
        std::fs::remove_file(&replaced).map_err(Error::file("replace", &replaced))?;
        write(&replaced, &test_server)?;
        let mod_path = this.folder.join("go.mod");
        write(&mod_path, &format!("{go_mod}\nreplace {MODULE} => {}\n", copy.display()))?;
        write(&this.folder.join("go.sum"), &go_sum)?;

        for (index, package) in packages.iter().enumerate() {
            let mod_file = format!("-modfile={}", mod_path.display());
            let program = this.program(package).display().to_string();
            let package_path = format!("{MODULE}/pkg/{package}");
            let arguments =
                ["test", "-c", "-trimpath", "-buildvcs=false", "-v", &mod_file, "-o", &program, &package_path];
            let wanted = format!("Kubernetes' tests of {package} ({} of {})", index + 1, packages.len());
            tools::go(&source, &arguments, &wanted, progress)?;
        }
        write(&note_path, &note)?;
        Ok(this)
    }

    /// All tests.
    pub fn cases(&self) -> &[Case] {
        &self.cases
    }

    /// Runs one test; each store that it starts is of that kind.
    ///
    /// # Errors
    /// When it does not pass; the error holds its output.
    pub fn run(&self, case: &Case, kind: Kind) -> Result<()> {
        let (program, words) = kind.program()?;
        // Data that nobody looks at again: in memory where the system has a folder for it.
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let folder = Folder::new_in(&parent, &case.test)?;
        let mut test = Spec::new(&case.test, self.program(&case.package), folder.path())
            .arg(format!("-test.run=^{}$", case.test))
            .arg(format!("-test.timeout={}s", TEST_TIMEOUT.as_secs()))
            .arg("-test.v")
            .current_folder(&self.folder.join("apiserver/pkg").join(&case.package))
            .env("TMPDIR", folder.path())
            .env("STORE_BIN", program)
            .env("STORE_ARGS", words.join(" "))
            .start()?;
        // Its own limit is the same, and tells where it hung.
        let status = test.wait_for_end(TEST_TIMEOUT + Duration::from_secs(10)).unwrap_or_else(|| test.kill());
        let output = test.log_text()?;
        if status.success() && output.contains(&format!("--- PASS: {} (", case.test)) {
            return Ok(());
        }
        Err(Error::Command {
            command: format!("{} {}", case.package, case.test),
            status: status.to_string(),
            stderr: output,
        })
    }

    fn packages(&self) -> Vec<String> {
        let mut packages: Vec<String> = self.cases.iter().map(|case| case.package.clone()).collect();
        packages.dedup();
        packages
    }

    fn program(&self, package: &str) -> PathBuf {
        self.folder.join(format!("{}.test", package.replace('/', "-")))
    }
}

/// Lines of a package and a test; `#` begins a comment.
fn parse_list(text: &str) -> Vec<Case> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines
        .filter_map(|line| line.split_once(' '))
        .map(|(package, test)| Case { package: package.to_owned(), test: test.trim().to_owned() })
        .collect()
}

/// Where the module cache holds the pinned module; it is downloaded if it is not there.
fn module_folder(source: &Path) -> Result<PathBuf> {
    let text = process::run(tools::go_command(source).args(["mod", "download", "-json", MODULE]))?;
    let answer: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    answer["Dir"].as_str().map(PathBuf::from).ok_or_else(|| Error::Command {
        command: format!("go mod download {MODULE}"),
        status: "no folder in its answer".to_owned(),
        stderr: text,
    })
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).map_err(Error::file("create the folder", to))?;
    for entry in std::fs::read_dir(from).map_err(Error::file("read", from))? {
        let entry = entry.map_err(Error::file("read", from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy_folder(&source, &target)?;
        } else {
            std::fs::copy(&source, &target).map_err(Error::file("copy", &source))?;
        }
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(Error::file("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_read_without_its_comments() {
        let text = "# head\n\nstorage/etcd3 TestGet\nstorage/cacher TestGet # why\n";
        let case = |package: &str, test: &str| Case { package: package.to_owned(), test: test.to_owned() };
        assert_eq!(parse_list(text), [case("storage/etcd3", "TestGet"), case("storage/cacher", "TestGet")]);
    }
}
