//! Reads a tree into a type, and tells all that is wrong with it at once.
//!
//! Serde stops at the first error. So what is wrong is left out, and the rest is read again, until nothing is wrong any
//! more: each field of a manifest may be left out. Unknown fields do not stop serde here; they are noted.

use std::cell::RefCell;
use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeOwned, DeserializeSeed, IntoDeserializer, Unexpected, Visitor};
use serde::de::{EnumAccess, MapAccess, SeqAccess, VariantAccess};
use serde::forward_to_deserialize_any;

use super::node::{Entry, Node, Step, Value};
use crate::limits::PROBLEMS_MAX;

/// Something that is wrong with a field.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) steps: Vec<Step>,
    pub(super) problem: String,
    pub(super) remedy: String,
}

/// What was read, and what was wrong.
#[derive(Debug)]
pub(super) struct Decoded<T> {
    /// `None` if there is nothing left to read.
    pub(super) value: Option<T>,
    pub(super) wrong: Vec<Wrong>,
    /// What was left out of the tree.
    pub(super) unreadable: Vec<Vec<Step>>,
}

/// Reads `node`. What can't be read is removed from it.
pub(super) fn decode<T: DeserializeOwned>(node: &mut Node) -> Decoded<T> {
    let mut wrong = Vec::new();
    let mut unreadable = Vec::new();
    // Each round removes something, so this ends; the bound is for files that are wrong all over.
    for _ in 0..PROBLEMS_MAX {
        let context = Context::default();
        match T::deserialize(Reader { node, context: &context }) {
            Ok(value) => {
                wrong.extend(context.unknown.into_inner());
                return Decoded { value: Some(value), wrong, unreadable };
            }
            Err(error) => {
                let steps = error.steps.unwrap_or_default();
                wrong.push(Wrong { steps: steps.clone(), problem: error.problem, remedy: error.remedy });
                if steps.is_empty() {
                    break;
                }
                node.remove(&steps);
                unreadable.push(steps);
            }
        }
    }
    Decoded { value: None, wrong, unreadable }
}

/// Splits the text of an error into a problem and its remedy, for types that know both.
const REMEDY: &str = "; ";

#[derive(Debug)]
struct DecodeError {
    /// Set by the innermost reader that knows it.
    steps: Option<Vec<Step>>,
    problem: String,
    remedy: String,
}

impl DecodeError {
    fn new(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { steps: None, problem: problem.into(), remedy: remedy.into() }
    }

    fn at(mut self, context: &Context) -> Self {
        self.steps.get_or_insert_with(|| context.steps.borrow().clone());
        self
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.problem)
    }
}

impl std::error::Error for DecodeError {}

impl serde::de::Error for DecodeError {
    fn custom<T: fmt::Display>(text: T) -> Self {
        let text = text.to_string();
        let (problem, remedy) = text.split_once(REMEDY).unwrap_or((&text, ""));
        Self::new(problem, remedy)
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn serde::de::Expected) -> Self {
        let expected = expected_text(expected);
        let remedy = match expected.as_str() {
            "a text" if matches!(unexpected, Unexpected::Seq | Unexpected::Map) => "write one value",
            "a text" => "put it in quotes to make it text",
            "a list" => "write a list, such as [a, b], or one line with a dash for each value",
            "a mapping" => "write its fields below it, each with a colon",
            "true or false" => "write one of the two, without quotes",
            _ => "write that",
        };
        Self::new(format!("is {}, but {expected} is expected", kind_of(unexpected)), remedy)
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn serde::de::Expected) -> Self {
        Self::new(format!("is {}, but {} is expected", kind_of(unexpected), expected_text(expected)), "write that")
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let known: Vec<&str> = expected.iter().copied().filter(|name| !name.is_empty()).collect();
        let nearest = nearest(variant, &known).unwrap_or("one of them");
        Self::new(format!("{variant:?} is none of {}", known.join(", ")), format!("write {nearest}"))
    }
}

/// Values are told only where they can't be secrets: not texts.
fn kind_of(unexpected: Unexpected<'_>) -> String {
    match unexpected {
        Unexpected::Bool(value) => format!("the truth value {value}"),
        Unexpected::Signed(value) => format!("the number {value}"),
        Unexpected::Unsigned(value) => format!("the number {value}"),
        Unexpected::Float(value) => format!("the number {value}"),
        Unexpected::Str(_) => "a text".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map | Unexpected::StructVariant => "a mapping".to_owned(),
        Unexpected::Unit | Unexpected::Option => "empty".to_owned(),
        other => other.to_string(),
    }
}

/// Serde's own words for what it expects are those of Rust.
fn expected_text(expected: &dyn serde::de::Expected) -> String {
    let text = expected.to_string();
    match text.as_str() {
        "a string" | "string or map" => "a text".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a map" => "a mapping".to_owned(),
        "i32" => "a whole number from -2147483648 to 2147483647".to_owned(),
        "u8" => "a whole number from 0 to 255".to_owned(),
        "u16" => "a whole number from 0 to 65535".to_owned(),
        "u32" => "a whole number from 0 to 4294967295".to_owned(),
        "u64" => "a whole number from 0".to_owned(),
        _ if text.starts_with("struct ") => "a mapping".to_owned(),
        _ if text.contains("variant") || text.starts_with("enum ") => "one of the documented words".to_owned(),
        _ => text,
    }
}

#[derive(Default)]
struct Context {
    steps: RefCell<Vec<Step>>,
    unknown: RefCell<Vec<Wrong>>,
}

impl Context {
    fn within<T>(&self, step: Step, read: impl FnOnce() -> Result<T, DecodeError>) -> Result<T, DecodeError> {
        self.steps.borrow_mut().push(step);
        let result = read().map_err(|error| error.at(self));
        self.steps.borrow_mut().pop();
        result
    }

    fn note_unknown(&self, key: &str, known: &[&str]) {
        let mut steps = self.steps.borrow().clone();
        steps.push(Step::Key(key.to_owned()));
        let remedy = match nearest(key, known) {
            Some(name) => format!("did you mean {name}?"),
            None => format!("known here are {}", known.join(", ")),
        };
        self.unknown.borrow_mut().push(Wrong { steps, problem: "is unknown".to_owned(), remedy });
    }
}

/// The name that is most like another, if one is.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let lower = name.to_lowercase();
    let distances = known.iter().map(|candidate| (distance(&lower, &candidate.to_lowercase()), *candidate));
    let (distance, candidate) = distances.min()?;
    (distance <= 2.max(name.len() / 4) && distance < candidate.len()).then_some(candidate)
}

/// How many characters must be put in, taken out or replaced to make one text into the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[derive(Clone, Copy)]
struct Reader<'a> {
    node: &'a Node,
    context: &'a Context,
}

impl Reader<'_> {
    fn is_nothing(node: &Node) -> bool {
        matches!(node.value, Value::Null | Value::Removed)
    }
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.node.value {
            Value::Null | Value::Removed => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Signed(value) => visitor.visit_i64(*value),
            Value::Unsigned(value) => visitor.visit_u64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(text) => visitor.visit_str(text),
            Value::List(items) => visitor.visit_seq(Items { items: items.iter().enumerate(), context: self.context }),
            Value::Map(entries) => visitor.visit_map(Fields::new(entries, None, self.context)),
        }
    }

    /// YAML 1.1, which kubectl reads, has more words for these.
    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.node.value {
            Value::Text(text) if ["yes", "on", "y"].iter().any(|word| text.eq_ignore_ascii_case(word)) => {
                visitor.visit_bool(true)
            }
            Value::Text(text) if ["no", "off", "n"].iter().any(|word| text.eq_ignore_ascii_case(word)) => {
                visitor.visit_bool(false)
            }
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        if Self::is_nothing(self.node) { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match &self.node.value {
            Value::Map(entries) => visitor.visit_map(Fields::new(entries, Some(fields), self.context)),
            // A list must not be taken for the fields in their order.
            Value::List(_) => Err(serde::de::Error::invalid_type(Unexpected::Seq, &"a mapping")),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match &self.node.value {
            Value::Text(text) => visitor.visit_enum(Variant(text)),
            _ => {
                let known: Vec<&str> = variants.iter().copied().filter(|name| !name.is_empty()).collect();
                Err(DecodeError::new("is not a text", format!("write one of {}", known.join(", "))))
            }
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct seq tuple tuple_struct map identifier
    }
}

struct Variant<'a>(&'a str);

impl<'de> EnumAccess<'de> for Variant<'_> {
    type Error = DecodeError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), DecodeError> {
        let value = seed.deserialize(IntoDeserializer::<DecodeError>::into_deserializer(self.0))?;
        Ok((value, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_> {
    type Error = DecodeError;

    fn unit_variant(self) -> Result<(), DecodeError> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _seed: T) -> Result<T::Value, DecodeError> {
        Err(serde::de::Error::invalid_type(Unexpected::Str(self.0), &"a mapping"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _length: usize, _visitor: V) -> Result<V::Value, DecodeError> {
        Err(serde::de::Error::invalid_type(Unexpected::Str(self.0), &"a list"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, DecodeError> {
        Err(serde::de::Error::invalid_type(Unexpected::Str(self.0), &"a mapping"))
    }
}

struct Items<'a> {
    items: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
    context: &'a Context,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, DecodeError> {
        let Some((index, node)) = self.items.by_ref().find(|(_, node)| !matches!(node.value, Value::Removed)) else {
            return Ok(None);
        };
        let reader = Reader { node, context: self.context };
        self.context.within(Step::Index(index), || seed.deserialize(reader)).map(Some)
    }
}

struct Fields<'a> {
    entries: std::slice::Iter<'a, Entry>,
    /// The fields of a type; `None` for a mapping of any keys.
    known: Option<&'static [&'static str]>,
    current: Option<&'a Entry>,
    context: &'a Context,
}

impl<'a> Fields<'a> {
    fn new(entries: &'a [Entry], known: Option<&'static [&'static str]>, context: &'a Context) -> Self {
        Self { entries: entries.iter(), known, current: None, context }
    }
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, DecodeError> {
        for entry in self.entries.by_ref() {
            if let Some(known) = self.known
                && !known.contains(&entry.key.as_str())
            {
                self.context.note_unknown(&entry.key, known);
                continue;
            }
            if Reader::is_nothing(&entry.node) {
                continue;
            }
            self.current = Some(entry);
            let key: serde::de::value::StrDeserializer<'_, DecodeError> = entry.key.as_str().into_deserializer();
            return seed.deserialize(key).map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, DecodeError> {
        let entry = self.current.take().expect("serde asks for a value only after its key");
        let reader = Reader { node: &entry.node, context: self.context };
        self.context.within(Step::Key(entry.key.clone()), || seed.deserialize(reader))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_told_only_if_it_is_near() {
        assert_eq!(nearest("endpont", &["endpoint", "disabled"]), Some("endpoint"));
        assert_eq!(nearest("roundrobin", &["RoundRobin", "LeastWork"]), Some("RoundRobin"));
        assert_eq!(nearest("colour", &["endpoint", "disabled"]), None);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }
}
