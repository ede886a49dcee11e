//! The walk through JSON.
//!
//! Invariant: what isn't changed stays byte for byte.

use super::edits::Edits;
use super::marks::{Addition, Entries, Entry, Whole};
use super::plan::{Node, Rule, What};
use super::scan::{Fallible, Raw, Scan, escape};
use super::schema::Shape;
use super::value::{Change, Op};
use super::walk::{Decision, Held, Mode, Span, TOGETHER, Verdict, Walk, refused};
use super::{RewriteError, TypeMeta};
use crate::names::PREFIX_LENGTH;

const DIRECTIVE: &str = "no directive can stand where KubeZoo's label is";
const LIST_DIRECTIVES: [&str; 2] = ["$setElementOrder/", "$deleteFromPrimitiveList/"];

/// The members of an object or elements of an array, of which some go, and their commas with them.
struct Members {
    /// Where the first of those that go begins, while none before it stays.
    removing: Option<usize>,
    previous_end: usize,
    kept: bool,
    removed: bool,
}

impl Members {
    fn new() -> Self {
        Self { removing: None, previous_end: 0, kept: false, removed: false }
    }

    fn begin(&mut self, start: usize, edits: &mut Edits<'_>) {
        if let Some(from) = self.removing.take() {
            edits.remove(from, start);
        }
    }

    fn end(&mut self, verdict: Verdict, start: usize, end: usize, edits: &mut Edits<'_>) {
        match verdict {
            Verdict::Keep => self.kept = true,
            Verdict::Remove => {
                self.removed = true;
                if self.kept {
                    edits.remove(self.previous_end, end);
                } else {
                    self.removing = Some(start);
                }
            }
        }
        self.previous_end = end;
    }

    fn close(&mut self, edits: &mut Edits<'_>) {
        if let Some(from) = self.removing.take() {
            edits.remove(from, self.previous_end);
        }
    }

    /// All are gone.
    fn verdict(&self) -> Verdict {
        if self.removed && !self.kept { Verdict::Remove } else { Verdict::Keep }
    }

    /// Adds one before the closing bracket.
    fn add(&mut self, close: usize, json: &[u8], edits: &mut Edits<'_>) {
        if self.kept {
            edits.replace(close, close, b",");
        }
        edits.replace(close, close, json);
        self.kept = true;
    }
}

impl Walk<'_> {
    /// Walks through a whole text of which the kind is known.
    pub(super) fn json_text(&mut self, input: &[u8], node: &'static Node) -> Fallible<()> {
        let mut scan = Scan::new(input);
        self.json_object(&mut scan, node)?;
        scan.end()
    }

    /// Walks through an object that says itself what it is, or through `null`.
    pub(super) fn json_dynamic(&mut self, scan: &mut Scan<'_>) -> Fallible<Verdict> {
        if scan.take_null() {
            return Ok(Verdict::Keep);
        }
        let type_meta = type_of(&mut scan.clone(), false)?;
        let node = self.node(type_meta.resolve(self.expected())?.node(self.outward()));
        self.inner_object(|walk| walk.json_object(scan, node))
    }

    pub(super) fn json_object(&mut self, scan: &mut Scan<'_>, node: &'static Node) -> Fallible<Verdict> {
        let node = if node.whole == Some(Whole::About) { self.json_about(scan, node)? } else { node };
        scan.expect(b'{', "an object")?;
        let base = self.held.len();
        let mut seen = 0u64;
        let mut members = Members::new();
        let mut more = !scan.take(b'}');
        while more {
            scan.peek();
            let start = scan.at;
            members.begin(start, &mut self.edits);
            let key = scan.key()?;
            let found = if key.escaped { node.by_key(key.text()?.as_bytes()) } else { node.by_key(key.bytes) };
            let verdict = match found {
                None if self.mode == Mode::Strategic && key.bytes.starts_with(b"$") => {
                    self.json_directive(scan, node, key)?;
                    Verdict::Keep
                }
                None => {
                    scan.skip()?;
                    Verdict::Keep
                }
                Some((index, rule)) => {
                    let bit = 1u64 << index;
                    if seen & bit != 0 && rule.once() && !self.outward() {
                        return Err(refused(rule.name, "the field is given twice"));
                    }
                    seen |= bit;
                    let mark = self.edits.mark();
                    let verdict = self.json_field(scan, rule).map_err(|error| error.within(rule.name))?;
                    if verdict == Verdict::Remove {
                        self.edits.truncate(mark);
                    }
                    verdict
                }
            };
            members.end(verdict, start, scan.at, &mut self.edits);
            more = scan.take(b',');
            if !more {
                scan.expect(b'}', "a comma or the end of the object")?;
            }
        }
        members.close(&mut self.edits);
        if node.adds {
            for (index, rule) in node.json.iter().enumerate() {
                if let Some(addition) = rule.addition.filter(|addition| self.has_to_add(*addition))
                    && seen & (1 << index) == 0
                {
                    if self.is_partial() {
                        if addition == Addition::Requirement {
                            return Err(refused(rule.name, "it must be given, as KubeZoo adds to it"));
                        }
                        continue;
                    }
                    let mut member = format!("\"{}\":", rule.name).into_bytes();
                    member.extend_from_slice(&self.addition_value_json(addition));
                    members.add(scan.at - 1, &member, &mut self.edits);
                }
            }
        }
        if members.removed && node.goes_with_a_field {
            return Ok(Verdict::Remove);
        }
        self.json_whole(scan, node, base)
    }

    /// Decides what several fields say together, and does it.
    fn json_whole(&mut self, scan: &Scan<'_>, node: &Node, base: usize) -> Fallible<Verdict> {
        let Some(whole) = node.whole else { return Ok(Verdict::Keep) };
        let held = &self.held[base..];
        let read = |slot| {
            let Some(found) = held.iter().find(|held| held.slot == slot) else { return Ok(None) };
            let mut scan = Scan { input: scan.input, at: found.field.start };
            if scan.take_null() { Ok(None) } else { scan.string()?.text().map(Some) }
        };
        if self.is_half_merged(held, |slot| read(slot).map(|text| text.is_some()))? {
            return Err(refused("", TOGETHER));
        }
        let decision = self.decide(whole, read)?;
        let verdict = match decision {
            Decision::Keep => Verdict::Keep,
            Decision::Remove => Verdict::Remove,
            Decision::Revisit(fields) => {
                for index in base..self.held.len() {
                    let Held { slot, field } = self.held[index];
                    if let Some((_, shape, what)) = fields.iter().find(|(of, ..)| *of == slot) {
                        let mut scan = Scan { input: scan.input, at: field.start };
                        self.json_value(&mut scan, *shape, *what, None)?;
                    }
                }
                Verdict::Keep
            }
        };
        self.held.truncate(base);
        Ok(verdict)
    }

    fn json_field(&mut self, scan: &mut Scan<'_>, rule: &Rule) -> Fallible<Verdict> {
        self.json_value(scan, rule.shape, rule.what, rule.addition)
    }

    pub(super) fn json_value(
        &mut self,
        scan: &mut Scan<'_>,
        shape: Shape,
        what: What,
        addition: Option<Addition>,
    ) -> Fallible<Verdict> {
        scan.peek();
        let start = scan.at;
        if let What::Slot(slot) = what {
            scan.skip()?;
            self.held.push(Held { slot, field: Span { start, ..Span::default() } });
            return Ok(Verdict::Keep);
        }
        if scan.take_null() {
            match addition.filter(|addition| self.has_to_add(*addition)) {
                None => {}
                Some(Addition::Label | Addition::Metadata) if self.is_partial() => {
                    return Err(refused("", "not all of it can be taken away at once: KubeZoo's label is there"));
                }
                Some(addition) => {
                    let value = self.addition_value_json(addition);
                    self.edits.replace(start, scan.at, &value);
                }
            }
            return Ok(Verdict::Keep);
        }
        match (what, shape) {
            (What::Withhold, _) => {
                scan.skip()?;
                Ok(Verdict::Remove)
            }
            (What::Deny(deny), _) => {
                scan.skip()?;
                let mut value = Scan { input: &scan.input[..scan.at], at: start };
                if !is_empty(&value) {
                    self.deny(deny, || value.string()?.text().map(Into::into))?;
                }
                Ok(Verdict::Keep)
            }
            (What::Entries(entries), _) => self.json_entries(scan, entries),
            (what, Shape::One) => self.json_one(scan, what),
            (what, Shape::Many) => self.json_array(scan, what, addition),
            (what, Shape::Map) => self.json_map(scan, what),
        }
    }

    pub(super) fn json_one(&mut self, scan: &mut Scan<'_>, what: What) -> Fallible<Verdict> {
        match what {
            What::Enter(node) => self.json_object(scan, self.node(node)),
            What::Json(node) => {
                let start = scan.at;
                self.json_or_text(
                    scan,
                    |walk, scan| walk.json_object(scan, walk.node(node)),
                    |scan| {
                        scan.at = start;
                        scan.skip()
                    },
                )
            }
            What::Value(op) => self.json_string(scan, op),
            What::Object => self.json_dynamic(scan),
            What::Domains => self.domain_verdict(&scan.string()?.text()?),
            What::Cell if scan.peek() == Some(b'"') => self.json_string(scan, Op::Text),
            What::Cell => {
                scan.skip()?;
                Ok(Verdict::Keep)
            }
            What::Entries(_) | What::Slot(_) | What::Withhold | What::Deny(_) => scan.malformed("no list of this"),
        }
    }

    /// Walks through JSON that nobody has checked. Outward it must not keep the object around it from being read: if it is not what it should
    /// be, it is text.
    pub(super) fn json_or_text(
        &mut self,
        scan: &mut Scan<'_>,
        walk_through: impl FnOnce(&mut Self, &mut Scan<'_>) -> Fallible<Verdict>,
        skip: impl FnOnce(&mut Scan<'_>) -> Fallible<()>,
    ) -> Fallible<Verdict> {
        let (start, mark, base) = (scan.at, self.edits.mark(), self.held.len());
        let walked = walk_through(self, scan);
        if walked.is_ok() || !self.outward() {
            return walked;
        }
        self.edits.truncate(mark);
        self.held.truncate(base);
        skip(scan)?;
        for found in memchr::memmem::find_iter(&scan.input[start..scan.at], self.names.prefix()) {
            self.edits.remove(start + found, start + found + PREFIX_LENGTH);
        }
        Ok(Verdict::Keep)
    }

    fn json_string(&mut self, scan: &mut Scan<'_>, op: Op) -> Fallible<Verdict> {
        let raw = scan.string()?;
        if op == Op::Text {
            if raw.bytes.contains(&b'\\') {
                // An escape and what follows it may look like what is to go.
                if let Change::Replace(text) = self.change(op, &raw.text()?)? {
                    self.json_replace(&raw, &text);
                }
                return Ok(Verdict::Keep);
            }
            if let Ok(text) = std::str::from_utf8(raw.bytes)
                && let Change::Replace(text) = self.change(op, text)?
            {
                self.edits.replace(raw.start, raw.end, text.as_bytes());
            }
            return Ok(Verdict::Keep);
        }
        let text = raw.text()?;
        match self.change(op, &text)? {
            Change::Keep => {}
            Change::Remove => return Ok(Verdict::Remove),
            // What is before the place may be written with escapes.
            Change::Prefix(at) if raw.bytes.starts_with(&text.as_bytes()[..at]) => self.edits.prefix(raw.start + at),
            Change::Prefix(at) => {
                self.json_replace(&raw, &[&text[..at], self.names.prefix(), &text[at..]].concat());
            }
            Change::Strip(at) if raw.bytes.starts_with(&text.as_bytes()[..at + PREFIX_LENGTH]) => {
                self.edits.remove(raw.start + at, raw.start + at + PREFIX_LENGTH);
            }
            Change::Strip(at) => self.json_replace(&raw, &[&text[..at], &text[at + PREFIX_LENGTH..]].concat()),
            Change::Replace(text) => self.json_replace(&raw, &text),
            Change::Foreign => return Err(Box::new(RewriteError::Foreign(String::new()))),
        }
        Ok(Verdict::Keep)
    }

    fn json_replace(&mut self, raw: &Raw<'_>, text: &str) {
        let mut written = Vec::with_capacity(text.len() + 16);
        // Go's encoder writes these as escapes, others do not.
        let is_gos = !raw.bytes.iter().any(|byte| matches!(byte, b'<' | b'>' | b'&'));
        escape(text, is_gos, &mut written);
        self.edits.replace(raw.start, raw.end, &written);
    }

    pub(super) fn json_array(
        &mut self,
        scan: &mut Scan<'_>,
        what: What,
        addition: Option<Addition>,
    ) -> Fallible<Verdict> {
        scan.expect(b'[', "an array")?;
        self.arrays += 1;
        let mut members = Members::new();
        let mut more = !scan.take(b']');
        let mut index = 0;
        while more {
            scan.peek();
            let start = scan.at;
            members.begin(start, &mut self.edits);
            let mark = self.edits.mark();
            let verdict = if scan.take_null() {
                Verdict::Keep
            } else {
                self.json_one(scan, what).map_err(|error| error.within_element(index))?
            };
            if verdict == Verdict::Remove {
                self.edits.truncate(mark);
            }
            members.end(verdict, start, scan.at, &mut self.edits);
            index += 1;
            more = scan.take(b',');
            if !more {
                scan.expect(b']', "a comma or the end of the array")?;
            }
        }
        self.arrays -= 1;
        members.close(&mut self.edits);
        if let Some(addition) = addition {
            let element = self.addition_json(addition);
            members.add(scan.at - 1, &element, &mut self.edits);
        }
        Ok(members.verdict())
    }

    fn json_map(&mut self, scan: &mut Scan<'_>, what: What) -> Fallible<Verdict> {
        scan.expect(b'{', "an object")?;
        let mut more = !scan.take(b'}');
        while more {
            let key = scan.key()?;
            if !scan.take_null() {
                self.json_one(scan, what).map_err(|error| error.within(&String::from_utf8_lossy(key.bytes)))?;
            }
            more = scan.take(b',');
            if !more {
                scan.expect(b'}', "a comma or the end of the object")?;
            }
        }
        Ok(Verdict::Keep)
    }

    fn json_entries(&mut self, scan: &mut Scan<'_>, entries: &Entries) -> Fallible<Verdict> {
        scan.expect(b'{', "an object")?;
        let mut members = Members::new();
        let mut more = !scan.take(b'}');
        while more {
            scan.peek();
            let start = scan.at;
            members.begin(start, &mut self.edits);
            let key = scan.key()?.text()?;
            if self.mode == Mode::Strategic && entries.labelled && key.starts_with('$') {
                return Err(refused(&key, DIRECTIVE));
            }
            let verdict = self.entry_verdict(entries, &key)?;
            match entries.values.iter().find(|(name, _)| *name == key) {
                Some((name, entry)) if verdict == Verdict::Keep => {
                    self.json_entry(scan, *entry).map_err(|error| error.within(name))?;
                }
                _ => scan.skip()?,
            }
            members.end(verdict, start, scan.at, &mut self.edits);
            more = scan.take(b',');
            if !more {
                scan.expect(b'}', "a comma or the end of the object")?;
            }
        }
        members.close(&mut self.edits);
        if entries.labelled && !self.outward() && !self.is_partial() {
            let entry = self.addition_json(Addition::Label);
            members.add(scan.at - 1, &entry, &mut self.edits);
        }
        Ok(members.verdict())
    }

    /// A directive of a strategic merge patch: the order of a list, or what is to be taken from one. Others say nothing of a tenant's place.
    fn json_directive(&mut self, scan: &mut Scan<'_>, node: &Node, key: Raw<'_>) -> Fallible<()> {
        let key = key.text()?;
        if node.adds {
            return Err(refused(&key, DIRECTIVE));
        }
        let field = LIST_DIRECTIVES.iter().find_map(|directive| key.strip_prefix(directive));
        match field.and_then(|field| node.by_key(field.as_bytes())) {
            Some((_, rule))
                if matches!(rule.what, What::Value(_) | What::Domains | What::Enter(_)) && !scan.take_null() =>
            {
                self.json_array(scan, rule.what, None).map(|_| ()).map_err(|error| error.within(&key))
            }
            _ => scan.skip(),
        }
    }

    pub(super) fn json_entry(&mut self, scan: &mut Scan<'_>, entry: Entry) -> Fallible<()> {
        if scan.take_null() {
            return Ok(());
        }
        if let Entry::Value(op) = entry {
            return self.json_string(scan, op).map(|_| ());
        }
        let raw = scan.string()?;
        if let Some(text) = self.entry_changed(entry, &raw.text()?)? {
            self.json_replace(&raw, &text);
        }
        Ok(())
    }
}

/// Whether a value says nothing: `""`, `[]`, `{}`.
fn is_empty(value: &Scan<'_>) -> bool {
    let mut value = value.clone();
    let empty = match value.peek() {
        Some(b'"') => value.string().is_ok_and(|raw| raw.bytes.is_empty()),
        Some(b'[') => value.take(b'[') && value.take(b']'),
        Some(b'{') => value.take(b'{') && value.take(b'}'),
        _ => false,
    };
    empty && value.end().is_ok()
}

/// What an object says of itself. Strictly, it may not say it twice, or in letters that Go's decoder takes for the same.
pub(super) fn type_of(scan: &mut Scan<'_>, strict: bool) -> Fallible<TypeMeta> {
    scan.expect(b'{', "an object")?;
    let (mut api_version, mut kind) = (None, None);
    let mut more = !scan.take(b'}');
    while more && (strict || api_version.is_none() || kind.is_none()) {
        let key = scan.key()?;
        let place = match key.bytes {
            b"apiVersion" => Some(&mut api_version),
            b"kind" => Some(&mut kind),
            _ if strict => {
                let text = key.text()?;
                for name in ["apiVersion", "kind"] {
                    if folds_to(&text, name) {
                        return Err(refused(&text, format!("it must be written {name}")));
                    }
                }
                None
            }
            _ => None,
        };
        match place {
            Some(Some(_)) if strict => return Err(refused(&key.text()?, "the field is given twice")),
            Some(place) if scan.peek() == Some(b'"') => *place = Some(scan.string()?.text()?.into_owned()),
            Some(place) if scan.take_null() => *place = Some(String::new()),
            Some(_) => return scan.malformed("a string was expected"),
            None => scan.skip()?,
        }
        more = scan.take(b',');
        if !more {
            scan.expect(b'}', "a comma or the end of the object")?;
        }
    }
    Ok(TypeMeta { api_version: api_version.unwrap_or_default(), kind: kind.unwrap_or_default() })
}

/// Whether Go's decoder takes a key for this name when it doesn't look at capitals. Two letters beyond ASCII are capitals of `k` and `s`.
fn folds_to(key: &str, name: &str) -> bool {
    let lower = |letter: char| match letter {
        '\u{212a}' => 'k',
        '\u{17f}' => 's',
        letter => letter.to_ascii_lowercase(),
    };
    key.chars().map(lower).eq(name.chars().map(lower))
}
