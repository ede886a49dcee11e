//! `kubewharf zoo`: reads the flags and runs zoo; `tenant` is the administrator's tool.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use kubewharf_foundation::Shutdown;
use kubewharf_foundation::telemetry::{self, LogFormat};
use kubewharf_zoo::{Administrator, Options, TenantKubeconfig};
use tracing::error;

/// Flags of `kubewharf zoo`.
#[derive(Clone, Debug, Parser)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Command {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Clone, Debug, Subcommand)]
enum What {
    /// Make, show and end tenants.
    #[command(subcommand)]
    Tenant(TenantCommand),
}

#[derive(Clone, Debug, Subcommand)]
enum TenantCommand {
    /// Make a tenant.
    Create(Named),
    /// Tell which tenants there are.
    List(Host),
    /// Print a kubeconfig for a tenant, with a new key and a certificate of it.
    Kubeconfig(Credential),
    /// End a tenant, and wait until all that was its own is gone.
    Delete(Delete),
}

#[derive(Clone, Debug, Args)]
struct Host {
    /// How the host's apiserver is reached.
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    upstream_kubeconfig: PathBuf,
}

#[derive(Clone, Debug, Args)]
struct Named {
    /// The tenant's name.
    name: String,
    #[command(flatten)]
    host: Host,
}

#[derive(Clone, Debug, Args)]
struct Delete {
    #[command(flatten)]
    tenant: Named,
    /// Seconds to wait; 0: not at all.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
}

#[derive(Clone, Debug, Args)]
struct Credential {
    #[command(flatten)]
    tenant: Named,
    /// The user within the tenant.
    #[arg(long, value_name = "NAME", default_value = "admin")]
    user: String,
    /// A group of the user; may be given several times. `system:masters` may do everything within the tenant.
    #[arg(long = "group", value_name = "NAME", default_value = "system:masters")]
    groups: Vec<String>,
    /// Seconds that the certificate lasts; at most a day.
    #[arg(long, value_name = "SECONDS", default_value_t = 12 * 3600, value_parser = clap::value_parser!(u64).range(60..=86_400))]
    lifetime: u64,
    /// Where the tenant's API is, if it is not where zoo says.
    #[arg(long, value_name = "URL")]
    server: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Text,
    Json,
}

#[derive(Clone, Debug, Args)]
struct Serve {
    /// How the host's apiserver is reached. Its user needs all rights that tenants shall have, and to act as others: as a rule, all.
    // Not needed by the subcommands, which have their own.
    #[arg(long, value_name = "FILE", required = true)]
    upstream_kubeconfig: Option<PathBuf>,
    /// The address to serve tenants at, with TLS.
    #[arg(long, value_name = "ADDRESS:PORT", required = true)]
    listen: Option<SocketAddr>,
    /// The address for administrators of the host: certificates for tenants, health, metrics; with TLS.
    #[arg(long, value_name = "ADDRESS:PORT", required = true)]
    admin_listen: Option<SocketAddr>,
    /// The folder of the authority that signs tenants' certificates. All zoos of one host need the same one.
    #[arg(long, value_name = "DIR", required = true)]
    data_dir: Option<PathBuf>,
    /// The URL at which tenants reach this zoo, such as that of a load balancer; https:// and the address to listen at if not set.
    #[arg(long, value_name = "URL")]
    external_url: Option<String>,
    /// The address at which others, such as tenants' pods, reach this zoo at the port of --listen: tenants' Service kubernetes leads there. The
    /// address of --listen if not set; if that is no single one, the one from which this machine reaches the host's apiserver.
    #[arg(long, value_name = "ADDRESS")]
    advertise_address: Option<IpAddr>,
    /// A storage class of the host that tenants may use; may be given several times. Without any, they may use each; volumes without a
    /// class are out of their reach in any case.
    #[arg(long, value_name = "NAME")]
    storage_class: Vec<String>,
    /// The certificate to show (PEM), instead of one that zoo makes.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The key of that certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Client connections at once from one address, or from one /64 of IPv6; further ones are closed at once. 0: as many as all may be. All
    /// clients behind a NAT, or behind a load balancer that replaces addresses, are one.
    #[arg(long, value_name = "N", default_value_t = 0)]
    connections_per_address_max: usize,
    /// Threads that serve [default: one for every four cores].
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// How the log looks.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    log_format: Format,
    /// What is logged: error, warn, info, debug, or filters such as `info,kubewharf_zoo=debug`.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,
}

pub(crate) fn run(command: Command) -> ExitCode {
    let result = match command.what {
        Some(What::Tenant(command)) => tenant(command),
        None => serve(command.serve),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kubewharf zoo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(flags: Serve) -> anyhow::Result<()> {
    let format = match flags.log_format {
        Format::Text => LogFormat::Text,
        Format::Json => LogFormat::Json,
    };
    telemetry::init(format, &flags.log_level).context("--log-level")?;
    // Both only cost something: memory, or how many clients there can be.
    if let Err(error) = kubewharf_foundation::memory::avoid_huge_pages() {
        tracing::warn!(%error, "connections take more memory than they need");
    }
    if let Err(error) = kubewharf_foundation::descriptors::raise_limit() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    let required = "clap demands it";
    let options = Options {
        upstream_kubeconfig: flags.upstream_kubeconfig.expect(required),
        listen: flags.listen.expect(required),
        admin_listen: flags.admin_listen.expect(required),
        data_dir: flags.data_dir.expect(required),
        external_url: flags.external_url,
        advertise_address: flags.advertise_address,
        storage_classes: flags.storage_class,
        tls: flags.tls_cert.zip(flags.tls_key),
        connections_per_address_max: flags.connections_per_address_max,
    };
    let threads = flags.threads.map_or_else(default_threads, NonZeroUsize::get);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        // What takes long goes on beside these threads, on few.
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .enable_all()
        .build()
        .context("can't start threads")?;
    runtime.block_on(async {
        let shutdown = Shutdown::new();
        shutdown.on_signals()?;
        kubewharf_zoo::run(options, shutdown).await.inspect_err(|error| error!(%error, "zoo does not start"))
    })?;
    Ok(())
}

/// Threads beside those that serve, for what takes long.
const BLOCKING_THREADS_MAX: usize = 16;

/// One for every four cores. A kube-apiserver takes many times the processor time that KubeZoo takes for the same request, and threads that have
/// little to do mostly wake each other.
fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get).div_ceil(4)
}

fn tenant(command: TenantCommand) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("can't start")?;
    runtime.block_on(async {
        let administrator = |host: &Host| Administrator::new(&host.upstream_kubeconfig);
        match command {
            TenantCommand::Create(tenant) => {
                administrator(&tenant.host)?.create(&tenant.name).await?;
                println!("tenant {} is made; its kubeconfig: kubewharf zoo tenant kubeconfig {0}", tenant.name);
            }
            TenantCommand::List(host) => {
                println!("{:<32} {:<10} {:<12} UPSTREAM", "NAME", "PHASE", "CREATED");
                for tenant in administrator(&host)?.list().await? {
                    let created = tenant.created.split('T').next().unwrap_or_default();
                    println!("{:<32} {:<10} {:<12} {}*", tenant.name, tenant.phase, created, tenant.prefix);
                }
            }
            TenantCommand::Kubeconfig(wanted) => {
                let credential = TenantKubeconfig {
                    tenant: wanted.tenant.name,
                    user: wanted.user,
                    groups: wanted.groups,
                    lifetime: Duration::from_secs(wanted.lifetime),
                    server: wanted.server,
                };
                print!("{}", administrator(&wanted.tenant.host)?.kubeconfig(credential).await?);
            }
            TenantCommand::Delete(wanted) => {
                let administrator = administrator(&wanted.tenant.host)?;
                let name = &wanted.tenant.name;
                administrator.delete(name).await?;
                if wanted.timeout > 0 {
                    let mut last = String::from("no zoo has begun to end it: does one run and lead?");
                    let gone = administrator.gone(name, |held| {
                        eprintln!("{held}");
                        held.clone_into(&mut last);
                    });
                    if tokio::time::timeout(Duration::from_secs(wanted.timeout), gone).await.is_err() {
                        bail!("tenant {name} is not gone after {} s: {last}", wanted.timeout);
                    }
                    println!("tenant {name} is gone");
                }
            }
        }
        Ok(())
    })
}
