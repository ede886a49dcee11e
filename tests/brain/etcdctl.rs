//! etcd's own command line against KubeBrain: it must not notice that it does not talk to etcd.
//!
//! Every command runs on an etcd and on the store under test; exit codes, outputs and errors must be the same but for
//! ids, addresses and times.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::process::Process;
use kubewharf_testkit::store::{Etcdctl, Store};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(20);
/// Fields of JSON outputs whose values are a store's own: what matters is whether they are there.
const OWN_FIELDS: &[&str] = &[
    "cluster_id",
    "member_id",
    "raft_term",
    "leader",
    "raftTerm",
    "raftIndex",
    "raftAppliedIndex",
    "dbSize",
    "dbSizeInUse",
    "dbSizeQuota",
    "hash",
    "ID",
    "id",
    "version",
    "took",
];

/// What a command came to.
#[derive(Debug, PartialEq)]
struct Outcome {
    code: Option<i32>,
    output: String,
    error: String,
}

/// One store, as etcdctl sees it.
struct Shell {
    etcdctl: Etcdctl,
    /// What outputs of this store have in place of something that differs between stores.
    own: BTreeMap<String, &'static str>,
    /// Running as long as the shell is used.
    _store: Store,
}

impl Shell {
    fn new(store: Store) -> Self {
        let own = BTreeMap::from([(store.address().to_owned(), "ADDRESS")]);
        Self { etcdctl: store.etcdctl().expect("etcdctl is there"), own, _store: store }
    }

    /// Replaces the name that an output showed from now on.
    fn names(&mut self, own: &str, name: &'static str) {
        self.own.insert(own.to_owned(), name);
    }

    fn run(&self, line: &[&str], input: &str) -> Outcome {
        let line: Vec<String> = line.iter().map(|word| self.expand(word)).collect();
        let words: Vec<&str> = line.iter().map(String::as_str).collect();
        let mut command = self.etcdctl.command(&words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("etcdctl starts");
        let mut stdin = child.stdin.take().expect("stdin was asked to be a pipe");
        // A command that does not read its input may have ended.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().expect("etcdctl ends");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        // Lines of the client's log have times and addresses; the error stands in a line of its own.
        let error = errors.lines().filter(|line| !line.starts_with('{')).collect::<Vec<_>>().join("\n");
        let is_json = words.windows(2).any(|words| words == ["-w", "json"]);
        let output_text = if is_json { self.json(&text) } else { self.plain(&text) };
        Outcome { code: output.status.code(), output: output_text, error: self.plain(&error) }
    }

    /// A word with the store's own ids in place of their names.
    fn expand(&self, word: &str) -> String {
        self.own.iter().fold(word.to_owned(), |word, (own, name)| word.replace(name, own))
    }

    fn plain(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (own, name) in &self.own {
            text = text.replace(own, name);
        }
        // "took = 1.2ms", "took 3ms", and the ids of `-w fields`.
        let ends = ["took", "\"ClusterID\"", "\"MemberID\"", "\"RaftTerm\""];
        let lines = text.lines().map(|line| {
            let end = ends.iter().find_map(|end| Some(line.find(end)? + end.len()));
            end.map_or(line, |end| &line[..end]).to_owned()
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    fn json(&self, text: &str) -> String {
        let lines = text.lines().map(|line| match serde_json::from_str::<Value>(line) {
            Ok(mut value) => {
                self.without_own(&mut value);
                value.to_string()
            }
            Err(_) => self.plain(line),
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    fn without_own(&self, value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    if OWN_FIELDS.contains(&name.as_str()) && !value.is_object() {
                        *value = Value::from("OWN");
                    } else {
                        self.without_own(value);
                    }
                }
            }
            Value::Array(values) => values.iter_mut().for_each(|value| self.without_own(value)),
            Value::String(text) => *text = if text.contains("://") { "URL".to_owned() } else { self.plain(text) },
            _ => {}
        }
    }
}

/// An etcd and the store under test.
struct Shells {
    etcd: Shell,
    ours: Shell,
    differences: Vec<String>,
}

impl Shells {
    fn start() -> Self {
        let etcd = Store::etcd(&["--unsafe-no-fsync", "--log-level=error"]).expect("etcd starts");
        let ours = Store::start(&["--log-level=error"]).expect("the store under test starts");
        Self { etcd: Shell::new(etcd), ours: Shell::new(ours), differences: Vec::new() }
    }

    /// Runs a command on both and compares; words are separated by spaces.
    fn same(&mut self, line: &str) -> String {
        self.same_with(line, "")
    }

    /// As [`Shells::same`], with something to read.
    fn same_with(&mut self, line: &str, input: &str) -> String {
        let words: Vec<&str> = line.split(' ').map(|word| if word == "''" { "" } else { word }).collect();
        let (etcd, ours) = (self.etcd.run(&words, input), self.ours.run(&words, input));
        if etcd != ours {
            self.differences.push(format!("etcdctl {line}\netcd: {etcd:#?}\nours: {ours:#?}"));
        }
        ours.output
    }

    /// Grants a lease on both, under one name.
    fn grant(&mut self, ttl: &str, name: &'static str) {
        for shell in [&mut self.etcd, &mut self.ours] {
            let text = shell.etcdctl.run(&["lease", "grant", ttl]).expect("a lease is granted");
            // "lease 694d5 granted with TTL(100s)"
            let words: Vec<&str> = text.split_whitespace().collect();
            assert!(words.len() == 5 && words[4] == format!("TTL({ttl}s)"), "{text}");
            shell.names(words[1], name);
        }
    }

    /// Runs a command beside the others, on both.
    fn beside(&self, folder: &Folder, name: &str, line: &[&str]) -> [Process; 2] {
        [(&self.etcd, "etcd"), (&self.ours, "ours")].map(|(shell, store)| {
            shell.etcdctl.start(&format!("{name}-{store}"), folder, line).expect("etcdctl starts")
        })
    }

    fn finish(self) {
        assert!(
            self.differences.is_empty(),
            "{} differences:\n{}",
            self.differences.len(),
            self.differences.join("\n")
        );
    }
}

#[test]
fn etcdctl_reads_and_writes_as_on_etcd() {
    let mut shells = Shells::start();
    for line in [
        "get --prefix ''",
        "put k/a 1",
        "put k/b 2",
        "put k/a 3 --prev-kv",
        "put k/c 0",
        "put other x",
        "put k/none --ignore-value",
        "put k/a --ignore-value",
        "put k/a 4 --ignore-lease",
        "put k/x 1 --lease=1234",
        "get k/a",
        "get k/none",
        "get k/a -w json",
        "get k/a -w fields --rev=2",
        "get --prefix k/",
        "get --prefix k/ --keys-only",
        "get --prefix k/ --count-only",
        "get --prefix k/ --count-only -w json",
        "get --prefix k/ --limit=2 -w json",
        "get --prefix k/ --order=DESCEND",
        "get --prefix k/ --order=ASCEND --sort-by=VALUE",
        "get --prefix k/ --order=DESCEND --sort-by=MODIFY",
        "get --prefix k/ --order=ASCEND --sort-by=CREATE",
        "get --prefix k/ --order=ASCEND --sort-by=VERSION",
        "get --prefix k/ --rev=3",
        "get --prefix k/ --rev=99",
        "get --prefix k/ --rev=-1",
        "get --prefix k/ --print-value-only",
        "get k/a k/c",
        "get --from-key k/b",
        "get --prefix k/ --consistency=s",
        "get --prefix k/ --min-mod-rev=4 --max-mod-rev=5",
        "get --prefix k/ --min-create-rev=3",
        "get --prefix k/ --hex",
        "del k/none",
        "del k/a --prev-kv",
        "del --prefix k/ -w json",
        "del --from-key ''",
        "put k/a 5",
        "get --prefix k/ -w json",
        "compaction 4",
        "compaction 4",
        "compaction 99",
        "compaction --physical 6",
        "get k/a --rev=3",
    ] {
        shells.same(line);
    }
    shells.same_with("put from/stdin", "a value of\nseveral lines");
    shells.same("get from/stdin -w json");
    for transaction in [
        "mod(\"k/a\") > \"0\"\n\nput k/a 6\nget k/a\n\nget k/a\n\n",
        "val(\"k/a\") = \"no\"\nver(\"k/a\") < \"9\"\n\nput k/a 7\n\ndel k/a\nget --prefix k/\n\n",
        "c(\"k/new\") = \"0\"\nmod(\"k/new\") < \"1\"\n\nput k/new 1\nput k/newer 2\ndel k/none\n\n\n",
        "\nput k/twice 1\nput k/twice 2\n\n\n",
    ] {
        shells.same_with("txn", transaction);
        shells.same_with("txn -w json", transaction);
        shells.same_with("txn -i", transaction);
    }
    shells.same("get --prefix ''");
    shells.finish();
}

#[test]
fn etcdctl_watches_as_on_etcd() {
    let folder = Folder::new("etcdctl").expect("a folder for logs");
    let mut shells = Shells::start();
    for line in ["put k/a 1", "put k/b 1", "put k/a 2", "del k/b", "put other 1"] {
        shells.same(line);
    }
    let watches: [&[&str]; 5] = [
        &["watch", "--prefix", "k/"],
        &["watch", "--prefix", "k/", "--rev=2", "--prev-kv"],
        &["watch", "k/a", "-w", "fields", "--rev=3"],
        &["watch", "k/a", "k/c"],
        &["watch", "a", "z", "--rev=1"],
    ];
    let mut running: Vec<[Process; 2]> = Vec::new();
    for (number, line) in watches.iter().enumerate() {
        running.push(shells.beside(&folder, &format!("watch-{number}"), line));
    }
    // A watch of the present has begun when it shows a write.
    for [etcd, ours] in &mut running {
        for (process, shell) in [(etcd, &shells.etcd), (ours, &shells.ours)] {
            let wrote = |process: &Process| {
                shell.etcdctl.run(&["put", "k/a", "begun"]).expect("a put");
                process.log_text().is_ok_and(|log| log.contains("begun"))
            };
            process.wait_until(SOON, wrote).expect("the watch begins");
        }
    }
    for line in ["put k/b 5", "del k/a", "put k/zz 1", "put k/a last"] {
        shells.same(line);
    }
    for (number, [etcd, ours]) in running.iter_mut().enumerate() {
        for process in [&mut *etcd, &mut *ours] {
            process.wait_for_log(SOON, "last").expect("the last write is seen");
        }
        // How often a store was written to until its watches had begun differs, and so do the revisions.
        let seen = |process: &Process| {
            let log = process.log_text().expect("a log");
            let own = ["Revision\"", "Version\"", "\"ClusterID\"", "\"MemberID\"", "\"RaftTerm\""];
            let lines = log.lines().filter(|line| !own.iter().any(|own| line.contains(own)));
            let mut lines: Vec<String> = lines.map(str::to_owned).collect();
            lines.dedup();
            let first = lines.iter().rposition(|line| line.contains("begun")).expect("it was waited for");
            lines.split_off(first)
        };
        assert_eq!(seen(etcd), seen(ours), "watch {number}");
    }
    drop(running);
    shells.finish();
}

#[test]
fn etcdctl_is_told_of_progress() {
    let folder = Folder::new("etcdctl").expect("a folder for logs");
    let ours = Store::start(&["--log-level=error"]).expect("the store under test starts");
    let etcdctl = ours.etcdctl().expect("etcdctl is there");
    for value in ["1", "2", "3"] {
        etcdctl.run(&["put", "other", value]).expect("a put");
    }
    // The commands of an interactive watch come from its standard input, which a shell keeps open.
    let script = "(echo 'watch k'; sleep 0.5; while echo progress; do sleep 0.2; done) | \"$0\" \"$@\"";
    let command = etcdctl.command(&["watch", "-i"]);
    let mut watch = kubewharf_testkit::process::Spec::new("progress", "/bin/sh", folder.path())
        .args(["-c", script])
        .arg(command.get_program())
        .args(command.get_args())
        .start()
        .expect("a shell starts");
    watch.wait_for_log(SOON, "progress notify: 4").expect("progress at the revision of the last write");
}

#[test]
fn etcdctl_uses_leases_as_on_etcd() {
    let mut shells = Shells::start();
    shells.grant("100", "FIRST");
    shells.grant("200", "SECOND");
    for line in [
        "put a 1 --lease=FIRST",
        "put b 1 --lease=FIRST",
        "put c 1 --lease=SECOND",
        "put c 1 --lease=1234",
        "lease list",
        "lease keep-alive --once FIRST",
        "lease revoke FIRST",
        "lease revoke FIRST",
        "lease keep-alive --once FIRST",
        "lease timetolive FIRST",
        "get --prefix ''",
        "lease list",
        "lease grant 9000000001",
        "lease grant x",
        "lease revoke SECOND",
        "lease list",
        "get --prefix ''",
    ] {
        shells.same(line);
    }
    shells.grant("300", "THIRD");
    for shell in [&shells.etcd, &shells.ours] {
        let told = shell.run(&["lease", "timetolive", "THIRD", "--keys"], "").output;
        // The remaining time may be a second less.
        let told = told.replace("remaining(300s)", "remaining(299s)");
        assert_eq!(told, "lease THIRD granted with TTL(300s), remaining(299s), attached keys([])");
    }
    shells.finish();
}

#[test]
fn etcdctl_asks_about_the_store_as_on_etcd() {
    let mut shells = Shells::start();
    for shell in [&mut shells.etcd, &mut shells.ours] {
        shell.etcdctl.run(&["put", "a", "1"]).expect("a put");
        // "8e9e05c52164694d, started, default, http://…, http://…, false"
        let members = shell.etcdctl.run(&["member", "list"]).expect("a list of members");
        let fields: Vec<String> = members.trim_end().split(", ").map(str::to_owned).collect();
        assert_eq!(fields.len(), 6, "{members}");
        shell.names(&fields[0], "MEMBER");
        shell.names(&fields[3], "PEER");
    }
    for line in [
        "endpoint health",
        "endpoint health -w json",
        "endpoint status -w json",
        "endpoint hashkv -w json",
        "member list",
        "member list -w json",
        "alarm list",
        "alarm disarm",
        "defrag",
        "auth status",
        "auth enable",
        "user list",
        "role list",
        "user get nobody",
        "--user=root:x get a",
        "lock name echo locked",
        "get --prefix '' --keys-only",
    ] {
        shells.same(line);
    }
    let status = shells.ours.run(&["endpoint", "status"], "").output;
    assert!(status.contains("ADDRESS, MEMBER, 3.7."), "{status}");
    shells.finish();
}

#[test]
fn etcdctl_copies_kubebrain_into_an_etcd() {
    let folder = Folder::new("etcdctl").expect("a folder for logs");
    let etcd = Store::etcd(&["--unsafe-no-fsync", "--log-level=error"]).expect("etcd starts");
    let ours = Store::start(&["--log-level=error"]).expect("the store under test starts");
    let (from, to) = (ours.etcdctl().expect("etcdctl is there"), etcd.etcdctl().expect("etcdctl is there"));
    for number in 0..50 {
        from.run(&["put", &format!("k/{number:02}"), &number.to_string()]).expect("a put");
    }
    let mut mirror = from.start("mirror", &folder, &["make-mirror", etcd.address()]).expect("etcdctl starts");
    let same =
        || from.run(&["get", "--prefix", ""]).expect("a read") == to.run(&["get", "--prefix", ""]).expect("a read");
    mirror.wait_until(SOON, |_| same()).expect("the copy is whole");
    from.run(&["put", "k/50", "50"]).expect("a put");
    from.run(&["del", "--prefix", "k/1"]).expect("a deletion");
    mirror.wait_until(SOON, |_| same()).expect("changes follow");
}

#[test]
#[ignore = "writes for a minute"]
fn etcdctl_finds_the_performance_good() {
    let ours = Store::start(&["--log-level=error"]).expect("the store under test starts");
    let said = ours.etcdctl().expect("etcdctl is there").run(&["check", "perf", "--load=s"]).expect("the check passes");
    assert!(said.contains("PASS") && !said.contains("FAIL"), "{said}");
    // What it has written it removes again.
    assert_eq!(ours.etcdctl().expect("etcdctl is there").run(&["get", "--prefix", ""]).expect("a read"), "");
}
