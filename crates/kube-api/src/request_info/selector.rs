//! Selectors as apimachinery v0.36.3 reads them: whether a label selector is well-formed (`labels.Parse`), and which
//! name a field selector demands (`fields.ParseSelector`, `RequiresExactMatch`).
//!
//! Invariant: nothing is kept of a selector but the name, so that its length costs time but no memory.

use std::borrow::Cow;

use crate::content::{is_label_key, is_label_value};

/// A selector that Kubernetes refuses.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// The value that the field selector demands of `metadata.name`; if it demands several, the one of the first term in
/// the terms' order as bytes, because Kubernetes sorts them.
pub(crate) fn required_name(selector: &[u8]) -> Result<Option<Cow<'_, [u8]>>, Malformed> {
    let mut first: Option<(&[u8], Cow<'_, [u8]>)> = None;
    let terms = Terms { rest: Some(selector) };
    for term in terms.filter(|term| !term.is_empty()) {
        let operator = Operator::find(term).ok_or(Malformed)?;
        let value = unescape(&term[operator.offset + operator.len..]).ok_or(Malformed)?;
        let demands_name = operator.is_equality && &term[..operator.offset] == b"metadata.name";
        if demands_name && first.as_ref().is_none_or(|&(other, _)| term < other) {
            first = Some((term, value));
        }
    }
    Ok(first.map(|(_, value)| value))
}

/// The terms of a field selector. A comma after a backslash belongs to its term.
struct Terms<'a> {
    rest: Option<&'a [u8]>,
}

impl<'a> Iterator for Terms<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.rest?;
        let mut is_escaped = false;
        let end = rest.iter().position(|&byte| {
            let ends = byte == b',' && !is_escaped;
            is_escaped = byte == b'\\' && !is_escaped;
            ends
        });
        let term = end.map_or(rest, |end| &rest[..end]);
        self.rest = end.map(|end| &rest[end + 1..]);
        Some(term)
    }
}

/// The operator that a term of a field selector is split at.
struct Operator {
    offset: usize,
    len: usize,
    is_equality: bool,
}

impl Operator {
    /// The first in the term; escapes mean nothing on its left.
    fn find(term: &[u8]) -> Option<Self> {
        (0..term.len()).find_map(|offset| {
            let (len, is_equality) = match &term[offset..] {
                [b'!', b'=', ..] => (2, false),
                [b'=', b'=', ..] => (2, true),
                [b'=', ..] => (1, true),
                _ => return None,
            };
            Some(Self { offset, len, is_equality })
        })
    }
}

/// The value that this stands for in a field selector: a backslash stands before a backslash, comma or equals sign, and
/// none of these stands without one.
fn unescape(value: &[u8]) -> Option<Cow<'_, [u8]>> {
    let is_special = |byte: u8| matches!(byte, b'\\' | b',' | b'=');
    if !value.iter().copied().any(is_special) {
        return Some(Cow::Borrowed(value));
    }
    let mut unescaped = Vec::with_capacity(value.len());
    let mut bytes = value.iter().copied();
    while let Some(byte) = bytes.next() {
        unescaped.push(match byte {
            b'\\' => bytes.next().filter(|&byte| is_special(byte))?,
            b',' | b'=' => return None,
            _ => byte,
        });
    }
    Some(Cow::Owned(unescaped))
}

/// As `strconv.ParseInt(value, 10, 64)`.
pub(super) fn is_int64(value: &[u8]) -> bool {
    str::from_utf8(value).is_ok_and(|value| value.parse::<i64>().is_ok())
}

/// Whether `labels.Parse` takes it: requirements with commas between them, or nothing.
pub(crate) fn is_label_selector(selector: &[u8]) -> bool {
    let mut lexer = Lexer { rest: selector };
    let mut token = lexer.next();
    if token == Token::End {
        return true;
    }
    loop {
        // A comma at the end is not followed by a requirement, so it is refused here.
        match requirement(token, &mut lexer) {
            Ok(Token::End) => return true,
            Ok(Token::Comma) => token = lexer.next(),
            _ => return false,
        }
    }
}

/// Reads one requirement, whose first token is given, and the token after it, which is returned.
fn requirement<'a>(first: Token<'a>, lexer: &mut Lexer<'a>) -> Result<Token<'a>, Malformed> {
    let is_negated = first == Token::Not;
    let key = if is_negated { lexer.next() } else { first };
    if !key.word().is_some_and(is_label_key) {
        return Err(Malformed);
    }
    let operator = lexer.next();
    if is_negated {
        return Ok(operator);
    }
    match operator {
        // The key alone: the label must be there.
        Token::End | Token::Comma => Ok(operator),
        Token::Word(b"in" | b"notin") => {
            values(lexer)?;
            Ok(lexer.next())
        }
        Token::Equality | Token::Order => {
            let (value, after) = match lexer.next() {
                after @ (Token::End | Token::Comma) => (&b""[..], after),
                value => (value.word().ok_or(Malformed)?, lexer.next()),
            };
            let is_valid = is_label_value(value) && (operator == Token::Equality || is_int64(value));
            if is_valid { Ok(after) } else { Err(Malformed) }
        }
        _ => Err(Malformed),
    }
}

/// Reads the values after `in` or `notin`: words in parentheses, with commas between them. Each may be missing, which
/// stands for the empty value, and two words always have a comma between them.
fn values(lexer: &mut Lexer<'_>) -> Result<(), Malformed> {
    if lexer.next() != Token::Open {
        return Err(Malformed);
    }
    let mut may_be_word = true;
    loop {
        match lexer.next() {
            Token::Close => return Ok(()),
            Token::Comma => may_be_word = true,
            Token::Word(value) if may_be_word && is_label_value(value) => may_be_word = false,
            _ => return Err(Malformed),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    /// A key, a value, `in` or `notin`: which of them, only its place tells.
    Word(&'a [u8]),
    /// `!`
    Not,
    /// `=`, `==` or `!=`
    Equality,
    /// `<` or `>`
    Order,
    /// `(`
    Open,
    /// `)`
    Close,
    /// `,`
    Comma,
    End,
}

impl<'a> Token<'a> {
    fn word(self) -> Option<&'a [u8]> {
        if let Self::Word(word) = self { Some(word) } else { None }
    }
}

/// Takes a label selector apart.
struct Lexer<'a> {
    rest: &'a [u8],
}

impl<'a> Lexer<'a> {
    /// The next token. Kubernetes' lexer takes a zero byte for the end wherever it looks for one, but reads on after
    /// one that ends a word or an operator; so does this.
    fn next(&mut self) -> Token<'a> {
        let blanks = self.rest.iter().take_while(|&&byte| is_blank(byte)).count();
        self.rest = &self.rest[blanks..];
        let (len, token) = match self.rest {
            [] | [0, ..] => (0, Token::End),
            [b'!', b'=', ..] | [b'=', b'=', ..] => (2, Token::Equality),
            [b'=', ..] => (1, Token::Equality),
            [b'!', ..] => (1, Token::Not),
            [b'<' | b'>', ..] => (1, Token::Order),
            [b'(', ..] => (1, Token::Open),
            [b')', ..] => (1, Token::Close),
            [b',', ..] => (1, Token::Comma),
            bytes => {
                let len = bytes.iter().position(|&byte| ends_word(byte)).unwrap_or(bytes.len());
                (len, Token::Word(&bytes[..len]))
            }
        };
        self.rest = &self.rest[len..];
        if len > 0 {
            self.rest = self.rest.strip_prefix(b"\0").unwrap_or(self.rest);
        }
        token
    }
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

fn ends_word(byte: u8) -> bool {
    is_blank(byte) || matches!(byte, 0 | b'=' | b'!' | b'(' | b')' | b',' | b'>' | b'<')
}
