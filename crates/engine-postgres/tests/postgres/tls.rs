//! TLS, and who may connect.

use kubewharf_engine::Table;
use kubewharf_engine::conformance::{apply, put};
use kubewharf_engine_postgres::{OpenError, Options, Postgres};
use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::pki::Authority;
use kubewharf_testkit::postgres::Postgres as Server;

use crate::stores::options;

#[test]
fn a_server_is_who_its_certificate_says_or_there_is_no_connection() {
    let folder = Folder::new("certificates").unwrap();
    let authority = Authority::new(&folder, "authority").unwrap();
    let stranger = Authority::new(&folder, "stranger").unwrap();
    let host = kubewharf_testkit::address::host().to_string();
    let identity = authority.server(&folder, "server", &[&host]).unwrap();
    let server = Server::start_with(&[], Some(&identity)).unwrap();
    let url = |parameters: &str| format!("{}?{parameters}", server.url());
    let open =
        |url: String| Postgres::open(Options { read_timeout: std::time::Duration::from_secs(1), ..options(&url) });
    let refused = |url: String| match open(url).map(|_| ()) {
        Err(error @ OpenError::Failed(_)) => assert!(error.to_string().contains("certificate"), "{error}"),
        other => panic!("{other:?}"),
    };
    let (own, other) = (authority.certificate_path().display(), stranger.certificate_path().display());

    let engine = open(url(&format!("sslmode=verify-full&sslrootcert={own}"))).unwrap();
    apply(&engine, vec![put(Table::Meta, "k", "v")]);
    let encrypted = "SELECT count(*) > 0 AND bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                     WHERE application_name = 'kubewharf'";
    assert_eq!(server.psql(encrypted).unwrap(), "t");
    drop(engine);

    refused(url(&format!("sslmode=verify-full&sslrootcert={other}")));
    refused(url(&format!("sslmode=verify-ca&sslrootcert={other}")));
    refused(url(&format!("sslmode=require&sslrootcert={other}")));
    refused(url("sslmode=verify-full"));
    // The name is another one, and only verify-full cares.
    let by_name = |mode: &str| {
        let (ip, port) = (server.address().ip(), server.address().port());
        format!(
            "host=elsewhere hostaddr={ip} port={port} user=postgres dbname=postgres sslmode={mode} sslrootcert={own}"
        )
    };
    refused(by_name("verify-full"));
    open(by_name("verify-ca")).unwrap();
    open(url("sslmode=require")).unwrap();
    open(url("sslmode=prefer")).unwrap();

    let missing = open(url("sslmode=verify-full&sslrootcert=/missing/ca.crt")).map(|_| ()).unwrap_err();
    assert!(matches!(&missing, OpenError::Url(text) if text.contains("/missing/ca.crt")), "{missing}");
}

#[test]
fn a_server_without_tls_is_used_only_where_that_is_allowed() {
    let server = Server::start().unwrap();
    let open = |mode: &str| {
        let options = options(&format!("{}?sslmode={mode}", server.url()));
        Postgres::open(Options { read_timeout: std::time::Duration::from_secs(1), ..options })
    };
    open("disable").unwrap();
    open("prefer").unwrap();
    let error = open("require").map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("does not support TLS"), "{error}");
}

/// The password is proven for this very TLS session, and comes from a file that is read again for each connection.
#[test]
fn passwords_come_from_a_file_and_are_bound_to_the_session() {
    let folder = Folder::new("certificates").unwrap();
    let authority = Authority::new(&folder, "authority").unwrap();
    let host = kubewharf_testkit::address::host().to_string();
    let identity = authority.server(&folder, "server", &[&host]).unwrap();
    let server = Server::start_with(&[], Some(&identity)).unwrap();
    server.psql("CREATE USER app PASSWORD 'se:cret'; GRANT CREATE ON DATABASE postgres TO app").unwrap();
    let rules = server.folder().path().join("data/pg_hba.conf");
    let before = std::fs::read_to_string(&rules).unwrap();
    std::fs::write(&rules, format!("hostssl all app all scram-sha-256\nhost all app all reject\n{before}")).unwrap();
    server.psql("SELECT pg_reload_conf()").unwrap();

    let passes = folder.write("passes", "*:*:*:app:wrong\n").unwrap();
    let url = format!(
        "postgres://app@{}/postgres?sslmode=verify-full&sslrootcert={}&channel_binding=require&passfile={}",
        server.address(),
        authority.certificate_path().display(),
        passes.display()
    );
    let options = options(&url);
    let error = Postgres::open(options.clone()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("password authentication failed") && !error.contains("wrong"), "{error}");
    folder.write("passes", "*:*:*:app:se\\:cret\n").unwrap();
    apply(&Postgres::open(options).unwrap(), vec![put(Table::Meta, "k", "v")]);
}
