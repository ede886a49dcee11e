//! `kubewharf brain log`: prints the committed transactions, one JSON object a revision, from a server or from the data directory of
//! one that is stopped.

use std::ffi::OsString;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use kubewharf_brain::changelog::{self, PageRange};
use kubewharf_engine::Engine;
use kubewharf_engine::lmdb::{self, Lmdb};
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

/// The file that every data directory of LMDB has.
const DATA_FILE: &str = "data.mdb";
/// Bytes of a page that is read from a data directory.
const PAGE_BYTES: usize = 1 << 20;
/// Longest wait of one request for more.
const WAIT_SECONDS: u64 = 30;
/// How long an answer may take beyond that.
const PATIENCE: Duration = Duration::from_secs(30);

/// Print the committed transactions: one JSON object a line and revision, with keys and values in base64.
///
/// {"revision":N,"time":"…","ops":[{"type":"put","key":"…","value":"…","lease":N,"version":N,"create_revision":N},
/// {"type":"delete","key":"…"}]}
#[derive(Debug, Parser)]
#[command(name = "kubewharf brain log")]
struct Arguments {
    /// The first revision; 0 for the first that is not compacted.
    #[arg(long, value_name = "REVISION", default_value_t = 0)]
    from: i64,
    /// The last revision; all there are if not set.
    #[arg(long, value_name = "REVISION")]
    to: Option<i64>,
    /// Go on with new revisions as they come.
    #[arg(long, conflicts_with = "data_dir")]
    follow: bool,
    /// A client URL of a running server.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:2379", conflicts_with = "data_dir")]
    endpoint: String,
    /// The authorities of the server's certificate, PEM; the system's if not set.
    #[arg(long, value_name = "FILE", conflicts_with = "data_dir")]
    cacert: Option<PathBuf>,
    /// The client's certificate, PEM.
    #[arg(long, value_name = "FILE", requires = "key", conflicts_with = "data_dir")]
    cert: Option<PathBuf>,
    /// The key of the client's certificate, PEM.
    #[arg(long, value_name = "FILE", requires = "cert", conflicts_with = "data_dir")]
    key: Option<PathBuf>,
    /// The data directory of a stopped server, instead of a running one.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// Runs with the arguments from `log` on.
pub(super) fn run(arguments: Vec<OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nothing to do about a closed terminal.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(super::USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let mut out = BufWriter::new(io::stdout().lock());
    let result = match &arguments.data_dir {
        Some(path) => from_directory(path, &arguments, &mut out),
        None => from_server(&arguments, &mut out),
    };
    match result.and_then(|()| Ok(out.flush()?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kubewharf brain log: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the reader, such as `head`, has seen enough.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn from_directory(path: &Path, arguments: &Arguments, out: &mut dyn Write) -> anyhow::Result<()> {
    // Opening would make what is not there.
    if !path.join(DATA_FILE).is_file() {
        bail!("{} is no data directory: it has no file {}", path.display(), DATA_FILE);
    }
    let engine = Lmdb::open(lmdb::Options::new(path))?;
    let mut from = arguments.from;
    let to = arguments.to.unwrap_or(i64::MAX);
    loop {
        let snapshot = engine.snapshot()?;
        let page = changelog::read(snapshot.as_ref(), PageRange { from, to, bytes: PAGE_BYTES })?;
        drop(snapshot);
        out.write_all(page.lines.as_bytes())?;
        if page.next > to.min(page.newest) {
            return Ok(());
        }
        from = page.next;
    }
}

fn from_server(arguments: &Arguments, out: &mut dyn Write) -> anyhow::Result<()> {
    let agent = agent(arguments)?;
    let base = arguments.endpoint.trim_end_matches('/');
    let to = arguments.to.unwrap_or(i64::MAX);
    let wait = if arguments.follow { WAIT_SECONDS } else { 0 };
    let mut from = arguments.from;
    loop {
        let url = format!("{base}/kubebrain/v1/log?from={from}&to={to}&wait={wait}");
        let mut response = agent.get(&url).call().with_context(|| format!("can't reach {base}"))?;
        let number = |name: &str| -> Option<i64> { response.headers().get(name)?.to_str().ok()?.parse().ok() };
        let (next, newest) = (number("kubebrain-next-revision"), number("kubebrain-newest-revision"));
        let status = response.status();
        let text =
            response.body_mut().with_config().limit(u64::MAX).read_to_string().context("the answer broke off")?;
        if !status.is_success() {
            bail!("{base}: {}", text.trim());
        }
        let (Some(next), Some(newest)) = (next, newest) else {
            bail!("{base} is not a server of this kind: its answer does not say where the log goes on");
        };
        out.write_all(text.as_bytes())?;
        if next > to || (next > newest && !arguments.follow) {
            return Ok(());
        }
        if next > newest {
            out.flush()?;
        }
        from = next;
    }
}

fn agent(arguments: &Arguments) -> anyhow::Result<ureq::Agent> {
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("can't read {}", path.display()));
    let mut tls =
        TlsConfig::builder().unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let authorities: Vec<Certificate<'static>> = match &arguments.cacert {
        Some(path) => ureq::tls::parse_pem(&read(path)?)
            .filter_map(|item| match item {
                Ok(ureq::tls::PemItem::Certificate(certificate)) => Some(Ok(certificate)),
                Ok(_) => None,
                Err(error) => Some(Err(error)),
            })
            .collect::<Result<_, _>>()
            .with_context(|| format!("{} is not PEM", path.display()))?,
        // A system without any has a server that can't be trusted, which the connection tells.
        None => {
            let system = rustls_native_certs::load_native_certs().certs;
            system.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect()
        }
    };
    tls = tls.root_certs(RootCerts::new_with_certs(&authorities));
    if let (Some(cert), Some(key)) = (&arguments.cert, &arguments.key) {
        let certificate =
            Certificate::from_pem(&read(cert)?).with_context(|| format!("{} has no certificate", cert.display()))?;
        let key = PrivateKey::from_pem(&read(key)?).with_context(|| format!("{} has no private key", key.display()))?;
        tls = tls.client_cert(Some(ClientCert::new_with_certs(&[certificate], key)));
    }
    let config = ureq::Agent::config_builder()
        .tls_config(tls.build())
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(WAIT_SECONDS) + PATIENCE))
        .build();
    Ok(config.new_agent())
}
