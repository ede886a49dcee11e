//! The `kubewharf` program: picks the product and starts it.

mod brain;
mod cli;
mod gateway;
mod logging;
mod up;
mod zoo;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run(std::env::args_os())
}
