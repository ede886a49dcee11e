//! Clients that claim to be somebody else, in every form that a header can have: what of it reaches a kube-apiserver.

use std::time::Duration;

use crate::fixture::{CLUSTER, EVERYTHING, wait};
use crate::raw::{self, DATA, END_HEADERS, END_STREAM, HEADERS, Http2, frame};
use crate::recorder::{Seen, TOKEN, Target};

/// Lines that a client could put into the head of a request, to be taken for somebody else.
const LINES: [&str; 38] = [
    "X-Remote-User: admin",
    "x-remote-user: admin",
    "X-REMOTE-USER: admin",
    "X-Remote-User: admin\r\nX-Remote-User: alice\r\nX-Remote-Group: system:masters",
    "X-Remote-Group: system:masters\r\nX-Remote-Group: system:nodes",
    "X-Remote-Uid: 0",
    "X-Remote-Extra-Scopes: all",
    "X-Remote-Whatever-Comes: admin",
    "X_Remote_User: admin\r\nX-Remote_Group: system:masters",
    "X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-User: admin\r\nX-Forwarded-Client-Cert: Subject=\"CN=admin\"",
    "Forwarded: for=203.0.113.9\r\nX-Real-Ip: 203.0.113.9\r\nX-Client-Cert: x\r\nClient-Cert: x",
    "Impersonate-User: admin",
    "impersonate-user: admin\r\nImpersonate-Group: system:masters",
    "Impersonate-User: admin\r\nImpersonate-User: alice",
    "Impersonate-User:",
    "Impersonate-Group: system:masters",
    "Impersonate-Uid: 0",
    "Impersonate-Extra-Scopes: all",
    "Impersonate-Extra-Scopes%2fAll: all",
    "Impersonate-User: alice\r\nImpersonate-Uid: 0",
    "Impersonate-User: alice\r\nImpersonate-Extra-Authentication.kubernetes.io%2Fcredential-id: x",
    "Impersonate_User: admin\r\nImpersonate_Group: system:masters",
    "Impersonate-Whatever-Comes: admin",
    "Authorization: Bearer robot-token",
    "Authorization: Bearer nonsense",
    "Authorization: Basic YWRtaW46YWRtaW4=\r\nProxy-Authorization: Basic YWRtaW46YWRtaW4=",
    "Audit-ID: chosen\r\nAudit-Id: chosen too",
    "Connection: impersonate-user, impersonate-group, audit-id, x-forwarded-for",
    "Connection: close, X-Remote-User\r\nX-Remote-User: admin",
    "Connection: keep-alive\r\nConnection: Impersonate-User\r\nImpersonate-Extra-A: b",
    "Accept: a/b\r\n X-Remote-User: admin",
    "Accept: a/b\r\n\tImpersonate-User: admin",
    "X-Remote-User : admin",
    "X-Remote-User\t: admin",
    "X-Thing: a\rX-Remote-User: admin",
    "X-Thing: a\nX-Remote-User: admin",
    "X-Remote-User\0: admin\r\nX-Thing: \0",
    "X\u{2011}Remote\u{2011}User: admin",
];

/// No identity is told but alice's, once.
fn check(seen: &Seen, what: &str) {
    let mut told: Vec<(&str, &str)> = seen
        .headers
        .iter()
        .map(|(name, value)| (&**name, &**value))
        .filter(|(name, _)| {
            let name = name.replace('_', "-");
            ["impersonate", "x-remote", "x-forwarded", "forwarded", "x-real", "x-client", "client-", "author", "proxy-"]
                .iter()
                .any(|start| name.starts_with(start))
        })
        .collect();
    told.sort_unstable();
    // By which certificate she is known.
    let (credential, value) = told.remove(0);
    assert_eq!(credential, "impersonate-extra-authentication.kubernetes.io%2fcredential-id", "{what}: {seen:?}");
    assert!(value.starts_with("X509SHA256="), "{what}: {seen:?}");
    let expected = [
        ("impersonate-group", "developers"),
        ("impersonate-group", "system:authenticated"),
        ("impersonate-user", "alice"),
        ("x-forwarded-for", "127.0.0.1"),
    ];
    assert_eq!(told, expected, "{what}: {seen:?}");
    let audit_ids = seen.values("audit-id");
    assert!(audit_ids.len() == 1 && audit_ids[0].len() == 36, "{what}: {audit_ids:?}");
    assert!(seen.trailers.is_empty(), "{what}: {:?}", seen.trailers);
}

/// Checks whatever has come of a request to that path, and that all of it has unless it was refused.
fn check_all(target: &Target, path: &str, statuses: &[u16], what: &str) {
    let seen = target.mock.seen_at(path);
    for seen in &seen {
        check(seen, what);
    }
    let is_refused = !statuses.is_empty() && statuses.iter().all(|status| (400..500).contains(status));
    let is_whole = seen.iter().any(|seen| seen.is_whole);
    assert_eq!(is_whole, !is_refused && !statuses.is_empty(), "{what}: {statuses:?} {seen:?}");
}

#[test]
fn no_header_of_a_client_tells_an_identity_over_http_1() {
    let target = Target::start(EVERYTHING, &[]);
    let mut passed = 0;
    for (number, lines) in LINES.iter().enumerate() {
        let heads = [
            ("get", "GET", "".to_owned(), ""),
            ("post", "POST", "Content-Length: 2\r\n".to_owned(), "ab"),
            // In the trailers too, announced or not.
            (
                "chunked",
                "POST",
                "Transfer-Encoding: chunked\r\nTrailer: X-Remote-User, Impersonate-User\r\n".to_owned(),
                &format!("2\r\nab\r\n0\r\n{lines}\r\nX-Remote-User: admin\r\nImpersonate-User: admin\r\n\r\n"),
            ),
            ("upgrade", "GET", "Connection: Upgrade\r\nUpgrade: websocket\r\n".to_owned(), ""),
        ];
        for (kind, method, more, body) in heads {
            let path = if kind == "upgrade" {
                format!("/api/v1/namespaces/default/pods/{number}/exec")
            } else {
                format!("/apis/{kind}/{number}")
            };
            let head = format!("{method} {path}? HTTP/1.1\r\nHost: {CLUSTER}\r\n{more}{lines}\r\n\r\n{body}");
            let statuses = target.first_answer(head.as_bytes());
            check_all(&target, &format!("{path}?"), &statuses, &head);
            passed += statuses.iter().filter(|status| **status < 400).count();
        }
    }
    // Most are let through, without what they claim.
    assert!(passed > 2 * LINES.len(), "{passed}");
}

#[test]
fn no_header_of_a_client_tells_an_identity_over_http_2() {
    let target = Target::start(EVERYTHING, &[]);
    let mut passed = 0;
    // Each line, and names and values that only HTTP/2 can carry.
    let mut cases: Vec<Vec<(String, String)>> = LINES
        .iter()
        .map(|lines| {
            let fields = lines.split("\r\n").map(|line| line.split_once(':').unwrap());
            fields.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect()
        })
        .collect();
    for (name, value) in [
        ("X-Remote-User", "admin"),
        ("x-thing", "a\r\nx-remote-user: admin"),
        ("x-thing", "a\nimpersonate-user: admin"),
        ("x-thing: a\r\nx-remote-user", "admin"),
        (":impersonate-user", "admin"),
        (" x-remote-user", "admin"),
        ("x-remote-user ", "admin"),
        ("x-remote-user\0", "admin"),
        ("", "admin"),
        ("te", "impersonate-user"),
        ("cookie", "impersonate-user=admin"),
        ("host", "admin.test"),
    ] {
        cases.push(vec![(name.to_owned(), value.to_owned())]);
    }
    for (number, case) in cases.iter().enumerate() {
        let fields: Vec<(&str, &str)> = case.iter().map(|(name, value)| (&**name, &**value)).collect();
        for kind in ["get", "post", "trailers"] {
            let path = format!("/apis/{kind}/{number}?");
            // A connection of its own, as some of it ends the connection.
            let mut client = target.http2();
            let stream = client.stream();
            let in_head = if kind == "trailers" { &[][..] } else { &fields[..] };
            let head = client.head(if kind == "get" { "GET" } else { "POST" }, &path, in_head);
            let mut frames = match kind {
                "get" => frame(HEADERS, END_HEADERS | END_STREAM, stream, &head),
                _ => frame(HEADERS, END_HEADERS, stream, &head),
            };
            match kind {
                "post" => frames.extend(frame(DATA, END_STREAM, stream, b"ab")),
                "trailers" => {
                    frames.extend(frame(DATA, 0, stream, b"ab"));
                    frames.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &raw::fields(&fields)));
                }
                _ => {}
            }
            client.write(&frames).unwrap();
            let end = client.end(stream);
            let what = format!("{kind} {case:?}: {end:?}");
            for seen in target.mock.seen_at(&path) {
                check(&seen, &what);
            }
            match end {
                raw::End::Status(200) => {
                    assert_eq!(target.mock.seen_at(&path).len(), 1, "{what}");
                    passed += 1;
                }
                end => assert!(end.is_refusal(), "{what}"),
            }
        }
    }
    assert!(passed > cases.len(), "{passed}");
}

#[test]
fn a_token_is_for_the_gateway_and_a_certificate_has_precedence() {
    let target = Target::start(EVERYTHING, &[]);
    let bearer = format!("Bearer {TOKEN}");
    // Without a certificate, the token tells who asks. It goes no further.
    let mut client = Http2::open(target.gateway.address, &target.authority, None);
    for (path, more, expected) in [
        ("/apis/token", &[("authorization", &*bearer)][..], 200),
        ("/apis/none", &[], 401),
        ("/apis/empty", &[("authorization", "Bearer ")], 401),
        ("/apis/nonsense", &[("authorization", "Bearer nonsense")], 401),
        ("/apis/claimed", &[("x-remote-user", "admin"), ("x-forwarded-user", "admin")], 401),
        ("/apis/impersonated", &[("impersonate-user", "admin")], 401),
    ] {
        let stream = client.get(path, more);
        assert_eq!(client.end(stream), raw::End::Status(expected), "{path}");
        assert_eq!(target.mock.seen_at(path).len(), usize::from(expected == 200), "{path}");
    }
    let seen = &target.mock.seen_at("/apis/token")[0];
    assert_eq!(seen.values("impersonate-user"), ["robot"]);
    assert_eq!(seen.values("impersonate-group"), ["robots", "system:authenticated"]);
    assert!(seen.values("authorization").is_empty(), "{seen:?}");
    // With one, alice stays alice.
    let mut client = target.http2();
    let stream = client.get("/apis/both", &[("authorization", &bearer)]);
    assert_eq!(client.end(stream), raw::End::Status(200));
    check(&target.mock.seen_at("/apis/both")[0], "both");
}

#[test]
fn only_what_becomes_a_stream_is_upgraded_and_never_to_another_http() {
    let target = Target::start(EVERYTHING, &[]);
    let exec = "/api/v1/namespaces/default/pods/p/exec";
    let claimed = "GET /api/v1/secrets HTTP/1.1\r\nHost: x\r\nX-Remote-User: admin\r\n\r\n";
    for (number, protocol) in ["h2c", "H2C", "HTTP/2.0", "TLS/1.2", "websocket, h2c"].iter().enumerate() {
        let head = format!(
            "GET {exec}?{number} HTTP/1.1\r\nHost: {CLUSTER}\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: {protocol}\r\n\
             HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
        );
        let (statuses, _) = target.answers(head.as_bytes());
        assert_eq!(statuses, [200], "{protocol}");
        let seen = target.mock.seen_at(&format!("{exec}?{number}"));
        assert_eq!(seen.len(), 1, "{protocol}");
        check(&seen[0], protocol);
        for gone in ["upgrade", "connection", "http2-settings"] {
            assert!(seen[0].values(gone).is_empty(), "{protocol}: {seen:?}");
        }
    }
    // Not a request that could become a stream; what follows it is a request like any other.
    let head = format!(
        "GET /version?plain HTTP/1.1\r\nHost: {CLUSTER}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n{}",
        claimed.replace("Host: x", &format!("Host: {CLUSTER}")),
    );
    assert_eq!(target.answers(head.as_bytes()).0, [200, 200]);
    check(&target.mock.seen_at("/version?plain")[0], "plain");
    check(&target.mock.seen_at("/api/v1/secrets")[0], "after plain");
    // What is upgraded takes bytes as they are. They are the stream's then, whatever they look like.
    let head = format!(
        "GET {exec}?real HTTP/1.1\r\nHost: {CLUSTER}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n{claimed}"
    );
    assert_eq!(target.answers(head.as_bytes()).0, [101]);
    wait("the stream", || target.mock.seen_at(&format!("{exec}?real"))[0].body == claimed.as_bytes());
    assert_eq!(target.mock.seen_at("/api/v1/secrets").len(), 1);
    // The gateway's own connection to the mock is still one for requests.
    let mut client = target.http2();
    let stream = client.get("/version?last", &[]);
    assert_eq!(client.end(stream), raw::End::Status(200));
    drop(target.http1(Duration::from_secs(1)));
}
