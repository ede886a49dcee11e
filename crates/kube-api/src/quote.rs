//! Texts as Go's verb `%q` writes them, which Kubernetes' messages are full of.
//!
//! Invariant: what is quoted cannot end its quotation, so a name cannot forge the text around it.

use std::fmt::Write as _;

/// Appends a text in quotation marks: `%q` of a Go `string`.
pub fn push_quoted(text: &mut String, quoted: &str) {
    text.push('"');
    push_quoted_inside(text, quoted);
    text.push('"');
}

/// Appends a list of texts: `%q` of a Go `[]string`.
pub fn push_quoted_list<T: AsRef<str>>(text: &mut String, quoted: &[T]) {
    text.push('[');
    for (number, quoted) in quoted.iter().enumerate() {
        if number > 0 {
            text.push(' ');
        }
        push_quoted(text, quoted.as_ref());
    }
    text.push(']');
}

/// A text in quotation marks.
#[must_use]
pub fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    push_quoted(&mut quoted, text);
    quoted
}

/// Appends what is between the quotation marks.
pub(crate) fn push_quoted_inside(text: &mut String, quoted: &str) {
    for character in quoted.chars() {
        match character {
            '"' | '\\' => text.extend(['\\', character]),
            '\x07' => text.push_str("\\a"),
            '\x08' => text.push_str("\\b"),
            '\x0c' => text.push_str("\\f"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\x0b' => text.push_str("\\v"),
            ' '..='~' => text.push(character),
            _ if is_printable(character) => text.push(character),
            _ => {
                let number = u32::from(character);
                let written = match number {
                    0..=0x7f => write!(text, "\\x{number:02x}"),
                    0x80..=0xffff => write!(text, "\\u{number:04x}"),
                    _ => write!(text, "\\U{number:08x}"),
                };
                written.expect("a string takes any text");
            }
        }
    }
}

/// As Go's `strconv.IsPrint`, but for characters that only one of the two versions of Unicode knows.
#[must_use]
pub fn is_printable(character: char) -> bool {
    // Combining marks are escaped only where they have nothing to combine with.
    let mut bytes = [b'a', 0, 0, 0, 0];
    let len = 1 + character.encode_utf8(&mut bytes[1..]).len();
    str::from_utf8(&bytes[..len]).is_ok_and(|text| text.escape_debug().count() == 2)
}
