//! Every bound of this crate that is not an option of the operator.

pub use kubewharf_front::{HANDSHAKE_TIMEOUT, HEAD_TIMEOUT, IDLE_TIMEOUT, SEND_TIMEOUT};

// Authentication.

/// Entries of each verdict cache of a cluster (tokens, impersonations); successes and refusals are counted apart.
pub const VERDICTS_MAX: usize = 32_768;
/// Locks of a verdict cache; a power of two.
pub(crate) const VERDICT_SHARDS: usize = 64;
/// Questions to one cluster of one kind (token or access reviews) that are under way at once; further ones wait.
pub const REVIEWS_AT_ONCE_MAX: usize = 128;
/// Such questions that wait; the next is refused at once. It is not known yet who asks them.
pub const REVIEWS_WAITING_MAX: usize = 1024;
/// Tokens from one address, or one /64 of IPv6, that are being judged or wait for it: nobody may fill the queue alone. Clients behind a NAT are
/// one address, so it is not few.
pub const TOKENS_PER_ADDRESS_MAX: usize = 256;
/// Access reviews of one impersonation that are under way at once.
pub(crate) const IMPERSONATION_REVIEWS_AT_ONCE: usize = 8;
/// Groups and extra values that one request may impersonate; each is a review of its own.
pub const IMPERSONATION_VALUES_MAX: usize = 256;
/// TLS 1.2 sessions that a cluster remembers for clients that know no tickets.
pub(crate) const TLS_SESSIONS_MAX: usize = 256;
/// Longest JSON Web Token that is looked into, in bytes; longer tokens go to the cluster.
pub(crate) const JWT_BYTES_MAX: usize = 64 << 10;
/// Token issuers of one configuration; kube-apiserver's.
pub const JWT_ISSUERS_MAX: usize = 64;
/// Signing keys of one issuer that are kept; the first ones of its key set.
pub const JWT_KEYS_MAX: usize = 64;
/// How long after its end a token still counts, for clocks that differ. kube-apiserver's cache has the same effect.
pub const JWT_EXPIRY_LEEWAY: std::time::Duration = std::time::Duration::from_secs(10);
/// How far in the future a token's begin or issue time may lie, for clocks that differ; kube-apiserver's.
pub const JWT_BEGIN_LEEWAY: std::time::Duration = std::time::Duration::from_secs(60);
/// Shortest time between two looks at an issuer's keys, whatever the tokens name.
pub const JWT_FETCH_INTERVAL_MIN: std::time::Duration = std::time::Duration::from_secs(10);
/// Age at which an issuer's keys are looked at again if the issuer does not say.
pub const JWT_REFRESH_DEFAULT: std::time::Duration = std::time::Duration::from_secs(300);
/// Shortest such age, whatever the issuer says.
pub const JWT_REFRESH_MIN: std::time::Duration = std::time::Duration::from_secs(60);
/// Longest such age, whatever the issuer says.
pub const JWT_REFRESH_MAX: std::time::Duration = std::time::Duration::from_secs(3600);
/// How long one document of an issuer may take.
pub const JWT_FETCH_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
/// Longest document of an issuer, in bytes.
pub const JWT_FETCH_BYTES_MAX: usize = 1 << 20;

// Limits.

/// Users with a limit of their own that one flow control schema remembers while they have nothing in flight.
pub const LIMITED_USERS_MAX: usize = 16_384;
/// Locks of the users of one schema; a power of two.
pub(crate) const LIMITED_USER_SHARDS: usize = 32;
/// Remembered users that are looked at to find one to forget.
pub(crate) const LIMITED_USERS_LOOKED_AT: usize = 8;

// Configuration and policy.

/// Longest manifest, in bytes.
pub const MANIFEST_BYTES_MAX: u64 = 8 << 20;
/// Longest file that a manifest names, in bytes; revocation lists are the long ones.
pub const REFERENCED_FILE_BYTES_MAX: u64 = 16 << 20;
/// Manifests of one folder.
pub const MANIFESTS_MAX: usize = 4096;
/// Bytes of all manifests of one folder, and of the files that they name.
pub const CONFIG_BYTES_MAX: u64 = 512 << 20;
/// Clusters of one gateway.
pub const CLUSTERS_MAX: usize = 4096;
/// Endpoints of one cluster.
pub const ENDPOINTS_MAX: usize = 1024;
/// Rules of one cluster: those of all policies together, and those of access.
pub const RULES_MAX: usize = 4096;
/// Values of one list of a rule.
pub const RULE_VALUES_MAX: usize = 4096;
/// Values of all rules of one cluster together.
pub const CLUSTER_RULE_VALUES_MAX: usize = 1 << 16;
/// Problems of one look at the configuration that are told; further ones are counted.
pub const PROBLEMS_MAX: usize = 200;
/// Rules from which on an index is faster than asking one after another.
pub(crate) const INDEXED_RULES_MIN: usize = 12;
/// Greatest weight of an endpoint.
pub const WEIGHT_MAX: u32 = 1_000_000;
/// All shares of weights together: hundredths of a percent.
pub const WEIGHT_SHARES: u32 = 10_000;
/// Time between two looks at the files of the configuration, should no event tell of a change.
pub const CONFIG_POLL: std::time::Duration = std::time::Duration::from_secs(5);
/// How long the folder of the configuration must be quiet before its files are read.
pub(crate) const CONFIG_QUIET: std::time::Duration = std::time::Duration::from_millis(150);
/// Longest wait for such quiet.
pub(crate) const CONFIG_QUIET_WAIT_MAX: std::time::Duration = std::time::Duration::from_secs(2);

// Clients.

/// Client connections at once, unless the operator says otherwise.
pub const CONNECTIONS_MAX: usize = 50_000;
/// Open files that are not a client's: connections to kube-apiservers, which are few, logs, and what is read now and then.
pub(crate) const OWN_DESCRIPTORS: usize = 1024;
/// Connections of administrators at once.
pub(crate) const ADMIN_CONNECTIONS_MAX: usize = 64;

// Requests.

/// Longest body of a request, in bytes, unless a policy says otherwise. kube-apiserver takes 3 MiB of an object; uploads through the
/// proxies of pods and services are longer.
pub const BODY_BYTES_MAX: u64 = 128 << 20;
/// Bytes of a request's body that are kept so that it can be sent again.
pub(crate) const REPLAY_BYTES_MAX: usize = 64 << 10;
/// Bytes of an answer that are waited for before its head goes to the client, if the request can be repeated: an answer
/// that breaks off before is got elsewhere. Much less than a stream's window; it covers most objects and small lists.
pub(crate) const ANSWER_HELD_BYTES: usize = 16 << 10;
/// Bytes of a refused request's body that are taken off the connection.
pub(crate) const READ_OFF_BYTES_MAX: usize = 64 << 10;
/// How long that may take.
pub(crate) const READ_OFF_TIMEOUT: std::time::Duration = std::time::Duration::from_millis(200);
/// Announced length from which a request's body is a long one, with connections of its own.
pub(crate) const LONG_BODY_BYTES: u64 = 1 << 20;
/// The soonest that a watch without an event ends for its client; see [`WatchEnd`](crate::body::WatchEnd).
pub(crate) const WATCH_END_NOT_BEFORE: std::time::Duration = std::time::Duration::from_millis(1100);
/// When the first watch ends after the gateway was told to stop, in percent of the time that it has for that. Clients hear first that they
/// shall go elsewhere.
pub(crate) const DRAIN_FIRST_WATCH_PERCENT: u32 = 5;
/// When the last one does.
pub(crate) const DRAIN_LAST_WATCH_PERCENT: u32 = 50;
/// Endpoints that one request is tried at.
pub const TRIES_MAX: usize = 4;
/// Endpoints that one review is tried at.
pub(crate) const REVIEW_ENDPOINTS_MAX: usize = 3;
/// Longest answer to a review, in bytes.
pub(crate) const REVIEW_BYTES_MAX: usize = 1 << 20;
/// How long a kube-apiserver may take to agree to an upgrade.
pub(crate) const UPGRADE_ANSWER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);
/// Buffer of each direction of an upgraded connection, in bytes.
pub(crate) const SPLICE_BYTES: usize = 16 << 10;
/// How long one side of an upgraded connection may take to end when the other one is gone and nothing more moves.
pub(crate) const SPLICE_LINGER: std::time::Duration = std::time::Duration::from_secs(2);
/// Kinds of answers (by endpoint, verb and status) that are counted apart for one policy; with the next, its counts begin anew.
pub(crate) const POLICY_ANSWER_KINDS_MAX: usize = 4096;
/// Lines that wait for the writer of the access log.
pub(crate) const ACCESS_LOG_LINES_MAX: usize = 16_384;
/// Time between two looks at the DNS.
pub(crate) const DNS_INTERVAL: std::time::Duration = std::time::Duration::from_secs(10);

// Traces.

/// Spans that wait for their way to the collector; further ones are left out and counted. Mostly less than a kilobyte each.
pub(crate) const SPANS_WAITING_MAX: usize = 8192;
/// Spans that go to the collector in one request.
pub(crate) const SPANS_PER_EXPORT_MAX: usize = 512;
/// How long a span waits for others to go with.
pub(crate) const SPANS_EXPORT_INTERVAL: std::time::Duration = std::time::Duration::from_secs(1);
/// Longest text of a span that comes from a client, in bytes; the rest is cut off.
pub(crate) const SPAN_TEXT_BYTES_MAX: usize = 1024;
/// Longest `tracestate` that a span has, in bytes; a longer one is left out of the span. W3C Trace Context wants no less to be passed on, and
/// to the kube-apiserver it goes however long it is.
pub(crate) const TRACE_STATE_BYTES_MAX: usize = 512;
/// Longest name of a resource or subresource in a span's name, in bytes: Kubernetes'.
pub(crate) const SPAN_RESOURCE_BYTES_MAX: usize = 63;
/// How long the collector may take for one request; the default of the OTLP exporter's specification.
pub(crate) const SPANS_EXPORT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
/// How often spans are sent before they are given up.
pub(crate) const SPANS_EXPORT_TRIES_MAX: u32 = 5;
/// First pause between two tries; it doubles with each. Half of it is left to chance, so that gateways do not come all at once.
pub(crate) const SPANS_EXPORT_PAUSE_FIRST: std::time::Duration = std::time::Duration::from_secs(1);
/// Longest such pause, whatever the collector asks for.
pub(crate) const SPANS_EXPORT_PAUSE_MAX: std::time::Duration = std::time::Duration::from_secs(30);
/// Longest answer of the collector, in bytes.
pub(crate) const SPANS_EXPORT_ANSWER_BYTES_MAX: usize = 64 << 10;
/// How long the last spans may take when the gateway stops.
pub(crate) const SPANS_FLUSH_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(3);
