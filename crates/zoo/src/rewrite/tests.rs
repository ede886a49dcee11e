//! What becomes of whole bodies.

use std::sync::LazyLock;

use super::edits::put_varint;
use super::*;

mod generate;
mod oracle;
mod patches;
mod pods;
mod properties;

static NAMES: LazyLock<Names> = LazyLock::new(|| Names::of_uid("6f0a0d8c-58ab-4f7b-9f20-1c2d3e4f5a6b"));
const CREATE: Direction = Direction::Inward(Write::Create);
const UPDATE: Direction = Direction::Inward(Write::Update);

/// `P-` stands for the tenant's prefix, `UID` for its UID.
fn upstream(text: &str) -> String {
    text.replace("P-", NAMES.prefix()).replace("UID", NAMES.uid())
}

fn kind(api_version: &str, name: &str) -> Kind {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    Kind::of(group, version, name).unwrap()
}

fn rewrite(kind: Kind, direction: Direction, input: &str) -> Result<String, RewriteError> {
    let mut output = Vec::new();
    object(Encoding::Json, kind, direction, &NAMES, input.as_bytes(), &mut output)?;
    Ok(String::from_utf8(output).unwrap())
}

/// The tenant's body becomes the one upstream, and that becomes the tenant's.
#[track_caller]
fn both_ways(kind: Kind, tenant: &str, cluster: &str) {
    assert_eq!(rewrite(kind, CREATE, tenant).unwrap(), upstream(cluster), "inward");
    assert_eq!(rewrite(kind, Direction::Outward, &upstream(cluster)).unwrap(), tenant, "outward");
}

#[track_caller]
fn outward(kind: Kind, cluster: &str, tenant: &str) {
    assert_eq!(rewrite(kind, Direction::Outward, &upstream(cluster)).unwrap(), tenant);
}

#[track_caller]
fn refused(kind: Kind, direction: Direction, input: &str, path: &str) {
    match rewrite(kind, direction, input) {
        Err(RewriteError::Refused(refusal)) => assert_eq!(refusal.field, path),
        other => panic!("{other:?} instead of a refusal of {path}"),
    }
}

#[test]
fn a_pods_namespaces_are_mapped_and_all_else_stays() {
    both_ways(
        kind("v1", "Pod"),
        r#"{"kind":"Pod","apiVersion":"v1", "metadata" : {"name":"a","namespace":"default","new":{"namespace":"x"}},
            "spec":{"containers":[{"name":"namespace","image":"i"}],"volumes":[{"name":"v","ephemeral":{"volumeClaimTemplate":
            {"spec":{"dataSourceRef":{"kind":"Claim","name":"c","namespace":"other"}}}}}],
            "affinity":{"podAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":[{"namespaces":["a","b"]}]}}}} "#,
        r#"{"kind":"Pod","apiVersion":"v1", "metadata" : {"name":"a","namespace":"P-default","new":{"namespace":"x"}},
            "spec":{"containers":[{"name":"namespace","image":"i"}],"volumes":[{"name":"v","ephemeral":{"volumeClaimTemplate":
            {"spec":{"dataSourceRef":{"kind":"Claim","name":"c","namespace":"P-other"}}}}}],
            "affinity":{"podAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":[{"namespaces":["P-a","P-b"]}]}}}} "#,
    );
}

#[test]
fn a_namespace_has_a_prefixed_name_and_the_tenants_label() {
    let namespace = kind("v1", "Namespace");
    both_ways(
        namespace,
        r#"{"metadata":{"name":"a","labels":{"x":"y","kubernetes.io/metadata.name":"a"}}}"#,
        r#"{"metadata":{"name":"P-a","labels":{"x":"y","kubernetes.io/metadata.name":"P-a","tenancy.kubewharf.io/tenant":"UID"}}}"#,
    );
    both_ways(
        namespace,
        r#"{"metadata":{"generateName":"a-"},"kind":"Namespace","apiVersion":"v1"}"#,
        r#"{"metadata":{"generateName":"P-a-","labels":{"tenancy.kubewharf.io/tenant":"UID"}},"kind":"Namespace","apiVersion":"v1"}"#,
    );
    let added = rewrite(namespace, UPDATE, "{}").unwrap();
    assert_eq!(added, upstream(r#"{"metadata":{"labels":{"tenancy.kubewharf.io/tenant":"UID"}}}"#));
    let added = rewrite(namespace, UPDATE, r#"{"metadata":null}"#).unwrap();
    assert_eq!(added, upstream(r#"{"metadata":{"labels":{"tenancy.kubewharf.io/tenant":"UID"}}}"#));
    let added = rewrite(namespace, UPDATE, r#"{"metadata":{"labels":null}}"#).unwrap();
    assert_eq!(added, upstream(r#"{"metadata":{"labels":{"tenancy.kubewharf.io/tenant":"UID"}}}"#));
    outward(
        namespace,
        r#"{"metadata":{"name":"P-a","labels":{"a":"1","tenancy.kubewharf.io/tenant":"UID","tenancy.kubewharf.io/x":"2","b":"3"},
            "managedFields":[{"fieldsV1":{"f:metadata":{"f:labels":{"f:tenancy.kubewharf.io/tenant":{}}},"f:spec":{}}}]}}"#,
        r#"{"metadata":{"name":"a","labels":{"a":"1","b":"3"},
            "managedFields":[{"fieldsV1":{"f:metadata":{},"f:spec":{}}}]}}"#,
    );
}

#[test]
fn another_tenants_object_is_not_told() {
    let foreign = Names::of_uid("another").inward("a");
    for (kind, body, path) in [
        (kind("v1", "Namespace"), format!(r#"{{"metadata":{{"name":"{foreign}"}}}}"#), "metadata.name"),
        (kind("v1", "Pod"), r#"{"metadata":{"namespace":"kube-system"}}"#.to_owned(), "metadata.namespace"),
        (
            kind("v1", "PodList"),
            r#"{"items":[{},{"metadata":{"namespace":"x"}}]}"#.to_owned(),
            "items[1].metadata.namespace",
        ),
    ] {
        let error = rewrite(kind, Direction::Outward, &body).unwrap_err();
        assert!(matches!(&error, RewriteError::Foreign(field) if field == path), "{error}");
    }
    outward(
        kind("v1", "Event"),
        r#"{"involvedObject":{"namespace":"kube-system","kind":"Namespace","name":"kube-system"}}"#,
        r#"{"involvedObject":{"namespace":"","kind":"Namespace","name":""}}"#,
    );
}

#[test]
fn names_in_references_are_chosen_by_the_kind_in_any_order() {
    both_ways(
        kind("v1", "ConfigMap"),
        r#"{"metadata":{"ownerReferences":[{"name":"a","apiVersion":"v1","kind":"Namespace"},
            {"apiVersion":"x.io/v1","kind":"Namespace","name":"a"},{"kind":"Pod","name":"a"}]}}"#,
        r#"{"metadata":{"ownerReferences":[{"name":"P-a","apiVersion":"v1","kind":"Namespace"},
            {"apiVersion":"x.io/v1","kind":"Namespace","name":"a"},{"kind":"Pod","name":"a"}]}}"#,
    );
    both_ways(
        kind("rbac.authorization.k8s.io/v1", "RoleBinding"),
        r#"{"subjects":[{"kind":"User","name":"jane"},{"name":"system:serviceaccount:a:b","kind":"User"},
            {"kind":"Group","name":"system:authenticated"},{"kind":"ServiceAccount","name":"s","namespace":"n"}],
            "roleRef":{"name":"view","kind":"ClusterRole"}}"#,
        r#"{"subjects":[{"kind":"User","name":"P-jane"},{"name":"system:serviceaccount:P-a:b","kind":"User"},
            {"kind":"Group","name":"P-system:authenticated"},{"kind":"ServiceAccount","name":"s","namespace":"P-n"}],
            "roleRef":{"name":"P-view","kind":"ClusterRole"}}"#,
    );
    both_ways(
        kind("rbac.authorization.k8s.io/v1", "RoleBinding"),
        r#"{"roleRef":{"kind":"Role","name":"view"}}"#,
        r#"{"roleRef":{"kind":"Role","name":"view"}}"#,
    );
}

#[test]
fn escapes_do_not_hide_a_name() {
    both_ways(
        kind("v1", "Pod"),
        r#"{"meta\u0064ata":{"namespace":"d\u0065fault"}}"#,
        r#"{"meta\u0064ata":{"namespace":"P-d\u0065fault"}}"#,
    );
    let escaped = upstream(r#"{"metadata":{"namespace":"P-a"}}"#).replace("kz", r"\u006bz");
    assert_eq!(rewrite(kind("v1", "Pod"), Direction::Outward, &escaped).unwrap(), r#"{"metadata":{"namespace":"a"}}"#);
}

#[test]
fn fields_given_twice_cannot_split_a_decision() {
    both_ways(
        kind("v1", "Pod"),
        r#"{"metadata":{"namespace":"a","namespace":"b","labels":{},"labels":{}}}"#,
        r#"{"metadata":{"namespace":"P-a","namespace":"P-b","labels":{},"labels":{}}}"#,
    );
    let pod = kind("v1", "Pod");
    refused(pod, CREATE, r#"{"metadata":{},"metadata":{}}"#, "metadata");
    let event = kind("v1", "Event");
    refused(event, CREATE, r#"{"involvedObject":{"kind":"Pod","kind":"Namespace"}}"#, "involvedObject.kind");
    for body in [r#"{"kind":"Pod","kind":"Namespace"}"#, r#"{"kind":"Pod","\u006bind":"Namespace"}"#] {
        assert!(rewrite(pod, CREATE, body).is_err(), "{body}");
    }
    refused(pod, CREATE, r#"{"kind":"Pod","KIND":"Namespace"}"#, "KIND");
    refused(pod, CREATE, "{\"\u{212a}ind\":\"Namespace\"}", "\u{212a}ind");
}

#[test]
fn namespace_selectors_are_bound_to_the_tenant() {
    let policy = kind("networking.k8s.io/v1", "NetworkPolicy");
    both_ways(
        policy,
        r#"{"spec":{"ingress":[{"from":[{"namespaceSelector":{}},{"namespaceSelector":null},{"podSelector":{}},
            {"namespaceSelector":{"matchLabels":{"kubernetes.io/metadata.name":"a","x":"y"}}},
            {"namespaceSelector":{"matchExpressions":[{"values":["a","b"],"key":"kubernetes.io/metadata.name","operator":"NotIn"}]}}]}]}}"#,
        r#"{"spec":{"ingress":[{"from":[{"namespaceSelector":{"matchExpressions":[{"key":"tenancy.kubewharf.io/tenant","operator":"In","values":["UID"]}]}},{"namespaceSelector":null},{"podSelector":{}},
            {"namespaceSelector":{"matchLabels":{"kubernetes.io/metadata.name":"P-a","x":"y"},"matchExpressions":[{"key":"tenancy.kubewharf.io/tenant","operator":"In","values":["UID"]}]}},
            {"namespaceSelector":{"matchExpressions":[{"values":["P-a","P-b"],"key":"kubernetes.io/metadata.name","operator":"NotIn"},{"key":"tenancy.kubewharf.io/tenant","operator":"In","values":["UID"]}]}}]}]}}"#,
    );
    refused(
        policy,
        CREATE,
        r#"{"spec":{"ingress":[{"from":[{"namespaceSelector":{"matchExpressions":[{"key":"tenancy.kubewharf.io/tenant"}]}}]}]}}"#,
        "spec.ingress[0].from[0].namespaceSelector.matchExpressions[0].key",
    );
}

#[test]
fn the_reserved_domain_is_refused_inward_and_hidden_outward() {
    let pod = kind("v1", "Pod");
    for (body, path) in [
        (r#"{"metadata":{"labels":{"tenancy.kubewharf.io/x":"y"}}}"#, "metadata.labels.tenancy.kubewharf.io/x"),
        (
            r#"{"metadata":{"annotations":{"tenancy.kubewharf.io\/x":"y"}}}"#,
            "metadata.annotations.tenancy.kubewharf.io/x",
        ),
        (r#"{"metadata":{"finalizers":["a","tenancy.kubewharf.io/x"]}}"#, "metadata.finalizers[1]"),
        (r#"{"spec":{"nodeSelector":{"tenancy.kubewharf.io/x":"y"}}}"#, "spec.nodeSelector.tenancy.kubewharf.io/x"),
    ] {
        refused(pod, CREATE, body, path);
    }
    outward(
        pod,
        r#"{"metadata":{"labels":{"tenancy.kubewharf.io/x":"y"},"finalizers":["tenancy.kubewharf.io/x","a"],"annotations":{}}}"#,
        r#"{"metadata":{"finalizers":["a"],"annotations":{}}}"#,
    );
}

#[test]
fn some_fields_may_not_be_written() {
    let pod = kind("v1", "Pod");
    refused(pod, CREATE, r#"{"spec":{"nodeName":"n"}}"#, "spec.nodeName");
    assert!(rewrite(pod, CREATE, r#"{"spec":{"nodeName":""}}"#).is_ok());
    assert!(rewrite(pod, UPDATE, r#"{"spec":{"nodeName":"n"}}"#).is_ok());
    let deployment = kind("apps/v1", "Deployment");
    refused(deployment, UPDATE, r#"{"spec":{"template":{"spec":{"nodeName":"n"}}}}"#, "spec.template.spec.nodeName");
    refused(kind("v1", "Service"), UPDATE, r#"{"spec":{"externalIPs":["1.2.3.4"]}}"#, "spec.externalIPs");
    assert!(rewrite(kind("v1", "Service"), UPDATE, r#"{"spec":{"externalIPs":[]}}"#).is_ok());
    refused(kind("v1", "Binding"), CREATE, r#"{"target":{"kind":"Node","name":"n"}}"#, "target");

    let claim = kind("v1", "PersistentVolumeClaim");
    refused(claim, CREATE, r#"{"spec":{"volumeName":"v"}}"#, "spec.volumeName");
    let body = br#"{"spec":{"volumeName":"v"}}"#;
    let unchanged = object(Encoding::Json, claim, UPDATE, &NAMES, body, &mut Vec::new()).unwrap();
    assert_eq!(unchanged, [Unchanged { field: "spec.volumeName", value: "v".to_owned() }]);
}

#[test]
fn a_pods_node_is_withheld_and_text_loses_the_prefix() {
    outward(
        kind("v1", "Pod"),
        r#"{"status":{"hostIP":"10.0.0.1","hostIPs":[{"ip":"10.0.0.1"}],"podIP":"10.1.0.1","message":"in P-a","conditions":[{"message":"\"P-b\""}],
            "containerStatuses":[{"state":{"waiting":{"message":"P-c/d"}}}]}}"#,
        r#"{"status":{"podIP":"10.1.0.1","message":"in a","conditions":[{"message":"\"b\""}],
            "containerStatuses":[{"state":{"waiting":{"message":"c/d"}}}]}}"#,
    );
}

#[test]
fn statuses_and_tables_are_known_by_what_they_say() {
    outward(
        kind("v1", "Pod"),
        r#"{"kind":"Status","apiVersion":"v1","message":"namespaces \"P-a\" not found","details":{"name":"P-a","kind":"namespaces","causes":[{"message":"P-a"}]}}"#,
        r#"{"kind":"Status","apiVersion":"v1","message":"namespaces \"a\" not found","details":{"name":"a","kind":"namespaces","causes":[{"message":"a"}]}}"#,
    );
    outward(
        kind("v1", "Namespace"),
        r#"{"kind":"Table","apiVersion":"meta.k8s.io/v1","rows":[{"cells":["P-a",1,null],"object":{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"name":"P-a","labels":{"tenancy.kubewharf.io/tenant":"UID"}}}},
            {"cells":[],"object":null}]}"#,
        r#"{"kind":"Table","apiVersion":"meta.k8s.io/v1","rows":[{"cells":["a",1,null],"object":{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"name":"a"}}},
            {"cells":[],"object":null}]}"#,
    );
    outward(
        kind("v1", "Pod"),
        r#"{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1","items":[{"metadata":{"name":"P-a","namespace":"P-a"}}]}"#,
        &upstream(
            r#"{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1","items":[{"metadata":{"name":"P-a","namespace":"a"}}]}"#,
        ),
    );
    let mut output = Vec::new();
    let event =
        upstream(r#"{"type":"ADDED","object":{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"P-a"}}}"#);
    watch_event(Encoding::Json, kind("v1", "Namespace"), &NAMES, event.as_bytes(), &mut output).unwrap();
    assert_eq!(output, br#"{"type":"ADDED","object":{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"a"}}}"#);
}

#[test]
fn objects_in_strings_are_rewritten() {
    both_ways(
        kind("v1", "Service"),
        r#"{"metadata":{"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"{\"kind\":\"Service\",\"apiVersion\":\"v1\",\"metadata\":{\"namespace\":\"a\"}}\n"}}}"#,
        r#"{"metadata":{"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"{\"kind\":\"Service\",\"apiVersion\":\"v1\",\"metadata\":{\"namespace\":\"P-a\"}}\n"}}}"#,
    );
    both_ways(
        kind("v1", "Secret"),
        r#"{"data":{"namespace":"ZGVmYXVsdA=="},"type":"Opaque"}"#,
        r#"{"data":{"namespace":"ZGVmYXVsdA=="},"type":"Opaque"}"#,
    );
    let secret = r#"{"data":{"namespace":"ZGVmYXVsdA=="},"stringData":{"namespace":"a"},"type":"kubernetes.io/service-account-token"}"#;
    refused(kind("v1", "Secret"), CREATE, secret, "type");
    let inward = rewrite(kind("v1", "Secret"), Direction::Inward(Write::Update), secret).unwrap();
    assert!(!inward.contains("ZGVmYXVsdA==") && inward.contains(&upstream(r#""P-a""#)), "{inward}");
    assert_eq!(rewrite(kind("v1", "Secret"), Direction::Outward, &inward).unwrap(), secret);
    both_ways(
        kind("apps/v1", "ControllerRevision"),
        r#"{"data":{"spec":{"template":{"metadata":{"namespace":"a"}}}}}"#,
        r#"{"data":{"spec":{"template":{"metadata":{"namespace":"P-a"}}}}}"#,
    );
}

#[test]
fn of_custom_resources_only_the_metadata_is_rewritten() {
    both_ways(
        Kind::custom(),
        r#"{"apiVersion":"x.io/v1","kind":"Foo","metadata":{"name":"a","namespace":"b"},"spec":{"namespace":"c"}}"#,
        r#"{"apiVersion":"x.io/v1","kind":"Foo","metadata":{"name":"a","namespace":"P-b"},"spec":{"namespace":"c"}}"#,
    );
    both_ways(
        Kind::custom_of_cluster().list(),
        r#"{"items":[{"metadata":{"name":"a","labels":{"b":"c"}}}]}"#,
        r#"{"items":[{"metadata":{"name":"P-a","labels":{"b":"c","tenancy.kubewharf.io/tenant":"UID"}}}]}"#,
    );
    assert!(matches!(rewrite(kind("v1", "Pod"), CREATE, r#"{"kind":"Foo"}"#), Err(RewriteError::Unsupported(_))));
}

#[test]
fn bodies_of_subresources_are_known_by_their_own_kind() {
    let pod = kind("v1", "Pod");
    both_ways(
        pod,
        r#"{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":"a","namespace":"b"}}"#,
        r#"{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":"a","namespace":"P-b"}}"#,
    );
    both_ways(
        kind("apps/v1", "Deployment"),
        r#"{"kind":"Scale","apiVersion":"autoscaling/v1","metadata":{"namespace":"b"},"spec":{"replicas":2}}"#,
        r#"{"kind":"Scale","apiVersion":"autoscaling/v1","metadata":{"namespace":"P-b"},"spec":{"replicas":2}}"#,
    );
    both_ways(
        pod,
        r#"{"kind":"DeleteOptions","apiVersion":"v1","preconditions":{"uid":"u"}}"#,
        r#"{"kind":"DeleteOptions","apiVersion":"v1","preconditions":{"uid":"u"}}"#,
    );
    assert_eq!(type_of(Encoding::Json, br#"{"items":[{"kind":"Pod"}],"kind":"PodList"}"#).unwrap().kind, "PodList");
}

#[test]
fn objects_in_objects_have_an_end() {
    let deep = r#"{"apiVersion":"v1","kind":"List","items":["#.repeat(10_000);
    assert!(matches!(rewrite(kind("v1", "List"), CREATE, &deep), Err(RewriteError::Malformed(_))));
}

#[test]
fn what_a_tenant_wrote_unchecked_keeps_nobody_from_reading() {
    let revision = kind("apps/v1", "ControllerRevision");
    let tenant = r#"{"data":{"spec":{"template":{"spec":{"affinity":[{"namespaces":["a"]}]}}}}}"#;
    assert!(rewrite(revision, CREATE, tenant).is_err(), "a pod has no such affinity");
    outward(
        revision,
        r#"{"data":{"spec":{"template":{"spec":{"affinity":["P-a"]}}}}}"#,
        &tenant.replace(r#"{"namespaces":["a"]}"#, r#""a""#),
    );
    let body =
        |data: &str| Bytes::default().field(2, Bytes::default().field(1, data)).body("apps/v1", "ControllerRevision");
    let read = rewrite_wire(revision, Direction::Outward, &body(&upstream(r#"{"spec":["P-a","#))).unwrap();
    assert_eq!(read, body(r#"{"spec":["a","#));
}

/// A message of protobuf, field by field.
#[derive(Default, Clone)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn field(mut self, number: u32, content: impl AsRef<[u8]>) -> Self {
        put_varint(u64::from(number << 3 | 2), &mut self.0);
        put_varint(content.as_ref().len() as u64, &mut self.0);
        self.0.extend_from_slice(content.as_ref());
        self
    }

    fn number(mut self, number: u32, value: u64) -> Self {
        put_varint(u64::from(number << 3), &mut self.0);
        put_varint(value, &mut self.0);
        self
    }

    fn body(self, api_version: &str, kind: &str) -> Vec<u8> {
        let type_meta = Self::default().field(1, api_version).field(2, kind);
        [b"k8s\0", &*Self::default().field(1, type_meta).field(2, self).field(3, "").field(4, "").0].concat()
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

fn rewrite_wire(kind: Kind, direction: Direction, input: &[u8]) -> Result<Vec<u8>, RewriteError> {
    let mut output = Vec::new();
    object(Encoding::Protobuf, kind, direction, &NAMES, input, &mut output)?;
    Ok(output)
}

#[track_caller]
fn both_ways_on_the_wire(kind: Kind, body: impl Fn(&dyn Fn(&str) -> String) -> Vec<u8>) {
    let tenant = body(&|text| text.replace("P-", ""));
    let cluster = body(&upstream);
    assert_eq!(rewrite_wire(kind, CREATE, &tenant).unwrap(), cluster, "inward");
    assert_eq!(rewrite_wire(kind, Direction::Outward, &cluster).unwrap(), tenant, "outward");
}

#[test]
fn protobuf_is_rewritten_with_its_lengths() {
    // A long unknown field takes lengths across a step of their encoding.
    for filler in [0, 90, 127, 16_300, 16_383] {
        both_ways_on_the_wire(kind("v1", "PodList"), |text| {
            let owner = Bytes::default().field(3, text("P-a")).field(1, "Namespace").field(5, "v1").number(6, 1);
            let metadata = Bytes::default().field(1, "pod").field(3, text("P-default")).field(13, owner);
            let pod = Bytes::default().field(1, metadata).field(2, Bytes::default()).field(99, vec![7; filler]);
            Bytes::default().field(1, Bytes::default()).field(2, pod.clone()).field(2, pod).body("v1", "PodList")
        });
    }
}

#[test]
fn a_namespace_in_protobuf_gets_the_tenants_label() {
    let namespace = kind("v1", "Namespace");
    let plain = |name: &str| Bytes::default().field(1, name).field(11, Bytes::default().field(1, "a").field(2, "b"));
    let label = Bytes::default().field(1, TENANT_LABEL).field(2, NAMES.uid());
    let tenant = Bytes::default().field(1, plain("a")).body("v1", "Namespace");
    let cluster = Bytes::default().field(1, plain(&upstream("P-a")).field(11, &label)).body("v1", "Namespace");
    assert_eq!(rewrite_wire(namespace, CREATE, &tenant).unwrap(), cluster);
    assert_eq!(rewrite_wire(namespace, Direction::Outward, &cluster).unwrap(), tenant);
    let empty = rewrite_wire(namespace, CREATE, &Bytes::default().body("v1", "Namespace")).unwrap();
    assert_eq!(empty, Bytes::default().field(1, Bytes::default().field(11, &label)).body("v1", "Namespace"));

    let event = Bytes::default().field(1, "ADDED").field(2, Bytes::default().field(1, &cluster));
    let mut output = Vec::new();
    watch_event(Encoding::Protobuf, namespace, &NAMES, event.as_ref(), &mut output).unwrap();
    assert_eq!(output, Bytes::default().field(1, "ADDED").field(2, Bytes::default().field(1, &tenant)).0);
}

#[test]
fn selectors_and_inner_json_are_found_in_protobuf() {
    both_ways_on_the_wire(kind("apps/v1", "ControllerRevision"), |text| {
        let json = text(r#"{"spec":{"template":{"metadata":{"namespace":"P-a"}}}}"#);
        Bytes::default().field(2, Bytes::default().field(1, json)).number(3, 1).body("apps/v1", "ControllerRevision")
    });
    let policy = |selector: Bytes| {
        let peer = Bytes::default().field(2, selector);
        let rule = Bytes::default().field(2, peer);
        Bytes::default().field(2, Bytes::default().field(2, rule)).body("networking.k8s.io/v1", "NetworkPolicy")
    };
    let requirement = Bytes::default().field(1, TENANT_LABEL).field(2, "In").field(3, NAMES.uid());
    let (tenant, cluster) = (policy(Bytes::default()), policy(Bytes::default().field(2, requirement)));
    let kind = kind("networking.k8s.io/v1", "NetworkPolicy");
    assert_eq!(rewrite_wire(kind, CREATE, &tenant).unwrap(), cluster);
    assert_eq!(rewrite_wire(kind, Direction::Outward, &cluster).unwrap(), tenant);
}

#[test]
fn protobuf_that_could_be_read_in_two_ways_is_refused() {
    let pod = kind("v1", "Pod");
    let metadata = Bytes::default().field(3, "a");
    let twice = Bytes::default().field(1, &metadata).field(1, &metadata).body("v1", "Pod");
    assert!(matches!(rewrite_wire(pod, CREATE, &twice), Err(RewriteError::Refused(_))));
    // Field 1 + 2^32, which Go reads as field 1.
    let mut large = Vec::new();
    put_varint((1 << 35) | (1 << 3) | 2, &mut large);
    large.extend_from_slice(&[0]);
    assert!(matches!(rewrite_wire(pod, CREATE, &Bytes(large).body("v1", "Pod")), Err(RewriteError::Malformed(_))));
    assert!(matches!(rewrite_wire(pod, CREATE, b"{}"), Err(RewriteError::Malformed(_))));
    let custom = Bytes::default().body("x.io/v1", "Foo");
    assert!(matches!(rewrite_wire(Kind::custom(), CREATE, &custom), Err(RewriteError::Unsupported(_))));
    assert_eq!(type_of(Encoding::Protobuf, &custom).unwrap().kind, "Foo");
}

#[test]
fn an_event_about_what_is_in_no_namespace_is_in_default() {
    let event = kind("v1", "Event");
    both_ways(
        event,
        r#"{"involvedObject":{"kind":"Namespace","name":"a"},"message":"m"}"#,
        r#"{"involvedObject":{"namespace":"P-default","fieldPath":"P-","kind":"Namespace","name":"P-a"},"message":"m"}"#,
    );
    both_ways(event, r#"{"involvedObject":{}}"#, r#"{"involvedObject":{"namespace":"P-default","fieldPath":"P-"}}"#);
    both_ways(
        kind("events.k8s.io/v1", "Event"),
        r#"{"regarding":{"kind":"Node","name":"n","fieldPath":"spec"},"related":{"kind":"Node","name":"n"}}"#,
        r#"{"regarding":{"namespace":"P-default","kind":"Node","name":"n","fieldPath":"P-spec"},"related":{"kind":"Node","name":"n"}}"#,
    );
    for (tenant, cluster) in [
        (r#"{"fieldPath":null,"namespace":""}"#, r#"{"fieldPath":"P-","namespace":"P-default"}"#),
        (
            r#"{"namespace":null,"namespace":""}"#,
            r#"{"fieldPath":"P-","namespace":"P-default","namespace":"P-default"}"#,
        ),
    ] {
        let about = |text: &str| format!(r#"{{"involvedObject":{text}}}"#);
        assert_eq!(rewrite(event, CREATE, &about(tenant)).unwrap(), upstream(&about(cluster)));
        outward(event, &about(cluster), &about("{}"));
    }
    // One that says a namespace has no mark.
    both_ways(
        event,
        r#"{"involvedObject":{"kind":"Namespace","name":"a","namespace":"default","fieldPath":"x"}}"#,
        r#"{"involvedObject":{"kind":"Namespace","name":"P-a","namespace":"P-default","fieldPath":"x"}}"#,
    );
}
