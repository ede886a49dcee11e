//! Watch fan-out: many watch a resource while it changes.
//!
//! Each watcher must get each change once, in order, with the value before it; that is checked against the revisions
//! that the writers were told.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::future::{try_join, try_join_all};
use kubewharf_etcd_api::Method;

use super::Bench;
use crate::brain::keys::{PREFIX, value_time_ns};
use crate::brain::measure::{Measured, Meter, Plan, Turn, run_loop};
use crate::brain::requests::{self, KeyValue, header_revision};
use crate::client::Responses;
use crate::histogram::Histogram;
use crate::wire::{Fields, Value};

/// How long after the last write the events may take.
const EVENTS_WITHIN: Duration = Duration::from_secs(120);
/// No loss shows itself but by an event that does not come.
const NEXT_EVENT_WITHIN: Duration = Duration::from_secs(20);

/// What one watcher has got: the revisions, in order.
type Received = HashMap<i64, Vec<i64>>;

impl Bench {
    pub(super) async fn watch(&self) -> Result<Measured> {
        let watchers = self.scale.watchers;
        let updates = self.scale.events.div_ceil(watchers as u64);
        // Watch caches have connections of their own, so their bytes do not get into the way of writers'.
        let connections = self.target.connect(self.scale.connections.min(watchers)).await?;
        let request = requests::watch(PREFIX.as_bytes(), self.revision().await? + 1);
        let mut streams = Vec::new();
        for (index, connection) in connections.iter().enumerate() {
            let share = watchers / connections.len() + usize::from(index < watchers % connections.len());
            let (mut sender, mut responses) = connection.stream(Method::Watch, request.clone()).await?;
            for _ in 1..share {
                sender.send(request.clone())?;
            }
            wait_until_created(&mut responses, share).await?;
            streams.push((sender, responses, share));
        }
        let plan = Plan { operations: updates, in_flight: self.scale.in_flight, time_max: EVENTS_WITHIN };
        let begun = Instant::now();
        let meter = Meter::start(&self.target)?;
        let written = RefCell::new(Vec::new());
        let write = async |turn: Turn<'_>| {
            let revision = self.update_one(turn, begun.elapsed().as_nanos() as u64).await?;
            written.borrow_mut().push(revision);
            Ok(1)
        };
        let latency = RefCell::new(Histogram::default());
        let latency_ref = &latency;
        let readers = try_join_all(streams.iter_mut().map(|(_, responses, share)| async move {
            receive(responses, *share, updates as usize, |sent_ns| {
                let now_ns = begun.elapsed().as_nanos() as u64;
                latency_ref.borrow_mut().record(Duration::from_nanos(now_ns.saturating_sub(sent_ns)));
            })
            .await
        }));
        let (writes, received) = try_join(run_loop(&self.connections, plan, write), readers).await?;
        ensure!(writes.operations == updates, "only {} of {updates} writes in {EVENTS_WITHIN:?}", writes.operations);
        let measured = meter.stop(updates, updates * watchers as u64, &latency.take()).await?;
        let mut written = written.into_inner();
        written.sort_unstable();
        let mut checked = 0;
        for (watch_id, revisions) in received.iter().flatten() {
            ensure!(*revisions == written, "watcher {watch_id} got other revisions than were written");
            checked += 1;
        }
        ensure!(checked == watchers, "{checked} watchers got events instead of {watchers}");
        Ok(measured)
    }
}

/// Waits until the server has said so often that a watch is created.
pub(super) async fn wait_until_created(responses: &mut Responses, wanted: usize) -> Result<()> {
    let mut created = 0;
    while created < wanted {
        let more = responses.more(|message| {
            let response = Response::read(message)?;
            ensure!(response.created, "something else than the creation of a watch came first");
            created += 1;
            Ok(())
        });
        let more = tokio::time::timeout(NEXT_EVENT_WITHIN, more).await.context("a watch is not created")??;
        ensure!(more, "the stream of watches ended");
    }
    Ok(())
}

/// Reads until each of the stream's watchers has got that many events.
async fn receive(
    responses: &mut Responses,
    watchers: usize,
    events: usize,
    mut each: impl FnMut(u64),
) -> Result<Received> {
    let mut received = Received::new();
    let mut left = watchers * events;
    while left > 0 {
        let more = responses.more(|message| {
            let response = Response::read(message)?;
            ensure!(!response.created, "more watches than were asked for");
            let revisions = received.entry(response.watch_id).or_insert_with(|| Vec::with_capacity(events));
            for event in response.events() {
                let (kv, had_previous) = read_event(event?)?;
                ensure!(had_previous, "an event at revision {} is without the value before it", kv.mod_revision);
                let last = revisions.last().copied().unwrap_or(0);
                ensure!(kv.mod_revision > last, "an event at revision {} after one at {last}", kv.mod_revision);
                revisions.push(kv.mod_revision);
                each(value_time_ns(kv.value)?);
                left = left.checked_sub(1).context("more events than writes")?;
            }
            Ok(())
        });
        let more = tokio::time::timeout(NEXT_EVENT_WITHIN, more).await;
        ensure!(
            more.with_context(|| format!("{left} events of {} never came", watchers * events))??,
            "the stream ended"
        );
    }
    Ok(received)
}

/// A message of a stream of watches.
struct Response<'a> {
    watch_id: i64,
    created: bool,
    message: &'a [u8],
}

impl<'a> Response<'a> {
    fn read(message: &'a [u8]) -> Result<Self> {
        let mut response = Self { watch_id: 0, created: false, message };
        let mut fields = Fields::of(message);
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => ensure!(header_revision(value)? > 0, "a header without a revision"),
                2 => response.watch_id = value.signed()?,
                3 => response.created = value.number()? == 1,
                4 if value.number()? == 1 => bail!("the server cancelled a watch"),
                // The events come last.
                11 => break,
                _ => {}
            }
        }
        Ok(response)
    }

    fn events(&self) -> impl Iterator<Item = Result<Value<'a>>> + use<'a> {
        let mut fields = Fields::of(self.message);
        std::iter::from_fn(move || {
            loop {
                match fields.next() {
                    Ok(Some((11, event))) => return Some(Ok(event)),
                    Ok(Some(_)) => {}
                    Ok(None) => return None,
                    Err(error) => return Some(Err(error)),
                }
            }
        })
    }
}

/// What an event says of its object, and whether it brings the value before.
fn read_event(event: Value<'_>) -> Result<(KeyValue<'_>, bool)> {
    let (mut kv, mut had_previous) = (None, false);
    let mut fields = Fields::of(event.bytes()?);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => ensure!(value.number()? == 0, "a delete, although nobody deletes"),
            2 => kv = Some(KeyValue::read(value)?),
            3 => had_previous = true,
            _ => {}
        }
    }
    Ok((kv.context("an event without a key")?, had_previous))
}
