//! JSON that is cut and put together again without being understood.
//!
//! Invariant: what is kept is kept byte by byte, so fields that nobody here knows stay as they are. Malformed text is an error or passes
//! through; it never panics, however deep it is nested.

use std::borrow::Cow;

use memchr::memchr2;

use super::Malformed;

/// What becomes of a part of a document.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Edit {
    /// It stays as it is.
    Keep,
    /// It goes.
    Drop,
    /// This is there instead.
    Replace(Vec<u8>),
}

/// The value that a document is.
pub(super) fn document(bytes: &[u8]) -> Result<&[u8], Malformed> {
    let mut scanner = Scanner { rest: bytes };
    let value = scanner.value()?;
    scanner.skip_space();
    if scanner.rest.is_empty() { Ok(value) } else { Err(Malformed("text after the end of the JSON")) }
}

/// The members of an object: the key, and the value as it is written.
pub(super) fn members(object: &[u8]) -> Result<Members<'_>, Malformed> {
    let mut scanner = Scanner { rest: object };
    scanner.expect(b'{', "an object was expected")?;
    Ok(Members { parts: Parts { scanner, end: b'}', is_first: true, is_over: false } })
}

/// The elements of an array, as they are written.
pub(super) fn elements(array: &[u8]) -> Result<Elements<'_>, Malformed> {
    let mut scanner = Scanner { rest: array };
    scanner.expect(b'[', "an array was expected")?;
    Ok(Elements { parts: Parts { scanner, end: b']', is_first: true, is_over: false } })
}

/// The value of a member of an object, if it is there.
pub(super) fn member<'a>(object: &'a [u8], name: &str) -> Result<Option<&'a [u8]>, Malformed> {
    for member in members(object)? {
        let (key, value) = member?;
        if key == name {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// The text of a member of an object; empty if it is not there.
pub(super) fn text_member<'a>(object: &'a [u8], name: &str) -> Result<Cow<'a, str>, Malformed> {
    member(object, name)?.map_or(Ok(Cow::Borrowed("")), text)
}

/// What a string says.
pub(super) fn text(value: &[u8]) -> Result<Cow<'_, str>, Malformed> {
    let inner = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
    let inner = inner.ok_or(Malformed("a string was expected"))?;
    if memchr::memchr(b'\\', inner).is_some() {
        return serde_json::from_slice(value).map(Cow::Owned).map_err(|_| Malformed("a string with a bad escape"));
    }
    std::str::from_utf8(inner).map(Cow::Borrowed).map_err(|_| Malformed("a string that is not UTF-8"))
}

/// A string that says this.
pub(super) fn quoted(text: &str) -> Vec<u8> {
    serde_json::to_vec(text).expect("text can be written as JSON")
}

/// An object after an edit of its members' values.
pub(super) fn edit_object(
    object: &[u8],
    mut edit: impl FnMut(&str, &[u8]) -> Result<Edit, Malformed>,
) -> Result<Edit, Malformed> {
    let mut pieces = Pieces::new(object.len(), b'{');
    for member in members(object)? {
        let (key, value) = member?;
        pieces.add(edit(&key, value)?, value, Some(&key));
    }
    Ok(pieces.end(b'}'))
}

/// An array after an edit of its elements.
pub(super) fn edit_array(
    array: &[u8],
    mut edit: impl FnMut(&[u8]) -> Result<Edit, Malformed>,
) -> Result<Edit, Malformed> {
    let mut pieces = Pieces::new(array.len(), b'[');
    for element in elements(array)? {
        let element = element?;
        pieces.add(edit(element)?, element, None);
    }
    Ok(pieces.end(b']'))
}

/// An object or array that is being put together.
struct Pieces {
    written: Vec<u8>,
    is_first: bool,
    is_changed: bool,
}

impl Pieces {
    fn new(capacity: usize, begin: u8) -> Self {
        let mut written = Vec::with_capacity(capacity);
        written.push(begin);
        Self { written, is_first: true, is_changed: false }
    }

    fn add(&mut self, edit: Edit, as_it_was: &[u8], key: Option<&str>) {
        self.is_changed |= edit != Edit::Keep;
        let value = match &edit {
            Edit::Keep => as_it_was,
            Edit::Drop => return,
            Edit::Replace(value) => value,
        };
        if !std::mem::take(&mut self.is_first) {
            self.written.push(b',');
        }
        if let Some(key) = key {
            self.written.extend_from_slice(&quoted(key));
            self.written.push(b':');
        }
        self.written.extend_from_slice(value);
    }

    fn end(mut self, end: u8) -> Edit {
        if !self.is_changed {
            return Edit::Keep;
        }
        self.written.push(end);
        Edit::Replace(self.written)
    }
}

/// The same value over several lines, as Go's `encoding/json` indents it.
pub(super) fn pretty(value: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut written = Vec::with_capacity(value.len() * 2);
    let mut depth = 0usize;
    let mut scanner = Scanner { rest: value };
    let new_line = |written: &mut Vec<u8>, depth: usize| {
        written.push(b'\n');
        written.resize(written.len() + 2 * depth, b' ');
    };
    loop {
        scanner.skip_space();
        let Some(&byte) = scanner.rest.first() else { return Ok(written) };
        match byte {
            b'"' => {
                written.extend_from_slice(scanner.string()?);
                continue;
            }
            b'{' | b'[' => {
                written.push(byte);
                scanner.rest = &scanner.rest[1..];
                scanner.skip_space();
                // What is empty stays on its line.
                if scanner.rest.first() == Some(&(byte + 2)) {
                    written.push(byte + 2);
                } else {
                    depth += 1;
                    new_line(&mut written, depth);
                    continue;
                }
            }
            b'}' | b']' => {
                depth = depth.checked_sub(1).ok_or(Malformed("a bracket that was not opened"))?;
                new_line(&mut written, depth);
                written.push(byte);
            }
            b',' => {
                written.push(byte);
                new_line(&mut written, depth);
            }
            b':' => written.extend_from_slice(b": "),
            _ => written.push(byte),
        }
        scanner.rest = &scanner.rest[1..];
    }
}

/// The members of an object.
pub(super) struct Members<'a> {
    parts: Parts<'a>,
}

impl<'a> Iterator for Members<'a> {
    type Item = Result<(Cow<'a, str>, &'a [u8]), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let parts = &mut self.parts;
        parts.next_with(|scanner| {
            let key = text(scanner.string()?)?;
            scanner.skip_space();
            scanner.expect(b':', "a colon was expected")?;
            Ok((key, scanner.value()?))
        })
    }
}

/// The elements of an array.
pub(super) struct Elements<'a> {
    parts: Parts<'a>,
}

impl<'a> Iterator for Elements<'a> {
    type Item = Result<&'a [u8], Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        self.parts.next_with(Scanner::value)
    }
}

/// What stands between commas.
struct Parts<'a> {
    scanner: Scanner<'a>,
    end: u8,
    is_first: bool,
    is_over: bool,
}

impl<'a> Parts<'a> {
    fn next_with<T>(
        &mut self,
        part: impl FnOnce(&mut Scanner<'a>) -> Result<T, Malformed>,
    ) -> Option<Result<T, Malformed>> {
        if self.is_over {
            return None;
        }
        let found = self.part_or_end(part);
        self.is_over = !matches!(found, Ok(Some(_)));
        found.transpose()
    }

    fn part_or_end<T>(
        &mut self,
        part: impl FnOnce(&mut Scanner<'a>) -> Result<T, Malformed>,
    ) -> Result<Option<T>, Malformed> {
        let scanner = &mut self.scanner;
        scanner.skip_space();
        if scanner.rest.first() == Some(&self.end) {
            return Ok(None);
        }
        if !std::mem::take(&mut self.is_first) {
            scanner.expect(b',', "a comma was expected")?;
            scanner.skip_space();
        }
        part(scanner).map(Some)
    }
}

struct Scanner<'a> {
    rest: &'a [u8],
}

impl<'a> Scanner<'a> {
    fn skip_space(&mut self) {
        let space = self.rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).count();
        self.rest = &self.rest[space..];
    }

    fn expect(&mut self, byte: u8, otherwise: &'static str) -> Result<(), Malformed> {
        match self.rest.split_first() {
            Some((first, rest)) if *first == byte => {
                self.rest = rest;
                Ok(())
            }
            _ => Err(Malformed(otherwise)),
        }
    }

    /// The next string, with its quotation marks.
    fn string(&mut self) -> Result<&'a [u8], Malformed> {
        let length = string_length(self.rest)?;
        Ok(self.take(length))
    }

    /// The next value, as it is written.
    fn value(&mut self) -> Result<&'a [u8], Malformed> {
        self.skip_space();
        let length = match self.rest.first() {
            Some(b'"') => string_length(self.rest)?,
            Some(b'{' | b'[') => container_length(self.rest)?,
            _ => self.rest.iter().take_while(|byte| !matches!(byte, b',' | b']' | b'}' | b' ' | b'\n' | b'\r')).count(),
        };
        if length == 0 {
            return Err(Malformed("a value was expected"));
        }
        Ok(self.take(length))
    }

    fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        taken
    }
}

/// Bytes of the string at the beginning.
fn string_length(bytes: &[u8]) -> Result<usize, Malformed> {
    if bytes.first() != Some(&b'"') {
        return Err(Malformed("a string was expected"));
    }
    let mut at = 1;
    while let Some(found) = memchr2(b'"', b'\\', bytes.get(at..).unwrap_or_default()) {
        at += found;
        if bytes[at] == b'"' {
            return Ok(at + 1);
        }
        at += 2;
    }
    Err(Malformed("a string has no end"))
}

/// Bytes of the object or array at the beginning.
fn container_length(bytes: &[u8]) -> Result<usize, Malformed> {
    // A bit for each open bracket, set for a brace.
    let (mut open, mut depth) = (0u128, 0u32);
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => {
                at += string_length(&bytes[at..])?;
                continue;
            }
            b'{' | b'[' => {
                if depth == u128::BITS {
                    return Err(Malformed("the JSON is nested too deeply"));
                }
                open = open << 1 | u128::from(byte == b'{');
                depth += 1;
            }
            b'}' | b']' => {
                if (open & 1 == 1) != (byte == b'}') {
                    return Err(Malformed("a bracket that another one was expected for"));
                }
                open >>= 1;
                depth -= 1;
                if depth == 0 {
                    return Ok(at + 1);
                }
            }
            _ => {}
        }
        at += 1;
    }
    Err(Malformed("the JSON has no end"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &[u8] = br#" {"a" : [1, {"b":"x\"}]"}, [] ], "c\u002fd":null,"e":{}}"#;

    #[test]
    fn what_is_kept_is_kept_byte_by_byte() {
        let value = document(TEXT).unwrap();
        let keys: Vec<_> = members(value).unwrap().map(|member| member.unwrap().0.into_owned()).collect();
        assert_eq!(keys, ["a", "c/d", "e"]);
        let edited = edit_object(value, |key, value| {
            Ok(match key {
                "a" => edit_array(value, |element| Ok(if element == b"1" { Edit::Drop } else { Edit::Keep }))?,
                "e" => Edit::Replace(b"7".to_vec()),
                _ => Edit::Keep,
            })
        });
        let Edit::Replace(edited) = edited.unwrap() else { panic!("unchanged") };
        assert_eq!(String::from_utf8(edited).unwrap(), r#"{"a":[{"b":"x\"}]"},[]],"c/d":null,"e":7}"#);
        assert_eq!(edit_object(value, |_, _| Ok(Edit::Keep)).unwrap(), Edit::Keep);
        assert_eq!(member(value, "e").unwrap(), Some(b"{}".as_slice()));
        assert_eq!(text_member(value, "no").unwrap(), "");
    }

    #[test]
    fn pretty_text_is_what_go_writes() {
        let written = pretty(document(TEXT).unwrap()).unwrap();
        let expected = [
            "{",
            r#"  "a": ["#,
            "    1,",
            "    {",
            r#"      "b": "x\"}]""#,
            "    },",
            "    []",
            "  ],",
            r#"  "c\u002fd": null,"#,
            r#"  "e": {}"#,
            "}",
        ];
        assert_eq!(String::from_utf8(written).unwrap(), expected.join("\n"));
    }

    #[test]
    fn malformed_text_is_an_error() {
        for text in ["", "{", "{]", "[}", "\"", "\"\\", "{} x", "[1", "{\"a\":", "]"] {
            let walked = document(text.as_bytes()).and_then(|value| match value.first() {
                Some(b'{') => members(value)?.try_for_each(|member| member.map(drop)),
                _ => elements(value)?.try_for_each(|element| element.map(drop)),
            });
            assert!(walked.is_err(), "{text}");
        }
        assert!(document(&[b'['; 1_000_000]).is_err());
        assert!(members(b"{\"a\" 1}").unwrap().any(|member| member.is_err()));
        assert!(members(b"{\"a\":1 \"b\":2}").unwrap().any(|member| member.is_err()));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in r#"[\[\]{}",:\\ a1]{0,40}"#) {
            let text = text.as_bytes();
            let _ = pretty(text);
            for value in [document(text).unwrap_or(text), text] {
                let _ = edit_object(value, |_, _| Ok(Edit::Drop));
                let _ = edit_array(value, |_| Ok(Edit::Keep));
                let _ = super::text(value);
            }
        }
    }
}
