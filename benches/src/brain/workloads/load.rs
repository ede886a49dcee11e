//! Fills a store.

use anyhow::Result;
use kubewharf_etcd_api::Method;

use super::Bench;
use crate::brain::measure::{Measured, Plan};
use crate::brain::requests::{check_txn, put_all};

/// As many as etcd takes by default.
const TXN_PUTS: u64 = 128;
/// Transactions in flight: enough to keep the disk busy.
const IN_FLIGHT: usize = 16;

impl Bench<'_> {
    pub(super) async fn load(&self) -> Result<Measured> {
        let keys = self.objects.borrow().loaded();
        let shape = self.objects.borrow().shape().clone();
        // Without a limit of its own: a store that is not full has no other workload.
        let plan = Plan {
            operations: keys.div_ceil(TXN_PUTS),
            in_flight: IN_FLIGHT,
            time_max: self.options.time_max().max(std::time::Duration::from_secs(1800)),
        };
        let txn = async |turn: crate::brain::measure::Turn<'_>| {
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
