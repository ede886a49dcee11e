//! All that a tenant can ask for.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use kubewharf_testkit::http::{Bytes, Client};
use serde_json::Value;

use super::needles::Needles;
use super::{Marked, WATCHERS, in_parallel, marker, on_threads};

const JSON: &str = "application/json";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf,application/json;q=0.5";
const YAML: &str = "application/yaml";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;q=0.5";
const PARTIAL: &str =
    "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,application/json;q=0.5";
const ALL_RESOURCES: &str =
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;q=0.5";

/// A kind that is served.
#[derive(Debug, Clone)]
pub(crate) struct Resource {
    /// Empty for the oldest one.
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) plural: String,
    pub(crate) namespaced: bool,
    pub(crate) verbs: Vec<String>,
}

impl Resource {
    pub(crate) fn path(&self, namespace: Option<&str>) -> String {
        let group = match self.group.as_str() {
            "" => format!("/api/{}", self.version),
            group => format!("/apis/{group}/{}", self.version),
        };
        match namespace {
            Some(namespace) if self.namespaced => format!("{group}/namespaces/{namespace}/{}", self.plural),
            _ => format!("{group}/{}", self.plural),
        }
    }

    pub(crate) fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|its| its == verb)
    }
}

/// What this client is told to be served, by one document after the other.
pub(crate) fn served(client: &Client) -> Vec<Resource> {
    let get = |path: &str| client.get(path).unwrap().ok().unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut versions = vec![(String::new(), "v1".to_owned())];
    for group in get("/apis")["groups"].as_array().unwrap() {
        for version in group["versions"].as_array().unwrap() {
            versions.push((text(&group["name"]), text(&version["version"])));
        }
    }
    let mut resources = Vec::new();
    for (group, version) in versions {
        let path = if group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{group}/{version}") };
        for resource in get(&path)["resources"].as_array().unwrap() {
            // Subresources are asked for with their objects.
            if text(&resource["name"]).contains('/') {
                continue;
            }
            resources.push(Resource {
                group: group.clone(),
                version: version.clone(),
                plural: text(&resource["name"]),
                namespaced: resource["namespaced"].as_bool().unwrap(),
                verbs: resource["verbs"].as_array().unwrap().iter().map(text).collect(),
            });
        }
    }
    resources
}

/// A request of which the answer is looked through.
struct Read {
    method: &'static str,
    path: String,
    accept: &'static str,
}

/// What came of reading everything.
pub(super) struct Answers {
    pub(super) count: usize,
    /// Those that hold the reader's own marker: they are about what was looked for.
    pub(super) of_its_own: usize,
    /// Those that tell what they must not.
    pub(super) findings: Vec<String>,
}

/// Sends everything.
pub(crate) fn read_all(reader: &Marked, other: &Marked, resources: &[Resource], needles: &Needles) -> Answers {
    let count = AtomicUsize::new(0);
    let of_its_own = AtomicUsize::new(0);
    let findings = Mutex::new(Vec::new());
    let own = Needles::new(std::slice::from_ref(&reader.marker));
    let look = |what: &str, answer: &Bytes| {
        count.fetch_add(1, Ordering::Relaxed);
        of_its_own.fetch_add(usize::from(own.find(&answer.body).is_some()), Ordering::Relaxed);
        let headers = answer.headers.iter().map(|(name, value)| format!("{name}: {value}\n")).collect::<String>();
        if let Some(found) = needles.find(headers.as_bytes()).or_else(|| needles.find(&answer.body)) {
            findings.lock().unwrap().push(format!("{what}: {found}"));
        }
    };
    let ask = |read: &Read| {
        let headers = [("accept", read.accept), ("content-type", JSON)];
        let answer = reader.client.request(read.method, &read.path, &headers, b"").unwrap();
        look(&format!("{} {} as {}", read.method, read.path, read.accept), &answer);
        answer
    };
    in_parallel(&requests(reader, resources), |_, read| {
        let answer = ask(read);
        // The rest of a list, page by page.
        let mut next = next_page(&answer).filter(|_| read.path.contains("limit="));
        for _ in 0..3 {
            let Some(token) = next else { break };
            let path = format!("{}&continue={token}", read.path);
            next = next_page(&ask(&Read { method: "GET", path, accept: read.accept }));
        }
    });
    on_threads(WATCHERS, &watches(reader, resources), |_, read| drop(ask(read)));

    // What is somebody else's is answered as what is nobody's.
    let nobody = marker();
    let upstream = format!("{}default", other.tenant.names.prefix());
    let mut nobodys_upstream = format!("kz{nobody}");
    nobodys_upstream.truncate(other.tenant.names.prefix().len() - 1);
    nobodys_upstream.push_str("-default");
    for (theirs, nobodys) in [(&other.marker, &nobody), (&upstream, &nobodys_upstream)] {
        for (method, path) in questions() {
            let answers = [theirs, nobodys].map(|name| {
                let path = path.replace("NAME", name);
                let answer = reader.client.request(method, &path, &[("accept", JSON)], b"").unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                (answer.status, String::from_utf8_lossy(&answer.body).replace(name.as_str(), "NAME"))
            });
            let [their, nobodys] = &answers;
            if without_times(their) != without_times(nobodys) {
                findings.lock().unwrap().push(format!("{method} {path}: {their:?}, of nobody {nobodys:?}"));
            }
        }
    }
    let (count, of_its_own) = (count.into_inner(), of_its_own.into_inner());
    Answers { count, of_its_own, findings: findings.into_inner().unwrap() }
}

fn next_page(answer: &Bytes) -> Option<String> {
    let body: Value = serde_json::from_slice(&answer.body).ok()?;
    body["metadata"]["continue"].as_str().filter(|token| !token.is_empty()).map(str::to_owned)
}

/// Lists are of their moment.
fn without_times((status, body): &(u16, String)) -> (u16, String) {
    let rule = regex::Regex::new(r#""resourceVersion":"\d+""#).unwrap();
    (*status, rule.replace_all(body, "").into_owned())
}

/// Every list and object in every form, every document, some errors.
fn requests(reader: &Marked, resources: &[Resource]) -> Vec<Read> {
    let own = reader.marker.as_str();
    let mut reads = Vec::new();
    let mut get = |path: String, accept| reads.push(Read { method: "GET", path, accept });
    for resource in resources {
        let all = resource.path(None);
        let object = format!("{}/{own}", resource.path(Some("default")));
        for accept in [JSON, PROTOBUF, YAML, TABLE, PARTIAL] {
            if resource.can("list") {
                get(all.clone(), accept);
                if resource.namespaced {
                    get(resource.path(Some(own)), accept);
                }
            }
            if resource.can("get") {
                get(object.clone(), accept);
            }
        }
        if resource.can("list") {
            for query in ["limit=1", "resourceVersion=0", "labelSelector=nothing", "fieldSelector=metadata.name%21%3Dx"]
            {
                get(format!("{all}?{query}"), JSON);
            }
        }
        get(format!("{object}-of-nobody"), JSON);
        get(format!("{all}?continue=nonsense"), JSON);
        get(format!("{all}?fieldSelector=nothing"), JSON);
    }
    for path in ["/api", "/apis"] {
        for accept in [JSON, ALL_RESOURCES, PROTOBUF, YAML] {
            get(path.to_owned(), accept);
        }
    }
    let mut versions: Vec<String> =
        resources.iter().map(|resource| format!("{}/{}", resource.group, resource.version)).collect();
    versions.dedup();
    for version in versions {
        let path = if version.starts_with('/') { format!("/api{version}") } else { format!("/apis/{version}") };
        get(path.clone(), JSON);
        get(format!("/openapi/v3{path}"), JSON);
    }
    for path in [
        "/",
        "/version",
        "/healthz",
        "/livez?verbose",
        "/readyz?verbose",
        "/openapi/v2",
        "/openapi/v3",
        "/metrics",
        "/logs",
        "/debug/pprof",
        "/.well-known/openid-configuration",
        "/openid/v1/jwks",
        "/configz",
        "/flagz",
        "/statusz",
        "/nothing",
        "/api/v1/nothing",
        "/apis/nothing.example.com/v1",
        "/apis/tenancy.kubewharf.io/v1/tenants",
        "/apis/tenancy.kubewharf.io/v1",
        "/tenants",
        "/readyz/ping",
        "/api/v1/namespaces/default/pods/nobody/log",
        "/api/v1/namespaces/default/services/nobody/proxy/",
    ] {
        get(path.to_owned(), JSON);
    }
    for (method, path) in [
        ("DELETE", "/api/v1/namespaces/default/pods/nobody"),
        ("PUT", "/api/v1/namespaces/default/configmaps/nobody"),
        ("POST", "/api/v1/namespaces/default/configmaps"),
        ("PATCH", "/api/v1/namespaces/default/configmaps/nobody"),
        ("DELETE", "/api/v1/namespaces/kube-system"),
        ("OPTIONS", "/api/v1/namespaces"),
        ("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews"),
        ("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"),
    ] {
        reads.push(Read { method, path: path.to_owned(), accept: JSON });
    }
    reads
}

/// A second of each kind as it changes.
fn watches(reader: &Marked, resources: &[Resource]) -> Vec<Read> {
    let mut reads = Vec::new();
    let mut number = 0;
    for resource in resources.iter().filter(|resource| resource.can("watch")) {
        number += 1;
        let accept = [JSON, "application/vnd.kubernetes.protobuf;stream=watch", TABLE][number % 3];
        let busy = matches!(resource.plural.as_str(), "configmaps" | "namespaces" | "clusterroles");
        // Nobody else changes objects of the other kinds, so what is there is told and that is it.
        let seconds = if busy { 2 } else { 1 };
        let query = format!(
            "watch=1&timeoutSeconds={seconds}&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
        );
        let path = resource.path(None);
        reads.push(Read { method: "GET", path: format!("{path}?{query}"), accept });
        if busy {
            let path = resource.path(Some(&reader.marker));
            reads.push(Read { method: "GET", path: format!("{path}?{query}"), accept: JSON });
        }
    }
    reads
}

/// Questions after something with a certain name.
fn questions() -> Vec<(&'static str, String)> {
    let mut questions = Vec::new();
    for path in [
        "/api/v1/namespaces/NAME",
        "/api/v1/namespaces/NAME/configmaps",
        "/api/v1/namespaces/NAME/configmaps/NAME",
        "/api/v1/namespaces/NAME/secrets/NAME",
        "/api/v1/namespaces/NAME/pods/NAME/log",
        "/api/v1/namespaces/NAME/services/NAME/proxy/",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles/NAME",
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/things.NAME.example.com",
        "/apis/NAME.example.com/v1/things",
        "/apis/NAME.example.com/v1",
        "/apis/NAME.example.com",
        "/openapi/v3/apis/NAME.example.com/v1",
        "/api/v1/configmaps?fieldSelector=metadata.namespace%3DNAME",
        "/api/v1/configmaps?labelSelector=NAME",
        "/api/v1/events?fieldSelector=involvedObject.namespace%3DNAME",
        "/api/v1/namespaces?fieldSelector=metadata.name%3DNAME",
        "/api/v1/namespaces?labelSelector=kubernetes.io%2Fmetadata.name%3DNAME",
        "/apis/tenancy.kubewharf.io/v1/tenants/NAME",
    ] {
        questions.push(("GET", path.to_owned()));
    }
    for path in
        ["/api/v1/namespaces/NAME", "/api/v1/namespaces/NAME/configmaps/NAME", "/api/v1/namespaces/NAME/configmaps"]
    {
        questions.push(("DELETE", path.to_owned()));
    }
    questions
}
