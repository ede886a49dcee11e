//! The target of a request as Go 1.26 reads it: `net/url`, and apimachinery's decoding of a list's options from a
//! query.
//!
//! Invariant: as Go, bytes are compared as they are; they become text only when all is decided.

use std::borrow::Cow;

use super::{Error, selector};

/// A query with more pairs than this is to Go as if it were empty (`urlmaxqueryparams`).
const QUERY_PAIRS_MAX: usize = 10_000;

/// A target, taken apart.
#[derive(Debug)]
pub(super) struct Target<'a> {
    /// The path, unescaped.
    pub(super) path: Cow<'a, str>,
    /// The query, as it came.
    pub(super) query: &'a str,
}

impl<'a> Target<'a> {
    /// As `url.ParseRequestURI` of a target that names no scheme. The query is not looked at.
    pub(super) fn parse(target: &'a str) -> Result<Self, Error> {
        if let Some(offset) = target.bytes().position(|byte| byte.is_ascii_control()) {
            return Err(Error::ControlCharacter { offset });
        }
        if target == "*" {
            return Ok(Self { path: Cow::Borrowed(target), query: "" });
        }
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        if !path.starts_with('/') {
            return Err(Error::NotAPath);
        }
        let path = unescape(path, b'+').map_err(|offset| Error::BadEscape { offset })?;
        Ok(Self { path: text(path), query })
    }
}

/// What the query of a list may hold and has a part in what the request is for; of each the first value, unescaped.
/// Other options (`resourceVersion`, `continue`, …) can hold anything.
#[derive(Debug, Default)]
pub(super) struct ListOptions<'a> {
    pub(super) label_selector: Option<Cow<'a, [u8]>>,
    pub(super) field_selector: Option<Cow<'a, [u8]>>,
    watch: Option<Cow<'a, [u8]>>,
    timeout_seconds: Option<Cow<'a, [u8]>>,
    limit: Option<Cow<'a, [u8]>>,
}

/// What follows from the options.
#[derive(Debug)]
pub(super) struct Read {
    /// Whether it is a watch, not a list.
    pub(super) is_watch: bool,
    /// The one name that the field selector lets through, if it is a name.
    pub(super) name: Option<String>,
}

impl<'a> ListOptions<'a> {
    /// As `url.ParseQuery`, whose errors Kubernetes does not look at: a pair with a semicolon or a malformed escape is
    /// left out, all others count.
    pub(super) fn of_query(query: &'a str) -> Self {
        let mut options = Self::default();
        if query.bytes().filter(|&byte| byte == b'&').count() >= QUERY_PAIRS_MAX {
            return options;
        }
        for pair in query.split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let Some(slot) = options.slot(key) else {
                continue;
            };
            if slot.is_none() && !pair.contains(';') {
                *slot = unescape(value, b' ').ok();
            }
        }
        options
    }

    fn slot(&mut self, key: &str) -> Option<&mut Option<Cow<'a, [u8]>>> {
        // A malformed escape stays as it is here, and no option has a percent sign in its name.
        let is = |name: &str| Unescaped { rest: key.as_bytes(), plus: b' ' }.eq(name.bytes());
        if is("labelSelector") {
            Some(&mut self.label_selector)
        } else if is("fieldSelector") {
            Some(&mut self.field_selector)
        } else if is("watch") {
            Some(&mut self.watch)
        } else if is("timeoutSeconds") {
            Some(&mut self.timeout_seconds)
        } else if is("limit") {
            Some(&mut self.limit)
        } else {
            None
        }
    }

    /// As Kubernetes' resolver. If any option is malformed, it takes all for unset but `watch`.
    pub(super) fn read(&self) -> Read {
        let Some(field_name) = self.decode() else {
            return Read { is_watch: self.watch.as_ref().is_some_and(|value| !is_false(value)), name: None };
        };
        let is_watch = self.watch.as_ref().is_some_and(|value| !is_false_by_folding(value));
        Read { is_watch, name: field_name.filter(|name| is_path_segment(name)).map(|name| text(name).into_owned()) }
    }

    /// As `DecodeParameters` of metav1's `ListOptions`: the name that the field selector demands, or `None` if that
    /// fails.
    fn decode(&self) -> Option<Option<Cow<'_, [u8]>>> {
        let is_number_or_unset = |value: &Option<Cow<'_, [u8]>>| match value {
            Some(value) => selector::is_int64(value),
            None => true,
        };
        if !is_number_or_unset(&self.timeout_seconds)
            || !is_number_or_unset(&self.limit)
            || !selector::is_label_selector(self.label_selector.as_deref().unwrap_or_default())
        {
            return None;
        }
        selector::required_name(self.field_selector.as_deref().unwrap_or_default()).ok()
    }
}

/// As `strings.ToLower` compared with `false` and `0`.
fn is_false(value: &[u8]) -> bool {
    value == b"0" || value.eq_ignore_ascii_case(b"false")
}

/// As `strings.EqualFold`, to which the long s (U+017F) is an s.
fn is_false_by_folding(value: &[u8]) -> bool {
    is_false(value) || str::from_utf8(value).is_ok_and(|value| is_false(value.replace('\u{17f}', "s").as_bytes()))
}

/// As `content.IsPathSegmentName`.
fn is_path_segment(name: &[u8]) -> bool {
    name != b"." && name != b".." && !name.iter().any(|&byte| byte == b'/' || byte == b'%')
}

/// As Go's `url.unescape`: bytes for percent escapes, `plus` for `+`. Fails with the offset of a percent sign that no
/// two hexadecimal digits follow.
fn unescape(escaped: &str, plus: u8) -> Result<Cow<'_, [u8]>, usize> {
    let bytes = escaped.as_bytes();
    let is_special = |&byte: &u8| byte == b'%' || (byte == b'+' && plus != b'+');
    let Some(first) = bytes.iter().position(is_special) else {
        return Ok(Cow::Borrowed(bytes));
    };
    for (offset, _) in bytes.iter().enumerate().skip(first).filter(|&(_, &byte)| byte == b'%') {
        if escaped_byte(&bytes[offset..]).is_none() {
            return Err(offset);
        }
    }
    Ok(Cow::Owned(Unescaped { rest: bytes, plus }.collect()))
}

/// The byte that a percent escape at the beginning of these stands for.
fn escaped_byte(bytes: &[u8]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    match bytes {
        &[b'%', high, low, ..] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    }
}

/// The bytes that an escaped text stands for. A malformed escape stands for itself.
struct Unescaped<'a> {
    rest: &'a [u8],
    plus: u8,
}

impl Iterator for Unescaped<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        let (&first, rest) = self.rest.split_first()?;
        if let Some(byte) = escaped_byte(self.rest) {
            self.rest = &self.rest[3..];
            return Some(byte);
        }
        self.rest = rest;
        Some(if first == b'+' { self.plus } else { first })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.rest.len() / 3, Some(self.rest.len()))
    }
}

/// The bytes as text, with U+FFFD for each byte that is not part of a valid character: what Go makes of them when it
/// takes a string character by character.
pub(super) fn text(bytes: Cow<'_, [u8]>) -> Cow<'_, str> {
    match bytes {
        Cow::Borrowed(bytes) => match str::from_utf8(bytes) {
            Ok(text) => Cow::Borrowed(text),
            Err(_) => Cow::Owned(with_replacements(bytes)),
        },
        Cow::Owned(bytes) => Cow::Owned(String::from_utf8(bytes).unwrap_or_else(|e| with_replacements(e.as_bytes()))),
    }
}

fn with_replacements(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    text
}
