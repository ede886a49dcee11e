//! `kubewharf gateway`: reads the flags and runs the gateway; `validate` and `explain` look at its configuration.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use kubewharf_foundation::Shutdown;
use kubewharf_foundation::telemetry::{self, LogFormat};
use kubewharf_gateway::config::{self, Severity, Source, SourceOptions};
use kubewharf_gateway::limits::{CONNECTIONS_MAX, HANDSHAKE_TIMEOUT, HEAD_TIMEOUT, IDLE_TIMEOUT, SEND_TIMEOUT};
use kubewharf_gateway::policy::Attributes;
use kubewharf_gateway::{
    AccessLogTarget, Block, ClientTimeouts, Options, TraceOptions, TracesEndpoint, TrustedPeers, User,
};
use kubewharf_kube_api::RequestInfo;
use tracing::{error, warn};

/// Flags of `kubewharf gateway`.
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
    /// Check a folder of manifests and tell all that is wrong with it.
    Validate(Folder),
    /// Tell which policy, limit and endpoints a request would get, and why.
    Explain(Explain),
}

#[derive(Clone, Debug, Args)]
struct Folder {
    /// The folder of `UpstreamCluster` manifests (*.yaml, *.yml).
    #[arg(long, value_name = "DIR")]
    config_dir: PathBuf,
    /// The cluster of clients that name none.
    #[arg(long, value_name = "NAME")]
    default_cluster: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Text,
    Json,
}

#[derive(Clone, Debug, Args)]
struct Serve {
    /// The folder of `UpstreamCluster` manifests (*.yaml, *.yml).
    // Not needed by the subcommands, which have their own.
    #[arg(long, value_name = "DIR", required = true)]
    config_dir: Option<PathBuf>,
    /// The cluster of clients that name none.
    #[arg(long, value_name = "NAME")]
    default_cluster: Option<String>,
    /// An address to serve clients at, with TLS; may be given several times.
    #[arg(long, value_name = "ADDRESS:PORT", required = true)]
    listen: Vec<SocketAddr>,
    /// The address for health, metrics and status, without TLS.
    #[arg(long, value_name = "ADDRESS:PORT")]
    admin_listen: Option<SocketAddr>,
    /// A file with the bearer token that the admin address wants for /metrics and /status.
    #[arg(long, value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
    /// The certificate for clusters that have none of their own (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The key of that certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Whose client certificates are believed by clusters that do not say so themselves (PEM).
    #[arg(long, value_name = "FILE")]
    client_ca: Option<PathBuf>,
    /// Seconds that connections may take to end when the gateway stops. Watches, which have no end of their own, end one after another in the
    /// first half of it.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    drain_timeout: u64,
    /// Client connections at once.
    #[arg(long, value_name = "N", default_value_t = CONNECTIONS_MAX)]
    max_connections: usize,
    /// Client connections at once from one address, or from one /64 of IPv6; further ones are closed at once. 0: as many as all may be. With
    /// --proxy-protocol-from, the addresses are those that the load balancers tell; without it, all clients behind a load balancer that
    /// replaces addresses, as behind a NAT, are one.
    #[arg(long, value_name = "N", default_value_t = 0)]
    connections_per_address_max: usize,
    /// Seconds that a client may take for the TLS handshake.
    #[arg(long, value_name = "SECONDS", default_value_t = HANDSHAKE_TIMEOUT.as_secs(), value_parser = clap::value_parser!(u64).range(1..=86_400))]
    handshake_timeout: u64,
    /// Seconds that a client may take to send the head of a request, or one frame of HTTP/2; and that an HTTP/1.1 connection may be idle.
    #[arg(long, value_name = "SECONDS", default_value_t = HEAD_TIMEOUT.as_secs(), value_parser = clap::value_parser!(u64).range(1..=86_400))]
    header_timeout: u64,
    /// Seconds that an HTTP/2 connection may be without a request; up to twice that.
    #[arg(long, value_name = "SECONDS", default_value_t = IDLE_TIMEOUT.as_secs(), value_parser = clap::value_parser!(u64).range(1..=86_400))]
    idle_timeout: u64,
    /// Seconds for which a client may take nothing of what is there for it. Readers of one stream may pause for longer: see timeouts.idle
    /// of the manifests.
    #[arg(long, value_name = "SECONDS", default_value_t = SEND_TIMEOUT.as_secs(), value_parser = clap::value_parser!(u64).range(1..=86_400))]
    send_timeout: u64,
    /// Addresses of load balancers that tell by the PROXY protocol whose connection they pass on, such as 10.0.0.0/8; may be given several
    /// times.
    #[arg(long, value_name = "CIDR")]
    proxy_protocol_from: Vec<Block>,
    /// Where the access log goes: a file, `-` for the standard output, nowhere if not set.
    #[arg(long, value_name = "FILE")]
    access_log: Option<PathBuf>,
    /// The OpenTelemetry collector that gets a span for each request, by OTLP over HTTP in JSON, such as http://127.0.0.1:4318; without a
    /// path, /v1/traces is meant. A span is sent when its answer has ended: that of a watch, with the watch. Without this flag, the
    /// variable OTEL_EXPORTER_OTLP_TRACES_ENDPOINT counts as it is, then OTEL_EXPORTER_OTLP_ENDPOINT with /v1/traces behind it; nothing is
    /// traced if none is set. OTEL_SERVICE_NAME names the service, which is else kubegateway.
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<TracesEndpoint>,
    /// Whose certificates the collector may have, if its URL is https (PEM); the system's authorities if not set.
    #[arg(long, value_name = "FILE")]
    otlp_ca_file: Option<PathBuf>,
    /// The share of requests that are traced, from 0 to 1, of those whose client has not decided that by the header traceparent.
    #[arg(long, value_name = "RATIO", default_value_t = 1.0, value_parser = ratio)]
    trace_sampling_ratio: f64,
    /// How the log looks.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    log_format: Format,
    /// What is logged: error, warn, info, debug, or filters such as `info,kubewharf_gateway=debug`.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,
}

#[derive(Clone, Debug, Args)]
struct Explain {
    #[command(flatten)]
    folder: Folder,
    /// The cluster; the default one if not set.
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// The request's method.
    #[arg(long, default_value = "GET")]
    method: String,
    /// The user who asks.
    #[arg(long, value_name = "NAME")]
    user: String,
    /// A group of the user; may be given several times.
    #[arg(long, value_name = "NAME")]
    group: Vec<String>,
    /// The header User-Agent.
    #[arg(long, default_value = "")]
    user_agent: String,
    /// The client's address.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    client: IpAddr,
    /// Path and query, such as /api/v1/pods?watch=1.
    target: String,
}

fn ratio(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|ratio| (0.0..=1.0).contains(ratio))
        .ok_or_else(|| "it must be a number from 0 to 1".to_owned())
}

pub(crate) fn run(command: Command) -> ExitCode {
    let result = match command.what {
        Some(What::Validate(folder)) => Ok(validate(&folder)),
        Some(What::Explain(request)) => explain(&request).map(|()| ExitCode::SUCCESS),
        None => return serve(command.serve),
    };
    result.unwrap_or_else(|error| {
        eprintln!("kubewharf gateway: {error:#}");
        ExitCode::FAILURE
    })
}

fn serve(flags: Serve) -> ExitCode {
    let format = match flags.log_format {
        Format::Text => LogFormat::Text,
        Format::Json => LogFormat::Json,
    };
    if let Err(error) = telemetry::init(format, &flags.log_level) {
        eprintln!("kubewharf gateway: --log-level: {error}");
        return ExitCode::FAILURE;
    }
    if let Err(error) = kubewharf_foundation::memory::avoid_huge_pages() {
        warn!(%error, "connections take more memory than they need");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "can't start threads");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        let options = options(flags)?;
        let shutdown = Shutdown::new();
        shutdown.on_signals()?;
        anyhow::Ok(kubewharf_gateway::run(options, shutdown).await?)
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn options(flags: Serve) -> anyhow::Result<Options> {
    let admin_token = flags
        .admin_token_file
        .map(|path| {
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("--admin-token-file: can't read {}", path.display()))?;
            let token = text.trim();
            if token.is_empty() {
                bail!("--admin-token-file: {} is empty", path.display());
            }
            Ok(token.to_owned())
        })
        .transpose()?;
    // A variable that is empty is as good as none: OpenTelemetry's rule.
    let variable = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let traces = otlp_endpoint(flags.otlp_endpoint, variable)?.map(|endpoint| TraceOptions {
        endpoint,
        authorities: flags.otlp_ca_file,
        service_name: variable("OTEL_SERVICE_NAME").unwrap_or_else(|| "kubegateway".to_owned()),
        sampling_ratio: flags.trace_sampling_ratio,
    });
    Ok(Options {
        admin_listen: flags.admin_listen,
        admin_token,
        default_cluster: flags.default_cluster,
        tls: flags.tls_cert.zip(flags.tls_key),
        client_ca: flags.client_ca,
        drain_timeout: Duration::from_secs(flags.drain_timeout),
        connections_max: flags.max_connections.max(1),
        connections_per_address_max: flags.connections_per_address_max,
        client_timeouts: ClientTimeouts {
            handshake: Duration::from_secs(flags.handshake_timeout),
            head: Duration::from_secs(flags.header_timeout),
            idle: Duration::from_secs(flags.idle_timeout),
            send: Duration::from_secs(flags.send_timeout),
        },
        proxy_protocol_from: TrustedPeers::new(flags.proxy_protocol_from),
        access_log: match flags.access_log {
            None => AccessLogTarget::Off,
            Some(path) if path.as_os_str() == "-" => AccessLogTarget::Stdout,
            Some(path) => AccessLogTarget::File(path),
        },
        traces,
        ..Options::new(flags.config_dir.context("--config-dir is needed")?, flags.listen)
    })
}

/// Where traces go: where the flag says, else where OpenTelemetry's variables do.
fn otlp_endpoint(
    flag: Option<TracesEndpoint>,
    variable: impl Fn(&str) -> Option<String>,
) -> anyhow::Result<Option<TracesEndpoint>> {
    const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
    const ALL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    if flag.is_some() {
        return Ok(flag);
    }
    if let Some(url) = variable(TRACES) {
        return TracesEndpoint::exactly(&url).with_context(|| format!("{TRACES}: {url}")).map(Some);
    }
    let Some(url) = variable(ALL) else { return Ok(None) };
    TracesEndpoint::beneath(&url).with_context(|| format!("{ALL}: {url}")).map(Some)
}

fn validate(folder: &Folder) -> ExitCode {
    let problems = config::check(&folder.config_dir, folder.default_cluster.as_deref());
    for problem in &problems {
        println!("{problem}");
    }
    let errors = problems.iter().filter(|problem| problem.severity == Severity::Error).count();
    if errors > 0 {
        println!("{errors} errors, {} warnings", problems.len() - errors);
        return ExitCode::FAILURE;
    }
    println!("the configuration can be used; {} warnings", problems.len());
    ExitCode::SUCCESS
}

fn explain(request: &Explain) -> anyhow::Result<()> {
    let source = Source::open(SourceOptions {
        directory: request.folder.config_dir.clone(),
        default_cluster: request.folder.default_cluster.clone(),
        accept: None,
    })?;
    let snapshot = source.current();
    let cluster = match &request.cluster {
        Some(name) => snapshot.cluster_of_host(name).with_context(|| format!("there is no cluster {name}"))?,
        None => match snapshot.default_cluster() {
            Some(cluster) => cluster,
            None => snapshot.clusters().values().next().context("there is no cluster; name one with --cluster")?,
        },
    };
    let info = RequestInfo::parse(&request.method, &request.target)?;
    let user = User { name: request.user.clone(), groups: request.group.clone(), ..User::default() };
    let attributes = Attributes { info: &info, user: &user, user_agent: &request.user_agent, client: request.client };
    println!("cluster {}", cluster.name);
    if info.is_resource_request {
        println!(
            "{} {} in group {:?}, namespace {:?}, name {:?}",
            info.verb, info.resource, info.api_group, info.namespace, info.name
        );
    } else {
        println!("{} {}, which is no resource", info.verb, info.path);
    }
    print!("{}", cluster.access.explain(&attributes));
    print!("{}", cluster.policies.explain(&attributes));
    let Some(decision) = cluster.policies.decide(&attributes) else { return Ok(()) };
    let policy = decision.policy;
    match policy.flow_schema.and_then(|place| cluster.flow_schemas.get(place)) {
        Some(schema) => println!("limit {}: {:?}, per user {:?}", schema.name, schema.limit, schema.per_user),
        None => println!("no limit"),
    }
    let endpoints: Vec<&str> = match (&policy.subset, &policy.weights) {
        (Some(subset), _) => subset.iter().map(|url| &**url).collect(),
        (None, Some(weights)) => {
            weights.arms()[weights.arm_of_user(&user.name)].endpoints.iter().map(|url| &**url).collect()
        }
        (None, None) => cluster.endpoints.iter().map(|endpoint| &*endpoint.id).collect(),
    };
    println!("endpoints, by {:?}: {}", policy.strategy, endpoints.join(", "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_go_where_the_flag_says_or_the_variable_for_traces_or_the_one_for_all() {
        let parsed = |url: &str| url.parse::<TracesEndpoint>().unwrap();
        let exactly = |url| Some(TracesEndpoint::exactly(url).unwrap());
        let (traces, all) = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT");
        let find = |flag: Option<&str>, variables: &[(&str, &str)]| {
            let variable = |name: &str| Some(variables.iter().find(|(known, _)| *known == name)?.1.to_owned());
            otlp_endpoint(flag.map(parsed), variable)
        };
        assert_eq!(find(None, &[]).unwrap(), None);
        assert_eq!(find(Some("http://a:1"), &[(traces, "http://b:1/t")]).unwrap(), exactly("http://a:1/v1/traces"));
        assert_eq!(find(Some("http://a:1/t"), &[]).unwrap(), exactly("http://a:1/t"));
        assert_eq!(find(None, &[(all, "http://c"), (traces, "http://b:1")]).unwrap(), exactly("http://b:1"));
        for base in ["https://c:4318", "https://c:4318/"] {
            assert_eq!(find(None, &[(all, base)]).unwrap(), exactly("https://c:4318/v1/traces"));
        }
        assert_eq!(find(None, &[(all, "http://c/mine/")]).unwrap(), exactly("http://c/mine/v1/traces"));
        let error = format!("{:#}", find(None, &[(all, "localhost:4318")]).unwrap_err());
        assert!(error.starts_with("OTEL_EXPORTER_OTLP_ENDPOINT: localhost:4318: it must be http://"), "{error}");
    }

    #[test]
    fn a_ratio_is_from_0_to_1() {
        for (text, expected) in [
            ("0", Some(0.0)),
            ("0.25", Some(0.25)),
            ("1", Some(1.0)),
            ("1.1", None),
            ("-1", None),
            ("NaN", None),
            ("", None),
        ] {
            assert_eq!(ratio(text).ok(), expected, "{text}");
        }
    }
}
