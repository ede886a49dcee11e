//! Requests that become streams of bytes, at an upstream that agrees to them or does not.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::pki::{Authority, Identity};
use kubewharf_testkit::tls::Connection;

use crate::fixture::{CLUSTER, EVERYTHING, Gateway, wait};

const WITHIN: Duration = Duration::from_secs(10);
/// How long the upstream waits for what must not come.
const PATIENCE: Duration = Duration::from_millis(300);
const PODS: &str = "/api/v1/namespaces/default/pods";
const HELLO: &[u8] = b"hello";

/// A kube-apiserver as far as upgrades go. What it does depends on the name of the pod.
struct Upstream {
    address: SocketAddr,
    told: Receiver<Told>,
}

/// What the upstream sees.
#[derive(Debug, PartialEq)]
enum Told {
    /// The head of a request.
    Head(Vec<String>),
    /// What came after that before it was answered, or the connection's end.
    Early(Option<Vec<u8>>),
    /// What came on a stream until the client ended it.
    Stream(Vec<u8>),
}

impl Upstream {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, told) = mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let sender = sender.clone();
                std::thread::spawn(move || serve(stream.unwrap(), &sender));
            }
        });
        Self { address, told }
    }

    fn next(&self) -> Told {
        self.told.recv_timeout(WITHIN).unwrap()
    }

    fn head(&self) -> Vec<String> {
        match self.next() {
            Told::Head(lines) => lines,
            other => panic!("{other:?}"),
        }
    }
}

fn serve(stream: TcpStream, told: &Sender<Told>) {
    stream.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    if reader.fill_buf().is_ok_and(|bytes| bytes.starts_with(b"PRI ")) {
        // Ends when the gateway does, in the middle of a frame as it may be.
        let _ = answer_probes(reader, stream);
        return;
    }
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap() == 0 {
            return;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    told.send(Told::Head(lines.clone())).unwrap();
    // Nothing of the stream may come before it is agreed to.
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    match reader.fill_buf() {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        early => return told.send(Told::Early(early.map(<[u8]>::to_vec).ok())).unwrap(),
    }
    stream.set_read_timeout(None).unwrap();
    let protocol = lines.iter().find_map(|line| line.strip_prefix("upgrade: ")).unwrap_or("none").to_owned();
    talk(&lines[0], &protocol, reader, stream, told);
}

fn talk(request: &str, protocol: &str, mut reader: BufReader<TcpStream>, mut stream: TcpStream, told: &Sender<Told>) {
    let agreed = |protocol: &str| {
        let head = format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n");
        [head.as_bytes(), b"X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n", HELLO].concat()
    };
    let mut received = Vec::new();
    if request.contains("/refuses/") {
        let body = "{\"kind\":\"Status\",\"code\":403,\"message\":\"no exec for you\"}";
        let head =
            format!("HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: {}", body.len());
        stream.write_all(format!("{head}\r\nX-Remote-User: admin\r\n\r\n{body}").as_bytes()).unwrap();
    } else if request.contains("/misunderstands/") {
        stream.write_all(&agreed("h2c")).unwrap();
    } else if request.contains("/breaks/") {
        // Ends here.
    } else if request.contains("/ends-first/") {
        stream.write_all(&agreed(protocol)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        reader.read_to_end(&mut received).unwrap();
        told.send(Told::Stream(received)).unwrap();
    } else {
        stream.write_all(&agreed(protocol)).unwrap();
        let mut buffer = [0; 4096];
        // A client that is gone may be seen as an error.
        while let Ok(length @ 1..) = reader.read(&mut buffer) {
            received.extend_from_slice(&buffer[..length]);
            stream.write_all(&buffer[..length]).unwrap();
        }
        told.send(Told::Stream(received)).unwrap();
        let _ = stream.write_all(b"bye");
    }
}

/// HTTP/2 as far as it takes to answer 200 to everything, so that the gateway finds this upstream well.
fn answer_probes(mut reader: BufReader<TcpStream>, mut stream: TcpStream) -> std::io::Result<()> {
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const ACK: u8 = 1;
    const END: u8 = 1 | 4;
    // The first entry of HPACK's table with a status: 200.
    const STATUS_200: &[u8] = &[0x88];
    let frame = |kind: u8, flags: u8, id: &[u8], payload: &[u8]| {
        [&[0, 0, payload.len() as u8, kind, flags][..], id, payload].concat()
    };
    let none = &[0; 4];
    reader.read_exact(&mut [0; 24])?;
    stream.write_all(&frame(SETTINGS, 0, none, &[]))?;
    loop {
        let mut head = [0; 9];
        reader.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        reader.read_exact(&mut payload)?;
        match (head[3], head[4] & ACK) {
            (HEADERS, _) => stream.write_all(&frame(HEADERS, END, &head[5..], STATUS_200))?,
            (SETTINGS, 0) => stream.write_all(&frame(SETTINGS, ACK, none, &[]))?,
            (PING, 0) => stream.write_all(&frame(PING, ACK, none, &payload))?,
            _ => {}
        }
    }
}

/// A gateway, and a client of it.
struct Fixture {
    gateway: Gateway,
    upstream: Upstream,
    authority: Authority,
    alice: Identity,
    // The files above are in it.
    _folder: Folder,
}

impl Fixture {
    fn start() -> Self {
        let folder = Folder::new("upgrade").unwrap();
        let authority = Authority::new(&folder, "authority").unwrap();
        let alice = authority.client(&folder, "alice", "developers").unwrap();
        let upstream = Upstream::start();
        // Nobody listens at the second one, and requests that come there go to the first.
        let endpoints = [format!("http://{}", upstream.address), "http://127.0.0.1:1".to_owned()];
        let deny = "  access:\n    deny:\n    - verbs: ['*']\n      apiGroups: ['']\n      resources: [pods/exec]\n      \
                    resourceNames: [denied]\n";
        let gateway = Gateway::start(&authority, &endpoints, &format!("{EVERYTHING}{deny}"));
        Self { gateway, upstream, authority, alice, _folder: folder }
    }

    /// Sends a request for an upgrade, and what follows it at once.
    fn send(&self, method: &str, pod: &str, protocol: &str, headers: &str, follows: &[u8]) -> Connection {
        let mut connection = Connection::open(self.gateway.address, &self.authority, &self.alice, WITHIN).unwrap();
        let head = format!(
            "{method} {PODS}/{pod}/exec?command=ls&command=-l%2Fa&stdout=1 HTTP/1.1\r\nHost: {CLUSTER}\r\n\
             Connection: Upgrade\r\nUpgrade: {protocol}\r\n{headers}\r\n"
        );
        connection.write_all(&[head.as_bytes(), follows].concat()).unwrap();
        connection
    }

    /// Upgraded connections, as the gateway counts them.
    fn upgrades(&self) -> u64 {
        self.gateway.endpoints().iter().map(|endpoint| endpoint["upgrades"].as_u64().unwrap()).sum()
    }
}

/// The lines of an answer's head.
fn read_head(connection: &mut Connection) -> Vec<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        connection.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap().trim_end().lines().map(str::to_owned).collect()
}

fn read(connection: &mut Connection, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    connection.read_exact(&mut bytes).unwrap();
    bytes
}

fn read_rest(connection: &mut Connection) -> Vec<u8> {
    let mut bytes = Vec::new();
    connection.read_to_end(&mut bytes).unwrap();
    bytes
}

/// The values of a header, whatever the case of its name.
fn values<'a>(head: &'a [String], name: &str) -> Vec<&'a str> {
    let headers = head.iter().skip(1).filter_map(|line| line.split_once(": "));
    headers.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
}

#[test]
fn bytes_pass_both_ways_once_the_upstream_has_agreed() {
    let fixture = Fixture::start();
    let spoofed = "X-Remote-User: admin\r\nX-Remote-Group: system:masters\r\nX-Forwarded-For: 1.2.3.4\r\n\
                   Authorization: Basic YTpi\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                   Sec-WebSocket-Protocol: v5.channel.k8s.io, v4.channel.k8s.io\r\n";
    for (method, protocol) in [("GET", "websocket"), ("POST", "SPDY/3.1"), ("POST", "SPDY/3.1"), ("GET", "websocket")] {
        let headers = if method == "POST" { &format!("{spoofed}Content-Length: 0\r\n") } else { spoofed };
        let mut client = fixture.send(method, "talks", protocol, headers, b"early");

        let seen = fixture.upstream.head();
        assert_eq!(seen[0], format!("{method} {PODS}/talks/exec?command=ls&command=-l%2Fa&stdout=1 HTTP/1.1"));
        assert_eq!(values(&seen, "host"), [fixture.upstream.address.to_string()]);
        assert_eq!(values(&seen, "connection"), ["Upgrade"]);
        assert_eq!(values(&seen, "upgrade"), [protocol]);
        assert_eq!(values(&seen, "impersonate-user"), ["alice"]);
        assert_eq!(values(&seen, "impersonate-group"), ["developers", "system:authenticated"]);
        assert_eq!(values(&seen, "x-forwarded-for"), ["127.0.0.1"]);
        assert_eq!(values(&seen, "sec-websocket-protocol"), ["v5.channel.k8s.io, v4.channel.k8s.io"]);
        assert_eq!(values(&seen, "sec-websocket-key").len(), 1);
        assert_eq!(values(&seen, "audit-id").len(), 1);
        for gone in ["x-remote-user", "x-remote-group", "authorization"] {
            assert!(values(&seen, gone).is_empty(), "{seen:?}");
        }

        let head = read_head(&mut client);
        assert!(head[0].starts_with("HTTP/1.1 101 "), "{head:?}");
        assert_eq!(values(&head, "upgrade"), [protocol]);
        assert_eq!(values(&head, "x-stream-protocol-version"), ["v4.channel.k8s.io"]);
        assert_eq!(read(&mut client, HELLO.len()), HELLO);
        assert_eq!(read(&mut client, 5), b"early");
        assert_eq!(fixture.upgrades(), 1);
        let mut sent = b"early".to_vec();
        for round in 0..40_u8 {
            let piece: Vec<u8> = (0..20_000_u32).map(|number| number as u8 ^ round).collect();
            client.write_all(&piece).unwrap();
            assert!(read(&mut client, piece.len()) == piece, "round {round}");
            sent.extend(piece);
        }
        // The end of one direction: what comes on the other one still comes.
        client.end().unwrap();
        assert_eq!(read_rest(&mut client), b"bye");
        assert!(fixture.upstream.next() == Told::Stream(sent));
    }
}

#[test]
fn the_upstream_may_end_its_direction_first() {
    let fixture = Fixture::start();
    let mut client = fixture.send("GET", "ends-first", "websocket", "", b"");
    fixture.upstream.head();
    assert!(read_head(&mut client)[0].starts_with("HTTP/1.1 101 "));
    assert_eq!(read_rest(&mut client), HELLO);
    client.write_all(b"late").unwrap();
    client.end().unwrap();
    assert_eq!(fixture.upstream.next(), Told::Stream(b"late".to_vec()));
}

#[test]
fn a_client_that_vanishes_is_gone_for_the_upstream_too() {
    let fixture = Fixture::start();
    let mut client = fixture.send("GET", "talks", "websocket", "", b"");
    fixture.upstream.head();
    assert!(read_head(&mut client)[0].starts_with("HTTP/1.1 101 "));
    drop(client);
    assert_eq!(fixture.upstream.next(), Told::Stream(Vec::new()));
    wait("the gateway lets the connection go", || fixture.upgrades() == 0);
}

#[test]
fn what_is_not_agreed_to_is_no_stream() {
    let fixture = Fixture::start();
    // An answer of the upstream is the client's, and nothing that follows the request goes to the upstream, which
    // checks that.
    let mut client = fixture.send("POST", "refuses", "SPDY/3.1", "Content-Length: 0\r\n", b"early");
    let head = read_head(&mut client);
    assert!(head[0].starts_with("HTTP/1.1 403 "), "{head:?}");
    assert_eq!(values(&head, "content-type"), ["application/json"]);
    let length: usize = values(&head, "content-length")[0].parse().unwrap();
    assert!(read(&mut client, length).ends_with(br#""message":"no exec for you"}"#));
    fixture.upstream.head();
    // All of it was passed on.
    let mut end = None;
    wait("it is logged", || {
        let lines = fixture.gateway.access_log();
        end = lines
            .iter()
            .find(|line| line["target"].as_str().unwrap().contains("refuses"))
            .map(|line| line["end"].clone());
        end.is_some()
    });
    assert_eq!(end.unwrap(), "finished");

    for pod in ["misunderstands", "breaks"] {
        let mut client = fixture.send("GET", pod, "websocket", "", b"early");
        let head = read_head(&mut client);
        assert!(head[0].starts_with("HTTP/1.1 502 "), "{pod}: {head:?}");
        fixture.upstream.head();
    }

    // A body, and what the rules do not let in: nothing of it reaches the upstream.
    let mut client = fixture.send("POST", "talks", "SPDY/3.1", "Content-Length: 5\r\n", b"early");
    assert!(read_head(&mut client)[0].starts_with("HTTP/1.1 400 "));
    let mut client = fixture.send("GET", "denied", "websocket", "", b"");
    assert!(read_head(&mut client)[0].starts_with("HTTP/1.1 403 "));
    assert!(fixture.upstream.told.recv_timeout(PATIENCE).is_err());
}

#[test]
fn a_stream_counts_as_a_connection_and_goes_on_while_the_gateway_drains() {
    let mut fixture = Fixture::start();
    let mut client = fixture.send("GET", "talks", "websocket", "", b"");
    fixture.upstream.head();
    assert!(read_head(&mut client)[0].starts_with("HTTP/1.1 101 "));
    assert_eq!(read(&mut client, HELLO.len()), HELLO);
    assert_eq!(fixture.gateway.metric("kubegateway_proxy_connections"), 1.0);
    assert_eq!(fixture.gateway.metric("kubegateway_proxy_upgraded_connections"), 1.0);
    let (address, process) = (fixture.gateway.address, &mut fixture.gateway.process);
    std::thread::scope(|scope| {
        let stopped = scope.spawn(|| process.stop(WITHIN));
        wait("the gateway takes no new connections", || TcpStream::connect(address).is_err());
        for _ in 0..3 {
            client.write_all(b"more").unwrap();
            assert_eq!(read(&mut client, 4), b"more");
        }
        client.end().unwrap();
        assert_eq!(read_rest(&mut client), b"bye");
        assert!(stopped.join().unwrap().success());
    });
}
