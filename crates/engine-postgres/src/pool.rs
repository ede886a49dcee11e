//! The connections.
//!
//! Job: connections for views, a bounded number, and one that is kept for commits, so that reads can't keep a batch waiting. Lost ones are
//! noticed when they are next to be used, and replaced.
//!
//! Invariant: a server that can't be reached is tried by one caller at a time and not more often than the back-off allows, however many
//! wait. Nobody waits beyond a deadline.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use kubewharf_engine::Cause;
use parking_lot::{Condvar, Mutex};

use crate::link::Link;
use crate::url::Target;

const BACK_OFF_MIN: Duration = Duration::from_millis(20);
const BACK_OFF_MAX: Duration = Duration::from_secs(1);

/// Makes connections.
pub(crate) struct Connector {
    target: Arc<Target>,
    is_pooled: bool,
    /// Held while one caller connects after a failure.
    failures: Mutex<Failures>,
}

#[derive(Default)]
struct Failures {
    /// How long to wait after the next failure; zero if the last attempt succeeded.
    back_off: Duration,
    /// No attempt before this.
    wait_until: Option<Instant>,
}

impl Connector {
    pub(crate) fn new(target: Arc<Target>, is_pooled: bool) -> Self {
        Self { target, is_pooled, failures: Mutex::default() }
    }

    /// Connects, again and again until the deadline if it may yet succeed.
    pub(crate) fn connect(&self, deadline: Instant) -> Result<Link, Cause> {
        let late = |text: &str| Cause::Unavailable(format!("PostgreSQL can't be reached: {text}"));
        let mut last = "others wait for it already".to_owned();
        loop {
            let Some(mut failures) = self.failures.try_lock_until(deadline) else { return Err(late(&last)) };
            if let Some(wait_until) = failures.wait_until.filter(|wait_until| *wait_until > Instant::now()) {
                if wait_until >= deadline {
                    return Err(late(&last));
                }
                thread::sleep(wait_until.saturating_duration_since(Instant::now()));
            }
            if failures.back_off.is_zero() {
                // While all is well, many connect at once.
                drop(failures);
                match self.attempt(deadline) {
                    Ok(link) => return Ok(link),
                    Err(failure) => match self.failures.try_lock_until(deadline) {
                        Some(mut failures) => last = failures.note(failure)?,
                        None => return Err(late(&failure.0)),
                    },
                }
            } else {
                match self.attempt(deadline) {
                    Ok(link) => {
                        *failures = Failures::default();
                        return Ok(link);
                    }
                    Err(failure) => last = failures.note(failure)?,
                }
            }
            if Instant::now() >= deadline {
                return Err(late(&last));
            }
        }
    }

    fn attempt(&self, deadline: Instant) -> Result<Link, (String, bool)> {
        let (sender, receiver) = sync_channel(1);
        let (target, is_pooled) = (self.target.clone(), self.is_pooled);
        // On a thread of its own, because names are looked up without a bound on the time.
        let connects = move || {
            // If nobody listens any more, the connection is dropped here.
            let _ = sender.send(Link::connect(&target, is_pooled));
        };
        if let Err(error) = thread::Builder::new().name("postgres".to_owned()).spawn(connects) {
            return Err((format!("can't start a thread: {error}"), false));
        }
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Ok(link)) => Ok(link),
            Ok(Err(error)) => Err((error.text, error.is_permanent)),
            Err(RecvTimeoutError::Timeout) => Err(("no session in time".to_owned(), false)),
            Err(RecvTimeoutError::Disconnected) => Err(("the thread that connects has failed".to_owned(), false)),
        }
    }
}

impl Failures {
    /// Notes a failed attempt, and returns why it failed; as an error if no other would fare better.
    fn note(&mut self, (text, is_permanent): (String, bool)) -> Result<String, Cause> {
        self.back_off = (self.back_off * 2).clamp(BACK_OFF_MIN, BACK_OFF_MAX);
        self.wait_until = Some(Instant::now() + self.back_off);
        if is_permanent {
            Err(Cause::Unavailable(format!("PostgreSQL refuses the connection: {text}")))
        } else {
            Ok(text)
        }
    }
}

/// The connections of views.
pub(crate) struct Pool {
    connections_max: usize,
    state: Mutex<State>,
    is_free: Condvar,
}

#[derive(Default)]
struct State {
    idle: Vec<(Link, u64)>,
    /// In use, idle or being made.
    open: usize,
    /// Connections of earlier generations are not used again.
    generation: u64,
}

impl Pool {
    pub(crate) fn new(connections_max: usize) -> Self {
        Self { connections_max: connections_max.max(1), state: Mutex::default(), is_free: Condvar::new() }
    }

    /// A connection, idle or new.
    pub(crate) fn take(&self, connector: &Connector, deadline: Instant) -> Result<Pooled<'_>, Cause> {
        let mut state = self.state.lock();
        loop {
            while let Some((link, generation)) = state.idle.pop() {
                if generation == state.generation && link.is_usable() {
                    return Ok(Pooled { pool: self, link: Some(link), generation, is_new: false });
                }
                state.open -= 1;
            }
            if state.open < self.connections_max {
                break;
            }
            if self.is_free.wait_until(&mut state, deadline).timed_out() {
                let text = format!("all {} connections to PostgreSQL are in use", self.connections_max);
                return Err(Cause::Unavailable(text));
            }
        }
        state.open += 1;
        let generation = state.generation;
        drop(state);
        // From here on, dropping this gives the place back.
        let mut place = Pooled { pool: self, link: None, generation, is_new: true };
        place.link = Some(connector.connect(deadline)?);
        Ok(place)
    }

    /// The server has changed, or may have: idle connections are closed, and those in use are when they are given back.
    pub(crate) fn renew(&self) {
        let mut state = self.state.lock();
        state.generation += 1;
        state.open -= state.idle.len();
        let idle = std::mem::take(&mut state.idle);
        drop(state);
        drop(idle);
        self.is_free.notify_all();
    }
}

/// A connection on loan. Dropping it gives it back, unless it was spoiled or is closed.
pub(crate) struct Pooled<'p> {
    pool: &'p Pool,
    /// `None` if it was spoiled.
    link: Option<Link>,
    generation: u64,
    is_new: bool,
}

impl Pooled<'_> {
    /// Whether it was made for this loan. An older one may have been lost unnoticed.
    pub(crate) fn is_new(&self) -> bool {
        self.is_new
    }

    /// Closes it: nobody knows in what state it is.
    pub(crate) fn spoil(&mut self) {
        self.link = None;
    }

    /// The connection, unless it was spoiled.
    pub(crate) fn link(&self) -> Option<&Link> {
        self.link.as_ref()
    }
}

impl Drop for Pooled<'_> {
    fn drop(&mut self) {
        let mut state = self.pool.state.lock();
        match self.link.take() {
            Some(link) if !link.is_closed() && self.generation == state.generation => {
                state.idle.push((link, self.generation));
            }
            lost => {
                state.open -= 1;
                drop(state);
                drop(lost);
            }
        }
        self.pool.is_free.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::url::Environment;

    #[test]
    fn a_server_that_is_not_there_is_tried_until_the_deadline_and_not_all_the_time() {
        // A port that nobody listens on: it is bound, but not listened at.
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let url = format!("postgres://u@127.0.0.1:{}/d", socket.local_addr().unwrap().port());
        let target = Target::parse(&url, Environment { password: None, passfile: None }).unwrap();
        let connector = Connector::new(Arc::new(target), false);
        let pool = Pool::new(2);
        let begin = Instant::now();
        for within in [200, 100] {
            let deadline = Instant::now() + Duration::from_millis(within);
            let error = pool.take(&connector, deadline).map(|_| ()).unwrap_err();
            assert!(error.to_string().contains("can't be reached"), "{error}");
        }
        assert!(begin.elapsed() < Duration::from_secs(5));
        assert!(connector.failures.lock().back_off > BACK_OFF_MIN, "it waited longer and longer");
        assert_eq!(pool.state.lock().open, 0, "what was not made holds no place");
    }
}
