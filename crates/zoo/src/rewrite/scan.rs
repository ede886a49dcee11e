//! Reading JSON without making anything of it.
//!
//! What is skipped is not checked: kube-apiserver reads the same bytes and refuses what isn't JSON. Up to the first mistake in a body this
//! reader and kube-apiserver's see the same tokens, and behind it kube-apiserver reads nothing any more.
//!
//! Invariant: no bytes make it panic, or read outside the input.

use std::borrow::Cow;

use super::RewriteError;

pub(super) type Fallible<T> = Result<T, Box<RewriteError>>;

/// A place in a JSON text.
#[derive(Clone)]
pub(super) struct Scan<'a> {
    pub(super) input: &'a [u8],
    pub(super) at: usize,
}

/// A string as it is written: between the quotes.
#[derive(Clone, Copy)]
pub(super) struct Raw<'a> {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) bytes: &'a [u8],
    /// It has a backslash in it.
    pub(super) escaped: bool,
}

impl<'a> Scan<'a> {
    pub(super) fn new(input: &'a [u8]) -> Self {
        Self { input, at: 0 }
    }

    pub(super) fn malformed<T>(&self, what: &str) -> Fallible<T> {
        Err(Box::new(RewriteError::Malformed(format!("{what} at byte {} of the JSON text", self.at))))
    }

    /// The next byte that is no space.
    pub(super) fn peek(&mut self) -> Option<u8> {
        loop {
            let byte = *self.input.get(self.at)?;
            if !matches!(byte, b' ' | b'\n' | b'\t' | b'\r') {
                return Some(byte);
            }
            self.at += 1;
        }
    }

    pub(super) fn expect(&mut self, byte: u8, what: &str) -> Fallible<()> {
        if self.peek() != Some(byte) {
            return self.malformed(&format!("{what} was expected"));
        }
        self.at += 1;
        Ok(())
    }

    /// Takes the next byte if it is this one.
    pub(super) fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    /// Takes a `null`.
    pub(super) fn take_null(&mut self) -> bool {
        let found = self.peek() == Some(b'n');
        if found {
            self.skip_scalar();
        }
        found
    }

    /// Only spaces are left.
    pub(super) fn end(&mut self) -> Fallible<()> {
        match self.peek() {
            None => Ok(()),
            Some(_) => self.malformed("the end was expected"),
        }
    }

    pub(super) fn string(&mut self) -> Fallible<Raw<'a>> {
        self.expect(b'"', "a string")?;
        let start = self.at;
        let escaped = self.skip_string()?;
        let end = self.at - 1;
        Ok(Raw { start, end, bytes: &self.input[start..end], escaped })
    }

    /// A key of an object and its colon.
    pub(super) fn key(&mut self) -> Fallible<Raw<'a>> {
        let key = self.string()?;
        self.expect(b':', "a colon")?;
        Ok(key)
    }

    /// Goes behind the closing quote of a string; says whether there was a backslash.
    fn skip_string(&mut self) -> Fallible<bool> {
        let mut escaped = false;
        loop {
            let Some(found) = memchr::memchr2(b'"', b'\\', &self.input[self.at..]) else {
                return self.malformed("a string without an end");
            };
            self.at += found + 1;
            if self.input[self.at - 1] == b'"' {
                return Ok(escaped);
            }
            escaped = true;
            if self.at >= self.input.len() {
                return self.malformed("a string without an end");
            }
            self.at += 1;
        }
    }

    fn skip_scalar(&mut self) {
        let scalar = |byte: &u8| !matches!(byte, b',' | b'}' | b']' | b' ' | b'\n' | b'\t' | b'\r');
        self.at += self.input[self.at..].iter().take_while(|byte| scalar(byte)).count();
    }

    /// Goes behind a value.
    pub(super) fn skip(&mut self) -> Fallible<()> {
        match self.peek() {
            Some(b'"') => {
                self.at += 1;
                self.skip_string()?;
                Ok(())
            }
            Some(b'{' | b'[') => self.skip_container(),
            Some(b',' | b'}' | b']' | b':') | None => self.malformed("a value was expected"),
            Some(_) => {
                self.skip_scalar();
                Ok(())
            }
        }
    }

    fn skip_container(&mut self) -> Fallible<()> {
        let mut depth = 0usize;
        loop {
            let Some(byte) = self.input.get(self.at) else {
                return self.malformed("an object or array without an end");
            };
            self.at += 1;
            match byte {
                b'"' => {
                    self.skip_string()?;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => {
                    depth -= 1;
                    if depth == 0 {
                        return Ok(());
                    }
                }
                _ => {}
            }
        }
    }
}

impl<'a> Raw<'a> {
    /// The text that it stands for.
    pub(super) fn text(&self) -> Fallible<Cow<'a, str>> {
        let raw = std::str::from_utf8(self.bytes).map_err(|_| {
            Box::new(RewriteError::Malformed(format!("a string that is not UTF-8 at byte {}", self.start)))
        })?;
        if !self.escaped {
            return Ok(Cow::Borrowed(raw));
        }
        match unescape(raw) {
            Some(text) => Ok(Cow::Owned(text)),
            None => {
                Err(Box::new(RewriteError::Malformed(format!("a wrong escape in the string at byte {}", self.start))))
            }
        }
    }
}

/// A string of JSON decoded as Go's decoder does it: a lone surrogate is the replacement character.
fn unescape(raw: &str) -> Option<String> {
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(place) = memchr::memchr(b'\\', rest.as_bytes()) {
        text.push_str(&rest[..place]);
        let escape = *rest.as_bytes().get(place + 1)?;
        // An escape is ASCII, so a character begins behind it.
        rest = rest.get(place + 2..)?;
        let plain = match escape {
            b'"' | b'\\' | b'/' | b'\'' => char::from(escape),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let first = hex(rest)?;
                rest = &rest[4..];
                let second = rest.strip_prefix("\\u").and_then(hex);
                let pair = char::decode_utf16([first, second.unwrap_or(0)]).next();
                match (first, second, pair) {
                    (0xd800..=0xdbff, Some(_), Some(Ok(character))) => {
                        rest = &rest[6..];
                        character
                    }
                    _ => char::from_u32(u32::from(first)).unwrap_or(char::REPLACEMENT_CHARACTER),
                }
            }
            _ => return None,
        };
        text.push(plain);
    }
    text.push_str(rest);
    Some(text)
}

fn hex(text: &str) -> Option<u16> {
    let digits = text.get(..4)?;
    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u16::from_str_radix(digits, 16).ok()
}

/// Appends a text as it is written between the quotes of a JSON string. Go's encoder writes escapes for what HTML would take for its own.
pub(super) fn escape(text: &str, for_html: bool, output: &mut Vec<u8>) {
    for character in text.chars() {
        match character {
            '"' => output.extend_from_slice(b"\\\""),
            '\\' => output.extend_from_slice(b"\\\\"),
            '\n' => output.extend_from_slice(b"\\n"),
            '\r' => output.extend_from_slice(b"\\r"),
            '\t' => output.extend_from_slice(b"\\t"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' if for_html => escape_by_number(character, output),
            '\0'..='\u{1f}' => escape_by_number(character, output),
            _ => output.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

fn escape_by_number(character: char, output: &mut Vec<u8>) {
    output.extend_from_slice(format!("\\u{:04x}", character as u32).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skipped(text: &str) -> Option<usize> {
        let mut scan = Scan::new(text.as_bytes());
        scan.skip().ok().map(|()| scan.at)
    }

    #[test]
    fn a_value_is_skipped_to_its_end() {
        assert_eq!(skipped(r#" {"a":[1,"}\"]",{"b":null}]} "#), Some(28));
        assert_eq!(skipped(r#""a\\" "#), Some(5));
        assert_eq!(skipped("-1.5e3,"), Some(6));
        for broken in ["", "{", "[1", "\"", "\"\\", "\"\\\"", ",", "{\"a\":\"b}"] {
            assert_eq!(skipped(broken), None, "{broken}");
        }
    }

    #[test]
    fn escapes_are_read_as_go_reads_them() {
        for (raw, text) in [
            (r"a\n\u0041\/", "a\nA/"),
            (r"\ud83d\ude00", "\u{1f600}"),
            (r"\ud83dx", "\u{fffd}x"),
            (r"\ude00", "\u{fffd}"),
            (r"\ud83d\u0041", "\u{fffd}A"),
        ] {
            assert_eq!(unescape(raw).as_deref(), Some(text), "{raw}");
        }
        for wrong in [r"\x", r"\", r"\u12", r"\u+123", "\\u12\u{e9}"] {
            assert_eq!(unescape(wrong), None, "{wrong}");
        }
        let mut written = Vec::new();
        escape("a\"\\\n<\u{1}\u{e9}", true, &mut written);
        assert_eq!(String::from_utf8(written).unwrap(), "a\\\"\\\\\\n\\u003c\\u0001\u{e9}");
    }
}
