//! A watch stream of one store, and what a scenario records of it.
//!
//! How events are spread over responses is the store's own choice, so events are recorded one after another, a watch at
//! a time. What holds for any spreading is checked as responses arrive ([`Watching::absorb`]) and recorded if broken.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use kubewharf_etcd_api::etcdserverpb::watch_request::RequestUnion;
use kubewharf_etcd_api::etcdserverpb::*;
use kubewharf_etcd_api::mvccpb::Event;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tonic::Status;
use tonic::codegen::tokio_stream::wrappers::UnboundedReceiverStream;

use super::normal::Normal;
use super::recorder::Recorder;

const ARRIVES_WITHIN: Duration = Duration::from_secs(10);
/// etcd leaves a request for progress unanswered while a watch is behind; it looks after those every 100 ms.
const PROGRESS_PATIENCE: Duration = Duration::from_millis(150);
/// What is not said by then will not be.
const SILENCE: Duration = Duration::from_millis(500);
/// The watch id of what concerns a whole stream.
pub(super) const WHOLE_STREAM: i64 = -1;

/// An open watch stream.
pub(super) struct Watching {
    requests: mpsc::UnboundedSender<WatchRequest>,
    responses: mpsc::UnboundedReceiver<Result<WatchResponse, Status>>,
    events: BTreeMap<i64, VecDeque<Event>>,
    control: VecDeque<WatchResponse>,
    progress: VecDeque<WatchResponse>,
    /// Number of events and the mark of a fragment, of each response with events.
    pieces: Vec<(i64, usize, bool)>,
    /// The last revision that a watch got, and whether more of it must follow.
    last: BTreeMap<i64, (i64, bool)>,
    ended: Option<Status>,
}

impl Watching {
    /// Opens a stream; a server may show that it is open with the first response only.
    pub(super) fn open(recorder: &Recorder) -> Self {
        let (requests, receiver) = mpsc::unbounded_channel();
        let (sender, responses) = mpsc::unbounded_channel();
        let mut client = recorder.client.watch.clone();
        tokio::spawn(async move {
            let mut stream = match client.watch(UnboundedReceiverStream::new(receiver)).await {
                Ok(stream) => stream.into_inner(),
                Err(status) => return drop(sender.send(Err(status))),
            };
            loop {
                let message = match stream.message().await {
                    Ok(Some(message)) => Ok(message),
                    Ok(None) => Err(Status::ok("the stream has ended")),
                    Err(status) => Err(status),
                };
                let ends = message.is_err();
                if sender.send(message).is_err() || ends {
                    return;
                }
            }
        });
        Self {
            requests,
            responses,
            events: BTreeMap::new(),
            control: VecDeque::new(),
            progress: VecDeque::new(),
            pieces: Vec::new(),
            last: BTreeMap::new(),
            ended: None,
        }
    }

    /// Sends any request.
    pub(super) fn send(&self, request: Option<RequestUnion>) {
        // A stream that has ended shows in what is recorded next.
        let _ = self.requests.send(WatchRequest { request_union: request });
    }

    /// Says that no request follows.
    pub(super) fn close_requests(&mut self) {
        self.requests = mpsc::unbounded_channel().0;
    }

    /// Creates a watch and records the answer.
    pub(super) async fn create(&mut self, recorder: &mut Recorder, request: WatchCreateRequest) -> i64 {
        let name = format!("{request:?}");
        self.send(Some(RequestUnion::CreateRequest(request)));
        self.control(recorder, &name).await.map_or(WHOLE_STREAM, |response| response.watch_id)
    }

    /// Cancels a watch and records the answer.
    pub(super) async fn cancel(&mut self, recorder: &mut Recorder, watch_id: i64) {
        self.send(Some(RequestUnion::CancelRequest(WatchCancelRequest { watch_id })));
        self.control(recorder, &format!("cancel {watch_id}")).await;
    }

    /// Records the next response that is about a watch and has no events.
    pub(super) async fn control(&mut self, recorder: &mut Recorder, name: &str) -> Option<WatchResponse> {
        self.wait(recorder, ARRIVES_WITHIN, |watching| !watching.control.is_empty()).await;
        let reply = self.control.pop_front();
        let reply = reply.ok_or_else(|| self.silence());
        recorder.reply(name.to_owned(), reply).ok()
    }

    /// Records the next events of a watch.
    pub(super) async fn events(&mut self, recorder: &mut Recorder, watch_id: i64, count: usize) {
        let enough = |watching: &Self| watching.events.get(&watch_id).is_some_and(|events| events.len() >= count);
        self.wait(recorder, ARRIVES_WITHIN, enough).await;
        let events = self.events.entry(watch_id).or_default();
        let events: Vec<Event> = events.drain(..count.min(events.len())).collect();
        recorder.note(format!("{count} events of watch {watch_id}"), events);
    }

    /// Asks how far the stream is, until it says that it has nothing more to deliver, and records that.
    pub(super) async fn progress(&mut self, recorder: &mut Recorder) {
        self.progress.clear();
        let deadline = Instant::now() + ARRIVES_WITHIN;
        while self.progress.is_empty() && Instant::now() < deadline && self.ended.is_none() {
            self.send(Some(RequestUnion::ProgressRequest(WatchProgressRequest {})));
            self.wait(recorder, PROGRESS_PATIENCE, |watching| !watching.progress.is_empty()).await;
        }
        let reply = self.progress.pop_front().ok_or_else(|| self.silence());
        let _ = recorder.reply("progress".to_owned(), reply);
    }

    /// Waits until a watch is told, without having asked, that it has all up to a revision. Records whether it was, and
    /// the watches that were told anything.
    pub(super) async fn told(&mut self, recorder: &mut Recorder, watch_id: i64, revision: i64) {
        let tells = |response: &WatchResponse| {
            response.watch_id == watch_id && response.header.is_some_and(|header| header.revision >= revision)
        };
        self.wait(recorder, ARRIVES_WITHIN, |watching| watching.progress.iter().any(tells)).await;
        let told = self.progress.iter().any(tells);
        let mut watches: Vec<i64> = self.progress.drain(..).map(|response| response.watch_id).collect();
        watches.dedup();
        recorder.note(format!("watch {watch_id} is told of {}", revision - recorder.base), (told, watches));
    }

    /// Records that nothing is answered to what was sent last, and how the stream is: the request after it is.
    pub(super) async fn rest(&mut self, recorder: &mut Recorder) {
        self.progress(recorder).await;
        let events: Vec<_> =
            std::mem::take(&mut self.events).into_iter().filter(|(_, left)| !left.is_empty()).collect();
        let control: Vec<_> = self.control.drain(..).collect();
        recorder.note("what is left on the stream", (events, control));
    }

    /// Records that the stream stays silent, even when it is asked how far it is: a watch of it waits for the future.
    pub(super) async fn silent(&mut self, recorder: &mut Recorder) {
        self.send(Some(RequestUnion::ProgressRequest(WatchProgressRequest {})));
        self.wait(recorder, SILENCE, |_| false).await;
        let said: Vec<_> = self.progress.drain(..).chain(self.control.drain(..)).collect();
        recorder.note("what a silent stream said", (said, std::mem::take(&mut self.events)));
    }

    /// Records how events were spread over responses since the last call.
    pub(super) fn spread(&mut self, recorder: &mut Recorder) {
        let pieces = std::mem::take(&mut self.pieces);
        recorder.note("watch, events and fragment mark of each response", pieces);
    }

    /// Records whether the stream ends by itself, and how.
    pub(super) async fn end(&mut self, recorder: &mut Recorder) {
        self.wait(recorder, SILENCE, |_| false).await;
        let ended = self.ended.as_ref().map(|status| format!("{:?}: {}", status.code(), status.message()));
        recorder.note("the stream's end", ended);
    }

    fn silence(&self) -> Status {
        self.ended.clone().unwrap_or_else(|| Status::deadline_exceeded("nothing came"))
    }

    async fn wait(&mut self, recorder: &mut Recorder, at_most: Duration, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + at_most;
        while !done(self) && self.ended.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            match timeout(left, self.responses.recv()).await {
                Ok(Some(Ok(response))) => self.absorb(recorder, response),
                Ok(Some(Err(status))) => self.ended = Some(status),
                Ok(None) => self.ended = Some(Status::unknown("the stream's task is gone")),
                Err(_) => return,
            }
        }
    }

    fn absorb(&mut self, recorder: &mut Recorder, mut response: WatchResponse) {
        response.normalise(&mut recorder.ids);
        let id = response.watch_id;
        if response.created || response.canceled {
            self.last.remove(&id);
            return self.control.push_back(response);
        }
        if response.events.is_empty() {
            return self.progress.push_back(response);
        }
        let revision = response.header.map_or(0, |header| header.revision);
        let (mut last, mut continues) = self.last.get(&id).copied().unwrap_or_default();
        for event in &response.events {
            let at = event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
            if at < last || at > revision {
                recorder.note(format!("order of watch {id}"), format!("{at} after {last} in a response at {revision}"));
            }
            // Within a response a revision may have several events; across responses only in fragments.
            if at == last && !continues {
                recorder.note(format!("transaction {at} of watch {id}"), "was split over responses");
            }
            (last, continues) = (at, true);
        }
        self.last.insert(id, (last, response.fragment));
        self.pieces.push((id, response.events.len(), response.fragment));
        self.events.entry(id).or_default().extend(response.events);
    }
}
