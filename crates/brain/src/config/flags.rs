//! Flags and environment variables, read as Go reads them: `-flag` is `--flag`, a value may follow `=` or stand alone, a truth value
//! may be left out, the last of several wins.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::draft::Draft;
use super::values::{self, ValueError};
use super::{Config, ConfigError, EngineKind, LogFormat, file};
use crate::limits::REQUEST_BYTES_MAX;

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Invocation {
    /// To serve.
    Serve {
        /// The settings.
        config: Box<Config>,
        /// What the operator should know, one line each.
        warnings: Vec<String>,
    },
    /// To print the version.
    Version,
    /// To print the flags.
    Help,
}

/// The kind of a flag's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Text,
    Number,
    Duration,
    Urls,
}

/// The shortest election timeout, in milliseconds: a few commits have to fit.
const ELECTION_TIMEOUT_MS_MIN: u64 = 100;
/// The longest election timeout, in milliseconds; etcd's.
const ELECTION_TIMEOUT_MS_MAX: u64 = 50_000;

/// What has a meaning only where members share an engine.
const FOR_MEMBERS: &[&str] = &[
    "election-timeout",
    "engine-allow-asynchronous-replication",
    "engine-schema",
    "engine-url",
    "listen-peer-urls",
    "peer-cert-file",
    "peer-client-cert-auth",
    "peer-client-cert-file",
    "peer-client-key-file",
    "peer-crl-file",
    "peer-key-file",
    "peer-trusted-ca-file",
];

type Apply = fn(&mut Draft, &str) -> Result<(), ValueError>;

/// A flag.
#[derive(Clone, Copy)]
pub(super) struct Flag {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// What it does; `None` if it has no meaning here.
    pub(super) apply: Option<Apply>,
    pub(super) help: &'static str,
}

const fn flag(name: &'static str, kind: Kind, help: &'static str, apply: Apply) -> Flag {
    Flag { name, kind, apply: Some(apply), help }
}

const fn void(name: &'static str, kind: Kind) -> Flag {
    Flag { name, kind, apply: None, help: "" }
}

fn optional_path(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| PathBuf::from(text))
}

fn positive(text: &str, value: usize) -> Result<usize, ValueError> {
    if value == 0 { Err(ValueError(format!("{text:?} must be above 0"))) } else { Ok(value) }
}

/// Every flag, in the order of the help.
pub(super) const FLAGS: &[Flag] = &[
    flag("name", Kind::Text, "The member's name.", |d, v| {
        v.clone_into(&mut d.config.name);
        Ok(())
    }),
    flag("data-dir", Kind::Text, "The data directory; NAME.etcd if not set.", |d, v| {
        d.config.data_dir = optional_path(v);
        Ok(())
    }),
    flag(
        "engine",
        Kind::Text,
        "Where the rows are: lmdb (in the data directory), postgres or tikv (shared by all members) or memory (for \
         tests: nothing is kept).",
        |d, v| {
            d.config.engine = match v {
                "lmdb" => EngineKind::Lmdb,
                "memory" => EngineKind::Memory,
                "postgres" => EngineKind::Postgres,
                "tikv" => EngineKind::Tikv,
                _ => return Err(ValueError(format!("{v:?} is none of lmdb, postgres, tikv, memory"))),
            };
            Ok(())
        },
    ),
    flag(
        "engine-url",
        Kind::Text,
        "Where the database is that members share: a URL or keywords as libpq takes them, or the PDs of a TiKV cluster, \
         tikv://host:port,host:port. Better in the environment (ETCD_ENGINE_URL) if there is a password in it.",
        |d, v| {
            d.config.engine_url = Some(v.to_owned()).filter(|url| !url.is_empty());
            Ok(())
        },
    ),
    flag(
        "engine-schema",
        Kind::Text,
        "The database's schema that has the tables, or with tikv the store's name; one for each cluster. Default \
         kubebrain.",
        |d, v| {
            v.clone_into(&mut d.config.engine_schema);
            Ok(())
        },
    ),
    flag(
        "engine-allow-asynchronous-replication",
        Kind::Bool,
        "Use a database whose standbys lag behind: what was acknowledged can be lost when one is promoted.",
        |d, v| {
            d.config.engine_allows_asynchronous_replication = values::boolean(v)?;
            Ok(())
        },
    ),
    flag(
        "election-timeout",
        Kind::Number,
        "Milliseconds for which a leader may be silent before another member over the same engine replaces it. \
         Default 1000.",
        |d, v| {
            let ms: u64 = values::number(v)?;
            if !(ELECTION_TIMEOUT_MS_MIN..=ELECTION_TIMEOUT_MS_MAX).contains(&ms) {
                return Err(ValueError(format!(
                    "{ms} is not between {ELECTION_TIMEOUT_MS_MIN} and {ELECTION_TIMEOUT_MS_MAX}"
                )));
            }
            d.config.election_timeout = Duration::from_millis(ms);
            Ok(())
        },
    ),
    flag("listen-peer-urls", Kind::Urls, "URLs to serve other members over the same engine at.", |d, v| {
        d.config.listen_peer_urls = values::listen_urls(v)?;
        Ok(())
    }),
    flag("peer-cert-file", Kind::Text, "Certificate for other members, PEM: as a server and as a client.", |d, v| {
        d.peer_cert_file = optional_path(v);
        Ok(())
    }),
    flag("peer-key-file", Kind::Text, "Key of --peer-cert-file, PEM.", |d, v| {
        d.peer_key_file = optional_path(v);
        Ok(())
    }),
    flag(
        "peer-client-cert-file",
        Kind::Text,
        "Certificate for other members as a client, if it is another.",
        |d, v| {
            d.config.peer_client.cert_file = optional_path(v);
            Ok(())
        },
    ),
    flag("peer-client-key-file", Kind::Text, "Key of --peer-client-cert-file, PEM.", |d, v| {
        d.config.peer_client.key_file = optional_path(v);
        Ok(())
    }),
    flag("peer-trusted-ca-file", Kind::Text, "Authorities of other members' certificates, PEM.", |d, v| {
        d.peer_tls.trusted_ca_file = optional_path(v);
        Ok(())
    }),
    flag("peer-client-cert-auth", Kind::Bool, "Let other members in with a certificate only.", |d, v| {
        d.peer_tls.client_cert_auth = values::boolean(v)?;
        Ok(())
    }),
    flag("peer-crl-file", Kind::Text, "Revoked certificates of other members, PEM or DER.", |d, v| {
        d.peer_tls.crl_file = optional_path(v);
        Ok(())
    }),
    flag(
        "lmdb-map-size-bytes",
        Kind::Number,
        "Address space set aside for the database file: the most that it can grow to.",
        |d, v| {
            d.config.map_size_bytes = values::number(v)?;
            Ok(())
        },
    ),
    flag(
        "listen-client-urls",
        Kind::Urls,
        "URLs to serve clients at: gRPC, and HTTP for health, version and metrics.",
        |d, v| {
            d.config.listen_client_urls = values::listen_urls(v)?;
            Ok(())
        },
    ),
    flag(
        "listen-client-http-urls",
        Kind::Urls,
        "URLs to serve plain HTTP at; if set, the client URLs serve gRPC only.",
        |d, v| {
            d.config.listen_client_http_urls = values::listen_urls(v)?;
            Ok(())
        },
    ),
    flag("listen-metrics-urls", Kind::Urls, "URLs to serve health and metrics at besides.", |d, v| {
        d.config.listen_metrics_urls = values::listen_urls(v)?;
        Ok(())
    }),
    flag("advertise-client-urls", Kind::Urls, "URLs that clients are told.", |d, v| {
        d.config.advertise_client_urls = values::advertised_urls(v)?;
        Ok(())
    }),
    flag(
        "initial-advertise-peer-urls",
        Kind::Urls,
        "URLs that the list of members names; over a shared engine, where other members reach this one.",
        |d, v| {
            d.config.advertise_peer_urls = values::advertised_urls(v)?;
            Ok(())
        },
    ),
    flag(
        "initial-cluster",
        Kind::Text,
        "NAME=URL of the members: this one; over a shared engine it has no meaning.",
        |d, v| {
            v.clone_into(&mut d.initial_cluster);
            Ok(())
        },
    ),
    flag("cert-file", Kind::Text, "Certificate chain of the client URLs, PEM.", |d, v| {
        d.cert_file = optional_path(v);
        Ok(())
    }),
    flag("key-file", Kind::Text, "Private key of the certificate, PEM.", |d, v| {
        d.key_file = optional_path(v);
        Ok(())
    }),
    flag("trusted-ca-file", Kind::Text, "Authorities of clients' certificates, PEM.", |d, v| {
        d.tls.trusted_ca_file = optional_path(v);
        Ok(())
    }),
    flag("client-cert-auth", Kind::Bool, "Require a certificate of every client.", |d, v| {
        d.tls.client_cert_auth = values::boolean(v)?;
        Ok(())
    }),
    flag("client-crl-file", Kind::Text, "Revoked certificates of clients.", |d, v| {
        d.tls.crl_file = optional_path(v);
        Ok(())
    }),
    flag("client-cert-allowed-hostname", Kind::Text, "", |_, v| {
        // Ignoring it would let in whom etcd keeps out.
        if v.is_empty() {
            Ok(())
        } else {
            Err(ValueError("is not built: clients are told apart by --trusted-ca-file alone".to_owned()))
        }
    }),
    flag(
        "cipher-suites",
        Kind::Text,
        "Cipher suites to use, separated by commas; all that are safe if not set.",
        |d, v| {
            d.tls.cipher_suites = values::list(v);
            Ok(())
        },
    ),
    flag("auto-tls", Kind::Bool, "Make a certificate for the client URLs.", |d, v| {
        d.config.client_auto_tls = values::boolean(v)?;
        Ok(())
    }),
    flag("self-signed-cert-validity", Kind::Number, "Years that a certificate made here is valid.", |d, v| {
        d.config.self_signed_cert_validity_years = values::number(v)?;
        Ok(())
    }),
    flag("tls-min-version", Kind::Text, "Oldest TLS: TLS1.2 or TLS1.3.", |d, v| {
        v.clone_into(&mut d.tls_min);
        Ok(())
    }),
    flag("tls-max-version", Kind::Text, "Newest TLS: TLS1.2 or TLS1.3.", |d, v| {
        v.clone_into(&mut d.tls_max);
        Ok(())
    }),
    flag(
        "auto-compaction-mode",
        Kind::Text,
        "What the retention means: periodic (a time) or revision (a count).",
        |d, v| {
            d.compaction_mode = Some(v.to_owned());
            Ok(())
        },
    ),
    flag(
        "auto-compaction-retention",
        Kind::Text,
        "What compaction keeps: 5m, 8 (hours), or a count of revisions; 0 for no compaction.",
        |d, v| {
            v.clone_into(&mut d.compaction_retention);
            Ok(())
        },
    ),
    flag(
        "watch-progress-notify-interval",
        Kind::Duration,
        "Time between progress notifications of an idle watch.",
        |d, v| {
            d.config.watch_progress_notify_interval = match values::duration(v)? {
                Duration::ZERO => Config::default().watch_progress_notify_interval,
                interval => interval,
            };
            Ok(())
        },
    ),
    flag(
        "watch-ring-bytes",
        Kind::Number,
        "Memory for recent events that watchers read; older ones come from the log on disk.",
        |d, v| {
            d.config.watch_ring_bytes = positive(v, values::number(v)?)?;
            Ok(())
        },
    ),
    flag("list-bytes-max", Kind::Number, "Memory of all replies to lists together.", |d, v| {
        d.config.list_bytes_max = positive(v, values::number(v)?)?;
        Ok(())
    }),
    flag("max-request-bytes", Kind::Number, "Largest request.", |d, v| {
        d.config.request_bytes_max = match values::number(v)? {
            bytes if bytes > REQUEST_BYTES_MAX => {
                let why = "a change is stored together with the value that it replaces";
                return Err(ValueError(format!("{v:?} must not be above {REQUEST_BYTES_MAX}: {why}")));
            }
            bytes => bytes,
        };
        Ok(())
    }),
    flag("max-txn-ops", Kind::Number, "Most operations in a transaction.", |d, v| {
        d.config.txn_operations_max = values::number(v)?;
        Ok(())
    }),
    flag("max-concurrent-streams", Kind::Number, "Calls that a client may have open on one connection.", |d, v| {
        // As in grpc-go, 0 is no limit.
        d.config.concurrent_streams_max = match values::number(v)? {
            0 => u32::MAX,
            streams => streams,
        };
        Ok(())
    }),
    flag("max-connections", Kind::Number, "Open connections, over all URLs.", |d, v| {
        d.config.connections_max = positive(v, values::number(v)?)?;
        Ok(())
    }),
    flag(
        "quota-backend-bytes",
        Kind::Number,
        "Size of the database at which writes are refused; 0 or less for the engine's own limit.",
        |d, v| {
            let bytes: i64 = values::number(v)?;
            d.config.quota_bytes = u64::try_from(bytes).ok().filter(|bytes| *bytes > 0);
            Ok(())
        },
    ),
    flag(
        "grpc-keepalive-interval",
        Kind::Duration,
        "A connection silent for this long is pinged; 0 for never.",
        |d, v| {
            d.config.grpc_keepalive_interval = Some(values::duration(v)?).filter(|interval| !interval.is_zero());
            Ok(())
        },
    ),
    flag(
        "grpc-keepalive-timeout",
        Kind::Duration,
        "A ping unanswered for this long ends the connection; 0 for no pings.",
        |d, v| {
            d.keepalive_timeout = Some(values::duration(v)?);
            Ok(())
        },
    ),
    flag("drain-timeout", Kind::Duration, "Time that calls in flight have to end when the process stops.", |d, v| {
        d.config.drain_timeout = values::duration(v)?;
        Ok(())
    }),
    flag("log-level", Kind::Text, "debug, info, warn, error, panic or fatal.", |d, v| {
        if !["debug", "info", "warn", "error", "panic", "fatal"].contains(&v) {
            return Err(ValueError(format!("{v:?} is none of debug, info, warn, error, panic, fatal")));
        }
        v.clone_into(&mut d.config.log.level);
        Ok(())
    }),
    flag("log-format", Kind::Text, "json or console.", |d, v| {
        d.config.log.format = match v {
            "json" => LogFormat::Json,
            "console" => LogFormat::Console,
            _ => return Err(ValueError(format!("{v:?} is none of json, console"))),
        };
        Ok(())
    }),
    flag("log-outputs", Kind::Text, "stderr, stdout, or paths of files to append to, separated by commas.", |d, v| {
        // A service's standard error goes to the journal.
        let output = |output: String| match output.as_str() {
            "default" | "systemd/journal" => "stderr".to_owned(),
            _ => output,
        };
        d.config.log.outputs = values::list(v).into_iter().map(output).collect();
        Ok(())
    }),
    flag("config-file", Kind::Text, "A file with all settings: then no other flag and no variable counts.", |d, v| {
        d.config_file = optional_path(v);
        Ok(())
    }),
    flag("version", Kind::Bool, "Print the version and exit.", |d, v| {
        d.version = values::boolean(v)?;
        Ok(())
    }),
    flag("help", Kind::Bool, "Print the flags and exit.", |d, v| {
        d.help = values::boolean(v)?;
        Ok(())
    }),
    flag("h", Kind::Bool, "", |d, v| {
        d.help = values::boolean(v)?;
        Ok(())
    }),
    // Other members, raft, etcd's own storage, and features that are not built.
    void("auth-token", Kind::Text),
    void("auth-token-ttl", Kind::Number),
    void("backend-batch-interval", Kind::Duration),
    void("backend-batch-limit", Kind::Number),
    void("backend-bbolt-freelist-type", Kind::Text),
    void("bcrypt-cost", Kind::Number),
    void("bootstrap-defrag-threshold-megabytes", Kind::Number),
    void("client-cert-file", Kind::Text),
    void("client-key-file", Kind::Text),
    void("cluster-active-size", Kind::Text),
    void("cluster-remove-delay", Kind::Text),
    void("cluster-sync-interval", Kind::Text),
    void("compact-hash-check-enabled", Kind::Bool),
    void("compact-hash-check-time", Kind::Duration),
    void("compaction-batch-limit", Kind::Number),
    void("compaction-sleep-interval", Kind::Duration),
    void("config", Kind::Text),
    void("corrupt-check-time", Kind::Duration),
    void("cors", Kind::Text),
    void("discovery", Kind::Text),
    void("discovery-cacert", Kind::Text),
    void("discovery-cert", Kind::Text),
    void("discovery-dial-timeout", Kind::Duration),
    void("discovery-endpoints", Kind::Text),
    void("discovery-fallback", Kind::Text),
    void("discovery-insecure-skip-tls-verify", Kind::Bool),
    void("discovery-insecure-transport", Kind::Bool),
    void("discovery-keepalive-time", Kind::Duration),
    void("discovery-keepalive-timeout", Kind::Duration),
    void("discovery-key", Kind::Text),
    void("discovery-password", Kind::Text),
    void("discovery-proxy", Kind::Text),
    void("discovery-request-timeout", Kind::Duration),
    void("discovery-srv", Kind::Text),
    void("discovery-srv-name", Kind::Text),
    void("discovery-token", Kind::Text),
    void("discovery-user", Kind::Text),
    void("distributed-tracing-address", Kind::Text),
    void("distributed-tracing-instance-id", Kind::Text),
    void("distributed-tracing-sampling-rate", Kind::Number),
    void("distributed-tracing-service-name", Kind::Text),
    void("downgrade-check-time", Kind::Duration),
    void("enable-distributed-tracing", Kind::Bool),
    void("enable-grpc-gateway", Kind::Bool),
    void("enable-lease-checkpoint", Kind::Bool),
    void("enable-lease-checkpoint-persist", Kind::Bool),
    void("enable-log-rotation", Kind::Bool),
    void("enable-pprof", Kind::Bool),
    void("enable-v2", Kind::Bool),
    void("feature-gates", Kind::Text),
    void("force", Kind::Text),
    void("force-new-cluster", Kind::Bool),
    void("grpc-keepalive-min-time", Kind::Duration),
    void("heartbeat-interval", Kind::Number),
    void("host-whitelist", Kind::Text),
    void("initial-cluster-state", Kind::Text),
    void("initial-cluster-token", Kind::Text),
    void("initial-corrupt-check", Kind::Bool),
    void("initial-election-tick-advance", Kind::Bool),
    void("log-rotation-config-json", Kind::Text),
    void("logger", Kind::Text),
    void("max-learners", Kind::Number),
    void("max-result-buffer", Kind::Text),
    void("max-retry-attempts", Kind::Text),
    void("max-snapshots", Kind::Number),
    void("max-wals", Kind::Number),
    void("memory-mlock", Kind::Bool),
    void("metrics", Kind::Text),
    void("peer-auto-tls", Kind::Bool),
    void("peer-cert-allowed-cn", Kind::Text),
    void("peer-cert-allowed-hostname", Kind::Text),
    void("peer-election-timeout", Kind::Text),
    void("peer-heartbeat-interval", Kind::Text),
    void("peer-skip-client-san-verification", Kind::Bool),
    void("pre-vote", Kind::Bool),
    void("raft-read-timeout", Kind::Duration),
    void("raft-write-timeout", Kind::Duration),
    void("retry-interval", Kind::Text),
    void("set-member-localaddr", Kind::Bool),
    void("snapshot", Kind::Text),
    void("snapshot-catchup-entries", Kind::Number),
    void("snapshot-count", Kind::Number),
    void("socket-reuse-address", Kind::Bool),
    void("socket-reuse-port", Kind::Bool),
    void("stop-grpc-service-on-defrag", Kind::Bool),
    void("strict-reconfig-check", Kind::Bool),
    void("txn-mode-write-with-shared-buffer", Kind::Bool),
    void("unsafe-no-fsync", Kind::Bool),
    void("v", Kind::Text),
    void("v2-deprecation", Kind::Text),
    void("wal-dir", Kind::Text),
    void("warning-apply-duration", Kind::Duration),
    void("warning-unary-request-duration", Kind::Duration),
];

/// The flag with this name; etcd 3.6 has some under `experimental-…` too.
pub(super) fn find(name: &str) -> Option<&'static Flag> {
    let plain = name.strip_prefix("experimental-").unwrap_or(name);
    FLAGS.iter().find(|flag| flag.name == name || flag.name == plain)
}

/// Reads the command line (without the program's name) and the environment.
pub fn parse(
    arguments: impl IntoIterator<Item = String>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Invocation, ConfigError> {
    let mut draft = Draft::default();
    draft.read_arguments(arguments)?;
    if draft.help {
        return Ok(Invocation::Help);
    }
    if draft.version {
        return Ok(Invocation::Version);
    }
    let mut variables: BTreeMap<String, String> =
        environment.into_iter().filter(|(name, _)| name.starts_with("ETCD_")).collect();
    if draft.config_file.is_none() {
        draft.config_file = variables.remove("ETCD_CONFIG_FILE").and_then(|path| optional_path(&path));
    }
    let mut warnings = Vec::new();
    let advertises;
    if let Some(path) = draft.config_file.take() {
        draft = Draft::default();
        let unknown = file::read(&path, &mut draft)?;
        warnings.push(format!("settings come from {} alone: flags and variables do not count", path.display()));
        if !unknown.is_empty() {
            warnings.push(format!("unknown keys in {} are ignored: {}", path.display(), unknown.join(", ")));
        }
        // A file may leave it out, and then etcd tells clients its default.
        advertises = true;
    } else {
        draft.read_variables(variables, &mut warnings)?;
        advertises = draft.set.contains("advertise-client-urls") || !draft.set.contains("listen-client-urls");
    }
    if !advertises {
        return Err(ConfigError::new(
            "--advertise-client-urls",
            "is required when --listen-client-urls is set explicitly",
        ));
    }
    if !draft.config.engine.is_shared() {
        let set = FOR_MEMBERS.iter().filter(|name| draft.set.contains(*name));
        draft.void.extend(set);
    }
    if !draft.void.is_empty() {
        let names: Vec<String> = draft.void.iter().map(|name| format!("--{name}")).collect();
        warnings.push(format!("these flags of etcd have no meaning here: {}", names.join(", ")));
    }
    let config = Box::new(draft.finish(&mut warnings)?);
    Ok(Invocation::Serve { config, warnings })
}

impl Draft {
    fn read_arguments(&mut self, arguments: impl IntoIterator<Item = String>) -> Result<(), ConfigError> {
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let body = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-'));
            let Some(body) = body.filter(|body| !body.is_empty() && !body.starts_with(['-', '='])) else {
                return Err(ConfigError::new(format!("{argument:?}"), "is not a flag"));
            };
            let (name, value) = match body.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (body, None),
            };
            let Some(flag) = find(name) else {
                return Err(ConfigError::new(format!("--{name}"), unknown(name)));
            };
            let value = match value {
                Some(value) => value,
                None if flag.kind == Kind::Bool => "true".to_owned(),
                None => arguments.next().ok_or_else(|| ConfigError::new(format!("--{name}"), "needs a value"))?,
            };
            self.set(flag, &value).map_err(|error| ConfigError::new(format!("--{name}"), error))?;
        }
        Ok(())
    }

    fn read_variables(
        &mut self,
        variables: BTreeMap<String, String>,
        warnings: &mut Vec<String>,
    ) -> Result<(), ConfigError> {
        let by_flag = self.set.clone();
        for (name, value) in variables {
            let flag = find(&name["ETCD_".len()..].to_lowercase().replace('_', "-"));
            let Some(flag) = flag.filter(|flag| !matches!(flag.name, "version" | "help" | "h")) else {
                warnings.push(format!("unrecognized environment variable {name}"));
                continue;
            };
            if by_flag.contains(flag.name) {
                return Err(ConfigError::new(
                    name,
                    format!("is set together with --{}: unset the variable or leave the flag out", flag.name),
                ));
            }
            if !value.is_empty() {
                self.set(flag, &value).map_err(|error| ConfigError::new(name, error))?;
            }
        }
        Ok(())
    }

    /// Takes one setting in.
    pub(super) fn set(&mut self, flag: &'static Flag, value: &str) -> Result<(), ValueError> {
        match flag.apply {
            Some(apply) => {
                apply(self, value)?;
            }
            None => {
                // A value that etcd would refuse is refused here too.
                match flag.kind {
                    Kind::Bool => drop(values::boolean(value)?),
                    Kind::Duration => drop(values::duration(value)?),
                    Kind::Number => drop(values::number::<i128>(value)?),
                    Kind::Text | Kind::Urls => {}
                }
                self.void.insert(flag.name);
            }
        }
        self.set.insert(flag.name);
        Ok(())
    }
}

/// The text about an unknown flag, with the nearest known one.
fn unknown(name: &str) -> String {
    let nearest = FLAGS.iter().map(|flag| (distance(name, flag.name), flag.name)).min();
    match nearest {
        Some((distance, known)) if distance <= name.len() / 3 + 1 => {
            format!("is not a flag; did you mean --{known}?")
        }
        _ => "is not a flag; --help lists them".to_owned(),
    }
}

/// How many letters differ: added, left out or changed.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (above + 1).min(row[j] + 1).min(diagonal + usize::from(x != *y));
            diagonal = above;
        }
    }
    row[b.len()]
}

/// The text of `--help`.
#[must_use]
pub fn help() -> String {
    let mut text = String::from("Flags (each also as ETCD_NAME in the environment, or as a key of --config-file):\n");
    for flag in FLAGS.iter().filter(|flag| flag.apply.is_some() && !flag.help.is_empty()) {
        let value = match flag.kind {
            Kind::Bool => "",
            Kind::Text => " TEXT",
            Kind::Number => " NUMBER",
            Kind::Duration => " DURATION",
            Kind::Urls => " URLS",
        };
        text.push_str(&format!("  --{}{value}\n        {}\n", flag.name, flag.help));
    }
    text.push_str("Every other flag of etcd 3.6 and 3.7 is accepted and has no effect.\n");
    text
}
