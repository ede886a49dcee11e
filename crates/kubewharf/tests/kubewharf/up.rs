//! `kubewharf up`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::process::Spec;
use kubewharf_testkit::tools::{self, Tool};

use super::{PROGRAM, run, text, wait_until};

const WITHIN: Duration = Duration::from_secs(180);

/// A control plane in `data`, whose programs are there already.
fn spec(folder: &Folder, data: &Path) -> Spec {
    let tools = Tool::CLUSTER.iter().map(|tool| tools::shared(*tool).unwrap().parent().unwrap().to_owned());
    let path: Vec<PathBuf> =
        tools.chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())).collect();
    Spec::new("up", PROGRAM, folder.path())
        .args(["up", "--port=0"])
        .arg(format!("--data-dir={}", data.display()))
        .env("PATH", std::env::join_paths(path).unwrap())
}

#[test]
fn a_control_plane_comes_up_proves_itself_and_comes_up_again_with_its_data() {
    let folder = Folder::new("up").unwrap();
    let data = folder.path().join("cluster");
    for runs in 1..=2 {
        // What is said to stores elsewhere does not concern this one.
        let spec = spec(&folder, &data).arg("--check").env("ETCD_CONFIG_FILE", "/does/not/exist").env("ETCD_NAME", "x");
        let mut check = spec.start().unwrap();
        let ended = check.wait_for_end(WITHIN).expect("it ends by itself");
        // The runs share the log.
        let log = check.log_text().unwrap();
        assert!(ended.success(), "{log}");
        assert_eq!(log.matches("checked: the namespace and all in it are deleted").count(), runs, "{log}");
        assert_eq!(log.matches(" stopped after").count(), 3 * runs, "{log}");
        assert!(!log.contains(" killed"), "{log}");
    }
    let mut interrupted = spec(&folder, &data).arg("--check").start().unwrap();
    let is_ready = |line: &&str| line.starts_with("kubebrain ") && line.contains(" ready after");
    let starts = |log: &str| log.lines().filter(is_ready).count();
    interrupted.wait_until(WITHIN, |check| starts(&check.log_text().unwrap()) == 3).unwrap();
    let ended = interrupted.stop(WITHIN);
    let log = interrupted.log_text().unwrap();
    assert_eq!(ended.code(), Some(1), "{log}");
    assert!(log.contains("kubewharf up: interrupted before the check was through"), "{log}");
}

#[test]
fn a_control_plane_keeps_its_folder_and_its_store_to_itself_and_killed_leaves_no_process_behind() {
    let folder = Folder::new("up-killed").unwrap();
    let data = folder.path().join("cluster");
    let mut up = spec(&folder, &data).start().unwrap();
    up.wait_for_log(WITHIN, "Ctrl-C stops everything").unwrap();
    let log = up.log_text().unwrap();

    let kubeconfig = std::fs::read(data.join("kubeconfig")).unwrap();
    let other = Folder::new("up-second").unwrap();
    let mut second = spec(&other, &data).start().unwrap();
    assert_eq!(second.wait_for_end(WITHIN).expect("it ends by itself").code(), Some(1));
    let refused = second.log_text().unwrap();
    assert!(refused.contains(&format!("is up already, process {}: stop it", up.id())), "{refused}");
    assert_eq!(std::fs::read(data.join("kubeconfig")).unwrap(), kubeconfig);

    // Who may do everything in the cluster may still not go to the store.
    let store = std::fs::read_to_string(data.join("logs/kubebrain.log")).unwrap();
    let url = store.split_whitespace().find_map(|word| word.strip_prefix("--listen-client-urls=")).unwrap();
    let pki = |name: &str| data.join("pki").join(name).to_str().unwrap().to_owned();
    let log_as = |user: &str| {
        let (ca, cert, key) = (pki("kubebrain-ca.crt"), pki(&format!("{user}.crt")), pki(&format!("{user}.key")));
        run(&["brain", "log", "--endpoint", url, "--cacert", &ca, "--cert", &cert, "--key", &key, "--to=2"])
    };
    let known = log_as("kubebrain-client");
    assert!(known.status.success(), "{}", text(&known.stderr));
    assert_eq!(log_as("admin").status.code(), Some(1));

    let children: Vec<PathBuf> = log
        .lines()
        .filter_map(|line| line.rsplit_once(", process ")?.1.parse::<u32>().ok())
        .map(|process| PathBuf::from(format!("/proc/{process}")))
        .collect();
    assert_eq!(children.len(), 3, "{log}");
    assert!(children.iter().all(|child| child.exists()));
    up.kill();
    wait_until("all processes have ended", Duration::from_secs(60), || children.iter().all(|child| !is_alive(child)));
}

/// Whether there is such a process that has not ended: one that nobody has waited for yet is a zombie.
fn is_alive(process: &Path) -> bool {
    let status = std::fs::read_to_string(process.join("status")).unwrap_or_default();
    !status.is_empty() && !status.contains("State:\tZ")
}
