//! Everything around the store that fails while it runs: disks, clients, other processes, certificates that end.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use kubewharf_etcd_api::etcdserverpb::watch_request::RequestUnion;
use kubewharf_etcd_api::etcdserverpb::{
    AlarmRequest, AlarmType, CompactionRequest, RangeRequest, WatchCreateRequest, WatchRequest, WatchResponse,
};
use kubewharf_testkit::address::free_port;
use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::pki::{Authority, Identity};
use kubewharf_testkit::process::{Process, Spec};
use kubewharf_testkit::store::{Etcdctl, Store, product};
use kubewharf_testkit::{http, usage};
use tonic::{Code, Status, Streaming};

use crate::client::{Client, compact, delete_range, put, range};

const SOON: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

/// A KubeBrain that runs by way of another program, and keeps its data in a folder that is the test's.
struct Brain {
    process: Process,
    spec: Spec,
    address: String,
}

impl Brain {
    /// Starts it behind the words of `way`, on `data`.
    fn start(folder: &Folder, way: &[&str], data: &Path, flags: &[&str]) -> Self {
        let address = free_port().to_string();
        let program = product().expect("the product is built");
        let mut words: Vec<String> = way.iter().map(|&word| word.to_owned()).collect();
        words.extend([program.display().to_string(), "brain".to_owned()]);
        let spec = Spec::new("brain", &words[0], folder.path())
            .args(&words[1..])
            .arg(format!("--data-dir={}", data.display()))
            .args([
                format!("--listen-client-urls=http://{address}"),
                format!("--advertise-client-urls=http://{address}"),
            ])
            .arg("--log-level=warn")
            .args(flags);
        let mut brain = Self { process: spec.start().expect("it can be executed"), spec, address };
        brain.wait();
        brain
    }

    fn wait(&mut self) {
        let address = &self.address;
        let answers = |_: &Process| http::get_plain(address, "/livez").is_ok_and(|answer| answer.contains("ok"));
        self.process.wait_until(SOON, answers).expect("it gets ready");
    }

    fn kill_and_start(&mut self) {
        self.process.kill();
        self.process = self.spec.start().expect("it can be executed");
        self.wait();
    }

    fn client(&self) -> Client {
        Client::new(&format!("http://{}", self.address))
    }
}

/// What was acknowledged.
type Acknowledged = BTreeMap<String, Vec<u8>>;

/// Writes until there is no room; everything but growth must go on then. `full` looks at the store while it is full. What
/// is left of the keys is returned.
async fn fill(client: &mut Client, full: impl AsyncFn(&mut Client)) -> Acknowledged {
    const VALUE_BYTES: usize = 60_000;
    let mut acknowledged = Acknowledged::new();
    let mut number = 0;
    let mut write = async |client: &mut Client, acknowledged: &mut Acknowledged| -> Result<(), Status> {
        let key = format!("k{number:06}");
        let mut value = key.clone().into_bytes();
        value.resize(VALUE_BYTES, b'.');
        client.kv.put(put(&key, &value)).await?;
        acknowledged.insert(key, value);
        number += 1;
        assert!(number < 20_000, "there is more room than there should be");
        Ok(())
    };
    let refusal = loop {
        if let Err(status) = write(client, &mut acknowledged).await {
            break status;
        }
    };
    let text = (refusal.code(), refusal.message());
    assert_eq!(text, (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"));
    assert!(acknowledged.len() > 100, "only {} writes went in", acknowledged.len());
    // It stays so, and reads go on.
    assert!(write(client, &mut acknowledged).await.is_err());
    assert_eq!(&read_all(client).await, &acknowledged);
    full(client).await;
    // So do deletions and compaction, and they make room.
    let keys: Vec<String> = acknowledged.keys().cloned().collect();
    for keys in keys[..keys.len() * 3 / 4].chunks(20) {
        let request = delete_range(&keys[0], &format!("{}\0", keys[keys.len() - 1]));
        let reply = client.kv.delete_range(request).await.expect("a deletion needs no room").into_inner();
        assert_eq!(reply.deleted, i64::try_from(keys.len()).expect("few keys"));
        keys.iter().for_each(|key| drop(acknowledged.remove(key)));
    }
    let reply =
        client.kv.range(RangeRequest { count_only: true, ..range("k", "l") }).await.expect("a read").into_inner();
    let newest = reply.header.expect("replies have headers").revision;
    let compaction = CompactionRequest { revision: newest, physical: true };
    client.kv.compact(compaction).await.expect("a compaction needs no room");
    let deadline = Instant::now() + SOON;
    while let Err(status) = write(client, &mut acknowledged).await {
        assert!(Instant::now() < deadline, "no room after compaction: {status}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for _ in 0..50 {
        write(client, &mut acknowledged).await.expect("most of the room is there again");
    }
    assert_eq!(&read_all(client).await, &acknowledged);
    acknowledged
}

async fn read_all(client: &mut Client) -> Acknowledged {
    let reply = client.kv.range(range("k", "l")).await.expect("a read").into_inner();
    let keys = reply.kvs.into_iter().map(|kv| (String::from_utf8_lossy(&kv.key).into_owned(), kv.value.to_vec()));
    keys.collect()
}

async fn fill_and_kill(way: &[&str], flags: &[&str]) {
    let folder = Folder::new("full").expect("a folder");
    let data = folder.path().join("data");
    let mut brain = Brain::start(&folder, way, &data, flags);
    let mut client = brain.client();
    let acknowledged = fill(&mut client, async |_| {}).await;
    brain.kill_and_start();
    assert_eq!(&read_all(&mut brain.client()).await, &acknowledged);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_map_stops_growth_alone() {
    fill_and_kill(&[], &["--lmdb-map-size-bytes=67108864"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_may_not_grow_stops_growth_alone() {
    // In units of 512 or, in some shells, 1024 bytes. The signal that goes with the limit is ignored, which is inherited.
    fill_and_kill(&["/bin/sh", "-c", "trap '' XFSZ; ulimit -f 131072; exec \"$@\"", "sh"], &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_quota_stops_growth_alone_and_is_an_alarm() {
    let folder = Folder::new("quota").expect("a folder");
    let data = folder.path().join("data");
    let mut brain = Brain::start(&folder, &[], &data, &["--quota-backend-bytes=33554432"]);
    let mut client = brain.client();
    let alarms = async |client: &mut Client| {
        let reply = client.maintenance.alarm(AlarmRequest::default()).await.expect("a list of alarms");
        reply.into_inner().alarms.into_iter().map(|alarm| alarm.alarm()).collect::<Vec<_>>()
    };
    assert_eq!(alarms(&mut client).await, []);
    let acknowledged = fill(&mut client, async |client| assert_eq!(alarms(client).await, [AlarmType::Nospace])).await;
    assert_eq!(alarms(&mut client).await, [], "the alarm ends with its reason");
    brain.kill_and_start();
    assert_eq!(&read_all(&mut brain.client()).await, &acknowledged);
}

/// How this machine lets a process have a file system of its own, as root or in a user namespace: the words before a
/// script whose first parameter is where it is mounted.
fn private_mounts() -> Option<Vec<&'static str>> {
    let ways: [&[&str]; 2] = [&["--mount"], &["--user", "--map-root-user", "--mount"]];
    let scratch = Folder::new("mount").expect("a folder");
    let way = ways.into_iter().find(|way| {
        let script = "mount -t tmpfs -o size=1m none \"$1\"";
        let mut command = Command::new("unshare");
        command.args(*way).args(["sh", "-c", script, "sh"]).arg(scratch.path());
        command.output().is_ok_and(|output| output.status.success())
    })?;
    Some([&["/usr/bin/env", "unshare"], way, &["sh", "-c"]].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_growth_alone() {
    // Where nobody may mount, the limit on the size of files above has to do.
    let Some(way) = private_mounts() else { return };
    let folder = Folder::new("disk").expect("a folder");
    let data = folder.path().join("data");
    fs::create_dir(&data).expect("a folder can have a folder");
    let data_text = data.display().to_string();
    let script = "set -e; mount -t tmpfs -o size=64m,mode=700 none \"$1\"; shift; exec \"$@\"";
    let way = [way.as_slice(), &[script, "sh", &data_text]].concat();
    let mut brain = Brain::start(&folder, &way, &data, &[]);
    let mut client = brain.client();
    let acknowledged = fill(&mut client, async |_| {}).await;
    // The file system ends with its last process, so what a kill would leave there is copied beforehand.
    brain.process.pause();
    let copy = folder.path().join("copy");
    fs::create_dir(&copy).expect("a folder can have a folder");
    for name in ["data.mdb", "journal-0", "journal-1"] {
        let inside = PathBuf::from(format!("/proc/{}/root{data_text}/{name}", brain.process.id()));
        fs::copy(&inside, copy.join(name)).expect("the file can be read from outside");
    }
    brain.process.kill();
    let brain = Brain::start(&folder, &[], &copy, &[]);
    assert_eq!(&read_all(&mut brain.client()).await, &acknowledged);
}

/// A watch of everything from a revision on.
async fn watch_all(client: &mut Client, start_revision: i64) -> Streaming<WatchResponse> {
    let create = WatchCreateRequest {
        key: b"\0".to_vec().into(),
        range_end: b"\0".to_vec().into(),
        start_revision,
        ..WatchCreateRequest::default()
    };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let requests = tonic::codegen::tokio_stream::StreamExt::chain(
        futures_util::stream::iter([request]),
        futures_util::stream::pending(),
    );
    client.watch.watch(requests).await.expect("a watch").into_inner()
}

/// Reads events until one of that revision; each of the revisions must come once, in order.
async fn read_until(watch: &mut Streaming<WatchResponse>, mut next: i64, last: i64) {
    while next <= last {
        let response = tokio::time::timeout(SOON, watch.message()).await.expect("events come");
        let response = response.expect("the watch goes on").expect("the watch goes on");
        assert!(!response.canceled, "{response:?}");
        for event in response.events {
            assert_eq!(event.kv.expect("an event has a key").mod_revision, next);
            next += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_reading_slows_nobody_and_misses_nothing() {
    const WRITES: i64 = 1500;
    const VALUE_BYTES: usize = 60_000;
    const SLOW: usize = 5;
    // More is written than the ring holds, so the slow ones must be served from the log in the end.
    let store = Store::start(&["--log-level=warn", "--watch-ring-bytes=8388608"]).expect("the store starts");
    let mut client = Client::new(&store.url());
    // Each has a connection of its own, whose buffers are full soon.
    let mut slow = Vec::new();
    for _ in 0..SLOW {
        let mut client = Client::new(&store.url());
        slow.push((watch_all(&mut client, 0).await, client));
    }
    let mut healthy = watch_all(&mut Client::new(&store.url()), 0).await;
    let write = async |client: &mut Client, count: i64| {
        let value = vec![b'x'; VALUE_BYTES];
        let begun = Instant::now();
        let mut last = 0;
        for number in 0..count {
            let reply = client.kv.put(put(&format!("k{}", number % 100), &value)).await.expect("a put").into_inner();
            last = reply.header.expect("replies have headers").revision;
        }
        (last, begun.elapsed())
    };
    // While all have room in their buffers.
    let (first, quick) = write(&mut client, 20).await;
    read_until(&mut healthy, 2, first).await;
    let before = usage::memory(store.id()).expect("the store runs").anonymous;
    let begun = Instant::now();
    let writing = async { write(&mut client, WRITES).await };
    let reading = read_until(&mut healthy, first + 1, first + WRITES);
    let ((last, took), ()) = tokio::join!(writing, reading);
    let heard = begun.elapsed();
    assert_eq!(last, first + WRITES);
    // Far from exact, for busy machines: slow readers that hold up others do so by seconds a write.
    let expected = quick * u32::try_from(WRITES / 20).expect("a small number") * 5 + Duration::from_secs(5);
    assert!(took < expected, "{WRITES} writes took {took:?}, 20 took {quick:?}");
    assert!(heard < took + Duration::from_secs(5), "the reading watch was {heard:?} behind");
    let grown = usage::memory(store.id()).expect("the store runs").anonymous.saturating_sub(before);
    // Held for each of them, this would be 430 MiB. What was written last is in memory for everyone: two deltas of 32 MiB.
    assert!(grown < (64 + 64) * MIB, "{} MiB are held for {SLOW} clients that do not read", grown / MIB);
    for (watch, _) in &mut slow {
        read_until(watch, 2, last).await;
    }
}

/// How many watches the store counts, in the words of etcd's metrics.
fn watchers(address: &str) -> u64 {
    let metrics = http::get_plain(address, "/metrics").expect("metrics are there");
    let line = metrics.lines().find_map(|line| line.strip_prefix("etcd_debugging_mvcc_watcher_total "));
    line.and_then(|value| value.trim().parse::<f64>().ok()).unwrap_or_else(|| panic!("no watchers in:\n{metrics}"))
        as u64
}

fn wait_for_watchers(address: &str, count: u64) {
    let deadline = Instant::now() + SOON;
    while watchers(address) != count {
        assert!(Instant::now() < deadline, "{} watches, not {count}", watchers(address));
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_client_that_is_gone_is_dropped_and_may_come_back() {
    let folder = Folder::new("gone").expect("a folder");
    let flags = ["--log-level=warn", "--grpc-keepalive-interval=1s", "--grpc-keepalive-timeout=1s"];
    let store = Store::start(&flags).expect("the store starts");
    let etcdctl = store.etcdctl().expect("etcdctl is there");
    // One that speaks HTTP/2 once and then is silent, as behind a network that is gone: only a ping finds that out.
    let mut silent = TcpStream::connect(store.address()).expect("the store listens");
    silent.set_read_timeout(Some(SOON)).expect("a socket takes a timeout");
    silent.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").expect("the store reads");
    // One that never says anything.
    let mut mute = TcpStream::connect(store.address()).expect("the store listens");
    mute.set_read_timeout(Some(SOON)).expect("a socket takes a timeout");

    let mut watch = etcdctl.start("watch", &folder, &["watch", "k"]).expect("etcdctl starts");
    wait_for_watchers(store.address(), 1);
    etcdctl.run(&["put", "k", "seen at once"]).expect("a put");
    watch.wait_for_log(SOON, "seen at once").expect("the watch has begun");
    // A process that is stopped keeps its connections open, but answers no ping.
    watch.pause();
    wait_for_watchers(store.address(), 0);
    etcdctl.run(&["put", "k", "seen later"]).expect("a put");
    watch.resume();
    watch.wait_for_log(SOON, "seen later").expect("the watch goes on where it was");
    wait_for_watchers(store.address(), 1);

    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).expect("the store closes the connection in good time");
    // A connection reset is an end as well.
    let _ = mute.read_to_end(&mut rest);
}

#[test]
fn a_second_process_on_the_same_data_is_refused() {
    let store = Store::brain(&["--log-level=warn"]).expect("the store starts");
    let folder = Folder::new("second").expect("a folder");
    let url = format!("http://{}", free_port());
    let mut second = Spec::new("second", product().expect("the product is built"), folder.path())
        .arg("brain")
        .arg(format!("--data-dir={}", store.data().display()))
        .args([format!("--listen-client-urls={url}"), format!("--advertise-client-urls={url}")])
        .start()
        .expect("it can be executed");
    let ended = second.wait_for_end(SOON).expect("it does not run");
    assert_eq!(ended.code(), Some(1));
    let log = second.log_text().expect("a log");
    let data = store.data().display().to_string();
    assert!(log.contains(&data) && log.contains(&store.id().to_string()), "who has which directory: {log}");
    assert_eq!(store.etcdctl().expect("etcdctl is there").run(&["put", "a", "1"]).expect("a put"), "OK\n");
}

/// A store that takes clients with a certificate only.
struct Secure {
    process: Process,
    address: String,
}

impl Secure {
    fn start(folder: &Folder, server: &Identity, clients: &Path) -> Self {
        let address = free_port().to_string();
        let url = format!("https://{address}");
        let mut process = Spec::new("brain", product().expect("the product is built"), folder.path())
            .arg("brain")
            .arg(format!("--data-dir={}", folder.path().join("data").display()))
            .args([format!("--listen-client-urls={url}"), format!("--advertise-client-urls={url}")])
            .arg(format!("--cert-file={}", server.certificate_path.display()))
            .arg(format!("--key-file={}", server.key_path.display()))
            .arg(format!("--trusted-ca-file={}", clients.display()))
            .arg("--client-cert-auth")
            .start()
            .expect("it can be executed");
        process.wait_for_log(SOON, "ready to serve client requests").expect("it gets ready");
        Self { process, address }
    }

    /// The words that make etcdctl a client of it.
    fn words(&self, authority: &Path, client: Option<&Identity>) -> Vec<String> {
        let mut words = vec![format!("--cacert={}", authority.display()), "--command-timeout=3s".to_owned()];
        if let Some(client) = client {
            words.push(format!("--cert={}", client.certificate_path.display()));
            words.push(format!("--key={}", client.key_path.display()));
        }
        words
    }

    fn run(&self, authority: &Path, client: Option<&Identity>, command: &[&str]) -> kubewharf_testkit::Result<String> {
        let words = self.words(authority, client);
        let words: Vec<&str> = words.iter().map(String::as_str).chain(command.iter().copied()).collect();
        Etcdctl::new(&format!("https://{}", self.address)).expect("etcdctl is there").run(&words)
    }
}

#[test]
fn certificates_are_required_and_are_replaced_while_it_runs() {
    let folder = Folder::new("tls").expect("a folder");
    let host = free_port().ip().to_string();
    let old = Authority::new(&folder, "old").expect("an authority");
    let clients = Authority::new(&folder, "clients").expect("an authority");
    let server = old.server(&folder, "server", &[&host]).expect("a certificate");
    let client = clients.client(&folder, "client", "tests").expect("a certificate");
    let stranger = old.client(&folder, "stranger", "tests").expect("a certificate");
    let mut store = Secure::start(&folder, &server, clients.certificate_path());
    assert_eq!(store.run(old.certificate_path(), Some(&client), &["put", "a", "1"]).expect("a put"), "OK\n");
    for (authority, identity, what) in [
        (old.certificate_path(), None, "a client without a certificate"),
        (old.certificate_path(), Some(&stranger), "a client of another authority"),
        (clients.certificate_path(), Some(&client), "a server of another authority"),
    ] {
        assert!(store.run(authority, identity, &["get", "a"]).is_err(), "{what} is refused");
    }
    // An open watch lives on through the new certificate.
    let words = store.words(old.certificate_path(), Some(&client));
    let words: Vec<&str> = words.iter().map(String::as_str).filter(|word| !word.contains("timeout")).collect();
    let etcdctl = Etcdctl::new(&format!("https://{}", store.address)).expect("etcdctl is there");
    let mut watch = etcdctl.start("watch", &folder, &[&words[..], &["watch", "a"]].concat()).expect("etcdctl starts");
    let begun = |watch: &Process| {
        store.run(old.certificate_path(), Some(&client), &["put", "a", "begun"]).expect("a put");
        watch.log_text().is_ok_and(|log| log.contains("begun"))
    };
    watch.wait_until(SOON, begun).expect("the watch begins");

    let new = Authority::new(&folder, "new").expect("an authority");
    assert!(store.run(new.certificate_path(), Some(&client), &["get", "a"]).is_err());
    // The same files, the certificate first: in between the two do not fit together.
    new.server(&folder, "server", &[&host]).expect("a certificate");
    let deadline = Instant::now() + SOON;
    while store.run(new.certificate_path(), Some(&client), &["get", "a"]).is_err() {
        assert!(Instant::now() < deadline, "the new certificate is not used");
    }
    assert!(store.run(old.certificate_path(), Some(&client), &["get", "a"]).is_err(), "the old certificate is gone");
    assert_eq!(store.run(new.certificate_path(), Some(&client), &["put", "a", "after"]).expect("a put"), "OK\n");
    watch.wait_for_log(SOON, "after").expect("the watch goes on");
    // Files that are no certificate change nothing.
    folder.write("server.crt", "no certificate").expect("a file can be written");
    store.process.wait_for_log(SOON, "the last good ones stay").expect("it complains");
    assert!(store.run(new.certificate_path(), Some(&client), &["get", "a"]).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compaction_under_a_slow_watch_is_told_to_it_alone() {
    let store = Store::start(&["--log-level=warn"]).expect("the store starts");
    let mut client = Client::new(&store.url());
    let value = vec![b'x'; 100_000];
    for number in 0..10 {
        client.kv.put(put(&format!("k{number}"), &value)).await.expect("a put");
    }
    let mut slow_client = Client::new(&store.url());
    let mut slow = watch_all(&mut slow_client, 2).await;
    let mut last = 0;
    for number in 0..400 {
        let reply = client.kv.put(put(&format!("k{number}"), &value)).await.expect("a put").into_inner();
        last = reply.header.expect("replies have headers").revision;
    }
    client.kv.compact(compact(last)).await.expect("a compaction");
    // It gets what was on its way, in order, and then either the rest or the word that the rest is gone.
    let mut next = 2;
    let canceled = loop {
        let response = tokio::time::timeout(SOON, slow.message()).await.expect("a response comes");
        let response = response.expect("the stream goes on").expect("the stream goes on");
        for event in &response.events {
            assert_eq!(event.kv.as_ref().expect("an event has a key").mod_revision, next);
            next += 1;
        }
        if response.canceled || next > last {
            break response;
        }
    };
    if canceled.canceled {
        assert_eq!(canceled.compact_revision, last);
    } else {
        assert_eq!(next, last + 1);
    }
    // The others go on.
    let mut fresh = watch_all(&mut client.clone(), last).await;
    read_until(&mut fresh, last, last).await;
}
