//! The connections of one class to one endpoint.
//!
//! Invariant: a request waits only if no stream is free, and whoever waits gets the next stream that becomes free or
//! comes with a new connection, in order. Dials are for those who wait, together: n of them need at most n / budget,
//! rounded up.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::connection::{Connection, Lease};
use crate::endpoint::Endpoint;
use crate::error::{DialError, SendError};
use crate::health::Event;
use crate::limits::{DIAL_PAUSE, DIALS_MAX, RESERVE_TRIES, SPREAD_AT_STREAMS, WAITERS_MAX};
use crate::settings::Class;
use crate::transport::dial_http2;

pub(crate) struct Pool {
    class: Class,
    /// Connections that may take streams. Those that drain are not here; they live by their streams.
    connections: ArcSwap<Vec<Arc<Connection>>>,
    /// Length of the queue, to be read without its lock.
    waiters: AtomicU32,
    /// Dials that run, to be read without the lock; changed under it.
    dialing: AtomicU32,
    queue: Mutex<Queue>,
}

/// Who waits for a stream, and how it is told.
type Caller = oneshot::Sender<Result<Lease, SendError>>;
type Waiter = oneshot::Receiver<Result<Lease, SendError>>;

/// What needs a lock: only requests that find no free stream come here. The list of connections is changed under it.
#[derive(Default)]
struct Queue {
    waiting: VecDeque<Caller>,
    last_failure: Option<(Instant, Arc<DialError>)>,
    /// Streams that the last connection had; zero before the first.
    budget: u32,
}

impl Queue {
    fn failed_just_now(&self) -> bool {
        self.last_failure.as_ref().is_some_and(|(at, _)| at.elapsed() < DIAL_PAUSE)
    }
}

impl Pool {
    pub(crate) fn new(class: Class) -> Self {
        Self {
            class,
            connections: ArcSwap::default(),
            waiters: AtomicU32::new(0),
            dialing: AtomicU32::new(0),
            queue: Mutex::default(),
        }
    }

    /// Connections that may take streams.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load().len()
    }

    /// A stream, if one is free: on the least loaded of the first connections, until these are well filled; then on the
    /// least loaded of all. So the later connections become idle, and close, when the load goes down.
    pub(crate) fn reserve(&self, endpoint: &Arc<Endpoint>) -> Option<Lease> {
        if self.waiters.load(Ordering::Relaxed) > 0 {
            return None;
        }
        let list = self.connections.load();
        let spread = endpoint.spread();
        for _ in 0..RESERVE_TRIES {
            let (connection, streams) = best(&list, spread)?;
            if connection.try_reserve() {
                let lease = Lease::of_reserved(connection.clone());
                if streams >= SPREAD_AT_STREAMS && list.len() < spread && self.dialing.load(Ordering::Relaxed) == 0 {
                    self.dial_one_more(endpoint);
                }
                return Some(lease);
            }
        }
        self.reserve_any()
    }

    /// A stream, now or when one is there.
    pub(crate) async fn wait(&self, endpoint: &Arc<Endpoint>) -> Result<Lease, SendError> {
        let options = endpoint.options();
        match timeout(options.pool.wait_max, self.enqueue(endpoint)?).await {
            Ok(Ok(result)) => result,
            // The sender is dropped unused only if the pool is, which the endpoint in our hands prevents.
            Ok(Err(_)) => Err(SendError::GoingAway { endpoint: endpoint.url().clone() }),
            Err(_) => {
                self.purge();
                if self.connections() == 0 {
                    endpoint.event(Event::NoConnection);
                }
                let waited_ms = u64::try_from(options.pool.wait_max.as_millis()).unwrap_or(u64::MAX);
                Err(SendError::Wait { endpoint: endpoint.url().clone(), waited_ms })
            }
        }
    }

    fn enqueue(&self, endpoint: &Arc<Endpoint>) -> Result<Waiter, SendError> {
        let mut queue = self.queue.lock();
        if let Some(error) = self.refusal(&queue, endpoint) {
            return Err(error);
        }
        let (sender, receiver) = oneshot::channel();
        queue.waiting.push_back(sender);
        // Counted before the look: who frees a stream from now on sees us, who freed one before is seen.
        self.waiters.fetch_add(1, Ordering::SeqCst);
        let returned = self.serve(&mut queue);
        self.dial_locked(&queue, endpoint);
        drop(queue);
        drop(returned);
        Ok(receiver)
    }

    /// Any free stream, for those who wait already.
    fn reserve_any(&self) -> Option<Lease> {
        let list = self.connections.load();
        let connection = list.iter().find(|connection| connection.try_reserve())?;
        Some(Lease::of_reserved(connection.clone()))
    }

    fn refusal(&self, queue: &Queue, endpoint: &Endpoint) -> Option<SendError> {
        if queue.waiting.len() >= WAITERS_MAX {
            return Some(SendError::QueueFull { endpoint: endpoint.url().clone(), waiting: queue.waiting.len() });
        }
        let (_, error) = queue.last_failure.as_ref()?;
        let nothing_to_wait_for = self.connections() == 0 && self.dialing.load(Ordering::Relaxed) == 0;
        let hopeless = queue.failed_just_now() && nothing_to_wait_for;
        hopeless.then(|| SendError::Dial { endpoint: endpoint.url().clone(), source: error.clone() })
    }

    /// A stream has become free, or a connection good again.
    pub(crate) fn stream_freed(&self) {
        if self.waiters.load(Ordering::SeqCst) > 0 {
            let returned = self.serve(&mut self.queue.lock());
            // Without the lock: to give a stream back looks for who waits, and takes it.
            drop(returned);
        }
    }

    /// Gives free streams to those who wait. Streams of those who have left meanwhile come back.
    #[must_use = "to be dropped after the lock is"]
    fn serve(&self, queue: &mut Queue) -> SmallVec<[Lease; 4]> {
        let mut returned = SmallVec::new();
        while let Some(sender) = self.next_waiter(queue) {
            match returned.pop().or_else(|| self.reserve_any()) {
                Some(lease) => {
                    if let Err(Ok(lease)) = sender.send(Ok(lease)) {
                        returned.push(lease);
                    }
                }
                None => {
                    queue.waiting.push_front(sender);
                    self.waiters.fetch_add(1, Ordering::SeqCst);
                    break;
                }
            }
        }
        returned
    }

    /// Takes the first who still waits out of the queue.
    fn next_waiter(&self, queue: &mut Queue) -> Option<Caller> {
        while let Some(sender) = queue.waiting.pop_front() {
            self.waiters.fetch_sub(1, Ordering::SeqCst);
            if !sender.is_closed() {
                return Some(sender);
            }
        }
        None
    }

    /// Drops those at the head of the queue who have left.
    fn purge(&self) {
        let mut queue = self.queue.lock();
        while queue.waiting.front().is_some_and(oneshot::Sender::is_closed) {
            queue.waiting.pop_front();
            self.waiters.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Dials for those who wait, as far as running dials do not suffice.
    pub(crate) fn dial_if_needed(&self, endpoint: &Arc<Endpoint>) {
        if self.waiters.load(Ordering::SeqCst) > 0 {
            self.dial_locked(&self.queue.lock(), endpoint);
        }
    }

    fn dial_locked(&self, queue: &Queue, endpoint: &Arc<Endpoint>) {
        if queue.failed_just_now() && self.connections() > 0 {
            // Those who wait still get the streams that become free.
            return;
        }
        let options = endpoint.options();
        let budget = if queue.budget == 0 { options.pool.streams_max } else { queue.budget }.max(1);
        let wanted = u32::try_from(queue.waiting.len()).unwrap_or(u32::MAX).div_ceil(budget).min(DIALS_MAX);
        let room = options.pool.connections_max.max(1).saturating_sub(self.connections() as u32);
        let wanted = wanted.min(room);
        while self.dialing.load(Ordering::Relaxed) < wanted {
            self.dialing.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(dial(endpoint.clone(), self.class));
        }
    }

    /// One more connection to spread the load over, in the background.
    fn dial_one_more(&self, endpoint: &Arc<Endpoint>) {
        let queue = self.queue.lock();
        if self.dialing.load(Ordering::Relaxed) == 0 && !queue.failed_just_now() {
            self.dialing.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(dial(endpoint.clone(), self.class));
        }
    }

    /// A dial has ended.
    fn dialed(&self, endpoint: &Arc<Endpoint>, result: Result<Arc<Connection>, Arc<DialError>>) {
        let mut queue = self.queue.lock();
        self.dialing.fetch_sub(1, Ordering::Relaxed);
        // A connection can end before it gets here. Who ends it first marks it and then looks for it in the list, under
        // the lock; so it is either seen here or found there.
        let result =
            result.and_then(
                |connection| {
                    if connection.is_closed() { Err(Arc::new(DialError::Closed)) } else { Ok(connection) }
                },
            );
        let returned = match result {
            Ok(connection) => {
                queue.last_failure = None;
                queue.budget = connection.budget();
                let mut list = Vec::clone(&self.connections.load());
                list.push(connection);
                self.connections.store(Arc::new(list));
                let returned = self.serve(&mut queue);
                self.dial_locked(&queue, endpoint);
                returned
            }
            Err(error) => {
                queue.last_failure = Some((Instant::now(), error.clone()));
                // With a connection, or another dial, there is still something to wait for.
                if self.dialing.load(Ordering::Relaxed) == 0 && self.connections() == 0 {
                    let error = SendError::Dial { endpoint: endpoint.url().clone(), source: error };
                    while let Some(sender) = self.next_waiter(&mut queue) {
                        // Who has left meanwhile needs no answer.
                        let _ = sender.send(Err(error.clone()));
                    }
                }
                SmallVec::new()
            }
        };
        drop(queue);
        drop(returned);
    }

    /// A dial has ended with a connection that must not be used any more. Begins another if somebody waits.
    fn dialed_in_vain(&self, endpoint: &Arc<Endpoint>) {
        let queue = self.queue.lock();
        self.dialing.fetch_sub(1, Ordering::Relaxed);
        self.dial_locked(&queue, endpoint);
    }

    /// Takes a connection out: it gets no streams any more.
    pub(crate) fn forget(&self, connection: &Arc<Connection>) {
        let _queue = self.queue.lock();
        self.remove(connection);
    }

    /// Changes the list; under the lock.
    fn remove(&self, connection: &Arc<Connection>) {
        let list = self.connections.load();
        if list.iter().any(|known| Arc::ptr_eq(known, connection)) {
            let rest = list.iter().filter(|known| !Arc::ptr_eq(known, connection)).cloned().collect();
            self.connections.store(Arc::new(rest));
        }
    }

    /// Closes an idle connection, unless it is the last one for ordinary requests: that one stays warm.
    pub(crate) fn close_if_surplus(&self, connection: &Arc<Connection>) {
        let _queue = self.queue.lock();
        let keep = self.class == Class::Short && self.connections() <= 1 && !connection.endpoint.is_retired();
        if !keep && connection.close_if_idle() {
            self.remove(connection);
        }
    }

    /// Gives no further streams to the connections that there are.
    pub(crate) fn drain(&self) {
        let drained = {
            let _queue = self.queue.lock();
            self.connections.swap(Arc::default())
        };
        for connection in drained.iter() {
            connection.drain();
        }
    }
}

/// The connection to use next, and its streams.
fn best(list: &[Arc<Connection>], spread: usize) -> Option<(&Arc<Connection>, u32)> {
    let (first, rest) = list.split_at(spread.min(list.len()));
    let chosen = least_loaded(first);
    match chosen {
        Some((connection, streams)) if streams < connection.budget() / 4 * 3 => chosen,
        _ => match (chosen, least_loaded(rest)) {
            (Some(one), Some(other)) => Some(if other.1 < one.1 { other } else { one }),
            (one, other) => one.or(other),
        },
    }
}

fn least_loaded(list: &[Arc<Connection>]) -> Option<(&Arc<Connection>, u32)> {
    list.iter()
        .filter_map(|connection| connection.room().map(|streams| (connection, streams)))
        .min_by_key(|(_, streams)| *streams)
}

/// Opens a connection and puts it into its pool.
async fn dial(endpoint: Arc<Endpoint>, class: Class) {
    let ticket = DialTicket { endpoint: &endpoint, class, done: false };
    let options = endpoint.options();
    endpoint.counters().dials.fetch_add(1, Ordering::Relaxed);
    let result = Box::pin(dial_http2(endpoint.address(), options.tls.as_ref(), &options.pool, class)).await;
    match result {
        Ok(dialed) => {
            // Credentials may have changed while this was dialled with the old ones.
            if endpoint.options().generation != options.generation {
                ticket.done(|pool| pool.dialed_in_vain(&endpoint));
                return;
            }
            let (connection, driver) = Connection::new(dialed, endpoint.clone(), class, &options.pool);
            tokio::spawn(driver);
            endpoint.event(Event::Connected);
            ticket.done(|pool| pool.dialed(&endpoint, Ok(connection.clone())));
            // An update or a removal that came between the look above and now has not seen it.
            if endpoint.is_retired() || endpoint.options().generation != options.generation {
                endpoint.pool(class).forget(&connection);
                connection.drain();
            }
        }
        Err(error) => {
            endpoint.counters().dial_failures.fetch_add(1, Ordering::Relaxed);
            let error = Arc::new(error);
            // First the verdict, then the errors: who tries again already sees it.
            endpoint.event(Event::DialFailed(&error));
            ticket.done(|pool| pool.dialed(&endpoint, Err(error)));
        }
    }
}

/// Keeps the number of dials right even if a dial panics or its runtime ends.
struct DialTicket<'a> {
    endpoint: &'a Arc<Endpoint>,
    class: Class,
    done: bool,
}

impl DialTicket<'_> {
    fn done(mut self, end: impl FnOnce(&Pool)) {
        self.done = true;
        end(self.endpoint.pool(self.class));
    }
}

impl Drop for DialTicket<'_> {
    fn drop(&mut self) {
        if !self.done {
            let pool = self.endpoint.pool(self.class);
            let _queue = pool.queue.lock();
            pool.dialing.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
