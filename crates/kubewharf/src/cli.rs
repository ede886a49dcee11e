//! The command line: which product, and under which name the program was started.
//!
//! Started as `etcd` (by a link of that name, or a copy), the program is `kubewharf brain`: it takes etcd's flags where etcd stood.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use crate::{brain, gateway, up, zoo};

/// A Kubernetes control-plane suite for large, multi-tenant clusters.
#[derive(Debug, Parser)]
#[command(name = "kubewharf", version, disable_help_subcommand = true)]
enum Command {
    /// Serve the etcd v3 API over an embedded engine; takes etcd's flags (`kubewharf brain --help`).
    ///
    /// `kubewharf brain log` prints the committed transactions.
    #[command(disable_help_flag = true)]
    Brain {
        /// etcd's flags, or `log` and its own.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Serve as a layer-7 gateway in front of kube-apiservers.
    Gateway(Box<gateway::Command>),
    /// Give tenants Kubernetes APIs of their own on one cluster.
    Zoo(Box<zoo::Command>),
    /// Start a whole control plane on this machine: KubeBrain, two kube-apiservers, KubeGateway, controllers, KubeZoo, kubeconfigs.
    Up(up::Options),
}

pub(crate) fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.collect();
    let name = arguments.first().and_then(|name| Path::new(name).file_name());
    if name.is_some_and(|name| name == "etcd") {
        return brain::run(arguments.into_iter().skip(1).collect());
    }
    match Command::try_parse_from(arguments) {
        Ok(Command::Brain { arguments }) => brain::run(arguments),
        Ok(Command::Gateway(command)) => gateway::run(*command),
        Ok(Command::Zoo(command)) => zoo::run(*command),
        Ok(Command::Up(options)) => up::run(&options),
        Err(error) => {
            // Nothing to do about a closed terminal.
            let _ = error.print();
            if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS }
        }
    }
}
