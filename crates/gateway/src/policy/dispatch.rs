//! What happens to a request that a policy's rules match, and the policies of a cluster in their order.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use kubewharf_upstream::Strategy;

use super::index::RuleSet;
use super::rule::Rule;
use super::{Attributes, explain};
use crate::limits::WEIGHT_SHARES;

/// When a request waits too long. Each is the gateway's default where it is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Timeouts {
    /// From the request's head to the answer's end; watches, logs and upgrades are exempt.
    pub request: Option<Duration>,
    /// From the end of the request sent to one endpoint to its answer's head.
    pub per_try: Option<Duration>,
    /// Without any byte of an answer, or of an upgraded connection in either direction; and for how long a client may leave an answer unread.
    /// By default an endpoint may be silent as long as it likes, and a client for a minute, or half an hour where an answer lasts.
    pub idle: Option<Duration>,
}

/// When the static answer is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DegradationMode {
    /// While no endpoint can take the request.
    #[default]
    UpstreamDown,
    /// To every request.
    Always,
}

/// A static answer instead of the upstream's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Degradation {
    /// When it is given.
    pub mode: DegradationMode,
    /// Its status.
    pub status: StatusCode,
    /// Its media type.
    pub content_type: HeaderValue,
    /// Its body.
    pub body: Bytes,
}

/// When a policy stops asking its endpoints for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CircuitBreaker {
    /// The share of failed requests at which it opens, in percent. Failed are: no answer, a deadline, a status of 500
    /// and above.
    pub error_percent: u8,
    /// Requests within the window below which it never opens.
    pub requests_min: u32,
    /// The window in which requests are counted.
    pub window: Duration,
    /// How long it stays open; after that one request at a time is let through until one succeeds.
    pub open: Duration,
}

/// Some of the endpoints, and their share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arm {
    /// The endpoints, as `scheme://host:port`.
    pub endpoints: Arc<[Arc<str>]>,
    /// The share, in hundredths of a percent.
    pub share: u32,
}

/// Which users have which endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weights {
    arms: Box<[Arm]>,
}

impl Weights {
    /// The shares must add up to all: [`WEIGHT_SHARES`].
    #[must_use]
    pub fn new(arms: Vec<Arm>) -> Option<Self> {
        (arms.iter().map(|arm| u64::from(arm.share)).sum::<u64>() == u64::from(WEIGHT_SHARES))
            .then(|| Self { arms: arms.into() })
    }

    /// The groups, in the order of the manifest.
    #[must_use]
    pub fn arms(&self) -> &[Arm] {
        &self.arms
    }

    /// The place of a user's arm. It is the same in every gateway and every version. While the share of the first arm
    /// grows, no user leaves it; so the new thing belongs first.
    #[must_use]
    pub fn arm_of_user(&self, user: &str) -> usize {
        let point = stable_hash(user) % u64::from(WEIGHT_SHARES);
        let mut end = 0;
        self.arms
            .iter()
            .position(|arm| {
                end += u64::from(arm.share);
                point < end
            })
            .expect("the shares add up to more than any point")
    }
}

/// A hash that no release changes: users must not move when a gateway is updated, or between two gateways.
/// FNV-1a, with the finalizer of MurmurHash3, as FNV's low bits alone are too regular.
fn stable_hash(text: &str) -> u64 {
    let mut hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// What happens to the requests that match.
#[derive(Clone, Debug)]
pub struct DispatchPolicy {
    /// Its name; `policy-N` for one without, N being its place.
    pub name: Arc<str>,
    /// Its place among the cluster's policies.
    pub place: usize,
    /// How an endpoint is chosen.
    pub strategy: Strategy,
    /// The endpoints, as `scheme://host:port`; `None` for all of the cluster.
    pub subset: Option<Arc<[Arc<str>]>>,
    /// Which endpoints a user has, among which the strategy chooses. Never together with `subset`.
    pub weights: Option<Weights>,
    /// The place of its flow control schema among the cluster's; `None` for no limit.
    pub flow_schema: Option<usize>,
    /// Whether requests are written to the access log, where that is on.
    pub access_log: bool,
    /// Deadlines.
    pub timeouts: Timeouts,
    /// The longest body of a request, in bytes; `None` for the gateway's own limit.
    pub body_bytes_max: Option<u64>,
    /// A static answer.
    pub degradation: Option<Arc<Degradation>>,
    /// The circuit breaker.
    pub circuit_breaker: Option<CircuitBreaker>,
    /// Changes with anything that its manifest says of it, its rules too; not with its place, nor with what its schema
    /// says.
    pub fingerprint: u128,
}

/// Which policy a request belongs to, and by which of its rules.
#[derive(Clone, Copy, Debug)]
pub struct Decision<'a> {
    /// The policy.
    pub policy: &'a Arc<DispatchPolicy>,
    /// The place of the rule among the policy's.
    pub rule: usize,
}

/// The policies of a cluster. The first one wins of which a rule matches.
#[derive(Debug, Default)]
pub struct Policies {
    policies: Box<[Arc<DispatchPolicy>]>,
    /// The rules of all policies, one policy after another.
    rules: RuleSet,
    /// Where the rules of a policy begin; one more than there are policies.
    starts: Box<[usize]>,
    /// The policy of each rule.
    owners: Box<[u32]>,
}

impl Policies {
    /// Policies with their rules, in their order.
    #[must_use]
    pub fn new(policies: Vec<(DispatchPolicy, Vec<Rule>)>) -> Self {
        let mut all_rules = Vec::new();
        let mut starts = vec![0];
        let mut owners = Vec::new();
        let mut all_policies = Vec::with_capacity(policies.len());
        for (place, (policy, rules)) in policies.into_iter().enumerate() {
            let place = u32::try_from(place).expect("the number of policies is bounded far below");
            owners.resize(owners.len() + rules.len(), place);
            all_rules.extend(rules);
            starts.push(all_rules.len());
            all_policies.push(Arc::new(policy));
        }
        Self {
            policies: all_policies.into(),
            rules: RuleSet::new(all_rules),
            starts: starts.into(),
            owners: owners.into(),
        }
    }

    /// The policies, in their order.
    #[must_use]
    pub fn policies(&self) -> &[Arc<DispatchPolicy>] {
        &self.policies
    }

    /// The rules of one policy.
    #[must_use]
    pub fn rules(&self, policy: usize) -> &[Rule] {
        match (self.starts.get(policy), self.starts.get(policy + 1)) {
            (Some(start), Some(end)) => &self.rules.rules()[*start..*end],
            _ => &[],
        }
    }

    /// The policy of a request; `None` if no rule matches.
    #[must_use]
    pub fn decide(&self, attributes: &Attributes<'_>) -> Option<Decision<'_>> {
        let place = self.rules.first_match(attributes)?;
        let owner = self.owners[place] as usize;
        Some(Decision { policy: &self.policies[owner], rule: place - self.starts[owner] })
    }

    /// Why a request belongs to the policy to which it does, field by field.
    #[must_use]
    pub fn explain(&self, attributes: &Attributes<'_>) -> explain::Explanation {
        let decision = self.decide(attributes);
        let policies = self.policies.iter().enumerate().map(|(place, policy)| explain::PolicyExplanation {
            policy: place,
            name: policy.name.to_string(),
            rules: explain::rules(self.rules(place), attributes),
        });
        explain::Explanation {
            chosen: decision.map(|decision| explain::Chosen {
                policy: decision.policy.place,
                name: decision.policy.name.to_string(),
                rule: decision.rule,
            }),
            policies: policies.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(shares: &[u32]) -> Weights {
        let arm = |share: &u32| Arm { endpoints: Arc::from([Arc::from("https://a:443")]), share: *share };
        Weights::new(shares.iter().map(arm).collect()).unwrap()
    }

    #[test]
    fn users_keep_their_arm_while_the_first_one_grows_and_shares_are_kept() {
        let users: Vec<String> =
            (0..20_000).map(|number| format!("system:serviceaccount:team-{}:app-{number}", number % 7)).collect();
        let small = weights(&[500, 9_500]);
        let large = weights(&[2_000, 8_000]);
        let mut counts = [0_u32; 2];
        for user in &users {
            if small.arm_of_user(user) == 0 {
                assert_eq!(large.arm_of_user(user), 0, "{user} left the first arm while it grew");
            }
            counts[large.arm_of_user(user)] += 1;
        }
        assert!((3_700..4_300).contains(&counts[0]), "{counts:?} is not 20 percent");
        assert_eq!(weights(&[0, 10_000]).arm_of_user("anybody"), 1);
    }

    #[test]
    fn the_hash_of_a_user_is_the_same_in_every_release() {
        assert_eq!(stable_hash(""), 0xefd0_1f60_ba99_2926);
        assert_eq!(stable_hash("admin"), 0xdcea_9df5_0191_87c5);
    }

    #[test]
    fn shares_that_do_not_add_up_are_refused() {
        let arm = Arm { endpoints: Arc::from([]), share: 9_999 };
        assert_eq!(Weights::new(vec![arm]), None);
    }
}
