//! What is measured.

pub mod creation;
pub mod memory;
pub mod requests;
pub mod watches;

use serde::{Deserialize, Serialize};

use super::options::Part;

/// What both sides do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Reads an object in JSON, one request after the other.
    GetJson,
    /// The same in protobuf.
    GetProtobuf,
    /// Reads an object in JSON, several requests at once.
    ParallelGetJson,
    /// The same in protobuf.
    ParallelGetProtobuf,
    /// Reads a namespace's objects in JSON.
    ListJson,
    /// The same in protobuf.
    ListProtobuf,
    /// Reads the objects of several namespaces in JSON.
    ListAllJson,
    /// The same in protobuf.
    ListAllProtobuf,
    /// Makes an object.
    Create,
    /// Replaces an object.
    Update,
    /// Changes a field of an object by a merge patch.
    Patch,
    /// Applies an object at the server.
    Apply,
    /// Events of watches of a namespace.
    Watch,
    /// Events of watches of all namespaces.
    WatchAll,
}

impl Workload {
    /// All of them, in the order in which they run: what makes objects comes after what lists some.
    pub const ALL: [Self; 14] = [
        Self::GetJson,
        Self::GetProtobuf,
        Self::ParallelGetJson,
        Self::ParallelGetProtobuf,
        Self::ListJson,
        Self::ListProtobuf,
        Self::ListAllJson,
        Self::ListAllProtobuf,
        Self::Create,
        Self::Update,
        Self::Patch,
        Self::Apply,
        Self::Watch,
        Self::WatchAll,
    ];

    /// The part that it belongs to.
    pub fn part(self) -> Part {
        match self {
            Self::GetJson | Self::GetProtobuf | Self::ParallelGetJson | Self::ParallelGetProtobuf => Part::Get,
            Self::ListJson | Self::ListProtobuf | Self::ListAllJson | Self::ListAllProtobuf => Part::List,
            Self::Create | Self::Update | Self::Patch | Self::Apply => Part::Write,
            Self::Watch | Self::WatchAll => Part::Watch,
        }
    }

    /// Whether answers are to be protobuf.
    pub fn is_protobuf(self) -> bool {
        matches!(self, Self::GetProtobuf | Self::ParallelGetProtobuf | Self::ListProtobuf | Self::ListAllProtobuf)
    }

    /// What the tables call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::GetJson => "GET, JSON",
            Self::GetProtobuf => "GET, protobuf",
            Self::ParallelGetJson => "GETs at once, JSON",
            Self::ParallelGetProtobuf => "GETs at once, protobuf",
            Self::ListJson => "LIST a namespace, JSON",
            Self::ListProtobuf => "LIST a namespace, protobuf",
            Self::ListAllJson => "LIST -A, JSON",
            Self::ListAllProtobuf => "LIST -A, protobuf",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "merge patch",
            Self::Apply => "server-side apply",
            Self::Watch => "event, watch of a namespace",
            Self::WatchAll => "event, watch -A",
        }
    }
}
