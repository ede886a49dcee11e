//! KubeGateway: a layer-7 gateway in front of kube-apiservers.
//!
//! A request passes, in this order: `front` (TLS, HTTP/2 or HTTP/1.1), [`authentication`] (who asks), [`kubewharf_kube_api::RequestInfo`]
//! (what for), [`policy`] (the first rule that matches), [`limit`] (whether now), [`kubewharf_upstream`] (which kube-apiserver, on which
//! connection), `identity` (in whose name), and the answer streams back. `proxy` is that pipeline, `cluster` what it has of one cluster.
//! `record` is what is written down of a request in the end: in the metrics, the access log, and its span (`trace`).
//!
//! Invariant: every request is served by one immutable snapshot of the configuration from its beginning to its end, and no header that
//! tells an identity reaches a kube-apiserver unless this crate wrote it.

mod access_log;
mod admin;
pub mod authentication;
mod body;
mod cluster;
pub mod config;
mod drain;
mod front;
mod gateway;
pub mod http_client;
mod identity;
mod ids;
pub mod limit;
pub mod limits;
mod metrics;
pub mod policy;
mod proxy;
mod proxy_protocol;
mod record;
mod reviewer;
mod splice;
mod trace;
mod upgrade;
pub mod user;

pub use access_log::AccessLogTarget;
pub use gateway::{Gateway, Options, StartError, run};
pub use kubewharf_front::Timeouts as ClientTimeouts;
pub use policy::Block;
pub use proxy_protocol::TrustedPeers;
pub use trace::{NotAnEndpoint, TraceError, TraceOptions, TracesEndpoint};
pub use user::User;
