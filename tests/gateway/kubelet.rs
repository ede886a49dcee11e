//! What kube-apiservers pass on to kubelets: exec, attach, copies, logs and forwarded ports.
//!
//! Each is tried with both protocols between kubectl and the kube-apiserver, and with both kinds of kubelet: those to
//! which WebSockets are passed on as they are, and those for which the kube-apiserver translates them to SPDY.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use kubewharf_testkit::address::free_port;
use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::go_program;
use kubewharf_testkit::http::Client;
use kubewharf_testkit::kubernetes::Kubectl;
use kubewharf_testkit::process::{Process, Spec};
use serde_json::{Value, json};

use crate::fixture::{EVERYTHING, Fixture, WITHIN, wait};

static PROGRAM: LazyLock<PathBuf> =
    LazyLock::new(|| go_program::build("kubelet", &mut |line| eprintln!("{line}")).unwrap());
const PODS: &str = "/api/v1/namespaces/default/pods";
/// To that kubelet a kube-apiserver passes WebSockets on as they are.
const NEW: &str = "new";
/// For that one it translates them to SPDY.
const OLD: &str = "old";

/// How a stream gets from kubectl to the kubelet of the pod's node, which has the pod's name.
#[derive(Clone, Copy, Debug)]
struct Way {
    websockets: bool,
    pod: &'static str,
}

const WAYS: [Way; 4] = [
    Way { websockets: true, pod: NEW },
    Way { websockets: true, pod: OLD },
    Way { websockets: false, pod: NEW },
    Way { websockets: false, pod: OLD },
];

/// A cluster with two nodes, which are one program.
struct Cluster {
    // In the order in which they must end.
    kubelet: Process,
    fixture: Fixture,
    kubectl: Kubectl,
    /// What the containers have logged.
    log: PathBuf,
}

impl Cluster {
    fn start() -> Self {
        let fixture = Fixture::start(EVERYTHING);
        let folder = &fixture.gateway.folder;
        let address = free_port();
        let authority = fixture.apiservers[0].authority();
        let server = authority.server(folder, "kubelet", &[&address.ip().to_string()]).unwrap();
        let log = folder.write("container", "first line\n").unwrap();
        let mut kubelet = Spec::new("kubelet", &*PROGRAM, folder.path())
            .arg(format!("-listen={address}"))
            .arg(format!("-cert={}", server.certificate_path.display()))
            .arg(format!("-key={}", server.key_path.display()))
            .arg(format!("-client-ca={}", authority.certificate_path().display()))
            .arg(format!("-log={}", log.display()))
            .start()
            .unwrap();
        kubelet.wait_for_log(WITHIN, "serving kube-apiservers").unwrap();
        let admin = fixture.admin();
        for (name, features) in [(NEW, json!(["ExtendWebSocketsToKubelet"])), (OLD, json!([]))] {
            admin.post("/api/v1/nodes", &node(name, address, &features)).unwrap().ok().unwrap();
            run_pod(&admin, name);
        }
        let kubectl = fixture.kubectl();
        Self { kubelet, fixture, kubectl, log }
    }

    /// kubectl, which speaks that protocol.
    fn command(&self, way: Way, arguments: &[&str]) -> Command {
        let mut command = self.kubectl.command(arguments);
        for name in ["KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "KUBECTL_PORT_FORWARD_WEBSOCKETS"] {
            command.env(name, way.websockets.to_string());
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs kubectl with an input, which ends.
    fn run(&self, way: Way, arguments: &[&str], input: &[u8]) -> Output {
        let mut child = Killed(self.command(way, arguments).spawn().unwrap());
        let mut stdin = child.0.stdin.take().unwrap();
        let (mut stdout, mut stderr) = (child.0.stdout.take().unwrap(), child.0.stderr.take().unwrap());
        std::thread::scope(|scope| {
            // It may end without reading all of that.
            scope.spawn(move || drop(stdin.write_all(input)));
            let errors = scope.spawn(move || read_all(&mut stderr));
            let output = scope.spawn(move || read_all(&mut stdout));
            let status = child.wait();
            Output { status, stdout: output.join().unwrap(), stderr: errors.join().unwrap() }
        })
    }

    /// The same with an end that must be good.
    fn run_well(&self, way: Way, arguments: &[&str], input: &[u8]) -> Vec<u8> {
        let output = self.run(way, arguments, input);
        assert!(output.status.success(), "{way:?} {arguments:?} {output:?}");
        output.stdout
    }

    /// Checks which protocol the gateway and the kubelet were last spoken to with for that.
    fn assert_spoken(&self, way: Way, subresource: &str, path: &str) {
        let part = format!("/pods/{}/{subresource}", way.pod);
        // kubectl says it with the method.
        let (method, verb) = if way.websockets { ("GET", "get") } else { ("POST", "create") };
        let is_it = |line: &Value| line["target"].as_str().unwrap().contains(&part) && line["method"] == method;
        // It is written when the stream has ended.
        wait("the access log has it", || self.fixture.gateway.access_log().iter().any(is_it));
        let log = self.fixture.gateway.access_log();
        let line = log.iter().rfind(|line| is_it(line)).unwrap();
        assert_eq!(
            (&line["status"], &line["user"], &line["verb"]),
            (&json!(101), &json!("admin"), &json!(verb)),
            "{line}"
        );
        assert!(line["answer_bytes"].as_u64().unwrap() > 0, "{line}");
        let part = format!(" /{path}/default/{}", way.pod);
        let log = self.kubelet.log_text().unwrap();
        let line = log.lines().rev().find(|line| line.contains(&part)).unwrap();
        let protocol = if way.websockets && way.pod == NEW { "websocket" } else { "SPDY/3.1" };
        assert!(line.ends_with(&format!("upgrade={protocol:?}")), "{way:?} {line}");
    }
}

fn node(name: &str, address: SocketAddr, features: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "status": {
            "addresses": [{"type": "InternalIP", "address": address.ip()}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": address.port()}},
            "declaredFeatures": features,
        },
    })
}

/// Makes a pod that runs on the node of the same name.
fn run_pod(admin: &Client, name: &str) {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"nodeName": name, "containers": [{"name": "main", "image": "none", "stdin": true}]},
    });
    admin.post(PODS, &pod).unwrap().ok().unwrap();
    let running = json!({"status": {
        "phase": "Running",
        "containerStatuses": [{
            "name": "main", "ready": true, "image": "none", "imageID": "", "restartCount": 0,
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
        }],
    }});
    let path = format!("{PODS}/{name}/status");
    admin.patch(&path, "application/merge-patch+json", &running).unwrap().ok().unwrap();
}

/// A child that does not outlive the test.
struct Killed(Child);

impl Killed {
    fn wait(&mut self) -> std::process::ExitStatus {
        let deadline = Instant::now() + WITHIN;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            if Instant::now() > deadline {
                // So that those who read its output see an end.
                self.0.kill().unwrap();
                return self.0.wait().unwrap();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn read_all(from: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Bytes without a pattern.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

#[test]
fn exec_attach_and_cp_pass_every_byte_and_every_end_on() {
    let cluster = Cluster::start();
    let folder = Folder::new("copies").unwrap();
    for way in WAYS {
        let exec = |command: &[&'static str]| [&["exec", way.pod, "--"][..], command].concat();
        let script = "echo out; echo err >&2; exit 7";
        let output = cluster.run(way, &exec(&["sh", "-c", script]), b"");
        assert_eq!(output.status.code(), Some(7), "{way:?} {output:?}");
        assert_eq!(output.stdout, b"out\n", "{way:?}");
        assert!(output.stderr.starts_with(b"err\n"), "{way:?} {output:?}");
        cluster.assert_spoken(way, "exec", "exec");

        // The command ends when its input does, and not before.
        let sent = noise(10 << 20, 1);
        let received = cluster.run_well(way, &["exec", "-i", way.pod, "--", "cat"], &sent);
        assert!(received == sent, "{way:?}: {} bytes of {}", received.len(), sent.len());

        let received = cluster.run_well(way, &["attach", "-i", "-q", way.pod], &sent[..1 << 20]);
        assert!(received == sent[..1 << 20], "{way:?}: {} bytes", received.len());
        cluster.assert_spoken(way, "attach", "attach");

        let name = format!("{}-{}", way.pod, way.websockets);
        let (from, there, back) = (folder.path().join(&name), folder.path().join(name + "-there"), "back");
        std::fs::create_dir(&from).unwrap();
        std::fs::write(from.join("noise"), &sent[..3 << 20]).unwrap();
        std::fs::write(from.join("empty"), "").unwrap();
        let remote = format!("{}:{}", way.pod, there.display());
        cluster.run_well(way, &["cp", from.to_str().unwrap(), &remote], b"");
        cluster.run_well(way, &["cp", &remote, from.join(back).to_str().unwrap()], b"");
        for copy in [&there, &from.join(back)] {
            assert!(std::fs::read(copy.join("noise")).unwrap() == sent[..3 << 20], "{way:?}");
            assert_eq!(std::fs::read(copy.join("empty")).unwrap(), b"", "{way:?}");
        }

        // The size of the client's terminal, which `script` makes, is passed on.
        let command = cluster.command(way, &["exec", "-it", way.pod, "--", "size"]);
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words: Vec<_> = words.map(|word| word.to_str().unwrap()).collect();
        let line = format!("stty cols 77 rows 33; {}", words.join(" "));
        let mut terminal = Command::new("script");
        terminal
            .args(["-qec", &line, "/dev/null"])
            .envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = terminal.stdin(Stdio::null()).output().expect("script is there: install the package bsdutils");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("77 columns, 33 lines"), "{way:?} {text}");
    }
    // No stream is left open.
    let upgrades = || cluster.fixture.gateway.metric("kubegateway_proxy_upgraded_connections");
    wait("all streams have ended", || upgrades() == 0.0);
}

/// A server that says back what it is told while it is told, and at the end how much that was.
fn serve_echoes() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                // A client that is gone may be seen as an error.
                let copied = std::io::copy(&mut stream.try_clone().unwrap(), &mut stream);
                if let Ok(length) = copied {
                    let _ = stream.write_all(format!("{length} bytes").as_bytes());
                }
            });
        }
    });
    address
}

/// A `kubectl port-forward`, and where it listens.
fn forward(cluster: &Cluster, way: Way, to: SocketAddr) -> (Killed, SocketAddr) {
    let pod = format!("pod/{}", way.pod);
    let arguments = ["port-forward", &pod, &format!(":{}", to.port()), "--address=127.0.0.1"];
    let mut child = Killed(cluster.command(way, &arguments).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(child.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let address = line.split(' ').find_map(|word| word.parse().ok());
    (child, address.unwrap_or_else(|| panic!("{way:?}: {line}")))
}

#[test]
fn logs_are_followed_and_ports_forwarded_for_many_connections_at_once() {
    let cluster = Cluster::start();
    let echoes = serve_echoes();
    for way in WAYS {
        let (forwarder, address) = forward(&cluster, way, echoes);
        std::thread::scope(|scope| {
            for number in 0..6 {
                scope.spawn(move || {
                    let sent = noise(1 << 20, 77 + number);
                    let mut stream = TcpStream::connect(address).unwrap();
                    stream.set_read_timeout(Some(WITHIN)).unwrap();
                    let mut back = stream.try_clone().unwrap();
                    let reader = std::thread::spawn(move || read_all(&mut back));
                    stream.write_all(&sent).unwrap();
                    // Only this direction ends: the last of the answer comes after that.
                    stream.shutdown(Shutdown::Write).unwrap();
                    let received = reader.join().unwrap();
                    let end = format!("{} bytes", sent.len());
                    assert!(received == [&sent[..], end.as_bytes()].concat(), "{way:?}: {} bytes", received.len());
                });
            }
        });
        drop(forwarder);
        cluster.assert_spoken(way, "portforward", "portForward");
    }

    let whole = cluster.kubectl.run(&["logs", NEW]).unwrap();
    assert_eq!(whole, "first line\n");
    let mut follow = Follow::start(&cluster, "follow");
    for number in 0..20 {
        follow.expect(&cluster, &format!("line {number} {}", "x".repeat(number * 1000)));
    }
}

/// A `kubectl logs -f`.
struct Follow {
    process: Process,
}

impl Follow {
    fn start(cluster: &Cluster, name: &str) -> Self {
        let folder = &cluster.fixture.gateway.folder;
        let mut process = cluster.kubectl.start(name, folder, &["logs", "-f", OLD]).unwrap();
        process.wait_for_log(WITHIN, "first line\n").unwrap();
        Self { process }
    }

    /// Has a container log a line, which must come.
    fn expect(&mut self, cluster: &Cluster, line: &str) {
        let mut log = std::fs::File::options().append(true).open(&cluster.log).unwrap();
        writeln!(log, "{line}").unwrap();
        self.process.wait_for_log(WITHIN, &format!("{line}\n")).unwrap();
    }
}

/// A `kubectl exec -i` of a command that says back what it is told.
struct Conversation {
    child: Killed,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Conversation {
    fn start(cluster: &Cluster, way: Way) -> Self {
        let mut child = Killed(cluster.command(way, &["exec", "-i", way.pod, "--", "cat"]).spawn().unwrap());
        let (stdin, stdout) = (child.0.stdin.take().unwrap(), child.0.stdout.take().unwrap());
        Self { child, stdin, stdout: BufReader::new(stdout) }
    }

    fn say(&mut self, what: &str) {
        writeln!(self.stdin, "{what}").unwrap();
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        assert_eq!(line.trim_end(), what);
    }

    fn end(mut self) {
        drop(self.stdin);
        assert!(self.child.wait().success());
        assert_eq!(read_all(&mut self.stdout), b"");
    }
}

#[test]
fn no_stream_notices_a_new_configuration() {
    let cluster = Cluster::start();
    let echoes = serve_echoes();
    let mut conversations: Vec<_> = WAYS.into_iter().map(|way| Conversation::start(&cluster, way)).collect();
    let forwarders: Vec<_> = WAYS.into_iter().map(|way| forward(&cluster, way, echoes)).collect();
    let mut connections: Vec<_> = forwarders.iter().map(|(_, address)| TcpStream::connect(address).unwrap()).collect();
    let mut follow = Follow::start(&cluster, "follow");
    let endpoints = cluster.fixture.endpoints();
    for round in 0..8 {
        let what = format!("round {round}");
        conversations.iter_mut().for_each(|conversation| conversation.say(&what));
        for connection in &mut connections {
            connection.set_read_timeout(Some(WITHIN)).unwrap();
            connection.write_all(what.as_bytes()).unwrap();
            let mut back = vec![0; what.len()];
            connection.read_exact(&mut back).unwrap();
            assert_eq!(back, what.as_bytes());
        }
        follow.expect(&cluster, &what);
        // Another configuration, also one in which the streams' endpoint is missing.
        let spec = format!(
            "{EVERYTHING}  access:\n    deny:\n    - verbs: [get]\n      apiGroups: ['']\n      resources: [secrets]\n      \
             resourceNames: [round-{round}]\n"
        );
        let generation = cluster.fixture.gateway.status()["generation"].clone();
        let some = if round % 3 == 2 { &endpoints[..] } else { &endpoints[round % 3..=round % 3] };
        cluster.fixture.gateway.configure(some, &spec);
        wait("it is in use", || cluster.fixture.gateway.status()["generation"] != generation);
    }
    conversations.into_iter().for_each(Conversation::end);
}
