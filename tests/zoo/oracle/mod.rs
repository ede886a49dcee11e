//! The same operations on a plain cluster and in a tenant: whatever is answered, and however it ends, must be equal.

mod clients;
mod deviations;
mod difference;
mod judge;
mod kubectl;
mod normal;
mod script;
mod side;

use std::sync::Arc;

pub(crate) use judge::failures;
use libtest_mimic::{Failed, Trial};

use crate::fixture::World;

/// A test for each group of operations, and those of the comparison itself.
pub(crate) fn trials(world: &Arc<World>) -> Vec<Trial> {
    let mut trials = vec![
        Trial::test("comparison/script", passed(script::self_test)),
        Trial::test("comparison/normal", passed(normal::self_test)),
        Trial::test("comparison/difference", passed(difference::self_test)),
        Trial::test("comparison/deviations", passed(deviations::self_test)),
        Trial::test("comparison/judge", passed(judge::self_test)),
    ];
    trials.extend(kubectl::trials(world));
    trials.extend(clients::trials(world));
    trials
}

fn passed(test: fn()) -> impl FnOnce() -> Result<(), Failed> + Send {
    move || {
        test();
        Ok(())
    }
}
