//! Finds values in JSON without reading all of it.
//!
//! Invariant: what is found are ranges of the input, which stays as it is. Broken input gives nothing or an end, never a panic.

use std::ops::Range;

/// The fields of an object, in order: name (as it is written, between its quotes) and where the value is.
pub(crate) struct Fields<'a> {
    json: &'a [u8],
    at: usize,
    is_first: bool,
}

/// The fields of the object that begins at `at`; none if there is no object.
pub(crate) fn fields(json: &[u8], at: usize) -> Fields<'_> {
    let at = skip_space(json, at);
    let is_object = json.get(at) == Some(&b'{');
    Fields { json, at: if is_object { at + 1 } else { json.len() }, is_first: true }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (&'a [u8], Range<usize>);

    fn next(&mut self) -> Option<Self::Item> {
        let json = self.json;
        let mut at = skip_space(json, self.at);
        if !self.is_first {
            if json.get(at) != Some(&b',') {
                self.at = json.len();
                return None;
            }
            at = skip_space(json, at + 1);
        }
        self.is_first = false;
        let name = string(json, at)?;
        at = skip_space(json, name.end + 1);
        if json.get(at) != Some(&b':') {
            return None;
        }
        let from = skip_space(json, at + 1);
        let end = skip_value(json, from)?;
        self.at = end;
        Some((&json[name], from..end))
    }
}

/// Where the value is that these names lead to, one in the other; the first one if a name is there twice.
pub(crate) fn find(json: &[u8], path: &[&str]) -> Option<Range<usize>> {
    let mut range = skip_space(json, 0)..json.len();
    for name in path {
        let (_, found) = fields(json, range.start).find(|(field, _)| *field == name.as_bytes())?;
        range = found;
    }
    Some(range)
}

/// The text of a string that has no escapes.
pub(crate) fn text<'a>(json: &'a [u8], path: &[&str]) -> Option<&'a str> {
    let range = find(json, path)?;
    let inner = string(json, range.start)?;
    let text = std::str::from_utf8(&json[inner]).ok()?;
    (!text.contains('\\')).then_some(text)
}

/// The values of the array that begins at `at`.
pub(crate) fn elements(json: &[u8], at: usize) -> impl Iterator<Item = Range<usize>> + '_ {
    let at = skip_space(json, at);
    let mut next = (json.get(at) == Some(&b'[')).then_some(at + 1);
    std::iter::from_fn(move || {
        let mut at = skip_space(json, next.take()?);
        if json.get(at) == Some(&b',') {
            at = skip_space(json, at + 1);
        }
        if matches!(json.get(at), None | Some(b']')) {
            return None;
        }
        let end = skip_value(json, at)?;
        next = Some(end);
        Some(at..end)
    })
}

fn skip_space(json: &[u8], mut at: usize) -> usize {
    while matches!(json.get(at), Some(b' ' | b'\t' | b'\r' | b'\n')) {
        at += 1;
    }
    at
}

/// What is between the quotes of the string that begins at `at`.
fn string(json: &[u8], at: usize) -> Option<Range<usize>> {
    if json.get(at) != Some(&b'"') {
        return None;
    }
    let mut end = at + 1;
    loop {
        end += memchr::memchr2(b'"', b'\\', json.get(end..)?)?;
        if json[end] == b'"' {
            return Some(at + 1..end);
        }
        end += 2;
    }
}

/// Behind the value that begins at `at`.
fn skip_value(json: &[u8], at: usize) -> Option<usize> {
    match json.get(at)? {
        b'"' => Some(string(json, at)?.end + 1),
        b'{' | b'[' => {
            let mut depth = 0usize;
            let mut at = at;
            loop {
                at += json.get(at..)?.iter().position(|byte| matches!(byte, b'"' | b'{' | b'[' | b'}' | b']'))?;
                match json[at] {
                    b'"' => at = string(json, at)?.end,
                    b'{' | b'[' => depth += 1,
                    _ => depth -= 1,
                }
                at += 1;
                if depth == 0 {
                    return Some(at);
                }
            }
        }
        _ => {
            let rest = &json[at..];
            let end = rest.iter().position(|byte| matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n'));
            Some(at + end.unwrap_or(rest.len())).filter(|end| *end > at)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_are_found_where_they_are() {
        let json =
            br#" {"kind" : "PodList","metadata":{"a":"x\"}","resourceVersion":"7"},"items":[{"a":[1,"]"]}, 2,null]} "#;
        assert_eq!(text(json, &["metadata", "resourceVersion"]), Some("7"));
        assert_eq!(text(json, &["kind"]), Some("PodList"));
        assert_eq!(text(json, &["metadata", "a"]), None, "it has an escape");
        let items = find(json, &["items"]).expect("there");
        let items: Vec<&[u8]> = elements(json, items.start).map(|range| &json[range]).collect();
        assert_eq!(items, [&br#"{"a":[1,"]"]}"#[..], b"2", b"null"]);
        assert_eq!(find(json, &["items", "a"]), None);
        assert_eq!(elements(b"[ ]", 0).count(), 0);
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(proptest::sample::select(&b"{}[]\",:\\a1 "[..]), 0..40)) {
            let _ = find(&bytes, &["a", "a"]);
            let _ = elements(&bytes, 0).count();
            let _ = fields(&bytes, 0).count();
        }
    }
}
