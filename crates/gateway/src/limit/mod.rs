//! Whether a request may be served now: flow control schemas, and circuit breakers.
//!
//! A schema is named by the configuration, and limits the requests of the policies that name it: how many are in
//! flight, or how many begin in a second; all together, and each user's. Times are handed in, so that the rules are the
//! same in a test as at work.
//!
//! Invariant: a request is counted at most once, and what it occupies is given back when its [`Admission`] is dropped,
//! however it ends. No request waits here, and none pays for the number of users.

pub mod breaker;
mod gate;
mod users;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gate::{Entered, Gate};
use users::Users;

/// A limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FlowLimit {
    /// None.
    #[default]
    Exempt,
    /// At most so many requests at once.
    MaxRequestsInflight {
        /// How many; 0 refuses all.
        max: u32,
    },
    /// So many requests a second, and a number at once after a quiet time.
    TokenBucket {
        /// Requests a second; 0 refuses all.
        qps: u32,
        /// Requests at once; 0 refuses all.
        burst: u32,
    },
    /// The same with any rate.
    OneEach {
        /// Time in which one more request is allowed.
        interval: Duration,
        /// Requests at once; 0 refuses all.
        burst: u32,
    },
}

/// A flow control schema, as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaSettings {
    /// What policies call it.
    pub name: String,
    /// For the requests of all users together.
    pub limit: FlowLimit,
    /// For the requests of each user.
    pub per_user: FlowLimit,
}

/// Whose limit was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusedBy {
    /// That of all users together.
    Schema,
    /// That of the user alone.
    User,
    /// Not a limit: the circuit is open.
    Breaker,
}

impl RefusedBy {
    /// The name in metrics and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Schema => "schema",
            Self::User => "user",
            Self::Breaker => "breaker",
        }
    }
}

/// The request may not be served now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("refused by the limit of the {}; try again in {retry_after_seconds} s", .by.name())]
pub struct Refusal {
    /// When it is worth another try; at least 1.
    pub retry_after_seconds: u64,
    /// By what.
    pub by: RefusedBy,
}

impl Refusal {
    /// After this time, in whole seconds, but never at once.
    fn after(wait: Duration, by: RefusedBy) -> Self {
        let whole = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        Self { retry_after_seconds: whole.max(1), by }
    }
}

/// What a request that is let in occupies.
#[derive(Debug, Default)]
#[must_use = "dropping it at once gives its place away"]
pub struct Admission {
    /// The schema's and the user's, held to be dropped.
    _places: [Entered; 2],
}

impl Admission {
    /// Gives back what is occupied although the request goes on: that of a watch, once its response has begun, as it
    /// may last for hours.
    pub fn release_now(&mut self) {
        *self = Self::default();
    }
}

/// A schema and what it has counted.
#[derive(Debug)]
pub struct Schema {
    settings: SchemaSettings,
    gate: Arc<Gate>,
    users: Option<Arc<Users>>,
    origin: Instant,
}

impl Schema {
    /// A schema that has counted nothing yet.
    #[must_use]
    pub fn new(settings: SchemaSettings) -> Self {
        let users = (settings.per_user != FlowLimit::Exempt).then(|| Arc::new(Users::new()));
        Self { settings, gate: Arc::default(), users, origin: Instant::now() }
    }

    /// Its settings.
    #[must_use]
    pub fn settings(&self) -> &SchemaSettings {
        &self.settings
    }

    /// Requests that occupy a place now; 0 if that is not what is limited.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.gate.in_flight()
    }

    /// Users of whom something is remembered.
    #[must_use]
    pub fn users_count(&self) -> usize {
        self.users.as_ref().map_or(0, |users| users.count())
    }

    /// Lets a request in, or not. A request that is not counts nowhere.
    ///
    /// # Errors
    ///
    /// If a limit is reached.
    pub fn admit(&self, user: &str, now: Instant) -> Result<Admission, Refusal> {
        let now = now.saturating_duration_since(self.origin);
        let user = match &self.users {
            None => Entered::default(),
            Some(users) => users
                .gate(user)
                .enter(self.settings.per_user, now)
                .map_err(|wait| Refusal::after(wait, RefusedBy::User))?,
        };
        match self.gate.enter(self.settings.limit, now) {
            Ok(schema) => Ok(Admission { _places: [schema.kept(), user.kept()] }),
            Err(wait) => {
                user.undo(self.settings.per_user);
                Err(Refusal::after(wait, RefusedBy::Schema))
            }
        }
    }

    /// The schema with new settings, which goes on counting where that has a meaning.
    fn update(self: &Arc<Self>, settings: SchemaSettings) -> Arc<Self> {
        if self.settings == settings {
            return self.clone();
        }
        let mut updated = Self::new(settings);
        updated.origin = self.origin;
        if counts_on(self.settings.limit, updated.settings.limit) {
            updated.gate = self.gate.clone();
        }
        if counts_on(self.settings.per_user, updated.settings.per_user) {
            updated.users = self.users.clone();
        }
        Arc::new(updated)
    }
}

/// Whether what was counted for one limit has a meaning for another. The requests in flight are there whatever the
/// number that is allowed.
fn counts_on(old: FlowLimit, new: FlowLimit) -> bool {
    let in_flight = |limit| matches!(limit, FlowLimit::MaxRequestsInflight { .. });
    old == new || in_flight(old) && in_flight(new)
}

/// All schemas of a cluster.
#[derive(Debug, Default)]
pub struct Limits {
    schemas: HashMap<String, Arc<Schema>>,
}

impl Limits {
    /// Schemas that have counted nothing yet. Of several with one name, the last counts.
    #[must_use]
    pub fn new(settings: &[SchemaSettings]) -> Self {
        Self::default().update(settings)
    }

    /// The schemas of a new state of the configuration. One that has not changed is the same object, and so goes on
    /// counting; of one that has, the requests in flight still count.
    #[must_use]
    pub fn update(&self, settings: &[SchemaSettings]) -> Self {
        let schemas = settings
            .iter()
            .map(|settings| {
                let schema = match self.schemas.get(&settings.name) {
                    Some(schema) => schema.update(settings.clone()),
                    None => Arc::new(Schema::new(settings.clone())),
                };
                (settings.name.clone(), schema)
            })
            .collect();
        Self { schemas }
    }

    /// The schema of a name, for a policy to keep.
    #[must_use]
    pub fn schema(&self, name: &str) -> Option<&Arc<Schema>> {
        self.schemas.get(name)
    }

    /// All of them.
    pub fn schemas(&self) -> impl Iterator<Item = &Arc<Schema>> {
        self.schemas.values()
    }
}

#[cfg(test)]
mod tests;
