//! JSON as Go writes it.
//!
//! Invariant: the same bytes as of Go's `encoding/json`, for values whose maps are in their keys' order.

use std::io;

use serde::Serialize;

/// A value as JSON, which must consist of what JSON has: a map's keys must be texts.
pub fn to_vec(value: &(impl Serialize + ?Sized)) -> Vec<u8> {
    let mut json = Vec::with_capacity(256);
    value
        .serialize(&mut serde_json::Serializer::with_formatter(&mut json, AsGo))
        .expect("texts, numbers, lists and maps by text can be written to memory as JSON");
    json
}

/// A value as JSON: as [`to_vec`].
pub fn to_string(value: &(impl Serialize + ?Sized)) -> String {
    String::from_utf8(to_vec(value)).expect("JSON is UTF-8")
}

/// JSON as Go's `encoding/json` writes it: what HTML would take for markup is escaped, and so are the two characters
/// that end a line in JavaScript but not in JSON.
struct AsGo;

impl serde_json::ser::Formatter for AsGo {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(offset) = rest.find(['<', '>', '&', '\u{2028}', '\u{2029}']) {
            let (before, from) = rest.split_at(offset);
            let character = from.chars().next().expect("a character was found here");
            write!(writer, "{before}\\u{:04x}", u32::from(character))?;
            rest = &from[character.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_html_takes_for_markup_is_escaped() {
        assert_eq!(super::to_string("<a href=\"x\">&\u{2028}é"), r#""\u003ca href=\"x\"\u003e\u0026\u2028é""#);
    }
}
