//! Documents of a host that has more than tenants have.

mod documents;
mod host;
mod serving;
