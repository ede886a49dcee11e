//! Patches, which go upstream as patches.
//!
//! A merge patch is a part of an object and is walked as one; an apply patch is a whole object. The operations of a JSON patch are walked
//! along their paths: a path needs no change, since no rule is about a key, and a value is walked as what stands at the path.
//!
//! Invariant: after a patch the object upstream is one that could have been written whole. So what would take the tenant's label away, carry
//! a value to a place where it means something else, or depends on a neighbour that the patch does not show, is refused.

use std::borrow::Cow;

use super::json::type_of;
use super::marks::{Addition, Slot};
use super::plan::{INWARD, NodeId, OUTWARD, Plan, Rule, What};
use super::scan::{Fallible, Scan};
use super::schema::Shape;
use super::walk::{Mode, TOGETHER, Verdict, Walk, refused};
use super::{Direction, Kind, RewriteError, Unchanged, Write};
use crate::names::Names;

/// How a patch is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PatchKind {
    /// `application/json-patch+json`.
    Json,
    /// `application/merge-patch+json`.
    Merge,
    /// `application/strategic-merge-patch+json`.
    Strategic,
    /// `application/apply-patch+yaml`, in JSON or YAML. JSON comes out.
    Apply,
}

/// Appends a patch as it is upstream.
///
/// The kind is that of the object that is patched. What the patch may not change is returned, and is almost always nothing.
///
/// # Errors
///
/// See [`RewriteError`]; nothing is appended then.
pub fn patch(
    patch_kind: PatchKind,
    kind: Kind,
    names: &Names,
    input: &[u8],
    output: &mut Vec<u8>,
) -> Result<Vec<Unchanged>, RewriteError> {
    let direction = match patch_kind {
        PatchKind::Apply => Direction::Inward(Write::Create),
        _ => Direction::Inward(Write::Update),
    };
    let input = if patch_kind == PatchKind::Apply { as_json(input)? } else { Cow::Borrowed(input) };
    let mut walk = Walk::new(kind, direction, names);
    let node = kind.node(false);
    let walked = match patch_kind {
        PatchKind::Json => walk.json_patch(&input, node),
        PatchKind::Merge | PatchKind::Strategic => {
            walk.mode = if patch_kind == PatchKind::Merge { Mode::Merge } else { Mode::Strategic };
            walk.json_text(&input, walk.node(node))
        }
        PatchKind::Apply => type_of(&mut Scan::new(&input), true).and_then(|type_meta| {
            let node = type_meta.resolve(kind)?.node(false);
            walk.json_text(&input, walk.node(node))
        }),
    };
    walked.map_err(|error| *error)?;
    walk.edits.apply(&input, output);
    Ok(walk.unchanged)
}

/// An apply patch in JSON.
///
/// kube-apiserver reads it as YAML. The two agree on what is JSON in all strictness, so that is left as it is; for everything else it is this
/// reader's word that counts, as kube-apiserver gets what it read.
fn as_json(input: &[u8]) -> Result<Cow<'_, [u8]>, RewriteError> {
    if serde_json::from_slice::<serde::de::IgnoredAny>(input).is_ok() {
        return Ok(Cow::Borrowed(input));
    }
    let malformed = |error: &dyn std::fmt::Display| RewriteError::Malformed(format!("neither JSON nor YAML: {error}"));
    let text = std::str::from_utf8(input).map_err(|error| malformed(&error))?;
    let mut options = serde_saphyr::Options::default();
    options.with_snippet = false;
    let value: serde_json::Value =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| malformed(&error))?;
    serde_json::to_vec(&value).map(Cow::Owned).map_err(|error| malformed(&error))
}

/// An operation of a JSON patch.
#[derive(Default)]
struct Operation {
    op: Option<String>,
    path: Option<String>,
    from: Option<String>,
    /// Where it begins.
    value: Option<usize>,
}

/// What is at a path.
#[derive(Clone, Copy)]
enum Target<'p> {
    /// Something without rules, or nothing.
    Plain,
    Value {
        shape: Shape,
        what: What,
        addition: Option<Addition>,
        /// How deep it is in a list to which something is added.
        sealed: u8,
    },
    /// An entry of a map.
    Entry(&'static super::marks::Entries, &'p str),
}

impl<'p> Target<'p> {
    fn of(plan: &'static Plan, root: NodeId, path: &'p [Cow<'p, str>]) -> Self {
        let root = Target::Value { shape: Shape::One, what: What::Enter(root), addition: None, sealed: 0 };
        path.iter().fold(root, |target, token| target.child(plan, token))
    }

    fn child(self, plan: &'static Plan, token: &'p str) -> Self {
        let Target::Value { shape, what, addition, sealed, .. } = self else { return Target::Plain };
        let deeper = u8::from(sealed > 0 || addition == Some(Addition::Requirement));
        let beyond = if sealed > 0 { self.sealed() } else { Target::Plain };
        match (shape, what) {
            // What is in it is as it is.
            (_, What::Deny(_) | What::Withhold) => self,
            (Shape::One, What::Enter(node) | What::Json(node)) => {
                let node = plan.node(node);
                match node.by_key(token.as_bytes()) {
                    None => beyond,
                    Some((_, Rule { shape, what, addition, .. })) => {
                        Target::Value { shape: *shape, what: *what, addition: *addition, sealed: sealed + deeper }
                    }
                }
            }
            (Shape::Map, What::Entries(entries)) => Target::Entry(entries, token),
            // It may hold a namespace's name, as its neighbour says.
            (_, What::Slot(Slot::Data | Slot::StringData)) if token == "namespace" => self,
            (_, What::Slot(_)) => beyond,
            (Shape::Many | Shape::Map, what) => {
                Target::Value { shape: Shape::One, what, addition: None, sealed: sealed + deeper }
            }
            (Shape::One, _) => beyond,
        }
    }

    /// The same, deeper in.
    fn sealed(self) -> Self {
        match self {
            Target::Value { shape, what, addition, .. } => Target::Value { shape, what, addition, sealed: 2 },
            other => other,
        }
    }

    fn is_withheld(&self) -> bool {
        matches!(self, Target::Value { what: What::Withhold, .. })
    }

    /// A value that is right in one place is right in the other.
    fn means_the_same(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Target::Value { shape, what, addition: None, sealed: 0, .. },
                Target::Value { shape: other_shape, what: other_what, addition: None, sealed: 0, .. },
            ) => {
                shape == other_shape
                    && match (what, other_what) {
                        (What::Enter(own), What::Enter(other)) => own == other,
                        (What::Value(own), What::Value(other)) => own == other,
                        (What::Entries(own), What::Entries(other)) => std::ptr::eq(*own, *other),
                        (What::Domains, What::Domains) => true,
                        _ => false,
                    }
            }
            _ => self.is_plain() && other.is_plain(),
        }
    }

    /// Nothing becomes of it.
    fn is_plain(&self) -> bool {
        match self {
            Target::Plain => true,
            Target::Value { .. } => false,
            Target::Entry(entries, key) => {
                let starts = |start: &str| !start.is_empty() && key.starts_with(start);
                !starts(entries.refused)
                    && !starts(entries.hidden)
                    && entries.values.iter().all(|(name, _)| name != key)
            }
        }
    }
}

impl Walk<'_> {
    fn json_patch(&mut self, input: &[u8], root: NodeId) -> Fallible<()> {
        let mut scan = Scan::new(input);
        scan.expect(b'[', "a list of operations")?;
        let mut more = !scan.take(b']');
        let mut index = 0;
        while more {
            let operation = Operation::read(&mut scan)?;
            self.operation(input, &operation, root).map_err(|error| error.within_element(index))?;
            index += 1;
            more = scan.take(b',');
            if !more {
                scan.expect(b']', "a comma or the end of the list")?;
            }
        }
        scan.end()
    }

    fn operation(&mut self, input: &[u8], operation: &Operation, root: NodeId) -> Fallible<()> {
        let Some(path) = &operation.path else { return Err(refused("path", "it is missing")) };
        let tokens = split(path)?;
        let target = Target::of(&INWARD, root, &tokens);
        let outward_root = self.expected().node(true);
        let outward = Target::of(&OUTWARD, outward_root, &tokens);
        let at_path = |error: Box<RewriteError>| error.within(path);
        match operation.op.as_deref().unwrap_or_default() {
            op @ ("add" | "replace" | "test") => {
                if op == "test" && outward.is_withheld() {
                    return Err(refused(path, "it is not told"));
                }
                let Some(value) = operation.value else { return Err(refused("value", "it is missing")) };
                let mut scan = Scan { input, at: value };
                self.operation_value(&mut scan, op, target).map_err(at_path)
            }
            "remove" => self.operation_removal(target).map_err(at_path),
            op @ ("move" | "copy") => {
                let Some(from) = &operation.from else { return Err(refused("from", "it is missing")) };
                let from_tokens = split(from)?;
                let from_target = Target::of(&INWARD, root, &from_tokens);
                let from_outward = Target::of(&OUTWARD, outward_root, &from_tokens);
                if !target.means_the_same(&from_target) || !outward.means_the_same(&from_outward) {
                    return Err(refused(from, format!("it can't become {path}: it means something else there")));
                }
                if op == "move" {
                    self.operation_removal(from_target).map_err(|error| error.within(from))
                } else {
                    Ok(())
                }
            }
            _ => Err(refused("op", "it must be add, remove, replace, move, copy or test")),
        }
    }

    fn operation_value(&mut self, scan: &mut Scan<'_>, op: &str, target: Target<'_>) -> Fallible<()> {
        match target {
            Target::Plain => Ok(()),
            Target::Entry(entries, key) => {
                if self.entry_verdict(entries, key)? == Verdict::Remove {
                    return Err(refused(key, "it is reserved"));
                }
                match entries.values.iter().find(|(name, _)| *name == key) {
                    Some((_, entry)) => self.json_entry(scan, *entry),
                    None => Ok(()),
                }
            }
            Target::Value { sealed, .. } if sealed > 1 || (sealed == 1 && op != "add") => Err(refused("", SEALED)),
            Target::Value { what: What::Slot(slot), .. } => self.operation_slot(scan, op, slot),
            Target::Value { what: What::Deny(_), .. } if op == "test" => Ok(()),
            Target::Value { shape, what: what @ What::Deny(_), .. } => {
                // An element of a denied list, or the list.
                self.json_value(scan, shape, what, None).map(|_| ())
            }
            Target::Value { shape, what, addition, .. } => self.json_value(scan, shape, what, addition).map(|_| ()),
        }
    }

    /// A value whose meaning depends on its neighbours, which a path does not show.
    fn operation_slot(&self, scan: &mut Scan<'_>, op: &str, slot: Slot) -> Fallible<()> {
        match slot {
            Slot::Type | Slot::Data | Slot::StringData => Ok(()),
            Slot::Key => {
                let key = scan.string()?.text()?;
                match self.domain_verdict(&key)? {
                    Verdict::Keep => Ok(()),
                    Verdict::Remove => Err(refused("", TOGETHER)),
                }
            }
            Slot::Kind | Slot::Group if op == "test" => Ok(()),
            _ => Err(refused("", TOGETHER)),
        }
    }

    fn operation_removal(&self, target: Target<'_>) -> Fallible<()> {
        match target {
            Target::Plain => Ok(()),
            Target::Entry(entries, key) => self.entry_verdict(entries, key).map(|_| ()),
            Target::Value { sealed, .. } if sealed > 0 => Err(refused("", SEALED)),
            Target::Value { addition: Some(Addition::Requirement), .. } => Err(refused("", SEALED)),
            // The apiserver adds it again.
            Target::Value { addition: Some(Addition::Audience), .. } => Ok(()),
            Target::Value { addition: Some(_), .. } => {
                Err(refused("", "it can't be taken away: KubeZoo's label is there"))
            }
            Target::Value { what: What::Slot(Slot::Kind | Slot::Group | Slot::Name), .. } => Err(refused("", TOGETHER)),
            Target::Value { .. } => Ok(()),
        }
    }
}

const SEALED: &str = "KubeZoo adds to it upstream: write all of the list";

impl Operation {
    fn read(scan: &mut Scan<'_>) -> Fallible<Self> {
        let mut operation = Self::default();
        scan.expect(b'{', "an operation")?;
        let mut more = !scan.take(b'}');
        while more {
            let key = scan.key()?.text()?;
            let twice = match &*key {
                "op" => operation.op.replace(scan.string()?.text()?.into_owned()).is_some(),
                "path" => operation.path.replace(scan.string()?.text()?.into_owned()).is_some(),
                "from" => operation.from.replace(scan.string()?.text()?.into_owned()).is_some(),
                "value" => {
                    scan.peek();
                    let start = scan.at;
                    scan.skip()?;
                    operation.value.replace(start).is_some()
                }
                _ => {
                    scan.skip()?;
                    false
                }
            };
            if twice {
                return Err(refused(&key, "the field is given twice"));
            }
            more = scan.take(b',');
            if !more {
                scan.expect(b'}', "a comma or the end of the operation")?;
            }
        }
        Ok(operation)
    }
}

/// The tokens of a JSON pointer. kube-apiserver ignores what is before the first slash, so there may be nothing.
fn split(path: &str) -> Fallible<Vec<Cow<'_, str>>> {
    if path.is_empty() {
        return Ok(Vec::new());
    }
    let Some(rest) = path.strip_prefix('/') else { return Err(refused(path, "a path begins with a slash")) };
    Ok(rest.split('/').map(decode).collect())
}

/// `~1` is a slash, `~0` a tilde. What comes out is not read again.
fn decode(token: &str) -> Cow<'_, str> {
    if !token.contains('~') {
        return Cow::Borrowed(token);
    }
    let mut decoded = String::with_capacity(token.len());
    let mut rest = token;
    while let Some((before, after)) = rest.split_once('~') {
        decoded.push_str(before);
        let (character, behind) = match after.as_bytes().first() {
            Some(b'1') => ('/', &after[1..]),
            Some(b'0') => ('~', &after[1..]),
            _ => ('~', after),
        };
        decoded.push(character);
        rest = behind;
    }
    decoded.push_str(rest);
    Cow::Owned(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_decoded_once() {
        for (token, decoded) in [("a", "a"), ("a~1b", "a/b"), ("~01", "~1"), ("~", "~"), ("~2~0", "~2~")] {
            assert_eq!(decode(token), decoded, "{token}");
        }
        assert_eq!(split("/a//b~1").unwrap(), ["a", "", "b/"]);
        assert!(split("x/metadata").is_err());
    }
}
