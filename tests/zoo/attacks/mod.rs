//! What a tenant, or somebody with a tenant's credential, must not reach: other tenants, the host, the administrator's
//! side, and what an earlier tenant of its name had.

mod admin;
mod again;
mod identities;
mod objects;
mod paths;
mod pods;
mod upstream;

use std::sync::{Arc, OnceLock};

use kubewharf_testkit::http::{Bytes, Client};
use libtest_mimic::{Failed, Trial};
use serde_json::{Value, json};

use crate::fixture::{Tenant, World, Zoo};
use crate::taint::marker;
use crate::taint::needles::Needles;

/// A namespace of the host's own, with a secret in it.
const HOST_NAMESPACE: &str = "host-team";

/// An attacker, a victim, and a host with something to find.
struct Scene {
    world: Arc<World>,
    attacker: Tenant,
    victim: Tenant,
    /// Stands in all that is the victim's.
    victims: String,
    /// Stands in all that is the host's.
    hosts: String,
    /// What the attacker must not see.
    needles: Needles,
}

impl Scene {
    fn new(world: &Arc<World>) -> Self {
        let zoo = world.zoo();
        let (attacker, victim) = (zoo.create_tenant("mallory"), zoo.create_tenant("victoria"));
        let (victims, hosts) = (marker(), marker());
        let secret = |marker: &str| json!({"metadata": {"name": marker, "labels": {marker: marker}}, "stringData": {"k": marker}});
        let role = |marker: &str| json!({"metadata": {"name": marker}, "rules": []});
        let host = zoo.cluster.apiserver.client();
        let space = json!({"metadata": {"name": HOST_NAMESPACE, "labels": {hosts.as_str(): hosts}}});
        host.post("/api/v1/namespaces", &space).unwrap().ok().unwrap();
        for namespace in ["default", "kube-system", HOST_NAMESPACE] {
            host.post(&format!("/api/v1/namespaces/{namespace}/secrets"), &secret(&hosts)).unwrap().ok().unwrap();
        }
        let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
        host.post(roles, &role(&hosts)).unwrap().ok().unwrap();
        let their = victim.client();
        their.post("/api/v1/namespaces/default/secrets", &secret(&victims)).unwrap().ok().unwrap();
        // It is for other tests to say whether a tenant can have one.
        let _ = their.post(roles, &role(&victims)).unwrap();
        // The attacker's namespaces are there too.
        attacker.client().post("/api/v1/namespaces/default/secrets", &secret("own")).unwrap().ok().unwrap();
        let mut texts = vec![victims.clone(), hosts.clone()];
        for tenant in [&attacker, &victim] {
            texts.extend([tenant.names.id().to_string(), tenant.names.uid().to_owned()]);
        }
        let needles = Needles::new(&texts);
        Self { world: world.clone(), attacker, victim, victims, hosts, needles }
    }

    fn zoo(&self) -> &Zoo {
        self.world.zoo()
    }

    /// The host's administrator.
    fn host(&self) -> Client {
        self.zoo().cluster.apiserver.client()
    }

    /// The attacker's namespace `default`, upstream.
    fn attackers_default(&self) -> String {
        self.attacker.names.inward("default")
    }

    /// The victim's.
    fn victims_default(&self) -> String {
        self.victim.names.inward("default")
    }

    /// What this answer tells that it must not tell.
    fn found_in(&self, answer: &Bytes) -> Option<String> {
        let headers: String = answer.headers.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
        self.needles.find(headers.as_bytes()).or_else(|| self.needles.find(&answer.body))
    }
}

/// Goes on to its end, and notes what it could reach.
type Attack = fn(&Scene, &mut Findings);

/// What went wrong in a test that goes on to its end.
#[derive(Default)]
struct Findings(Vec<String>);

impl Findings {
    fn check(&mut self, fine: bool, what: impl FnOnce() -> String) {
        if !fine {
            self.0.push(what());
        }
    }

    fn result(self) -> Result<(), Failed> {
        if self.0.is_empty() { Ok(()) } else { Err(self.0.join("\n").into()) }
    }
}

/// The tests of this module.
pub(crate) fn trials(world: &Arc<World>) -> Vec<Trial> {
    let scene: Arc<OnceLock<Scene>> = Arc::default();
    let tests: [(&str, Attack); 13] = [
        ("what_writes_for_a_tenant_upstream_reaches_nothing_else", upstream::reaches_nothing_else),
        ("a_tenants_credential_is_worth_nothing_upstream", upstream::credentials_are_worth_nothing),
        ("a_tenants_service_accounts_reach_nothing_else_upstream", upstream::service_accounts_reach_nothing_else),
        ("the_administrators_listener_knows_no_tenant", admin::knows_no_tenant),
        ("nobody_is_let_in_without_a_tenants_credential", identities::nobody_else_is_let_in),
        ("headers_make_nobody_another", identities::headers_make_nobody_another),
        ("who_acts_as_another_stays_in_the_tenant", identities::impersonation_stays_within),
        ("no_path_leads_out", paths::no_path_leads_out),
        ("no_object_reaches_out", objects::no_object_reaches_out),
        ("tokens_in_pods_are_for_their_tenant_only", pods::tokens_are_for_the_tenant_only),
        ("bindings_to_everybody_bind_the_tenants_own", objects::everybody_is_the_tenants_own),
        ("selectors_of_namespaces_stay_within", objects::selectors_stay_within),
        ("a_tenant_that_is_made_again_is_another", again::is_another),
    ];
    tests
        .into_iter()
        .map(|(name, test)| {
            let (world, scene) = (world.clone(), scene.clone());
            let run = move || {
                let mut findings = Findings::default();
                test(scene.get_or_init(|| Scene::new(&world)), &mut findings);
                findings.result()
            };
            Trial::test(format!("attacks/{name}"), run).with_ignored_flag(!World::judges_a_tenant())
        })
        .collect()
}

/// The name that a review of oneself tells.
fn username(body: &Value) -> String {
    body["status"]["userInfo"]["username"].as_str().unwrap_or_default().to_owned()
}

const SELF_REVIEWS: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";

fn self_review() -> Vec<u8> {
    json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}).to_string().into_bytes()
}

/// A body, as JSON if it is.
fn parsed(answer: &Bytes) -> Value {
    serde_json::from_slice(&answer.body)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&answer.body).into_owned()))
}
