//! What pods have upstream, and what the tenant sees of it.

use super::super::transcode::{to_json, to_protobuf};
use super::*;

/// A pod as the tenant sees it.
const SEEN: &str = r#"{"metadata":{"name":"a","annotations":{"k":"v"}},"spec":{"containers":[{"name":"c","env":[{"name":"OWN","value":"x"},{"name":"NAMESPACE","valueFrom":{"fieldRef":{"apiVersion":"v1","fieldPath":"metadata.namespace"}}},{"name":"KUBERNETES_SERVICE_HOST","value":"own"}]},{"name":"d"}],"volumes":[{"name":"kube-api-access-x","projected":{"sources":[{"serviceAccountToken":{"path":"token","expirationSeconds":3607}},{"configMap":{"name":"kube-root-ca.crt"}},{"downwardAPI":{"items":[{"path":"namespace","fieldRef":{"fieldPath":"metadata.namespace"}}]}},{"serviceAccountToken":{"path":"other","audience":"vault"}}]}},{"name":"told","downwardAPI":{"items":[{"path":"labels","fieldRef":{"fieldPath":"metadata.labels"}}]}}]}}"#;
/// The same pod upstream.
const KEPT: &str = r#"{"metadata":{"name":"a","annotations":{"k":"v","tenancy.kubewharf.io/namespace":"n","tenancy.kubewharf.io/api-host":"h","tenancy.kubewharf.io/api-port":"1"}},"spec":{"containers":[{"name":"c","env":[{"name":"KUBERNETES_SERVICE_PORT","valueFrom":{"fieldRef":{"apiVersion":"v1","fieldPath":"metadata.annotations['tenancy.kubewharf.io/api-port']"}}},{"name":"OWN","value":"x"},{"name":"NAMESPACE","valueFrom":{"fieldRef":{"apiVersion":"v1","fieldPath":"metadata.annotations['tenancy.kubewharf.io/namespace']"}}},{"name":"KUBERNETES_SERVICE_HOST","value":"own"}]},{"name":"d","env":[{"name":"KUBERNETES_SERVICE_HOST","valueFrom":{"fieldRef":{"fieldPath":"metadata.annotations['tenancy.kubewharf.io/api-host']"}}}]}],"volumes":[{"name":"kube-api-access-x","projected":{"sources":[{"serviceAccountToken":{"path":"token","expirationSeconds":3607,"audience":"zoo:UID"}},{"configMap":{"name":"kube-root-ca.crt"}},{"downwardAPI":{"items":[{"path":"namespace","fieldRef":{"fieldPath":"metadata.annotations['tenancy.kubewharf.io/namespace']"}}]}},{"serviceAccountToken":{"path":"other","audience":"zoo:UID:vault"}}]}},{"name":"told","downwardAPI":{"items":[{"path":"labels","fieldRef":{"fieldPath":"metadata.labels"}}]}}]}}"#;

fn pod() -> Kind {
    kind("v1", "Pod")
}

fn wire(direction: Direction, json: &str) -> serde_json::Value {
    let body = to_protobuf(pod(), json.as_bytes()).unwrap();
    let mut output = Vec::new();
    object(Encoding::Protobuf, pod(), direction, &NAMES, &body, &mut output).unwrap();
    serde_json::from_slice(&to_json(pod(), &output).unwrap()).unwrap()
}

fn decoded(json: &str) -> serde_json::Value {
    let body = to_protobuf(pod(), json.as_bytes()).unwrap();
    serde_json::from_slice(&to_json(pod(), &body).unwrap()).unwrap()
}

#[test]
fn a_tenant_sees_nothing_of_what_only_zoo_puts_in_pods() {
    outward(pod(), KEPT, SEEN);
    assert_eq!(wire(Direction::Outward, &upstream(KEPT)), decoded(SEEN));
    let event = format!(r#"{{"type":"ADDED","object":{{"kind":"Pod","apiVersion":"v1",{}}}"#, &upstream(KEPT)[1..]);
    let mut seen = Vec::new();
    watch_event(Encoding::Json, pod(), &NAMES, event.as_bytes(), &mut seen).unwrap();
    let seen = String::from_utf8(seen).unwrap();
    assert_eq!(seen, format!(r#"{{"type":"ADDED","object":{{"kind":"Pod","apiVersion":"v1",{}}}"#, &SEEN[1..]));
}

/// All that is compared as a whole is as it was; the rest is put back by the apiserver.
#[test]
fn what_was_read_of_a_pod_is_written_as_it_is_upstream() {
    let written: serde_json::Value = serde_json::from_str(&rewrite(pod(), UPDATE, SEEN).unwrap()).unwrap();
    let kept: serde_json::Value = serde_json::from_str(&upstream(KEPT)).unwrap();
    assert_eq!(written["spec"]["volumes"], kept["spec"]["volumes"]);
    assert_eq!(written["spec"]["containers"][0]["env"][1], kept["spec"]["containers"][0]["env"][2]);
    assert_eq!(wire(UPDATE, SEEN)["spec"]["volumes"], decoded(&upstream(KEPT))["spec"]["volumes"]);
    let without = r#"{"spec":{"volumes":[{"projected":{"sources":[{"serviceAccountToken":{"audience":""}},{"serviceAccountToken":{"audience":null}}]}}]}}"#;
    let with = r#"{"spec":{"volumes":[{"projected":{"sources":[{"serviceAccountToken":{"audience":"zoo:UID"}},{"serviceAccountToken":{"audience":"zoo:UID"}}]}}]}}"#;
    assert_eq!(rewrite(pod(), UPDATE, without).unwrap(), upstream(with));
}

#[test]
fn a_template_stays_as_it_is() {
    let text = format!(r#"{{"spec":{{"template":{SEEN}}}}}"#);
    both_ways(kind("apps/v1", "Deployment"), &text, &text);
}

#[test]
fn nobody_writes_what_only_zoo_may() {
    let audience = r#"{"volumes":[{"projected":{"sources":[{"serviceAccountToken":{"audience":"zoo:another"}}]}}]}"#;
    let path = r#"{"containers":[{"env":[{"valueFrom":{"fieldRef":{"fieldPath":"metadata.annotations['tenancy.kubewharf.io/api-host']"}}}]}]}"#;
    for (spec, field) in [
        (audience, "volumes[0].projected.sources[0].serviceAccountToken.audience"),
        (path, "containers[0].env[0].valueFrom.fieldRef.fieldPath"),
    ] {
        for direction in [CREATE, UPDATE] {
            refused(pod(), direction, &format!(r#"{{"spec":{spec}}}"#), &format!("spec.{field}"));
            let template = format!(r#"{{"spec":{{"template":{{"spec":{spec}}}}}}}"#);
            refused(kind("apps/v1", "Deployment"), direction, &template, &format!("spec.template.spec.{field}"));
        }
    }
}
