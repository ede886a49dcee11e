//! Fills a store.

use std::time::Duration;

use anyhow::{Result, ensure};
use kubewharf_etcd_api::Method;

use super::Bench;
use crate::brain::measure::{Measured, Plan, Turn, run_loop};
use crate::brain::requests::{check_txn, put_all};

/// As many as etcd takes by default.
const TXN_PUTS: u64 = 128;
/// Transactions in flight: enough to keep the disk busy.
const IN_FLIGHT: usize = 16;

/// No store takes longer than that to be filled.
const LOAD_WITHIN: Duration = Duration::from_secs(1800);

impl Bench {
    /// Puts all objects, each with a request of its own, for stores that take no other.
    ///
    /// # Errors
    /// When the store fails or answers wrongly.
    pub async fn fill(&self) -> Result<()> {
        let operations = self.objects.borrow().loaded();
        let plan = Plan { time_max: LOAD_WITHIN, ..self.plan(operations) };
        let create = async |turn: Turn<'_>| self.create_one(turn.connection, turn.number).await;
        let done = run_loop(&self.connections, plan, create).await?;
        ensure!(done.operations == operations, "only {} of {operations} objects in {LOAD_WITHIN:?}", done.operations);
        Ok(())
    }

    pub(super) async fn load(&self) -> Result<Measured> {
        let keys = self.objects.borrow().loaded();
        let shape = self.objects.borrow().shape().clone();
        // Without a limit of its own: a store that is not full has no other workload.
        let plan = Plan {
            operations: keys.div_ceil(TXN_PUTS),
            in_flight: IN_FLIGHT,
            time_max: self.scale.time_max.max(LOAD_WITHIN),
        };
        let txn = async |turn: Turn<'_>| {
            let numbers = turn.number * TXN_PUTS..keys.min((turn.number + 1) * TXN_PUTS);
            let puts = numbers.clone().map(|number| (shape.key(number), shape.value(number, 0, 0)));
            let reply = turn.connection.unary(Method::Txn, put_all(puts)).await?;
            let count = numbers.end - numbers.start;
            let revision = check_txn(&reply, count as usize)?;
            let mut objects = self.objects.borrow_mut();
            numbers.for_each(|number| objects.get_mut(number).revision = revision);
            Ok(count)
        };
        Ok(self.measure(plan, txn).await?.1)
    }
}
