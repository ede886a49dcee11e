//! Protobuf that is cut and put together again without being understood.
//!
//! Invariant: what is kept is kept byte by byte, so fields that nobody here knows stay as they are. Malformed bytes are an error, never a
//! panic.

use super::Malformed;
use super::json::Edit;
pub(super) use crate::proto::put_bytes as push;
use crate::proto::{self, MAGIC};

/// The field of `runtime.Unknown` that holds the object.
const ENVELOPE_OBJECT: u32 = 2;

/// A field of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field<'a> {
    /// Its number.
    pub(super) number: u32,
    /// A text, bytes or a message; none if the field is a number.
    pub(super) content: Option<&'a [u8]>,
    /// The field as it is written, with its number.
    whole: &'a [u8],
}

impl<'a> Field<'a> {
    /// The message, text or bytes.
    pub(super) fn bytes(&self) -> Result<&'a [u8], Malformed> {
        self.content.ok_or(Malformed("a message or text was expected"))
    }

    /// The text.
    pub(super) fn text(&self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed("a text that is not UTF-8"))
    }
}

/// The fields of a message; nothing comes after an error.
pub(super) fn fields(message: &[u8]) -> impl Iterator<Item = Result<Field<'_>, Malformed>> {
    proto::fields(message).map(|field| {
        let field = field.ok_or(Malformed("a broken message"))?;
        Ok(Field { number: field.number, content: field.bytes(), whole: field.whole })
    })
}

/// The last message with this number; empty if there is none.
pub(super) fn message_field(message: &[u8], number: u32) -> Result<&[u8], Malformed> {
    let mut found: &[u8] = &[];
    for field in fields(message) {
        let field = field?;
        if field.number == number {
            found = field.bytes()?;
        }
    }
    Ok(found)
}

/// The last text with this number; empty if there is none.
pub(super) fn text_field(message: &[u8], number: u32) -> Result<&str, Malformed> {
    std::str::from_utf8(message_field(message, number)?).map_err(|_| Malformed("a text that is not UTF-8"))
}

/// A message after an edit of its fields. Only texts, bytes and messages can be replaced.
pub(super) fn edit(
    message: &[u8],
    mut edit: impl FnMut(&Field<'_>) -> Result<Edit, Malformed>,
) -> Result<Edit, Malformed> {
    let mut written = Vec::with_capacity(message.len());
    let mut is_changed = false;
    for field in fields(message) {
        let field = field?;
        match edit(&field)? {
            Edit::Keep => written.extend_from_slice(field.whole),
            Edit::Drop => is_changed = true,
            Edit::Replace(bytes) => {
                is_changed = true;
                push(&mut written, field.number, &bytes);
            }
        }
    }
    Ok(if is_changed { Edit::Replace(written) } else { Edit::Keep })
}

/// The object in the envelope that Kubernetes' objects have, after an edit.
pub(super) fn edit_enveloped(
    bytes: &[u8],
    mut edit_object: impl FnMut(&[u8]) -> Result<Edit, Malformed>,
) -> Result<Edit, Malformed> {
    let envelope = bytes.strip_prefix(MAGIC).ok_or(Malformed("no object of Kubernetes in protobuf"))?;
    let edited = edit(envelope, |field| match field.number {
        ENVELOPE_OBJECT => edit_object(field.bytes()?),
        _ => Ok(Edit::Keep),
    })?;
    Ok(match edited {
        Edit::Replace(envelope) => Edit::Replace([MAGIC, &envelope].concat()),
        kept => kept,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_kept_is_kept_byte_by_byte() {
        let mut message = vec![0x08, 0x96, 0x01];
        push(&mut message, 2, b"two");
        push(&mut message, 1000, &[7; 300]);
        message.extend([0x1d, 1, 2, 3, 4]);
        let numbers: Vec<_> = fields(&message).map(|field| field.unwrap().number).collect();
        assert_eq!(numbers, [1, 2, 1000, 3]);
        assert_eq!(text_field(&message, 2).unwrap(), "two");
        assert_eq!(edit(&message, |_| Ok(Edit::Keep)).unwrap(), Edit::Keep);
        let edited = edit(&message, |field| {
            Ok(match field.number {
                2 => Edit::Replace(b"2".to_vec()),
                1000 => Edit::Drop,
                _ => Edit::Keep,
            })
        });
        assert_eq!(edited.unwrap(), Edit::Replace(vec![0x08, 0x96, 0x01, 0x12, 1, b'2', 0x1d, 1, 2, 3, 4]));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = edit(&bytes, |field| Ok(if field.content.is_some() { Edit::Replace(vec![]) } else { Edit::Drop }));
            let _ = edit_enveloped(&[MAGIC, &bytes].concat(), |_| Ok(Edit::Keep));
            let _ = text_field(&bytes, 1);
        }
    }
}
