//! Limits.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::cluster::{FlowSchema, Limit, PerUserLimit, TokenBucket};
use super::super::fingerprint::Fingerprint;
use super::super::manifest::{
    ClusterSpec, FlowControlSchema, LimitStrategy, MaxRequestsInflight, PerUserSpec, TokenBucketSpec,
};
use super::super::problem::At;
use super::Check;

impl Check<'_, '_> {
    pub(super) fn flow_schemas(&mut self, spec: &ClusterSpec, at: &At<'_>) -> Box<[Arc<FlowSchema>]> {
        let flow_at = at.key("flowControl");
        let schemas_at = flow_at.key("flowControlSchemas");
        let mut lines: HashMap<&str, usize> = HashMap::new();
        let mut schemas = Vec::new();
        for (index, schema) in spec.flow_control.flow_control_schemas.iter().enumerate() {
            let schema_at = schemas_at.index(index);
            if schema.name.is_empty() {
                self.report.error(&schema_at.key("name"), "is missing", "give the schema a name that policies can use");
            } else if let Some(first) = lines.insert(&schema.name, index) {
                let problem = format!("{:?} is the name of flowControlSchemas[{first}] too", schema.name);
                self.report.error(&schema_at.key("name"), problem, "give each schema a name of its own");
            }
            let is_used = spec.dispatch_policies.iter().any(|policy| policy.flow_control_schema_name == schema.name);
            if !schema.name.is_empty() && !is_used {
                let remedy = "set flowControlSchemaName of a policy, or remove the schema";
                self.report.warn(&schema_at, format!("{:?} is used by no policy", schema.name), remedy);
            }
            schemas.push(Arc::new(self.flow_schema(schema, &schema_at)));
        }
        schemas.into()
    }

    fn flow_schema(&mut self, schema: &FlowControlSchema, at: &At<'_>) -> FlowSchema {
        let kinds = [
            ("exempt", schema.exempt.is_some()),
            ("maxRequestsInflight", schema.max_requests_inflight.is_some()),
            ("tokenBucket", schema.token_bucket.is_some()),
        ];
        let mut set = kinds.iter().filter(|(_, is_set)| *is_set).map(|(field, _)| *field);
        let first = set.next();
        if first.is_none() {
            self.report.error(at, "has no limit", "set one of exempt, maxRequestsInflight and tokenBucket");
        }
        for further in set {
            let problem = format!("is set, and so is {}", first.unwrap_or_default());
            self.report.error(
                &at.key(further),
                problem,
                "keep one kind of limit, and use a second schema for the other",
            );
        }
        let inflight =
            schema.max_requests_inflight.as_ref().map(|spec| self.inflight(spec, &at.key("maxRequestsInflight")));
        let bucket = schema.token_bucket.as_ref().map(|spec| self.bucket(spec, &at.key("tokenBucket")));
        let limit = match (inflight, bucket) {
            (Some(max), _) => Limit::MaxRequestsInflight(max),
            (None, Some(bucket)) => Limit::TokenBucket(bucket),
            (None, None) => Limit::Exempt,
        };
        let global = self.global(schema, limit, at);
        let per_user = schema.per_user.as_ref().and_then(|spec| self.per_user(spec, at));
        FlowSchema {
            name: schema.name.as_str().into(),
            limit,
            global,
            strategy: schema.strategy,
            per_user,
            fingerprint: Fingerprint::of(schema),
        }
    }

    fn global(&mut self, schema: &FlowControlSchema, local: Limit, at: &At<'_>) -> Option<Limit> {
        let mut global = None;
        if let Some(spec) = &schema.global_max_requests_inflight {
            let spec_at = at.key("globalMaxRequestsInflight");
            let max = self.inflight(spec, &spec_at);
            match local {
                Limit::MaxRequestsInflight(local) if max < local => {
                    let problem = format!("{max} is less than maxRequestsInflight.max");
                    self.report.error(&spec_at.key("max"), problem, format!("write {local} or more"));
                }
                Limit::MaxRequestsInflight(_) => {}
                _ => self.report.error(
                    &at.key("maxRequestsInflight"),
                    "is missing, though there is globalMaxRequestsInflight",
                    "set both",
                ),
            }
            global = Some(Limit::MaxRequestsInflight(max));
        }
        if let Some(spec) = &schema.global_token_bucket {
            let spec_at = at.key("globalTokenBucket");
            let bucket = self.bucket(spec, &spec_at);
            match local {
                Limit::TokenBucket(local) => {
                    let pairs = [("qps", bucket.per_second, local.per_second), ("burst", bucket.burst, local.burst)];
                    for (field, global, local) in pairs {
                        if global < local {
                            let problem = format!("{global} is less than tokenBucket.{field}");
                            self.report.error(&spec_at.key(field), problem, format!("write {local} or more"));
                        }
                    }
                }
                _ => self.report.error(
                    &at.key("tokenBucket"),
                    "is missing, though there is globalTokenBucket",
                    "set both",
                ),
            }
            global = Some(Limit::TokenBucket(bucket));
        }
        if schema.strategy == LimitStrategy::Local && global.is_some() {
            let remedy = "remove the global limit, or set strategy";
            self.report.warn(&at.key("strategy"), "is local, so the global limit means nothing", remedy);
        }
        if schema.strategy != LimitStrategy::Local {
            let problem = "is global, but gateways do not count together yet: each lets the local limit through";
            let remedy = "make the local limit that of all, divided by the number of gateways";
            self.report.warn(&at.key("strategy"), problem, remedy);
        }
        global
    }

    fn per_user(&mut self, spec: &PerUserSpec, at: &At<'_>) -> Option<PerUserLimit> {
        let at = at.key("perUser");
        let limit = PerUserLimit {
            inflight_max: spec
                .max_requests_inflight
                .as_ref()
                .map(|spec| self.inflight(spec, &at.key("maxRequestsInflight"))),
            token_bucket: spec.token_bucket.as_ref().map(|spec| self.bucket(spec, &at.key("tokenBucket"))),
        };
        match (limit.inflight_max, limit.token_bucket) {
            (None, None) => {
                self.report.error(&at, "has no limit", "set one of maxRequestsInflight and tokenBucket");
                None
            }
            (Some(_), Some(_)) => {
                let remedy = "keep one kind of limit, and use a second schema for the other";
                self.report.error(&at.key("tokenBucket"), "is set, and so is maxRequestsInflight", remedy);
                None
            }
            _ => Some(limit),
        }
    }

    fn inflight(&mut self, spec: &MaxRequestsInflight, at: &At<'_>) -> u32 {
        if spec.max < 0 {
            self.report.error(&at.key("max"), format!("{} is negative", spec.max), "write 0 or more");
        }
        if spec.max == 0 {
            self.report.warn(
                &at.key("max"),
                "is 0: every request is refused",
                "write how many requests may be in flight",
            );
        }
        spec.max.max(0).unsigned_abs()
    }

    fn bucket(&mut self, spec: &TokenBucketSpec, at: &At<'_>) -> TokenBucket {
        if spec.qps < 1 {
            let problem =
                if spec.qps == 0 { "is 0 or missing".to_owned() } else { format!("{} is negative", spec.qps) };
            self.report.error(&at.key("qps"), problem, "write how many requests a second are let through");
        } else if spec.burst < spec.qps {
            let problem = format!("{} is less than qps", spec.burst);
            self.report.error(&at.key("burst"), problem, format!("write {} or more", spec.qps));
        }
        let per_second = spec.qps.max(1).unsigned_abs();
        TokenBucket { per_second, burst: spec.burst.max(1).unsigned_abs().max(per_second) }
    }
}
