use std::time::Duration;

use super::*;

fn parse_with(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Invocation, ConfigError> {
    parse(
        arguments.iter().map(|argument| (*argument).to_owned()),
        environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
    )
}

fn served(arguments: &[&str]) -> (Config, Vec<String>) {
    match parse_with(arguments, &[]) {
        Ok(Invocation::Serve { config, warnings }) => (*config, warnings),
        other => panic!("{arguments:?}: {other:?}"),
    }
}

fn refused(arguments: &[&str]) -> String {
    parse_with(arguments, &[]).expect_err("it is wrong").to_string()
}

#[test]
fn nothing_set_is_etcds_default() {
    let (config, warnings) = served(&[]);
    assert_eq!(config, Config::default());
    assert_eq!(config.data_dir(), PathBuf::from("default.etcd"));
    assert!(warnings.is_empty());
}

#[test]
fn flags_take_their_value_in_every_form_of_go_and_the_last_wins() {
    for arguments in [
        &["--name", "a"][..],
        &["--name=a"],
        &["-name", "a"],
        &["-name=a"],
        &["--name", "b", "--name", "a"],
        &["--name=b", "-name=a"],
    ] {
        assert_eq!(served(arguments).0.name, "a", "{arguments:?}");
    }
    // A truth value never takes the next argument.
    assert!(served(&["--auto-tls", "--name", "a"]).0.client_auto_tls);
    assert!(!served(&["--auto-tls=false"]).0.client_auto_tls);
    assert!(refused(&["--auto-tls", "true"]).contains("\"true\": is not a flag"));
}

#[test]
fn each_value_is_read_or_refused_with_its_flag_named() {
    type Check = fn(&Config) -> bool;
    let good: &[(&[&str], Check)] = &[
        (&["--data-dir", "/x"], |c| c.data_dir().as_os_str() == "/x"),
        (&["--name", "n"], |c| c.data_dir().as_os_str() == "n.etcd"),
        (&["--engine=memory"], |c| c.engine == EngineKind::Memory),
        (&["--engine=tikv", "--engine-url=tikv://pd:2379", "--engine-schema=mine"], |c| {
            c.engine == EngineKind::Tikv
                && c.engine_url.as_deref() == Some("tikv://pd:2379")
                && c.engine_schema == "mine"
        }),
        (&["--max-request-bytes=0x10"], |c| c.request_bytes_max == 16),
        (&["--max-txn-ops", "7"], |c| c.txn_operations_max == 7),
        (&["--max-concurrent-streams", "9"], |c| c.concurrent_streams_max == 9),
        (&["--quota-backend-bytes", "4294967296"], |c| c.quota_bytes == Some(1 << 32)),
        (&["--quota-backend-bytes", "-1"], |c| c.quota_bytes.is_none()),
        (&["--grpc-keepalive-interval=0"], |c| c.grpc_keepalive_interval.is_none()),
        (&["--grpc-keepalive-timeout=1m30s"], |c| c.grpc_keepalive_timeout == Duration::from_secs(90)),
        (&["--watch-progress-notify-interval=250ms"], |c| {
            c.watch_progress_notify_interval == Duration::from_millis(250)
        }),
        (&["--experimental-watch-progress-notify-interval=5s"], |c| {
            c.watch_progress_notify_interval == Duration::from_secs(5)
        }),
        (&["--log-outputs=default,/var/log/x"], |c| c.log.outputs == ["stderr", "/var/log/x"]),
        (&["--log-outputs=systemd/journal"], |c| c.log.outputs == ["stderr"]),
        (&["--max-concurrent-streams=0"], |c| c.concurrent_streams_max == u32::MAX),
        (&["--grpc-keepalive-timeout=0"], |c| {
            c.grpc_keepalive_interval.is_none() && c.grpc_keepalive_timeout == Duration::from_secs(20)
        }),
        (&["--grpc-keepalive-timeout=0", "--grpc-keepalive-interval=5s"], |c| c.grpc_keepalive_interval.is_none()),
        (&["--grpc-keepalive-timeout=3s"], |c| {
            c.grpc_keepalive_interval.is_some() && c.grpc_keepalive_timeout == Duration::from_secs(3)
        }),
        (&["--log-format", "console"], |c| c.log.format == LogFormat::Console),
        (&["--auto-compaction-retention", "8"], |c| {
            c.auto_compaction == Some(AutoCompaction::Periodic(Duration::from_secs(8 * 3600)))
        }),
        (&["--auto-compaction-retention", "5m"], |c| {
            c.auto_compaction == Some(AutoCompaction::Periodic(Duration::from_secs(300)))
        }),
        (&["--auto-compaction-mode=revision", "--auto-compaction-retention=1000"], |c| {
            c.auto_compaction == Some(AutoCompaction::Revision(1000))
        }),
        (&["--auto-compaction-mode=revision", "--auto-compaction-retention=0"], |c| c.auto_compaction.is_none()),
        (&["--initial-cluster", "a=http://127.0.0.1:1,a=http://127.0.0.2:1"], |c| c.name == "default"),
        (&["--listen-metrics-urls=http://127.0.0.1:1,http://127.0.0.1:1"], |c| c.listen_metrics_urls.len() == 1),
    ];
    for (arguments, check) in good {
        assert!(check(&served(arguments).0), "{arguments:?}");
    }
    let wrong: &[(&[&str], &str)] = &[
        (&["--engine=tape"], "--engine: \"tape\" is none of lmdb, postgres, tikv, memory"),
        (&["--engine=tikv"], "--engine-url: is missing: --engine=tikv needs it"),
        (&["--max-txn-ops", "many"], "--max-txn-ops: \"many\" is not a whole number of the possible range"),
        (&["--max-txn-ops", "-1"], "--max-txn-ops: \"-1\" is not a whole number of the possible range"),
        (&["--max-txn-ops"], "--max-txn-ops: needs a value"),
        (
            &["--grpc-keepalive-timeout=5"],
            "--grpc-keepalive-timeout: \"5\" is not a duration such as 300ms, 20s or 1h30m",
        ),
        (&["--auto-compaction-mode=never"], "--auto-compaction-mode: \"never\" is none of periodic, revision"),
        (
            &["--auto-compaction-mode=revision", "--auto-compaction-retention=1h"],
            "--auto-compaction-retention: \"1h\" is not a whole number of the possible range",
        ),
        (
            &["--listen-client-urls=http://127.0.0.1"],
            "--listen-client-urls: listen URL \"http://127.0.0.1\": it has no port",
        ),
        (
            &["--client-cert-allowed-hostname=a"],
            "--client-cert-allowed-hostname: is not built: clients are told apart by --trusted-ca-file alone",
        ),
        (
            &["--advertise-client-urls=a:1"],
            "--advertise-client-urls: \"a:1\" is not a URL such as http://10.0.0.1:2379",
        ),
        (
            &["--listen-client-urls=http://127.0.0.1:1"],
            "--advertise-client-urls: is required when --listen-client-urls is set explicitly",
        ),
        (&["--snapshot-count", "x"], "--snapshot-count: \"x\" is not a whole number of the possible range"),
        (&["--nmae", "x"], "--nmae: is not a flag; did you mean --name?"),
        (&["--listen-cient-urls", "x"], "--listen-cient-urls: is not a flag; did you mean --listen-client-urls?"),
        (&["--zzzzzzzzzz"], "--zzzzzzzzzz: is not a flag; --help lists them"),
        (&["serve"], "\"serve\": is not a flag"),
        (
            &["--initial-cluster", "a=http://127.0.0.1:1,b=http://127.0.0.2:1"],
            "--initial-cluster: names 2 members, and an embedded engine has one: each would be a store of its own. Start one and let every client use it",
        ),
        (&["--cert-file=c"], "--key-file: is missing: --cert-file needs both"),
        (
            &["--listen-metrics-urls=https://127.0.0.1:1"],
            "--cert-file: is needed for https://127.0.0.1:1, with --key-file",
        ),
        (&["--cipher-suites=TLS_NOPE"], "--cipher-suites: TLS: cipher suite \"TLS_NOPE\" is unknown"),
        (
            &["--max-request-bytes=16777216"],
            "--max-request-bytes: \"16777216\" must not be above 16776166: a change is stored together with the value \
             that it replaces",
        ),
        (&["--tls-min-version=TLS1.1"], "--tls-min-version: \"TLS1.1\" is none of TLS1.2, TLS1.3"),
        (&["--name=a/b"], "--name: has a slash, so it can't name the data directory: set --data-dir"),
    ];
    for (arguments, text) in wrong {
        assert_eq!(refused(arguments), *text, "{arguments:?}");
    }
}

#[test]
fn every_flag_of_a_kubeadm_manifest_is_taken_and_the_void_ones_are_named_once() {
    let (config, warnings) = served(&[
        "--advertise-client-urls=https://10.0.0.1:2379",
        "--cert-file=/etc/kubernetes/pki/etcd/server.crt",
        "--client-cert-auth=true",
        "--data-dir=/var/lib/etcd",
        "--experimental-initial-corrupt-check=true",
        "--experimental-watch-progress-notify-interval=5s",
        "--feature-gates=InitialCorruptCheck=true",
        "--initial-advertise-peer-urls=https://10.0.0.1:2380",
        "--initial-cluster=node=https://10.0.0.1:2380",
        "--key-file=/etc/kubernetes/pki/etcd/server.key",
        "--listen-client-urls=https://127.0.0.1:2379,https://10.0.0.1:2379",
        "--listen-metrics-urls=http://127.0.0.1:2381",
        "--listen-peer-urls=https://10.0.0.1:2380",
        "--name=node",
        "--peer-cert-file=/etc/kubernetes/pki/etcd/peer.crt",
        "--peer-client-cert-auth=true",
        "--peer-key-file=/etc/kubernetes/pki/etcd/peer.key",
        "--peer-trusted-ca-file=/etc/kubernetes/pki/etcd/ca.crt",
        "--snapshot-count=10000",
        "--trusted-ca-file=/etc/kubernetes/pki/etcd/ca.crt",
    ]);
    assert_eq!(config.name, "node");
    assert_eq!(config.listen_client_urls.len(), 2);
    assert_eq!(config.advertise_peer_urls, ["https://10.0.0.1:2380"]);
    let tls = config.client_tls.expect("certificates were given");
    assert!(tls.client_cert_auth);
    assert_eq!(tls.trusted_ca_file, Some(PathBuf::from("/etc/kubernetes/pki/etcd/ca.crt")));
    assert_eq!(
        warnings,
        ["these flags of etcd have no meaning here: --feature-gates, --initial-corrupt-check, --listen-peer-urls, \
          --peer-cert-file, --peer-client-cert-auth, --peer-key-file, --peer-trusted-ca-file, --snapshot-count"]
    );
}

#[test]
fn cipher_suites_that_are_not_supported_are_named_and_left_out() {
    let (cbc, gcm) = ("TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256");
    let suites = format!("--cipher-suites={cbc},{gcm}");
    let (_, warnings) = served(&[
        "--cert-file=c",
        "--key-file=k",
        "--listen-client-urls=https://127.0.0.1:1",
        &suites,
        "--advertise-client-urls=https://127.0.0.1:1",
    ]);
    assert_eq!(warnings, [format!("--cipher-suites: not supported and left out: {cbc}")]);
}

#[test]
fn versions_and_cipher_suites_hold_for_clients_and_for_other_members() {
    let (config, warnings) = served(&[
        "--name=a",
        "--engine=postgres",
        "--engine-url=postgres://db",
        "--cert-file=c",
        "--key-file=k",
        "--listen-client-urls=https://127.0.0.1:1",
        "--advertise-client-urls=https://127.0.0.1:1",
        "--peer-cert-file=pc",
        "--peer-key-file=pk",
        "--listen-peer-urls=https://127.0.0.1:2",
        "--tls-min-version=TLS1.3",
        "--cipher-suites=TLS_AES_128_GCM_SHA256",
    ]);
    assert_eq!(warnings, [""; 0]);
    for (files, certificate) in [(config.client_tls, "c"), (config.peer_tls, "pc")] {
        let files = files.expect("certificates were given");
        assert_eq!(files.cert_file, PathBuf::from(certificate));
        assert!(files.only_tls13 && !files.only_tls12);
        assert_eq!(files.cipher_suites, ["TLS_AES_128_GCM_SHA256"]);
    }
}

#[test]
fn variables_fill_what_flags_leave_and_conflict_with_what_they_set() {
    let environment =
        [("ETCD_NAME", "env"), ("ETCD_MAX_TXN_OPS", "5"), ("ETCD_NOPE", "1"), ("PATH", "/bin"), ("ETCD_DATA_DIR", "")];
    let Ok(Invocation::Serve { config, warnings }) = parse_with(&["--engine=memory"], &environment) else {
        panic!("it is right")
    };
    assert_eq!((config.name.as_str(), config.txn_operations_max), ("env", 5));
    assert_eq!(warnings, ["unrecognized environment variable ETCD_NOPE"]);
    let conflict = parse_with(&["--name=flag"], &environment).expect_err("both are set").to_string();
    assert_eq!(conflict, "ETCD_NAME: is set together with --name: unset the variable or leave the flag out");
    let wrong = parse_with(&[], &[("ETCD_MAX_TXN_OPS", "x")]).expect_err("not a number").to_string();
    assert!(wrong.starts_with("ETCD_MAX_TXN_OPS: "), "{wrong}");
}

#[test]
fn a_configuration_file_stands_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("etcd.yaml");
    let yaml = "name: from-file\n\
                max-txn-ops: 9\n\
                listen-client-urls: http://127.0.0.1:1, http://127.0.0.1:2\n\
                watch-progress-notify-interval: 5000000000\n\
                auto-compaction-mode: revision\n\
                auto-compaction-retention: \"1000\"\n\
                quota-backend-bytes: 0\n\
                wal-dir:\n\
                log-outputs: [stderr]\n\
                initial-cluster-state: new\n\
                client-transport-security:\n  cert-file: c\n  key-file: k\n  client-cert-auth: true\n  trusted-ca-file: ca\n\
                peer-transport-security:\n  auto-tls: true\n\
                what-is-this: 1\n";
    std::fs::write(&path, yaml).unwrap();
    let argument = path.to_str().unwrap();
    let parsed = parse_with(&["--config-file", argument, "--name=flag"], &[("ETCD_MAX_TXN_OPS", "3")]);
    let Ok(Invocation::Serve { config, warnings }) = parsed else { panic!("{parsed:?}") };
    assert_eq!((config.name.as_str(), config.txn_operations_max), ("from-file", 9));
    assert_eq!(config.listen_client_urls.len(), 2);
    assert_eq!(config.watch_progress_notify_interval, Duration::from_secs(5));
    assert_eq!(config.auto_compaction, Some(AutoCompaction::Revision(1000)));
    assert!(config.client_tls.is_some_and(|tls| tls.client_cert_auth));
    assert!(warnings[0].starts_with("settings come from "), "{warnings:?}");
    assert!(warnings[1].ends_with("are ignored: what-is-this"), "{warnings:?}");
    assert!(
        warnings.iter().any(|warning| warning.contains("--initial-cluster-state, --peer-auto-tls")),
        "{warnings:?}"
    );
    std::fs::write(&path, "client-transport-security:\npeer-transport-security:\n  # auto-tls: true\n").unwrap();
    let parsed = parse_with(&["--config-file", argument], &[]);
    let Ok(Invocation::Serve { config, .. }) = parsed else { panic!("{parsed:?}") };
    assert_eq!(*config, Config::default(), "empty sections are none");
    std::fs::write(&path, "name: [1]\n").unwrap();
    let error = parse_with(&["--config-file", argument], &[]).expect_err("not a text").to_string();
    assert_eq!(error, format!("{argument}: name: is not a list of texts"));
    assert!(parse_with(&[], &[("ETCD_CONFIG_FILE", "/does/not/exist")]).is_err());
}

#[test]
fn durations_are_those_of_go() {
    let good = [
        ("0", 0),
        ("1ns", 1),
        ("1.5s", 1_500_000_000),
        ("2h45m", 9_900_000_000_000),
        (".5m", 30_000_000_000),
        ("1us", 1_000),
        ("1µs", 1_000),
    ];
    for (text, nanoseconds) in good {
        assert_eq!(values::duration(text), Ok(Duration::from_nanos(nanoseconds)), "{text}");
    }
    for text in ["", "5", "s", "1x", "-1s", "1.2.3s", "99999999999h", ".s", "1 s"] {
        assert!(values::duration(text).is_err(), "{text}");
    }
}

#[test]
fn every_flag_is_named_once_and_the_help_has_those_with_a_meaning() {
    let mut names: Vec<&str> = flags::FLAGS.iter().map(|flag| flag.name).collect();
    names.sort_unstable();
    let before = names.len();
    names.dedup();
    assert_eq!(names.len(), before);
    let help = flags::help();
    assert!(help.contains("--data-dir TEXT") && !help.contains("--wal-dir"), "{help}");
}
