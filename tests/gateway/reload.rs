//! Configurations that change under load.

use kubewharf_testkit::http::Client;
use serde_json::{Value, json};

use crate::fixture::{Fixture, wait};
use crate::load::{Load, while_writing};
use crate::mock::Mock;
use crate::mock::informers::Informers;
use crate::mock::requests::Requests;

const ROUNDS: usize = 100;

/// A configuration of that round, told by what it forbids: to get the ConfigMap [`sign`].
fn spec(round: usize) -> String {
    let strategy = ["RoundRobin", "LeastWork", "Latency", "Rendezvous"][round / 4 % 4];
    format!(
        "  flowControl:
    flowControlSchemas:
    - name: limit
      tokenBucket: {{qps: {limit}, burst: {limit}}}
    - name: limit-{round}
      maxRequestsInflight: {{max: {limit}}}
  dispatchPolicies:
  - name: watches-{round}
    strategy: {strategy}
    rules:
    - verbs: [watch]
      apiGroups: ['*']
      resources: ['*']
    flowControlSchemaName: limit-{round}
  - name: everything
    strategy: {strategy}
    flowControlSchemaName: limit
    rules:
    - verbs: ['*']
      apiGroups: ['*']
      resources: ['*']
    - verbs: ['*']
      nonResourceURLs: ['*']
  access:
    deny:
    - verbs: [get]
      apiGroups: ['']
      resources: [configmaps]
      resourceNames: [round-{round}]
",
        limit = 5000 + round,
    )
}

/// What the configuration of that round does not let anybody get.
fn sign(round: usize) -> String {
    format!("/api/v1/namespaces/team/configmaps/round-{round}")
}

/// The configuration of that round is in use.
fn is_in_use(client: &Client, round: usize) -> bool {
    let answer = client.get(&sign(round)).unwrap();
    assert!([403, 404].contains(&answer.status), "{answer:?}");
    answer.status == 403
}

#[test]
fn a_hundred_configurations_in_turn_fail_no_request_and_end_no_watch() {
    let fixture = Fixture::start(&spec(0));
    let endpoints = fixture.endpoints();
    let mut load = Load::start(&fixture);
    let client = fixture.admin();
    let writer = fixture.admin();
    let failures = while_writing(&writer, || {
        let mut good = 0;
        for round in 1..=ROUNDS {
            let generation = fixture.gateway.status()["generation"].clone();
            match round % 4 {
                0 => fixture.gateway.configure(&endpoints, &spec(round)),
                1 => fixture.gateway.configure(&endpoints[..1], &spec(round)),
                3 => fixture.gateway.configure(&endpoints[1..], &spec(round)),
                _ => {
                    refuse(&fixture, round, &generation);
                    assert!(is_in_use(&client, good), "the last good one is not used any more");
                    continue;
                }
            }
            wait("the new configuration is used", || is_in_use(&client, round));
            assert!(!is_in_use(&client, good), "the configuration before is used still");
            wait("nothing is wrong", || fixture.gateway.status()["config_errors"] == json!([]));
            good = round;
        }
    });
    // Not even a request that may not be sent twice has failed.
    assert!(failures.is_empty(), "{failures:#?}");
    load.wait_until_all_is_known();
    let report = load.finish();
    assert_eq!(report["informers"]["watches"], 0, "watches ended and were begun again: {report:#}");
}

#[test]
#[ignore = "takes two minutes"]
fn five_hundred_configurations_in_turn_do_not_touch_two_thousand_watches_and_a_thousand_requests_a_second() {
    const ROUNDS: usize = 500;
    const WATCHES: usize = 2000;
    let mock = Mock::start(2, &spec(0));
    let endpoints = mock.endpoints();
    let informers = Informers::start(&mock, WATCHES, 20);
    let requests = Requests::start(&mock, 1000, 20);
    for round in 1..=ROUNDS {
        let generation = mock.gateway.status()["generation"].clone();
        // The same endpoints twice, then one of them alone.
        let endpoints = match round % 4 {
            1 => &endpoints[..1],
            3 => &endpoints[1..],
            _ => &endpoints[..],
        };
        mock.gateway.configure(endpoints, &spec(round));
        wait("the new configuration is used", || mock.gateway.status()["generation"] != generation);
        if round % 10 == 0 {
            mock.etcd.write();
        }
    }
    assert_eq!(mock.gateway.status()["config_errors"], json!([]));
    informers.wait_until_all_is_known(&mock);
    let informers = informers.finish(&mock);
    let requests = requests.finish(&mock);
    println!("{requests:?} {informers:?}");
    assert_eq!((requests.failures, informers.relists), ([].into(), [].into()));
    assert_eq!(requests.sent, requests.answered);
    assert_eq!(informers.begun, WATCHES as u64, "some watches ended");
    // What was counted for policies that are gone is gone too.
    let metrics = mock.gateway.ask_admin("/metrics");
    assert!(metrics.contains(&format!("policy=\"watches-{ROUNDS}\"")) && !metrics.contains("policy=\"watches-7\""));
}

/// Puts a file there that can't be used, and checks that it is told and not used.
fn refuse(fixture: &Fixture, round: usize, generation: &Value) {
    let bad = [
        ("  dispatchPolicies: [\n", ""),
        ("  dispatchPolicys: []\n", "dispatchPolicys"),
        ("  dispatchPolicies:\n  - strategy: Fastest\n    rules: [{verbs: ['*']}]\n", "strategy"),
    ];
    let (spec, field) = bad[round / 4 % bad.len()];
    fixture.gateway.configure(&fixture.endpoints(), spec);
    wait("the bad file is told", || fixture.gateway.status()["config_errors"] != json!([]));
    let status = fixture.gateway.status();
    let mut errors = status["config_errors"].as_array().unwrap().iter().map(|error| error.as_str().unwrap());
    let error = errors.find(|error| error.contains("config/cluster.yaml:") && error.contains(field));
    let error = error.unwrap_or_else(|| panic!("{field}: {status:#}"));
    assert_eq!(&status["generation"], generation);
    let log = fixture.gateway.process.log_text().unwrap();
    assert!(log.contains(error) && log.contains("last good"), "{error}\n{log}");
}
