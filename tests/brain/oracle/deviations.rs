//! What KubeBrain answers differently from etcd on purpose. A difference that is not in this table is a bug, and so is a
//! line of this table that tests do not meet.

use kubewharf_testkit::store::Kind;

/// A request that is answered differently, with the reason.
pub(super) struct Deviation {
    area: &'static str,
    /// The scenario.
    scenario: &'static str,
    /// A part of the request.
    request: &'static str,
    /// A part of KubeBrain's reply.
    reply: &'static str,
    /// Why.
    reason: &'static str,
    /// On which stores; none for all of the product's.
    only: &'static [Kind],
}

impl Deviation {
    const fn only(self, only: &'static [Kind]) -> Self {
        Self { only, ..self }
    }
}

const fn deviation(
    area: &'static str,
    scenario: &'static str,
    request: &'static str,
    reply: &'static str,
    reason: &'static str,
) -> Deviation {
    Deviation { area, scenario, request, reply, reason, only: &[] }
}

const ONE_MEMBER: &str = "an embedded engine has one member";
const DECODER: &str = "the decoder refuses a field of another type, where Go's takes it for an unknown one";
const OWN_ALARMS: &str = "an alarm shows the size of the database and is not raised by hand";
const NOT_BUILT: &str = "not built yet";
const NO_AUTH: &str = "there are no users yet";

/// Stores over an engine that several share.
const SHARED: &[Kind] = &[Kind::Postgres, Kind::Follower, Kind::Tikv];

const DEVIATIONS: &[Deviation] = &[
    deviation(
        "streams",
        "streams that are refused",
        "sort_order: None",
        "Unimplemented: RangeStream does not support custom sort orders",
        "etcd sorts each part by itself and goes on behind its largest key, which skips and repeats keys",
    ),
    deviation(
        "wrong transactions",
        "too deep",
        "RequestTxn",
        "Internal: grpc: error unmarshalling request",
        "messages are decoded up to 100 levels deep, about 49 transactions within each other",
    ),
    deviation(
        "compactions",
        "hashes of revisions",
        "HashKvRequest { revision: -1 }",
        "hash: 1",
        "a revision below 0 is the newest everywhere; etcd hashes nothing for it",
    ),
    deviation(
        "compactions",
        "the hash of the compacted revision",
        "HashKvRequest",
        "hash: 1",
        "etcd tells the hash that it took before it compacted, with the compacted revision of that time",
    ),
    deviation("others", "fields of another type", "Range with a number", "Internal", DECODER),
    deviation("others", "fields of another type", "Put with a number", "Internal", DECODER),
    deviation("others", "fields of another type", "Compact with a number", "Internal", DECODER),
    deviation("maintenance", "members", "MemberRemoveRequest", "Unimplemented", ONE_MEMBER).only(&[Kind::Brain]),
    deviation("maintenance", "members", "MemberListRequest", "", "another member leads").only(&[Kind::Follower]),
    deviation("maintenance", "status", "StatusRequest", "db_size_quota: 0", "only the database limits it").only(SHARED),
    deviation("maintenance", "members", "MemberPromoteRequest", "Unimplemented", ONE_MEMBER),
    deviation("maintenance", "members", "MemberUpdateRequest", "Unimplemented", ONE_MEMBER),
    deviation("maintenance", "leadership and downgrades", "MoveLeaderRequest", "Unimplemented", ONE_MEMBER)
        .only(&[Kind::Brain]),
    deviation("maintenance", "leadership and downgrades", "MoveLeaderRequest", "not leader", "another member leads")
        .only(&[Kind::Follower]),
    deviation("maintenance", "leadership and downgrades", "DowngradeRequest", "Unimplemented", ONE_MEMBER),
    deviation("maintenance", "alarms", "", "", OWN_ALARMS),
    deviation("maintenance", "services beside the store", "Snapshot", "Unimplemented", NOT_BUILT),
    deviation("maintenance", "services beside the store", "Lock", "Unimplemented", NOT_BUILT),
    deviation("maintenance", "services beside the store", "Leader", "Unimplemented", NOT_BUILT),
    deviation("auth", "what is added", "AuthUserAddRequest", "Unimplemented", NO_AUTH),
    deviation("auth", "what is added", "AuthRoleAddRequest", "Unimplemented", NO_AUTH),
    deviation("auth", "what is refused", "AuthRoleGrantPermissionRequest", "role name not found", NO_AUTH),
];

/// A deviation, and how often it was met.
pub(super) struct Known {
    deviation: &'static Deviation,
    pub(super) seen: usize,
}

impl Known {
    /// Whether it is this one.
    pub(super) fn matches(&self, scenario: &str, request: &str, reply: &str) -> bool {
        let Deviation { scenario: its, request: part, reply: its_reply, .. } = self.deviation;
        scenario == *its && request.contains(part) && reply.contains(its_reply)
    }

    /// It, in words.
    pub(super) fn describe(&self) -> String {
        let Deviation { scenario, request, reply, reason, .. } = self.deviation;
        format!("{scenario}: {request}: {reply} ({reason})")
    }
}

/// Those of one area; none when etcd is compared with itself.
pub(super) fn of(area: &str, kind: Kind) -> Vec<Known> {
    let is_on = |only: &[Kind]| kind.is_brain() && (only.is_empty() || only.contains(&kind));
    let these = DEVIATIONS.iter().filter(|deviation| is_on(deviation.only) && deviation.area == area);
    these.map(|deviation| Known { deviation, seen: 0 }).collect()
}
