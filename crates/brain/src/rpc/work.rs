//! Reads that may take long: in pages, on threads that may block, with tasks that wait in between.
//!
//! Invariant: who waits, for memory or for a thread, has neither a thread nor a snapshot.

use std::sync::Arc;
use std::time::Instant;

use kubewharf_grpc::{Reply, UnaryReply};
use tokio::time::{sleep, timeout_at};

use super::budget::{Exceeded, Grant, Lane};
use super::server::Server;
use super::status::status;
use crate::error::Error;
use crate::limits::{LIST_LOOK, LIST_WAIT};

/// A read in pages.
pub(super) trait Work: Send + 'static {
    /// Reads a page.
    fn page(&mut self, server: &Server) -> Result<Step, Error>;

    /// Its memory.
    fn grant(&mut self) -> &mut Grant;

    /// Gives all memory back, to begin anew.
    fn restart(&mut self);
}

/// What follows a page.
pub(super) enum Step {
    /// Nothing: here is the reply.
    Done(Reply),
    /// The next page.
    Page,
    /// This page once more, with so many bytes of memory.
    Short(usize),
}

/// Who waits for the reply.
pub(super) struct Caller {
    pub(super) reply: UnaryReply,
    /// When it stops waiting.
    pub(super) deadline: Option<Instant>,
}

impl Caller {
    fn is_gone(&self) -> bool {
        self.reply.is_closed() || self.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    async fn gone(&self) {
        while !self.is_gone() {
            sleep(LIST_LOOK).await;
        }
    }
}

/// Does the work and answers. Most work is done with its first page, whose thread then answers.
pub(super) fn start(server: &Arc<Server>, mut work: Box<impl Work>, caller: Caller) {
    let server = server.clone();
    let runtime = server.runtime.clone();
    let Some(turn) = server.lists.try_turn() else {
        runtime.spawn(go_on(server, work, Step::Page, caller));
        return;
    };
    runtime.spawn_blocking(move || {
        let step = work.page(&server);
        drop(turn);
        match step {
            Ok(Step::Done(reply)) => caller.reply.send(Ok(reply)),
            Ok(step) => {
                server.runtime.clone().spawn(go_on(server, work, step, caller));
            }
            Err(error) => caller.reply.send(Err(status(&error))),
        }
    });
}

async fn go_on(server: Arc<Server>, mut work: Box<impl Work>, mut step: Step, caller: Caller) {
    let mut lane = None;
    let result = loop {
        match step {
            Step::Done(reply) => break Ok(reply),
            Step::Page => {}
            Step::Short(bytes) => {
                if let Err(error) = wait(&server, work.as_mut(), bytes, &mut lane, &caller).await {
                    break Err(error);
                }
            }
        }
        if caller.is_gone() {
            return;
        }
        let turn = server.lists.turn().await;
        let reader = server.clone();
        let page = tokio::task::spawn_blocking(move || {
            let step = work.page(&reader);
            drop(turn);
            (work, step)
        });
        step = match page.await {
            Ok((next, Ok(step))) => {
                work = next;
                step
            }
            Ok((_, Err(error))) => break Err(error),
            Err(error) => break Err(Error::Unavailable(error.to_string())),
        };
    };
    caller.reply.send(result.map_err(|error| status(&error)));
}

/// Waits for memory: for the lane first, without any, and then in the lane for what is missing.
async fn wait(
    server: &Server,
    work: &mut impl Work,
    bytes: usize,
    lane: &mut Option<(Lane, tokio::time::Instant)>,
    caller: &Caller,
) -> Result<(), Error> {
    let lists = &server.lists;
    let enough = async {
        let soon = || tokio::time::Instant::now() + LIST_WAIT;
        let until = match lane {
            Some((_, until)) => *until,
            None => match lists.try_lane() {
                Some(free) => lane.insert((free, soon())).1,
                None => {
                    work.restart();
                    let entered = timeout_at(soon(), lists.lane()).await.map_err(|_| busy(server))?;
                    *lane = Some((entered, soon()));
                    return Ok(());
                }
            },
        };
        let waited = timeout_at(until, work.grant().wait_for(bytes)).await.map_err(|_| busy(server))?;
        waited.map_err(|exceeded| refusal(server, &exceeded))
    };
    tokio::select! {
        result = enough => result,
        () = server.stopping.requested() => Err(Error::Unavailable("the store is stopping".to_owned())),
        () = caller.gone() => Err(busy(server)),
    }
}

fn busy(server: &Server) -> Error {
    refusal(server, &Exceeded::NotNow)
}

/// What a client is told whose list can't have the memory that it needs.
pub(super) fn refusal(server: &Server, exceeded: &Exceeded) -> Error {
    let bytes_max = server.lists.bytes_max();
    match exceeded {
        Exceeded::NotNow => Error::ListsBusy { bytes_max },
        Exceeded::TooLarge => Error::ListTooLarge { bytes_max },
    }
}
