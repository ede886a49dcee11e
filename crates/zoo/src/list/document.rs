//! Lists as documents: what is in one, and one made of several.
//!
//! Invariant: items stay as they are, byte for byte, and in their order. The whole never has more items than its parts.

use std::ops::Range;

use bytes::Bytes;

use crate::proto;
use crate::scan;

/// Why a list can't be read.
#[derive(Debug, thiserror::Error)]
#[error("it is no list: {0}")]
pub(crate) struct Malformed(pub(crate) &'static str);

/// What a list says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) resource_version: String,
    /// Where the next page begins; empty at the end.
    pub(crate) next: String,
    /// How many items follow this page.
    pub(crate) remaining: Option<i64>,
}

/// A list, or a table, whose rows are its items.
pub(crate) enum List {
    Json {
        document: Bytes,
        meta: Range<usize>,
        /// What is between the brackets.
        items: Range<usize>,
        count: usize,
    },
    Protobuf {
        /// The fields of the envelope but `raw`.
        envelope: Vec<u8>,
        /// The items with their tags and lengths.
        items: Bytes,
        count: usize,
        meta: Meta,
    },
}

impl List {
    /// Reads a list in JSON.
    pub(crate) fn from_json(document: Bytes) -> Result<Self, Malformed> {
        let (mut meta, mut items) = (None, None);
        for (name, value) in scan::fields(&document, 0) {
            match name {
                b"metadata" => meta = Some(value),
                b"items" | b"rows" => items = Some(value),
                _ => {}
            }
        }
        let meta = meta.ok_or(Malformed("it has no metadata"))?;
        let items = items.ok_or(Malformed("it has no items"))?;
        let is_array = document[items.clone()].starts_with(b"[") && items.len() >= 2;
        let (inner, count) = if is_array {
            (items.start + 1..items.end - 1, scan::elements(&document, items.start).count())
        } else {
            // Go writes no list as null where it has none.
            (items.clone(), 0)
        };
        Ok(Self::Json { meta, items: inner, count, document })
    }

    /// Reads a list in protobuf.
    pub(crate) fn from_protobuf(document: &Bytes) -> Result<Self, Malformed> {
        const BROKEN: Malformed = Malformed("its protobuf is broken");
        let body =
            document.strip_prefix(proto::MAGIC).ok_or(Malformed("it does not begin as Kubernetes' protobuf does"))?;
        let (mut envelope, mut raw) = (Vec::new(), &[][..]);
        for field in proto::fields(body) {
            let field = field.ok_or(BROKEN)?;
            match field.number {
                2 => raw = field.bytes().ok_or(BROKEN)?,
                _ => envelope.extend_from_slice(field.whole),
            }
        }
        let (mut items, mut count, mut meta) = (Vec::with_capacity(raw.len()), 0, Meta::default());
        for field in proto::fields(raw) {
            let field = field.ok_or(BROKEN)?;
            match field.number {
                1 => meta = Self::protobuf_meta(field.bytes().ok_or(BROKEN)?).ok_or(BROKEN)?,
                _ => {
                    count += 1;
                    items.extend_from_slice(field.whole);
                }
            }
        }
        Ok(Self::Protobuf { envelope, items: items.into(), count, meta })
    }

    fn protobuf_meta(bytes: &[u8]) -> Option<Meta> {
        let mut meta = Meta::default();
        for field in proto::fields(bytes) {
            let field = field?;
            match field.number {
                2 => meta.resource_version = String::from_utf8(field.bytes()?.to_vec()).ok()?,
                3 => meta.next = String::from_utf8(field.bytes()?.to_vec()).ok()?,
                4 => meta.remaining = Some(field.varint()?.cast_signed()),
                _ => {}
            }
        }
        Some(meta)
    }

    /// What it says of itself.
    pub(crate) fn meta(&self) -> Meta {
        match self {
            Self::Json { document, meta, .. } => {
                let json = &document[meta.clone()];
                let text = |name| scan::text(json, &[name]).unwrap_or_default().to_owned();
                let remaining = scan::find(json, &["remainingItemCount"])
                    .and_then(|range| std::str::from_utf8(&json[range]).ok()?.parse().ok());
                Meta { resource_version: text("resourceVersion"), next: text("continue"), remaining }
            }
            Self::Protobuf { meta, .. } => meta.clone(),
        }
    }

    /// Some of its items, in a list with no metadata: so many of them behind so many.
    pub(crate) fn page(&self, skip: usize, take: usize) -> Self {
        match self {
            Self::Json { document, meta, items, .. } => {
                let mut ranges = scan::elements(document, items.start.saturating_sub(1)).skip(skip).take(take);
                let first = ranges.next();
                let (from, to, taken) = match first {
                    Some(first) => {
                        let rest = ranges.fold((first.end, 1), |(_, taken), range| (range.end, taken + 1));
                        (first.start, rest.0, rest.1)
                    }
                    None => (items.start, items.start, 0),
                };
                // The items that are left out are cut out, so that the document around them stays.
                let mut page = Vec::with_capacity(document.len());
                page.extend_from_slice(&document[..items.start]);
                page.extend_from_slice(&document[from..to]);
                page.extend_from_slice(&document[items.end..]);
                let cut = items.len() - (to - from);
                let meta = if meta.start > items.start { meta.start - cut..meta.end - cut } else { meta.clone() };
                Self::Json { document: page.into(), meta, items: items.start..items.start + (to - from), count: taken }
            }
            Self::Protobuf { envelope, items, meta, .. } => {
                let fields = proto::fields(items).flatten().skip(skip).take(take);
                let (mut page, mut count) = (Vec::new(), 0);
                for field in fields {
                    page.extend_from_slice(field.whole);
                    count += 1;
                }
                Self::Protobuf { envelope: envelope.clone(), items: page.into(), count, meta: meta.clone() }
            }
        }
    }

    /// Each item: an object without its type.
    pub(crate) fn objects(&self) -> Vec<Bytes> {
        match self {
            Self::Json { document, items, count: 1.., .. } => {
                scan::elements(document, items.start - 1).map(|range| document.slice(range)).collect()
            }
            Self::Json { .. } => Vec::new(),
            Self::Protobuf { items, .. } => {
                proto::fields(items).flatten().filter_map(|field| Some(items.slice_ref(field.bytes()?))).collect()
            }
        }
    }

    /// How many items it has.
    pub(crate) fn count(&self) -> usize {
        match self {
            Self::Json { count, .. } | Self::Protobuf { count, .. } => *count,
        }
    }

    /// The document again, with this said of itself, and with the items of the lists of the same kind that follow.
    pub(crate) fn write(&self, meta: &Meta, more: &[Self]) -> Bytes {
        match self {
            Self::Json { document, meta: old, items, count } => {
                let length = document.len() + more.iter().map(Self::bytes).sum::<usize>() + meta.next.len() + 128;
                let mut out = Vec::with_capacity(length);
                let total = count + more.iter().map(Self::count).sum::<usize>();
                let new = meta.to_json();
                // The array is a null where there was no item; it gets its brackets.
                let (from, to) = if document.get(items.start.wrapping_sub(1)) == Some(&b'[') {
                    (items.start - 1, items.end + 1)
                } else {
                    (items.start, items.end)
                };
                let array = |out: &mut Vec<u8>| {
                    if total == 0 {
                        return out.extend_from_slice(&document[from..to]);
                    }
                    out.push(b'[');
                    let mut is_first = true;
                    for list in std::iter::once(self).chain(more) {
                        let Self::Json { document, items, count: 1.., .. } = list else { continue };
                        if !is_first {
                            out.push(b',');
                        }
                        is_first = false;
                        out.extend_from_slice(&document[items.clone()]);
                    }
                    out.push(b']');
                };
                if old.start < from {
                    out.extend_from_slice(&document[..old.start]);
                    out.extend_from_slice(new.as_bytes());
                    out.extend_from_slice(&document[old.end..from]);
                    array(&mut out);
                    out.extend_from_slice(&document[to..]);
                } else {
                    out.extend_from_slice(&document[..from]);
                    array(&mut out);
                    out.extend_from_slice(&document[to..old.start]);
                    out.extend_from_slice(new.as_bytes());
                    out.extend_from_slice(&document[old.end..]);
                }
                out.into()
            }
            Self::Protobuf { envelope, items, .. } => {
                let mut raw = Vec::with_capacity(self.bytes() + more.iter().map(Self::bytes).sum::<usize>() + 128);
                proto::put_bytes(&mut raw, 1, &meta.to_protobuf());
                raw.extend_from_slice(items);
                for list in more {
                    let Self::Protobuf { items, .. } = list else { continue };
                    raw.extend_from_slice(items);
                }
                let mut out = Vec::with_capacity(raw.len() + envelope.len() + 16);
                out.extend_from_slice(proto::MAGIC);
                // In the order of the numbers, as Go writes them: the type, the object, its encoding.
                let split = proto::fields(envelope).flatten().next().filter(|field| field.number == 1);
                let (head, tail) = envelope.split_at(split.map_or(0, |field| field.whole.len()));
                out.extend_from_slice(head);
                proto::put_bytes(&mut out, 2, &raw);
                out.extend_from_slice(tail);
                out.into()
            }
        }
    }

    /// The length of its items.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Json { items, .. } => items.len() + 1,
            Self::Protobuf { items, .. } => items.len(),
        }
    }
}

/// Whether a list may say that there is more of it, without reading all of it: it says so at its beginning.
pub(crate) fn has_next(document: &[u8]) -> bool {
    match document.strip_prefix(proto::MAGIC) {
        Some(envelope) => {
            let meta = proto::find(envelope, 2).and_then(|raw| proto::find(raw, 1)).unwrap_or_default();
            proto::find(meta, 3).is_some_and(|next| !next.is_empty())
        }
        None => {
            let meta = scan::find(document, &["metadata"]).map(|range| &document[range]).unwrap_or_default();
            scan::find(meta, &["continue"]).is_some()
        }
    }
}

impl Meta {
    fn to_json(&self) -> String {
        let mut json = format!("{{\"resourceVersion\":{}", serde_json::Value::from(self.resource_version.as_str()));
        if !self.next.is_empty() {
            json += &format!(",\"continue\":{}", serde_json::Value::from(self.next.as_str()));
        }
        if let Some(remaining) = self.remaining {
            json += &format!(",\"remainingItemCount\":{remaining}");
        }
        json + "}"
    }

    fn to_protobuf(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.next.len());
        // An empty selfLink, as Go writes it.
        proto::put_bytes(&mut out, 1, b"");
        proto::put_bytes(&mut out, 2, self.resource_version.as_bytes());
        proto::put_bytes(&mut out, 3, self.next.as_bytes());
        if let Some(remaining) = self.remaining {
            proto::put_varint(&mut out, 4, remaining.cast_unsigned());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> List {
        List::from_json(Bytes::copy_from_slice(text.as_bytes())).expect("a list")
    }

    #[test]
    fn lists_in_json_are_joined_with_new_metadata() {
        let first = json(
            r#"{"kind":"PodList","metadata":{"resourceVersion":"7","continue":"abc","remainingItemCount":3},"items":[{"a":1},{"b":[2]}]}"#,
        );
        assert_eq!(first.meta(), Meta { resource_version: "7".into(), next: "abc".into(), remaining: Some(3) });
        assert_eq!(first.count(), 2);
        let empty = json(r#"{"metadata":{"resourceVersion":"7"},"items":[]}"#);
        let none = json(r#"{"metadata":{"resourceVersion":"7"},"rows":null}"#);
        let last = json(r#"{"metadata":{"resourceVersion":"7"},"items":[ {"c":3} ]}"#);
        let meta = Meta { resource_version: "8".into(), ..Meta::default() };
        assert_eq!(
            first.write(&meta, &[empty, none, last]),
            r#"{"kind":"PodList","metadata":{"resourceVersion":"8"},"items":[{"a":1},{"b":[2]}, {"c":3} ]}"#
        );
        let table = json(r#"{"kind":"Table","metadata":{},"columnDefinitions":[{}],"rows":[]}"#);
        assert_eq!(
            table.write(&meta, &[json(r#"{"metadata":{},"rows":[{"x":1}]}"#)]),
            r#"{"kind":"Table","metadata":{"resourceVersion":"8"},"columnDefinitions":[{}],"rows":[{"x":1}]}"#
        );
        let page = first.page(1, 5);
        assert_eq!(
            page.write(&meta, &[]),
            r#"{"kind":"PodList","metadata":{"resourceVersion":"8"},"items":[{"b":[2]}]}"#
        );
        assert_eq!((page.count(), first.page(2, 1).count()), (1, 0));
        assert_eq!(first.objects(), [r#"{"a":1}"#, r#"{"b":[2]}"#]);
        let nothing = json(r#"{"rows":null,"metadata":{}}"#);
        assert_eq!(nothing.write(&meta, &[]), r#"{"rows":null,"metadata":{"resourceVersion":"8"}}"#);
    }

    #[test]
    fn lists_in_protobuf_are_joined_with_new_metadata() {
        let list = |items: &[&str], next: &str| {
            let meta = Meta { resource_version: "7".into(), next: next.into(), remaining: None };
            let mut raw = Vec::new();
            proto::put_bytes(&mut raw, 1, &meta.to_protobuf());
            for item in items {
                proto::put_bytes(&mut raw, 2, item.as_bytes());
            }
            let mut document = proto::MAGIC.to_vec();
            proto::put_bytes(&mut document, 1, b"type");
            proto::put_bytes(&mut document, 2, &raw);
            proto::put_bytes(&mut document, 3, b"");
            proto::put_bytes(&mut document, 4, b"");
            Bytes::from(document)
        };
        let first = List::from_protobuf(&list(&["a", "b"], "")).expect("a list");
        let second = List::from_protobuf(&list(&["c"], "more")).expect("a list");
        assert_eq!((first.page(1, 1).objects(), first.objects().len()), (vec![Bytes::from_static(b"b")], 2));
        assert_eq!((first.count(), second.meta().next.as_str()), (2, "more"));
        assert_eq!(first.write(&second.meta(), &[second]), list(&["a", "b", "c"], "more"));
        assert!(List::from_protobuf(&Bytes::from_static(b"k8s\0\x12\x05a")).is_err());
    }
}
