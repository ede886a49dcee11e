//! The rules compiled for walking: for each message the fields that have one, by name and by number.
//!
//! There is one plan a direction, made at the first use from [`super::schema`] and [`super::marks`]. A field whose message has no rule at any
//! depth is not in the plan, so that it is skipped whole.
//!
//! Invariant: a message's rules are the same in JSON and on the wire.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::about::{UNPLACED, UNPLACED_FIELD};
use super::marks::{
    ADDITIONS, Addition, Deny, Entries, GO_WITH_A_FIELD, MARKS, Mark, Slot, WHOLES, Whole, is_own_message,
};
use super::schema::{self, Field, Message, Shape, Type};
use super::value::Op;

/// A message in a [`Plan`].
pub(super) type NodeId = u32;

/// All rules of one direction.
pub(super) struct Plan {
    pub(super) outward: bool,
    nodes: Vec<Node>,
    by_name: HashMap<&'static str, NodeId>,
}

/// The rules of one message.
#[derive(Default)]
pub(super) struct Node {
    pub(super) whole: Option<Whole>,
    /// By the name in JSON. Fields of inlined messages are among them.
    pub(super) json: Vec<Rule>,
    /// By the number on the wire.
    pub(super) wire: Vec<Rule>,
    /// Something is added to one of its fields.
    pub(super) adds: bool,
    /// It goes when one of its fields goes.
    pub(super) goes_with_a_field: bool,
}

/// What becomes of a field.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) name: &'static str,
    pub(super) number: u32,
    pub(super) shape: Shape,
    pub(super) what: What,
    pub(super) addition: Option<Addition>,
}

/// What becomes of a value.
#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    Enter(NodeId),
    Value(Op),
    Slot(Slot),
    Entries(&'static Entries),
    Domains,
    Deny(Deny),
    Withhold,
    Object,
    Json(NodeId),
    Cell,
}

/// What goes to kube-apiserver.
pub(super) static INWARD: LazyLock<Plan> = LazyLock::new(|| Plan::compile(false));
/// What comes from there.
pub(super) static OUTWARD: LazyLock<Plan> = LazyLock::new(|| Plan::compile(true));

impl Rule {
    /// Inward the field may come once only, as what is decided in it would be wrong if kube-apiserver merged two.
    pub(super) fn once(&self) -> bool {
        self.addition.is_some()
            || !matches!(self.what, What::Value(_) | What::Entries(_) | What::Deny(_) | What::Withhold)
    }
}

impl Node {
    /// The rule for a key of JSON, and its place.
    #[inline]
    pub(super) fn by_key(&self, key: &[u8]) -> Option<(usize, &Rule)> {
        self.json.iter().enumerate().find(|(_, rule)| rule.name.as_bytes() == key)
    }

    /// The rule for a number of the wire, and its place.
    #[inline]
    pub(super) fn by_number(&self, number: u32) -> Option<(usize, &Rule)> {
        self.wire.iter().enumerate().find(|(_, rule)| rule.number == number)
    }
}

impl Plan {
    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    /// The message with this name. Every kind is there, and every message that a rule names.
    pub(super) fn find(&self, message: &str) -> Option<NodeId> {
        self.by_name.get(message).copied()
    }

    fn compile(outward: bool) -> Self {
        let mut compiler = Compiler { outward, nodes: Vec::new(), messages: Vec::new(), by_name: HashMap::new() };
        for message in schema::all().filter(|message| message.root || message.name.starts_with("zoo.")) {
            compiler.node(message.name);
        }
        // What events are about, lists in annotations and events of watches have no kind.
        for name in [
            UNPLACED,
            UNPLACED_FIELD,
            "meta.v1.WatchEvent",
            "autoscaling.v1.HorizontalPodAutoscalerCondition",
            "autoscaling.v1.MetricSpec",
            "autoscaling.v1.MetricStatus",
        ] {
            compiler.node(name);
        }
        compiler.prune();
        compiler.flatten();
        Self { outward, nodes: compiler.nodes, by_name: compiler.by_name }
    }
}

struct Compiler {
    outward: bool,
    nodes: Vec<Node>,
    messages: Vec<&'static Message>,
    by_name: HashMap<&'static str, NodeId>,
}

impl Compiler {
    fn node(&mut self, name: &'static str) -> NodeId {
        if let Some(id) = self.by_name.get(name) {
            return *id;
        }
        let message = schema::find(name).expect("a rule names a message of the schema; there is a test");
        let id = self.nodes.len() as NodeId;
        self.nodes.push(Node::default());
        self.messages.push(message);
        self.by_name.insert(name, id);

        let whole = lookup(WHOLES.iter().map(|(message, whole)| (*message, *whole)), name);
        let whole = whole.filter(|whole| match whole {
            Whole::Details => self.outward,
            Whole::Requirement { of_namespaces } => *of_namespaces || !self.outward,
            Whole::Nothing => false,
            Whole::Reference { .. } | Whole::About | Whole::Owner | Whole::Subject | Whole::RoleRef | Whole::Secret => {
                true
            }
        });
        let mut wire = Vec::new();
        for field in message.fields {
            let child = child(message, field);
            let what = match mark(name, field.name) {
                Some(Mark::Keep) => continue,
                Some(Mark::As(variant)) => What::Enter(self.node(variant)),
                Some(Mark::Json(inner)) => What::Json(self.node(inner)),
                Some(Mark::Value(op)) => What::Value(op),
                Some(Mark::Slot(slot)) => What::Slot(slot),
                Some(Mark::Entries(entries)) => What::Entries(entries),
                Some(Mark::Domains) => What::Domains,
                Some(Mark::Deny(deny)) => What::Deny(deny),
                Some(Mark::Withhold) => What::Withhold,
                Some(Mark::Object) => What::Object,
                Some(Mark::Cell) => What::Cell,
                None => match child {
                    Some(child) => What::Enter(self.node(child)),
                    None => continue,
                },
            };
            let addition = match (self.outward, child) {
                (true, _) => None,
                (false, Some(OWN_METADATA)) => Some(Addition::Metadata),
                (false, _) => ADDITIONS.iter().find(|row| (row.0, row.1) == (name, field.name)).map(|row| row.2),
            };
            if self.concerns(what, whole) {
                wire.push(Rule { name: field.name, number: field.number, shape: field.shape, what, addition });
            }
        }
        self.nodes[id as usize].wire = wire;
        self.nodes[id as usize].whole = whole;
        self.nodes[id as usize].goes_with_a_field = self.outward && GO_WITH_A_FIELD.contains(&name);
        id
    }

    /// Whether there is something to do in this direction.
    fn concerns(&self, what: What, whole: Option<Whole>) -> bool {
        match what {
            What::Value(Op::Text) | What::Withhold | What::Cell => self.outward,
            What::Deny(_) => !self.outward,
            What::Slot(_) => whole.is_some(),
            What::Entries(entries) => {
                let keys = if self.outward { entries.hidden } else { entries.refused };
                !keys.is_empty() || !entries.values.is_empty() || entries.labelled
            }
            _ => true,
        }
    }

    /// Takes away the fields whose messages have no rules.
    fn prune(&mut self) {
        let mut useful: Vec<bool> = self.nodes.iter().map(|node| node.whole.is_some()).collect();
        loop {
            let mut more = false;
            for (index, node) in self.nodes.iter().enumerate() {
                let now = node.wire.iter().any(|rule| rule.addition.is_some() || is_useful(rule.what, &useful));
                if now && !useful[index] {
                    useful[index] = true;
                    more = true;
                }
            }
            if !more {
                break;
            }
        }
        for node in &mut self.nodes {
            node.wire.retain(|rule| rule.addition.is_some() || is_useful(rule.what, &useful));
            assert!(node.wire.len() <= 64, "what was seen of a message is a set of 64");
        }
    }

    /// Makes the tables for JSON, where an inlined message's fields are its parent's.
    fn flatten(&mut self) {
        for index in 0..self.nodes.len() {
            let mut json = Vec::new();
            self.flatten_into(index, &mut json);
            assert!(json.len() <= 64, "what was seen of a message is a set of 64");
            self.nodes[index].adds = json.iter().any(|rule| rule.addition.is_some());
            self.nodes[index].json = json;
        }
    }

    fn flatten_into(&self, index: usize, json: &mut Vec<Rule>) {
        for rule in &self.nodes[index].wire {
            match rule.what {
                What::Enter(child) if rule.name.is_empty() => {
                    let child = child as usize;
                    assert!(self.nodes[child].whole.is_none(), "{} is inlined", self.messages[child].name);
                    self.flatten_into(child, json);
                }
                _ => json.push(rule.clone()),
            }
        }
    }
}

fn is_useful(what: What, useful: &[bool]) -> bool {
    match what {
        What::Enter(child) | What::Json(child) => useful[child as usize],
        _ => true,
    }
}

const OWN_METADATA: &str = "meta.v1.ObjectMeta@own";

/// The message of a field, in the variant that it is in this place if no rule names another.
pub(super) fn child(message: &Message, field: &Field) -> Option<&'static str> {
    match field.of {
        Type::Of("meta.v1.ObjectMeta") if message.root && is_own_message(message.name) => Some(OWN_METADATA),
        Type::Of("meta.v1.ObjectMeta") if message.root => Some("meta.v1.ObjectMeta@root"),
        Type::Of("meta.v1.LabelSelector") if field.name == "namespaceSelector" => {
            Some("meta.v1.LabelSelector@namespaces")
        }
        Type::Of(child) => Some(child),
        _ => None,
    }
}

/// The rule for a field: of the variant, of the message, of any message.
pub(super) fn mark(message: &str, field: &str) -> Option<Mark> {
    let found = lookup(MARKS.iter().filter(|row| row.1 == field).map(|row| (row.0, row.2)), message);
    found.or_else(|| MARKS.iter().find(|row| row.0 == "*" && row.1 == field).map(|row| row.2))
}

/// What stands for a message, or else for the one that it is a variant of.
pub(super) fn lookup<T: Copy>(rows: impl Iterator<Item = (&'static str, T)> + Clone, message: &str) -> Option<T> {
    let base = message.split_once('@').map_or(message, |(base, _)| base);
    let exact = rows.clone().find(|(name, _)| *name == message);
    exact.or_else(|| rows.clone().find(|(name, _)| *name == base)).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_is_of_a_field_that_there_is() {
        let field = |message: &str, name: &str| {
            schema::find(message).and_then(|message| message.fields.iter().find(|field| field.name == name))
        };
        for (message, name, mark) in MARKS.iter().filter(|row| row.0 != "*") {
            let field = field(message, name).unwrap_or_else(|| panic!("{message}.{name}"));
            let fits = match mark {
                Mark::Value(_) | Mark::Domains => field.of == Type::Text && field.shape != Shape::Map,
                Mark::Entries(_) => field.shape == Shape::Map,
                Mark::As(_) | Mark::Json(_) | Mark::Object => matches!(field.of, Type::Of(_)),
                Mark::Cell => field.shape == Shape::Many,
                Mark::Keep | Mark::Slot(_) | Mark::Deny(_) | Mark::Withhold => true,
            };
            assert!(fits, "{message}.{name} is no {mark:?}");
        }
        for (message, name, _) in ADDITIONS {
            assert!(field(message, name).is_some(), "{message}.{name}");
        }
        for message in WHOLES.iter().map(|(message, _)| message).chain(GO_WITH_A_FIELD) {
            assert!(schema::find(message).is_some(), "{message}");
        }
        for message in schema::all() {
            let texts = message.fields.iter().filter(|field| field.name == "message");
            assert!(texts.clone().all(|field| field.of == Type::Text), "{}.message", message.name);
        }
    }

    #[test]
    fn both_plans_have_all_that_is_looked_up() {
        for plan in [&*INWARD, &*OUTWARD] {
            for (.., message) in schema::kinds() {
                assert!(plan.find(message.name).is_some(), "{}", message.name);
            }
            for name in ["meta.v1.WatchEvent", UNPLACED, UNPLACED_FIELD] {
                assert!(plan.find(name).is_some(), "{name}");
            }
            for (name, node) in &plan.by_name {
                let special = crate::rewrite::transcode::Special::of(name).is_some();
                assert!(!special || plan.node(*node).wire.is_empty(), "{name} is no object in JSON");
            }
            for (_, _, mark) in MARKS {
                if let Mark::Entries(entries) = mark {
                    for (_, entry) in entries.values {
                        if let crate::rewrite::marks::Entry::List(message) = entry {
                            assert!(plan.find(message).is_some(), "{message}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_has_no_rule_is_not_entered() {
        let pod_spec = OUTWARD.node(OUTWARD.find("core.v1.PodSpec").unwrap());
        assert!(pod_spec.by_key(b"tolerations").is_none());
        let metadata = OUTWARD.node(OUTWARD.find("meta.v1.ObjectMeta@root").unwrap());
        assert!(metadata.by_key(b"managedFields").is_none());
    }
}
