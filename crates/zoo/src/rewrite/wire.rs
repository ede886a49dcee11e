//! The walk through protobuf.
//!
//! A field is read as gogo's decoders in kube-apiserver read it, or not at all: what they would take in two ways is malformed here.
//!
//! Invariant: what isn't changed stays byte for byte, but for the lengths around what is.

use super::RewriteError;
use super::TypeMeta;
use super::edits::{put_varint, varint_length};
use super::marks::{Addition, Entries, Entry, TENANT_LABEL, Whole};
use super::plan::{Node, Rule, What};
use super::scan::{Fallible, Scan};
use super::schema::Shape;
use super::value::{Change, Op};
use super::walk::{Decision, Held, Span, Verdict, Walk, refused};
use crate::names::PREFIX_LENGTH;
use crate::pods::audience_inward;

/// What every body in protobuf begins with.
pub(super) const MAGIC: &[u8] = b"k8s\0";

/// A place in a message.
#[derive(Clone)]
pub(super) struct Fields<'a> {
    input: &'a [u8],
    at: usize,
    end: usize,
}

/// A field: its number and where it is.
#[derive(Clone, Copy)]
pub(super) struct Found {
    pub(super) number: u32,
    /// It has a length: a text, bytes, a message.
    pub(super) delimited: bool,
    pub(super) span: Span,
}

/// What walking through something gave: by how much longer it becomes.
type Walked = Fallible<(i64, Verdict)>;

const KEPT: (i64, Verdict) = (0, Verdict::Keep);

pub(super) fn malformed<T>(what: &str, at: usize) -> Fallible<T> {
    Err(Box::new(RewriteError::Malformed(format!("{what} at byte {at} of the protobuf body"))))
}

impl<'a> Fields<'a> {
    pub(super) fn of(input: &'a [u8], span: Span) -> Self {
        Self { input, at: span.start, end: span.end }
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.at >= self.end
    }

    pub(super) fn varint(&mut self) -> Fallible<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            if self.at >= self.end {
                return malformed("a number without an end", self.at);
            }
            let byte = self.input[self.at];
            self.at += 1;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return malformed("a number of more than 64 bits", self.at);
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        malformed("a number of more than 64 bits", self.at)
    }

    pub(super) fn next(&mut self) -> Fallible<Option<Found>> {
        if self.at >= self.end {
            return Ok(None);
        }
        let tag = self.at;
        let Ok(key) = u32::try_from(self.varint()?) else {
            // Go keeps the lower 32 bits: it would see another field.
            return malformed("a field with too large a number", tag);
        };
        let length_at = self.at;
        let length = match key & 7 {
            0 => {
                self.varint()?;
                self.at - length_at
            }
            1 => 8,
            2 => usize::try_from(self.varint()?).unwrap_or(usize::MAX),
            5 => 4,
            _ => return malformed("a field of an unknown type", tag),
        };
        let delimited = key & 7 == 2;
        let start = if delimited { self.at } else { length_at };
        let Some(end) = start.checked_add(length).filter(|end| *end <= self.end) else {
            return malformed("a field that is longer than its message", tag);
        };
        self.at = end;
        Ok(Some(Found { number: key >> 3, delimited, span: Span { tag, length: length_at, start, end } }))
    }
}

pub(super) fn text(input: &[u8], span: Span) -> Fallible<&str> {
    match std::str::from_utf8(&input[span.start..span.end]) {
        Ok(text) => Ok(text),
        Err(_) => malformed("a text that is not UTF-8", span.start),
    }
}

impl Walk<'_> {
    /// Walks through a body of which the expected kind is known.
    pub(super) fn wire_text(&mut self, input: &[u8], kind: super::Kind) -> Fallible<()> {
        if !input.starts_with(MAGIC) {
            return malformed("no mark of a Kubernetes object", 0);
        }
        let span = Span { start: MAGIC.len(), end: input.len(), ..Span::default() };
        self.wire_envelope(input, span, kind).map(|_| ())
    }

    /// Walks through a message without an envelope.
    pub(super) fn wire_bare(&mut self, input: &[u8], node: &'static Node) -> Fallible<()> {
        self.wire_message(input, Span { end: input.len(), ..Span::default() }, node).map(|_| ())
    }

    fn wire_envelope(&mut self, input: &[u8], span: Span, expected: super::Kind) -> Walked {
        let envelope = Envelope::read(input, span)?;
        let kind = envelope.type_meta.resolve(expected)?;
        if !kind.has_protobuf() {
            return Err(Box::new(RewriteError::Unsupported(format!("{kind:?} in protobuf"))));
        }
        let Some(raw) = envelope.raw else { return malformed("an envelope without an object", span.start) };
        let node = self.node(kind.node(self.outward()));
        self.wire_nested(raw, |walk| walk.wire_message(input, raw, node))
    }

    /// Walks through what is inside a field, whose length is then another.
    fn wire_nested(&mut self, field: Span, inside: impl FnOnce(&mut Self) -> Walked) -> Walked {
        let mark = self.edits.mark();
        self.edits.reserve_length(field.length);
        let (growth, verdict) = inside(self)?;
        if verdict == Verdict::Remove || self.edits.mark() == mark + 1 {
            self.edits.truncate(mark);
            return Ok((0, verdict));
        }
        let length = (field.end - field.start) as i64 + growth;
        let length = u64::try_from(length).expect("no more is taken away than there is");
        self.edits.fill_length(mark, field.start, length);
        let growth = growth + varint_length(length) as i64 - (field.start - field.length) as i64;
        Ok((growth, Verdict::Keep))
    }

    fn wire_message(&mut self, input: &[u8], span: Span, node: &'static Node) -> Walked {
        let (node, mut growth) = match node.whole {
            Some(Whole::About) => self.wire_about(input, span, node)?,
            _ => (node, 0),
        };
        let base = self.held.len();
        let mut fields = Fields::of(input, span);
        let mut seen = 0u64;
        let mut goes = false;
        while let Some(found) = fields.next()? {
            let Some((index, rule)) = node.by_number(found.number) else { continue };
            if !found.delimited {
                return malformed(&format!("a field {} of a wrong type", rule.name), found.span.tag);
            }
            let bit = 1u64 << index;
            if seen & bit != 0 && rule.shape == Shape::One && rule.once() && !self.outward() {
                return Err(refused(rule.name, "the field is given twice"));
            }
            seen |= bit;
            let mark = self.edits.mark();
            let walked = self.wire_value(input, found.span, rule.shape, rule.what);
            let (more, verdict) = walked.map_err(|error| error.within(rule.name))?;
            growth += more;
            if verdict == Verdict::Remove {
                goes = node.goes_with_a_field;
                self.edits.truncate(mark);
                self.edits.remove(found.span.tag, found.span.end);
                growth -= (found.span.end - found.span.tag) as i64;
            }
        }
        if !self.outward() {
            for (index, rule) in node.wire.iter().enumerate() {
                if let Some(addition) = rule.addition.filter(|addition| self.has_to_add(*addition))
                    && (!matches!(addition, Addition::Metadata | Addition::Audience) || seen & (1 << index) == 0)
                {
                    let field = self.addition_wire(rule, addition);
                    growth += field.len() as i64;
                    self.edits.replace(span.end, span.end, &field);
                }
            }
        }
        if goes {
            return Ok((0, Verdict::Remove));
        }
        let (more, verdict) = self.wire_whole(input, node, base)?;
        Ok((growth + more, verdict))
    }

    fn wire_whole(&mut self, input: &[u8], node: &Node, base: usize) -> Walked {
        let Some(whole) = node.whole else { return Ok(KEPT) };
        let held = &self.held[base..];
        let decision = self.decide(whole, |slot| {
            let found = held.iter().rfind(|held| held.slot == slot);
            found.map(|held| text(input, held.field).map(Into::into)).transpose()
        })?;
        let mut growth = 0;
        let verdict = match decision {
            Decision::Keep => Verdict::Keep,
            Decision::Remove => Verdict::Remove,
            Decision::Revisit(fields) => {
                for index in base..self.held.len() {
                    let Held { slot, field } = self.held[index];
                    if let Some((_, shape, what)) = fields.iter().find(|(of, ..)| *of == slot) {
                        growth += self.wire_value(input, field, *shape, *what)?.0;
                    }
                }
                Verdict::Keep
            }
        };
        self.held.truncate(base);
        Ok((growth, verdict))
    }

    fn wire_value(&mut self, input: &[u8], field: Span, shape: Shape, what: What) -> Walked {
        match what {
            What::Slot(slot) => {
                self.held.push(Held { slot, field });
                Ok(KEPT)
            }
            What::Entries(entries) => self.wire_nested(field, |walk| walk.wire_entry(input, field, entries)),
            What::Withhold => Ok((0, Verdict::Remove)),
            What::Deny(deny) => {
                if field.start < field.end || shape == Shape::Many {
                    self.deny(deny, || text(input, field).map(Into::into))?;
                }
                Ok(KEPT)
            }
            _ if shape == Shape::Map => {
                let Some(value) = MapEntry::read(input, field)?.value else { return Ok(KEPT) };
                self.wire_nested(field, |walk| walk.wire_one(input, value, what))
            }
            _ => self.wire_one(input, field, what),
        }
    }

    fn wire_one(&mut self, input: &[u8], field: Span, what: What) -> Walked {
        match what {
            What::Enter(node) => {
                let node = self.node(node);
                self.wire_nested(field, |walk| walk.wire_message(input, field, node))
            }
            What::Value(op) => self.wire_string(input, field, op),
            What::Domains => Ok((0, self.domain_verdict(text(input, field)?)?)),
            What::Object => self.wire_raw(input, field, |walk, content| {
                let bytes = &input[content.start..content.end];
                if bytes.starts_with(MAGIC) {
                    let inner = Span { start: content.start + MAGIC.len(), ..content };
                    return walk.inner_object(|walk| walk.wire_envelope(input, inner, walk.expected()));
                }
                walk.wire_json(input, content, |walk, scan| walk.json_dynamic(scan))
            }),
            What::Json(node) => self.wire_raw(input, field, |walk, content| {
                walk.wire_json(input, content, |walk, scan| {
                    let whole = |walk: &mut Self, scan: &mut Scan<'_>| {
                        let verdict = walk.json_object(scan, walk.node(node))?;
                        scan.end().map(|()| verdict)
                    };
                    walk.json_or_text(scan, whole, |scan| {
                        scan.at = scan.input.len();
                        Ok(())
                    })
                })
            }),
            What::Cell | What::Entries(_) | What::Slot(_) | What::Withhold | What::Deny(_) => Ok(KEPT),
        }
    }

    /// Walks through the bytes of a raw field, which are the first field of a message.
    fn wire_raw(&mut self, input: &[u8], field: Span, inside: impl FnOnce(&mut Self, Span) -> Walked) -> Walked {
        let mut raw = None;
        let mut fields = Fields::of(input, field);
        while let Some(found) = fields.next()? {
            if found.number == 1 && found.delimited && raw.replace(found.span).is_some() {
                return malformed("a raw field given twice", found.span.tag);
            }
        }
        match raw.filter(|raw| raw.start < raw.end) {
            None => Ok(KEPT),
            Some(raw) => self.wire_nested(field, |walk| walk.wire_nested(raw, |walk| inside(walk, raw))),
        }
    }

    fn wire_json(
        &mut self,
        input: &[u8],
        content: Span,
        inside: impl FnOnce(&mut Self, &mut Scan<'_>) -> Fallible<Verdict>,
    ) -> Walked {
        let mark = self.edits.mark();
        let mut scan = Scan { input: &input[..content.end], at: content.start };
        if !scan.take_null() {
            inside(self, &mut scan)?;
        }
        scan.end()?;
        Ok((self.edits.growth_since(mark), Verdict::Keep))
    }

    fn wire_string(&mut self, input: &[u8], field: Span, op: Op) -> Walked {
        let text = match (std::str::from_utf8(&input[field.start..field.end]), op) {
            (Ok(text), _) => text,
            (Err(_), Op::Text) => return Ok(KEPT),
            (Err(_), _) => return malformed("a text that is not UTF-8", field.start),
        };
        let change = self.change(op, text)?;
        self.wire_change(field, change)
    }

    fn wire_change(&mut self, field: Span, change: Change) -> Walked {
        if change == Change::Remove {
            return Ok((0, Verdict::Remove));
        }
        self.wire_nested(field, |walk| {
            let prefix = PREFIX_LENGTH as i64;
            let growth = match change {
                Change::Keep | Change::Remove => 0,
                Change::Prefix(at) => {
                    walk.edits.prefix(field.start + at);
                    prefix
                }
                Change::Strip(at) => {
                    walk.edits.remove(field.start + at, field.start + at + PREFIX_LENGTH);
                    -prefix
                }
                Change::Replace(text) => {
                    walk.edits.replace(field.start, field.end, text.as_bytes());
                    text.len() as i64 - (field.end - field.start) as i64
                }
                Change::Foreign => return Err(Box::new(RewriteError::Foreign(String::new()))),
            };
            Ok((growth, Verdict::Keep))
        })
    }

    fn wire_entry(&mut self, input: &[u8], field: Span, entries: &Entries) -> Walked {
        let MapEntry { key, value } = MapEntry::read(input, field)?;
        let key = key.map(|key| text(input, key)).transpose()?.unwrap_or_default();
        if self.entry_verdict(entries, key)? == Verdict::Remove {
            return Ok((0, Verdict::Remove));
        }
        match (entries.values.iter().find(|(name, _)| *name == key), value) {
            (Some((name, entry)), Some(value)) => {
                self.wire_entry_value(input, value, *entry).map_err(|error| error.within(name))
            }
            _ => Ok(KEPT),
        }
    }

    fn wire_entry_value(&mut self, input: &[u8], value: Span, entry: Entry) -> Walked {
        // In JSON bytes are in base 64, here they are as they are.
        let changed = match entry {
            Entry::Value(op) | Entry::Base64(op) => return self.wire_string(input, value, op),
            Entry::Object | Entry::List(_) => self.entry_changed(entry, text(input, value)?)?,
        };
        self.wire_change(value, changed.map_or(Change::Keep, Change::Replace))
    }

    /// A field that is added: its tag, its length, its value.
    fn addition_wire(&self, rule: &Rule, addition: Addition) -> Vec<u8> {
        let uid = self.names.uid().as_bytes();
        let label = [delimited(1, TENANT_LABEL.as_bytes()), delimited(2, uid)].concat();
        let value = match addition {
            Addition::Label => label,
            Addition::Requirement => {
                [delimited(1, TENANT_LABEL.as_bytes()), delimited(2, b"In"), delimited(3, uid)].concat()
            }
            Addition::Metadata => delimited(LABELS_NUMBER, &label),
            Addition::Audience => audience_inward(self.names.uid(), "").into_bytes(),
        };
        delimited(rule.number, &value)
    }
}

/// The number of `labels` in the metadata.
const LABELS_NUMBER: u32 = 11;

pub(super) fn delimited(number: u32, content: &[u8]) -> Vec<u8> {
    let mut field = Vec::with_capacity(content.len() + 6);
    put_varint(u64::from(number << 3 | 2), &mut field);
    put_varint(content.len() as u64, &mut field);
    field.extend_from_slice(content);
    field
}

/// An entry of a map: a message of a key and a value.
pub(super) struct MapEntry {
    pub(super) key: Option<Span>,
    pub(super) value: Option<Span>,
}

impl MapEntry {
    pub(super) fn read(input: &[u8], field: Span) -> Fallible<Self> {
        let mut entry = Self { key: None, value: None };
        let mut fields = Fields::of(input, field);
        while let Some(found) = fields.next()? {
            let place = match found.number {
                1 => &mut entry.key,
                2 => &mut entry.value,
                _ => continue,
            };
            if !found.delimited || place.replace(found.span).is_some() {
                return malformed("an entry of a map that is none", found.span.tag);
            }
        }
        Ok(entry)
    }
}

/// What is around every object in protobuf.
pub(super) struct Envelope {
    pub(super) type_meta: TypeMeta,
    pub(super) raw: Option<Span>,
}

impl Envelope {
    /// Reads the envelope of a body.
    pub(super) fn of_body(input: &[u8]) -> Fallible<Self> {
        if !input.starts_with(MAGIC) {
            return malformed("no mark of a Kubernetes object", 0);
        }
        Self::read(input, Span { start: MAGIC.len(), end: input.len(), ..Span::default() })
    }

    pub(super) fn read(input: &[u8], span: Span) -> Fallible<Self> {
        let (mut type_meta, mut raw) = (None, None);
        let mut fields = Fields::of(input, span);
        while let Some(found) = fields.next()? {
            let twice = match found.number {
                1 => type_meta.replace(found.span).is_some(),
                2 => raw.replace(found.span).is_some(),
                // An encoding of the content, as gzip.
                3 if found.span.start < found.span.end => {
                    return Err(Box::new(RewriteError::Unsupported("an encoded protobuf body".to_owned())));
                }
                _ => continue,
            };
            if twice || !found.delimited {
                return malformed("an envelope that is none", found.span.tag);
            }
        }
        let (mut api_version, mut kind) = (None, None);
        if let Some(type_meta) = type_meta {
            let mut fields = Fields::of(input, type_meta);
            while let Some(found) = fields.next()? {
                let place = match found.number {
                    1 => &mut api_version,
                    2 => &mut kind,
                    _ => continue,
                };
                if !found.delimited || place.replace(text(input, found.span)?.to_owned()).is_some() {
                    return malformed("an envelope that is none", found.span.tag);
                }
            }
        }
        let type_meta = TypeMeta { api_version: api_version.unwrap_or_default(), kind: kind.unwrap_or_default() };
        Ok(Self { type_meta, raw })
    }
}
