//! From JSON to protobuf.
//!
//! Invariant: a value of a wrong type is refused with its path, as kube-apiserver would do it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::{SCHEMA, Special};
use crate::rewrite::edits::put_varint;
use crate::rewrite::json::type_of;
use crate::rewrite::scan::{Fallible, Scan};
use crate::rewrite::schema::{self, Field, Message, Shape, Type};
use crate::rewrite::walk::refused;
use crate::rewrite::wire::{MAGIC, delimited};
use crate::rewrite::{Kind, RewriteError};
use crate::time;

/// A body with its envelope.
pub(super) fn body(expected: Kind, input: &[u8]) -> Fallible<Vec<u8>> {
    let mut type_meta = type_of(&mut Scan::new(input), false)?;
    let kind = type_meta.resolve(expected)?;
    if !kind.has_protobuf() {
        return Err(Box::new(RewriteError::Unsupported(format!("{kind:?} in protobuf"))));
    }
    if type_meta.kind.is_empty() {
        kind.name().clone_into(&mut type_meta.kind);
        let slash = if kind.group().is_empty() { "" } else { "/" };
        type_meta.api_version = format!("{}{slash}{}", kind.group(), kind.version());
    }
    let value: Map<String, Value> =
        serde_json::from_slice(input).map_err(|error| Box::new(RewriteError::Malformed(error.to_string())))?;
    let mut raw = Vec::new();
    fields(message(kind.message()), &value, &mut raw).map_err(|error| as_malformed(*error))?;
    let type_meta = [delimited(1, type_meta.api_version.as_bytes()), delimited(2, type_meta.kind.as_bytes())].concat();
    Ok([MAGIC, &delimited(1, &type_meta), &delimited(2, &raw), &delimited(3, b""), &delimited(4, b"")].concat())
}

/// A wrong type is a mistake, not something that the tenant may not do.
fn as_malformed(error: RewriteError) -> RewriteError {
    match error {
        RewriteError::Refused(refusal) => RewriteError::Malformed(format!("{}: {}", refusal.field, refusal.reason)),
        other => other,
    }
}

fn wrong<T>(what: &'static str) -> Fallible<T> {
    Err(refused("", what))
}

fn fields(message: &'static Message, object: &Map<String, Value>, output: &mut Vec<u8>) -> Fallible<()> {
    for field in message.fields {
        if let (Type::Of(inner), "") = (field.of, field.name) {
            let mut content = Vec::new();
            fields(self::message(inner), object, &mut content)?;
            if !content.is_empty() {
                output.extend_from_slice(&delimited(field.number, &content));
            }
            continue;
        }
        match object.get(field.name) {
            None | Some(Value::Null) => {}
            Some(value) => field_value(field, value, output).map_err(|error| error.within(field.name))?,
        }
    }
    Ok(())
}

fn field_value(field: &Field, value: &Value, output: &mut Vec<u8>) -> Fallible<()> {
    match field.shape {
        Shape::One => one(field.number, field.of, value, output),
        Shape::Many => {
            let Some(elements) = value.as_array() else { return wrong("an array was expected") };
            for (index, element) in elements.iter().enumerate() {
                one(field.number, field.of, element, output).map_err(|error| error.within_element(index))?;
            }
            Ok(())
        }
        Shape::Map => {
            let Some(entries) = value.as_object() else { return wrong("an object was expected") };
            for (name, value) in entries {
                let mut entry = delimited(1, name.as_bytes());
                one(2, field.of, value, &mut entry).map_err(|error| error.within(name))?;
                output.extend_from_slice(&delimited(field.number, &entry));
            }
            Ok(())
        }
    }
}

/// A field with its tag. A missing element is as one that is zero.
fn one(number: u32, of: Type, value: &Value, output: &mut Vec<u8>) -> Fallible<()> {
    match (of, value) {
        (Type::Text | Type::Bytes | Type::Of(_), Value::Null) => output.extend_from_slice(&delimited(number, b"")),
        (Type::Int | Type::Bool, Value::Null) => varint(number, 0, output),
        (Type::Text, Value::String(text)) => output.extend_from_slice(&delimited(number, text.as_bytes())),
        (Type::Bytes, Value::String(text)) => {
            let Ok(bytes) = STANDARD.decode(text) else { return wrong("bytes in base 64 were expected") };
            output.extend_from_slice(&delimited(number, &bytes));
        }
        (Type::Bool, Value::Bool(value)) => varint(number, u64::from(*value), output),
        (Type::Int, Value::Number(value)) => {
            let Some(value) = value.as_i64() else { return wrong("an integer was expected") };
            varint(number, value as u64, output);
        }
        (Type::Double, Value::Number(value)) => {
            let Some(value) = value.as_f64() else { return wrong("a number was expected") };
            put_varint(u64::from(number << 3 | 1), output);
            output.extend_from_slice(&value.to_le_bytes());
        }
        (Type::Of(name), value) => {
            let mut content = Vec::new();
            inner(name, value, &mut content)?;
            output.extend_from_slice(&delimited(number, &content));
        }
        (Type::Text | Type::Bytes, _) => return wrong("a string was expected"),
        (Type::Bool, _) => return wrong("true or false was expected"),
        (Type::Int | Type::Double, _) => return wrong("a number was expected"),
    }
    Ok(())
}

/// The content of a message.
fn inner(name: &'static str, value: &Value, output: &mut Vec<u8>) -> Fallible<()> {
    let message = message(name);
    if let Some(special) = Special::of(name) {
        return self::special(special, value, output);
    }
    if message.bare {
        return field_value(&message.fields[0], value, output);
    }
    match value.as_object() {
        Some(object) => fields(message, object, output),
        None => wrong("an object was expected"),
    }
}

fn special(special: Special, value: &Value, output: &mut Vec<u8>) -> Fallible<()> {
    match (special, value) {
        (Special::Time | Special::MicroTime, Value::String(text)) => {
            let Some((seconds, nanos)) = time::parse(text) else { return wrong("a time as in RFC 3339 was expected") };
            // Times have whole seconds, in protobuf too.
            let nanos = if special == Special::Time { 0 } else { nanos / 1000 * 1000 };
            varint(1, seconds as u64, output);
            varint(2, nanos as u64, output);
        }
        (Special::Duration, Value::String(text)) => {
            let Some(nanos) = time::parse_duration(text) else { return wrong("a duration was expected") };
            varint(1, nanos as u64, output);
        }
        (Special::Quantity, Value::String(text)) => output.extend_from_slice(&delimited(1, text.as_bytes())),
        (Special::Quantity, Value::Number(number)) => {
            output.extend_from_slice(&delimited(1, number.to_string().as_bytes()));
        }
        (Special::IntOrString, Value::Number(number)) => {
            let Some(number) = number.as_i64() else { return wrong("an integer was expected") };
            varint(1, 0, output);
            varint(2, number as u64, output);
            output.extend_from_slice(&delimited(3, b""));
        }
        (Special::IntOrString, Value::String(text)) => {
            varint(1, 1, output);
            varint(2, 0, output);
            output.extend_from_slice(&delimited(3, text.as_bytes()));
        }
        (Special::Raw, value) => {
            let json = serde_json::to_vec(value).expect("a tree of JSON can be written");
            output.extend_from_slice(&delimited(1, &json));
        }
        (Special::SchemaOrBool, Value::Bool(allowed)) => varint(1, u64::from(*allowed), output),
        (Special::SchemaOrBool, Value::Object(_)) => {
            varint(1, 1, output);
            one(2, Type::Of(SCHEMA), value, output)?;
        }
        (Special::SchemaOrStrings | Special::SchemaOrSchemas, Value::Object(_)) => {
            one(1, Type::Of(SCHEMA), value, output)?
        }
        (Special::SchemaOrStrings | Special::SchemaOrSchemas, Value::Array(elements)) => {
            let of = if special == Special::SchemaOrStrings { Type::Text } else { Type::Of(SCHEMA) };
            for (index, element) in elements.iter().enumerate() {
                one(2, of, element, output).map_err(|error| error.within_element(index))?;
            }
        }
        _ => return wrong("a value of another type was expected"),
    }
    Ok(())
}

fn varint(number: u32, value: u64, output: &mut Vec<u8>) {
    put_varint(u64::from(number << 3), output);
    put_varint(value, output);
}

fn message(name: &str) -> &'static Message {
    schema::find(name).expect("every message that another names is in the schema; there is a test")
}
