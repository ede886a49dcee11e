//! Values of a manifest that have a form of their own.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};

/// Bytes in base64, as in the original's CRD. Never shown.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Data(Vec<u8>);

impl Data {
    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Vec<u8>> for Data {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Data {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Data({} bytes)", self.0.len())
    }
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut text = String::deserialize(deserializer)?;
        // A block of YAML has line ends, which base64 does not.
        text.retain(|character| !character.is_ascii_whitespace());
        let decoded = STANDARD.decode(&text);
        decoded.map(Self).map_err(|error| {
            let remedy = if text.starts_with("-----BEGIN") {
                "encode the PEM text once more, as base64 -w0 does"
            } else {
                "write what base64 -w0 prints"
            };
            D::Error::custom(format!("is not base64 ({error}); {remedy}"))
        })
    }
}

/// A length of time, written as in Go: `1m30s`, `500ms`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DurationText(pub Duration);

const UNITS_NS: [(&str, u64); 7] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

impl DurationText {
    fn parse(text: &str) -> Option<Self> {
        let mut rest = text;
        let mut total_ns: u64 = 0;
        while !rest.is_empty() {
            let digits = rest.find(|character: char| !character.is_ascii_digit())?;
            let whole: u64 = rest[..digits].parse().ok()?;
            rest = &rest[digits..];
            let mut fraction = "";
            if let Some(behind) = rest.strip_prefix('.') {
                let digits = behind.find(|character: char| !character.is_ascii_digit())?;
                (fraction, rest) = behind.split_at(digits);
                if fraction.is_empty() || fraction.len() > 9 {
                    return None;
                }
            }
            let unit_end =
                rest.find(|character: char| character.is_ascii_digit() || character == '.').unwrap_or(rest.len());
            let (unit, behind) = rest.split_at(unit_end);
            let (_, unit_ns) = UNITS_NS.iter().find(|(name, _)| *name == unit)?;
            rest = behind;
            total_ns = total_ns.checked_add(whole.checked_mul(*unit_ns)?)?;
            if !fraction.is_empty() {
                let numerator: u64 = fraction.parse().ok()?;
                let denominator = 10_u64.pow(u32::try_from(fraction.len()).ok()?);
                let part = u128::from(numerator) * u128::from(*unit_ns) / u128::from(denominator);
                total_ns = total_ns.checked_add(u64::try_from(part).ok()?)?;
            }
        }
        (!text.is_empty()).then(|| Self(Duration::from_nanos(total_ns)))
    }
}

impl<'de> Deserialize<'de> for DurationText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        const REMEDY: &str = "write a number with its unit (ms, s, m, h), such as 30s or 1m30s";
        impl Visitor<'_> for Text {
            type Value = DurationText;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a length of time such as 30s")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<DurationText, E> {
                if text == "0" {
                    return Ok(DurationText(Duration::ZERO));
                }
                DurationText::parse(text).ok_or_else(|| E::custom(format!("{text:?} is no length of time; {REMEDY}")))
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<DurationText, E> {
                if number == 0 {
                    return Ok(DurationText(Duration::ZERO));
                }
                Err(E::custom(format!("{number} has no unit; {REMEDY}")))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

/// A number of bytes: `3145728`, `3Mi` or `3M`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ByteSize(pub u64);

const MULTIPLES: [(&str, u64); 6] =
    [("Ki", 1 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30), ("k", 1_000), ("M", 1_000_000), ("G", 1_000_000_000)];

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Size;
        impl Visitor<'_> for Size {
            type Value = ByteSize;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a number of bytes such as 3Mi")
            }

            fn visit_u64<E: Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<ByteSize, E> {
                let (number, multiple) = MULTIPLES
                    .iter()
                    .find_map(|(unit, multiple)| Some((text.strip_suffix(unit)?, *multiple)))
                    .unwrap_or((text, 1));
                let digits = number.bytes().all(|byte| byte.is_ascii_digit());
                let bytes = digits.then(|| number.parse::<u64>().ok()?.checked_mul(multiple)).flatten();
                bytes.map(ByteSize).ok_or_else(|| {
                    E::custom(format!("{text:?} is no number of bytes; write a whole number, or one with Ki, Mi or Gi"))
                })
            }
        }
        deserializer.deserialize_any(Size)
    }
}

/// A share in percent, with two decimals at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Percent {
    /// In hundredths of a percent.
    pub hundredths: u32,
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Percent;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a number from 0 to 100")
            }

            fn visit_u64<E: Error>(self, percent: u64) -> Result<Percent, E> {
                let hundredths =
                    u32::try_from(percent).ok().filter(|percent| *percent <= 100).map(|percent| percent * 100);
                hundredths
                    .map(|hundredths| Percent { hundredths })
                    .ok_or_else(|| E::custom(format!("{percent} is no share in percent; write a number from 0 to 100")))
            }

            fn visit_f64<E: Error>(self, percent: f64) -> Result<Percent, E> {
                let hundredths = (percent * 100.0).round();
                if !(0.0..=10_000.0).contains(&hundredths) || (hundredths - percent * 100.0).abs() > 1e-6 {
                    let remedy = "write a number from 0 to 100 with two decimals at most";
                    return Err(E::custom(format!("{percent} is no share in percent; {remedy}")));
                }
                // In range, and whole, by the test above.
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                Ok(Percent { hundredths: hundredths as u32 })
            }
        }
        deserializer.deserialize_any(Number)
    }
}

/// How an endpoint is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scheme {
    /// In clear text.
    Http,
    /// With TLS.
    Https,
}

impl Scheme {
    /// `http` or `https`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// The address of an endpoint, taken apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct EndpointUrl {
    pub(super) scheme: Scheme,
    /// A DNS name in lower case, or an IP address without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// Whether there was a path, which means nothing.
    pub(super) has_path: bool,
}

impl EndpointUrl {
    /// Reads a URL; the error is what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let (scheme, rest) = text.split_once("://").ok_or("has no scheme")?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return Err("has a scheme other than http and https"),
        };
        if rest.contains(['?', '#']) {
            return Err("has a query or a fragment");
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if authority.contains('@') {
            return Err("has a user name");
        }
        let (host, port) = split_port(authority).ok_or("has a malformed host or port")?;
        let host = normal_host(host).ok_or("has a malformed host")?;
        Ok(Self { scheme, host, port: port.unwrap_or(scheme.default_port()), has_path: !path.is_empty() })
    }

    /// The one way to write this address.
    pub(super) fn canonical(&self) -> String {
        let Self { scheme, host, port, .. } = self;
        format!("{}://{}", scheme.as_str(), authority(host, *port))
    }
}

/// `host:port`, with brackets around an IPv6 address.
pub(super) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Host without brackets, and port if there is one. `None` if malformed.
pub(super) fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            host.parse::<Ipv6Addr>().ok()?;
            match port {
                "" => (host, None),
                _ => (host, Some(port.strip_prefix(':')?)),
            }
        }
        None => match authority.split_once(':') {
            // More colons are an IPv6 address without brackets.
            Some((_, port)) if port.contains(':') => return None,
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    match port {
        None => Some((host, None)),
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            port.parse().ok().filter(|port| *port > 0).map(|port| (host, Some(port)))
        }
        Some(_) => None,
    }
}

fn normal_host(host: &str) -> Option<String> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Some(address.to_string());
    }
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    is_dns_name(&host, true).then_some(host)
}

/// Whether a text is a DNS name in lower case. Underscores are in real names, though not in those of certificates.
pub(super) fn is_dns_name(name: &str, underscores: bool) -> bool {
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || (underscores && byte == b'_')
            })
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_in_go() {
        let parse = |text| DurationText::parse(text).map(|duration| duration.0);
        assert_eq!(parse("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(parse("1.5h"), Some(Duration::from_secs(5_400)));
        assert_eq!(parse("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse("1µs"), Some(Duration::from_micros(1)));
        for text in ["", "5", "s", "1.s", "1 s", "-1s", "1d", "99999999999h", "1.5"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn endpoints_are_taken_apart_and_written_one_way() {
        let canonical = |text| EndpointUrl::parse(text).map(|url| url.canonical());
        assert_eq!(canonical("https://API.example:6443"), Ok("https://api.example:6443".into()));
        assert_eq!(canonical("https://10.0.0.1/"), Ok("https://10.0.0.1:443".into()));
        assert_eq!(canonical("HTTP://[2001:DB8::1]:8080"), Ok("http://[2001:db8::1]:8080".into()));
        assert!(EndpointUrl::parse("https://a:1/path").is_ok_and(|url| url.has_path));
        for text in [
            "10.0.0.1:6443",
            "ftp://a",
            "https://",
            "https://a:0",
            "https://a:65536",
            "https://a:+1",
            "https://u@a",
            "https://a?b",
            "https://2001:db8::1",
            "https://[::1",
            "https://[a]",
            "https://-a",
            "https://a b",
            "https://a..b",
            "https://a:",
        ] {
            assert!(EndpointUrl::parse(text).is_err(), "{text}");
        }
    }
}
