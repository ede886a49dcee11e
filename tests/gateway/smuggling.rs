//! Requests whose end could be seen in two places: none may carry another one past the gateway, and none may reach a
//! kube-apiserver as whole whose end is in doubt.

use crate::fixture::{CLUSTER, EVERYTHING};
use crate::raw::{DATA, END_HEADERS, END_STREAM, End, HEADERS, Http2, frame};
use crate::recorder::Target;

/// A request that somebody might take for one of its own.
const INNER: &str = "GET /apis/smuggled HTTP/1.1\r\nHost: cluster.test\r\nX-Remote-User: admin\r\n\r\n";

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// It is refused, and nothing of it or of what follows reaches anybody.
    Refused,
    /// It is refused as a whole, and what follows is heard.
    Declined,
    /// It may have begun to reach an endpoint, but is not whole there, and nothing that follows is heard.
    Cut,
    /// It is answered, with this body, and nothing that follows is heard: the connection ends.
    Last(&'static str),
    /// It is answered, with this body.
    Whole(&'static str),
}
use Expected::{Cut, Declined, Last, Refused, Whole};

#[test]
fn a_request_over_http_1_has_one_end_or_none() {
    let target = Target::start(EVERYTHING, &[]);
    let long = format!("{}\r\nab", "F".repeat(17));
    let cases: Vec<(&str, &str, Expected)> = vec![
        // Two lengths.
        ("Content-Length: 6\r\nTransfer-Encoding: chunked", "0\r\n\r\n", Last("")),
        ("Transfer-Encoding: chunked\r\nContent-Length: 6", "0\r\n\r\n", Last("")),
        ("Transfer-Encoding: chunked\r\nContent-Length: 4", "2\r\nab\r\n0\r\n\r\n", Last("ab")),
        ("Content-Length: 2\r\nContent-Length: 100", "ab", Refused),
        ("Content-Length: 0\r\nContent-Length: 2", "ab", Refused),
        ("Content-Length: 2\r\nContent-Length: 2", "ab", Whole("ab")),
        ("Content-Length: 2, 2", "ab", Refused),
        ("Content-Length: 2, 100", "ab", Refused),
        // What is no length.
        ("Content-Length: +2", "ab", Refused),
        ("Content-Length: -2", "ab", Refused),
        ("Content-Length: 0x2", "ab", Refused),
        ("Content-Length: 2 0", "ab", Refused),
        ("Content-Length: 2.0", "ab", Refused),
        ("Content-Length:", "ab", Refused),
        ("Content-Length: \u{b}2", "ab", Refused),
        ("Content-Length: 18446744073709551618", "ab", Refused),
        ("Content-Length : 2", "ab", Refused),
        ("Content-Length\t: 2", "ab", Refused),
        // Codings that are not chunked, or not last, or not right.
        ("Transfer-Encoding: identity", "ab", Refused),
        ("Transfer-Encoding: chunked, identity", "0\r\n\r\n", Refused),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", "0\r\n\r\n", Refused),
        ("Transfer-Encoding: xchunked", "0\r\n\r\n", Refused),
        ("Transfer-Encoding: \"chunked\"", "0\r\n\r\n", Refused),
        ("Transfer-Encoding: \u{b}chunked", "0\r\n\r\n", Refused),
        ("Transfer-Encoding : chunked", "0\r\n\r\n", Refused),
        ("Transfer-Encoding:\r\n chunked", "0\r\n\r\n", Refused),
        ("Transfer-Encoding:\tchunked", "2\r\nab\r\n0\r\n\r\n", Whole("ab")),
        ("Transfer-Encoding: CHUNKED", "2\r\nab\r\n0\r\n\r\n", Whole("ab")),
        // Chunks.
        ("Transfer-Encoding: chunked", "2\r\nab\r\n0\r\n\r\n", Whole("ab")),
        ("Transfer-Encoding: chunked", "2;name=value\r\nab\r\n0;x\r\n\r\n", Whole("ab")),
        ("Transfer-Encoding: chunked", "0x2\r\nab\r\n0\r\n\r\n", Cut),
        ("Transfer-Encoding: chunked", "+2\r\nab\r\n0\r\n\r\n", Cut),
        ("Transfer-Encoding: chunked", "-2\r\nab\r\n0\r\n\r\n", Cut),
        ("Transfer-Encoding: chunked", "2 2\r\nab\r\n0\r\n\r\n", Cut),
        ("Transfer-Encoding: chunked", "\r\n2\r\nab\r\n0\r\n\r\n", Cut),
        ("Transfer-Encoding: chunked", "2\nab\n0\n\n", Cut),
        ("Transfer-Encoding: chunked", "2;x\nab\r\n0\r\n\r\n", Cut),
        ("Transfer-Encoding: chunked", "2\r\nabc\r\n0\r\n\r\n", Cut),
        ("Transfer-Encoding: chunked", "2\r\nab0\r\n\r\n", Cut),
        ("Transfer-Encoding: chunked", "2\r\nab\r\nzz\r\n\r\n", Cut),
        ("Transfer-Encoding: chunked", &long, Cut),
        ("Transfer-Encoding: chunked", "2\r\nab\r\n0\r\nContent-Length : 9\r\n\r\n", Cut),
        // A request for an upgrade must not have a body.
        ("Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2", "ab", Declined),
        ("Connection: Upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked", "2\r\nab\r\n0\r\n\r\n", Declined),
        // Something that a line's end could be.
        ("X-Thing: a\rContent-Length: 2", "ab", Refused),
        ("X-Thing: a\0b", "", Refused),
        ("X-Thing", "", Refused),
        (" X-Thing: a", "", Refused),
    ];
    for (number, (headers, body, expected)) in cases.iter().enumerate() {
        let pods = "/api/v1/namespaces/default/pods";
        let path = format!("{pods}/{number}/exec");
        let head = format!("POST {path} HTTP/1.1\r\nHost: {CLUSTER}\r\n{headers}\r\n\r\n{body}{INNER}");
        let (statuses, has_ended) = target.answers(head.as_bytes());
        let what = format!("{headers:?} {body:?}: {statuses:?}, ended: {has_ended}");
        let smuggled = target.mock.seen_at("/apis/smuggled");
        let outer = target.mock.seen_at(&path);
        let bodies: Vec<&[u8]> = outer.iter().filter(|seen| seen.is_whole).map(|seen| &*seen.body).collect();
        match expected {
            Refused => {
                assert!(matches!(statuses[..], [400..=499]) && has_ended, "{what}");
                assert!(outer.is_empty(), "{what}: {outer:?}");
            }
            Declined => {
                assert_eq!(statuses, [400, 200], "{what}");
                assert!(outer.is_empty(), "{what}: {outer:?}");
            }
            Cut => {
                assert!(matches!(statuses[..], [] | [400..=499]) && has_ended, "{what}");
                assert!(bodies.is_empty(), "{what}: {outer:?}");
            }
            Last(body) => {
                assert!(statuses == [200] && has_ended, "{what}");
                assert_eq!(bodies, [body.as_bytes()], "{what}");
            }
            Whole(body) => {
                assert_eq!(statuses, [200, 200], "{what}");
                assert_eq!(bodies, [body.as_bytes()], "{what}");
            }
        }
        let is_heard = |(_, _, expected): &&(&str, &str, Expected)| matches!(expected, Whole(_) | Declined);
        assert_eq!(smuggled.len(), cases[..=number].iter().filter(is_heard).count(), "{what}");
        // Where what follows is heard, it is one of alice's own requests.
        assert!(smuggled.iter().all(|seen| seen.values("impersonate-user") == ["alice"]), "{what}: {smuggled:?}");
        // What Go would take for a request's length is never told twice, nor anything of the connection.
        for seen in outer {
            assert!(
                seen.values("transfer-encoding").is_empty() && seen.values("content-length").len() <= 1,
                "{seen:?}"
            );
        }
    }
}

#[test]
fn a_host_is_one_host() {
    let target = Target::start(EVERYTHING, &[]);
    for (head, expected) in [
        ("GET {} HTTP/1.1\r\nHost: cluster.test\r\n", 200),
        ("GET https://cluster.test{} HTTP/1.1\r\nHost: other.test\r\n", 200),
        ("GET https://other.test{} HTTP/1.1\r\nHost: cluster.test\r\n", 421),
        ("GET {} HTTP/1.1\r\nHost: other.test\r\n", 421),
        ("GET {} HTTP/1.1\r\nHost: cluster.test\r\nHost: cluster.test\r\n", 400),
        ("GET {} HTTP/1.1\r\nHost: cluster.test\r\nHost: other.test\r\n", 400),
        ("GET https://cluster.test{} HTTP/1.1\r\nHost: cluster.test\r\nHost: other.test\r\n", 400),
        ("GET {} HTTP/1.1\r\n", 400),
        ("GET {} HTTP/1.1\r\nHost: cluster.test, other.test\r\n", 421),
        ("GET {} HTTP/1.1\r\nHost: admin@cluster.test\r\n", 421),
        ("CONNECT cluster.test:443 HTTP/1.1\r\nHost: cluster.test\r\n", 400),
        ("GET {} HTTP/1.0\r\n", 200),
        ("GET {} HTTP/1.0\r\nTransfer-Encoding: chunked\r\n", 400),
        ("GET {} HTTP/2.0\r\nHost: cluster.test\r\n", 400),
        ("GET {}\r\nHost: cluster.test\r\n", 400),
        ("GET  {} HTTP/1.1\r\nHost: cluster.test\r\n", 400),
        ("GET {} x HTTP/1.1\r\nHost: cluster.test\r\n", 400),
        ("GET\t{} HTTP/1.1\r\nHost: cluster.test\r\n", 400),
    ] {
        let before = target.mock.seen_at("/apis/host").len();
        let head = head.replace("{}", "/apis/host");
        let (statuses, _) = target.answers(format!("{head}\r\n").as_bytes());
        assert_eq!(statuses.first().copied().unwrap_or_default(), expected, "{head:?}");
        assert_eq!(target.mock.seen_at("/apis/host").len() - before, usize::from(expected == 200), "{head:?}");
    }
}

#[test]
fn a_request_over_http_2_is_what_it_says() {
    let target = Target::start(EVERYTHING, &[]);
    let with = |name: &'static str, value: &'static str| vec![(name, value)];
    for (number, (more, data, whole)) in [
        (with("content-length", "2"), "ab", true),
        (with("content-length", "3"), "ab", false),
        (with("content-length", "1"), "ab", false),
        (with("content-length", "0"), "ab", false),
        (with("content-length", "-2"), "ab", false),
        (with("content-length", "2, 2"), "ab", false),
        (vec![("content-length", "2"), ("content-length", "3")], "ab", false),
        (vec![("content-length", "2"), ("content-length", "2")], "ab", false),
        (with("content-length", "5"), "", false),
        (with("transfer-encoding", "chunked"), "ab", false),
        (with("connection", "x-thing"), "ab", false),
        (with("connection", "close"), "ab", false),
        (with("keep-alive", "1"), "ab", false),
        (with("proxy-connection", "keep-alive"), "ab", false),
        (with("upgrade", "websocket"), "ab", false),
        (with("te", "gzip"), "ab", false),
        (with("te", "trailers"), "ab", true),
        (with("host", "other.test"), "ab", false),
        (with(":path", "/apis/another"), "ab", false),
        (with(":unknown", "x"), "ab", false),
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/apis/{number}?");
        let mut client = target.http2();
        let stream = client.stream();
        let head = client.head("POST", &path, &more);
        let frames = if data.is_empty() {
            frame(HEADERS, END_HEADERS | END_STREAM, stream, &head)
        } else {
            [frame(HEADERS, END_HEADERS, stream, &head), frame(DATA, END_STREAM, stream, data.as_bytes())].concat()
        };
        client.write(&frames).unwrap();
        let end = client.end(stream);
        let seen: Vec<_> = target.mock.seen_at(&path).into_iter().filter(|seen| seen.is_whole).collect();
        if whole {
            assert_eq!(end, End::Status(200), "{more:?}");
            assert_eq!(seen.len(), 1, "{more:?}");
        } else {
            assert!(end.is_refusal(), "{more:?}: {end:?}");
            assert!(seen.is_empty(), "{more:?}: {seen:?}");
        }
    }
    // Targets that are no paths, and methods that are none of an apiserver's.
    for (method, path) in [
        ("CONNECT", "/apis/odd"),
        ("GET", "/apis/odd HTTP/1.1\r\nX-Remote-User: admin"),
        ("GET", "/apis/odd\r\n\r\nGET /apis/smuggled"),
        ("GET", "https://cluster.test/apis/odd"),
        ("GET /apis/odd HTTP/1.1\r\nX: ", "/apis/odd"),
        ("GET", ""),
        ("GET", "apis/odd"),
    ] {
        let mut client = target.http2();
        let stream = client.stream();
        let head = client.head(method, path, &[]);
        client.write(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &head)).unwrap();
        let end = client.end(stream);
        assert!(end.is_refusal(), "{method:?} {path:?}: {end:?}");
    }
    assert!(target.mock.seen_at("/apis/odd").is_empty());
    // A certificate of nobody, and a host of another cluster, in HTTP/2.
    let mut client = Http2::open(target.gateway.address, &target.authority, None);
    let stream = client.get("/apis/nobody", &[]);
    assert_eq!(client.end(stream), End::Status(401));
}
