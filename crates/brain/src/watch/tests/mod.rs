//! Tests of whole streams over a real store in memory, without sockets.

mod behaviour;
mod history;
mod many;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kubewharf_engine::memory::Memory;
use kubewharf_etcd_api::etcdserverpb::request_op::Request;
use kubewharf_etcd_api::etcdserverpb::watch_request::RequestUnion;
use kubewharf_etcd_api::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RequestOp, ResponseHeader, TxnRequest, WatchCancelRequest, WatchCreateRequest,
    WatchProgressRequest, WatchRequest, WatchResponse,
};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{mpsc, watch as signal};
use tokio::task::JoinHandle;

use super::{End, Gone, Message, Outlet, Requests, StreamOptions, WatchStream};
use crate::committer::{WriteRequest, WriteResponse};
use crate::{Error, Store, StoreOptions};

const HEADER: ResponseHeader = ResponseHeader { cluster_id: 1, member_id: 2, revision: 0, raft_term: 3 };
/// Longer than any wait of a test that passes.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long nothing must happen for a test to believe that nothing will.
const SILENCE: Duration = Duration::from_millis(60);

fn options() -> StreamOptions {
    StreamOptions { header: HEADER, progress_interval: Duration::from_secs(600), fragment_bytes: 2 << 20 }
}

fn store(ring_bytes: usize) -> Arc<Store> {
    Store::open(Arc::new(Memory::new()), StoreOptions { ring_bytes, ..StoreOptions::default() }).unwrap()
}

fn put_request(key: &str, value: &[u8]) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: Bytes::copy_from_slice(value), ..PutRequest::default() }
}

fn delete_request(key: &[u8], range_end: &[u8]) -> DeleteRangeRequest {
    DeleteRangeRequest { key: key.to_vec().into(), range_end: range_end.to_vec().into(), prev_kv: false }
}

async fn put(store: &Store, key: &str, value: &[u8]) -> i64 {
    match store.write(WriteRequest::Put(put_request(key, value)), 1).await.unwrap() {
        WriteResponse::Put(response) => response.header.unwrap().revision,
        other => panic!("unexpected {other:?}"),
    }
}

async fn txn(store: &Store, operations: Vec<Request>) -> i64 {
    let success = operations.into_iter().map(|request| RequestOp { request: Some(request) }).collect();
    let request = TxnRequest { success, ..TxnRequest::default() };
    match store.write(WriteRequest::Txn(request), 1).await.unwrap() {
        WriteResponse::Txn(response) => response.header.unwrap().revision,
        other => panic!("unexpected {other:?}"),
    }
}

async fn compact(store: &Store, revision: i64) {
    store.write(WriteRequest::Compact { revision }, 1).await.unwrap();
}

fn range(key: &str, range_end: &str) -> WatchCreateRequest {
    WatchCreateRequest {
        key: key.to_owned().into(),
        range_end: range_end.to_owned().into(),
        ..WatchCreateRequest::default()
    }
}

/// A client that is a test: reads when it wants to, and has what it read.
struct Client {
    requests: mpsc::UnboundedSender<Result<WatchRequest, &'static str>>,
    inbox: Arc<Inbox>,
    stream: JoinHandle<End<&'static str>>,
}

struct Inbox {
    received: Mutex<Vec<WatchResponse>>,
    arrived: signal::Sender<usize>,
    /// How many responses the client takes before it stops reading.
    takes: signal::Sender<usize>,
    ends: signal::Sender<bool>,
}

impl Outlet for Arc<Inbox> {
    async fn send(&self, message: Message) -> Result<(), Gone> {
        let received = *self.arrived.borrow();
        let mut takes = self.takes.subscribe();
        takes.wait_for(|takes| *takes > received).await.map_err(|_| Gone)?;
        if *self.ends.borrow() {
            return Err(Gone);
        }
        let response = WatchResponse::decode(message.pieces.concat().as_slice()).expect("a response");
        self.received.lock().push(response);
        self.arrived.send_modify(|arrived| *arrived += 1);
        Ok(())
    }

    async fn ending(&self) {
        let mut ends = self.ends.subscribe();
        // The sender lives as long as `self`.
        let _ = ends.wait_for(|ends| *ends).await;
    }
}

struct Receiver(mpsc::UnboundedReceiver<Result<WatchRequest, &'static str>>);

impl Requests for Receiver {
    type Error = &'static str;

    async fn next(&mut self) -> Option<Result<WatchRequest, &'static str>> {
        self.0.recv().await
    }
}

impl Client {
    fn open(store: &Arc<Store>, options: StreamOptions) -> Self {
        let (requests, receiver) = mpsc::unbounded_channel();
        let inbox = Arc::new(Inbox {
            received: Mutex::default(),
            arrived: signal::Sender::new(0),
            takes: signal::Sender::new(usize::MAX),
            ends: signal::Sender::new(false),
        });
        let (store, outlet) = (store.clone(), inbox.clone());
        let stream = tokio::spawn(async move {
            let stream = WatchStream::new(store, options, &outlet);
            stream.run(Receiver(receiver)).await
        });
        Self { requests, inbox, stream }
    }

    fn request(&self, request: RequestUnion) {
        let request = WatchRequest { request_union: Some(request) };
        self.requests.send(Ok(request)).expect("the stream reads");
    }

    fn create(&self, request: WatchCreateRequest) {
        self.request(RequestUnion::CreateRequest(request));
    }

    fn cancel(&self, watch_id: i64) {
        self.request(RequestUnion::CancelRequest(WatchCancelRequest { watch_id }));
    }

    fn ask_for_progress(&self) {
        self.request(RequestUnion::ProgressRequest(WatchProgressRequest {}));
    }

    /// Stops reading after `more` responses.
    fn stop_reading_after(&self, more: usize) {
        self.inbox.takes.send_replace(*self.inbox.arrived.borrow() + more);
    }

    fn read_on(&self) {
        self.inbox.takes.send_replace(usize::MAX);
    }

    fn received(&self) -> usize {
        *self.inbox.arrived.borrow()
    }

    fn response(&self, number: usize) -> WatchResponse {
        self.inbox.received.lock()[number].clone()
    }

    /// Waits for response number `number`.
    async fn nth(&self, number: usize) -> WatchResponse {
        let mut arrived = self.inbox.arrived.subscribe();
        let waits = arrived.wait_for(|arrived| *arrived > number);
        if tokio::time::timeout(PATIENCE, waits).await.is_err() {
            panic!("no response {number}; there are {:?}", self.inbox.received.lock());
        }
        self.response(number)
    }

    /// Waits until `done` says yes to all responses so far.
    async fn until(&self, mut done: impl FnMut(&[WatchResponse]) -> bool) {
        let mut arrived = self.inbox.arrived.subscribe();
        let waits = arrived.wait_for(|_| done(&self.inbox.received.lock()));
        if tokio::time::timeout(PATIENCE, waits).await.is_err() {
            panic!("waited in vain; there are {:?}", self.inbox.received.lock());
        }
    }

    /// Sees to it that nothing comes but the `count` responses that there are.
    async fn is_silent(&self, count: usize) {
        tokio::time::sleep(SILENCE).await;
        assert_eq!(self.received(), count, "{:?}", self.inbox.received.lock());
    }

    async fn end(self) -> End<&'static str> {
        self.inbox.ends.send_replace(true);
        self.read_on();
        tokio::time::timeout(PATIENCE, self.stream).await.expect("the stream ends").unwrap()
    }
}

fn revision(response: &WatchResponse) -> i64 {
    response.header.as_ref().expect("all responses have one").revision
}

/// Keys and revisions of a response's events.
fn events(response: &WatchResponse) -> Vec<(String, i64)> {
    let kv = |event: &kubewharf_etcd_api::mvccpb::Event| {
        let kv = event.kv.as_ref().expect("all events have one");
        (String::from_utf8_lossy(&kv.key).into_owned(), kv.mod_revision)
    };
    response.events.iter().map(kv).collect()
}
