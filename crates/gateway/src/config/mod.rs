//! The configuration: a folder of `UpstreamCluster` manifests, made into one immutable [`Snapshot`].
//!
//! [`Source`] reads the folder, keeps the snapshot as new as its files, and has a [`Status`]; [`Snapshot`] finds the
//! [`ClusterConfig`] of a host name; `manifest` is what may be written, and `validate` what of it is right. A
//! [`Problem`] says file, line, field, and how to mend it.
//!
//! Invariant: a snapshot is made of a folder without errors, all of it or nothing; secrets are in no text that is
//! shown.

mod cluster;
mod credentials;
mod decode;
mod files;
mod fingerprint;
mod load;
pub mod manifest;
mod node;
mod problem;
mod snapshot;
mod source;
mod validate;
mod values;
mod watcher;

pub use self::cluster::{
    AuthenticationConfig, BearerToken, ClientPem, ClientTrust, ClusterConfig, Discovery, Endpoint, Features,
    FileContents, FlowSchema, IdentityMode, Limit, LimitStrategy, OwnRequests, PerUserLimit, Scheme, Serving,
    ServingPem, TokenBucket, TokenReviewConfig, UpstreamClient,
};
pub use self::problem::{Problem, Severity};
pub use self::snapshot::{Changes, Snapshot};
pub use self::source::{Accept, LoadError, Reload, Source, SourceOptions, Status, check};

#[cfg(test)]
mod tests;
