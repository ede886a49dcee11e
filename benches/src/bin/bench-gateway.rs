//! `make bench-gateway`: see [`kubewharf_benches::gateway`].

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Parser as _;
use kubewharf_benches::gateway::options::Options;
use kubewharf_benches::gateway::results::Results;
use kubewharf_benches::gateway::{backend, report, run};
use kubewharf_testkit::tools::workspace;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    // The kube-apiserver that the sides are measured in front of is this same program, as a process of its own.
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|word| word == backend::WORD) {
        return backend::serve(Path::new(&arguments.next().context("its settings are missing")?));
    }
    let options = Options::parse();
    let root = workspace()?;
    let output = options.output.clone().unwrap_or_else(|| root.join("target/bench/gateway.json"));
    if !options.no_run {
        let results = run_all(&root, options.clone())?;
        write(&output, &results.to_json()?)?;
    }
    // From the file, so that what is shown and what is kept cannot differ.
    let results = Results::from_json(&read(&output)?)?;
    println!("{}", report::text(&results));
    println!("{}", output.display());
    if options.write_benchmarks {
        let path = root.join("BENCHMARKS.md");
        let document = if path.exists() { read(&path)? } else { "# Benchmarks\n".to_owned() };
        write(&path, &report::put_into(&document, &results)?)?;
    }
    Ok(())
}

fn run_all(root: &Path, options: Options) -> Result<Results> {
    let options = options.settled().map_err(anyhow::Error::msg)?;
    let data = options.data.clone().unwrap_or_else(|| root.join("target/bench"));
    std::fs::create_dir_all(&data).with_context(|| format!("create {}", data.display()))?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let command = if arguments.is_empty() {
        "make bench-gateway".to_owned()
    } else {
        format!("make bench-gateway ARGS=\"{}\"", arguments.join(" "))
    };
    // One thread: what it does not take is left to the others.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, run(&options, &data, command, &|line| eprintln!("{line}")))
}

fn read(path: &PathBuf) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
