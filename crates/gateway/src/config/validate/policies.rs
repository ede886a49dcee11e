//! Dispatch policies and access rules.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use kubewharf_upstream::Strategy;

use super::super::cluster::{Endpoint, FlowSchema};
use super::super::fingerprint::Fingerprint;
use super::super::manifest::{
    CircuitBreakerSpec, ClusterSpec, Compat, DegradationModeSpec, DegradationSpec, DispatchPolicySpec, LogMode,
    StrategySpec, TimeoutsSpec, WeightSpec,
};
use super::super::problem::At;
use super::super::values::{DurationText, EndpointUrl};
use super::Check;
use crate::limits::{CLUSTER_RULE_VALUES_MAX, RULE_VALUES_MAX, RULES_MAX, WEIGHT_SHARES};
use crate::policy::{
    Access, Arm, CircuitBreaker, Degradation, DegradationMode, DispatchPolicy, Policies, PolicyError, Rule, RuleSpec,
    Semantics, Timeouts, Weights, lint,
};

/// Which endpoints there are to name.
struct Known<'a> {
    endpoints: &'a [Arc<Endpoint>],
    /// Whether there may be others later, which are not known here.
    may_change: bool,
}

impl Check<'_, '_> {
    pub(super) fn policies(
        &mut self,
        spec: &ClusterSpec,
        endpoints: &[Arc<Endpoint>],
        flow_schemas: &[Arc<FlowSchema>],
        at: &At<'_>,
    ) -> Policies {
        let policies_at = at.key("dispatchPolicies");
        if spec.dispatch_policies.is_empty() {
            let remedy = "add a policy whose rules match what is meant to pass, such as all verbs of all resources";
            self.report.error(&policies_at, "is missing, so no request would pass", remedy);
        }
        if !self.count_rules(spec, at) {
            return Policies::default();
        }
        let semantics = match spec.compat {
            Compat::Documented => Semantics::Documented,
            Compat::KubeGateway => Semantics::KubeGateway,
        };
        let discovery = &spec.discovery;
        let known = Known { endpoints, may_change: discovery.dns.is_some() || discovery.file.is_some() };
        let mut names: HashSet<Arc<str>> = HashSet::new();
        let mut policies = Vec::with_capacity(spec.dispatch_policies.len());
        // Of requests for resources, and of others.
        let mut everything_taken = [None::<usize>, None];
        for (place, policy) in spec.dispatch_policies.iter().enumerate() {
            let policy_at = policies_at.index(place);
            let rules = self.rules(&policy.rules, Some(semantics), &policy_at.key("rules"));
            if policy.rules.is_empty() {
                let remedy = "add a rule: without one, no request belongs to the policy";
                self.report.error(&policy_at.key("rules"), "is missing", remedy);
            }
            if let [Some(resources), Some(others)] = everything_taken {
                let problem =
                    format!("is never reached: dispatchPolicies[{}] takes every request", resources.max(others));
                self.report.warn(&policy_at, problem, "move it up, or narrow the policy before");
            }
            for (taken, is_resource_request) in everything_taken.iter_mut().zip([true, false]) {
                if taken.is_none() && rules.iter().any(|rule| rule.matches_every(is_resource_request)) {
                    *taken = Some(place);
                }
            }
            let compiled = self.policy(policy, place, spec, flow_schemas, &known, &policy_at);
            if !names.insert(compiled.name.clone()) {
                let problem = format!("{:?} is the name of another policy", compiled.name);
                self.report.error(&policy_at.key("name"), problem, "give each policy a name of its own");
            }
            policies.push((compiled, rules));
        }
        Policies::new(policies)
    }

    pub(super) fn access(&mut self, spec: &ClusterSpec, at: &At<'_>) -> Access {
        let access_at = at.key("access");
        // The original has no such rules, so there is no old behaviour to keep.
        let deny = self.rules(&spec.access.deny, None, &access_at.key("deny"));
        let allow = spec.access.allow.as_ref().map(|rules| {
            let allow_at = access_at.key("allow");
            if rules.is_empty() {
                self.report.warn(&allow_at, "is empty: nobody is let in", "add a rule, or remove the list");
            }
            self.rules(rules, None, &allow_at)
        });
        Access::new(deny, allow)
    }

    /// False if there are too many to go on.
    fn count_rules(&mut self, spec: &ClusterSpec, at: &At<'_>) -> bool {
        let of_policies = spec.dispatch_policies.iter().flat_map(|policy| &policy.rules);
        let of_access = spec.access.deny.iter().chain(spec.access.allow.iter().flatten());
        let (mut rules, mut values) = (0, 0);
        for rule in of_policies.chain(of_access) {
            rules += 1;
            values += lists(rule).iter().map(|(_, length)| length).sum::<usize>();
        }
        if rules > RULES_MAX {
            self.report.error(
                at,
                format!("has {rules} rules"),
                format!("use {RULES_MAX} at most: join rules of one policy"),
            );
        }
        if values > CLUSTER_RULE_VALUES_MAX {
            let remedy =
                format!("use {CLUSTER_RULE_VALUES_MAX} at most: match by group or prefix instead of one by one");
            self.report.error(at, format!("has {values} values in its rules"), remedy);
        }
        rules <= RULES_MAX && values <= CLUSTER_RULE_VALUES_MAX
    }

    /// `semantics` is `None` for rules that the original does not have.
    fn rules(&mut self, specs: &[RuleSpec], semantics: Option<Semantics>, at: &At<'_>) -> Vec<Rule> {
        specs.iter().enumerate().filter_map(|(place, spec)| self.rule(spec, semantics, &at.index(place))).collect()
    }

    fn rule(&mut self, spec: &RuleSpec, semantics: Option<Semantics>, at: &At<'_>) -> Option<Rule> {
        for (field, length) in lists(spec) {
            if length > RULE_VALUES_MAX {
                let remedy = format!("use {RULE_VALUES_MAX} at most: match by group or prefix instead");
                self.report.error(&at.key(field), format!("has {length} values"), remedy);
                return None;
            }
        }
        for notice in lint(spec, semantics) {
            let field = at.key(notice.field);
            let at = notice.index.map_or(field, |index| field.index(index));
            self.report.warn(&at, notice.problem, notice.remedy);
        }
        match Rule::new(spec.clone(), semantics.unwrap_or_default()) {
            Ok(rule) => Some(rule),
            Err(error @ PolicyError::Cidr { index, .. }) => {
                self.report.error(
                    &at.key("cidrs").index(index),
                    error.to_string(),
                    "write an address, a slash, and the prefix's length",
                );
                None
            }
        }
    }

    fn policy(
        &mut self,
        policy: &DispatchPolicySpec,
        place: usize,
        spec: &ClusterSpec,
        flow_schemas: &[Arc<FlowSchema>],
        known: &Known<'_>,
        at: &At<'_>,
    ) -> DispatchPolicy {
        let strategy = match policy.strategy {
            StrategySpec::RoundRobin => Strategy::RoundRobin,
            StrategySpec::LeastWork => Strategy::LeastWork,
            StrategySpec::Latency => Strategy::Latency,
            StrategySpec::Weighted => Strategy::Weighted,
            StrategySpec::Rendezvous => Strategy::Rendezvous,
        };
        let subset = self.subset(policy, known, at);
        let weights = self.weights(&policy.weights, known, at);
        let weights_are_equal = known.endpoints.windows(2).all(|pair| pair[0].weight == pair[1].weight);
        if strategy == Strategy::Weighted && weights_are_equal && !known.may_change {
            let problem = "is Weighted, but all servers have the same weight";
            self.report.warn(&at.key("strategy"), problem, "set weight of servers, or use RoundRobin");
        }
        if subset.is_some() && !policy.weights.is_empty() {
            let remedy = "remove one of the two: weights name endpoints themselves";
            self.report.error(&at.key("weights"), "is set, and so is upstreamSubset", remedy);
        }
        let name = if policy.name.is_empty() { format!("policy-{place}") } else { policy.name.clone() };
        DispatchPolicy {
            name: name.into(),
            place,
            strategy,
            subset,
            weights,
            flow_schema: self.flow_schema_place(policy, flow_schemas, at),
            access_log: is_logged(spec.logging.mode, policy.log_mode),
            timeouts: self.timeouts(&policy.timeouts, at),
            body_bytes_max: policy.max_body_bytes.map(|size| size.0),
            degradation: policy.degradation.as_ref().map(|spec| Arc::new(self.degradation(spec, at))),
            circuit_breaker: policy.circuit_breaker.as_ref().map(|spec| self.circuit_breaker(spec, at)),
            fingerprint: Fingerprint::of(&(policy, spec.logging.mode, spec.compat)),
        }
    }

    fn flow_schema_place(
        &mut self,
        policy: &DispatchPolicySpec,
        schemas: &[Arc<FlowSchema>],
        at: &At<'_>,
    ) -> Option<usize> {
        let name = &policy.flow_control_schema_name;
        if name.is_empty() {
            return None;
        }
        let place = schemas.iter().position(|schema| *schema.name == **name);
        if place.is_none() {
            let names: Vec<&str> = schemas.iter().map(|schema| &*schema.name).collect();
            let remedy = if names.is_empty() {
                "add it to flowControl.flowControlSchemas".to_owned()
            } else {
                format!("there are {}", names.join(", "))
            };
            let problem = format!("{name:?} is no flow control schema, so these requests are not limited");
            self.report.warn(&at.key("flowControlSchemaName"), problem, remedy);
        }
        place
    }

    fn subset(&mut self, policy: &DispatchPolicySpec, known: &Known<'_>, at: &At<'_>) -> Option<Arc<[Arc<str>]>> {
        let mut field = "upstreamSubset";
        let mut subset = &policy.upstream_subset;
        if !policy.upsteam_subset.is_empty() {
            let misspelt = at.key("upsteamSubset");
            if policy.upstream_subset.is_empty() {
                let problem =
                    "is upstreamSubset as the original's documentation spells it; its code ignores it, here it counts";
                self.report.warn(&misspelt, problem, "write upstreamSubset");
                (field, subset) = ("upsteamSubset", &policy.upsteam_subset);
            } else {
                self.report.error(&misspelt, "is set, and so is upstreamSubset", "keep upstreamSubset");
            }
        }
        self.named_endpoints(subset, known, &at.key(field))
    }

    /// The identities of endpoints; `None` if none are named.
    fn named_endpoints(&mut self, names: &[String], known: &Known<'_>, at: &At<'_>) -> Option<Arc<[Arc<str>]>> {
        if names.is_empty() {
            return None;
        }
        let ids: Vec<Arc<str>> = names
            .iter()
            .enumerate()
            .filter_map(|(index, name)| self.named_endpoint(name, known, &at.index(index)))
            .collect();
        Some(ids.into())
    }

    fn named_endpoint(&mut self, name: &str, known: &Known<'_>, at: &At<'_>) -> Option<Arc<str>> {
        let id = match EndpointUrl::parse(name) {
            Ok(url) => url.canonical(),
            Err(problem) => {
                self.report.error(at, format!("{name:?} {problem}"), "write it as in servers");
                return None;
            }
        };
        if let Some(endpoint) = known.endpoints.iter().find(|endpoint| *endpoint.id == *id) {
            return Some(endpoint.id.clone());
        }
        let problem = format!("{id} is not among the servers");
        if known.may_change {
            self.report.warn(at, problem, "it is used once discovery finds it");
        } else {
            self.report.error(at, problem, "add it to servers, or remove it here");
        }
        Some(id.into())
    }

    fn weights(&mut self, specs: &[WeightSpec], known: &Known<'_>, at: &At<'_>) -> Option<Weights> {
        if specs.is_empty() {
            return None;
        }
        let at = at.key("weights");
        let mut named: HashSet<Arc<str>> = HashSet::new();
        let mut arms = Vec::with_capacity(specs.len());
        for (index, spec) in specs.iter().enumerate() {
            let arm_at = at.index(index);
            let endpoints: Arc<[Arc<str>]> = match (spec.endpoint.is_empty(), spec.subset.is_empty()) {
                (false, true) => {
                    self.named_endpoint(&spec.endpoint, known, &arm_at.key("endpoint")).into_iter().collect()
                }
                (true, false) => self.named_endpoints(&spec.subset, known, &arm_at.key("subset")).unwrap_or_default(),
                (is_missing, _) => {
                    let problem = if is_missing { "names no endpoint" } else { "has both endpoint and subset" };
                    self.report.error(&arm_at, problem, "set endpoint, or subset for several");
                    continue;
                }
            };
            for endpoint in endpoints.iter().filter(|endpoint| !named.insert(Arc::clone(endpoint))) {
                self.report.error(&arm_at, format!("{endpoint} has a share already"), "name each endpoint once");
            }
            arms.push(Arm { endpoints, share: spec.percent.hundredths });
        }
        let sum: u64 = specs.iter().map(|spec| u64::from(spec.percent.hundredths)).sum();
        if sum != u64::from(WEIGHT_SHARES) {
            let problem = format!("the shares add up to {}.{:02} percent", sum / 100, sum % 100);
            self.report.error(&at, problem, "make them add up to 100");
        }
        Weights::new(arms)
    }

    fn duration(&mut self, value: Option<DurationText>, at: &At<'_>) -> Option<Duration> {
        let DurationText(duration) = value?;
        if duration.is_zero() {
            self.report.error(at, "is 0", "write a length of time, or remove it for the default");
            return None;
        }
        Some(duration)
    }

    fn timeouts(&mut self, spec: &TimeoutsSpec, at: &At<'_>) -> Timeouts {
        let at = at.key("timeouts");
        let timeouts = Timeouts {
            request: self.duration(spec.request, &at.key("request")),
            per_try: self.duration(spec.per_try, &at.key("perTry")),
            idle: self.duration(spec.idle, &at.key("idle")),
        };
        if let (Some(per_try), Some(request)) = (timeouts.per_try, timeouts.request)
            && per_try >= request
        {
            let remedy = "write less than timeouts.request: else there is no time for another try";
            self.report.warn(&at.key("perTry"), "is not less than timeouts.request", remedy);
        }
        timeouts
    }

    fn degradation(&mut self, spec: &DegradationSpec, at: &At<'_>) -> Degradation {
        let at = at.key("degradation");
        let status =
            spec.status.map_or(Some(StatusCode::SERVICE_UNAVAILABLE), |status| StatusCode::from_u16(status).ok());
        let status = status.filter(|status| !status.is_informational()).unwrap_or_else(|| {
            let problem = format!("{} is no final HTTP status", spec.status.unwrap_or_default());
            self.report.error(&at.key("status"), problem, "write a number from 200 to 599");
            StatusCode::SERVICE_UNAVAILABLE
        });
        let media_type = if spec.content_type.is_empty() { "text/plain; charset=utf-8" } else { &spec.content_type };
        let content_type = HeaderValue::from_str(media_type).unwrap_or_else(|_| {
            let problem = format!("{media_type:?} can't be in a header");
            self.report.error(&at.key("contentType"), problem, "write a media type such as application/json");
            HeaderValue::from_static("text/plain")
        });
        let has_no_body = status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
        if has_no_body && !spec.body.is_empty() {
            self.report.error(
                &at.key("body"),
                format!("is set, but a {status} has none"),
                "remove it, or change the status",
            );
        }
        let mode = match spec.mode {
            DegradationModeSpec::UpstreamDown => DegradationMode::UpstreamDown,
            DegradationModeSpec::Always => DegradationMode::Always,
        };
        if mode == DegradationMode::Always {
            let problem = "is always: no request of this policy reaches an upstream";
            self.report.warn(&at.key("mode"), problem, "set upstreamDown once this is over");
        }
        Degradation { mode, status, content_type, body: Bytes::from(spec.body.clone()) }
    }

    fn circuit_breaker(&mut self, spec: &CircuitBreakerSpec, at: &At<'_>) -> CircuitBreaker {
        let at = at.key("circuitBreaker");
        let error_percent = spec.error_percent.unwrap_or(50);
        if !(1..=100).contains(&error_percent) {
            let problem = format!("{error_percent} is out of bounds");
            self.report.error(&at.key("errorPercent"), problem, "write a number from 1 to 100");
        }
        let requests_min = spec.min_requests.unwrap_or(20);
        if requests_min == 0 {
            self.report.error(&at.key("minRequests"), "is 0", "write 1 or more");
        }
        CircuitBreaker {
            error_percent,
            requests_min,
            window: self.duration(spec.window, &at.key("window")).unwrap_or(Duration::from_secs(10)),
            open: self.duration(spec.open_for, &at.key("openFor")).unwrap_or(Duration::from_secs(5)),
        }
    }
}

/// The lists of a rule and how long they are.
fn lists(rule: &RuleSpec) -> [(&'static str, usize); 11] {
    [
        ("verbs", rule.verbs.len()),
        ("apiGroups", rule.api_groups.len()),
        ("resources", rule.resources.len()),
        ("resourceNames", rule.resource_names.len()),
        ("users", rule.users.len()),
        ("serviceAccounts", rule.service_accounts.len()),
        ("userGroups", rule.user_groups.len()),
        ("nonResourceURLs", rule.non_resource_urls.len()),
        ("namespaces", rule.namespaces.len()),
        ("userAgents", rule.user_agents.len()),
        ("cidrs", rule.cidrs.len()),
    ]
}

/// Off on either level wins, and then on; neither is off.
fn is_logged(cluster: LogMode, policy: LogMode) -> bool {
    let modes = [cluster, policy];
    !modes.contains(&LogMode::Off) && modes.contains(&LogMode::On)
}
