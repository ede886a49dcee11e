//! `make bench-brain`: see [`kubewharf_benches::brain`].

use clap::Parser as _;
use kubewharf_benches::brain::options::Options;
use kubewharf_benches::brain::run;
use kubewharf_benches::program;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    let options = Options::parse().settled().map_err(anyhow::Error::msg)?;
    program::main("brain", &options.output, async |data, command| {
        run(&options, data, command, &|line| eprintln!("{line}")).await
    })
}
