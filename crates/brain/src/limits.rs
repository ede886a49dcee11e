//! Every bound of this crate that is not an option of the operator.

/// Writes that one commit takes at most.
pub(crate) const BATCH_REQUESTS_MAX: usize = 1024;
/// Bytes of rows and of responses at which a commit takes no further write.
pub(crate) const BATCH_BYTES: usize = 1 << 20;
/// Writes that wait for the committer at most, in all.
pub(crate) const QUEUE_REQUESTS_MAX: usize = 50_000;
/// Bytes of the writes that wait for the committer at most, in all.
pub(crate) const QUEUE_BYTES_MAX: usize = 256 << 20;
/// How long a commit may take until the store says that it is not ready to serve.
pub(crate) const COMMIT_STALL: std::time::Duration = std::time::Duration::from_secs(5);
/// Largest `--max-request-bytes`: a row of the log holds the new value and the one that it replaces, both no larger than a request, and
/// the key and less than 200 bytes besides.
pub const REQUEST_BYTES_MAX: usize = (kubewharf_engine::lmdb::VALUE_BYTES_MAX - KEY_BYTES_MAX - 200) / 2;
/// Longest key, in bytes: what LMDB takes, less the lease id in front of an attached key. Refused alike on all engines.
pub const KEY_BYTES_MAX: usize = 1900;
/// Bytes of keys that one write may return, as they lie in memory: previous key-values, and ranges of a transaction that writes too.
pub(crate) const WRITE_RESPONSE_BYTES_MAX: usize = 256 << 20;
/// Log rows that one step of physical compaction removes at least, if there are as many; a millisecond's work or two.
pub(crate) const TRIM_ROWS_MIN: usize = 1000;
/// Log rows that such a step removes at most.
pub(crate) const TRIM_ROWS_MAX: usize = 1 << 15;
/// Bytes of log rows at which a step ends when little is written; no more work than that.
pub(crate) const TRIM_BYTES_MIN: usize = 2 << 20;
/// Bytes of log rows at which a step ends however much is written.
pub(crate) const TRIM_BYTES_MAX: usize = 64 << 20;
/// Shortest wait before an unknown outcome is asked for again, in milliseconds; doubles each time.
pub(crate) const RESOLVE_BACKOFF_MS_MIN: u64 = 10;
/// Longest such wait, in milliseconds.
pub(crate) const RESOLVE_BACKOFF_MS_MAX: u64 = 1_000;
/// How long an unknown outcome is pursued before the store stops serving, in milliseconds.
pub(crate) const RESOLVE_MS_MAX: u64 = 30_000;
/// Longest pause between two steps of physical compaction that go well.
pub(crate) const TRIM_PAUSE_MAX: std::time::Duration = std::time::Duration::from_millis(50);
/// Shortest pause after a step that failed; doubles each time.
pub(crate) const TRIM_RETRY_MIN: std::time::Duration = std::time::Duration::from_millis(100);
/// Longest such pause.
pub(crate) const TRIM_RETRY_MAX: std::time::Duration = std::time::Duration::from_secs(10);
/// Largest chunk in which the reply to a list grows, in bytes.
pub(crate) const LIST_CHUNK_BYTES: usize = 1 << 20;
/// Rows that one page of a list reads.
pub(crate) const LIST_PAGE_ROWS: usize = 16 << 10;
/// Bytes of rows at which a page of a list ends, so that its snapshot does not hold back the reuse of space.
pub(crate) const LIST_PAGE_BYTES: usize = 32 << 20;
/// Pages of lists that are read at once. They share the threads that may block with watches, compaction and much else.
pub(crate) const LIST_READERS_MAX: usize = 64;
/// How often a list of the newest revision begins anew, because that was compacted, before it is read on one snapshot.
pub(crate) const LIST_RESTARTS_MAX: u32 = 4;
/// Time between two looks whether a waiting list's client is still there.
pub(crate) const LIST_LOOK: std::time::Duration = std::time::Duration::from_secs(1);
/// Memory with which a transaction that only reads is tried first.
pub(crate) const READ_TXN_BYTES_MIN: usize = 64 << 10;
/// Most memory that is added for the next try.
pub(crate) const READ_TXN_BYTES_STEP_MAX: usize = 1 << 30;
/// Longest transaction that is decoded and checked on its connection's task, in bytes.
pub(crate) const TXN_INLINE_BYTES_MAX: usize = 64 << 10;
/// How long a list waits for the memory of lists.
pub(crate) const LIST_WAIT: std::time::Duration = std::time::Duration::from_secs(30);
/// Bytes of keys and values in one part of a streamed list, about.
pub(crate) const STREAM_CHUNK_BYTES: usize = 1 << 20;
/// Continuations of paged lists whose counts are remembered.
pub(crate) const COUNTS_MAX: usize = 1024;
/// Shortest time to live of a lease, in seconds; etcd's at its default election timeout.
pub(crate) const LEASE_TTL_SECONDS_MIN: i64 = 2;
/// Longest time to live of a lease, in seconds; etcd's.
pub(crate) const LEASE_TTL_SECONDS_MAX: i64 = 9_000_000_000;
/// Pause between two rounds of expired leases while there are more.
pub(crate) const LEASE_TICK: std::time::Duration = std::time::Duration::from_millis(250);
/// Expired leases that one round ends: with the pause, at most 1000 a second, as in etcd.
pub(crate) const LEASE_EXPIRIES_PER_TICK_MAX: usize = 250;
/// Time after which an expired lease that still exists is ended again.
pub(crate) const LEASE_EXPIRY_RETRY: std::time::Duration = std::time::Duration::from_secs(3);
/// Time between two records of what is left of a lease; shorter leases have none.
pub(crate) const LEASE_CHECKPOINT_INTERVAL: std::time::Duration = std::time::Duration::from_secs(300);
/// Most leases in one such record.
pub(crate) const LEASE_CHECKPOINTS_PER_WRITE_MAX: usize = 1000;
/// Weight of a lease's change in the queue of writes, in bytes.
pub(crate) const LEASE_WRITE_BYTES: usize = 32;
/// Keys that one step of a hash reads.
pub(crate) const HASH_PAGE_KEYS: u64 = 1000;
/// Bytes of a page of the log as text; a page ends at the next end of a revision.
pub(crate) const LOG_PAGE_BYTES: usize = 1 << 20;
/// Longest wait for more of the log.
pub(crate) const LOG_WAIT_MAX: std::time::Duration = std::time::Duration::from_secs(60);
/// Bytes of encoded events at which a piece of the recent history ends, at the end of a transaction.
pub(crate) const WATCH_SEGMENT_BYTES: usize = 64 << 10;
/// Bytes of events at which a watch response takes no further piece of history.
pub(crate) const WATCH_RESPONSE_BYTES: usize = 128 << 10;
/// Log rows at which a page of replayed history ends, at the end of a transaction.
pub(crate) const WATCH_PAGE_ROWS: usize = 4096;
/// Bytes of log rows at which such a page ends likewise.
pub(crate) const WATCH_PAGE_READ_BYTES: usize = 8 << 20;
/// Bytes of events, counted once for all of a stream's watches that want them, at which such a page ends likewise.
pub(crate) const WATCH_PAGE_BYTES: usize = 128 << 10;
/// Bytes of all pages together that were read and are not sent yet. Streams whose clients are slow give theirs up then.
pub(crate) const WATCH_PAGES_BYTES_MAX: usize = 64 << 20;
/// Pages of replayed history that are read at once.
pub(crate) const WATCH_REPLAYS_MAX: usize = 8;
/// Watches of one stream.
pub(crate) const WATCHES_PER_STREAM_MAX: usize = 1 << 16;
/// Pieces of shared bytes in one response above which small ones are copied together.
pub(crate) const WATCH_PIECES_MAX: usize = 8;
/// Pieces of at least this many bytes on average are never copied together.
pub(crate) const WATCH_PIECE_BYTES_MIN: usize = 2 << 10;
/// Shortest interval of progress notifications; etcd's.
pub(crate) const WATCH_PROGRESS_INTERVAL_MIN: std::time::Duration = std::time::Duration::from_millis(100);

/// Bytes of events that a follower publishes at once, at least, if there are more.
pub(crate) const CATCH_UP_BYTES: usize = 4 << 20;
/// How long a follower's question to the leader waits for news.
pub(crate) const FOLLOW_WAIT: std::time::Duration = std::time::Duration::from_millis(250);
/// Bytes of calls that are on their way to the leader, all together; as many as the leader queues.
pub(crate) const FORWARD_BYTES_MAX: usize = QUEUE_BYTES_MAX;
/// What such a call takes beside its message, about.
pub(crate) const FORWARD_CALL_BYTES: usize = 1 << 10;
/// How long a call waits for a leader; etcd's clients are told then that there is none. Once it is sent, its client's own deadline counts.
pub(crate) const FORWARD_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(7);
/// How long an answer from a leader that was deposed is still waited for.
pub(crate) const FORWARD_GRACE: std::time::Duration = std::time::Duration::from_millis(100);
/// How long connecting to the leader may take.
pub(crate) const PEER_CONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_millis(500);
/// Pause between two attempts at connecting to the leader.
pub(crate) const PEER_RETRY: std::time::Duration = std::time::Duration::from_millis(50);
/// How often a connection to the leader is pinged.
pub(crate) const PEER_PING_INTERVAL: std::time::Duration = std::time::Duration::from_secs(1);
/// How long such a ping may take.
pub(crate) const PEER_PING_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);
/// How long a member that lets go waits for the next leader.
pub(crate) const HAND_OVER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(3);
/// How long the engine may be out of sight before a member says that it is not ready.
pub(crate) const UNSEEN_MAX: std::time::Duration = std::time::Duration::from_secs(3);
/// Pause before an engine behind a network is read again.
pub(crate) const READ_RETRY: std::time::Duration = std::time::Duration::from_millis(50);
/// How long a read waits until what was confirmed to others is published here.
pub(crate) const LINEARIZE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);
/// How often the size of a shared engine is asked for.
pub(crate) const SIZE_INTERVAL: std::time::Duration = std::time::Duration::from_secs(5);
/// How long an answer waits until watches on the same member show what it tells of.
pub(crate) const SHOWN_WITHIN: std::time::Duration = std::time::Duration::from_secs(1);
/// Requests whose rows are fetched at once from an engine behind a network: rows are small as a rule, and may be large.
pub(crate) const PREFETCH_REQUESTS_MAX: usize = 64;
/// Keys of a transaction that only reads whose rows are fetched at once, likewise.
pub(crate) const PREFETCH_READS_MAX: usize = 8;
