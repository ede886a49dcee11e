//! Checks a cluster's manifest, and compiles it on the way.
//!
//! Invariant: everything that is wrong is told, not only the first thing, each with its field and how to mend it. What
//! is returned is used only if there was no error; where one was found, a stand-in keeps the check going.

mod authentication;
mod flow;
mod policies;
mod servers;
mod tls;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::cluster::{ClusterConfig, Discovery, Endpoint, Features};
use super::files::Files;
use super::fingerprint::Fingerprint;
use super::manifest::{FEATURE_GATES, UpstreamCluster};
use super::problem::{At, Report};
use super::values::is_dns_name;
use crate::limits::{CONFIG_BYTES_MAX, REFERENCED_FILE_BYTES_MAX};

/// What a check reads besides the manifest.
pub(super) struct Surroundings<'a> {
    pub(super) files: &'a mut Files,
    /// Bytes that were read so far.
    pub(super) bytes: &'a mut u64,
    pub(super) now: SystemTime,
}

/// A check of one manifest.
struct Check<'a, 'r> {
    report: Report<'r>,
    surroundings: Surroundings<'a>,
    /// Files are relative to it.
    folder: &'a Path,
}

/// Compiles a manifest that stands at `line` of the report's file.
pub(super) fn compile(
    manifest: UpstreamCluster,
    line: u32,
    report: Report<'_>,
    surroundings: Surroundings<'_>,
) -> Option<ClusterConfig> {
    let file = report.file.clone();
    let folder = file.parent().unwrap_or(Path::new("."));
    let errors_before = report.problems.errors();
    let mut check = Check { report, surroundings, folder };
    let cluster = check.cluster(manifest, line);
    (check.report.problems.errors() == errors_before).then_some(cluster)
}

impl Check<'_, '_> {
    fn cluster(&mut self, manifest: UpstreamCluster, line: u32) -> ClusterConfig {
        let root = At::Root;
        let metadata_at = root.key("metadata");
        let name = self.name(&manifest, &metadata_at);
        let features = self.features(&manifest, &metadata_at);
        let spec_at = root.key("spec");
        let spec = manifest.spec;
        let server_names = self.server_names(&spec.secure_serving.server_names, &spec_at);
        let serving = self.serving(&spec.secure_serving, &spec_at);
        let client = self.client(&spec.client_config, &name, &spec_at);
        let (discovery, endpoints) = self.endpoints(&spec, client.tls_fingerprint, &spec_at);
        let scheme = match &discovery {
            Discovery::Dns { scheme, .. } => Some(*scheme),
            Discovery::Static | Discovery::File(_) => endpoints.first().map(|endpoint| endpoint.scheme),
        };
        self.client_completeness(&spec.client_config, scheme, &spec_at.key("clientConfig"));
        let flow_schemas = self.flow_schemas(&spec, &spec_at);
        let policies = self.policies(&spec, &endpoints, &flow_schemas, &spec_at);
        let access = self.access(&spec, &spec_at);
        let authentication = self.authentication(&spec, &spec_at);
        let of_endpoint =
            |endpoint: &Arc<Endpoint>| (endpoint.connection_fingerprint, endpoint.disabled, endpoint.weight);
        let of_endpoints: Vec<(u128, bool, u32)> = endpoints.iter().map(of_endpoint).collect();
        let fingerprint = Fingerprint::new()
            .with(&*name)
            .with(&features)
            .with(&spec)
            .with(&of_endpoints)
            .with(&client.fingerprint)
            .with(&serving.fingerprint)
            .with(&authentication)
            .digest();
        ClusterConfig {
            name,
            file: self.report.file.clone(),
            line,
            server_names,
            features,
            endpoints,
            discovery,
            client: Arc::new(client),
            serving: Arc::new(serving),
            authentication: Arc::new(authentication),
            identity_mode: spec.identity_mode,
            flow_schemas,
            policies,
            access,
            fingerprint,
        }
    }

    fn name(&mut self, manifest: &UpstreamCluster, metadata: &At<'_>) -> Arc<str> {
        let (at, name) = (metadata.key("name"), &manifest.metadata.name);
        let remedy =
            "it is the host name by which clients reach the cluster, in lower case, such as cluster-a.example.com";
        if name.is_empty() {
            self.report.error(&at, "is missing", remedy);
        } else if !is_dns_name(name, false) {
            self.report.error(&at, format!("{name:?} is no DNS name"), remedy);
        }
        if !manifest.metadata.namespace.is_empty() {
            self.report.warn(&metadata.key("namespace"), "is ignored: clusters are in no namespace", "remove it");
        }
        name.as_str().into()
    }

    fn features(&mut self, manifest: &UpstreamCluster, metadata: &At<'_>) -> Features {
        let mut features = Features::default();
        let Some(gates) = manifest.metadata.annotations.get(FEATURE_GATES) else { return features };
        let annotations = metadata.key("annotations");
        let at = annotations.key(FEATURE_GATES);
        for gate in gates.split(',').map(str::trim).filter(|gate| !gate.is_empty()) {
            let (name, value) =
                gate.split_once('=').map_or((gate, None), |(name, value)| (name.trim(), Some(value.trim())));
            let value = match value {
                Some("1" | "t" | "T" | "true" | "TRUE" | "True") => true,
                Some("0" | "f" | "F" | "false" | "FALSE" | "False") => false,
                _ => {
                    self.report.error(&at, format!("{gate:?} is neither true nor false"), format!("write {name}=true"));
                    continue;
                }
            };
            match name {
                "CloseConnectionWhenIdle" => features.close_connection_when_idle = value,
                "DenyAllRequests" => features.deny_all_requests = value,
                "GlobalRateLimiter" => features.global_rate_limiter = value,
                "Tracing" => features.tracing = value,
                // Every one of them is an alpha feature of the original.
                "AllAlpha" => {
                    features = Features {
                        close_connection_when_idle: value,
                        deny_all_requests: value,
                        global_rate_limiter: value,
                        tracing: value,
                    };
                }
                "AllBeta" => {}
                _ => self.report.error(
                    &at,
                    format!("{name:?} is no feature"),
                    "known are CloseConnectionWhenIdle, DenyAllRequests, GlobalRateLimiter and Tracing",
                ),
            }
        }
        for (name, is_on) in [
            ("CloseConnectionWhenIdle", features.close_connection_when_idle),
            ("GlobalRateLimiter", features.global_rate_limiter),
            ("Tracing", features.tracing),
        ] {
            if is_on {
                self.report.warn(&at, format!("{name} is read, but has no effect yet"), "remove it if that matters");
            }
        }
        features
    }

    fn server_names(&mut self, names: &[String], spec: &At<'_>) -> Box<[Box<str>]> {
        let serving = spec.key("secureServing");
        let at = serving.key("serverNames");
        let mut normal = Vec::with_capacity(names.len());
        for (index, name) in names.iter().enumerate() {
            let lower = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
            if is_dns_name(lower.strip_prefix("*.").unwrap_or(&lower), false) {
                normal.push(lower.into_boxed_str());
            } else {
                let remedy = "write a host name, or *. and a host name for any one label in front of it";
                self.report.error(&at.index(index), format!("{name:?} is no host name"), remedy);
            }
        }
        normal.into()
    }

    /// Reads a file that the manifest names; its error is reported.
    fn read(&mut self, path: &str, at: &At<'_>) -> Option<(PathBuf, Vec<u8>)> {
        let path = self.folder.join(path);
        match self.surroundings.files.read(&path, REFERENCED_FILE_BYTES_MAX) {
            Ok(bytes) => {
                *self.surroundings.bytes += bytes.len() as u64;
                if *self.surroundings.bytes > CONFIG_BYTES_MAX {
                    let problem =
                        format!("{}: with it, all files are longer than {CONFIG_BYTES_MAX} bytes", path.display());
                    self.report.error(at, problem, "use fewer or shorter files");
                    return None;
                }
                Some((path, bytes))
            }
            Err(error) => {
                let remedy = "the path is relative to the manifest's folder";
                self.report.error(at, format!("{}: can't be read: {error}", path.display()), remedy);
                None
            }
        }
    }
}
