//! Small programs in Go that tests ask what the Go original would do: the modules below `tests/go` that have a `main`.
//!
//! Invariant: a program is never older than its source: a note beside it holds all of it, and it is built again when
//! they differ.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::tools::{self, Shop};

/// Builds the program in `tests/go/NAME` into `target/tools/NAME` unless that was done before; `progress` is as in
/// [`tools::Tools::find_or_build`].
///
/// # Errors
/// When it cannot be built; the error says what to install if there is no Go.
pub fn build(name: &str, progress: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    let workspace = tools::workspace()?;
    let source = workspace.join("tests/go").join(name);
    let note = read_sources(&source)?;
    let shop = Shop::open(&workspace, progress)?;
    let program = shop.folder().join(name);
    let note_path = shop.folder().join(format!(".{name}.built-from"));
    if program.is_file() && std::fs::read_to_string(&note_path).is_ok_and(|found| found == note) {
        return Ok(program);
    }
    let staged = shop.folder().join(format!(".{name}.new"));
    let out = staged.display().to_string();
    let arguments = ["build", "-trimpath", "-buildvcs=false", "-v", "-ldflags", "-s -w", "-o", &out, "."];
    tools::go(&source, &arguments, &format!("tests/go/{name}"), progress)?;
    // Program first: if this is cut short, the old note makes the next run build again.
    std::fs::rename(&staged, &program).map_err(Error::file("move", &staged))?;
    std::fs::write(&note_path, &note).map_err(Error::file("write", &note_path))?;
    Ok(program)
}

/// All that the program is made of, file by file.
fn read_sources(folder: &Path) -> Result<String> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::file("read", folder))? {
        let path = entry.map_err(Error::file("read", folder))?.path();
        if path.extension().is_some_and(|extension| matches!(extension.to_str(), Some("go" | "mod" | "sum"))) {
            paths.push(path);
        }
    }
    paths.sort();
    paths.iter().map(|path| tools::read(path)).collect()
}
