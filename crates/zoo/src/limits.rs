//! The bounds of everything that a client or an apiserver can make zoo hold.

use std::time::Duration;

/// How often a request is sent that was certainly not processed.
pub(crate) const UPSTREAM_TRIES_MAX: u32 = 3;
/// Longest body of a request, in bytes: kube-apiserver takes 3 MiB, and ours are longer by some prefixes upstream.
pub(crate) const REQUEST_BYTES_MAX: usize = 3 << 20;
/// Longest answer that is rewritten as a whole, in bytes.
pub(crate) const ANSWER_BYTES_MAX: usize = 512 << 20;
/// From so many bytes on, what is read or rewritten is so while other connections go on.
pub(crate) const LONG_WORK_BYTES: usize = 128 << 10;
/// Longest answer to zoo's own requests for one object, in bytes.
pub(crate) const OWN_ANSWER_BYTES_MAX: usize = 8 << 20;
/// Longest event of a watch, in bytes.
pub(crate) const EVENT_BYTES_MAX: usize = 16 << 20;
/// Client connections at once.
pub(crate) const CONNECTIONS_MAX: usize = 16_384;
/// How long the body of a request may take, as at a kube-apiserver.
pub(crate) const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long connections may take to end when zoo stops.
pub(crate) const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Lists of namespaces that one request for all of them has going at once.
pub(crate) const LISTS_AT_ONCE: usize = 8;
/// Lists without a limit that are read at once, for all tenants.
pub(crate) const GATHERS_AT_ONCE: usize = 64;
/// How long such a list waits for its turn.
pub(crate) const GATHER_PATIENCE: Duration = Duration::from_secs(30);
/// Namespaces of new tenants that are made at once in the background.
pub(crate) const PROVISIONS_AT_ONCE: usize = 2;
/// How long after a tenant was made that begins.
pub(crate) const PROVISION_DELAY: Duration = Duration::from_millis(250);
/// How long it waits each time that a request waits for a namespace.
pub(crate) const PROVISION_YIELD: Duration = Duration::from_millis(50);
/// How often it waits for that.
pub(crate) const PROVISION_YIELDS_MAX: u32 = 100;
/// Authorities for pods that are looked at in one request.
pub(crate) const ROOTS_PER_PAGE: u32 = 500;
/// Tenants on their way out that are looked at and deleted from at once.
pub(crate) const ENDINGS_AT_ONCE: usize = 4;
/// How soon the apiserver's authorizer mostly knows a new binding.
pub(crate) const BINDING_HEARD_WITHIN: Duration = Duration::from_millis(3);
/// The longest pause after which a write is tried again that the apiserver's authorizer refuses although the binding is there.
pub(crate) const BINDING_PATIENCE: Duration = Duration::from_millis(500);
/// How long the apiserver's word on a token that a kubelet mounted is taken, as at a kube-apiserver.
pub(crate) const VERDICT_LASTS: Duration = Duration::from_secs(10);
/// How many such words are remembered of good tokens, and of others.
pub(crate) const VERDICTS_MAX: usize = 8192;
/// Tokens that the apiserver is asked about at once.
pub(crate) const VERDICTS_AT_ONCE: usize = 32;
/// Those of one tenant, with those that wait.
pub(crate) const VERDICTS_PER_TENANT_MAX: usize = 64;
/// How long a request waits for that.
pub(crate) const VERDICTS_PATIENCE: Duration = Duration::from_secs(10);
/// How long an apiserver may take to agree to a stream, or to say why it does not.
pub(crate) const UPGRADE_ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest answer that is no agreement to a stream, in bytes.
pub(crate) const UPGRADE_ANSWER_BYTES_MAX: usize = 1 << 20;
/// How often a patch of a role or binding is tried that others change at the same time.
pub(crate) const PRIVATE_TRIES_MAX: u32 = 5;
/// Bytes of events that are kept of one kind for those who come back.
pub(crate) const RING_BYTES_MAX: usize = 16 << 20;
/// Bytes that wait for one watcher; one that falls further behind is ended, and comes back.
pub(crate) const WATCHER_BYTES_MAX: usize = 4 << 20;
/// Events that wait go to a watcher's connection together, up to so many bytes.
pub(crate) const WATCH_PIECE_BYTES: usize = 64 << 10;
/// How far behind the newest version a shared watch begins: clients that come back after a restart are not far behind either.
pub(crate) const HUB_LOOKS_BACK: u64 = 10_000;
/// Watches of a tenant at once.
pub(crate) const WATCHES_PER_TENANT_MAX: usize = 20_000;
/// Watches of a tenant that each have one upstream.
pub(crate) const OWN_WATCHES_PER_TENANT_MAX: usize = 200;
/// When a client that has too many is to try again, in seconds.
pub(crate) const WATCH_RETRY_SECONDS: u32 = 5;
/// How long a shared watch goes on without a watcher.
pub(crate) const HUB_IDLE: Duration = Duration::from_secs(60);
/// How long a watch lasts at least if its client does not say; up to twice that, as at a kube-apiserver.
pub(crate) const WATCH_LASTS: Duration = Duration::from_secs(1800);
/// Longest OpenAPI document of the apiserver behind, in bytes: version 2 of a cluster with some hundred custom resources has 30 MB.
pub(crate) const DOCUMENT_BYTES_MAX: usize = 128 << 20;
/// All OpenAPI documents that are held, in bytes. Those of Kubernetes' own kinds have 11 MB in both encodings.
pub(crate) const DOCUMENTS_BYTES_MAX: usize = 24 << 20;
