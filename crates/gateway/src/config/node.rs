//! A YAML document as a tree that remembers lines.
//!
//! Null is nothing: a field that is null is a field that is left out, as for a kube-apiserver.

use std::fmt;

use serde::Deserialize;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Options, Spanned};

/// A value and where it begins.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// From 1.
    pub(super) line: u32,
    pub(super) value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
    /// Was unreadable and is left out.
    Removed,
}

/// A field of a mapping.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) line: u32,
    pub(super) node: Node,
}

/// One step from a node to one within it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

/// A syntax error.
#[derive(Debug)]
pub(super) struct SyntaxError {
    pub(super) line: u32,
    pub(super) text: String,
}

/// The documents of a file, without empty ones.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, SyntaxError> {
    let mut options = Options::default();
    options.with_snippet = false;
    // `on`, `off`, `yes` and `no` are texts; where a truth value is expected they are understood as well.
    options.strict_booleans = true;
    serde_saphyr::from_multiple_with_options::<Node>(text, options).map_err(|error| {
        let line = error.location().map_or(0, |location| line_of(location.line()));
        SyntaxError { line, text: error.without_snippet().to_string() }
    })
}

fn line_of(line: u64) -> u32 {
    u32::try_from(line).unwrap_or(u32::MAX)
}

impl Node {
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.node)
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The line of a field, or of the last thing on the way to it. Steps count removed items.
    pub(super) fn line_of(&self, steps: &[Step]) -> u32 {
        self.walk(steps, |_| true).1
    }

    /// Finds a field whose steps do not count removed items: its steps with those counted, and its line.
    pub(super) fn locate(&self, steps: &[Step]) -> (Vec<Step>, u32) {
        self.walk(steps, |item| !matches!(item.value, Value::Removed))
    }

    fn walk(&self, steps: &[Step], counts: impl Fn(&Node) -> bool) -> (Vec<Step>, u32) {
        let mut node = self;
        let mut line = self.line;
        let mut real = steps.to_vec();
        for step in &mut real {
            let next = match step {
                Step::Key(key) => node.entry(key).map(|entry| (entry.line, &entry.node)),
                Step::Index(index) => match &node.value {
                    Value::List(items) => {
                        let mut counted = items.iter().enumerate().filter(|(_, item)| counts(item));
                        counted.nth(*index).map(|(place, item)| {
                            *index = place;
                            (item.line, item)
                        })
                    }
                    _ => None,
                },
            };
            let Some((next_line, next_node)) = next else { break };
            line = next_line;
            node = next_node;
        }
        (real, line)
    }

    /// Leaves a value out. Steps count removed items.
    pub(super) fn remove(&mut self, steps: &[Step]) {
        let mut node = self;
        for step in steps {
            let next = match (step, &mut node.value) {
                (Step::Key(key), Value::Map(entries)) => {
                    entries.iter_mut().find(|entry| entry.key == *key).map(|entry| &mut entry.node)
                }
                (Step::Index(index), Value::List(items)) => items.get_mut(*index),
                _ => None,
            };
            match next {
                Some(next) => node = next,
                None => return,
            }
        }
        node.value = Value::Removed;
    }
}

/// A field as text, such as `spec.servers[0].endpoint`.
pub(super) fn field_text<'a>(steps: impl Iterator<Item = &'a Step>) -> String {
    use fmt::Write as _;
    let mut text = String::new();
    for step in steps {
        let written = match step {
            Step::Index(index) => write!(text, "[{index}]"),
            Step::Key(key) if key.contains(['.', '/', '[']) => write!(text, "[{key}]"),
            Step::Key(key) if text.is_empty() => write!(text, "{key}"),
            Step::Key(key) => write!(text, ".{key}"),
        };
        written.expect("a text can always grow");
    }
    text
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { line: line_of(spanned.referenced.line()), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Signed(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Unsigned(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = fields.next_key::<Spanned<String>>()? {
            let line = line_of(key.referenced.line());
            entries.push(Entry { key: key.value, line, node: fields.next_value()? });
        }
        Ok(Value::Map(entries))
    }
}
