//! Counters, and their text for Prometheus.
//!
//! Names and meanings are etcd's wherever this store has the same thing; what only this store has is called `kubebrain_…`.
//!
//! Invariant: counting costs one relaxed addition to a cache line that other threads rarely touch. Everything else is done when
//! somebody asks.

use std::cell::Cell;
use std::fmt::{Display, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use kubewharf_etcd_api::{Code, Method};
use kubewharf_grpc::Stats;

use super::server::Server;

/// Threads that count at once without sharing a cache line, more or less.
const SHARDS: usize = 8;

/// This thread's shard.
fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static SHARD: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS));
    SHARD.with(Cell::get)
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Line(AtomicU64);

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter {
    lines: [Line; SHARDS],
}

impl Counter {
    /// Counts one.
    #[inline]
    pub fn increment(&self) {
        self.add(1);
    }

    /// Counts `count`.
    #[inline]
    pub fn add(&self, count: u64) {
        self.lines[shard()].0.fetch_add(count, Ordering::Relaxed);
    }

    /// The count.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.lines.iter().map(|line| line.0.load(Ordering::Relaxed)).sum()
    }
}

/// How many observations lie at or below each bound. For one observing thread: its cache lines are shared.
#[derive(Debug)]
pub struct Histogram<const BUCKETS: usize> {
    bounds: [f64; BUCKETS],
    counts: [AtomicU64; BUCKETS],
    above: AtomicU64,
    /// The sum, in millionths of the unit.
    sum_micro: AtomicU64,
}

impl<const BUCKETS: usize> Histogram<BUCKETS> {
    /// Bounds that double from `first` on.
    #[must_use]
    pub fn doubling(first: f64) -> Self {
        let mut bounds = [first; BUCKETS];
        for index in 1..BUCKETS {
            bounds[index] = bounds[index - 1] * 2.0;
        }
        Self {
            bounds,
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
            above: AtomicU64::new(0),
            sum_micro: AtomicU64::new(0),
        }
    }

    /// Takes an observation in.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub fn observe(&self, value: f64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        self.counts.get(at).unwrap_or(&self.above).fetch_add(1, Ordering::Relaxed);
        self.sum_micro.fetch_add((value * 1e6) as u64, Ordering::Relaxed);
    }

    /// Takes a time in, in seconds.
    pub fn observe_time(&self, time: Duration) {
        self.observe(time.as_secs_f64());
    }

    /// How many values were taken in.
    pub fn count(&self) -> u64 {
        self.counts.iter().chain([&self.above]).map(|count| count.load(Ordering::Relaxed)).sum()
    }

    #[allow(clippy::cast_precision_loss)]
    fn write(&self, text: &mut Exposition, name: &str, help: &str) {
        text.family(name, "histogram", help);
        let mut total = 0;
        for (bound, count) in self.bounds.iter().zip(&self.counts) {
            total += count.load(Ordering::Relaxed);
            text.sample(&format!("{name}_bucket"), &[("le", &bound.to_string())], total);
        }
        total += self.above.load(Ordering::Relaxed);
        text.sample(&format!("{name}_bucket"), &[("le", "+Inf")], total);
        text.sample(&format!("{name}_sum"), &[], self.sum_micro.load(Ordering::Relaxed) as f64 / 1e6);
        text.sample(&format!("{name}_count"), &[], total);
    }
}

/// gRPC calls by method, and by how they ended.
pub struct Calls {
    shards: Box<[CallShard; SHARDS]>,
}

#[repr(align(64))]
struct CallShard {
    started: [AtomicU64; Method::ALL.len()],
    handled: [[AtomicU64; Code::ALL.len()]; Method::ALL.len()],
}

impl Default for Calls {
    fn default() -> Self {
        let shard = || CallShard {
            started: std::array::from_fn(|_| AtomicU64::new(0)),
            handled: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))),
        };
        let shards: Vec<CallShard> = (0..SHARDS).map(|_| shard()).collect();
        Self { shards: shards.try_into().ok().expect("one shard each") }
    }
}

impl Calls {
    /// Counts a call that begins.
    #[inline]
    pub fn started(&self, method: Method) {
        self.shards[shard()].started[method as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a call that has ended.
    #[inline]
    pub fn handled(&self, method: Method, code: kubewharf_grpc::Code) {
        self.shards[shard()].handled[method as usize][code as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn started_total(&self, method: Method) -> u64 {
        self.shards.iter().map(|shard| shard.started[method as usize].load(Ordering::Relaxed)).sum()
    }

    fn handled_total(&self, method: Method, code: Code) -> u64 {
        self.shards.iter().map(|shard| shard.handled[method as usize][code as usize].load(Ordering::Relaxed)).sum()
    }

    fn write(&self, text: &mut Exposition) {
        let labels = |method: Method| {
            [("grpc_method", method.name()), ("grpc_service", method.service()), ("grpc_type", method.kind().label())]
        };
        text.family("grpc_server_started_total", "counter", "Total number of RPCs started on the server.");
        for method in Method::ALL.iter().copied() {
            text.sample("grpc_server_started_total", &labels(method), self.started_total(method));
        }
        let help = "Total number of RPCs completed on the server, regardless of success or failure.";
        text.family("grpc_server_handled_total", "counter", help);
        for method in Method::ALL.iter().copied() {
            for code in Code::ALL {
                let count = self.handled_total(method, code);
                // A row a method and code, even if never seen, is a thousand rows; one a method shows that there are none.
                if count > 0 || code == Code::Ok {
                    let [name, service, kind] = labels(method);
                    let labels = [("grpc_code", code.label()), name, service, kind];
                    text.sample("grpc_server_handled_total", &labels, count);
                }
            }
        }
    }
}

/// What the API counts.
#[derive(Default)]
pub struct Metrics {
    /// gRPC calls.
    pub calls: Calls,
    /// Range requests.
    pub ranges: Counter,
    /// Put requests.
    pub puts: Counter,
    /// DeleteRange requests.
    pub deletes: Counter,
    /// Txn requests.
    pub txns: Counter,
    /// Health checks over HTTP that said "healthy".
    pub(super) health_successes: Counter,
    /// Health checks over HTTP that said otherwise.
    pub(super) health_failures: Counter,
    /// What the gRPC server counts, once it runs.
    pub(crate) grpc: OnceLock<std::sync::Arc<Stats>>,
}

/// What the committer observes: the size and the time of each commit.
#[derive(Debug)]
pub struct CommitMetrics {
    /// Requests that shared a commit.
    pub requests: Histogram<12>,
    /// The time from handing a batch to the engine to knowing that it is durable.
    pub seconds: Histogram<14>,
}

impl Default for CommitMetrics {
    fn default() -> Self {
        // etcd's bounds of its backend's commits: 1 ms to 8 s.
        Self { requests: Histogram::doubling(1.0), seconds: Histogram::doubling(0.001) }
    }
}

/// A page of metrics as it is written.
struct Exposition(String);

impl Exposition {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let open = if index == 0 { '{' } else { ',' };
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{open}{label}=\"{text}\"");
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "counter", help);
        self.sample(name, &[], value);
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }
}

/// All metrics, in Prometheus' text format 0.0.4.
pub(super) fn render(server: &Server) -> String {
    let mut text = Exposition(String::with_capacity(32 << 10));
    write_server(&mut text, server);
    write_mvcc(&mut text, server);
    write_watches(&mut text, server);
    write_leases(&mut text, server);
    server.metrics.calls.write(&mut text);
    if let Some(stats) = server.metrics.grpc.get() {
        write_network(&mut text, stats);
    }
    write_own(&mut text, server);
    #[cfg(target_os = "linux")]
    process::write(&mut text);
    text.0
}

fn write_server(text: &mut Exposition, server: &Server) {
    let is_healthy = server.store.failure().is_none();
    let has_leader = u8::from(is_healthy && server.cluster.as_ref().is_none_or(|cluster| cluster.leader_id() != 0));
    let is_leader = u8::from(is_healthy && server.store.is_leading());
    let metrics = &server.metrics;
    let leader_changes = server.cluster.as_ref().map_or(1, |cluster| cluster.leader_changes());
    text.gauge("etcd_server_has_leader", "Whether or not a leader exists. 1 is existence, 0 is not.", has_leader);
    text.gauge("etcd_server_is_leader", "Whether or not this member is a leader. 1 if is, 0 otherwise.", is_leader);
    text.gauge("etcd_server_is_learner", "Whether or not this member is a learner. 1 if is, 0 otherwise.", 0);
    text.counter("etcd_server_leader_changes_seen_total", "The number of leader changes seen.", leader_changes);
    text.counter(
        "etcd_server_health_success",
        "The total number of successful health checks",
        metrics.health_successes.get(),
    );
    text.counter(
        "etcd_server_health_failures",
        "The total number of failed health checks",
        metrics.health_failures.get(),
    );
    text.gauge(
        "etcd_server_quota_backend_bytes",
        "Size in bytes at which writes are refused; 0 if only the disk limits it.",
        server.options.quota_bytes,
    );
    let id = format!("{:x}", server.store.identity().member_id);
    text.family(
        "etcd_server_id",
        "gauge",
        "Server or member ID in hexadecimal format. 1 for 'server_id' label with current ID.",
    );
    text.sample("etcd_server_id", &[("server_id", &id)], 1);
    text.family(
        "etcd_server_version",
        "gauge",
        "Which version of etcd is served. 1 for 'server_version' label with current version.",
    );
    text.sample("etcd_server_version", &[("server_version", super::maintenance::ETCD_VERSION)], 1);
    text.family(
        "etcd_cluster_version",
        "gauge",
        "Which version is running. 1 for 'cluster_version' label with current cluster version",
    );
    text.sample("etcd_cluster_version", &[("cluster_version", "3.7")], 1);
}

fn write_mvcc(text: &mut Exposition, server: &Server) {
    let metrics = &server.metrics;
    let revisions = server.store.revisions();
    text.counter("etcd_mvcc_range_total", "Total number of ranges seen by this member.", metrics.ranges.get());
    text.counter("etcd_mvcc_put_total", "Total number of puts seen by this member.", metrics.puts.get());
    text.counter("etcd_mvcc_delete_total", "Total number of deletes seen by this member.", metrics.deletes.get());
    text.counter("etcd_mvcc_txn_total", "Total number of txns seen by this member.", metrics.txns.get());
    text.gauge("etcd_debugging_mvcc_current_revision", "The current revision of store.", revisions.newest);
    text.gauge(
        "etcd_debugging_mvcc_compact_revision",
        "The revision of the last compaction in store.",
        revisions.compacted,
    );
    // A failed engine has no size, and a metric that is missing says so.
    if let Ok(size) = server.size() {
        text.gauge(
            "etcd_mvcc_db_total_size_in_bytes",
            "Total size of the underlying database physically allocated in bytes.",
            size.allocated_bytes,
        );
        text.gauge(
            "etcd_mvcc_db_total_size_in_use_in_bytes",
            "Total size of the underlying database logically in use in bytes.",
            size.in_use_bytes,
        );
    }
    let commits = server.store.published().commit_metrics();
    commits.seconds.write(
        text,
        "etcd_disk_backend_commit_duration_seconds",
        "The latency distributions of commit called by backend.",
    );
}

fn write_watches(text: &mut Exposition, server: &Server) {
    let watches = server.store.published().hub().statistics();
    text.gauge("etcd_debugging_mvcc_watch_stream_total", "Total number of watch streams.", watches.streams);
    text.gauge("etcd_debugging_mvcc_watcher_total", "Total number of watchers.", watches.watches);
    text.gauge(
        "etcd_debugging_mvcc_slow_watcher_total",
        "Total number of unsynced slow watchers.",
        watches.slow_watches,
    );
    text.counter(
        "etcd_debugging_mvcc_events_total",
        "Total number of events sent by this member.",
        watches.events_sent,
    );
    text.gauge("kubebrain_watch_ring_bytes", "Memory of the recent history, in bytes.", watches.ring_bytes);
}

fn write_leases(text: &mut Exposition, server: &Server) {
    let leases = server.store.published().leases();
    let counters = leases.counters();
    text.counter("etcd_debugging_lease_granted_total", "The total number of granted leases.", counters.granted());
    text.counter("etcd_debugging_lease_revoked_total", "The total number of revoked leases.", counters.revoked());
    text.counter(
        "etcd_debugging_lease_renewed_total",
        "The number of renewed leases seen by the leader.",
        counters.renewed(),
    );
    text.counter(
        "etcd_debugging_server_lease_expired_total",
        "The total number of expired leases.",
        counters.expired(),
    );
    text.gauge("kubebrain_leases", "Leases that exist.", leases.len());
    text.counter(
        "kubebrain_lease_damaged_attachments_total",
        "Damaged rows that attach a key to a lease, met when the lease ended.",
        counters.damaged_attachments(),
    );
}

fn write_network(text: &mut Exposition, stats: &Stats) {
    text.counter(
        "etcd_network_client_grpc_received_bytes_total",
        "The total number of bytes received from grpc clients.",
        stats.bytes_in(),
    );
    text.counter(
        "etcd_network_client_grpc_sent_bytes_total",
        "The total number of bytes sent to grpc clients.",
        stats.bytes_out(),
    );
    text.counter("kubebrain_grpc_messages_received_total", "gRPC messages received.", stats.messages_in());
    text.counter("kubebrain_grpc_messages_sent_total", "gRPC messages sent.", stats.messages_out());
    text.counter("kubebrain_connections_total", "Connections accepted.", stats.connections());
    text.gauge("kubebrain_connections", "Connections that are open.", stats.connections_open());
    text.gauge("kubebrain_calls", "gRPC calls that are open.", stats.calls_open());
    text.counter(
        "kubebrain_stalled_replies_total",
        "Lists that were given up because their clients took nothing of what waited for them.",
        stats.replies_stalled(),
    );
    text.counter(
        "kubebrain_handshakes_failed_total",
        "Connections that ended before they spoke HTTP.",
        stats.handshakes_failed(),
    );
}

fn write_own(text: &mut Exposition, server: &Server) {
    let commits = server.store.published().commit_metrics();
    commits.requests.write(text, "kubebrain_commit_requests", "Requests that shared a commit.");
    text.family("kubebrain_info", "gauge", "This program. 1 for its version and engine.");
    let labels = [("version", env!("CARGO_PKG_VERSION")), ("engine", server.store.engine().name())];
    text.sample("kubebrain_info", &labels, 1);
}

/// The process's own numbers, from `/proc`.
#[cfg(target_os = "linux")]
mod process {
    use std::fs;
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::Exposition;

    pub(super) fn write(text: &mut Exposition) {
        // What can't be read is left out: some containers hide parts of /proc.
        if let Some(stat) = Stat::read() {
            text.counter(
                "process_cpu_seconds_total",
                "Total user and system CPU time spent in seconds.",
                stat.cpu_ticks / TICKS_A_SECOND,
            );
            text.gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.", stat.virtual_bytes);
            text.gauge("process_resident_memory_bytes", "Resident memory size in bytes.", stat.resident_bytes);
            if let Some(start) = start_time_seconds(stat.start_ticks) {
                text.gauge(
                    "process_start_time_seconds",
                    "Start time of the process since unix epoch in seconds.",
                    format!("{start:.2}"),
                );
            }
        }
        if let Some(open) = fs::read_dir("/proc/self/fd").ok().map(Iterator::count) {
            text.gauge("process_open_fds", "Number of open file descriptors.", open);
        }
        if let Some(max) = descriptors_max() {
            text.gauge("process_max_fds", "Maximum number of open file descriptors.", max);
        }
    }

    /// USER_HZ, which Linux has fixed at 100 for all that it tells programs.
    const TICKS_A_SECOND: f64 = 100.0;

    struct Stat {
        cpu_ticks: f64,
        start_ticks: f64,
        virtual_bytes: u64,
        resident_bytes: u64,
    }

    impl Stat {
        fn read() -> Option<Self> {
            let stat = fs::read_to_string("/proc/self/stat").ok()?;
            // The second field is the program's name in parentheses, which may hold anything.
            let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
            let number = |field: usize| fields.get(field - 3)?.parse::<f64>().ok();
            let status = fs::read_to_string("/proc/self/status").ok()?;
            let kibibytes = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name))?;
                line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()
            };
            Some(Self {
                cpu_ticks: number(14)? + number(15)?,
                start_ticks: number(22)?,
                virtual_bytes: kibibytes("VmSize:")? << 10,
                resident_bytes: kibibytes("VmRSS:")? << 10,
            })
        }
    }

    fn start_time_seconds(start_ticks: f64) -> Option<f64> {
        let uptime: f64 = fs::read_to_string("/proc/uptime").ok()?.split_whitespace().next()?.parse().ok()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs_f64();
        Some(now - uptime + start_ticks / TICKS_A_SECOND)
    }

    fn descriptors_max() -> Option<u64> {
        let limits = fs::read_to_string("/proc/self/limits").ok()?;
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
        line.split_whitespace().next()?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_sums_what_all_threads_count() {
        let counter = Counter::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| counter.increment()));
            }
        });
        assert_eq!(counter.get(), 4000);
    }

    #[test]
    fn a_histogram_is_cumulative_and_bounds_are_inclusive() {
        let histogram = Histogram::<3>::doubling(1.0);
        for value in [0.5, 1.0, 1.5, 4.0, 9.0] {
            histogram.observe(value);
        }
        let mut text = Exposition(String::new());
        histogram.write(&mut text, "h", "help");
        let expected = "# HELP h help\n# TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"2\"} 3\n\
                        h_bucket{le=\"4\"} 4\nh_bucket{le=\"+Inf\"} 5\nh_sum 16\nh_count 5\n";
        assert_eq!(text.0, expected);
    }

    #[test]
    fn labels_are_escaped() {
        let mut text = Exposition(String::new());
        text.sample("name", &[("label", "a\"b\\c\nd")], 1);
        assert_eq!(text.0, "name{label=\"a\\\"b\\\\c\\nd\"} 1\n");
    }

    #[test]
    fn calls_are_counted_by_method_and_code() {
        let calls = Calls::default();
        calls.started(Method::Range);
        calls.handled(Method::Range, kubewharf_grpc::Code::OutOfRange);
        assert_eq!(calls.started_total(Method::Range), 1);
        assert_eq!(calls.handled_total(Method::Range, Code::OutOfRange), 1);
        assert_eq!(calls.handled_total(Method::Range, Code::Ok), 0);
        let mut text = Exposition(String::new());
        calls.write(&mut text);
        let row = "grpc_server_handled_total{grpc_code=\"OutOfRange\",grpc_method=\"Range\",\
                   grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 1\n";
        assert!(text.0.contains(row), "{}", text.0);
    }
}
