//! The listener for administrators of the host.

use kubewharf_testkit::http::Client;

use super::{Findings, Scene, parsed};

pub(super) fn knows_no_tenant(scene: &Scene, findings: &mut Findings) {
    let zoo = scene.zoo();
    let (url, root) = (format!("https://{}", zoo.admin_address), zoo.root());
    let host = &zoo.cluster.apiserver;
    let nobody = host.authority().client(&zoo.folder, "nobody-of-the-host", "nogroup").unwrap();
    let clients = [
        ("nobody", Client::with_root(&url, &root, None)),
        ("a tenant", Client::with_root(&url, &root, Some(&scene.attacker.identity))),
        ("a user of the host without rights", Client::with_root(&url, &root, Some(&nobody))),
    ];
    let forged =
        [("x-remote-user", "admin"), ("x-remote-group", "system:masters"), ("content-type", "application/json")];
    let impersonating =
        [("impersonate-user", "admin"), ("impersonate-group", "system:masters"), ("content-type", "application/json")];
    // Health is everybody's.
    let answer = clients[0].1.get("/readyz");
    findings.check(answer.as_ref().is_ok_and(|answer| answer.status == 200), || format!("/readyz: {answer:?}"));
    for (who, client) in &clients {
        for (method, path) in [
            ("GET", "/metrics"),
            ("GET", "/status"),
            ("GET", "/tenants"),
            ("GET", "/tenants/mallory"),
            ("POST", "/tenants/mallory/certificate"),
            ("POST", "/tenants/victoria/certificate"),
            ("POST", "/tenants/victoria/../mallory/certificate"),
            ("GET", "/debug/pprof/"),
            ("GET", "/apis/tenancy.kubewharf.io/v1/tenants"),
            ("GET", "/api/v1/namespaces"),
            ("GET", "/"),
        ] {
            for headers in [&[("content-type", "application/json")][..], &forged, &impersonating] {
                let body = br#"{"request":"x","user":"admin","groups":["system:masters"],"seconds":60}"#;
                let body: &[u8] = if method == "POST" { body } else { b"" };
                // It may end the handshake as well.
                let Ok(answer) = client.request(method, path, headers, body) else { continue };
                findings.check(matches!(answer.status, 401 | 403 | 404), || {
                    format!(
                        "{who}: {method} {path} with {headers:?}: {} {:.200}",
                        answer.status,
                        parsed(&answer).to_string()
                    )
                });
            }
        }
    }
    // An administrator is let in, so the refusals mean something.
    let admin = Client::with_root(&url, &root, Some(host.admin()));
    let answer = admin.get("/metrics").unwrap();
    findings.check(answer.status == 200, || format!("an administrator: /metrics: {answer:?}"));
}
