//! The tenants' policies: who may do what in each.
//!
//! Invariant: a policy is only asked when all kinds of objects that make it up have been read once.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::watch;

use crate::authz::Policy;
use crate::authz::roles::{Kind, Object};
use crate::names::TenantId;

use super::Tenants;

/// How long a request waits until policies are known, after a start.
const KNOWN_WITHIN: Duration = Duration::from_secs(10);

/// All policies that are not just the defaults.
pub(super) struct Policies {
    by_id: RwLock<HashMap<TenantId, Policy>>,
    /// Which kinds have been read, as bits.
    known: watch::Sender<u8>,
}

impl Default for Policies {
    fn default() -> Self {
        Self { by_id: RwLock::default(), known: watch::Sender::new(0) }
    }
}

impl Tenants {
    /// The policy of a tenant.
    #[must_use]
    pub fn policy(&self, id: TenantId) -> Policy {
        self.policies.by_id.read().get(&id).cloned().unwrap_or_default()
    }

    /// Waits until policies are known; false if they are not, in time.
    pub(crate) async fn knows_policies(&self) -> bool {
        let all = (1 << Kind::ALL.len()) - 1;
        if *self.policies.known.borrow() == all {
            return true;
        }
        let mut known = self.policies.known.subscribe();
        tokio::time::timeout(KNOWN_WITHIN, known.wait_for(|known| *known == all)).await.is_ok_and(|known| known.is_ok())
    }

    pub(crate) fn policies_are_known(&self, kind: Kind) {
        self.policies.known.send_modify(|known| *known |= 1 << kind as u8);
    }

    pub(crate) fn change_policy(&self, id: TenantId, change: impl FnOnce(&mut Policy)) {
        let mut by_id = self.policies.by_id.write();
        change(by_id.entry(id).or_default());
    }

    /// Takes what there is of a kind in place of what was known of it.
    pub(crate) fn replace_policies(&self, kind: Kind, all: HashMap<TenantId, Vec<Object>>) {
        let mut by_id = self.policies.by_id.write();
        for policy in by_id.values_mut() {
            policy.remove_kind(kind);
        }
        for (id, objects) in all {
            let policy = by_id.entry(id).or_default();
            for object in objects {
                policy.insert(object);
            }
        }
    }
}
