//! Leases: granted, attached to objects, renewed.

use std::cell::RefCell;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kubewharf_etcd_api::Method;

use super::Bench;
use crate::brain::keys::LEASED_PREFIX;
use crate::brain::measure::{Measured, Plan, Turn};
use crate::brain::requests::{self, check_txn};
use crate::client::{Requests, Responses};
use crate::wire::{Value, field};

/// kube-apiserver's time to live for events.
const TTL_SECONDS: i64 = 3600;
/// Granting is rare, renewing is what nodes do: each takes a share of the operations.
const GRANTS_SHARE: u64 = 6;
const PUTS_SHARE: u64 = 3;
const REPLY_WITHIN: Duration = Duration::from_secs(20);

impl Bench {
    pub(super) async fn lease_grant(&self) -> Result<Measured> {
        let plan = self.plan(self.scale.operations.div_ceil(GRANTS_SHARE));
        let grant = async |turn: Turn<'_>| {
            let reply = turn.connection.unary(Method::LeaseGrant, requests::lease_grant(TTL_SECONDS)).await?;
            let id = field(&reply, 2)?.context("a lease without a number")?.signed()?;
            let ttl = field(&reply, 3)?.context("a lease without a time to live")?.signed()?;
            ensure!(ttl == TTL_SECONDS, "a lease of {ttl} s instead of {TTL_SECONDS} s");
            self.leases.borrow_mut().push(id);
            Ok(1)
        };
        let measured = self.measure(plan, grant).await?.1;
        let mut ids = self.leases.borrow().clone();
        ids.sort_unstable();
        ids.dedup();
        ensure!(ids.len() == self.leases.borrow().len(), "two leases have the same number");
        Ok(measured)
    }

    pub(super) async fn lease_put(&self) -> Result<Measured> {
        let plan = self.plan(self.scale.operations.div_ceil(PUTS_SHARE));
        let create = async |turn: Turn<'_>| {
            let shape = self.objects.borrow().shape().clone();
            let lease = self.lease(turn.number)?;
            let key = shape.key_under(LEASED_PREFIX, turn.number);
            let request = requests::create(key, shape.value(turn.number, 0, 0), lease);
            check_txn(&turn.connection.unary(Method::Txn, request).await?, 1)?;
            Ok(1)
        };
        Ok(self.measure(plan, create).await?.1)
    }

    /// Each worker has a stream of its own and renews one lease after the other.
    pub(super) async fn lease_keep_alive(&self) -> Result<Measured> {
        let mut streams = Vec::new();
        for worker in 0..self.scale.in_flight {
            let connection = &self.connections[worker % self.connections.len()];
            let id = self.lease(worker as u64)?;
            let first = requests::lease_keep_alive(id);
            let (requests, mut responses) = connection.stream(Method::LeaseKeepAlive, first).await?;
            wait_until_renewed(&mut responses, id).await?;
            streams.push(RefCell::new(Some((requests, responses))));
        }
        let renew = async |turn: Turn<'_>| {
            let id = self.lease(turn.number)?;
            let stream: (Requests, Responses) = streams[turn.worker].take().context("a worker runs by itself")?;
            let (mut requests, mut responses) = stream;
            requests.send(requests::lease_keep_alive(id))?;
            wait_until_renewed(&mut responses, id).await?;
            streams[turn.worker].replace(Some((requests, responses)));
            Ok(1)
        };
        let plan = Plan { in_flight: streams.len(), ..self.plan(self.scale.operations) };
        Ok(self.measure(plan, renew).await?.1)
    }

    fn lease(&self, turn: u64) -> Result<i64> {
        let leases = self.leases.borrow();
        let index =
            turn.checked_rem(leases.len() as u64).context("there is no lease: the workload lease-grant makes them")?;
        Ok(leases[index as usize])
    }
}

async fn wait_until_renewed(responses: &mut Responses, id: i64) -> Result<()> {
    let mut renewed = false;
    while !renewed {
        let more = responses.more(|message| {
            let found = field(message, 2)?.map_or(Ok(0), Value::signed)?;
            let ttl = field(message, 3)?.map_or(Ok(0), Value::signed)?;
            ensure!(
                found == id && ttl == TTL_SECONDS,
                "lease {found} renewed to {ttl} s instead of {id} to {TTL_SECONDS} s"
            );
            renewed = true;
            Ok(())
        });
        let more = tokio::time::timeout(REPLY_WITHIN, more).await.context("a lease is not renewed")??;
        ensure!(more, "the stream of keep-alives ended");
    }
    Ok(())
}
