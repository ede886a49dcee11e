//! `kubewharf brain recover`: makes a store usable again whose engine has lost what it had confirmed.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use kubewharf_brain::cluster::recover;
use kubewharf_engine::Engine;
use kubewharf_engine_postgres::{Options, Postgres};
use kubewharf_engine_tikv::Tikv;

/// Make a store usable again whose database or cluster has lost acknowledged writes, as after the failover to a standby that lagged. Members then start again;
/// revisions go on a thousand million higher, and every client lists anew. What is lost stays lost.
#[derive(Debug, Parser)]
#[command(name = "kubewharf brain recover")]
struct Arguments {
    /// Where the rows are: postgres or tikv.
    #[arg(long, value_name = "ENGINE", env = "ETCD_ENGINE", default_value = "postgres")]
    engine: String,
    /// Where the database is, or the cluster.
    #[arg(long, value_name = "URL", env = "ETCD_ENGINE_URL", hide_env_values = true)]
    engine_url: String,
    /// The schema with the store's tables, or the store's name in the cluster.
    #[arg(long, value_name = "NAME", env = "ETCD_ENGINE_SCHEMA", default_value = "kubebrain")]
    engine_schema: String,
    /// Say that it is understood: writes that were acknowledged are gone.
    #[arg(long, required = true)]
    accept_data_loss: bool,
}

/// Runs with the arguments from `recover` on.
pub(super) fn run(arguments: Vec<OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(super::USAGE));
        }
    };
    match recovered(arguments) {
        Ok(revision) => {
            println!("recovered: the store goes on at revision {revision}, and members may be started");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("kubewharf brain recover: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn recovered(arguments: Arguments) -> anyhow::Result<i64> {
    let engine: Box<dyn Engine> = match arguments.engine.as_str() {
        "postgres" => {
            // Whatever the replication is, it is not this command that relies on it.
            let options = Options {
                schema: arguments.engine_schema,
                allow_asynchronous_replication: true,
                ..Options::new(arguments.engine_url)
            };
            Box::new(Postgres::open(options)?)
        }
        "tikv" => {
            let options = kubewharf_engine_tikv::Options {
                schema: arguments.engine_schema,
                ..kubewharf_engine_tikv::Options::new(arguments.engine_url)
            };
            Box::new(Tikv::open(options)?)
        }
        other => anyhow::bail!("--engine: {other:?} is none of postgres, tikv"),
    };
    Ok(recover(&*engine)?)
}
