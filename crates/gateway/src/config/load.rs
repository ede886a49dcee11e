//! Reads a folder of manifests into a snapshot.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::cluster::ClusterConfig;
use super::decode::decode;
use super::files::{Files, Seen};
use super::manifest::{API_VERSION, KIND, UpstreamCluster};
use super::node::{self, Node, Step, Value};
use super::problem::{At, Problem, Problems, Report, Severity};
use super::snapshot::Snapshot;
use super::validate::{self, Surroundings};
use crate::limits::{CLUSTERS_MAX, CONFIG_BYTES_MAX, MANIFEST_BYTES_MAX, MANIFESTS_MAX};

/// One look at a folder.
#[derive(Debug)]
pub(super) struct Loaded {
    /// `None` if there was an error.
    pub(super) snapshot: Option<Snapshot>,
    /// Errors and warnings.
    pub(super) problems: Vec<Problem>,
    /// `None` if the folder itself could not be read.
    pub(super) seen: Option<Seen>,
}

/// Looks at a folder. What has not changed since `previous` is taken from there.
pub(super) fn load(folder: &Path, default_cluster: Option<&str>, previous: &Snapshot) -> Loaded {
    let mut loader = Loader { problems: Problems::default(), clusters: Vec::new(), bytes: 0, now: SystemTime::now() };
    let mut files = match Files::list(folder) {
        Ok(files) => files,
        Err(error) => {
            let remedy = "give a folder that the gateway may read";
            loader.problems.file(Severity::Error, folder, format!("can't be read: {error}"), remedy);
            return Loaded { snapshot: None, problems: loader.problems.into_sorted(), seen: None };
        }
    };
    let manifests: Vec<PathBuf> = files.manifests().to_vec();
    if manifests.len() > MANIFESTS_MAX {
        let problem = format!("has {} manifests", manifests.len());
        loader.problems.file(
            Severity::Error,
            folder,
            problem,
            format!("use {MANIFESTS_MAX} at most: join some of them"),
        );
    } else {
        manifests.iter().for_each(|path| loader.manifest(path, &mut files));
    }
    let Loader { mut problems, clusters, .. } = loader;
    if clusters.is_empty() && problems.errors() == 0 {
        // A folder that is suddenly empty is rather a mount that went wrong than a wish to serve nothing.
        let (severity, remedy) = if previous.clusters().is_empty() {
            (Severity::Warning, "put manifests there, as *.yaml or *.yml")
        } else {
            (Severity::Error, "put the manifests back; to serve none of them on purpose, restart the gateway")
        };
        problems.file(severity, folder, "has no cluster", remedy);
    }
    let mut snapshot = Snapshot::new(clusters, previous, &mut problems);
    if let Some(name) = default_cluster
        && !snapshot.set_default(name)
        && problems.errors() == 0
    {
        let remedy = format!("add a manifest with the name {name}, or choose another default cluster");
        problems.file(Severity::Error, folder, format!("has no cluster {name}, which is to be the default"), remedy);
    }
    let snapshot = (problems.errors() == 0).then_some(snapshot);
    Loaded { snapshot, problems: problems.into_sorted(), seen: Some(files.finish()) }
}

struct Loader {
    problems: Problems,
    clusters: Vec<ClusterConfig>,
    bytes: u64,
    now: SystemTime,
}

impl Loader {
    fn manifest(&mut self, path: &Path, files: &mut Files) {
        let text = match files.read(path, MANIFEST_BYTES_MAX) {
            Ok(bytes) => String::from_utf8(bytes).map_err(|error| {
                let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
                let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count();
                (line, "is not UTF-8".to_owned())
            }),
            Err(error) => Err((0, format!("can't be read: {error}"))),
        };
        let documents = text.and_then(|text| {
            self.bytes += text.len() as u64;
            node::parse(&text).map_err(|error| (error.line as usize, format!("is not YAML: {}", error.text)))
        });
        let documents = match documents {
            Ok(documents) if self.bytes <= CONFIG_BYTES_MAX => documents,
            Ok(_) => {
                let problem = format!("makes all manifests together longer than {CONFIG_BYTES_MAX} bytes");
                self.problems.file(Severity::Error, path, problem, "use fewer or shorter manifests");
                return;
            }
            Err((line, problem)) => {
                self.problems.add(Problem {
                    severity: Severity::Error,
                    file: path.to_owned(),
                    line: u32::try_from(line).unwrap_or(u32::MAX),
                    field: String::new(),
                    problem,
                    remedy: String::new(),
                });
                return;
            }
        };
        let file: Arc<Path> = path.into();
        for document in documents {
            self.document(document, &file, &mut Vec::new(), files);
        }
    }

    fn document(&mut self, mut document: Node, file: &Arc<Path>, base: &mut Vec<Step>, files: &mut Files) {
        let text = |key| document.get(key).and_then(Node::text).unwrap_or_default();
        match (text("apiVersion"), text("kind")) {
            (API_VERSION, KIND) => self.cluster(document, file, base, files),
            ("v1", "List") | (API_VERSION, "UpstreamClusterList") if base.is_empty() => {
                let Value::Map(entries) = &mut document.value else { return };
                let items = entries.iter_mut().find(|entry| entry.key == "items").map(|entry| &mut entry.node.value);
                let Some(Value::List(items)) = items else { return };
                for (index, item) in std::mem::take(items).into_iter().enumerate() {
                    base.extend([Step::Key("items".to_owned()), Step::Index(index)]);
                    self.document(item, file, base, files);
                    base.clear();
                }
            }
            (API_VERSION, "RateLimitCondition") => {
                let mut report = self.report(&document, file, base, &[]);
                let problem = "is a RateLimitCondition, which the original's rate limiter writes, and is ignored here";
                report.warn(&At::Root.key("kind"), problem, "remove it");
            }
            (version, kind) => {
                let (version, kind) = (version.to_owned(), kind.to_owned());
                let mut report = self.report(&document, file, base, &[]);
                let remedy = format!("write apiVersion: {API_VERSION} and kind: {KIND}");
                if version != API_VERSION {
                    report.error(&At::Root.key("apiVersion"), format!("{version:?} is not known"), remedy);
                } else {
                    report.error(&At::Root.key("kind"), format!("{kind:?} is not known"), remedy);
                }
            }
        }
    }

    fn cluster(&mut self, mut document: Node, file: &Arc<Path>, base: &[Step], files: &mut Files) {
        let line = document.line;
        let decoded = decode::<UpstreamCluster>(&mut document);
        let errors_before = self.problems.errors();
        let mut report =
            Report { problems: &mut self.problems, file, document: &document, base, unreadable: &decoded.unreadable };
        report.decoded(&decoded.wrong);
        let Some(manifest) = decoded.value else { return };
        let surroundings = Surroundings { files, bytes: &mut self.bytes, now: self.now };
        let cluster = validate::compile(manifest, line, report, surroundings);
        let is_good = self.problems.errors() == errors_before;
        match cluster {
            Some(_) if self.clusters.len() >= CLUSTERS_MAX => {
                let mut report = self.report(&document, file, base, &[]);
                report.error(&At::Root, format!("is more than {CLUSTERS_MAX} clusters"), "use a second gateway");
            }
            Some(cluster) if is_good => self.clusters.push(cluster),
            _ => {}
        }
    }

    fn report<'a>(
        &'a mut self,
        document: &'a Node,
        file: &'a Arc<Path>,
        base: &'a [Step],
        unreadable: &'a [Vec<Step>],
    ) -> Report<'a> {
        Report { problems: &mut self.problems, file, document, base, unreadable }
    }
}
