//! The store as a whole: without the wire, and over it.

mod committer;
mod product;
