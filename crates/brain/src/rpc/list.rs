//! Lists: Range over more than one key, and RangeStream.
//!
//! A list is pinned to one revision and read in pages, each on a snapshot of its own. Its reply grows in chunks out of the lists' budget
//! and is never copied as a whole; a streamed one is sent in parts, of which each is paid for until its client has read it.
//!
//! Invariant: a page is read only from a snapshot that has all rows of the list's revision.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use kubewharf_engine::Direction;
use kubewharf_etcd_api::encode::{self, KeyValueRef};
use kubewharf_etcd_api::etcdserverpb::{RangeRequest, ResponseHeader};
use kubewharf_grpc::{CallContext, Reply, RequestStream, ResponseSink, Status};
use prost::Message;

use super::budget::{Exceeded, Grant, ListBudget};
use super::server::Server;
use super::status::{self, status};
use super::work::{Step, Work, refusal};
use crate::error::Error;
use crate::limits::{
    LIST_CHUNK_BYTES, LIST_PAGE_BYTES, LIST_PAGE_ROWS, LIST_RESTARTS_MAX, LIST_WAIT, STREAM_CHUNK_BYTES,
};
use crate::mvcc::{
    Progress, RangeQuery, Reading, Receiver, Revisions, Share, SnapshotRows, SortTarget, Version, omits_lease, query,
    validate,
};

/// The most bytes that the fields behind the keys of a reply to Range take: a flag and a varint, each with a tag.
pub(super) const RANGE_TRAILER_LEN_MAX: usize = 2 + 11;

/// A list under way.
pub(super) struct List {
    request: RangeRequest,
    /// `None` before the first page.
    pinned: Option<Pinned>,
    sink: Sink,
    /// Times that the newest revision was compacted before the list was complete.
    restarts: u32,
}

struct Pinned {
    reading: Reading,
    header: ResponseHeader,
    /// The number of keys in the range, if a page before this one has left that.
    counted: Option<i64>,
}

/// How a page ended.
enum Read {
    /// The list is complete.
    Done,
    /// The page is.
    Page,
    /// A part of a streamed list is.
    Part,
    /// So many bytes are missing.
    Short(usize),
}

impl List {
    /// A list that is answered as a whole.
    pub(super) fn whole(server: &Server, request: RangeRequest) -> Self {
        Self { sink: Sink::new(&server.lists, &request, usize::MAX), request, pinned: None, restarts: 0 }
    }

    /// A list that is answered in parts.
    fn in_parts(server: &Server, request: RangeRequest) -> Result<Self, Error> {
        let query = query(&request, 0);
        if !is_in_key_order(&query) {
            return Err(Error::Unimplemented("RangeStream does not support custom sort orders"));
        }
        if query.filters() {
            return Err(Error::Unimplemented("RangeStream does not support revision filters"));
        }
        Ok(Self { sink: Sink::new(&server.lists, &request, STREAM_CHUNK_BYTES), request, pinned: None, restarts: 0 })
    }

    fn read(&mut self, server: &Server) -> Result<Read, Error> {
        let is_single = self.pinned.is_none() && self.request.range_end.is_empty();
        let (revisions, snapshot) = server
            .view(is_single.then_some(&self.request.key[..]), self.request.serializable || self.pinned.is_some())?;
        if self.pinned.as_ref().is_some_and(|pinned| pinned.reading.query().revision < revisions.compacted) {
            if self.request.revision > 0 || self.sink.parts > 0 {
                return Err(Error::Compacted);
            }
            // Whoever asks for the newest revision gets one.
            self.restart();
            self.restarts += 1;
        }
        let pinned = match &mut self.pinned {
            Some(pinned) => pinned,
            none => match Pinned::new(server, &self.request, revisions, &mut self.sink)? {
                Some(pinned) => none.insert(pinned),
                None => return self.sink.why(server),
            },
        };
        let page = Share { rows: LIST_PAGE_ROWS, bytes: LIST_PAGE_BYTES };
        let share = if self.restarts < LIST_RESTARTS_MAX { page } else { Share::ALL };
        match pinned.reading.step(&SnapshotRows(snapshot.as_ref()), share, &mut self.sink)? {
            Progress::Done => Ok(Read::Done),
            Progress::Paused => Ok(Read::Page),
            Progress::Stopped => self.sink.why(server),
        }
    }

    /// Whether there are more keys than were passed on, and how many there are in all; remembers that for the next page.
    fn end(&self, server: &Server) -> (ResponseHeader, bool, i64) {
        let pinned = self.pinned.as_ref().expect("a list that has ended has begun");
        let (query, outcome) = (pinned.reading.query(), pinned.reading.outcome());
        let count = pinned.counted.unwrap_or(outcome.count);
        if outcome.more && is_in_key_order(query) && !query.filters() {
            server.counts.put(query, &self.sink.last_key, count - self.sink.passed);
        }
        (pinned.header, outcome.more, count)
    }

    /// The next part of a streamed list, the last one with the header and the count.
    fn part(&mut self, server: &Server, is_last: bool) -> Reply {
        let mut tail = BytesMut::new();
        if is_last {
            let (header, more, count) = self.end(server);
            tail.reserve(encode::header_len(&header) + RANGE_TRAILER_LEN_MAX);
            encode::put_header(&mut tail, &header);
            encode::put_range_trailer(&mut tail, more, count);
        }
        let chunks = self.sink.next_part(&server.lists);
        let len = chunks.len() + tail.len();
        let mut head = BytesMut::with_capacity(encode::range_stream_head_len(len));
        encode::put_range_stream_head(&mut head, len);
        let (pieces, grant) = chunks.finish();
        let pieces = std::iter::once(head.freeze()).chain(pieces).chain(std::iter::once(tail.freeze()));
        Reply::from_pieces(pieces).with_guard(grant)
    }
}

impl Work for List {
    fn page(&mut self, server: &Server) -> Result<Step, Error> {
        Ok(match self.read(server)? {
            Read::Done => {
                let (_, more, count) = self.end(server);
                let mut chunks = self.sink.next_part(&server.lists);
                encode::put_range_trailer(&mut chunks.current, more, count);
                let (pieces, grant) = chunks.finish();
                Step::Done(Reply::from_pieces(pieces).with_guard(grant))
            }
            Read::Page => Step::Page,
            Read::Short(bytes) => Step::Short(bytes),
            Read::Part => unreachable!("a list that is answered as a whole has no parts"),
        })
    }

    fn grant(&mut self) -> &mut Grant {
        &mut self.sink.chunks.grant
    }

    fn restart(&mut self) {
        self.pinned = None;
        self.sink.restart();
    }
}

impl Pinned {
    /// Pins a list; `None` if there is no memory for the beginning of its reply.
    fn new(
        server: &Server,
        request: &RangeRequest,
        revisions: Revisions,
        sink: &mut Sink,
    ) -> Result<Option<Self>, Error> {
        let mut query = query(request, revisions.resolve(request.revision)?);
        let header = server.header(revisions.newest);
        if !sink.begin(&header) {
            return Ok(None);
        }
        let counted = server.counts.get(&query);
        query.count_all = counted.is_none();
        Ok(Some(Self { reading: Reading::new(query), header, counted }))
    }
}

fn is_in_key_order(query: &RangeQuery) -> bool {
    matches!(query.sort, None | Some((SortTarget::Key, Direction::Forward)))
}

/// What a reply leaves out of each key.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    keys_only: bool,
    omits_lease: bool,
}

impl Shape {
    pub(super) fn of(request: &RangeRequest) -> Self {
        Self { keys_only: request.keys_only, omits_lease: omits_lease(request) }
    }

    #[inline]
    pub(super) fn apply<'a>(self, key: &'a [u8], version: &Version<'a>) -> KeyValueRef<'a> {
        KeyValueRef {
            key,
            create_revision: version.create_revision,
            mod_revision: version.mod_revision,
            version: version.version,
            value: if self.keys_only { &[] } else { version.value },
            lease: if self.omits_lease { 0 } else { version.lease },
        }
    }
}

/// Takes the keys of a list and encodes them.
struct Sink {
    shape: Shape,
    /// The number of the last key that is admitted.
    last: i64,
    passed: i64,
    last_key: Vec<u8>,
    chunks: Chunks,
    part_bytes_max: usize,
    /// Parts that were made.
    parts: u64,
    /// Why the last key was not taken.
    stopped: Option<Stopped>,
}

enum Stopped {
    PartIsFull,
    Short(usize),
    TooLarge,
}

impl Sink {
    fn new(lists: &Arc<ListBudget>, request: &RangeRequest, part_bytes_max: usize) -> Self {
        Self {
            shape: Shape::of(request),
            last: request.limit,
            passed: 0,
            last_key: Vec::new(),
            chunks: Chunks::new(lists.grant()),
            part_bytes_max,
            parts: 0,
            stopped: None,
        }
    }

    /// Makes room for the header, and writes it if the reply is a whole. False if there is no memory.
    fn begin(&mut self, header: &ResponseHeader) -> bool {
        if self.part_bytes_max < usize::MAX {
            return true;
        }
        let begun = self.reserve(encode::header_len(header)).is_continue();
        if begun {
            encode::put_header(&mut self.chunks.current, header);
        }
        begun
    }

    fn restart(&mut self) {
        self.passed = 0;
        self.last_key.clear();
        self.chunks = Chunks::new(self.chunks.grant.another());
    }

    /// Takes what was encoded out.
    fn next_part(&mut self, lists: &Arc<ListBudget>) -> Chunks {
        self.parts += 1;
        let mut next = Chunks::new(lists.grant());
        next.size = self.chunks.size;
        std::mem::replace(&mut self.chunks, next)
    }

    fn why(&mut self, server: &Server) -> Result<Read, Error> {
        let is_part = self.part_bytes_max < usize::MAX && !self.chunks.is_empty();
        match self.stopped.take() {
            Some(Stopped::PartIsFull) => Ok(Read::Part),
            // What there is needs not wait.
            Some(_) if is_part => Ok(Read::Part),
            Some(Stopped::Short(bytes)) => Ok(Read::Short(bytes)),
            Some(Stopped::TooLarge) => Err(refusal(server, &Exceeded::TooLarge)),
            None => unreachable!("the sink has said why it stopped"),
        }
    }

    #[inline]
    fn reserve(&mut self, bytes: usize) -> ControlFlow<()> {
        if self.chunks.has_room(bytes) { ControlFlow::Continue(()) } else { self.next_chunk(bytes) }
    }

    fn next_chunk(&mut self, bytes: usize) -> ControlFlow<()> {
        let size = self.chunks.next_size(bytes, self.part_bytes_max);
        let taken = self.hold(size);
        if taken.is_continue() {
            self.chunks.next(size);
        }
        taken
    }
}

impl Receiver for Sink {
    #[inline]
    fn key(&mut self, key: &[u8], version: &Version<'_>) -> ControlFlow<()> {
        let kv = self.shape.apply(key, version);
        let bytes = encode::range_kv_len(&kv);
        if self.chunks.len() + bytes + RANGE_TRAILER_LEN_MAX > self.part_bytes_max && !self.chunks.is_empty() {
            self.stopped = Some(Stopped::PartIsFull);
            return ControlFlow::Break(());
        }
        self.reserve(bytes)?;
        encode::put_range_kv(&mut self.chunks.current, &kv);
        self.passed += 1;
        if self.passed == self.last {
            self.last_key.extend_from_slice(key);
        }
        ControlFlow::Continue(())
    }

    fn hold(&mut self, bytes: usize) -> ControlFlow<()> {
        match self.chunks.grant.take(bytes) {
            Ok(()) => return ControlFlow::Continue(()),
            Err(Exceeded::NotNow) => self.stopped = Some(Stopped::Short(bytes)),
            Err(Exceeded::TooLarge) => self.stopped = Some(Stopped::TooLarge),
        }
        ControlFlow::Break(())
    }

    fn release(&mut self, bytes: usize) {
        self.chunks.grant.release(bytes);
    }
}

/// Encoded keys that grow in chunks, so that they are never copied as a whole.
struct Chunks {
    full: Vec<Bytes>,
    full_bytes: usize,
    current: BytesMut,
    /// Of the newest chunk.
    size: usize,
    grant: Grant,
}

impl Chunks {
    fn new(grant: Grant) -> Self {
        Self { full: Vec::new(), full_bytes: 0, current: BytesMut::new(), size: 0, grant }
    }

    fn len(&self) -> usize {
        self.full_bytes + self.current.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there is room for `bytes`, and for the end of the reply.
    #[inline]
    fn has_room(&self, bytes: usize) -> bool {
        self.current.capacity() - self.current.len() >= bytes + RANGE_TRAILER_LEN_MAX
    }

    /// The size of the next chunk, which has to have room for `bytes`, in a reply of at most `bytes_max` if that suffices.
    fn next_size(&self, bytes: usize, bytes_max: usize) -> usize {
        // Small at first: most lists are.
        let size = (self.size * 4).clamp(4096, LIST_CHUNK_BYTES).min(bytes_max.saturating_sub(self.len()));
        size.max(bytes + RANGE_TRAILER_LEN_MAX)
    }

    fn next(&mut self, size: usize) {
        self.size = size;
        let full = std::mem::replace(&mut self.current, BytesMut::with_capacity(size));
        if !full.is_empty() {
            self.full_bytes += full.len();
            self.full.push(full.freeze());
        }
    }

    fn finish(mut self) -> (Vec<Bytes>, Grant) {
        self.full.push(self.current.freeze());
        self.grant.trim();
        (self.full, self.grant)
    }
}

/// Serves RangeStream.
pub(super) async fn range_stream(
    server: Arc<Server>,
    _context: CallContext,
    mut requests: RequestStream,
    responses: ResponseSink,
) {
    let result = match requests.next().await {
        Some(Ok(message)) => stream_parts(&server, message, &responses).await,
        Some(Err(status)) => Err(status),
        None => Err(Status::internal("the request is missing")),
    };
    responses.finish(result.err().unwrap_or_else(Status::ok));
}

async fn stream_parts(server: &Arc<Server>, message: Bytes, responses: &ResponseSink) -> Result<(), Status> {
    let request = RangeRequest::decode(message).map_err(|error| status::malformed(&error))?;
    validate::check_range(&request).map_err(|error| status(&error.into()))?;
    let mut list = Box::new(List::in_parts(server, request).map_err(|error| status(&error))?);
    loop {
        let turn = tokio::select! {
            () = responses.closed() => return Ok(()),
            turn = server.lists.turn() => turn,
        };
        let reader = server.clone();
        let (next, read) = tokio::task::spawn_blocking(move || {
            let read = list.read(&reader);
            drop(turn);
            (list, read)
        })
        .await
        .map_err(|error| Status::internal(error.to_string()))?;
        list = next;
        let part = match read.map_err(|error| status(&error))? {
            Read::Page => continue,
            Read::Short(bytes) => {
                wait(server, &mut list, bytes, responses).await.map_err(|error| status(&error))?;
                continue;
            }
            Read::Part => list.part(server, false),
            Read::Done => {
                // An error means that the client has gone.
                let _ = responses.send(list.part(server, true)).await;
                return Ok(());
            }
        };
        if responses.send(part).await.is_err() {
            return Ok(());
        }
    }
}

/// Waits for the memory of a part, without any: needs no lane.
async fn wait(server: &Server, list: &mut List, bytes: usize, responses: &ResponseSink) -> Result<(), Error> {
    let enough = tokio::time::timeout(LIST_WAIT, list.sink.chunks.grant.wait_for(bytes));
    let waited = tokio::select! {
        waited = enough => waited,
        // Or the client has gone, to whom this says nothing.
        () = responses.draining() => return Err(Error::Unavailable("the store is stopping".to_owned())),
    };
    waited.unwrap_or(Err(Exceeded::NotNow)).map_err(|exceeded| refusal(server, &exceeded))
}
