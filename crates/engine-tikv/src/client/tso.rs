//! Timestamps.
//!
//! Job: one stream to the PD that leads, over which all that wait for a timestamp at one time ask with one message. A stream that fails or stands
//! still is opened anew, and who waited asks again.
//!
//! Invariant: a timestamp is asked for after its caller wanted it, so it is above all that was confirmed before. No two callers get the same, and
//! the one right below each is nobody's.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::poll_fn;
use http::uri::PathAndQuery;
use kubewharf_engine::Cause;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Streaming};
use tonic_prost::ProstCodec;

use super::pd::{Leader, Pd};
use super::rpc::{self, TSO_PATH};
use super::{ATTEMPT_TIMEOUT, Backoff, unavailable};
use crate::generated::pdpb::{Timestamp, TsoRequest, TsoResponse};

/// Callers that wait at most, and so ask with one message.
const WAITING_MAX: usize = 4096;
/// Timestamps that are asked for each caller, who gets the highest. A store that commits in one phase takes the timestamp above the highest that it has seen,
/// without asking PD. A transaction that began at the very same one could be undone, as overdue, without a trace, and come back.
const PER_CALLER: u64 = 2;
/// Bits of a timestamp below its milliseconds.
pub(crate) const LOGICAL_BITS: u32 = 18;

/// Asks for timestamps.
#[derive(Debug)]
pub(crate) struct Oracle {
    callers: mpsc::Sender<oneshot::Sender<u64>>,
    /// Why the last attempt has failed.
    failure: Arc<Mutex<Option<Cause>>>,
}

impl Oracle {
    /// Starts the task that asks, on the runtime of the caller; it ends with this.
    pub(crate) fn start(pd: Arc<Pd>) -> Self {
        let (callers, waiting) = mpsc::channel(WAITING_MAX);
        let failure = Arc::new(Mutex::new(None));
        tokio::spawn(Asker { pd, waiting, callers: Vec::new(), failure: failure.clone() }.run());
        Self { callers, failure }
    }

    /// A timestamp above all that were given before.
    pub(crate) async fn timestamp(&self, deadline: Instant) -> Result<u64, Cause> {
        let ask = async {
            let (caller, answer) = oneshot::channel();
            self.callers.send(caller).await.ok()?;
            answer.await.ok()
        };
        let answer = timeout_at(deadline, ask).await.ok().flatten();
        answer.ok_or_else(|| {
            let failure = self.failure.lock().clone();
            failure.unwrap_or_else(|| unavailable("PD gives no timestamp in time"))
        })
    }
}

struct Asker {
    pd: Arc<Pd>,
    waiting: mpsc::Receiver<oneshot::Sender<u64>>,
    /// Those of the message that is under way.
    callers: Vec<oneshot::Sender<u64>>,
    failure: Arc<Mutex<Option<Cause>>>,
}

/// A stream that has answered.
struct Stream {
    leader: Leader,
    requests: mpsc::Sender<TsoRequest>,
    answers: Streaming<TsoResponse>,
}

impl Asker {
    async fn run(mut self) {
        let mut stream = None;
        while self.gather().await {
            let mut backoff = Backoff::new(Instant::now() + ATTEMPT_TIMEOUT);
            while !self.callers.is_empty() {
                match self.ask(&mut stream).await {
                    Ok(answer) => {
                        *self.failure.lock() = None;
                        self.hand_out(&answer);
                    }
                    Err(cause) => {
                        *self.failure.lock() = Some(cause.clone());
                        // It does not matter for how long: callers that have given up are passed over.
                        if backoff.wait(Duration::ZERO, cause).await.is_err() {
                            backoff = Backoff::new(Instant::now() + ATTEMPT_TIMEOUT);
                        }
                        self.callers.retain(|caller| !caller.is_closed());
                    }
                }
            }
        }
    }

    /// Waits for callers; `false` when there will be none.
    async fn gather(&mut self) -> bool {
        self.waiting.recv_many(&mut self.callers, WAITING_MAX).await > 0
    }

    /// Asks for as many as there are callers, on the stream that is open or a new one.
    async fn ask(&mut self, stream: &mut Option<Stream>) -> Result<Timestamp, Cause> {
        let deadline = Instant::now() + ATTEMPT_TIMEOUT;
        let wanted = (self.callers.len() as u64 * PER_CALLER) as u32;
        let request = TsoRequest { header: None, count: wanted };
        let mut open = stream.take();
        let (leader, answer) = match &mut open {
            Some(stream) => (stream.leader.clone(), timeout_at(deadline, stream.ask(request)).await),
            None => {
                let leader = self.pd.leader(deadline).await?;
                let opened = timeout_at(deadline, Stream::open(leader.clone(), request)).await;
                let answer = opened.map(|opened| {
                    opened.map(|(stream, answer)| {
                        open = Some(stream);
                        answer
                    })
                });
                (leader, answer)
            }
        };
        let why = match answer {
            Ok(Ok(TsoResponse { timestamp: Some(timestamp), header, count })) if count == wanted => {
                match header.and_then(|header| header.error) {
                    None => {
                        *stream = open;
                        return Ok(timestamp);
                    }
                    Some(error) => error.message,
                }
            }
            Ok(Ok(_)) => "it gives another number of timestamps than was asked for".to_owned(),
            Ok(Err(why)) => why,
            Err(_) => "no answer in time".to_owned(),
        };
        // The leader may be another by now.
        self.pd.lost(&leader, true);
        Err(unavailable(format!("PD gives no timestamp: {why}")))
    }

    fn hand_out(&mut self, last: &Timestamp) {
        let count = self.callers.len() as u64 * PER_CALLER;
        for (at, caller) in (1..).zip(self.callers.drain(..)) {
            // Nobody may wait any more.
            let _ = caller.send(nth(last, count, at * PER_CALLER));
        }
    }
}

/// The `at`-th of `count` timestamps, of which the last is known.
fn nth(last: &Timestamp, count: u64, at: u64) -> u64 {
    let behind = (count - at) << last.suffix_bits;
    (last.physical.cast_unsigned() << LOGICAL_BITS) + last.logical.cast_unsigned() - behind
}

impl Stream {
    /// Opens a stream with its first request: PD begins to answer only then.
    async fn open(leader: Leader, mut request: TsoRequest) -> Result<(Self, TsoResponse), String> {
        request.header = Some(leader.header);
        let (requests, mut sent) = mpsc::channel(1);
        requests.try_send(request).expect("the channel is new");
        let mut grpc = rpc::grpc(leader.channel.clone());
        grpc.ready().await.map_err(|error| super::text(&error))?;
        let sent = Request::new(poll_fn(move |context| sent.poll_recv(context)));
        let codec = ProstCodec::<TsoRequest, TsoResponse>::default();
        let answers = grpc.streaming(sent, PathAndQuery::from_static(TSO_PATH), codec).await;
        let answers = answers.map_err(|status| rpc::sorted(&status).to_string())?.into_inner();
        let mut stream = Self { leader, requests, answers };
        let answer = stream.answer().await?;
        Ok((stream, answer))
    }

    async fn ask(&mut self, mut request: TsoRequest) -> Result<TsoResponse, String> {
        request.header = Some(self.leader.header);
        self.requests.send(request).await.map_err(|_| "the stream has ended".to_owned())?;
        self.answer().await
    }

    async fn answer(&mut self) -> Result<TsoResponse, String> {
        let answer = self.answers.message().await.map_err(|status| rpc::sorted(&status).to_string())?;
        answer.ok_or_else(|| "the stream has ended".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_several_timestamps_tells_the_others() {
        let last = Timestamp { physical: 5, logical: 10, suffix_bits: 0 };
        let base = 5 << LOGICAL_BITS;
        assert_eq!([1, 2, 3].map(|at| nth(&last, 3, at)), [base + 8, base + 9, base + 10]);
        let last = Timestamp { suffix_bits: 2, ..last };
        assert_eq!([1, 2, 3].map(|at| nth(&last, 3, at)), [base + 2, base + 6, base + 10]);
    }
}
