//! Pods of a tenant reach the tenant's own API as pods of a cluster reach theirs: with what a kubelet mounts.
//!
//! There are no kubelets here. A test does what one does: it reads the pod at the host, asks there for the token that the
//! pod's volume describes, and runs kubectl with the files and variables that a container has, by its configuration for
//! containers, which is client-go's.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::http::Client;
use kubewharf_testkit::process;
use kubewharf_testkit::tools::{self, Tool};
use libtest_mimic::{Failed, Trial};
use serde_json::{Value, json};

use crate::fixture::{Tenant, World, Zoo, wait};

/// Where a kubelet puts what a pod needs for the API, unless the pod says otherwise.
const MOUNTED: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How long a verdict on a token is remembered by KubeZoo, and then some.
const FORGOTTEN_WITHIN: Duration = Duration::from_secs(12);

/// Looks at what KubeZoo does, and fails if it is wrong.
type Test = fn(&Zoo);

/// The tests of this module.
pub(crate) fn trials(world: &Arc<World>) -> Vec<Trial> {
    let tests: [(&str, Test); 5] = [
        ("a_pod_reaches_its_tenants_api_as_in_a_cluster", reaches_its_api),
        ("what_was_read_of_a_pod_changes_nothing_when_it_is_written", changes_nothing),
        ("a_pods_token_is_good_in_its_tenant_only_and_ends_with_the_pod", is_good_in_its_tenant_only),
        ("the_authority_that_pods_trust_is_zoos", trusts_zoo),
        ("an_issuer_is_its_tenants_own_and_tells_its_keys", tells_its_keys),
    ];
    tests
        .into_iter()
        .map(|(name, test)| {
            let world = world.clone();
            let run = move || -> Result<(), Failed> {
                test(world.zoo());
                Ok(())
            };
            Trial::test(format!("pods/{name}"), run).with_ignored_flag(!World::judges_a_tenant())
        })
        .collect()
}

/// A pod as its author writes it, with all that is others upstream.
fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "containers": [{
                "name": "main", "image": "example.com/none",
                "env": [
                    {"name": "OWN", "value": "$(KUBERNETES_SERVICE_HOST)"},
                    {"name": "NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
                ],
            }],
            "initContainers": [{"name": "first", "image": "example.com/none"}],
            "volumes": [
                {"name": "told", "downwardAPI": {"items": [
                    {"path": "namespace", "mode": 256, "fieldRef": {"fieldPath": "metadata.namespace"}},
                    {"path": "name", "fieldRef": {"fieldPath": "metadata.name"}},
                ]}},
                {"name": "vault", "projected": {"sources": [
                    {"serviceAccountToken": {"audience": "vault", "path": "vault"}},
                    {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
                    {"configMap": {"name": "kube-root-ca.crt"}},
                ]}},
            ],
        },
    })
}

fn make(tenant: &Tenant, pod: &Value) -> Value {
    let client = tenant.client();
    wait("the namespace has its service account and its authority", || {
        ["serviceaccounts/default", "configmaps/kube-root-ca.crt"].iter().all(|path| {
            client.get(&format!("/api/v1/namespaces/default/{path}")).is_ok_and(|answer| answer.status == 200)
        })
    });
    client.post("/api/v1/namespaces/default/pods", pod).unwrap().ok().unwrap()
}

fn at_the_host(zoo: &Zoo, tenant: &Tenant, path: &str) -> Value {
    let path = format!("/api/v1/namespaces/{}/{path}", tenant.names.inward("default"));
    zoo.cluster.apiserver.client().get(&path).unwrap().ok().unwrap()
}

/// The volume that the admission of service accounts adds.
fn access_volume(pod: &Value) -> &Value {
    let volumes = pod["spec"]["volumes"].as_array().unwrap();
    volumes.iter().find(|volume| volume["name"].as_str().unwrap().starts_with("kube-api-access-")).unwrap()
}

/// The token that a kubelet asks for, for this source of a volume of the pod.
fn token(zoo: &Zoo, tenant: &Tenant, pod: &Value, source: &Value) -> String {
    let account = pod["spec"]["serviceAccountName"].as_str().unwrap();
    let audiences: Vec<&Value> = source["serviceAccountToken"].get("audience").into_iter().collect();
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {
            "audiences": audiences, "expirationSeconds": 3607,
            "boundObjectRef": {
                "apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"],
            },
        },
    });
    let path = format!("/api/v1/namespaces/{}/serviceaccounts/{account}/token", tenant.names.inward("default"));
    let answer = zoo.cluster.apiserver.client().post(&path, &request).unwrap().ok().unwrap();
    answer["status"]["token"].as_str().unwrap().to_owned()
}

/// The value of a container's variable, as a kubelet finds it.
fn variable(pod: &Value, container: &Value, name: &str) -> String {
    let variables = container["env"].as_array().unwrap();
    let variable = variables.iter().find(|variable| variable["name"] == name).unwrap();
    match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
        Some(path) => at_path(pod, path),
        None => variable["value"].as_str().unwrap().to_owned(),
    }
}

/// What the downward API tells at a path.
fn at_path(pod: &Value, path: &str) -> String {
    let found = match path.strip_prefix("metadata.annotations['") {
        Some(rest) => &pod["metadata"]["annotations"][rest.strip_suffix("']").unwrap()],
        None => &pod["metadata"][path.strip_prefix("metadata.").unwrap()],
    };
    found.as_str().unwrap().to_owned()
}

/// Makes the files of a volume, as a kubelet does.
fn mount(zoo: &Zoo, tenant: &Tenant, pod: &Value, volume: &Value, folder: &Path) {
    for source in volume["projected"]["sources"].as_array().unwrap() {
        if source.get("serviceAccountToken").is_some() {
            let path = source["serviceAccountToken"]["path"].as_str().unwrap();
            std::fs::write(folder.join(path), token(zoo, tenant, pod, source)).unwrap();
        }
        if let Some(name) = source["configMap"]["name"].as_str() {
            let map = at_the_host(zoo, tenant, &format!("configmaps/{name}"));
            for (key, text) in map["data"].as_object().unwrap() {
                std::fs::write(folder.join(key), text.as_str().unwrap()).unwrap();
            }
        }
        for item in source["downwardAPI"]["items"].as_array().into_iter().flatten() {
            let text = at_path(pod, item["fieldRef"]["fieldPath"].as_str().unwrap());
            std::fs::write(folder.join(item["path"].as_str().unwrap()), text).unwrap();
        }
    }
}

/// Runs kubectl as in a container of the pod: without a kubeconfig.
fn kubectl_in(zoo: &Zoo, tenant: &Tenant, pod: &Value, arguments: &[&str]) -> Result<String, String> {
    let folder = Folder::new("mounted").unwrap();
    mount(zoo, tenant, pod, access_volume(pod), folder.path());
    let container = &pod["spec"]["containers"][0];
    let script = "mount -t tmpfs none /var/run && mkdir -p \"$1\" && cp \"$0\"/* \"$1\" && shift && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--", "sh", "-c", script]).arg(folder.path()).arg(MOUNTED);
    command.arg(tools::shared(Tool::Kubectl).unwrap()).args(arguments);
    command.env_remove("KUBECONFIG").env("HOME", folder.path());
    let told = ["KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"].map(|name| variable(pod, container, name));
    assert_eq!(told, ["192.0.2.1".to_owned(), zoo.address.port().to_string()], "where KubeZoo is");
    // That is an address for documents, which leads nowhere.
    command.env("KUBERNETES_SERVICE_HOST", zoo.address.ip().to_string()).env("KUBERNETES_SERVICE_PORT", &told[1]);
    process::run(&mut command).map_err(|error| error.to_string())
}

fn reaches_its_api(zoo: &Zoo) {
    let tenant = zoo.create_tenant("incluster");
    let client = tenant.client();
    let seen = make(&tenant, &pod("direct"));
    // A controller of the host makes the other one, past KubeZoo.
    let template = pod("made");
    let mut set = json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "made"},
        "spec": {
            "replicas": 1, "selector": {"matchLabels": {"app": "made"}},
            "template": {"metadata": template["metadata"], "spec": template["spec"]},
        },
    });
    set["spec"]["template"]["metadata"].as_object_mut().unwrap().remove("name");
    client.post("/apis/apps/v1/namespaces/default/replicasets", &set).unwrap().ok().unwrap();
    let made = || client.get("/api/v1/namespaces/default/pods?labelSelector=app%3Dmade").unwrap().ok().unwrap();
    wait("the controller makes its pod", || !made()["items"].as_array().unwrap().is_empty());
    let binding = json!({
        "metadata": {"name": "pods-view"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "default"}],
    });
    client.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding).unwrap().ok().unwrap();
    for seen in [seen, made()["items"][0].clone()] {
        let name = seen["metadata"]["name"].as_str().unwrap();
        // The tenant sees what its author wrote and what each cluster adds, and nothing else.
        assert!(seen["metadata"]["annotations"].is_null(), "{seen}");
        assert_eq!(seen["spec"]["containers"][0]["env"].as_array().unwrap().len(), 2, "{seen}");
        assert!(seen["spec"]["initContainers"][0]["env"].is_null(), "{seen}");
        let sources = &access_volume(&seen)["projected"]["sources"];
        assert_eq!(sources[0], json!({"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}}));
        assert_eq!(sources[1]["configMap"]["name"], "kube-root-ca.crt");
        assert_eq!(sources[2]["downwardAPI"]["items"][0]["fieldRef"]["fieldPath"], "metadata.namespace");
        let vault = &seen["spec"]["volumes"][1]["projected"]["sources"];
        assert_eq!(vault[0]["serviceAccountToken"]["audience"], "vault");
        let text = seen.to_string();
        assert!(!text.contains("tenancy.kubewharf.io") && !text.contains("zoo:"), "{text}");

        let kept = at_the_host(zoo, &tenant, &format!("pods/{name}"));
        assert_eq!(variable(&kept, &kept["spec"]["containers"][0], "NAMESPACE"), "default");
        assert_eq!(kept["spec"]["containers"][0]["env"][0]["name"], "KUBERNETES_SERVICE_HOST");
        for item in kept["spec"]["volumes"][0]["downwardAPI"]["items"].as_array().unwrap() {
            let told = at_path(&kept, item["fieldRef"]["fieldPath"].as_str().unwrap());
            assert_eq!(told, if item["path"] == "name" { name } else { "default" });
        }
        let run = |arguments: &[&str]| kubectl_in(zoo, &tenant, &kept, arguments);
        let who = run(&["auth", "whoami", "-o", "json"]).unwrap();
        let who: Value = serde_json::from_str(&who).unwrap();
        let user = &who["status"]["userInfo"];
        assert_eq!(user["username"], "system:serviceaccount:default:default", "{who}");
        let groups = ["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"];
        assert_eq!(user["groups"], json!(groups), "{who}");
        assert_eq!(user["extra"]["authentication.kubernetes.io/pod-name"], json!([name]), "{who}");
        assert_eq!(user["extra"]["authentication.kubernetes.io/pod-uid"], json!([seen["metadata"]["uid"]]), "{who}");
        // Its namespace is the one that the mounted file tells.
        assert!(run(&["get", "pods", "-o", "name"]).unwrap().contains(&format!("pod/{name}\n")));
        assert!(run(&["get", "secrets"]).unwrap_err().contains("cannot list resource \"secrets\""));
    }
}

fn changes_nothing(zoo: &Zoo) {
    let tenant = zoo.create_tenant("unchanged");
    let client = tenant.client();
    let kubectl = kubewharf_testkit::kubernetes::Kubectl::new(&tenant.kubeconfig, &tenant.folder).unwrap();
    make(&tenant, &pod("same"));
    let path = "/api/v1/namespaces/default/pods/same";
    let before = at_the_host(zoo, &tenant, "pods/same");
    let seen = client.get(path).unwrap().ok().unwrap();
    let unchanged = |what: &str| assert_eq!(at_the_host(zoo, &tenant, "pods/same"), before, "after {what}");
    client.put(path, &seen).unwrap().ok().unwrap();
    unchanged("an update with what was read");
    kubectl.run_with_input(&["replace", "-f", "-"], &seen.to_string()).unwrap();
    unchanged("kubectl replace");
    // kubectl edits in YAML, and client-go writes protobuf: the same object in another encoding.
    let protobuf = [("accept", "application/vnd.kubernetes.protobuf")];
    let read = client.request("GET", path, &protobuf, b"").unwrap();
    assert!(!String::from_utf8_lossy(&read.body).contains("tenancy.kubewharf.io"));
    let content = [("content-type", "application/vnd.kubernetes.protobuf")];
    let answer = client.request("PUT", path, &content, &read.body).unwrap();
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    unchanged("an update in protobuf");

    // What a tenant takes away by accident is put back, and what it may change is changed.
    let no_annotations = json!({"metadata": {"annotations": null, "labels": {"more": "yes"}}});
    client.patch(path, "application/merge-patch+json", &no_annotations).unwrap().ok().unwrap();
    let after = at_the_host(zoo, &tenant, "pods/same");
    assert_eq!(after["metadata"]["annotations"], before["metadata"]["annotations"]);
    assert_eq!(after["metadata"]["labels"]["more"], "yes");
    assert_eq!(after["spec"], before["spec"]);
    let status = json!({"metadata": {"annotations": null}, "status": {"message": "m"}});
    client.patch(&format!("{path}/status"), "application/merge-patch+json", &status).unwrap().ok().unwrap();
    let after = at_the_host(zoo, &tenant, "pods/same");
    assert_eq!(after["metadata"]["annotations"], before["metadata"]["annotations"]);

    // Server-side apply: of a new pod, and again.
    let applied = pod("applied").to_string();
    let apply = ["apply", "--server-side", "-n", "default", "-f", "-"];
    kubectl.run_with_input(&apply, &applied).unwrap();
    let before = at_the_host(zoo, &tenant, "pods/applied");
    kubectl.run_with_input(&apply, &applied).unwrap();
    assert_eq!(at_the_host(zoo, &tenant, "pods/applied"), before, "after it was applied again");
    let seen = client.get("/api/v1/namespaces/default/pods/applied").unwrap().ok().unwrap();
    let managed = seen["metadata"]["managedFields"].to_string();
    assert!(!managed.contains("tenancy") && !managed.contains("KUBERNETES_SERVICE"), "{managed}");
    assert!(!managed.contains("kube-api-access"), "{managed}");

    // Nobody writes what only KubeZoo may.
    for (place, value) in [
        ("/spec/volumes/1/projected/sources/0/serviceAccountToken/audience", json!("zoo:another")),
        (
            "/spec/containers/0/env/1/valueFrom/fieldRef/fieldPath",
            json!("metadata.annotations['tenancy.kubewharf.io/api-host']"),
        ),
    ] {
        let mut wrong = pod("wrong");
        *wrong.pointer_mut(place).unwrap() = value;
        let answer = client.post("/api/v1/namespaces/default/pods", &wrong).unwrap();
        assert_eq!(answer.status, 403, "{place}: {answer:?}");
    }
}

/// Who a token belongs to, at a server.
fn who(client: &Client, token: &str) -> (u16, String) {
    let bearer = format!("Bearer {token}");
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}).to_string();
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let answer = client.request("POST", path, &headers, review.as_bytes()).unwrap();
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    (answer.status, body["status"]["userInfo"]["username"].as_str().unwrap_or_default().to_owned())
}

fn is_good_in_its_tenant_only(zoo: &Zoo) {
    let (tenant, other) = (zoo.create_tenant("tokens-a"), zoo.create_tenant("tokens-b"));
    make(&tenant, &pod("a"));
    make(&other, &pod("a"));
    let kept = at_the_host(zoo, &tenant, "pods/a");
    let apiserver = &zoo.cluster.apiserver;
    let at_zoo = Client::with_root(&tenant.server, &tenant.root, None);
    let at_the_host_itself = Client::with_root(&apiserver.url(), apiserver.authority().certificate(), None);
    let own = token(zoo, &tenant, &kept, &access_volume(&kept)["projected"]["sources"][0]);
    let vault = token(zoo, &tenant, &kept, &kept["spec"]["volumes"][1]["projected"]["sources"][0]);
    assert_eq!(who(&at_zoo, &own), (201, "system:serviceaccount:default:default".to_owned()));
    assert_eq!(who(&at_zoo, &vault).0, 401, "a token for somebody else");
    for token in [&own, &vault] {
        assert_eq!(who(&at_the_host_itself, token).0, 401, "the host takes it");
    }
    // A token of this tenant's account that is for the other tenant.
    let audience = json!({"serviceAccountToken": {"audience": format!("zoo:{}", other.names.uid())}});
    assert_eq!(who(&at_zoo, &token(zoo, &tenant, &kept, &audience)).0, 401);
    // As this tenant's, it sees this tenant's objects; the other tenant is told nothing of it.
    let review = |of: &Tenant, token: &str, audiences: &[&str]| {
        let question = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "spec": {"token": token, "audiences": audiences},
        });
        let answer = of.client().post("/apis/authentication.k8s.io/v1/tokenreviews", &question).unwrap().ok().unwrap();
        answer["status"].clone()
    };
    let good = review(&tenant, &own, &[]);
    assert_eq!(good["authenticated"], true, "{good}");
    assert_eq!(good["audiences"], json!(["https://kubernetes.default.svc"]));
    let good = review(&tenant, &vault, &["other", "vault"]);
    assert_eq!((&good["authenticated"], &good["audiences"]), (&json!(true), &json!(["vault"])), "{good}");
    assert_eq!(good["user"]["username"], "system:serviceaccount:default:default");
    assert!(!good.to_string().contains(tenant.names.prefix()), "{good}");
    for (of, token, audiences) in
        [(&tenant, &vault, &[][..]), (&tenant, &own, &["vault"]), (&other, &own, &[]), (&other, &vault, &["vault"])]
    {
        let bad = review(of, token, audiences);
        assert!(bad["authenticated"].is_null() && bad["user"] == json!({}), "{bad}");
    }
    // A token ends with the pod.
    let gone = tenant.client().delete("/api/v1/namespaces/default/pods/a?gracePeriodSeconds=0").unwrap();
    assert_eq!(gone.status, 200);
    let deadline = std::time::Instant::now() + FORGOTTEN_WITHIN;
    while who(&at_zoo, &own).0 != 401 {
        assert!(std::time::Instant::now() < deadline, "the token of a pod that is gone is good");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn trusts_zoo(zoo: &Zoo) {
    let tenant = zoo.create_tenant("authority");
    make(&tenant, &pod("a"));
    let client = tenant.client();
    let path = "/api/v1/namespaces/default/configmaps/kube-root-ca.crt";
    let seen = client.get(path).unwrap().ok().unwrap();
    assert_eq!(seen["data"], json!({"ca.crt": zoo.root()}));
    let list = client.get("/api/v1/configmaps?fieldSelector=metadata.name%3Dkube-root-ca.crt").unwrap().ok().unwrap();
    for item in list["items"].as_array().unwrap() {
        assert_eq!(item["data"]["ca.crt"], zoo.root().as_str(), "{item}");
    }
    let host = zoo.cluster.apiserver.client();
    let of_the_host = host.get("/api/v1/namespaces/default/configmaps/kube-root-ca.crt").unwrap().ok().unwrap();
    assert_ne!(of_the_host["data"]["ca.crt"], zoo.root().as_str(), "the host's own stays");
    // Whatever a tenant writes there, it is what a cluster's controller writes.
    let wrong = json!({"data": {"ca.crt": "another", "more": "x"}});
    client.patch(path, "application/merge-patch+json", &wrong).unwrap().ok().unwrap();
    assert_eq!(client.get(path).unwrap().ok().unwrap()["data"], json!({"ca.crt": zoo.root()}));
    client.delete(path).unwrap().ok().unwrap();
    wait("the host's controller makes it again", || client.get(path).unwrap().status == 200);
    let again = client.get(path).unwrap().ok().unwrap();
    assert_eq!(again["data"], json!({"ca.crt": zoo.root()}));
    // The controller and the policy do not quarrel.
    std::thread::sleep(Duration::from_secs(3));
    let later = client.get(path).unwrap().ok().unwrap();
    assert_eq!(later["metadata"]["resourceVersion"], again["metadata"]["resourceVersion"]);
}

/// A part of a JSON Web Token.
fn part(token: &str, place: usize) -> Value {
    let part = token.split('.').nth(place).unwrap();
    serde_json::from_slice(&base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

fn tells_its_keys(zoo: &Zoo) {
    let (tenant, other) = (zoo.create_tenant("issuer-a"), zoo.create_tenant("issuer-b"));
    let get = |of: &Tenant, path: &str| of.client().get(path).unwrap().ok().unwrap();
    let configuration = get(&tenant, "/.well-known/openid-configuration");
    let issuer = configuration["issuer"].as_str().unwrap();
    // All tenants' tokens are signed with one key, so who checks one by the keys must see whose it is.
    assert_ne!(get(&other, "/.well-known/openid-configuration")["issuer"], issuer);
    let keys = configuration["jwks_uri"].as_str().unwrap().strip_prefix(tenant.server.as_str()).unwrap();
    let key = get(&tenant, keys)["keys"][0].clone();
    assert_eq!((&key["kty"], &key["crv"], &key["alg"]), (&json!("EC"), &json!("P-256"), &json!("ES256")), "{key}");
    let client = tenant.client();
    wait("the namespace has its service account", || {
        client.get("/api/v1/namespaces/default/serviceaccounts/default").unwrap().status == 200
    });
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let answer = client.post(path, &request).unwrap().ok().unwrap();
    let token = answer["status"]["token"].as_str().unwrap();
    assert_eq!(part(token, 0)["kid"], key["kid"]);
    assert_eq!(part(token, 1)["iss"], issuer);
    // As in each cluster, its service accounts may read it, and nobody else without a right.
    let at_zoo = Client::with_root(&tenant.server, &tenant.root, None);
    let read = |headers: &[(&str, &str)]| at_zoo.request("GET", keys, headers, b"").unwrap();
    let bearer = format!("Bearer {token}");
    let answer = read(&[("authorization", bearer.as_str())]);
    assert_eq!(answer.status, 200);
    let content = answer.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-type")).unwrap();
    assert_eq!(content.1, "application/jwk-set+json");
    assert_eq!(read(&[]).status, 401);
    let jane = client.request("GET", keys, &[("impersonate-user", "jane")], b"").unwrap();
    assert_eq!(jane.status, 403);
    // Which token it was is told, as of a certificate.
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let reviews = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let answer = at_zoo.request("POST", reviews, &headers, review.to_string().as_bytes()).unwrap();
    let answer: Value = serde_json::from_slice(&answer.body).unwrap();
    let credential = &answer["status"]["userInfo"]["extra"]["authentication.kubernetes.io/credential-id"];
    assert_eq!(*credential, json!([format!("JTI={}", part(token, 1)["jti"].as_str().unwrap())]));
    let answer = client.post(reviews, &review).unwrap().ok().unwrap();
    let credential = &answer["status"]["userInfo"]["extra"]["authentication.kubernetes.io/credential-id"][0];
    assert!(credential.as_str().unwrap().starts_with("X509SHA256="), "{answer}");
}
