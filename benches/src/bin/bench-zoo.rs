//! `make bench-zoo`: see [`kubewharf_benches::zoo`].

use clap::Parser as _;
use kubewharf_benches::program;
use kubewharf_benches::zoo::options::Options;
use kubewharf_benches::zoo::run;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    let options = Options::parse().settled().map_err(anyhow::Error::msg)?;
    program::main("zoo", &options.output, async |data, command| {
        run(&options, data, command, &|line| eprintln!("{line}")).await
    })
}
