//! gRPC status codes, and how a status travels in trailers.
//!
//! Invariant: the header block made from a [`Status`] is always valid HTTP/2, whatever bytes the message has.

use std::borrow::Cow;
use std::fmt;

use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

/// The value of `content-type` in every gRPC response.
pub(crate) const GRPC_CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// The outcome of a call, by the numbers of the gRPC protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Code {
    /// Not an error.
    Ok = 0,
    /// The call was cancelled, usually by the client.
    Cancelled = 1,
    /// An error without a better code.
    Unknown = 2,
    /// The client sent something that is wrong in any state of the system.
    InvalidArgument = 3,
    /// Time ran out before the outcome was known.
    DeadlineExceeded = 4,
    /// Something that was asked for does not exist.
    NotFound = 5,
    /// Something that should be created exists.
    AlreadyExists = 6,
    /// The caller is known and may not do this.
    PermissionDenied = 7,
    /// A quota or a size limit was exceeded.
    ResourceExhausted = 8,
    /// The system is not in the state that the call needs.
    FailedPrecondition = 9,
    /// The call lost against a concurrent one.
    Aborted = 10,
    /// The call went past the valid range.
    OutOfRange = 11,
    /// The method is not known or not supported.
    Unimplemented = 12,
    /// The server broke one of its own rules.
    Internal = 13,
    /// The service can't be used now; trying again may help.
    Unavailable = 14,
    /// Data was lost or damaged.
    DataLoss = 15,
    /// The caller has no valid credentials.
    Unauthenticated = 16,
}

impl Code {
    /// The code with a number; [`Code::Unknown`] for one that gRPC does not have.
    #[must_use]
    pub fn from_number(number: u32) -> Self {
        const ALL: [Code; 17] = [
            Code::Ok,
            Code::Cancelled,
            Code::Unknown,
            Code::InvalidArgument,
            Code::DeadlineExceeded,
            Code::NotFound,
            Code::AlreadyExists,
            Code::PermissionDenied,
            Code::ResourceExhausted,
            Code::FailedPrecondition,
            Code::Aborted,
            Code::OutOfRange,
            Code::Unimplemented,
            Code::Internal,
            Code::Unavailable,
            Code::DataLoss,
            Code::Unauthenticated,
        ];
        usize::try_from(number).ok().and_then(|number| ALL.get(number)).copied().unwrap_or(Self::Unknown)
    }
}

/// How a call ended: a code, and a text for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    code: Code,
    message: Cow<'static, str>,
}

impl Status {
    /// A status with this code and message.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into() }
    }

    /// The status of a call that went well.
    pub const fn ok() -> Self {
        Self { code: Code::Ok, message: Cow::Borrowed("") }
    }

    /// A broken rule of this server ([`Code::Internal`]).
    pub fn internal(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// What a client is told whose deadline passed; the text is grpc-go's.
    pub(crate) fn deadline_exceeded() -> Self {
        Self::new(Code::DeadlineExceeded, "context deadline exceeded")
    }

    /// What a handler is told whose client went away; the text is grpc-go's.
    pub(crate) fn cancelled() -> Self {
        Self::new(Code::Cancelled, "context canceled")
    }

    /// The code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The text; may be empty.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The header block that ends a response whose headers are sent already.
    pub(crate) fn trailers(&self) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(2);
        self.write(&mut map);
        map
    }

    /// The header block of a response that is nothing but this status ("trailers-only").
    pub(crate) fn only(&self) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(4);
        map.insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
        self.write(&mut map);
        if self.code == Code::Unimplemented {
            // The specification asks for the supported encodings next to a refused one; they do no harm elsewhere.
            map.insert(GRPC_ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        map
    }

    fn write(&self, map: &mut HeaderMap) {
        map.insert(GRPC_STATUS, code_value(self.code));
        if !self.message.is_empty() {
            map.insert(GRPC_MESSAGE, encode_message(&self.message));
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}: {}", self.code, self.message)
    }
}

impl std::error::Error for Status {}

fn code_value(code: Code) -> HeaderValue {
    const TEXT: [&str; 17] =
        ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16"];
    HeaderValue::from_static(TEXT[code as usize])
}

/// Percent-encodes as the gRPC protocol asks: printable ASCII but `%` stays.
fn encode_message(message: &str) -> HeaderValue {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let plain = |byte: u8| (0x20..=0x7e).contains(&byte) && byte != b'%';
    let mut encoded = Vec::with_capacity(message.len() + 8);
    for byte in message.bytes() {
        if plain(byte) {
            encoded.push(byte);
        } else {
            encoded.extend([b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
    HeaderValue::from_bytes(&encoded).expect("only printable ASCII is left")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_percent_encoded_by_byte() {
        assert_eq!(encode_message("50% of \u{e4}\n").as_bytes(), b"50%25 of %C3%A4%0A");
        assert_eq!(encode_message("etcdserver: mvcc").as_bytes(), b"etcdserver: mvcc");
    }

    #[test]
    fn an_ok_status_is_one_trailer() {
        let trailers = Status::ok().trailers();
        assert_eq!(trailers.len(), 1);
        assert_eq!(trailers["grpc-status"], "0");
    }

    #[test]
    fn a_lone_status_carries_the_content_type() {
        let headers = Status::new(Code::Unauthenticated, "no").only();
        assert_eq!(headers["content-type"], "application/grpc");
        assert_eq!(headers["grpc-status"], "16");
        assert_eq!(headers["grpc-message"], "no");
    }
}
