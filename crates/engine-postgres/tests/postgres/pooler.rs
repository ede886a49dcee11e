//! Behind pgbouncer, which hands out sessions by the transaction.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kubewharf_engine::conformance;
use kubewharf_testkit::address::free_port;
use kubewharf_testkit::postgres::Postgres as Server;
use kubewharf_testkit::process::{Process, Spec};

use crate::stores::PostgresStore;

/// Where Debian and others put it, if it is installed.
fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    folders.map(|folder| folder.join("pgbouncer")).find(|program| program.is_file())
}

fn start(program: &Path, server: &Server) -> (Process, String) {
    let address = free_port();
    let folder = server.folder();
    let settings = format!(
        "[databases]\n* = host={} port={} user=postgres\n[pgbouncer]\nlisten_addr = {}\nlisten_port = {}\n\
         unix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = 40\n\
         max_client_conn = 400\n",
        server.address().ip(),
        server.address().port(),
        address.ip(),
        address.port(),
    );
    let settings = folder.write("pgbouncer.ini", &settings).unwrap();
    let mut spec = Spec::new("pgbouncer", program, folder.path()).arg(&settings);
    if let Some((user, group)) = server.owner() {
        spec = spec.owner(user, group);
    }
    let mut process = spec.start().unwrap();
    let url = format!("postgres://postgres@{address}/postgres?pgbouncer=true");
    let psql = server.programs().join("psql");
    process
        .wait_until(Duration::from_secs(20), |_| {
            let plain = url.replace("?pgbouncer=true", "");
            Command::new(&psql).args(["-X", "-q", "-c", "SELECT 1", &plain]).output().unwrap().status.success()
        })
        .unwrap();
    (process, url)
}

#[test]
fn postgres_conforms_behind_pgbouncer() {
    let Some(program) = program() else {
        eprintln!("pgbouncer is not installed: nothing is tested behind it");
        return;
    };
    let server = Server::start().unwrap();
    let (_pooler, url) = start(&program, &server);
    let scratch = tempfile::tempdir().unwrap();
    conformance::run(&|| Box::new(PostgresStore::new(&url, false)), scratch.path());
}
