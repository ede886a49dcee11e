//! Kubernetes' own tests of its storage layer, each run on a store of its own.
//!
//! Arguments are those of any test program: `cargo test -p kubewharf-tests --test storage -- TestGetList` runs those whose
//! name holds that text. `KUBEWHARF_TEST_STORE=etcd` runs them on etcd, which passes all of them.

use std::process::ExitCode;

use kubewharf_testkit::storage_tests::StorageTests;
use kubewharf_testkit::store::Kind;
use libtest_mimic::{Arguments, Trial};

/// Most of these tests wait for something most of the time.
const TESTS_PER_CORE: usize = 3;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    if arguments.test_threads.is_none() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        arguments.test_threads = Some(cores * TESTS_PER_CORE);
    }
    let tests = match StorageTests::build(&mut |line| eprintln!("{line}")) {
        Ok(tests) => tests,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let kind = Kind::from_environment();
    let trials = tests
        .cases()
        .iter()
        .map(|case| {
            let (tests, case) = (tests.clone(), case.clone());
            let name = format!("{}/{}", case.package, case.test);
            Trial::test(name, move || tests.run(&case, kind).map_err(|error| error.to_string().into()))
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
