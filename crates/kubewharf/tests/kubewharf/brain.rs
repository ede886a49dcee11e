//! `kubewharf brain` and `kubewharf brain log`.

use std::path::Path;
use std::time::Duration;

use kubewharf_etcd_api::etcdserverpb::kv_client::KvClient;
use kubewharf_etcd_api::etcdserverpb::{CompactionRequest, PutRequest};
use kubewharf_testkit::address::free_port;
use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::pki::Authority;
use kubewharf_testkit::process::{Process, Spec};

use super::{PROGRAM, run, run_as, text};

const WITHIN: Duration = Duration::from_secs(60);
const READY: &str = "ready to serve client requests";

/// A served data directory, and its URL.
fn serve(folder: &Folder, name: &str, flags: &[String]) -> (Process, String) {
    let tls = flags.iter().any(|flag| flag.starts_with("--cert-file"));
    let url = format!("http{}://{}", if tls { "s" } else { "" }, free_port());
    let mut process = Spec::new(name, PROGRAM, folder.path())
        .arg("brain")
        .arg(format!("--data-dir={}", folder.path().join("data").display()))
        .arg(format!("--listen-client-urls={url}"))
        .arg(format!("--advertise-client-urls={url}"))
        .args(flags)
        .start()
        .unwrap();
    process.wait_for_log(WITHIN, READY).unwrap();
    (process, url)
}

/// Writes keys one after the other, then compacts at that revision if it is not 0.
fn write(url: &str, keys: &[&'static str], compact: i64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let channel = tonic::transport::Channel::from_shared(url.to_owned()).unwrap().connect().await.unwrap();
        let mut kv = KvClient::new(channel);
        for key in keys {
            kv.put(PutRequest { key: (*key).into(), value: "v".into(), ..PutRequest::default() }).await.unwrap();
        }
        if compact > 0 {
            kv.compact(CompactionRequest { revision: compact, physical: true }).await.unwrap();
        }
    });
}

/// The revisions in the output of `kubewharf brain log`.
fn revisions(lines: &str) -> Vec<i64> {
    let revision = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["revision"].as_i64().unwrap();
    lines.lines().map(revision).collect()
}

#[test]
fn started_as_etcd_it_tells_etcds_version_and_takes_etcds_flags() {
    let folder = Folder::new("as-etcd").unwrap();
    let etcd = folder.path().join("etcd");
    std::os::unix::fs::symlink(PROGRAM, &etcd).unwrap();
    let version = run_as(&etcd, &["--version"]);
    assert!(version.status.success());
    assert_eq!(text(&version.stdout).lines().next(), Some("etcd Version: 3.7.3"));
    assert_eq!(run(&["brain", "--version"]).stdout, version.stdout);
    let unknown = run_as(&etcd, &["--data-dri", "x"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert_eq!(text(&unknown.stderr), "kubewharf brain: --data-dri: is not a flag; did you mean --data-dir?\n");
}

#[test]
fn help_lists_flags_and_a_wrong_command_is_refused() {
    let help = text(&run(&["brain", "--help"]).stdout);
    assert!(help.contains("--listen-client-urls URLS"), "{help}");
    let top = text(&run(&["--help"]).stdout);
    assert!(top.contains("brain") && top.contains("up"), "{top}");
    assert_eq!(run(&["brian"]).status.code(), Some(2));
}

#[test]
fn the_log_is_printed_from_a_server_and_from_the_directory_of_a_stopped_one() {
    let folder = Folder::new("log").unwrap();
    let (mut process, url) = serve(&folder, "brain", &[]);
    let data = folder.path().join("data");
    let data = data.to_str().unwrap();
    write(&url, &["/a", "/b", "/c"], 0);

    let live = run(&["brain", "log", "--endpoint", &url]);
    assert_eq!(revisions(&text(&live.stdout)), [2, 3, 4], "{}", text(&live.stderr));
    let part = run(&["brain", "log", "--endpoint", &url, "--from=3", "--to=3"]);
    assert_eq!(revisions(&text(&part.stdout)), [3]);
    let locked = run(&["brain", "log", "--data-dir", data]);
    assert_eq!(locked.status.code(), Some(1));
    let holder = format!("data directory {data} is in use by process {}", process.id());
    assert_eq!(text(&locked.stderr), format!("kubewharf brain log: {holder}\n"));
    let second =
        run(&["brain", "--data-dir", data, "--listen-client-urls=http://127.0.0.1:0", "--advertise-client-urls="]);
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains(&holder), "{}", text(&second.stderr));

    write(&url, &[], 3);
    let gone = run(&["brain", "log", "--endpoint", &url, "--from=2"]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(
        text(&gone.stderr).ends_with("revision 2 is compacted: the log begins at revision 3\n"),
        "{}",
        text(&gone.stderr)
    );

    let ended = process.stop(WITHIN);
    assert!(ended.success(), "{ended}: {}", process.log_text().unwrap());
    let stopped = run(&["brain", "log", "--data-dir", data]);
    assert_eq!(revisions(&text(&stopped.stdout)), [3, 4], "{}", text(&stopped.stderr));
    let nothing = run(&["brain", "log", "--data-dir", folder.path().to_str().unwrap()]);
    assert!(text(&nothing.stderr).contains("is no data directory"), "{}", text(&nothing.stderr));
    assert!(!Path::new(folder.path()).join("data.mdb").exists(), "looking makes nothing");
}

#[test]
fn with_client_certificates_the_log_needs_one_too() {
    let folder = Folder::new("tls").unwrap();
    let authority = Authority::new(&folder, "authority").unwrap();
    let host = free_port().ip().to_string();
    let server = authority.server(&folder, "server", &[&host]).unwrap();
    let client = authority.client(&folder, "client", "group").unwrap();
    let (mut process, url) = serve(
        &folder,
        "brain",
        &[
            format!("--cert-file={}", server.certificate_path.display()),
            format!("--key-file={}", server.key_path.display()),
            format!("--trusted-ca-file={}", authority.certificate_path().display()),
            "--client-cert-auth".to_owned(),
        ],
    );
    let ca = authority.certificate_path().to_str().unwrap();
    let (cert, key) = (client.certificate_path.to_str().unwrap(), client.key_path.to_str().unwrap());
    let known = run(&["brain", "log", "--endpoint", &url, "--cacert", ca, "--cert", cert, "--key", key]);
    assert!(known.status.success(), "{}", text(&known.stderr));
    let unknown = run(&["brain", "log", "--endpoint", &url, "--cacert", ca]);
    assert_eq!(unknown.status.code(), Some(1), "{}", text(&unknown.stdout));
    let foreign = run(&["brain", "log", "--endpoint", &url, "--cert", cert, "--key", key]);
    assert_eq!(foreign.status.code(), Some(1), "the authority is not the system's");
    assert!(process.stop(WITHIN).success());
}

#[test]
fn a_store_that_was_killed_starts_again_with_everything_and_logs_where_it_is_told() {
    let folder = Folder::new("killed").unwrap();
    let log = folder.path().join("own.log");
    let flags = [format!("--log-outputs={}", log.display()), "--log-format=console".to_owned()];
    let url = format!("http://{}", free_port());
    let spec = Spec::new("brain", PROGRAM, folder.path())
        .arg("brain")
        .arg(format!("--data-dir={}", folder.path().join("data").display()))
        .arg(format!("--listen-client-urls={url}"))
        .arg(format!("--advertise-client-urls={url}"))
        .args(&flags);
    let ready_lines = || std::fs::read_to_string(&log).unwrap_or_default().matches(READY).count();
    let mut process = spec.start().unwrap();
    super::wait_until("the log has the line", WITHIN, || ready_lines() == 1);
    write(&url, &["/a", "/b"], 0);
    process.kill();
    assert_eq!(process.log_text().unwrap(), "", "nothing goes to the standard outputs");
    let mut process = spec.start().unwrap();
    super::wait_until("the log has the line again", WITHIN, || ready_lines() == 2);
    let live = run(&["brain", "log", "--endpoint", &url]);
    assert_eq!(revisions(&text(&live.stdout)), [2, 3]);
    assert!(process.stop(WITHIN).success());
}
