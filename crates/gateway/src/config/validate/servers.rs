//! Endpoints, from the manifest or from a file.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::cluster::{Discovery, Endpoint, Scheme};
use super::super::decode::decode;
use super::super::fingerprint::Fingerprint;
use super::super::manifest::{ClusterSpec, DiscoveredServer, SchemeSpec, Server};
use super::super::node;
use super::super::problem::{At, Report};
use super::super::values::{EndpointUrl, authority, is_dns_name};
use super::Check;
use crate::limits::{ENDPOINTS_MAX, WEIGHT_MAX};

const REMEDY: &str = "write it as https://HOST:PORT";

impl Check<'_, '_> {
    pub(super) fn endpoints(
        &mut self,
        spec: &ClusterSpec,
        tls_fingerprint: u128,
        at: &At<'_>,
    ) -> (Discovery, Box<[Arc<Endpoint>]>) {
        let discovery_at = at.key("discovery");
        let discovery = &spec.discovery;
        let sources = [discovery.from_servers.is_some(), discovery.dns.is_some(), discovery.file.is_some()];
        if sources.iter().filter(|is_set| **is_set).count() > 1 {
            self.report.error(&discovery_at, "has more than one source", "keep one of static, dns and file");
        }
        let servers_at = at.key("servers");
        if (discovery.dns.is_some() || discovery.file.is_some()) && !spec.servers.is_empty() {
            let remedy = "remove servers, or discovery";
            self.report.error(&servers_at, "is set, but discovery says where servers come from", remedy);
        }
        if let Some(dns) = &discovery.dns {
            let dns_at = discovery_at.key("dns");
            let name = dns.name.strip_suffix('.').unwrap_or(&dns.name).to_ascii_lowercase();
            if !is_dns_name(&name, true) {
                self.report.error(&dns_at.key("name"), format!("{:?} is no DNS name", dns.name), "write a host name");
            }
            if dns.port == 0 {
                self.report.error(&dns_at.key("port"), "is missing", "write the port of the servers, such as 6443");
            }
            let found = Discovery::Dns { name: name.into(), port: dns.port, scheme: scheme(dns.scheme) };
            return (found, Box::default());
        }
        if let Some(file) = &discovery.file {
            let path = self.folder.join(&file.path);
            let endpoints = self.discovered(&file.path, tls_fingerprint, &discovery_at);
            return (Discovery::File(path), endpoints);
        }
        if spec.servers.is_empty() {
            self.report.error(&servers_at, "is missing", "list one server at least, or use discovery");
        }
        let endpoints = endpoints(&spec.servers, tls_fingerprint, &mut self.report, &servers_at);
        (Discovery::Static, endpoints)
    }

    /// The endpoints of a file. What is wrong with it is told with the file's own lines.
    fn discovered(&mut self, path: &str, tls_fingerprint: u128, discovery: &At<'_>) -> Box<[Arc<Endpoint>]> {
        let file_at = discovery.key("file");
        let path_at = file_at.key("path");
        if path.is_empty() {
            self.report.error(&path_at, "is missing", "write the path of a file with a list of servers");
            return Box::default();
        }
        let Some((path, bytes)) = self.read(path, &path_at) else { return Box::default() };
        let documents = String::from_utf8(bytes)
            .map_err(|_| "is not UTF-8".to_owned())
            .and_then(|text| node::parse(&text).map_err(|error| format!("line {}: {}", error.line, error.text)));
        let mut document = match documents.map(|mut documents| (documents.pop(), documents.is_empty())) {
            Ok((Some(document), true)) => document,
            Ok(_) => {
                let problem = format!("{}: is not one document", path.display());
                self.report.error(&path_at, problem, "put one YAML list of servers there");
                return Box::default();
            }
            Err(problem) => {
                self.report.error(
                    &path_at,
                    format!("{}: {problem}", path.display()),
                    "put a YAML list of servers there",
                );
                return Box::default();
            }
        };
        let decoded = decode::<Vec<DiscoveredServer>>(&mut document);
        let file = Arc::from(path);
        let mut report = Report {
            problems: &mut *self.report.problems,
            file: &file,
            document: &document,
            base: &[],
            unreadable: &decoded.unreadable,
        };
        report.decoded(&decoded.wrong);
        let servers: Vec<Server> = decoded.value.unwrap_or_default().into_iter().map(|server| server.0).collect();
        if servers.is_empty() {
            report.error(&At::Root, "lists no server", "list one at least");
        }
        endpoints(&servers, tls_fingerprint, &mut report, &At::Root)
    }
}

fn scheme(scheme: SchemeSpec) -> Scheme {
    match scheme {
        SchemeSpec::Https => Scheme::Https,
        SchemeSpec::Http => Scheme::Http,
    }
}

fn endpoints(servers: &[Server], tls_fingerprint: u128, report: &mut Report<'_>, at: &At<'_>) -> Box<[Arc<Endpoint>]> {
    if servers.len() > ENDPOINTS_MAX {
        report.error(at, format!("lists {} servers", servers.len()), format!("list {ENDPOINTS_MAX} at most"));
        return Box::default();
    }
    let mut endpoints: Vec<Endpoint> = Vec::with_capacity(servers.len());
    let mut places: HashMap<String, usize> = HashMap::new();
    for (index, server) in servers.iter().enumerate() {
        let server_at = at.index(index);
        let endpoint_at = server_at.key("endpoint");
        let url = match EndpointUrl::parse(&server.endpoint) {
            Ok(url) => url,
            Err(_) if server.endpoint.is_empty() => {
                report.error(&endpoint_at, "is missing", REMEDY);
                continue;
            }
            Err(problem) => {
                report.error(&endpoint_at, format!("{:?} {problem}", server.endpoint), REMEDY);
                continue;
            }
        };
        if url.has_path {
            let problem = format!("{:?} has a path, which is ignored", server.endpoint);
            report.warn(&endpoint_at, problem, format!("write {}", url.canonical()));
        }
        if let Some(first) = endpoints.first()
            && first.scheme != url.scheme
        {
            let problem = format!("{:?} has another scheme than the servers before it", server.endpoint);
            report.error(&endpoint_at, problem, format!("write {}:// for all servers", first.scheme.as_str()));
        }
        let id = url.canonical();
        if let Some(place) = places.get(&id) {
            report.warn(&endpoint_at, format!("{id} is listed before"), "remove one of the two");
            endpoints[*place].disabled |= server.disabled;
            continue;
        }
        let weight = server.weight.unwrap_or(1);
        if weight > WEIGHT_MAX {
            report.error(
                &server_at.key("weight"),
                format!("{weight} is too much"),
                format!("write {WEIGHT_MAX} at most"),
            );
        }
        places.insert(id.clone(), endpoints.len());
        endpoints.push(endpoint(url, id, server.disabled, weight, tls_fingerprint));
    }
    if !endpoints.is_empty() && endpoints.iter().all(|endpoint| endpoint.disabled) {
        report.warn(at, "has only disabled servers: every request fails", "enable one at least");
    }
    endpoints.into_iter().map(Arc::new).collect()
}

fn endpoint(url: EndpointUrl, id: String, disabled: bool, weight: u32, tls_fingerprint: u128) -> Endpoint {
    let tls = (url.scheme == Scheme::Https).then_some(tls_fingerprint);
    Endpoint {
        connection_fingerprint: Fingerprint::of(&(&id, tls)),
        id: id.into(),
        scheme: url.scheme,
        address: url.host.parse().ok(),
        authority: authority(&url.host, url.port).into(),
        host: url.host.into(),
        port: url.port,
        disabled,
        weight,
    }
}
