//! The protocol's rules, by the tests of h2spec.

use std::process::Command;

use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::pki::Authority;
use kubewharf_testkit::tools::{self, Tool};

use crate::fixture::{EVERYTHING, Gateway};
use crate::recorder::Mock;

/// What it tells at its end, of all its tests, those that are strict included.
const SUMMARY: &str = "146 tests, 146 passed, 0 skipped, 0 failed";

#[test]
fn http2_is_spoken_as_the_protocol_wants_it() {
    let program = tools::shared(Tool::H2spec).unwrap();
    let folder = Folder::new("h2spec").unwrap();
    let authority = Authority::new(&folder, "authority").unwrap();
    let mock = Mock::start();
    let spec = format!("{EVERYTHING}  anonymous: true\n");
    let gateway = Gateway::start(&authority, &[mock.url()], &spec);
    let output = Command::new(program)
        .args(["--tls", "--insecure", "--strict"])
        .arg(format!("--host={}", gateway.address.ip()))
        .arg(format!("--port={}", gateway.address.port()))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let failures = text.split_once("Failures:").map_or(&*text, |(_, failures)| failures);
    assert!(output.status.success(), "{failures}");
    // Those that are skipped would be no failures.
    assert!(text.contains(SUMMARY), "{text}");
}
