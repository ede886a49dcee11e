//! Paths, queries and request lines that try to get around the rewriting of names.

use std::io::{Read, Write};
use std::sync::Mutex;
use std::time::Duration;

use kubewharf_testkit::http::Bytes;
use kubewharf_testkit::tls::Connection;

use super::{Findings, HOST_NAMESPACE, Scene};
use crate::taint::in_parallel;

const WITHIN: Duration = Duration::from_secs(20);
/// Nobody answers more to what leads nowhere.
const ANSWER_BYTES_MAX: u64 = 8 << 20;

/// Sends a request exactly as it is, over a connection of its own.
fn send(scene: &Scene, request_line: &str, headers: &str) -> Bytes {
    let tenant = &scene.attacker;
    let address = tenant.server.trim_start_matches("https://").parse().unwrap();
    let mut connection =
        Connection::open_with_root("http/1.1", address, &tenant.root, Some(&tenant.identity), WITHIN).unwrap();
    let host = if headers.to_lowercase().contains("host:") { String::new() } else { format!("Host: {address}\r\n") };
    let request = format!("{request_line} HTTP/1.1\r\n{host}{headers}Connection: close\r\n\r\n");
    let mut bytes = Vec::new();
    // Whoever is refused may find the connection closed before all is written.
    if connection.write_all(request.as_bytes()).and_then(|()| connection.flush()).is_ok() {
        let _ = connection.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes);
    }
    let head = String::from_utf8_lossy(&bytes).into_owned();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    Bytes { status, headers: Vec::new(), body: bytes }
}

pub(super) fn no_path_leads_out(scene: &Scene, findings: &mut Findings) {
    let (theirs, own) = (scene.victims_default(), scene.attackers_default());
    let (marker, hosts) = (&scene.victims, &scene.hosts);
    let uid = scene.victim.names.uid();
    let mut paths = Vec::new();
    for space in [theirs.as_str(), own.as_str(), "kube-system", HOST_NAMESPACE] {
        paths.extend([
            format!("/api/v1/namespaces/{space}/secrets"),
            format!("/api/v1/namespaces/{space}/secrets/{marker}"),
            format!("/api/v1/namespaces/{space}/secrets/{hosts}"),
            format!("/api/v1/namespaces/{space}"),
            format!("/api/v1/namespaces/default/../{space}/secrets"),
            format!("/api/v1/namespaces/default/secrets/../../{space}/secrets"),
            format!("/api/v1/namespaces/default/%2e%2e/{space}/secrets"),
            format!("/api/v1/namespaces/default/.%2e/{space}/secrets/{hosts}"),
            format!("/api/v1/namespaces/default%2f..%2f{space}/secrets"),
            format!("/api/v1/namespaces/default%2F..%2F{space}/secrets/{marker}"),
            format!("/api/v1/namespaces/default%252f..%252f{space}/secrets"),
            format!("/api/v1/namespaces/default%5c..%5c{space}/secrets"),
            format!("/api/v1/namespaces/default\\..\\{space}/secrets"),
            format!("/api/v1/namespaces/..%2fnamespaces%2f{space}/secrets"),
            format!("/api/v1/namespaces/%2e%2e%2f%2e%2e%2fv1%2fnamespaces%2f{space}%2fsecrets"),
            format!("/api/v1//namespaces/{space}/secrets"),
            format!("//api/v1/namespaces/{space}/secrets"),
            format!("/api//v1/namespaces//{space}//secrets"),
            format!("/./api/v1/namespaces/./{space}/secrets"),
            format!("/api/v1/namespaces/{space}%00/secrets"),
            format!("/api/v1/namespaces/{space}%20/secrets"),
            format!("/api/v1/namespaces/{space};x=y/secrets"),
            format!("/api/v1/namespaces/{space}/secrets/"),
            format!("/api/v1/namespaces/{space}/secrets#default"),
            format!("/api/v1/namespaces/default/secrets?namespace={space}"),
            format!("/api/v1/watch/namespaces/{space}/secrets?timeoutSeconds=1"),
            format!("/api/v1/watch/namespaces/{space}/secrets/{marker}?timeoutSeconds=1"),
            format!("/api/v1/proxy/namespaces/{space}/services/x"),
            format!("/api/v1/namespaces/default/pods/x/proxy/../../../../{space}/secrets"),
            format!("/api/v1/namespaces/default/pods/..%2f..%2f{space}%2fsecrets%2f{marker}/log"),
            format!("/api/v1/namespaces/default/services/x:80/proxy/..%2f..%2f..%2f..%2f{space}/secrets"),
            format!("/api/v1/namespaces/default/secrets?fieldSelector=metadata.namespace%3D{space}"),
            format!("/api/v1/secrets?fieldSelector=metadata.namespace%3D{space}"),
            format!("/api/v1/secrets?fieldSelector=metadata.namespace%3Ddefault%2Cmetadata.namespace%3D{space}"),
            format!("/api/v1/secrets?watch=1&timeoutSeconds=1&fieldSelector=metadata.namespace%3D{space}"),
            format!("/api/v1/events?fieldSelector=involvedObject.namespace%3D{space}"),
            format!("/api/v1/namespaces?fieldSelector=metadata.name%3D{space}"),
            format!("/api/v1/namespaces?labelSelector=kubernetes.io%2Fmetadata.name%3D{space}"),
            format!("/apis/apps/v1/namespaces/{space}/deployments"),
            format!("/apis/..%2fapi/v1/namespaces/{space}/secrets"),
            format!("/apis/apps/v1/../../../api/v1/namespaces/{space}/secrets"),
        ]);
    }
    for key in [format!("{theirs}/\u{0}"), "kube-system/a\u{0}".to_owned(), format!("../secrets/{theirs}/\u{0}")] {
        use base64::Engine as _;
        let token = serde_json::json!({"v": "meta.k8s.io/v1", "rv": -1, "start": key}).to_string();
        let token = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(token);
        paths.push(format!("/api/v1/secrets?limit=5&continue={token}"));
        paths.push(format!("/api/v1/namespaces?limit=5&continue={token}"));
        paths.push(format!("/api/v1/namespaces/default/secrets?limit=5&continue={token}"));
    }
    for path in [
        "/api/v1/secrets?labelSelector=tenancy.kubewharf.io%2Ftenant",
        "/api/v1/namespaces?labelSelector=tenancy.kubewharf.io%2Ftenant",
        "/api/v1/namespaces?labelSelector=%21nothing",
        "/api/v1/namespaces?watch=1&timeoutSeconds=1&resourceVersion=0",
        "/api/v1/watch/secrets?timeoutSeconds=1",
        "/api/v1/watch/namespaces?timeoutSeconds=1",
        "/api/v1/nodes",
        "/api/v1/nodes/x/proxy/metrics",
        "/api/v1/namespaces/default/services/https:kubernetes:443/proxy/api/v1/secrets",
        "/api/v1/namespaces/default/services/kubernetes:https/proxy/api/v1/namespaces/kube-system/secrets",
        "/apis/tenancy.kubewharf.io/v1/tenants",
        "/apis/tenancy.kubewharf.io/v1/tenants/victoria",
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        "/apis/apiregistration.k8s.io/v1/apiservices",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles",
        "/apis/rbac.authorization.k8s.io/v1/roles",
        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies",
        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings",
        "/apis/certificates.k8s.io/v1/certificatesigningrequests",
        "/openapi/v3/apis/..%2f..%2fapi/v1/secrets",
        "/openapi/v2/../../api/v1/secrets",
        "/version/../api/v1/namespaces",
        "*",
    ] {
        paths.push(path.to_owned());
    }
    paths.push(format!("/api/v1/namespaces?labelSelector=tenancy.kubewharf.io%2Ftenant%3D{uid}"));
    paths.push(format!("/apis/rbac.authorization.k8s.io/v1/clusterroles/{hosts}"));
    paths.push(format!("/apis/rbac.authorization.k8s.io/v1/clusterroles/{marker}"));
    paths.push(format!("/apis/rbac.authorization.k8s.io/v1/clusterroles/{}{marker}", scene.victim.names.prefix()));

    let upstream = scene.zoo().cluster.apiserver.url();
    let mut requests: Vec<(String, String)> = paths.iter().map(|path| (format!("GET {path}"), String::new())).collect();
    for method in ["DELETE", "PUT", "PATCH", "POST"] {
        let headers = "Content-Type: application/merge-patch+json\r\nContent-Length: 2\r\n";
        requests.push((format!("{method} /api/v1/namespaces/{theirs}/secrets/{marker}"), format!("{headers}\r\n{{}}")));
        requests.push((format!("{method} /api/v1/namespaces/default/../{theirs}/secrets/{marker}"), String::new()));
        requests.push((format!("{method} /api/v1/namespaces/default%2f..%2f{theirs}/secrets/{marker}"), String::new()));
    }
    for host in [upstream.trim_start_matches("https://"), "kubernetes.default.svc", "victoria", theirs.as_str()] {
        requests.push((format!("GET https://{host}/api/v1/namespaces/kube-system/secrets"), String::new()));
        requests.push(("GET /api/v1/namespaces/kube-system/secrets".to_owned(), format!("Host: {host}\r\n")));
        requests.push((format!("CONNECT {host}"), format!("Host: {host}\r\n")));
    }
    let count = requests.len();
    let told = Mutex::new(Vec::new());
    in_parallel(&requests, |_, (request, headers)| {
        let answer = send(scene, request, headers);
        // What was asked for may be told again.
        let mut text = String::from_utf8_lossy(&answer.body).into_owned();
        for name in [theirs.as_str(), &own, marker, hosts, uid, scene.victim.names.prefix()] {
            if request.contains(name) && answer.status >= 400 {
                text = text.replace(name, "");
            }
        }
        if scene.needles.find(text.as_bytes()).is_some() {
            told.lock().unwrap().push(format!("{request} {headers:?}: {text:.600}"));
        }
    });
    findings.0.extend(told.into_inner().unwrap());
    println!("{count} requests");

    // They are all there still.
    let path = format!("/api/v1/namespaces/default/secrets/{marker}");
    let there = scene.victim.client().get(&path).unwrap();
    findings.check(there.status == 200, || format!("the victim's secret: {there:?}"));
    let path = format!("/api/v1/namespaces/{HOST_NAMESPACE}/secrets/{hosts}");
    let there = scene.host().get(&path).unwrap();
    findings.check(there.status == 200, || format!("the host's secret: {there:?}"));

    // What a kube-apiserver tells its operators is not the tenant's.
    let client = scene.attacker.client();
    for path in [
        "/metrics",
        "/metrics/slis",
        "/debug/pprof/",
        "/debug/pprof/heap",
        "/logs/",
        "/configz",
        "/flagz",
        "/statusz",
        "/debug/api_priority_and_fairness/dump_requests",
    ] {
        let answer = client.get(path).unwrap();
        findings.check(answer.status >= 400, || format!("GET {path}: {}", answer.status));
    }
}
