//! Builds every real program that the tests need, before they run: building takes both cores for minutes, and tests that
//! run at the same time would wait for each other and miss their deadlines.

use std::process::ExitCode;
use std::time::Instant;

use kubewharf_testkit::go_program;
use kubewharf_testkit::storage_tests::StorageTests;
use kubewharf_testkit::tools::{Tool, Tools};

fn main() -> ExitCode {
    let started = Instant::now();
    let mut progress = |line: &str| println!("{line}");
    let built = Tools::find_or_build(Tool::ALL, &mut progress)
        .and_then(|tools| StorageTests::build(&mut progress).map(|tests| (tools, tests)))
        .and_then(|built| go_program::build("requestinfo", &mut progress).map(|_| built))
        .and_then(|built| go_program::build("rbac", &mut progress).map(|_| built))
        .and_then(|built| go_program::build("informers", &mut progress).map(|_| built))
        .and_then(|built| go_program::build("kubelet", &mut progress).map(|_| built));
    match built {
        Ok((tools, tests)) => {
            for &tool in Tool::ALL {
                println!("{tool}: {}", tools.path(tool).display());
            }
            println!("{} tests of Kubernetes' storage layer", tests.cases().len());
            println!("ready after {} s", started.elapsed().as_secs());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
