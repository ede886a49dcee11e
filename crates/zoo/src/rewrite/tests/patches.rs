//! What becomes of patches.

use super::*;

fn patched(patch_kind: PatchKind, kind: Kind, input: &str) -> Result<String, RewriteError> {
    let mut output = Vec::new();
    patch(patch_kind, kind, &NAMES, input.as_bytes(), &mut output)?;
    Ok(String::from_utf8(output).unwrap())
}

#[track_caller]
fn becomes(patch_kind: PatchKind, kind: Kind, tenant: &str, cluster: &str) {
    assert_eq!(patched(patch_kind, kind, tenant).unwrap(), upstream(cluster));
}

#[track_caller]
fn is_refused(patch_kind: PatchKind, kind: Kind, input: &str) {
    match patched(patch_kind, kind, input) {
        Err(RewriteError::Refused(_)) => {}
        other => panic!("{input} gave {other:?}"),
    }
}

fn namespace() -> Kind {
    kind("v1", "Namespace")
}

fn policy() -> Kind {
    kind("networking.k8s.io/v1", "NetworkPolicy")
}

fn binding() -> Kind {
    kind("rbac.authorization.k8s.io/v1", "RoleBinding")
}

#[test]
fn a_merge_patch_is_a_part_of_an_object() {
    becomes(
        PatchKind::Merge,
        kind("v1", "Pod"),
        r#"{"metadata":{"namespace":"a","labels":{"x":null}},"spec":{"nodeSelector":null}}"#,
        r#"{"metadata":{"namespace":"P-a","labels":{"x":null}},"spec":{"nodeSelector":null}}"#,
    );
    becomes(
        PatchKind::Merge,
        namespace(),
        r#"{"metadata":{"name":"a","labels":{"x":"y","kubernetes.io/metadata.name":"a"}}}"#,
        r#"{"metadata":{"name":"P-a","labels":{"x":"y","kubernetes.io/metadata.name":"P-a"}}}"#,
    );
    // Arrays are whole.
    becomes(
        PatchKind::Merge,
        policy(),
        r#"{"spec":{"ingress":[{"from":[{"namespaceSelector":{}}]}]}}"#,
        r#"{"spec":{"ingress":[{"from":[{"namespaceSelector":{"matchExpressions":[{"key":"tenancy.kubewharf.io/tenant","operator":"In","values":["UID"]}]}}]}]}}"#,
    );
    becomes(
        PatchKind::Merge,
        binding(),
        r#"{"subjects":[{"kind":"Group","name":"g"}]}"#,
        r#"{"subjects":[{"kind":"Group","name":"P-g"}]}"#,
    );
    // A patch's target is known from its path: what it says of its kind changes nothing.
    becomes(
        PatchKind::Merge,
        namespace(),
        r#"{"kind":"Pod","metadata":{"name":"a"}}"#,
        r#"{"kind":"Pod","metadata":{"name":"P-a"}}"#,
    );
    becomes(
        PatchKind::Merge,
        kind("autoscaling/v2", "HorizontalPodAutoscaler"),
        r#"{"spec":{"scaleTargetRef":{"name":"a"}}}"#,
        r#"{"spec":{"scaleTargetRef":{"name":"a"}}}"#,
    );
}

#[test]
fn a_merge_patch_cannot_take_the_tenants_label_away() {
    for patch_kind in [PatchKind::Merge, PatchKind::Strategic] {
        for patch in [
            r#"{"metadata":null}"#,
            r#"{"metadata":{"labels":null}}"#,
            r#"{"metadata":{"labels":{"tenancy.kubewharf.io/tenant":null}}}"#,
            r#"{"metadata":{"labels":{"tenancy.kubewharf.io/tenant":"another"}}}"#,
        ] {
            is_refused(patch_kind, namespace(), patch);
        }
    }
    for patch in [
        r#"{"$patch":"replace","metadata":{"name":"a"}}"#,
        r#"{"metadata":{"$patch":"replace","name":"a"}}"#,
        r#"{"metadata":{"labels":{"$patch":"replace"}}}"#,
        r#"{"metadata":{"$retainKeys":["name"],"name":"a"}}"#,
    ] {
        is_refused(PatchKind::Strategic, namespace(), patch);
    }
    is_refused(
        PatchKind::Merge,
        kind("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy"),
        r#"{"spec":{"matchConstraints":{"namespaceSelector":{}}}}"#,
    );
    becomes(
        PatchKind::Merge,
        kind("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy"),
        r#"{"spec":{"matchConstraints":{"namespaceSelector":{"matchExpressions":null}}}}"#,
        r#"{"spec":{"matchConstraints":{"namespaceSelector":{"matchExpressions":[{"key":"tenancy.kubewharf.io/tenant","operator":"In","values":["UID"]}]}}}}"#,
    );
}

#[test]
fn a_strategic_merge_patch_has_directives() {
    becomes(
        PatchKind::Strategic,
        kind("v1", "Pod"),
        r#"{"metadata":{"$deleteFromPrimitiveList/finalizers":["a"],"$setElementOrder/ownerReferences":[{"uid":"u"}],
            "ownerReferences":[{"uid":"u","$patch":"delete"}]},"spec":{"$setElementOrder/containers":[{"name":"c"}],
            "containers":[{"name":"c","image":"i","$retainKeys":["x"]}],"volumes":[{"$patch":"replace"}]}}"#,
        r#"{"metadata":{"$deleteFromPrimitiveList/finalizers":["a"],"$setElementOrder/ownerReferences":[{"uid":"u"}],
            "ownerReferences":[{"uid":"u","$patch":"delete"}]},"spec":{"$setElementOrder/containers":[{"name":"c"}],
            "containers":[{"name":"c","image":"i","$retainKeys":["x"]}],"volumes":[{"$patch":"replace"}]}}"#,
    );
    is_refused(
        PatchKind::Strategic,
        kind("v1", "Pod"),
        r#"{"metadata":{"$deleteFromPrimitiveList/finalizers":["tenancy.kubewharf.io/x"]}}"#,
    );
    is_refused(
        PatchKind::Strategic,
        policy(),
        r#"{"spec":{"ingress":[{"from":[{"namespaceSelector":{"$patch":"delete"}}]}]}}"#,
    );
    // The kind would be merged into a reference of another name.
    is_refused(
        PatchKind::Strategic,
        kind("v1", "Pod"),
        r#"{"metadata":{"ownerReferences":[{"uid":"u","kind":"Namespace"}]}}"#,
    );
    is_refused(PatchKind::Strategic, binding(), r#"{"roleRef":{"name":"view"}}"#);
    for reference in [
        r#"{"kind":"Namespace","name":"a"}"#,
        r#"{"apiVersion":"x.io/v1"}"#,
        r#"{"kind":null}"#,
        r#"{"name":"a","apiVersion":"v1"}"#,
    ] {
        let patch = format!(r#"{{"involvedObject":{reference}}}"#);
        is_refused(PatchKind::Merge, kind("v1", "Event"), &patch);
        is_refused(PatchKind::Strategic, kind("v1", "Event"), &patch);
    }
    becomes(
        PatchKind::Merge,
        kind("v1", "Event"),
        r#"{"involvedObject":{"kind":"Namespace","name":"a","apiVersion":"v1"}}"#,
        r#"{"involvedObject":{"kind":"Namespace","name":"P-a","apiVersion":"v1"}}"#,
    );
    let account = r#"{"secrets":[{"name":"a"}]}"#;
    becomes(PatchKind::Strategic, kind("v1", "ServiceAccount"), account, account);
    becomes(
        PatchKind::Strategic,
        binding(),
        r#"{"subjects":[{"$patch":"replace"}]}"#,
        r#"{"subjects":[{"$patch":"replace"}]}"#,
    );
}

#[test]
fn what_may_not_be_written_may_not_be_patched() {
    let claim = kind("v1", "PersistentVolumeClaim");
    for (patch_kind, body) in [
        (PatchKind::Merge, r#"{"spec":{"volumeName":"v"}}"#),
        (PatchKind::Json, r#"[{"op":"add","path":"/spec/volumeName","value":"v"}]"#),
    ] {
        let unchanged = patch(patch_kind, claim, &NAMES, body.as_bytes(), &mut Vec::new()).unwrap();
        assert_eq!(unchanged, [Unchanged { field: "spec.volumeName", value: "v".to_owned() }]);
    }
    let service = kind("v1", "Service");
    is_refused(PatchKind::Merge, service, r#"{"spec":{"externalIPs":["1.2.3.4"]}}"#);
    is_refused(PatchKind::Apply, service, r#"{"spec":{"externalIPs":["1.2.3.4"]}}"#);
    is_refused(PatchKind::Json, service, r#"[{"op":"add","path":"/spec/externalIPs/-","value":"1.2.3.4"}]"#);
    is_refused(PatchKind::Json, service, r#"[{"op":"replace","path":"/spec","value":{"externalIPs":["1.2.3.4"]}}]"#);
    is_refused(PatchKind::Json, service, r#"[{"op":"copy","from":"/spec/clusterIPs","path":"/spec/externalIPs"}]"#);
    assert!(patched(PatchKind::Json, service, r#"[{"op":"remove","path":"/spec/externalIPs"}]"#).is_ok());
}

#[test]
fn values_of_a_json_patch_are_walked_as_what_stands_at_the_path() {
    becomes(
        PatchKind::Json,
        kind("apps/v1", "Deployment"),
        r#"[{"op":"test","path":"/metadata/namespace","value":"a"},{"value":["b"],"path":"/spec/template/spec/affinity/podAffinity/requiredDuringSchedulingIgnoredDuringExecution/0/namespaces","op":"add"},
            {"op":"add","path":"/spec/template/spec/affinity/podAffinity/requiredDuringSchedulingIgnoredDuringExecution/-","value":{"namespaces":["c"]}},
            {"op":"replace","path":"/spec/replicas","value":3},{"op":"remove","path":"/metadata/annotations/x~1y"},
            {"op":"add","path":"/metadata/annotations/kubectl.kubernetes.io~1last-applied-configuration","value":"{\"metadata\":{\"namespace\":\"d\"}}"}]"#,
        r#"[{"op":"test","path":"/metadata/namespace","value":"P-a"},{"value":["P-b"],"path":"/spec/template/spec/affinity/podAffinity/requiredDuringSchedulingIgnoredDuringExecution/0/namespaces","op":"add"},
            {"op":"add","path":"/spec/template/spec/affinity/podAffinity/requiredDuringSchedulingIgnoredDuringExecution/-","value":{"namespaces":["P-c"]}},
            {"op":"replace","path":"/spec/replicas","value":3},{"op":"remove","path":"/metadata/annotations/x~1y"},
            {"op":"add","path":"/metadata/annotations/kubectl.kubernetes.io~1last-applied-configuration","value":"{\"metadata\":{\"namespace\":\"P-d\"}}"}]"#,
    );
    becomes(
        PatchKind::Json,
        namespace(),
        r#"[{"op":"replace","path":"/metadata/labels","value":{}},{"op":"add","path":"/metadata/labels/a","value":"b"},{"op":"test","path":"/metadata/name","value":"n"}]"#,
        r#"[{"op":"replace","path":"/metadata/labels","value":{"tenancy.kubewharf.io/tenant":"UID"}},{"op":"add","path":"/metadata/labels/a","value":"b"},{"op":"test","path":"/metadata/name","value":"P-n"}]"#,
    );
    becomes(
        PatchKind::Json,
        policy(),
        r#"[{"op":"add","path":"/spec/ingress/0/from/0/namespaceSelector/matchExpressions/-","value":{"key":"kubernetes.io/metadata.name","values":["a"]}}]"#,
        r#"[{"op":"add","path":"/spec/ingress/0/from/0/namespaceSelector/matchExpressions/-","value":{"key":"kubernetes.io/metadata.name","values":["P-a"]}}]"#,
    );
}

#[test]
fn operations_that_would_loosen_what_kubezoo_added_are_refused() {
    for operation in [
        r#"{"op":"remove","path":"/metadata/labels"}"#,
        r#"{"op":"remove","path":"/metadata"}"#,
        r#"{"op":"remove","path":"/metadata/labels/tenancy.kubewharf.io~1tenant"}"#,
        r#"{"op":"test","path":"/metadata/labels/tenancy.kubewharf.io~1tenant","value":"a"}"#,
        r#"{"op":"move","from":"/metadata/labels","path":"/metadata/annotations"}"#,
        r#"{"op":"add","path":"/metadata/labels"}"#,
        r#"{"op":"add","path":"x/metadata/name","value":"a"}"#,
        r#"{"op":"add","path":"/metadata/name","path":"/spec","value":"a"}"#,
        r#"{"op":"Add","path":"/metadata/name","value":"a"}"#,
    ] {
        is_refused(PatchKind::Json, namespace(), &format!("[{operation}]"));
    }
    let list = "/spec/ingress/0/from/0/namespaceSelector/matchExpressions";
    for operation in [
        format!(r#"{{"op":"remove","path":"{list}"}}"#),
        format!(r#"{{"op":"remove","path":"{list}/0"}}"#),
        format!(r#"{{"op":"replace","path":"{list}/0","value":{{}}}}"#),
        format!(r#"{{"op":"replace","path":"{list}/0/key","value":"a"}}"#),
        format!(r#"{{"op":"add","path":"{list}/0/values/-","value":"a"}}"#),
        format!(r#"{{"op":"move","from":"{list}/0","path":"{list}/1"}}"#),
    ] {
        is_refused(PatchKind::Json, policy(), &format!("[{operation}]"));
    }
}

#[test]
fn a_value_is_carried_only_to_where_it_means_the_same() {
    let pod = kind("v1", "Pod");
    for operation in [
        r#"{"op":"copy","from":"/metadata/namespace","path":"/metadata/annotations/a"}"#,
        r#"{"op":"copy","from":"/metadata/annotations/a","path":"/metadata/namespace"}"#,
        r#"{"op":"copy","from":"/status/hostIP","path":"/metadata/annotations/a"}"#,
        r#"{"op":"copy","from":"/status/conditions/0/message","path":"/metadata/annotations/a"}"#,
        r#"{"op":"test","path":"/status/hostIPs/0/ip","value":"1.2.3.4"}"#,
        r#"{"op":"copy","from":"/spec/affinity/podAffinity/requiredDuringSchedulingIgnoredDuringExecution/0/topologyKey","path":"/spec/affinity/podAffinity/requiredDuringSchedulingIgnoredDuringExecution/0/namespaces/0"}"#,
    ] {
        is_refused(PatchKind::Json, pod, &format!("[{operation}]"));
    }
    for operation in [
        r#"{"op":"copy","from":"/metadata/labels/a","path":"/metadata/annotations/b"}"#,
        r#"{"op":"move","from":"/spec/containers/0","path":"/spec/containers/1"}"#,
        r#"{"op":"copy","from":"/spec/volumes/0","path":"/spec/volumes/-"}"#,
    ] {
        assert!(patched(PatchKind::Json, pod, &format!("[{operation}]")).is_ok(), "{operation}");
    }
    for operation in [
        r#"{"op":"replace","path":"/subjects/0/kind","value":"Group"}"#,
        r#"{"op":"replace","path":"/subjects/0/name","value":"admins"}"#,
        r#"{"op":"remove","path":"/subjects/0/kind"}"#,
    ] {
        is_refused(PatchKind::Json, binding(), &format!("[{operation}]"));
    }
    is_refused(
        PatchKind::Json,
        pod,
        r#"[{"op":"replace","path":"/metadata/ownerReferences/0/kind","value":"Namespace"}]"#,
    );
}

#[test]
fn the_mark_of_what_is_in_no_namespace_is_carried_nowhere() {
    for (group, about) in [("v1", "involvedObject"), ("events.k8s.io/v1", "regarding")] {
        let event = kind(group, "Event");
        for path in ["/metadata/annotations/a", "/metadata/labels/a", "/reason", "/related/fieldPath", "/related/name"]
        {
            for op in ["copy", "move"] {
                let operation = format!(r#"[{{"op":"{op}","from":"/{about}/fieldPath","path":"{path}"}}]"#);
                is_refused(PatchKind::Json, event, &operation);
            }
        }
        let whole = format!(r#"[{{"op":"replace","path":"/{about}","value":{{"kind":"Node","name":"n"}}}}]"#);
        let upstream = format!(
            r#"[{{"op":"replace","path":"/{about}","value":{{"namespace":"P-default","fieldPath":"P-","kind":"Node","name":"n"}}}}]"#
        );
        becomes(PatchKind::Json, event, &whole, &upstream);
    }
}

#[test]
fn an_apply_patch_is_a_whole_object_in_json_or_yaml() {
    becomes(
        PatchKind::Apply,
        namespace(),
        r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"a"}}"#,
        r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"P-a","labels":{"tenancy.kubewharf.io/tenant":"UID"}}}"#,
    );
    becomes(
        PatchKind::Apply,
        kind("v1", "ConfigMap"),
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\n  namespace: b\ndata:\n  c: \"1\"\n",
        r#"{"apiVersion":"v1","data":{"c":"1"},"kind":"ConfigMap","metadata":{"name":"a","namespace":"P-b"}}"#,
    );
    // As JSON that is not looked at closely the second line would be inside of `a`.
    becomes(
        PatchKind::Apply,
        kind("v1", "ConfigMap"),
        "{a: {b: 1 # }}\n }, metadata: {namespace: b}}",
        r#"{"a":{"b":1},"metadata":{"namespace":"P-b"}}"#,
    );
    for broken in ["a: b\na: c\n", "{\"metadata\":", "\u{feff}[", "a\n---\nb"] {
        assert!(patched(PatchKind::Apply, namespace(), broken).is_err(), "{broken}");
    }
}
