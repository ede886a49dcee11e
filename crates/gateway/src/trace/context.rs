//! The context of a trace as requests carry it: the header `traceparent` of W3C Trace Context.

use http::{HeaderMap, HeaderName, HeaderValue};

pub(crate) static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(crate) static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Of the flags of a trace: it is recorded.
const SAMPLED: u8 = 1;
/// Of the flags of a trace: its id is random. Told on, never claimed.
const RANDOM: u8 = 2;
/// What a header of version 00 is long, in bytes.
const LENGTH: usize = 55;
const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Which trace a request belongs to, and which span it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TraceContext {
    /// Never zero.
    pub(crate) trace_id: u128,
    /// Never zero.
    pub(crate) span_id: u64,
    /// Those that are known.
    flags: u8,
}

impl TraceContext {
    /// The beginning of a trace.
    pub(crate) fn new(trace_id: u128, span_id: u64, is_sampled: bool) -> Self {
        Self { trace_id, span_id, flags: u8::from(is_sampled) }
    }

    /// The same trace, seen from another span.
    pub(crate) fn with_span(self, span_id: u64) -> Self {
        Self { span_id, ..self }
    }

    /// What the headers tell; `None` if they tell nothing, or not one valid thing.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(&TRACEPARENT).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => Self::parse(value.as_bytes()),
            _ => None,
        }
    }

    /// Section 3.2 of the recommendation. Of a version to come, as much is read as there is in version 00, if it goes on as it has to.
    fn parse(text: &[u8]) -> Option<Self> {
        let (known, rest) = text.split_at_checked(LENGTH)?;
        let version = hex(&known[..2])?;
        let is_well_formed = match version {
            0xff => false,
            0 => rest.is_empty(),
            _ => rest.is_empty() || rest[0] == b'-',
        };
        if !is_well_formed || [known[2], known[35], known[52]] != [b'-'; 3] {
            return None;
        }
        let trace_id = hex(&known[3..35])?;
        let span_id = u64::try_from(hex(&known[36..52])?).expect("it has 16 digits");
        let flags = u8::try_from(hex(&known[53..])?).expect("it has 2 digits") & (SAMPLED | RANDOM);
        (trace_id != 0 && span_id != 0).then_some(Self { trace_id, span_id, flags })
    }

    /// Whether the trace is recorded.
    pub(crate) fn is_sampled(self) -> bool {
        self.flags & SAMPLED != 0
    }

    pub(crate) fn flags(self) -> u8 {
        self.flags
    }

    /// The header.
    pub(crate) fn to_header(self) -> HeaderValue {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        write_hex(&mut text[3..35], self.trace_id);
        write_hex(&mut text[36..52], self.span_id.into());
        write_hex(&mut text[53..], self.flags.into());
        HeaderValue::from_bytes(&text).expect("it is ASCII")
    }
}

/// Lower case alone is allowed.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(digit))
    })
}

/// The last digits of a number, as many as there is room for.
fn write_hex(room: &mut [u8], mut number: u128) {
    for place in room.iter_mut().rev() {
        *place = DIGITS[(number & 15) as usize];
        number >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_valid_context_is_read_and_written_and_an_invalid_one_is_none() {
        let read = TraceContext::parse(VALID.as_bytes()).unwrap();
        let expected = TraceContext::new(0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, 0x00f0_67aa_0ba9_02b7, true);
        assert_eq!(read, expected);
        assert_eq!(read.to_header(), VALID);
        for (text, flags) in [
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", Some(0)),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03", Some(3)),
            // Flags that nobody knows are no business of ours.
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-fc", Some(0)),
            // Of a version to come, which may have more.
            ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", Some(1)),
            ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-is-new", Some(1)),
            ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.what-is-new", None),
            ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", None),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-", None),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1", None),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7", None),
            ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", None),
            ("00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01", None),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0x", None),
            ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", None),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", None),
            ("00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None),
            ("00-4bf92f3577b34da6a3ce929d0e0e47360-0f067aa0ba902b7-01", None),
            ("0-04bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None),
            (" 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None),
            ("00-no-trace-01", None),
            ("", None),
        ] {
            assert_eq!(TraceContext::parse(text.as_bytes()).map(TraceContext::flags), flags, "{text}");
        }
    }

    #[test]
    fn two_contexts_are_none() {
        let mut headers = HeaderMap::new();
        assert_eq!(TraceContext::of(&headers), None);
        headers.insert(&TRACEPARENT, HeaderValue::from_static(VALID));
        assert!(TraceContext::of(&headers).is_some());
        headers.append(&TRACEPARENT, HeaderValue::from_static(VALID));
        assert_eq!(TraceContext::of(&headers), None);
    }
}
