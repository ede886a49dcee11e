//! `kubewharf up`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::kubernetes::Kubectl;
use kubewharf_testkit::process::Spec;
use kubewharf_testkit::tikv::Tikv;
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
        assert_eq!(log.matches("checked: the gateway uses both kube-apiservers").count(), runs, "{log}");
        assert_eq!(log.matches("checked: the tenant has namespaces and objects of its own").count(), runs, "{log}");
        let stopped = log.lines().filter(|line| line.contains(" stopped after"));
        let stopped: Vec<&str> = stopped.filter_map(|line| line.split(' ').next()).skip(6 * (runs - 1)).collect();
        assert_eq!(stopped[..3], ["kubezoo", "kube-controller-manager", "kubegateway"], "{log}");
        let mut apiservers = stopped[3..5].to_vec();
        apiservers.sort_unstable();
        assert_eq!(apiservers, ["kube-apiserver-1", "kube-apiserver-2"], "{log}");
        assert_eq!(stopped[5..], ["kubebrain"], "{log}");
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
fn a_control_plane_comes_up_on_three_kubebrains_over_postgresql_and_again_with_its_data() {
    let folder = Folder::new("up-postgres").unwrap();
    let data = folder.path().join("cluster");
    for runs in 1..=2 {
        let mut check = spec(&folder, &data).args(["--engine=postgres", "--brains=3", "--check"]).start().unwrap();
        let ended = check.wait_for_end(WITHIN).expect("it ends by itself");
        let log = check.log_text().unwrap();
        assert!(ended.success(), "{log}");
        assert_eq!(log.matches("checked: the namespace and all in it are deleted").count(), runs, "{log}");
        assert_eq!(log.matches("checked: the tenant has namespaces and objects of its own").count(), runs, "{log}");
        let stopped: Vec<&str> = log.lines().filter(|line| line.contains(" stopped after")).collect();
        assert_eq!(stopped.iter().filter(|line| line.starts_with("kubebrain-")).count(), 3 * runs, "{log}");
        assert!(stopped.last().is_some_and(|line| line.starts_with("postgresql ")), "{log}");
        assert!(!log.contains(" killed"), "{log}");
    }
}

#[test]
#[ignore = "needs a TiKV cluster, which PD_ADDRS names"]
fn a_control_plane_comes_up_on_three_kubebrains_over_tikv_and_again_with_its_data() {
    let Some(Tikv { url, schema }) = Tikv::from_environment() else { return };
    let folder = Folder::new("up-tikv").unwrap();
    let data = folder.path().join("cluster");
    for runs in 1..=2 {
        let elsewhere = [format!("--engine-url={url}"), format!("--engine-schema={schema}")];
        let spec = spec(&folder, &data).args(["--engine=tikv", "--brains=3", "--check"]).args(elsewhere);
        let mut check = spec.start().unwrap();
        let ended = check.wait_for_end(WITHIN).expect("it ends by itself");
        let log = check.log_text().unwrap();
        assert!(ended.success(), "{log}");
        assert_eq!(log.matches("checked: the namespace and all in it are deleted").count(), runs, "{log}");
        assert_eq!(log.matches("checked: the tenant has namespaces and objects of its own").count(), runs, "{log}");
        assert!(!log.contains(" killed"), "{log}");
    }
}

#[test]
fn what_cannot_be_brought_up_is_refused_with_what_it_needs() {
    let folder = Folder::new("up-refused").unwrap();
    for (place, (flags, needs)) in [
        (&["--brains=3"][..], "--brains=3 needs a store that they can share: --engine=postgres or --engine=tikv"),
        (&["--brains=6", "--engine=postgres"], "--brains=6 must be between 1 and 5"),
        (&["--engine-url=postgres://localhost"], "--engine-url is for --engine=postgres and --engine=tikv"),
        (&["--engine=postgres", "--engine-schema=mine"], "--engine-schema is for a store elsewhere"),
        (&["--engine=tikv"], "--engine=tikv needs a TiKV cluster, and its PDs' addresses: --engine-url=tikv://"),
    ]
    .into_iter()
    .enumerate()
    {
        let data = folder.path().join(place.to_string());
        let mut refused = spec(&folder, &data).args(flags).start().unwrap();
        assert_eq!(refused.wait_for_end(WITHIN).and_then(|ended| ended.code()), Some(1));
        // The runs share the log.
        let log = refused.log_text().unwrap();
        assert!(log.lines().last().is_some_and(|line| line.contains(needs)), "{log}");
    }
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

    // Kubelets, of which there are none here, would know the kube-apiservers by a certificate.
    let kubelet_client = pki("kube-apiserver-kubelet-client");
    let flags = [("certificate", "crt"), ("key", "key")];
    let flags = flags.map(|(what, end)| format!("--kubelet-client-{what}={kubelet_client}.{end}"));
    let apiservers = processes(&log).filter(|(name, _)| name.starts_with("kube-apiserver"));
    for (name, process) in apiservers {
        let command = std::fs::read_to_string(format!("/proc/{process}/cmdline")).unwrap();
        assert!(flags.iter().all(|flag| command.split('\0').any(|given| given == flag)), "{name}: {command}");
    }
    let kubectl = Kubectl::new(&data.join("kubeconfig"), &folder).unwrap();
    let (certificate, key) =
        (format!("--client-certificate={kubelet_client}.crt"), format!("--client-key={kubelet_client}.key"));
    let whoami = ["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}", &certificate, &key];
    assert_eq!(kubectl.run(&whoami).unwrap(), "kube-apiserver-kubelet-client");
    let may = kubectl.run(&["auth", "can-i", "get", "nodes/proxy", &certificate, &key]).unwrap();
    assert_eq!(may.trim(), "yes");

    let children: Vec<PathBuf> =
        processes(&log).map(|(_, process)| PathBuf::from(format!("/proc/{process}"))).collect();
    assert_eq!(children.len(), 6, "{log}");
    assert!(children.iter().all(|child| child.exists()));
    up.kill();
    wait_until("all processes have ended", Duration::from_secs(60), || children.iter().all(|child| !is_alive(child)));
}

/// The components that got ready, with their process numbers.
fn processes(log: &str) -> impl DoubleEndedIterator<Item = (&str, u32)> {
    log.lines().filter_map(|line| Some((line.split(' ').next()?, line.rsplit_once(", process ")?.1.parse().ok()?)))
}

#[test]
fn a_kube_apiserver_that_is_killed_is_not_missed_and_comes_back() {
    let folder = Folder::new("up-apiserver").unwrap();
    let data = folder.path().join("cluster");
    let mut up = spec(&folder, &data).start().unwrap();
    up.wait_for_log(WITHIN, "Ctrl-C stops everything").unwrap();
    let kubectl = Kubectl::new(&data.join("kubeconfig"), &folder).unwrap();
    let mut made = 0;
    for name in ["kube-apiserver-1", "kube-apiserver-2"] {
        let log = up.log_text().unwrap();
        let (_, process) = processes(&log).rfind(|(found, _)| *found == name).unwrap();
        kill(process);
        // From the very moment of its end until it is back, and then some.
        let back = || processes(&up.log_text().unwrap()).filter(|(found, _)| *found == name).count() == 2;
        let mut more = 5;
        while more > 0 {
            more -= i32::from(back());
            let listed = kubectl.run(&["get", "configmaps", "-o", "name"]).unwrap();
            assert_eq!(listed.matches("configmap/made-").count(), made, "{listed}");
            kubectl.run(&["create", "configmap", &format!("made-{made}")]).unwrap();
            made += 1;
        }
        let log = up.log_text().unwrap();
        assert!(log.lines().any(|line| line.starts_with(name) && line.ends_with("is started again")), "{log}");
    }
    let ended = up.stop(WITHIN);
    assert!(ended.success(), "{}", up.log_text().unwrap());
}

#[allow(unsafe_code, reason = "the standard library kills only what it has started itself")]
fn kill(process: u32) {
    let process = libc::pid_t::try_from(process).unwrap();
    // SAFETY: kill takes two integers and touches no memory of this process.
    assert_eq!(unsafe { libc::kill(process, libc::SIGKILL) }, 0);
}

/// Whether there is such a process that has not ended: one that nobody has waited for yet is a zombie.
fn is_alive(process: &Path) -> bool {
    let status = std::fs::read_to_string(process.join("status")).unwrap_or_default();
    !status.is_empty() && !status.contains("State:\tZ")
}
