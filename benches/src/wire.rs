//! Reads protobuf fields in place, without making messages of them.
//!
//! A list or a stream of events brings millions of keys; decoding each into a message of its own would cost the client
//! more than the server is allowed to take. What is read here is checked by whoever asks for it.

use anyhow::{Context as _, Result, bail, ensure};

/// The value of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// A number, a truth value or an enumeration.
    Number(u64),
    /// Bytes, text or a message.
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    /// The number.
    ///
    /// # Errors
    /// When the field holds bytes.
    pub fn number(self) -> Result<u64> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Bytes(_) => bail!("a field holds bytes where a number belongs"),
        }
    }

    /// The number as a signed one: how revisions are sent.
    ///
    /// # Errors
    /// As [`Value::number`].
    pub fn signed(self) -> Result<i64> {
        Ok(self.number()?.cast_signed())
    }

    /// The bytes.
    ///
    /// # Errors
    /// When the field holds a number.
    pub fn bytes(self) -> Result<&'a [u8]> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Number(_) => bail!("a field holds a number where bytes belong"),
        }
    }
}

/// The fields of a whole message, in their order.
#[derive(Debug, Clone)]
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// The fields of this message.
    pub fn of(message: &'a [u8]) -> Self {
        Self(message)
    }

    /// The next field's number and value.
    ///
    /// # Errors
    /// When the message is not protobuf.
    #[allow(clippy::should_implement_trait, reason = "an iterator of results would hide that an error ends it")]
    pub fn next(&mut self) -> Result<Option<(u32, Value<'a>)>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = varint(&mut self.0)?.context("a field's tag is cut short")?;
        let number = u32::try_from(tag >> 3).context("a field's number is out of range")?;
        let value = match tag & 7 {
            0 => Value::Number(varint(&mut self.0)?.context("a number is cut short")?),
            2 => {
                let length = varint(&mut self.0)?.context("a length is cut short")?;
                let length = usize::try_from(length).context("a length is out of range")?;
                let (bytes, rest) = self.0.split_at_checked(length).context("bytes are cut short")?;
                self.0 = rest;
                Value::Bytes(bytes)
            }
            other => bail!("wire type {other} occurs nowhere in the API"),
        };
        Ok(Some((number, value)))
    }
}

/// The first field of that number in a message.
///
/// # Errors
/// When the message is not protobuf.
pub fn field(message: &[u8], wanted: u32) -> Result<Option<Value<'_>>> {
    let mut fields = Fields::of(message);
    while let Some((number, value)) = fields.next()? {
        if number == wanted {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// The fields of a message that arrives in pieces, each handed on as soon as it is whole. Holds at most one field.
#[derive(Debug, Default)]
pub struct Pieces {
    /// The beginning of a field whose rest has not come.
    part: Vec<u8>,
}

impl Pieces {
    /// Takes the next piece.
    ///
    /// # Errors
    /// When the message is not protobuf, or `each` fails.
    pub fn push(&mut self, mut piece: &[u8], mut each: impl FnMut(u32, Value<'_>) -> Result<()>) -> Result<()> {
        while !self.part.is_empty() && !piece.is_empty() {
            // Without a whole tag and length the end is unknown; they come byte by byte.
            let missing = first_field_bytes(&self.part)?.map_or(1, |whole| whole - self.part.len());
            let (taken, rest) = piece.split_at(missing.min(piece.len()));
            self.part.extend_from_slice(taken);
            piece = rest;
            if first_field_bytes(&self.part)? == Some(self.part.len()) {
                hand_on(&self.part, &mut each)?;
                self.part.clear();
            }
        }
        while let Some(whole) = first_field_bytes(piece)?.filter(|whole| *whole <= piece.len()) {
            let (first, rest) = piece.split_at(whole);
            hand_on(first, &mut each)?;
            piece = rest;
        }
        self.part.extend_from_slice(piece);
        Ok(())
    }

    /// To be called when all pieces have come.
    ///
    /// # Errors
    /// When the last field is cut short.
    pub fn finish(&self) -> Result<()> {
        ensure!(self.part.is_empty(), "the message ends within a field");
        Ok(())
    }
}

fn hand_on(field: &[u8], each: &mut impl FnMut(u32, Value<'_>) -> Result<()>) -> Result<()> {
    let (number, value) = Fields::of(field).next()?.context("an empty field")?;
    each(number, value)
}

/// How long the first field is with its tag, or `None` if too little has come to know.
fn first_field_bytes(message: &[u8]) -> Result<Option<usize>> {
    let mut rest = message;
    let Some(tag) = varint(&mut rest)? else { return Ok(None) };
    let Some(number) = varint(&mut rest)? else { return Ok(None) };
    let head = message.len() - rest.len();
    match tag & 7 {
        0 => Ok(Some(head)),
        2 => Ok(Some(head + usize::try_from(number).context("a length is out of range")?)),
        other => bail!("wire type {other} occurs nowhere in the API"),
    }
}

/// Takes a variable-length number off the front; `None` if it is cut short.
fn varint(bytes: &mut &[u8]) -> Result<Option<u64>> {
    let mut number = 0;
    for (index, byte) in bytes.iter().enumerate().take(10) {
        number |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            *bytes = &bytes[index + 1..];
            return Ok(Some(number));
        }
    }
    ensure!(bytes.len() < 10, "a number has more than ten bytes");
    Ok(None)
}

#[cfg(test)]
mod tests {
    use kubewharf_etcd_api::etcdserverpb::{RangeResponse, ResponseHeader};
    use kubewharf_etcd_api::mvccpb::KeyValue;
    use prost::Message as _;

    use super::*;

    fn list(keys: usize) -> RangeResponse {
        let kv = |index: usize| KeyValue {
            key: format!("/key/{index:05}").into(),
            mod_revision: index as i64 * 1000,
            value: vec![index as u8; index % 700].into(),
            ..KeyValue::default()
        };
        let header = ResponseHeader { revision: -1, ..ResponseHeader::default() };
        RangeResponse { header: Some(header), kvs: (0..keys).map(kv).collect(), more: true, count: 1 << 40 }
    }

    #[test]
    fn fields_are_those_of_the_encoded_message() {
        let bytes = list(1).encode_to_vec();
        let header = field(&bytes, 1).unwrap().unwrap().bytes().unwrap();
        assert_eq!(field(header, 3).unwrap().unwrap().signed().unwrap(), -1);
        assert_eq!(field(&bytes, 3).unwrap(), Some(Value::Number(1)));
        assert_eq!(field(&bytes, 4).unwrap(), Some(Value::Number(1 << 40)));
        assert_eq!(field(&bytes, 9).unwrap(), None);
    }

    #[test]
    fn pieces_of_any_size_give_the_same_fields() {
        let bytes = list(40).encode_to_vec();
        for size in [1, 2, 3, 7, 100, 701, 5000, bytes.len()] {
            let mut pieces = Pieces::default();
            let (mut keys, mut count) = (Vec::new(), 0);
            for piece in bytes.chunks(size) {
                let each = |number, value: Value<'_>| {
                    match number {
                        2 => keys.push(field(value.bytes()?, 1)?.unwrap().bytes()?.to_vec()),
                        4 => count = value.number()?,
                        _ => {}
                    }
                    Ok(())
                };
                pieces.push(piece, each).unwrap();
            }
            pieces.finish().unwrap();
            let expected: Vec<_> = (0..40).map(|index| format!("/key/{index:05}").into_bytes()).collect();
            assert_eq!((keys, count), (expected, 1 << 40), "{size}");
        }
    }

    #[test]
    fn a_message_that_is_cut_short_is_an_error() {
        let bytes = list(1).encode_to_vec();
        let short = &bytes[..bytes.len() - 1];
        assert!(field(short, 9).is_err());
        let mut pieces = Pieces::default();
        pieces.push(short, |_, _| Ok(())).unwrap();
        assert!(pieces.finish().is_err());
        assert!(Fields::of(&[0xff; 11]).next().is_err());
    }
}
