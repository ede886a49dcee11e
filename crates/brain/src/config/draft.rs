//! Settings while they are collected, from flags, variables or a file; and what must hold between them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use kubewharf_foundation::listener::ListenUrl;
use kubewharf_foundation::tls;

use super::values::{self, ValueError};
use super::{AutoCompaction, Config, ConfigError, TlsFiles};

/// Settings as they are collected: some only make sense together.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) config: Config,
    pub(super) cert_file: Option<PathBuf>,
    pub(super) key_file: Option<PathBuf>,
    pub(super) tls: TlsFiles,
    pub(super) peer_cert_file: Option<PathBuf>,
    pub(super) peer_key_file: Option<PathBuf>,
    pub(super) peer_tls: TlsFiles,
    pub(super) tls_min: String,
    pub(super) tls_max: String,
    pub(super) keepalive_timeout: Option<Duration>,
    pub(super) compaction_mode: Option<String>,
    pub(super) compaction_retention: String,
    pub(super) initial_cluster: String,
    pub(super) config_file: Option<PathBuf>,
    pub(super) version: bool,
    pub(super) help: bool,
    pub(super) set: BTreeSet<&'static str>,
    pub(super) void: BTreeSet<&'static str>,
}

impl Draft {
    /// Completes and checks what was collected; what is odd but no error goes into `warnings`.
    pub(super) fn finish(mut self, warnings: &mut Vec<String>) -> Result<Config, ConfigError> {
        self.config.auto_compaction = self.auto_compaction()?;
        self.finish_protocol(warnings)?;
        if self.config.engine.is_shared() {
            self.finish_members(warnings)?;
        } else {
            self.check_cluster()?;
        }
        self.finish_tls(warnings)?;
        let mut config = self.config;
        match self.keepalive_timeout {
            // As in etcd: without either there are no pings.
            Some(Duration::ZERO) => config.grpc_keepalive_interval = None,
            Some(timeout) => config.grpc_keepalive_timeout = timeout,
            None => {}
        }
        if config.listen_client_urls.is_empty() {
            return Err(ConfigError::new("--listen-client-urls", "is empty: there is nothing to serve"));
        }
        if config.name.is_empty() {
            return Err(ConfigError::new("--name", "is empty"));
        }
        if config.name.contains('/') && config.data_dir.is_none() {
            return Err(ConfigError::new("--name", "has a slash, so it can't name the data directory: set --data-dir"));
        }
        Ok(config)
    }

    fn auto_compaction(&self) -> Result<Option<AutoCompaction>, ConfigError> {
        let retention = if self.compaction_retention.is_empty() { "0" } else { &self.compaction_retention };
        let wrong = |error: ValueError| ConfigError::new("--auto-compaction-retention", error);
        let count = retention.parse::<u32>().ok();
        match self.compaction_mode.as_deref().unwrap_or("periodic") {
            "periodic" => {
                let period = match count {
                    Some(hours) => Duration::from_secs(u64::from(hours) * 3600),
                    None => values::duration(retention).map_err(wrong)?,
                };
                Ok(Some(period).filter(|period| !period.is_zero()).map(AutoCompaction::Periodic))
            }
            "revision" => {
                let count: i64 = values::number(retention).map_err(wrong)?;
                if count < 0 {
                    return Err(ConfigError::new("--auto-compaction-retention", format!("{retention} is negative")));
                }
                Ok(Some(count).filter(|count| *count > 0).map(AutoCompaction::Revision))
            }
            other => {
                Err(ConfigError::new("--auto-compaction-mode", format!("{other:?} is none of periodic, revision")))
            }
        }
    }

    /// Several members over an embedded engine would be several stores with different content under one name.
    fn check_cluster(&self) -> Result<(), ConfigError> {
        let members: BTreeSet<&str> = self
            .initial_cluster
            .split(',')
            .filter(|member| !member.is_empty())
            .map(|member| member.split_once('=').map_or(member, |(name, _)| name))
            .collect();
        if members.len() > 1 {
            return Err(ConfigError::new(
                "--initial-cluster",
                format!(
                    "names {} members, and an embedded engine has one: each would be a store of its own. \
                     Start one and let every client use it",
                    members.len()
                ),
            ));
        }
        Ok(())
    }

    /// Completes what members over one engine need.
    fn finish_members(&mut self, warnings: &mut Vec<String>) -> Result<(), ConfigError> {
        for name in ["peer-cert-allowed-cn", "peer-cert-allowed-hostname"] {
            if self.set.contains(name) {
                let problem = "is not built: ignoring it would let in whom etcd keeps out";
                return Err(ConfigError::new(format!("--{name}"), problem));
            }
        }
        if !self.set.contains("name") {
            warnings.push("--name: is not set, and members over one engine need names that differ".to_owned());
        }
        let config = &mut self.config;
        if let Some(url) = config.listen_peer_urls.iter().find(|url| !url.is_tls())
            && config.listen_client_urls.iter().any(ListenUrl::is_tls)
        {
            warnings.push(format!(
                "--listen-peer-urls: {url} is without TLS: whoever reaches it can write, certificates for clients or not"
            ));
        }
        if config.engine_url.is_none() {
            let problem = format!("is missing: --engine={} needs it", config.engine.name());
            return Err(ConfigError::new("--engine-url", problem));
        }
        let (cert_file, key_file) = (self.peer_cert_file.take(), self.peer_key_file.take());
        let peer_client = &mut config.peer_client;
        if peer_client.cert_file.is_none() && peer_client.key_file.is_none() {
            peer_client.cert_file.clone_from(&cert_file);
            peer_client.key_file.clone_from(&key_file);
        }
        peer_client.trusted_ca_file.clone_from(&self.peer_tls.trusted_ca_file);
        let needs_tls = config.listen_peer_urls.iter().find(|url| url.is_tls()).map(ToString::to_string);
        match (cert_file, key_file, needs_tls) {
            (Some(cert_file), Some(key_file), _) => {
                if self.peer_tls.client_cert_auth && self.peer_tls.trusted_ca_file.is_none() {
                    return Err(ConfigError::new("--peer-trusted-ca-file", "is needed for --peer-client-cert-auth"));
                }
                self.peer_tls.client_cert_auth |= self.peer_tls.trusted_ca_file.is_some();
                config.peer_tls = Some(TlsFiles { cert_file, key_file, ..std::mem::take(&mut self.peer_tls) });
            }
            (None, None, None) => {}
            (None, None, Some(url)) => {
                return Err(ConfigError::new("--peer-cert-file", format!("is needed for {url}, with --peer-key-file")));
            }
            (Some(_), None, _) => {
                return Err(ConfigError::new("--peer-key-file", "is missing beside --peer-cert-file"));
            }
            (None, Some(_), _) => {
                return Err(ConfigError::new("--peer-cert-file", "is missing beside --peer-key-file"));
            }
        }
        Ok(())
    }

    /// Versions and cipher suites of TLS, which hold for clients and for other members.
    fn finish_protocol(&mut self, warnings: &mut Vec<String>) -> Result<(), ConfigError> {
        let version = |name: &'static str, text: &str| match text {
            "" | "TLS1.2" | "TLS1.3" => Ok(text.to_owned()),
            _ => Err(ConfigError::new(name, format!("{text:?} is none of TLS1.2, TLS1.3"))),
        };
        let min = version("--tls-min-version", &self.tls_min)?;
        let max = version("--tls-max-version", &self.tls_max)?;
        self.tls.only_tls13 = min == "TLS1.3";
        self.tls.only_tls12 = max == "TLS1.2";
        if self.tls.only_tls12 && self.tls.only_tls13 {
            return Err(ConfigError::new("--tls-min-version", "TLS1.3 is above --tls-max-version TLS1.2"));
        }
        let unsupported = tls::unsupported_cipher_suites(&self.tls.cipher_suites)
            .map_err(|error| ConfigError::new("--cipher-suites", error))?;
        if !unsupported.is_empty() {
            warnings.push(format!("--cipher-suites: not supported and left out: {}", unsupported.join(", ")));
        }
        let TlsFiles { only_tls12, only_tls13, .. } = self.tls;
        let cipher_suites = self.tls.cipher_suites.clone();
        self.peer_tls = TlsFiles { only_tls12, only_tls13, cipher_suites, ..std::mem::take(&mut self.peer_tls) };
        Ok(())
    }

    fn finish_tls(&mut self, warnings: &mut Vec<String>) -> Result<(), ConfigError> {
        let config = &mut self.config;
        let urls = config.listen_client_urls.iter().chain(&config.listen_client_http_urls);
        let needs_tls = urls.chain(&config.listen_metrics_urls).find(|url| url.is_tls()).map(ToString::to_string);
        match (self.cert_file.take(), self.key_file.take()) {
            (Some(cert_file), Some(key_file)) => {
                self.tls.cert_file = cert_file;
                self.tls.key_file = key_file;
                if config.client_auto_tls {
                    warnings.push("--auto-tls is ignored because certificates are given".to_owned());
                    config.client_auto_tls = false;
                }
                if needs_tls.is_none() {
                    warnings.push("certificates are given, but no URL is https or unixs: they are not used".to_owned());
                }
            }
            (None, None) if config.client_auto_tls => {}
            (None, None) => {
                if let Some(url) = needs_tls {
                    return Err(ConfigError::new("--cert-file", format!("is needed for {url}, with --key-file")));
                }
                if self.tls.client_cert_auth {
                    warnings.push("--client-cert-auth is ignored: no URL is https or unixs".to_owned());
                }
                return Ok(());
            }
            (Some(_), None) => return Err(ConfigError::new("--key-file", "is missing: --cert-file needs both")),
            (None, Some(_)) => return Err(ConfigError::new("--cert-file", "is missing: --key-file needs both")),
        }
        if self.tls.client_cert_auth && self.tls.trusted_ca_file.is_none() {
            return Err(ConfigError::new("--trusted-ca-file", "is needed for --client-cert-auth"));
        }
        // In etcd, an authority alone already asks clients for certificates.
        self.tls.client_cert_auth |= self.tls.trusted_ca_file.is_some();
        config.client_tls = Some(std::mem::take(&mut self.tls));
        Ok(())
    }
}
