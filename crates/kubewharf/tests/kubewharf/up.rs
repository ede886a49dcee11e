//! `kubewharf up`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::process::Spec;
use kubewharf_testkit::tools::{self, Tool};

use super::{PROGRAM, wait_until};

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
    for _ in 0..2 {
        let mut check = spec(&folder, &data).arg("--check").start().unwrap();
        let ended = check.wait_for_end(WITHIN).expect("it ends by itself");
        let log = check.log_text().unwrap();
        assert!(ended.success(), "{log}");
        assert!(log.contains("checked: the namespace and all in it are deleted"), "{log}");
        assert_eq!(log.matches(" stopped after").count() % 3, 0, "{log}");
    }
}

#[test]
fn a_killed_control_plane_leaves_no_process_behind() {
    let folder = Folder::new("up-killed").unwrap();
    let mut up = spec(&folder, &folder.path().join("cluster")).start().unwrap();
    up.wait_for_log(WITHIN, "Ctrl-C stops everything").unwrap();
    let log = up.log_text().unwrap();
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
