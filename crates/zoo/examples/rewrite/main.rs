//! How fast bodies are rewritten: `cargo run --release -p kubewharf-zoo --example rewrite`.
//!
//! Prints megabytes of input a second on one core, best of several rounds, for lists of pods as kube-apiserver sends them.

use std::time::{Duration, Instant};

use kubewharf_zoo::names::Names;
use kubewharf_zoo::rewrite::{Direction, Encoding, Kind, Write, object, to_protobuf};

const POD: &str = include_str!("pod.json");
const ROUNDS: usize = 20;

fn main() {
    let names = Names::of_uid("6f0a0d8c-58ab-4f7b-9f20-1c2d3e4f5a6b");
    let kind = Kind::of("", "v1", "PodList").expect("Kubernetes has pods");
    for count in [1, 1_000] {
        let cluster = list(count, &names.inward("default"));
        let mut tenant = Vec::new();
        object(Encoding::Json, kind, Direction::Outward, &names, &cluster, &mut tenant)
            .expect("the list is well formed");
        // A tenant may not write a node.
        let tenant =
            String::from_utf8(tenant).expect("JSON is text").replace(r#""nodeName":"node-17","#, "").into_bytes();
        let in_protobuf = |json: &[u8]| to_protobuf(kind, json).expect("the list is well formed");
        for (encoding, cluster, tenant) in
            [(Encoding::Json, &cluster, &tenant), (Encoding::Protobuf, &in_protobuf(&cluster), &in_protobuf(&tenant))]
        {
            for (direction, input) in [(Direction::Outward, cluster), (Direction::Inward(Write::Create), tenant)] {
                measure(&format!("{count} pods, {encoding:?}, {direction:?}"), input, |output| {
                    object(encoding, kind, direction, &names, input, output).is_ok()
                });
            }
        }
    }
}

fn list(count: usize, namespace: &str) -> Vec<u8> {
    let pods: Vec<String> = (0..count)
        .map(|number| POD.trim().replace("NS", namespace).replace("ABCDE", &format!("{number:05}")))
        .collect();
    let start = r#"{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"184467"},"items":["#;
    format!("{start}{}]}}\n", pods.join(",")).into_bytes()
}

fn measure(what: &str, input: &[u8], rewrite: impl Fn(&mut Vec<u8>) -> bool) {
    let mut output = Vec::new();
    let mut best = Duration::MAX;
    let repeat = (2_000_000 / input.len()).max(1);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for _ in 0..repeat {
            output.clear();
            assert!(rewrite(&mut output), "{what}");
        }
        best = best.min(start.elapsed() / repeat as u32);
    }
    let rate = input.len() as f64 / best.as_secs_f64() / 1e6;
    println!("{what}: {} bytes, {:.1} µs, {rate:.0} MB/s", input.len(), best.as_secs_f64() * 1e6);
}
