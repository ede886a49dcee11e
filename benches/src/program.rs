//! What the program of every benchmark does around its run.
//!
//! Invariant: what is shown, and what is written into a document, comes from the JSON of a run.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use kubewharf_testkit::tools::workspace;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Where results go.
#[derive(Debug, Clone, Default, Args)]
pub struct Output {
    /// The folder for configurations, data and logs while the sides run [default: target/bench].
    #[arg(long)]
    pub data: Option<PathBuf>,

    /// The JSON of the results [default: target/bench/NAME.json].
    #[arg(long)]
    pub output: Option<PathBuf>,

    /// Writes the section of BENCHMARKS.md from the JSON.
    #[arg(long, conflicts_with = "quick")]
    pub write_benchmarks: bool,

    /// Runs nothing; shows the results of the run before, from its JSON.
    #[arg(long)]
    pub no_run: bool,
}

/// Refuses flags that are zero.
///
/// # Errors
/// When one is, as a sentence for the user.
pub fn check_positive(flags: &[(&str, u64)]) -> Result<(), String> {
    match flags.iter().find(|(_, value)| *value == 0) {
        Some((flag, _)) => Err(format!("{flag} 0: must be at least 1")),
        None => Ok(()),
    }
}

/// Refuses a time for `--seconds` that makes no sense.
///
/// # Errors
/// When it does not, as a sentence for the user.
pub fn check_seconds(seconds: f64) -> Result<(), String> {
    if seconds > 0.0 && seconds <= 3600.0 {
        return Ok(());
    }
    Err(format!("--seconds {seconds}: must be above 0, and at most 3600"))
}

/// The results of a run.
pub trait Results: Serialize + DeserializeOwned {
    /// The JSON that is kept.
    ///
    /// # Errors
    /// Never, for results of a run.
    fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Reads [`Results::to_json`].
    ///
    /// # Errors
    /// When it is something else.
    fn from_json(text: &str) -> Result<Self> {
        serde_json::from_str(text).context("not the JSON of a run of this benchmark")
    }

    /// The results as text.
    fn text(&self) -> String;

    /// The document with the section of this benchmark replaced, or added at its end.
    ///
    /// # Errors
    /// When the section's end is missing, or the results are of no full run.
    fn put_into(&self, document: &str) -> Result<String>;
}

/// Runs the benchmark `bench-NAME`, whose run gets its folder and the command that it is, and shows its results.
///
/// # Errors
/// When the run fails, or a file can't be read or written.
pub fn main<R: Results>(name: &str, output: &Output, run: impl AsyncFnOnce(&Path, String) -> Result<R>) -> Result<()> {
    let root = workspace()?;
    let json = output.output.clone().unwrap_or_else(|| root.join(format!("target/bench/{name}.json")));
    if !output.no_run {
        let data = output.data.clone().unwrap_or_else(|| root.join("target/bench"));
        std::fs::create_dir_all(&data).with_context(|| format!("create {}", data.display()))?;
        // One thread: what it does not take is left to the others.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let results = tokio::task::LocalSet::new().block_on(&runtime, run(&data, command(name)))?;
        write(&json, &results.to_json()?)?;
    }
    // From the file, so that what is shown and what is kept cannot differ.
    let results = R::from_json(&read(&json)?)?;
    println!("{}", results.text());
    println!("{}", json.display());
    if output.write_benchmarks {
        let path = root.join("BENCHMARKS.md");
        let document = if path.exists() { read(&path)? } else { "# Benchmarks\n".to_owned() };
        write(&path, &results.put_into(&document)?)?;
    }
    Ok(())
}

fn command(name: &str) -> String {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.is_empty() {
        format!("make bench-{name}")
    } else {
        format!("make bench-{name} ARGS=\"{}\"", arguments.join(" "))
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
