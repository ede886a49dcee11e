//! From protobuf to JSON.
//!
//! Invariant: what comes out is JSON, whatever bytes go in.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{DEPTH_MAX, SCHEMA, Special};
use crate::rewrite::scan::{Fallible, escape};
use crate::rewrite::schema::{self, Field, Message, Shape, Type};
use crate::rewrite::walk::Span;
use crate::rewrite::wire::{Envelope, Fields, Found, MAGIC, MapEntry, malformed, text};
use crate::rewrite::{Kind, RewriteError};
use crate::time;

/// A body with its envelope.
pub(super) fn body(expected: Kind, input: &[u8]) -> Fallible<Vec<u8>> {
    let mut output = Vec::with_capacity(input.len() * 2);
    if !input.starts_with(MAGIC) {
        return malformed("no mark of a Kubernetes object", 0);
    }
    let span = Span { start: MAGIC.len(), end: input.len(), ..Span::default() };
    Decoder { input, expected }.envelope(span, &mut output, 0)?;
    Ok(output)
}

struct Decoder<'a> {
    input: &'a [u8],
    expected: Kind,
}

impl Decoder<'_> {
    fn envelope(&self, span: Span, output: &mut Vec<u8>, depth: usize) -> Fallible<()> {
        let envelope = Envelope::read(self.input, span)?;
        let kind = envelope.type_meta.resolve(self.expected)?;
        if !kind.has_protobuf() {
            return Err(Box::new(RewriteError::Unsupported(format!("{kind:?} in protobuf"))));
        }
        let Some(raw) = envelope.raw else { return malformed("an envelope without an object", span.start) };
        output.push(b'{');
        for (name, value) in [("kind", &envelope.type_meta.kind), ("apiVersion", &envelope.type_meta.api_version)] {
            if !value.is_empty() {
                key(name, output);
                string(value, output);
            }
        }
        self.fields(message(kind.message()), raw, output, depth)?;
        output.push(b'}');
        Ok(())
    }

    /// The members of an object, behind others.
    fn fields(&self, message: &'static Message, span: Span, output: &mut Vec<u8>, depth: usize) -> Fallible<()> {
        if depth > DEPTH_MAX {
            return malformed("messages in too many messages", span.start);
        }
        let mut found = Vec::new();
        let mut fields = Fields::of(self.input, span);
        while let Some(field) = fields.next()? {
            found.push(field);
        }
        for field in message.fields {
            let mut values = found.iter().filter(|found| found.number == field.number);
            let Some(first) = values.clone().next() else { continue };
            match field.shape {
                Shape::One => {
                    let Some(value) = values.next_back() else { continue };
                    // Kubernetes' decoders would put two messages together; nothing writes two.
                    if matches!(field.of, Type::Of(_)) && first.span.tag != value.span.tag {
                        return malformed("a message given twice", value.span.tag);
                    }
                    self.one(field, *value, output, depth)?;
                }
                Shape::Many => {
                    key(field.name, output);
                    self.many(field, values, output, depth)?;
                }
                Shape::Map => {
                    let mut entries = BTreeMap::new();
                    for value in values {
                        let entry = MapEntry::read(self.input, value.span)?;
                        let name = entry.key.map(|key| text(self.input, key)).transpose()?.unwrap_or_default();
                        entries.insert(name, entry.value.unwrap_or_default());
                    }
                    key(field.name, output);
                    output.push(b'{');
                    for (name, value) in entries {
                        key(name, output);
                        self.value(field.of, Found { number: 2, delimited: true, span: value }, output, depth)?;
                    }
                    output.push(b'}');
                }
            }
        }
        Ok(())
    }

    fn one(&self, field: &Field, value: Found, output: &mut Vec<u8>, depth: usize) -> Fallible<()> {
        if let (Type::Of(name), "") = (field.of, field.name) {
            return self.fields(message(name), value.span, output, depth + 1);
        }
        let start = output.len();
        key(field.name, output);
        let value_start = output.len();
        self.value(field.of, value, output, depth)?;
        let zero = matches!(&output[value_start..], b"\"\"" | b"0" | b"false" | b"null");
        if field.omit_zero && zero {
            output.truncate(start);
        }
        Ok(())
    }

    fn many<'f>(
        &self,
        field: &Field,
        values: impl Iterator<Item = &'f Found>,
        output: &mut Vec<u8>,
        depth: usize,
    ) -> Fallible<()> {
        output.push(b'[');
        for value in values {
            match field.of {
                // Numbers may be packed.
                Type::Int | Type::Bool if value.delimited => {
                    let mut packed = Fields::of(self.input, value.span);
                    while let Some(number) = packed.number()? {
                        comma(output);
                        scalar(field.of, number, output);
                    }
                }
                _ => {
                    comma(output);
                    self.value(field.of, *value, output, depth)?;
                }
            }
        }
        output.push(b']');
        Ok(())
    }

    fn value(&self, of: Type, found: Found, output: &mut Vec<u8>, depth: usize) -> Fallible<()> {
        let span = found.span;
        let delimited = matches!(of, Type::Text | Type::Bytes | Type::Of(_));
        if delimited != found.delimited {
            return malformed("a field of a wrong type", span.tag);
        }
        match of {
            Type::Text => string(&String::from_utf8_lossy(&self.input[span.start..span.end]), output),
            Type::Bytes => string(&STANDARD.encode(&self.input[span.start..span.end]), output),
            Type::Int | Type::Bool => {
                let number = Fields::of(self.input, span).number()?.unwrap_or_default();
                scalar(of, number, output);
            }
            Type::Double => {
                let Ok(bytes) = self.input[span.start..span.end].try_into() else {
                    return malformed("a field of a wrong type", span.tag);
                };
                let number = serde_json::Number::from_f64(f64::from_le_bytes(bytes));
                output.extend_from_slice(number.map_or("null".to_owned(), |number| number.to_string()).as_bytes());
            }
            Type::Of(name) => self.message(name, span, output, depth + 1)?,
        }
        Ok(())
    }

    fn message(&self, name: &'static str, span: Span, output: &mut Vec<u8>, depth: usize) -> Fallible<()> {
        let message = message(name);
        if let Some(special) = Special::of(name) {
            return self.special(special, span, output, depth);
        }
        if message.bare {
            let mut values = Vec::new();
            let mut fields = Fields::of(self.input, span);
            while let Some(field) = fields.next()? {
                values.push(field);
            }
            let field = &message.fields[0];
            let values = values.iter().filter(|found| found.number == field.number);
            return self.many(field, values, output, depth);
        }
        output.push(b'{');
        self.fields(message, span, output, depth)?;
        output.push(b'}');
        Ok(())
    }

    fn special(&self, special: Special, span: Span, output: &mut Vec<u8>, depth: usize) -> Fallible<()> {
        let mut numbers = [0i64; 4];
        let mut last: [Option<Span>; 4] = [None; 4];
        let mut all = Vec::new();
        let mut fields = Fields::of(self.input, span);
        while let Some(found) = fields.next()? {
            let Some(place) = last.get_mut(found.number as usize) else { continue };
            *place = Some(found.span);
            all.push(found);
            if !found.delimited {
                let number = Fields::of(self.input, found.span).number()?.unwrap_or_default();
                numbers[found.number as usize] = number;
            }
        }
        let or_null = |text: Option<String>, output: &mut Vec<u8>| match text {
            Some(text) => string(&text, output),
            None => output.extend_from_slice(b"null"),
        };
        match special {
            Special::Time | Special::MicroTime if span.start == span.end => output.extend_from_slice(b"null"),
            Special::Time => or_null(time::format(numbers[1], 0, 0), output),
            Special::MicroTime => or_null(time::format(numbers[1], numbers[2], 6), output),
            Special::Duration => string(&time::format_duration(numbers[1]), output),
            Special::Quantity => match last[1].map(|span| text(self.input, span)).transpose()? {
                None | Some("") => string("0", output),
                Some(quantity) => string(quantity, output),
            },
            Special::IntOrString if numbers[1] == 0 => scalar(Type::Int, numbers[2], output),
            Special::IntOrString => {
                string(last[3].map(|span| text(self.input, span)).transpose()?.unwrap_or_default(), output);
            }
            Special::Raw => self.raw(last[1].unwrap_or_default(), output, depth)?,
            Special::SchemaOrBool => match last[2] {
                Some(schema) => self.message(SCHEMA, schema, output, depth + 1)?,
                None => scalar(Type::Bool, numbers[1], output),
            },
            Special::SchemaOrStrings | Special::SchemaOrSchemas => {
                let list: Vec<&Found> = all.iter().filter(|found| found.number == 2).collect();
                let of = if special == Special::SchemaOrStrings { Type::Text } else { Type::Of(SCHEMA) };
                match last[1] {
                    Some(schema) if list.is_empty() => self.message(SCHEMA, schema, output, depth + 1)?,
                    None if list.is_empty() => output.extend_from_slice(b"null"),
                    _ => {
                        output.push(b'[');
                        for found in list {
                            comma(output);
                            self.value(of, *found, output, depth + 1)?;
                        }
                        output.push(b']');
                    }
                }
            }
        }
        Ok(())
    }

    fn raw(&self, span: Span, output: &mut Vec<u8>, depth: usize) -> Fallible<()> {
        let bytes = &self.input[span.start..span.end];
        if bytes.is_empty() {
            output.extend_from_slice(b"null");
        } else if bytes.starts_with(MAGIC) {
            if depth > DEPTH_MAX {
                return malformed("messages in too many messages", span.start);
            }
            let inner = Span { start: span.start + MAGIC.len(), ..span };
            self.envelope(inner, output, depth + 1)?;
        } else if std::str::from_utf8(bytes).is_ok() && serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok() {
            output.extend_from_slice(bytes.trim_ascii());
        } else {
            return malformed("a raw field that is not JSON", span.start);
        }
        Ok(())
    }
}

impl Fields<'_> {
    /// The next of several packed numbers.
    fn number(&mut self) -> Fallible<Option<i64>> {
        if self.is_at_end() { Ok(None) } else { self.varint().map(|number| Some(number as i64)) }
    }
}

fn message(name: &str) -> &'static Message {
    schema::find(name).expect("every message that another names is in the schema; there is a test")
}

fn comma(output: &mut Vec<u8>) {
    if !matches!(output.last(), None | Some(b'{' | b'[')) {
        output.push(b',');
    }
}

fn key(name: &str, output: &mut Vec<u8>) {
    comma(output);
    string(name, output);
    output.push(b':');
}

fn string(text: &str, output: &mut Vec<u8>) {
    output.push(b'"');
    escape(text, true, output);
    output.push(b'"');
}

fn scalar(of: Type, number: i64, output: &mut Vec<u8>) {
    match (of, number) {
        (Type::Bool, 0) => output.extend_from_slice(b"false"),
        (Type::Bool, _) => output.extend_from_slice(b"true"),
        (_, number) => output.extend_from_slice(number.to_string().as_bytes()),
    }
}
