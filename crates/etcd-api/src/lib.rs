//! The etcd v3 API as etcd 3.7 serves it: messages, method names, errors and encoders. No logic.
//!
//! Messages are generated from the `.proto` files of this crate (`cargo run -p xtask -- codegen`) and checked in;
//! `bytes` fields are [`bytes::Bytes`], so decoding from a `Bytes` copies no key and no value. With the feature
//! `client` each package also has tonic client stubs; there is no server stub, the server answers by [`Method`].
//!
//! Invariant: what the hand-written modules say about the API (paths, sizes, encodings) is tested against the
//! generated code and the descriptors.

pub mod descriptor;
pub mod encode;
pub mod errors;
mod services;

pub use errors::{Code, EtcdError};
pub use generated::{authpb, etcdserverpb, health, mvccpb, v3electionpb, v3lockpb};
pub use services::{Method, MethodKind};

/// gRPC server reflection. Both versions have the same fields on the wire; only the service name differs.
pub mod reflection {
    pub use crate::generated::{reflection_v1 as v1, reflection_v1alpha as v1alpha};
}

#[rustfmt::skip]
mod generated {
    /// Users, roles and permissions.
    pub mod authpb;
    /// The services KV, Watch, Lease, Cluster, Maintenance and Auth.
    pub mod etcdserverpb;
    /// The gRPC health service.
    pub mod health;
    /// Keys with their values, and changes of them.
    pub mod mvccpb;
    /// gRPC server reflection, v1.
    pub mod reflection_v1;
    /// gRPC server reflection, v1alpha.
    pub mod reflection_v1alpha;
    /// The election service.
    pub mod v3electionpb;
    /// The lock service.
    pub mod v3lockpb;
}
