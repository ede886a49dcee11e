//! Tasks of the developers of this workspace, run as `cargo run -p xtask -- TASK`.
//!
//! Invariant: a task with `--check` only reads; without it, it writes files inside the workspace and nowhere else.

mod codegen;
mod kubernetes;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};

const USAGE: &str = "usage: cargo run -p xtask -- TASK

tasks:
  codegen          write the Rust code of crates/etcd-api and crates/engine-tikv from their .proto files
  codegen --check  fail when that code is not what the .proto files give
  codegen-kubernetes
                   write the tables of crates/zoo from Kubernetes' Go modules (needs Go)";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> anyhow::Result<()> {
    match words {
        ["codegen"] => codegen::write(&workspace_root()?),
        ["codegen", "--check"] => codegen::check(&workspace_root()?),
        ["codegen-kubernetes"] => {
            let root = workspace_root()?;
            codegen::write_into(&root, kubernetes::OUT_DIR, &kubernetes::generate(&root)?)
        }
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        [] => bail!("no task given\n{USAGE}"),
        _ => bail!("no such task: {}\n{USAGE}", words.join(" ")),
    }
}

/// The directory of the workspace: the parent of this package, wherever the task is called from.
fn workspace_root() -> anyhow::Result<PathBuf> {
    let manifest_dir = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let root = manifest_dir.parent().context("the package xtask has no parent directory")?;
    Ok(root.to_path_buf())
}
