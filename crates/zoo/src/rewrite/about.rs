//! What an event is about: perhaps an object that is in no namespace.
//!
//! An event about such an object says no namespace, and kube-apiserver takes it in its own `default` alone. So upstream the event says that the
//! object is in the tenant's `default`, and a mark says that it is not: the tenant's prefix before the `fieldPath`. What an event is about is
//! atomic in managed fields, so nothing of it is told there.
//!
//! Invariant: a mark that goes out is one of ours, as tenants do not know the prefix; and it does not go out.

use super::plan::Node;
use super::scan::{Fallible, Scan};
use super::walk::{Span, Walk};
use super::wire::{Fields, delimited, text};

/// An object in no namespace, of which an event tells no field.
pub(super) const UNPLACED: &str = "core.v1.ObjectReference@unplaced";
/// The same, of which an event tells a field.
pub(super) const UNPLACED_FIELD: &str = "core.v1.ObjectReference@unplacedField";
/// Where the event of such an object is.
const NAMESPACE: &str = "default";
/// The numbers of the two fields on the wire.
const NAMESPACE_NUMBER: u32 = 2;
const FIELD_PATH_NUMBER: u32 = 7;

/// The two fields, as JSON has them.
#[derive(Default)]
struct Members {
    /// Where the values of `namespace` are. Some client may write it twice.
    namespaces: Vec<(usize, usize)>,
    /// Where the values of `fieldPath` are, and where their texts begin; none of a `null`.
    field_paths: Vec<(usize, usize, Option<usize>)>,
    is_placed: bool,
    field_path: String,
    /// Behind the bracket that opens the object.
    open: usize,
    is_empty: bool,
}

impl Members {
    fn read(mut scan: Scan<'_>) -> Fallible<Self> {
        scan.expect(b'{', "an object")?;
        let mut members = Self { open: scan.at, ..Self::default() };
        let mut more = !scan.take(b'}');
        members.is_empty = !more;
        while more {
            let key = scan.key()?.text()?;
            scan.peek();
            let start = scan.at;
            match &*key {
                "namespace" | "fieldPath" if scan.take_null() => match &*key {
                    "namespace" => members.namespaces.push((start, scan.at)),
                    _ => members.field_paths.push((start, scan.at, None)),
                },
                "namespace" => {
                    members.is_placed |= !scan.string()?.text()?.is_empty();
                    members.namespaces.push((start, scan.at));
                }
                "fieldPath" => {
                    let raw = scan.string()?;
                    members.field_path = raw.text()?.into_owned();
                    members.field_paths.push((start, scan.at, Some(raw.start)));
                }
                _ => scan.skip()?,
            }
            more = scan.take(b',');
            if !more {
                scan.expect(b'}', "a comma or the end of the object")?;
            }
        }
        Ok(members)
    }
}

impl Walk<'_> {
    /// The rules for what an event is about, which is the object here. Inward, what is missing is added.
    pub(super) fn json_about(&mut self, scan: &Scan<'_>, node: &'static Node) -> Fallible<&'static Node> {
        // What a part says of it depends on the rest, which stays.
        if self.is_merged() {
            return Ok(node);
        }
        let members = Members::read(scan.clone())?;
        if self.outward() {
            return Ok(self.of_about(&members.field_path, node));
        }
        if members.is_placed {
            return Ok(node);
        }
        let namespace = format!("\"{}\"", self.names.inward(NAMESPACE));
        let mark = format!("\"{}\"", self.names.prefix());
        for (start, end) in &members.namespaces {
            self.edits.replace(*start, *end, namespace.as_bytes());
        }
        for (start, end, text) in &members.field_paths {
            match text {
                Some(text) => self.edits.prefix(*text),
                None => self.edits.replace(*start, *end, mark.as_bytes()),
            }
        }
        let mut missing = Vec::new();
        if members.namespaces.is_empty() {
            missing.push(format!("\"namespace\":{namespace}"));
        }
        if members.field_paths.is_empty() {
            missing.push(format!("\"fieldPath\":{mark}"));
        }
        if !missing.is_empty() {
            let comma = if members.is_empty { "" } else { "," };
            let missing = format!("{}{comma}", missing.join(","));
            self.edits.replace(members.open, members.open, missing.as_bytes());
        }
        Ok(node)
    }

    /// The same on the wire, and by how much longer it becomes.
    pub(super) fn wire_about(
        &mut self,
        input: &[u8],
        span: Span,
        node: &'static Node,
    ) -> Fallible<(&'static Node, i64)> {
        let (mut namespace, mut field_path) = ("", "");
        let mut spans: Vec<Span> = Vec::new();
        let mut fields = Fields::of(input, span);
        while let Some(found) = fields.next()? {
            match found.number {
                NAMESPACE_NUMBER => namespace = text(input, found.span)?,
                FIELD_PATH_NUMBER => field_path = text(input, found.span)?,
                _ => continue,
            }
            spans.push(found.span);
        }
        if self.outward() {
            return Ok((self.of_about(field_path, node), 0));
        }
        if !namespace.is_empty() {
            return Ok((node, 0));
        }
        let mut growth = 0;
        for Span { tag, end, .. } in spans {
            self.edits.remove(tag, end);
            growth -= (end - tag) as i64;
        }
        let namespace = delimited(NAMESPACE_NUMBER, self.names.inward(NAMESPACE).as_bytes());
        let field_path = delimited(FIELD_PATH_NUMBER, self.names.inward(field_path).as_bytes());
        let added = [namespace, field_path].concat();
        self.edits.replace(span.end, span.end, &added);
        Ok((node, growth + added.len() as i64))
    }

    fn of_about(&self, field_path: &str, node: &'static Node) -> &'static Node {
        let variant = match self.names.outward(field_path) {
            None => return node,
            Some("") => UNPLACED,
            Some(_) => UNPLACED_FIELD,
        };
        self.node(self.plan.find(variant).expect("every plan has it; there is a test"))
    }
}
