//! What the walks through JSON and through protobuf have in common: what is decided, but not how it is read.
//!
//! Invariant: a decision doesn't depend on the encoding, nor on the order of fields.

use std::borrow::Cow;

use super::edits::Edits;
use super::kind::Kind;
use super::marks::{
    Addition, Deny, Entries, Entry, NAMESPACE_LABEL, RESERVED, Slot, TENANT_LABEL, TOKEN_DATA, TOKEN_SECRET,
    TOKEN_STRING_DATA, When, Whole, is_own_kind,
};
use super::plan::{INWARD, NodeId, OUTWARD, Plan, What};
use super::scan::{Fallible, Scan, escape};
use super::schema::Shape;
use super::value::{Change, Op};
use super::{Direction, Refusal, RewriteError, Unchanged, Write, pods};
use crate::names::Names;
use crate::pods::audience_inward;

/// How deep objects in strings in objects may be. Deeper ones are text.
pub(super) const EMBEDDED_MAX: u8 = 3;
/// How deep objects in objects may be. A list in an event of a watch is two.
const OBJECTS_MAX: u8 = 8;

/// One walk through a body.
pub(super) struct Walk<'n> {
    pub(super) plan: &'static Plan,
    pub(super) names: &'n Names,
    pub(super) edits: Edits<'n>,
    /// Fields of the messages that are being walked, innermost last.
    pub(super) held: Vec<Held>,
    pub(super) unchanged: Vec<Unchanged>,
    write: Write,
    /// What an object is that does not say it.
    kind: Kind,
    embedded: u8,
    /// Objects around this one.
    objects: u8,
    pub(super) mode: Mode,
    /// Arrays around what is being walked.
    pub(super) arrays: usize,
}

/// How much of an object a body says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    /// All of it.
    Whole,
    /// What of it is to be changed. Arrays are whole.
    Merge,
    /// The same, with directives. Arrays may be merged as well, but the elements to which something is added are whole.
    Strategic,
}

/// A field that is looked at when all of its message is known.
#[derive(Clone, Copy)]
pub(super) struct Held {
    pub(super) slot: Slot,
    pub(super) field: Span,
}

/// Where a field is. JSON has but a start.
#[derive(Clone, Copy, Default)]
pub(super) struct Span {
    pub(super) tag: usize,
    pub(super) length: usize,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// Whether a value stays where it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Keep,
    Remove,
}

/// What several fields of a message say together.
pub(super) enum Decision {
    Keep,
    Remove,
    /// The fields in these slots are so.
    Revisit(&'static [(Slot, Shape, What)]),
}

/// Why a part of a decision is refused without the other.
pub(super) const TOGETHER: &str = "the kind of something, its group and its name can be changed only together";

const NAME: &[(Slot, Shape, What)] = &[(Slot::Name, Shape::One, What::Value(Op::Name))];
const USER: &[(Slot, Shape, What)] = &[(Slot::Name, Shape::One, What::Value(Op::User))];
const GROUP: &[(Slot, Shape, What)] = &[(Slot::Name, Shape::One, What::Value(Op::Group))];
const VALUES: &[(Slot, Shape, What)] = &[(Slot::Values, Shape::Many, What::Value(Op::Name))];
const TOKEN: &[(Slot, Shape, What)] = &[
    (Slot::Data, Shape::Map, What::Entries(&TOKEN_DATA)),
    (Slot::StringData, Shape::Map, What::Entries(&TOKEN_STRING_DATA)),
];

impl<'n> Walk<'n> {
    pub(super) fn new(kind: Kind, direction: Direction, names: &'n Names) -> Self {
        let (plan, write): (&'static Plan, _) = match direction {
            Direction::Inward(write) => (&INWARD, write),
            Direction::Outward => (&OUTWARD, Write::Create),
        };
        Self {
            plan,
            names,
            edits: Edits::new(names.prefix()),
            held: Vec::new(),
            unchanged: Vec::new(),
            write,
            kind: kind.item(),
            embedded: 0,
            objects: 0,
            mode: Mode::Whole,
            arrays: 0,
        }
    }

    pub(super) fn outward(&self) -> bool {
        self.plan.outward
    }

    /// What becomes of a string.
    pub(super) fn change(&self, op: Op, text: &str) -> Fallible<Change> {
        let of_pods = pods::change(op, self.outward(), self.is_of_pod(), self.names, text)?;
        Ok(of_pods.unwrap_or_else(|| op.change(self.outward(), self.names, text)))
    }

    /// What is being walked is a pod, or what is to be changed of one: nothing that merely describes pods.
    fn is_of_pod(&self) -> bool {
        self.embedded == 0 && self.kind.message() == "core.v1.Pod"
    }

    /// Whether something is to be added where it is not.
    pub(super) fn has_to_add(&self, addition: Addition) -> bool {
        !self.outward() && (addition != Addition::Audience || self.is_of_pod())
    }

    /// What is being walked is surely merged into what there is.
    pub(super) fn is_partial(&self) -> bool {
        self.mode != Mode::Whole && self.arrays == 0
    }

    /// What is being walked may be merged into what there is.
    pub(super) fn is_merged(&self) -> bool {
        self.is_partial() || self.mode == Mode::Strategic
    }

    /// What an object inside another is if it does not say it.
    pub(super) fn expected(&self) -> Kind {
        self.kind
    }

    /// Walks through an object inside another.
    pub(super) fn inner_object<T>(&mut self, inside: impl FnOnce(&mut Self) -> Fallible<T>) -> Fallible<T> {
        if self.objects == OBJECTS_MAX {
            return Err(Box::new(RewriteError::Malformed("objects in objects in too many objects".to_owned())));
        }
        self.objects += 1;
        let result = inside(self);
        self.objects -= 1;
        result
    }

    /// A name and what it is a name of, of which only one is merged into what there is.
    pub(super) fn is_half_merged(&self, held: &[Held], read: impl Fn(Slot) -> Fallible<bool>) -> Fallible<bool> {
        let together = |held: &Held| matches!(held.slot, Slot::Kind | Slot::Group | Slot::Name);
        if !self.is_merged() || !held.iter().any(together) {
            return Ok(false);
        }
        Ok(!(read(Slot::Kind)? && read(Slot::Name)?))
    }

    /// What the fields of a message say together.
    pub(super) fn decide<'t>(
        &self,
        whole: Whole,
        read: impl Fn(Slot) -> Fallible<Option<Cow<'t, str>>>,
    ) -> Fallible<Decision> {
        let text = |slot| read(slot).map(Option::unwrap_or_default);
        Ok(match whole {
            Whole::Reference { .. } | Whole::About | Whole::Owner | Whole::Details => {
                let kind = text(Slot::Kind)?;
                let group = read(Slot::Group)?;
                let group = group.as_deref().filter(|group| !group.is_empty());
                let group = match whole {
                    Whole::Reference { versioned: true } | Whole::About | Whole::Owner => {
                        group.map(|version| version.split_once('/').map_or("", |(group, _)| group))
                    }
                    _ => group,
                };
                let is_role = group == Some("rbac.authorization.k8s.io");
                if whole == Whole::Owner && is_role && !self.outward() {
                    return Err(refused("kind", "roles and bindings can't own other objects yet"));
                }
                if !is_own_kind(group, &kind) {
                    return Ok(Decision::Keep);
                }
                // The group that is there may say that it is another kind.
                if self.is_merged() && read(Slot::Group)?.is_none() {
                    return Err(refused("kind", TOGETHER));
                }
                Decision::Revisit(NAME)
            }
            Whole::Subject | Whole::RoleRef => match &*text(Slot::Kind)? {
                "User" => Decision::Revisit(USER),
                "Group" => Decision::Revisit(GROUP),
                "ClusterRole" => Decision::Revisit(NAME),
                _ => Decision::Keep,
            },
            Whole::Nothing => Decision::Keep,
            Whole::Requirement { of_namespaces } => {
                let key = text(Slot::Key)?;
                if key.starts_with(RESERVED) {
                    if self.outward() {
                        return Ok(if of_namespaces && key == TENANT_LABEL {
                            Decision::Remove
                        } else {
                            Decision::Keep
                        });
                    }
                    return Err(refused("key", reserved(&key)));
                }
                if of_namespaces && key == NAMESPACE_LABEL { Decision::Revisit(VALUES) } else { Decision::Keep }
            }
            Whole::Secret => {
                if text(Slot::Type)? == TOKEN_SECRET {
                    // The host's controllers would fill it with a token that is good in the host, for ever.
                    if !self.outward() && self.write == Write::Create && self.embedded == 0 {
                        return Err(refused("type", "tokens are got by TokenRequest, as `kubectl create token` does"));
                    }
                    Decision::Revisit(TOKEN)
                } else {
                    Decision::Keep
                }
            }
        })
    }

    /// A field that was written though it may not be.
    pub(super) fn deny(&mut self, deny: Deny, value: impl FnOnce() -> Fallible<String>) -> Fallible<()> {
        match (deny.when, self.write) {
            // The object around it has the field too, and says more of it.
            _ if self.embedded > 0 => Ok(()),
            (When::Creating, Write::Update) => Ok(()),
            (When::Changing(field), Write::Update) => {
                self.unchanged.push(Unchanged { field, value: value()? });
                Ok(())
            }
            _ => Err(refused("", deny.reason)),
        }
    }

    /// Whether an entry of a map goes, by its key.
    pub(super) fn entry_verdict(&self, entries: &Entries, key: &str) -> Fallible<Verdict> {
        let starts = |start: &str| !start.is_empty() && key.starts_with(start);
        if self.outward() {
            return Ok(if starts(entries.hidden) { Verdict::Remove } else { Verdict::Keep });
        }
        if starts(entries.refused) { Err(refused(key, reserved(key))) } else { Ok(Verdict::Keep) }
    }

    /// Whether a name with a domain goes.
    pub(super) fn domain_verdict(&self, name: &str) -> Fallible<Verdict> {
        match (name.starts_with(RESERVED), self.outward()) {
            (false, _) => Ok(Verdict::Keep),
            (true, true) => Ok(Verdict::Remove),
            (true, false) => Err(refused("", reserved(name))),
        }
    }

    /// What becomes of the text of an entry; none if it stays.
    pub(super) fn entry_changed(&self, entry: Entry, text: &str) -> Fallible<Option<String>> {
        match entry {
            Entry::Value(op) => Ok(op.changed(self.outward(), self.names, text)),
            Entry::Base64(op) => Ok(op.changed_base64(self.outward(), self.names, text)),
            Entry::Object => self.embedded(text, |walk, scan| walk.json_dynamic(scan)),
            Entry::List(message) => {
                let node = self.plan.find(message).expect("a list's message is in both plans; there is a test");
                self.embedded(text, |walk, scan| walk.json_array(scan, What::Enter(node), None))
            }
        }
    }

    /// What becomes of a text of JSON. One that isn't, or of an unknown kind, is text.
    fn embedded(
        &self,
        text: &str,
        walk_through: impl FnOnce(&mut Walk<'n>, &mut Scan<'_>) -> Fallible<Verdict>,
    ) -> Fallible<Option<String>> {
        let as_text = || Op::Text.changed(self.outward(), self.names, text);
        if self.embedded == EMBEDDED_MAX {
            return Ok(as_text());
        }
        let mut walk = Walk {
            plan: self.plan,
            names: self.names,
            edits: Edits::new(self.names.prefix()),
            held: Vec::new(),
            unchanged: Vec::new(),
            write: self.write,
            kind: self.kind,
            embedded: self.embedded + 1,
            objects: 0,
            mode: Mode::Whole,
            arrays: 0,
        };
        let mut scan = Scan::new(text.as_bytes());
        match walk_through(&mut walk, &mut scan).and_then(|_| scan.end()) {
            Ok(()) if walk.edits.is_empty() => Ok(None),
            Ok(()) => {
                let mut output = Vec::new();
                walk.edits.apply(text.as_bytes(), &mut output);
                Ok(Some(String::from_utf8(output).expect("texts with other texts in them")))
            }
            Err(error) if matches!(*error, RewriteError::Refused(_)) => Err(error),
            Err(_) => Ok(as_text()),
        }
    }

    /// The rules of a message.
    pub(super) fn node(&self, id: NodeId) -> &'static super::plan::Node {
        self.plan.node(id)
    }

    /// JSON of an element or entry that is added.
    pub(super) fn addition_json(&self, addition: Addition) -> Vec<u8> {
        let mut json = Vec::new();
        let mut put = |text: &str| json.extend_from_slice(text.as_bytes());
        match addition {
            Addition::Label | Addition::Metadata => {
                put("\"");
                put(TENANT_LABEL);
                put("\":\"");
            }
            Addition::Audience => put("\""),
            Addition::Requirement => {
                put("{\"key\":\"");
                put(TENANT_LABEL);
                put("\",\"operator\":\"In\",\"values\":[\"");
            }
        }
        let (added, end): (&str, &[u8]) = match addition {
            Addition::Audience => (&audience_inward(self.names.uid(), ""), b"\""),
            Addition::Label | Addition::Metadata => (self.names.uid(), b"\""),
            Addition::Requirement => (self.names.uid(), b"\"]}"),
        };
        escape(added, true, &mut json);
        json.extend_from_slice(end);
        json
    }

    /// JSON of the value of a field that is added.
    pub(super) fn addition_value_json(&self, addition: Addition) -> Vec<u8> {
        let (before, after): (&[u8], &[u8]) = match addition {
            Addition::Label => (b"{", b"}"),
            Addition::Requirement => (b"[", b"]"),
            Addition::Metadata => (b"{\"labels\":{", b"}}"),
            Addition::Audience => (b"", b""),
        };
        [before, &self.addition_json(addition), after].concat()
    }
}

fn reserved(name: &str) -> String {
    format!("{name:?}: names that begin with {RESERVED} are reserved")
}

/// A refusal of a field.
pub(super) fn refused(field: &str, reason: impl Into<Cow<'static, str>>) -> Box<RewriteError> {
    Box::new(RewriteError::Refused(Refusal { field: field.to_owned(), reason: reason.into() }))
}

impl RewriteError {
    /// The same error, of a field of this one.
    pub(super) fn within(mut self: Box<Self>, parent: &str) -> Box<Self> {
        if let Self::Refused(Refusal { field, .. }) | Self::Foreign(field) = &mut *self {
            let dot = if field.is_empty() || field.starts_with('[') || parent.is_empty() { "" } else { "." };
            *field = format!("{parent}{dot}{field}");
        }
        self
    }

    /// The same error, of an element.
    pub(super) fn within_element(self: Box<Self>, index: usize) -> Box<Self> {
        self.within(&format!("[{index}]"))
    }
}
