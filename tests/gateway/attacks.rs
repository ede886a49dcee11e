//! Clients that want to harm: by floods, by what is too large, by being slow, and by not reading. Theirs is the harm: their
//! connections end, the gateway's memory stays what it was, and others are served all the while.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kubewharf_foundation::descriptors;
use kubewharf_testkit::tls::Connection;
use kubewharf_testkit::usage;

use crate::fixture::{CLUSTER, EVERYTHING, alone, wait};
use crate::raw::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, End, HEADERS, Http2, PING, PRIORITY, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, fields, frame,
};
use crate::recorder::{ENDLESS, Target};

/// What an attack may leave behind, in bytes: much less than any of them sends or asks for.
const MEMORY_GROWTH_MAX: u64 = 48 << 20;
/// A timeout of the gateway, as a flag has it.
const TIMEOUT: Duration = Duration::from_secs(2);
const TIMEOUTS: [&str; 4] = ["--handshake-timeout=2", "--header-timeout=2", "--idle-timeout=2", "--send-timeout=2"];
/// How long it may take until such a timeout has shown, on a busy machine: less than any of them is by default.
const TIMEOUT_SHOWS_WITHIN: Duration = Duration::from_secs(9);

/// Does that while somebody else asks one thing after another, and is answered each time.
fn while_others_are_served<T>(target: &Target, attack: impl FnOnce() -> T) -> T {
    struct StopAtEnd<'a>(&'a AtomicBool);
    // Also when the test fails, which would otherwise wait for ever.
    impl Drop for StopAtEnd<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            let mut is_over = false;
            while !is_over {
                is_over = stop.load(Ordering::Relaxed);
                // A connection of its own each time: others must get in, too.
                let answer = target.client().get("/version?other").unwrap();
                assert_eq!(answer.status, 200, "{:?}", answer.body);
            }
        });
        let stop_at_end = StopAtEnd(&stop);
        let result = attack();
        drop(stop_at_end);
        other.join().unwrap();
        result
    })
}

fn memory(target: &Target) -> u64 {
    usage::memory(target.gateway.process.id()).unwrap().anonymous
}

/// A name, and what an attacker does once it has connected. It says whether the attack was ended: the connection is over, or
/// the request is refused.
type Attack = (&'static str, fn(&mut Http2) -> bool);

/// Sends that much of it, or less if the connection ends before, and tells whether it ends.
fn flood(client: &mut Http2, bytes: &[u8], times: usize) -> bool {
    let piece = bytes.repeat((64 << 10) / bytes.len() + 1);
    let mut left = bytes.len() * times;
    while left > 0 && client.write(&piece[..left.min(piece.len())]).is_ok() {
        left -= left.min(piece.len());
    }
    client.ends_after().is_some()
}

/// Begins a request with a body.
fn post(client: &mut Http2) -> u32 {
    let stream = client.stream();
    let head = client.head("POST", "/apis/posted", &[]);
    client.write(&frame(HEADERS, END_HEADERS, stream, &head)).unwrap();
    stream
}

/// The head of a request that is followed by so many frames of that.
fn continued(client: &mut Http2, piece: &[u8], times: usize) -> bool {
    let stream = client.stream();
    let head = client.head("GET", "/apis/continued", &[]);
    let begun = client.write(&frame(HEADERS, END_STREAM, stream, &head)).is_ok();
    begun && flood(client, &frame(CONTINUATION, 0, stream, piece), times)
}

const ATTACKS: [Attack; 19] = [
    ("pings", |client| flood(client, &frame(PING, 0, 0, &[7; 8]), 100_000)),
    ("answers to pings that nobody sent", |client| flood(client, &frame(PING, ACK, 0, &[7; 8]), 100_000)),
    ("settings", |client| flood(client, &frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255]), 100_000)),
    ("empty settings", |client| flood(client, &frame(SETTINGS, 0, 0, &[]), 100_000)),
    ("acknowledged settings", |client| flood(client, &frame(SETTINGS, ACK, 0, &[]), 100_000)),
    ("priorities", |client| flood(client, &frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 7]), 100_000)),
    ("unknown frames", |client| flood(client, &frame(99, 0, 1, &[7; 50]), 100_000)),
    ("windows", |client| flood(client, &frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]), 100_000)),
    ("windows opened by nothing", |client| flood(client, &frame(WINDOW_UPDATE, 0, 0, &[0; 4]), 1)),
    ("a window beyond its end", |client| flood(client, &frame(WINDOW_UPDATE, 0, 0, &[127, 255, 255, 255]), 2)),
    ("empty pieces of a body", |client| {
        let stream = post(client);
        flood(client, &frame(DATA, 0, stream, &[]), 100_000)
    }),
    ("padding of a body", |client| {
        let stream = post(client);
        // Padded, and nothing but that.
        flood(client, &frame(DATA, 8, stream, &[&[255][..], &[0; 255]].concat()), 100_000)
    }),
    ("a body beyond its windows", |client| {
        let stream = post(client);
        // Until there are more of them at once than the windows have room for.
        flood(client, &frame(DATA, 0, stream, &[7; 16384]), 1 << 14)
    }),
    ("a head without an end", |client| continued(client, &fields(&[("x-thing", &"x".repeat(1000))]), 20_000)),
    ("a head without an end, of nothing", |client| continued(client, &[], 100_000)),
    ("a head that is a bomb", |client| {
        // Put into the table, and named by one byte as often as there is room.
        let name = fields(&[("x-bomb", &"x".repeat(4000))]);
        let stream = client.stream();
        let head = client.head("GET", "/apis/bomb", &[]);
        client.write(&frame(HEADERS, END_STREAM, stream, &[&head, &[0x40][..], &name[1..]].concat())).unwrap();
        (0..6).all(|_| client.write(&frame(CONTINUATION, 0, stream, &[0xbe; 16384])).is_ok())
            && client.write(&frame(CONTINUATION, END_HEADERS, stream, &[])).is_ok()
            && client.end(stream).is_refusal()
            || client.ends_after().is_some()
    }),
    ("a frame that is too long", |client| flood(client, &frame(DATA, 0, 1, &[0; 16385]), 1)),
    ("requests that are reset at once", |client| {
        let mut bytes = Vec::new();
        for _ in 0..20_000 {
            let stream = client.stream();
            bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &client.head("GET", "/apis/reset", &[])));
            bytes.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
        }
        flood(client, &bytes, 1)
    }),
    ("requests that are reset after a while", |client| {
        for _ in 0..400 {
            let streams: Vec<u32> = (0..50).map(|_| client.stream()).collect();
            let head = client.head("GET", "/apis/paced", &[]);
            let all = |kind, flags, payload: &[u8]| {
                streams.iter().flat_map(|stream| frame(kind, flags, *stream, payload)).collect::<Vec<u8>>()
            };
            if client.write(&all(HEADERS, END_HEADERS | END_STREAM, &head)).is_err() {
                return true;
            }
            thread::sleep(Duration::from_millis(5));
            if client.write(&all(RST_STREAM, 0, &[0, 0, 0, 8])).is_err() {
                return true;
            }
        }
        client.ends_after().is_some()
    }),
];

#[test]
fn floods_end_the_connection_that_they_come_on() {
    let _alone = alone();
    let target = Target::start(EVERYTHING, &[]);
    // With and without a name: most of it needs none.
    for identity in [None, Some(&target.alice)] {
        for (name, attack) in ATTACKS {
            let before = memory(&target);
            while_others_are_served(&target, || {
                let mut client = Http2::open(target.gateway.address, &target.authority, identity);
                assert!(attack(&mut client), "{name}: goes on");
            });
            let after = memory(&target);
            assert!(after < before + MEMORY_GROWTH_MAX, "{name}: {before} bytes of memory have become {after}");
        }
    }
    // Of 20,000 requests each that were reset.
    for path in ["/apis/reset", "/apis/paced"] {
        let seen = target.mock.seen_at(path).len();
        assert!(seen < 5000, "{path}: {seen} requests have reached the kube-apiserver");
    }
    // They are no reason to write much down.
    let log = target.gateway.process.log_text().unwrap();
    assert!(log.len() < 64 << 10, "{} bytes of log:\n{}", log.len(), &log[..4096]);
    assert_eq!(target.gateway.endpoints()[0]["ejections"], 0);
}

#[test]
fn what_is_too_much_is_refused_and_the_rest_goes_on() {
    let spec = format!("{EVERYTHING}    maxBodyBytes: 100Ki\n");
    let target = Target::start(&spec, &[]);
    let before = memory(&target);
    // Heads over HTTP/1.1.
    let many: String = (0..200).map(|number| format!("X-Thing-{number}: a\r\n")).collect();
    for (what, line, headers) in [
        ("a long header", "GET /apis/long HTTP/1.1", &*format!("X-Thing: {}\r\n", "x".repeat(200 << 10))),
        ("many headers", "GET /apis/many HTTP/1.1", &many),
        ("a long name", "GET /apis/name HTTP/1.1", &format!("{}: a\r\n", "x".repeat(200 << 10))),
        ("a long path", &format!("GET /apis/{} HTTP/1.1", "x".repeat(200 << 10)), ""),
    ] {
        let (statuses, has_ended) = target.answers(format!("{line}\r\nHost: {CLUSTER}\r\n{headers}\r\n").as_bytes());
        // The connection may be reset with the answer on the way, as there is still something to be read.
        assert!(has_ended && matches!(statuses[..], [] | [400 | 414 | 431]), "{what}: {statuses:?}");
    }
    assert_eq!(target.answers(&vec![b'x'; 1 << 20]).0.first().copied().unwrap_or(400) / 100, 4);
    // And over HTTP/2: one that is a little too large, on a connection that goes on, and one that is much too large.
    let mut client = target.http2();
    let head_of = |client: &mut Http2, bytes: usize| {
        let stream = client.stream();
        let block = client.head("GET", "/apis/head", &[("x-thing", &"x".repeat(bytes))]);
        let mut pieces = block.chunks(16384).peekable();
        let mut kind = HEADERS;
        while let Some(piece) = pieces.next() {
            let end = if pieces.peek().is_none() { END_HEADERS } else { 0 };
            let flags = if kind == HEADERS { end | END_STREAM } else { end };
            if client.write(&frame(kind, flags, stream, piece)).is_err() {
                break;
            }
            kind = CONTINUATION;
        }
        stream
    };
    let stream = head_of(&mut client, 97 << 10);
    assert_eq!(client.end(stream), End::Status(431));
    let stream = client.get("/apis/next", &[]);
    assert_eq!(client.end(stream), End::Status(200));
    let stream = head_of(&mut client, 4 << 20);
    assert!(matches!(client.end(stream), End::Connection(_)));
    // Bodies: announced, or found out.
    let (statuses, _) = target
        .answers(format!("POST /apis/body HTTP/1.1\r\nHost: {CLUSTER}\r\nContent-Length: 102401\r\n\r\n").as_bytes());
    assert_eq!(statuses, [413]);
    let chunk = format!("19000\r\n{}\r\n", "x".repeat(0x19000));
    let head = format!("POST /apis/body HTTP/1.1\r\nHost: {CLUSTER}\r\nTransfer-Encoding: chunked\r\n\r\n");
    let (statuses, _) = target.answers(format!("{head}{chunk}0\r\n\r\n").as_bytes());
    assert_eq!(statuses, [200]);
    let (statuses, _) = target.answers(format!("{head}{chunk}1\r\nx\r\n0\r\n\r\n").as_bytes());
    assert_eq!(statuses, [413]);
    let whole = target.mock.seen_at("/apis/body").iter().filter(|seen| seen.is_whole).count();
    assert_eq!(whole, 1);
    // Around a body: extensions of chunks, and trailers.
    for rest in [
        format!("1;{}\r\nx\r\n0\r\n\r\n", "x".repeat(100 << 10)),
        format!("1\r\nx\r\n0\r\n{}\r\n", format!("X-Thing: {}\r\n", "x".repeat(1000)).repeat(100)),
    ] {
        let (statuses, has_ended) = target.answers(format!("{head}{rest}").as_bytes());
        assert!(has_ended && matches!(statuses[..], [] | [400..=499]), "{statuses:?}");
    }
    // More requests at once than one connection may have: those beyond are refused, the others are not.
    let mut client = target.http2();
    let streams: Vec<u32> = (0..300).map(|_| post(&mut client)).collect();
    assert_eq!(client.end(streams[299]), End::Reset(7));
    client.write(&frame(DATA, END_STREAM, streams[0], b"x")).unwrap();
    assert_eq!(client.end(streams[0]), End::Status(200));
    let after = memory(&target);
    assert!(after < before + MEMORY_GROWTH_MAX, "{before} bytes of memory have become {after}");
}

/// Waits until the gateway ends a connection to which nothing more is written.
fn ends(connection: &mut impl Read) -> bool {
    let begun = Instant::now();
    let mut buffer = [0; 4096];
    loop {
        match connection.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) if begun.elapsed() < TIMEOUT_SHOWS_WITHIN => {}
            Err(error) if error.kind() != ErrorKind::WouldBlock => return true,
            _ => return false,
        }
    }
}

/// Writes those bytes so slowly that there is always one more, until that fails.
fn drips(connection: &mut (impl Read + Write), bytes: &[u8]) -> bool {
    let begun = Instant::now();
    for byte in bytes.iter().cycle() {
        if connection.write_all(&[*byte]).and_then(|()| connection.flush()).is_err() {
            return true;
        }
        if begun.elapsed() > TIMEOUT_SHOWS_WITHIN {
            return false;
        }
        thread::sleep(Duration::from_millis(100));
    }
    unreachable!("there is always one more")
}

/// Is slow in some way, and tells whether its connection ended for it.
type Slow<'t> = Box<dyn Fn() -> bool + Sync + Send + 't>;

#[test]
fn clients_that_are_slow_to_ask_are_let_go() {
    let _alone = alone();
    let target = Target::start(EVERYTHING, &TIMEOUTS);
    let connect = || {
        let stream = TcpStream::connect(target.gateway.address).unwrap();
        stream.set_read_timeout(Some(TIMEOUT_SHOWS_WITHIN)).unwrap();
        stream
    };
    let tls = |protocol: &str| {
        let (address, authority) = (target.gateway.address, &target.authority);
        let mut connection =
            Connection::open_for(protocol, address, authority, Some(&target.alice), TIMEOUT_SHOWS_WITHIN).unwrap();
        connection.flush().unwrap();
        connection
    };
    let open = || target.http2();
    // A record of a handshake that is longer than what comes of it.
    const HELLO: &[u8] = &[22, 3, 1, 1, 0, 1, 0, 0, 252, 3, 3, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7];
    let cases: Vec<(&str, Slow<'_>)> = vec![
        ("nothing", Box::new(|| ends(&mut connect()))),
        (
            "half a hello",
            Box::new(|| {
                let mut stream = connect();
                stream.write_all(HELLO).unwrap();
                ends(&mut stream)
            }),
        ),
        (
            "a slow hello",
            Box::new(|| {
                let mut stream = connect();
                stream.write_all(HELLO).unwrap();
                drips(&mut stream, &[7])
            }),
        ),
        ("HTTP/1.1: nothing", Box::new(|| ends(&mut tls("http/1.1")))),
        (
            "HTTP/1.1: a slow head",
            Box::new(|| {
                let mut connection = tls("http/1.1");
                connection.write_all(b"GET / HTTP/1.1\r\n").unwrap();
                drips(&mut connection, b"X-Thing: a\r\n")
            }),
        ),
        (
            "HTTP/1.1: nothing more",
            Box::new(|| {
                let mut connection = tls("http/1.1");
                connection.write_all(format!("GET /version HTTP/1.1\r\nHost: {CLUSTER}\r\n\r\n").as_bytes()).unwrap();
                ends(&mut connection)
            }),
        ),
        ("HTTP/2: nothing", Box::new(|| ends(&mut tls("h2")))),
        (
            "HTTP/2: half a preface",
            Box::new(|| {
                let mut connection = tls("h2");
                connection.write_all(b"PRI * HTTP/2.0\r\n").unwrap();
                ends(&mut connection)
            }),
        ),
        ("HTTP/2: no request", Box::new(|| open().ends_after().is_some())),
        (
            "HTTP/2: pings, and no request",
            Box::new(|| {
                let mut client = open();
                drips(client.connection(), &frame(PING, 0, 0, &[7; 8]))
            }),
        ),
        (
            "HTTP/2: half a frame",
            Box::new(|| {
                let mut client = open();
                client.write(&frame(DATA, 0, 1, &[0; 100])[..50]).unwrap();
                client.ends_after().is_some()
            }),
        ),
        (
            "HTTP/2: a slow frame",
            Box::new(|| {
                let mut client = open();
                client.get("/version", &[]);
                client.write(&frame(99, 0, 1, &[0; 10_000])[..9]).unwrap();
                drips(client.connection(), &[0])
            }),
        ),
        (
            "HTTP/2: a slow head",
            Box::new(|| {
                let mut client = open();
                let head = client.head("GET", "/version", &[]);
                client.write(&frame(HEADERS, END_STREAM, 1, &head)).unwrap();
                // Few enough for one head.
                client.write(&frame(CONTINUATION, 0, 1, &[])).unwrap();
                client.ends_after().is_some()
            }),
        ),
        (
            "HTTP/2: nothing more",
            Box::new(|| {
                let mut client = open();
                let stream = client.get("/version", &[]);
                assert_eq!(client.end(stream), End::Status(200));
                client.ends_after().is_some_and(|time| time < TIMEOUT_SHOWS_WITHIN)
            }),
        ),
    ];
    while_others_are_served(&target, || {
        thread::scope(|scope| {
            let running: Vec<_> = cases.iter().map(|(name, case)| (name, scope.spawn(case))).collect();
            for (name, case) in running {
                assert!(case.join().unwrap(), "{name}: is kept for longer than {TIMEOUT:?}");
            }
        });
    });
}

#[test]
fn clients_that_are_slow_to_send_or_to_read_are_let_go() {
    let _alone = alone();
    let spec = "  flowControl:
    flowControlSchemas:
    - name: one
      maxRequestsInflight: {max: 1}
  dispatchPolicies:
  - flowControlSchemaName: one
    timeouts: {idle: 2s}
    rules:
    - verbs: ['*']
      nonResourceURLs: [/endless]
  - timeouts: {request: 2s, idle: 60s}
    rules:
    - verbs: ['*']
      nonResourceURLs: ['*']
";
    let target = Target::start(spec, &TIMEOUTS);
    let before = memory(&target);
    while_others_are_served(&target, || {
        // Bodies that come byte by byte. The kube-apiserver is not to blame.
        for _ in 0..3 {
            let mut connections: Vec<Connection> = (0..3).map(|_| target.http1(TIMEOUT_SHOWS_WITHIN)).collect();
            for connection in &mut connections {
                let head = format!("POST /apis/slow HTTP/1.1\r\nHost: {CLUSTER}\r\nContent-Length: 1000\r\n\r\n");
                connection.write_all(head.as_bytes()).unwrap();
            }
            thread::scope(|scope| {
                let running: Vec<_> =
                    connections.iter_mut().map(|connection| scope.spawn(|| drips(connection, b"x"))).collect();
                assert!(running.into_iter().all(|ends| ends.join().unwrap()), "a slow body has no end");
            });
        }
        let mut client = target.http2();
        let stream = post(&mut client);
        client.write(&frame(DATA, 0, stream, b"x")).unwrap();
        assert_eq!(client.end(stream), End::Status(408));
        assert!(target.mock.seen_at("/apis/").iter().all(|seen| !seen.is_whole));
        assert_eq!(target.gateway.endpoints()[0]["ejections"], 0);

        // An answer that is not read, on a connection that is: it ends, and with it what it occupied.
        let begin = || {
            let mut client = target.http2();
            let stream = client.get(ENDLESS, &[]);
            let end = client.end(stream);
            (client, stream, end)
        };
        let (mut client, stream, end) = begin();
        assert_eq!((end, begin().2), (End::Status(200), End::Status(429)));
        assert!(matches!(client.end(stream), End::Reset(_)));
        let (mut client, stream, end) = begin();
        assert_eq!(end, End::Status(200));
        assert!(matches!(client.end(stream), End::Reset(_)));

        // Nor is there room for one byte of it, from the beginning.
        let mut client = target.http2();
        client.write(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).unwrap();
        let stream = client.get(ENDLESS, &[]);
        assert_eq!(client.end(stream), End::Status(200));
        assert!(matches!(client.end(stream), End::Reset(_)));

        // On a connection that is not read.
        let mut connection = target.http1(TIMEOUT_SHOWS_WITHIN);
        connection.write_all(format!("GET {ENDLESS} HTTP/1.1\r\nHost: {CLUSTER}\r\n\r\n").as_bytes()).unwrap();
        connection.read_exact(&mut [0; 12]).unwrap();
        assert_eq!(begin().2, End::Status(429));
        wait("the answer is given up", || begin().2 == End::Status(200));
        assert!(ends(&mut connection));
        let mut client = target.http2();
        client.write(&frame(WINDOW_UPDATE, 0, 0, &[127, 0, 0, 0])).unwrap();
        client.write(&frame(SETTINGS, 0, 0, &[0, 4, 127, 0, 0, 0])).unwrap();
        wait("the answer begins", || {
            let stream = client.get(ENDLESS, &[]);
            client.end(stream) == End::Status(200)
        });
        wait("the answer is given up", || begin().2 == End::Status(200));
        thread::sleep(2 * TIMEOUT);
        assert!(client.ends_after().is_some());
    });
    let after = memory(&target);
    assert!(after < before + MEMORY_GROWTH_MAX, "{before} bytes of memory have become {after}");
}

#[test]
fn thousands_of_connections_that_say_nothing_keep_nobody_out() {
    const CONNECTIONS: usize = 2500;
    let _alone = alone();
    descriptors::raise_limit().unwrap();
    let target = Target::start(EVERYTHING, &["--handshake-timeout=5"]);
    let before = memory(&target);
    while_others_are_served(&target, || {
        let mut connections: Vec<TcpStream> = Vec::new();
        for number in 0..CONNECTIONS {
            let mut stream = TcpStream::connect(target.gateway.address).unwrap();
            stream.set_read_timeout(Some(TIMEOUT_SHOWS_WITHIN)).unwrap();
            // Every other one begins at least.
            if number % 2 == 0 {
                stream.write_all(&[22, 3, 1, 1, 0, 1]).unwrap();
            }
            connections.push(stream);
        }
        let during = memory(&target);
        assert!(during < before + MEMORY_GROWTH_MAX, "{before} bytes of memory have become {during}");
        assert!(connections.iter_mut().all(ends), "some are still there");
    });
    let after = memory(&target);
    assert!(after < before + MEMORY_GROWTH_MAX, "{before} bytes of memory have become {after}");
}
