//! `kubewharf brain`: reads the settings and runs the store.

mod log;
mod recover;

use std::ffi::OsString;
use std::process::ExitCode;

use kubewharf_brain::config::{self, Config, Invocation};
use kubewharf_brain::rpc::ETCD_VERSION;
use kubewharf_foundation::shutdown::Shutdown;
use tracing::{error, warn};

use crate::logging;

/// A wrong command line; what etcd ends with too.
const USAGE: u8 = 2;

/// Runs with the arguments behind `kubewharf brain`.
pub(crate) fn run(arguments: Vec<OsString>) -> ExitCode {
    if arguments.first().is_some_and(|first| first == "log") {
        return log::run(arguments);
    }
    if arguments.first().is_some_and(|first| first == "recover") {
        return recover::run(arguments);
    }
    let arguments: Result<Vec<String>, OsString> = arguments.into_iter().map(OsString::into_string).collect();
    let arguments = match arguments {
        Ok(arguments) => arguments,
        Err(argument) => {
            eprintln!("kubewharf brain: {argument:?} is not valid Unicode");
            return ExitCode::from(USAGE);
        }
    };
    // Variables that are not Unicode are none of ours.
    let environment =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    match config::parse(arguments, environment) {
        Ok(Invocation::Serve { config, warnings }) => serve(*config, &warnings),
        Ok(Invocation::Version) => {
            println!("etcd Version: {ETCD_VERSION}");
            println!("KubeBrain Version: {}", env!("CARGO_PKG_VERSION"));
            println!("OS/Arch: {}/{}", std::env::consts::OS, std::env::consts::ARCH);
            ExitCode::SUCCESS
        }
        Ok(Invocation::Help) => {
            print!(
                "Usage: kubewharf brain [flags]\n       kubewharf brain log [flags]\n       kubewharf brain recover [flags]\n\n{}",
                config::help()
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("kubewharf brain: {error}");
            ExitCode::from(USAGE)
        }
    }
}

fn serve(config: Config, warnings: &[String]) -> ExitCode {
    if let Err(error) = logging::init(&config.log) {
        eprintln!("kubewharf brain: {error:#}");
        return ExitCode::FAILURE;
    }
    for warning in warnings {
        warn!("{warning}");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "can't start threads");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        let shutdown = Shutdown::new();
        shutdown.on_signals()?;
        anyhow::Ok(kubewharf_brain::run(config, shutdown).await?)
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            // A read that hangs in a failed engine must not keep the process from ending.
            runtime.shutdown_background();
            ExitCode::FAILURE
        }
    }
}
