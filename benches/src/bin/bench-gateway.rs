//! `make bench-gateway`: see [`kubewharf_benches::gateway`].

use std::path::Path;

use anyhow::Context as _;
use clap::Parser as _;
use kubewharf_benches::gateway::options::Options;
use kubewharf_benches::gateway::{backend, run};
use kubewharf_benches::program;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    // The kube-apiserver that the sides are measured in front of is this same program, as a process of its own.
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|word| word == backend::WORD) {
        return backend::serve(Path::new(&arguments.next().context("its settings are missing")?));
    }
    let options = Options::parse().settled().map_err(anyhow::Error::msg)?;
    program::main("gateway", &options.output, async |data, command| {
        run(&options, data, command, &|line| eprintln!("{line}")).await
    })
}
