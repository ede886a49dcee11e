//! `make bench-members`: see [`kubewharf_benches::members`].

use clap::Parser as _;
use kubewharf_benches::members::options::Options;
use kubewharf_benches::members::run;
use kubewharf_benches::program;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    let options = Options::parse().settled().map_err(anyhow::Error::msg)?;
    program::main("members", &options.output, async |data, command| {
        run(&options, data, command, &|line| eprintln!("{line}")).await
    })
}
