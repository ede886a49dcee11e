//! The kinds whose bodies can be rewritten.
//!
//! Invariant: a body that says what it is, is taken for that, as kube-apiserver does; never for what it was expected to be.

use std::collections::HashMap;
use std::fmt;
use std::sync::LazyLock;

use super::marks::is_own_message;
use super::plan::{INWARD, NodeId, OUTWARD};
use super::scan::Fallible;
use super::{RewriteError, TypeMeta, schema};

/// A kind of object: one of Kubernetes' own, or a custom resource, of which only the metadata is known.
#[derive(Clone, Copy)]
pub struct Kind(&'static Entry);

struct Entry {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    message: &'static str,
    inward: NodeId,
    outward: NodeId,
}

struct Kinds {
    entries: Vec<Entry>,
    by_kind: HashMap<&'static str, Vec<usize>>,
}

static KINDS: LazyLock<Kinds> = LazyLock::new(|| {
    let more = ["Custom", "CustomList", "OwnCustom", "OwnCustomList", "OwnPartial", "OwnPartialList"];
    let more = more.into_iter().map(|kind| {
        let message = schema::all().find(|message| message.name.strip_prefix("zoo.") == Some(kind));
        ("zoo", "", kind, message.expect("it is in the schema"))
    });
    let node = |plan: &super::plan::Plan, name| plan.find(name).expect("every kind is in both plans");
    let entries: Vec<Entry> = schema::kinds()
        .chain(more)
        .map(|(group, version, kind, message)| {
            let message = message.name;
            Entry { group, version, kind, message, inward: node(&INWARD, message), outward: node(&OUTWARD, message) }
        })
        .collect();
    let mut by_kind: HashMap<&'static str, Vec<usize>> = HashMap::new();
    for (index, entry) in entries.iter().enumerate() {
        by_kind.entry(entry.kind).or_default().push(index);
    }
    Kinds { entries, by_kind }
});

impl Kind {
    /// The kind with this name, if it is one of Kubernetes' own. Group and version are those of an API version: `""` and `v1` for Pods.
    ///
    /// `Status`, `Table`, `DeleteOptions` and `PartialObjectMetadata` are found in the groups in which kube-apiserver accepts them.
    #[must_use]
    pub fn of(group: &str, version: &str, kind: &str) -> Option<Self> {
        let kinds: &'static Kinds = &KINDS;
        let candidates = kinds.by_kind.get(kind)?.iter().map(|index| &kinds.entries[*index]);
        let fits = |entry: &&Entry| match entry.group {
            "meta.k8s.io" => group == "meta.k8s.io" || (group.is_empty() && version == "v1") || kind == "DeleteOptions",
            own => own == group && entry.version == version,
        };
        candidates.clone().find(fits).filter(|entry| entry.group != "zoo").map(Self)
    }

    /// A custom resource in a namespace. Only its metadata is rewritten.
    #[must_use]
    pub fn custom() -> Self {
        Self::internal("Custom")
    }

    /// A cluster-scoped custom resource of the tenant's: its name has the prefix upstream.
    #[must_use]
    pub fn custom_of_cluster() -> Self {
        Self::internal("OwnCustom")
    }

    /// The kind of lists of this kind; the kind itself if it has none.
    #[must_use]
    pub fn list(self) -> Self {
        KINDS.find(self.0.group, self.0.version, &format!("{}List", self.0.kind)).unwrap_or(self)
    }

    /// The kind of the items of lists of this kind; the kind itself if it is none of a list.
    #[must_use]
    pub fn item(self) -> Self {
        let item = self.0.kind.strip_suffix("List").and_then(|kind| KINDS.find(self.0.group, self.0.version, kind));
        item.unwrap_or(self)
    }

    /// Its API group; empty for the core group.
    #[must_use]
    pub fn group(self) -> &'static str {
        self.0.group
    }

    /// Its version.
    #[must_use]
    pub fn version(self) -> &'static str {
        self.0.version
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.0.kind
    }

    /// Whether its objects are cluster-scoped and have the tenant's prefix upstream.
    #[must_use]
    pub fn is_own_of_cluster(self) -> bool {
        is_own_message(self.item().0.message)
    }

    fn internal(name: &str) -> Self {
        KINDS.find("zoo", "", name).expect("it is among the kinds")
    }

    fn is_custom(self) -> bool {
        self.0.group == "zoo"
    }

    /// Its rules in a direction.
    pub(super) fn node(self, outward: bool) -> NodeId {
        if outward { self.0.outward } else { self.0.inward }
    }

    /// The name of its message.
    pub(super) fn message(self) -> &'static str {
        self.0.message
    }

    /// Whether bodies of this kind can be in protobuf.
    pub(super) fn has_protobuf(self) -> bool {
        !matches!(self.0.kind, "Custom" | "CustomList" | "OwnCustom" | "OwnCustomList" | "Table")
    }

    /// The kind of a body that says this of itself where this kind was expected. None if it is unknown.
    fn resolve(self, api_version: &str, kind: &str) -> Option<Self> {
        if kind.is_empty() {
            return Some(self);
        }
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        match Self::of(group, version, kind) {
            Some(found) if self.is_own_of_cluster() && found.0.group == "meta.k8s.io" => Some(match found.0.kind {
                "PartialObjectMetadata" => Self::internal("OwnPartial"),
                "PartialObjectMetadataList" => Self::internal("OwnPartialList"),
                _ => found,
            }),
            Some(found) => Some(found),
            None => self.is_custom().then_some(self),
        }
    }
}

impl TypeMeta {
    /// The kind of a body that says this of itself.
    pub(super) fn resolve(&self, expected: Kind) -> Fallible<Kind> {
        let unsupported = || Box::new(RewriteError::Unsupported(format!("{}, {}", self.api_version, self.kind)));
        expected.resolve(&self.api_version, &self.kind).ok_or_else(unsupported)
    }
}

impl Kinds {
    fn find(&'static self, group: &str, version: &str, kind: &str) -> Option<Kind> {
        let candidates = self.by_kind.get(kind)?.iter().map(|index| &self.entries[*index]);
        candidates.clone().find(|entry| (entry.group, entry.version) == (group, version)).map(Kind)
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Kind({}/{}, {})", self.0.group, self.0.version, self.0.kind)
    }
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        self.0.message == other.0.message
    }
}

impl Eq for Kind {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_where_kubernetes_has_them() {
        let pod = Kind::of("", "v1", "Pod").unwrap();
        assert_eq!((pod.group(), pod.version(), pod.name()), ("", "v1", "Pod"));
        assert_eq!(pod.list().item(), pod);
        assert_eq!(pod.list().name(), "PodList");
        assert!(Kind::of("", "v1", "Status").is_some());
        assert!(Kind::of("apps", "v1", "DeleteOptions").is_some());
        assert!(Kind::of("meta.k8s.io", "v1beta1", "Table").is_some());
        for (group, version, kind) in
            [("apps", "v1", "Pod"), ("apps", "v1", "Status"), ("x.io", "v1", "Table"), ("zoo", "", "Custom")]
        {
            assert!(Kind::of(group, version, kind).is_none(), "{group} {kind}");
        }
        assert!(Kind::of("", "v1", "NamespaceList").unwrap().is_own_of_cluster());
        assert!(!pod.is_own_of_cluster());
        assert_eq!(Kind::custom().list().item(), Kind::custom());
    }
}
