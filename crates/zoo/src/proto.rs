//! Protobuf on the wire: fields with their numbers, nothing of what they mean.
//!
//! Invariant: broken input gives an end, never a panic.

/// What Kubernetes' protobuf begins with.
pub(crate) const MAGIC: &[u8] = b"k8s\0";

/// A field as it stands in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Field<'a> {
    pub(crate) number: u32,
    /// All of it: tag, length, content.
    pub(crate) whole: &'a [u8],
    content: Content<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Fixed,
}

impl<'a> Field<'a> {
    /// The content of a string, of bytes or of a message.
    pub(crate) fn bytes(&self) -> Option<&'a [u8]> {
        match self.content {
            Content::Bytes(bytes) => Some(bytes),
            Content::Varint(_) | Content::Fixed => None,
        }
    }

    /// The content of a number.
    pub(crate) fn varint(&self) -> Option<u64> {
        match self.content {
            Content::Varint(number) => Some(number),
            Content::Bytes(_) | Content::Fixed => None,
        }
    }
}

/// The fields of a message; a none in between, and then the end, if it is broken.
pub(crate) fn fields(message: &[u8]) -> impl Iterator<Item = Option<Field<'_>>> {
    let mut rest = message;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let field = field(rest);
        rest = field.map_or(&[], |field| &rest[field.whole.len()..]);
        Some(field)
    })
}

fn field(message: &[u8]) -> Option<Field<'_>> {
    let (tag, mut at) = varint(message)?;
    let number = u32::try_from(tag >> 3).ok().filter(|number| *number > 0)?;
    let content = match tag & 7 {
        0 => {
            let (number, length) = varint(&message[at..])?;
            at += length;
            Content::Varint(number)
        }
        2 => {
            let (bytes, length) = varint(&message[at..])?;
            at += length;
            let content = message.get(at..at.checked_add(usize::try_from(bytes).ok()?)?)?;
            at += content.len();
            Content::Bytes(content)
        }
        1 => {
            at += 8;
            Content::Fixed
        }
        5 => {
            at += 4;
            Content::Fixed
        }
        _ => return None,
    };
    Some(Field { number, whole: message.get(..at)?, content })
}

/// A number, and how many bytes it takes.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut number = 0;
    for (place, byte) in bytes.iter().take(10).enumerate() {
        number |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some((number, place + 1));
        }
    }
    None
}

/// What is in Kubernetes' envelope; the bytes themselves if they have none.
pub(crate) fn unwrap(bytes: &[u8]) -> Option<&[u8]> {
    match bytes.strip_prefix(MAGIC) {
        Some(envelope) => find(envelope, 2).or(Some(&[])),
        None => Some(bytes),
    }
}

/// The content of the first field of this number.
pub(crate) fn find(message: &[u8], number: u32) -> Option<&[u8]> {
    fields(message).flatten().find(|field| field.number == number)?.bytes()
}

/// The name of an object in its envelope.
pub(crate) fn name_of(object: &[u8]) -> Option<&str> {
    std::str::from_utf8(find(find(unwrap(object)?, 1)?, 1)?).ok()
}

/// What the name of an object in its envelope is to begin with.
pub(crate) fn generate_name_of(object: &[u8]) -> Option<&str> {
    std::str::from_utf8(find(find(unwrap(object)?, 1)?, 2)?).ok()
}

/// Adds a number without a tag.
pub(crate) fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Adds a field that is a string, bytes or a message.
pub(crate) fn put_bytes(out: &mut Vec<u8>, number: u32, content: &[u8]) {
    put(out, u64::from(number) << 3 | 2);
    put(out, content.len() as u64);
    out.extend_from_slice(content);
}

/// Adds a field that is a number.
pub(crate) fn put_varint(out: &mut Vec<u8>, number: u32, content: u64) {
    put(out, u64::from(number) << 3);
    put(out, content);
}
