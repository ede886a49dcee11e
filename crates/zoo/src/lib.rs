//! KubeZoo: many complete Kubernetes APIs over one cluster. A tenant is one object.
//!
//! A request comes with a credential, and the credential says whose it is. Its names are rewritten into those that the tenant's objects have
//! upstream ([`names`]), it is sent there, and the answer is rewritten back. An idle tenant costs nothing but its objects.
//!
//! Invariant: nothing that a tenant sends reaches an object of anybody else, and nothing that a tenant receives tells of anybody else, nor
//! of the names that its own objects have upstream.

pub mod admin;
mod administrator;
pub mod authz;
pub mod certificates;
pub mod discovery;
mod front;
pub mod kinds;
pub mod kubeconfig;
mod limits;
mod list;
mod metrics;
mod mounted;
pub mod names;
mod pods;
mod private;
mod proto;
mod proxy;
pub mod rewrite;
mod scan;
pub mod tenant;
mod text;
mod time;
mod tokens;
pub mod upstream;
mod watch;
mod zoo;

pub use administrator::{Administrator, AdministratorError, Listed, TenantKubeconfig};
pub use zoo::{INFORMATION_PATH, Options, StartError, run};
