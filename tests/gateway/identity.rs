//! Who a kube-apiserver takes a client for that comes through the gateway.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::fixture::{EVERYTHING, Fixture};

const REVIEW: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";

fn review() -> Value {
    json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"})
}

/// Sends a request over HTTP/1.1 or HTTP/2 with these headers, as no well-behaved client would; gives status and body.
fn curl(fixture: &Fixture, identity: Option<&str>, version: &str, headers: &[&str]) -> (u16, Value) {
    let authority = fixture.apiservers[0].authority().certificate_path().display().to_string();
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", version, "--cacert", &authority, "--write-out", "\n%{http_code}"]);
    if let Some(name) = identity {
        let path = |kind: &str| fixture.gateway.folder.path().join(format!("{name}.{kind}"));
        command.arg("--cert").arg(path("crt")).arg("--key").arg(path("key"));
    }
    for header in headers {
        command.args(["--header", header]);
    }
    command.args(["--header", "Content-Type: application/json", "--data-binary", "@-"]);
    command.arg(format!("{}{REVIEW}", fixture.gateway.url())).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("curl is there: install the package curl");
    child.stdin.take().unwrap().write_all(review().to_string().as_bytes()).unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success(), "{version} {headers:?} {text}");
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), serde_json::from_str(body).unwrap_or(Value::String(body.to_owned())))
}

#[test]
fn nobody_is_taken_for_somebody_else() {
    let fixture = Fixture::start(EVERYTHING);
    let alice = fixture.user("alice", "developers");
    let name = |body: &Value| body["status"]["userInfo"]["username"].as_str().unwrap_or_default().to_owned();

    let answer = fixture.client(&alice).post(REVIEW, &review()).unwrap().ok().unwrap();
    assert_eq!(name(&answer), "alice");
    assert_eq!(answer["status"]["userInfo"]["groups"], json!(["developers", "system:authenticated"]));

    // Headers that a kube-apiserver would believe of the gateway.
    for version in ["--http1.1", "--http2"] {
        for headers in [
            &["X-Remote-User: admin", "X-Remote-Group: system:masters"][..],
            &["x-remote-extra-scopes: all", "X-Remote-Uid: 0"],
            &["Impersonate_User: admin", "Impersonate_Group: system:masters"],
            &["X-Forwarded-User: admin", "X-Forwarded-For: 1.2.3.4"],
            &["Connection: impersonate-user, impersonate-group, audit-id, x-forwarded-for"],
        ] {
            if version == "--http2" && headers[0].starts_with("Connection") {
                // HTTP/2 has no such header: a request with it is malformed, and reset.
                continue;
            }
            let (status, body) = curl(&fixture, Some("alice"), version, headers);
            assert_eq!((status, name(&body)), (201, "alice".to_owned()), "{version} {headers:?} {body}");
        }
        // Those that ask for another name are judged by the cluster.
        for headers in [
            &["Impersonate-User: admin"][..],
            &["Impersonate-User: alice", "Impersonate-Group: system:masters"],
            &["Impersonate-User: alice", "Impersonate-Uid: 0"],
            &["Impersonate-User: alice", "Impersonate-Extra-Scopes: all"],
        ] {
            let (status, body) = curl(&fixture, Some("alice"), version, headers);
            assert_eq!(status, 403, "{version} {headers:?} {body}");
        }
        for headers in [&["Impersonate-Group: system:masters"][..], &["Impersonate-Uid: 0"]] {
            let (status, body) = curl(&fixture, Some("alice"), version, headers);
            assert_eq!(status, 400, "{version} {headers:?} {body}");
        }
        // Who may impersonate, does.
        let mine = fixture.apiservers[0].admin();
        std::fs::copy(&mine.certificate_path, fixture.gateway.folder.path().join("admin.crt")).unwrap();
        std::fs::copy(&mine.key_path, fixture.gateway.folder.path().join("admin.key")).unwrap();
        let (status, body) = curl(&fixture, Some("admin"), version, &["Impersonate-User: bob", "Impersonate-Group: x"]);
        assert_eq!((status, name(&body)), (201, "bob".to_owned()), "{body}");
        // Nobody, and somebody with a bad token.
        assert_eq!(curl(&fixture, None, version, &[]).0, 401);
        assert_eq!(curl(&fixture, None, version, &["Authorization: Bearer nonsense"]).0, 401);
        // A host that the handshake did not name.
        let (status, body) = curl(&fixture, Some("alice"), version, &["Host: other.test"]);
        assert_eq!(status, 421, "{body}");
    }
}

#[test]
fn a_service_account_is_known_by_its_token() {
    let fixture = Fixture::start(EVERYTHING);
    let admin = fixture.admin();
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}});
    admin.post("/api/v1/namespaces/default/serviceaccounts", &account).unwrap().ok().unwrap();
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []}});
    let answer = admin.post("/api/v1/namespaces/default/serviceaccounts/robot/token", &request).unwrap().ok().unwrap();
    let token = answer["status"]["token"].as_str().unwrap();
    let header = format!("Authorization: Bearer {token}");
    for _ in 0..3 {
        let (status, body) = curl(&fixture, None, "--http2", &[&header]);
        assert_eq!(status, 201, "{body}");
        assert_eq!(body["status"]["userInfo"]["username"], "system:serviceaccount:default:robot");
        let groups = body["status"]["userInfo"]["groups"].as_array().unwrap();
        assert!(groups.contains(&json!("system:serviceaccounts:default")), "{groups:?}");
    }
}
