//! Several zoos in front of one cluster, and what the leading one does for all: tenants are completed and ended, and KubeZoo's own objects and
//! the endpoints of the tenants' API are looked after.

use std::time::{Duration, Instant};

use kubewharf_testkit::http::Client;
use serde_json::{Value, json};

use crate::fixture::{Tenant, Zoo, wait};

const TENANTS: &str = "/apis/tenancy.kubewharf.io/v1/tenants";
const KUBEZOO: &str = "/apis/tenant.kubezoo.io/v1alpha1/tenants";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/kubewharf-zoo";
/// Less than a lease lasts: who takes over sooner was told to.
const TOLD_WITHIN: Duration = Duration::from_secs(10);

pub(crate) fn several_zoos_have_one_leader_and_tell_what_they_do() {
    let zoo = Zoo::start();
    let host = zoo.cluster.apiserver.client();
    let admin =
        |address| Client::with_root(&format!("https://{address}"), &zoo.root(), Some(zoo.cluster.apiserver.admin()));
    let first = admin(zoo.admin_address);
    wait("the first zoo leads", || leads(&first));
    let mut another = zoo.start_another();
    let second = admin(another.admin_address);
    let tenant = zoo.create_tenant("early");
    wait("the tenant is complete", || phase(&host, "early") == "Active");
    wait("it is told where both zoos are", || told(&tenant) == ["192.0.2.1", "192.0.2.2"]);
    assert!(!leads(&second), "two lead");
    assert_eq!(second.get("/readyz").unwrap().status, 200, "who does not lead is ready as well");
    let before = lease(&host);
    assert_eq!((&before["leaseDurationSeconds"], &before["leaseTransitions"]), (&json!(15), &json!(0)));

    zoo.process.lock().unwrap().kill();
    let late = zoo.create_tenant("late");
    // Requests need no leader.
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "held", "finalizers": ["example.com/hold"]}});
    late.client().post("/api/v1/namespaces/default/configmaps", &map).unwrap().ok().unwrap();
    assert!(!leads(&second) && phase(&host, "late") != "Active", "the other one did not wait for the end of the lease");
    assert_eq!(second.get("/readyz").unwrap().status, 200);
    wait("the other one completes the tenant", || phase(&host, "late") == "Active");
    assert!(leads(&second));
    let after = lease(&host);
    assert_ne!(after["holderIdentity"], before["holderIdentity"]);
    assert_eq!(after["leaseTransitions"], 1);
    wait("tenants are told that there is one zoo", || told(&tenant) == ["192.0.2.2"] && told(&late) == ["192.0.2.2"]);

    what_holds_a_tenant_is_told(&zoo, &host, &late);
    kubezoos_objects_lead_to_tenants(&zoo, &host);

    zoo.start_again();
    assert!(!leads(&first), "two lead");
    let began = Instant::now();
    another.process.stop(Duration::from_secs(30));
    wait("the first one leads again", || leads(&first));
    assert!(began.elapsed() < TOLD_WITHIN, "the lease was not given back");
    assert_eq!(lease(&host)["leaseTransitions"], 2);
    // Its kubeconfig led to the other one.
    let tenant = zoo.tenant("early");
    wait("the other one is not told any more", || told(&tenant) == ["192.0.2.1"]);
}

fn what_holds_a_tenant_is_told(zoo: &Zoo, host: &Client, tenant: &Tenant) {
    let problem = zoo.tool(&["tenant", "delete", "late", "--timeout=20"]).unwrap_err();
    for part in [
        &tenant.names.inward("default"),
        "NamespaceFinalizersRemaining",
        "example.com/hold",
        "NamespaceContentRemaining",
        "configmaps",
    ] {
        assert!(problem.contains(part), "{part} is not in: {problem}");
    }
    let object = host.get(&format!("{TENANTS}/late")).unwrap().ok().unwrap();
    assert!(object["status"]["conditions"][0]["message"].as_str().unwrap().contains("example.com/hold"), "{object}");
    let path = format!("/api/v1/namespaces/{}/configmaps/held", tenant.names.inward("default"));
    let free = json!({"metadata": {"finalizers": null}});
    host.patch(&path, "application/merge-patch+json", &free).unwrap().ok().unwrap();
    zoo.tool(&["tenant", "delete", "late"]).unwrap();
}

fn kubezoos_objects_lead_to_tenants(zoo: &Zoo, host: &Client) {
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    host.post(crds, &kubezoos_kind()).unwrap().ok().unwrap();
    let object = |name: &str, spec: Value| json!({"apiVersion": "tenant.kubezoo.io/v1alpha1", "kind": "Tenant", "metadata": {"name": name}, "spec": spec});
    let mut make = Vec::from([
        object("moved", json!({"id": 7})),
        object("early", json!({"id": 8})),
        object("greedy", json!({"id": 9, "quota": {"hard": {"pods": "5"}}})),
    ]);
    wait("the kind is served", || {
        make.retain(|object| host.post(KUBEZOO, object).unwrap().status != 201);
        make.is_empty()
    });
    wait("the tenant is there, and told to be", || {
        let object = host.get(&format!("{KUBEZOO}/moved")).unwrap().ok().unwrap();
        phase(host, "moved") == "Active" && object["status"]["online"] == true
    });
    let moved = zoo.tenant("moved");
    moved.client().get("/api/v1/namespaces/default").unwrap().ok().unwrap();
    let wait_for_event = |name: &str, reason: &str| {
        wait(&format!("{reason} is told"), || {
            let selector = format!("involvedObject.name={name},reason={reason}");
            let events = host.get(&format!("/api/v1/namespaces/default/events?fieldSelector={selector}")).unwrap();
            events.ok().unwrap()["items"].as_array().is_some_and(|items| items.len() == 1)
        });
    };
    wait_for_event("early", "NameTaken");
    let early = host.get(&format!("{TENANTS}/early")).unwrap().ok().unwrap();
    assert!(early["metadata"]["ownerReferences"].is_null(), "{early}");
    wait_for_event("greedy", "QuotaNotServed");
    assert_eq!(host.get(&format!("{TENANTS}/greedy")).unwrap().status, 404);
    let modest = json!({"spec": {"quota": null}});
    host.patch(&format!("{KUBEZOO}/greedy"), "application/merge-patch+json", &modest).unwrap().ok().unwrap();
    wait("it is a tenant as soon as it wants no quota", || phase(host, "greedy") == "Active");
    host.delete(&format!("{KUBEZOO}/moved")).unwrap().ok().unwrap();
    wait("the tenant goes with the object", || host.get(&format!("{TENANTS}/moved")).unwrap().status == 404);
    assert_eq!(moved.client().get("/api").unwrap().status, 401);
    // The other one's name is not its own, so its tenant stays.
    host.delete(&format!("{KUBEZOO}/early")).unwrap().ok().unwrap();
    assert_eq!(phase(host, "early"), "Active");
}

fn kubezoos_kind() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "tenants.tenant.kubezoo.io"},
        "spec": {
            "group": "tenant.kubezoo.io", "scope": "Cluster",
            "names": {"kind": "Tenant", "listKind": "TenantList", "plural": "tenants", "singular": "tenant"},
            "versions": [{
                "name": "v1alpha1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {
                        "id": {"type": "integer", "format": "int32"},
                        "quota": {"type": "object", "nullable": true, "properties": {
                            "hard": {"type": "object", "additionalProperties": {"type": "string"}},
                        }},
                    }},
                    "status": {"type": "object", "properties": {"online": {"type": "boolean"}}},
                }}},
            }],
        },
    })
}

/// Whether a zoo says that it leads.
fn leads(admin: &Client) -> bool {
    let metrics = admin.get("/metrics").unwrap();
    let text = metrics.body.as_str().unwrap_or_default();
    let told = text.lines().find_map(|line| line.strip_prefix("kubezoo_leader "));
    told.unwrap_or_else(|| panic!("it does not say whether it leads: {text}")) == "1"
}

fn phase(host: &Client, tenant: &str) -> String {
    let object = host.get(&format!("{TENANTS}/{tenant}")).unwrap();
    object
        .ok()
        .map_or_else(|_| String::new(), |object| object["status"]["phase"].as_str().unwrap_or_default().to_owned())
}

fn lease(host: &Client) -> Value {
    host.get(LEASE).unwrap().ok().unwrap()["spec"].clone()
}

/// The addresses of its API that a tenant finds, by Endpoints and EndpointSlice alike; none if these differ.
fn told(tenant: &Tenant) -> Vec<String> {
    let client = tenant.client();
    let get = |path: &str| client.get(path).unwrap().ok().unwrap_or_default();
    let endpoints = get("/api/v1/namespaces/default/endpoints/kubernetes");
    let slice = get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = |value: &Value, of: &str| -> Vec<String> {
        value.as_array().into_iter().flatten().map(|item| text(item.pointer(of).unwrap_or(&Value::Null))).collect()
    };
    let one = all(&endpoints["subsets"][0]["addresses"], "/ip");
    let other = all(&slice["endpoints"], "/addresses/0");
    let port: u16 = tenant.server.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap();
    assert!(one.is_empty() || endpoints["subsets"][0]["ports"][0]["port"] == port, "{endpoints}");
    if one == other { one } else { Vec::new() }
}
