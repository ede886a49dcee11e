//! Values as Go and etcd write them: durations, truth values, URLs.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// A value that can't be read; displays as what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ValueError(pub(super) String);

fn wrong<T>(text: impl Into<String>) -> Result<T, ValueError> {
    Err(ValueError(text.into()))
}

/// A duration as Go writes it: `1h30m`, `1.5s`, `300ms`; `0` needs no unit.
pub(super) fn duration(text: &str) -> Result<Duration, ValueError> {
    let expected = || ValueError(format!("{text:?} is not a duration such as 300ms, 20s or 1h30m"));
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    if unsigned == "0" {
        return Ok(Duration::ZERO);
    }
    if unsigned.starts_with('-') {
        return wrong(format!("{text:?} is negative"));
    }
    let mut rest = unsigned;
    let mut nanoseconds: u128 = 0;
    if rest.is_empty() {
        return Err(expected());
    }
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(expected)?;
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let unit_ns: u128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(expected()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || fraction.len() > 18 || whole.len() > 18 {
            return Err(expected());
        }
        let parse = |digits: &str| if digits.is_empty() { Ok(0) } else { digits.parse::<u128>() };
        let whole = parse(whole).map_err(|_| expected())?;
        let scale = 10_u128.pow(u32::try_from(fraction.len()).expect("checked above"));
        let fraction = parse(fraction).map_err(|_| expected())?;
        nanoseconds += whole * unit_ns + fraction * unit_ns / scale;
        rest = tail;
    }
    match u64::try_from(nanoseconds) {
        // Go's durations are signed 64-bit nanoseconds.
        Ok(nanoseconds) if i64::try_from(nanoseconds).is_ok() => Ok(Duration::from_nanos(nanoseconds)),
        _ => wrong(format!("{text:?} is too long")),
    }
}

/// A truth value as Go's flags read it.
pub(super) fn boolean(text: &str) -> Result<bool, ValueError> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => wrong(format!("{text:?} is neither true nor false")),
    }
}

/// A whole number. Go's flags also take hexadecimal, octal and binary ones, by prefix.
pub(super) fn number<T: TryFrom<i128>>(text: &str) -> Result<T, ValueError> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.get(..2) {
        Some("0x") => (16, &lower[2..]),
        Some("0b") => (2, &lower[2..]),
        Some("0o") => (8, &lower[2..]),
        _ => (10, lower.as_str()),
    };
    let parsed = if digits.starts_with(['+', '-']) { None } else { i128::from_str_radix(digits, radix).ok() };
    let signed = parsed.map(|number| if negative { -number } else { number });
    signed
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| ValueError(format!("{text:?} is not a whole number of the possible range")))
}

/// A list separated by commas; an empty text is an empty list.
pub(super) fn list(text: &str) -> Vec<String> {
    if text.is_empty() { Vec::new() } else { text.split(',').map(|item| item.trim().to_owned()).collect() }
}

/// How a URL is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// TCP.
    Http,
    /// TLS over TCP.
    Https,
    /// A Unix socket.
    Unix,
    /// TLS over a Unix socket.
    Unixs,
}

impl Scheme {
    /// Whether it is TLS.
    #[must_use]
    pub fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::Unixs)
    }
}

/// A URL to listen at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ListenUrl {
    scheme: Scheme,
    /// `host:port`, or the path of a socket.
    target: String,
}

impl ListenUrl {
    /// How it is spoken to.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// `host:port` of a TCP URL.
    #[must_use]
    pub fn address(&self) -> Option<&str> {
        matches!(self.scheme, Scheme::Http | Scheme::Https).then_some(&self.target)
    }

    /// The path of a Unix socket.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        matches!(self.scheme, Scheme::Unix | Scheme::Unixs).then(|| PathBuf::from(&self.target))
    }

    /// The host of a TCP URL.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        let (host, _) = self.address()?.rsplit_once(':')?;
        Some(host.trim_start_matches('[').trim_end_matches(']'))
    }
}

impl FromStr for ListenUrl {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let text = text.trim();
        let (scheme, rest) = split_scheme(text)?;
        if matches!(scheme, Scheme::Unix | Scheme::Unixs) {
            return if rest.is_empty() {
                wrong(format!("{text:?} names no socket: unix://PATH is expected"))
            } else {
                Ok(Self { scheme, target: rest.to_owned() })
            };
        }
        let target = rest.strip_suffix('/').unwrap_or(rest);
        let (host, _port) = split_host_port(text, target)?;
        if host != "localhost" && host.parse::<IpAddr>().is_err() {
            return wrong(format!("{text:?}: listening needs an IP address or localhost, not the name {host:?}"));
        }
        Ok(Self { scheme, target: target.to_owned() })
    }
}

impl fmt::Display for ListenUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
            Scheme::Unix => "unix",
            Scheme::Unixs => "unixs",
        };
        write!(formatter, "{scheme}://{}", self.target)
    }
}

/// URLs to listen at, separated by commas, each once.
pub(super) fn listen_urls(text: &str) -> Result<Vec<ListenUrl>, ValueError> {
    let mut urls = Vec::new();
    for item in list(text) {
        let url: ListenUrl = item.parse()?;
        if !urls.contains(&url) {
            urls.push(url);
        }
    }
    Ok(urls)
}

/// URLs to tell others, separated by commas, each once.
pub(super) fn advertised_urls(text: &str) -> Result<Vec<String>, ValueError> {
    let mut urls = Vec::new();
    for item in list(text) {
        let (scheme, rest) = split_scheme(&item)?;
        if matches!(scheme, Scheme::Http | Scheme::Https) {
            split_host_port(&item, rest.strip_suffix('/').unwrap_or(rest))?;
        }
        if !urls.contains(&item) {
            urls.push(item);
        }
    }
    Ok(urls)
}

fn split_scheme(text: &str) -> Result<(Scheme, &str), ValueError> {
    let (scheme, rest) = text
        .split_once("://")
        .or_else(|| text.split_once(':').filter(|(scheme, _)| scheme.starts_with("unix")))
        .ok_or_else(|| ValueError(format!("{text:?} is not a URL such as http://127.0.0.1:2379")))?;
    let scheme = match scheme {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        "unix" => Scheme::Unix,
        "unixs" => Scheme::Unixs,
        other => return wrong(format!("{text:?}: the scheme {other:?} is none of http, https, unix, unixs")),
    };
    Ok((scheme, rest))
}

fn split_host_port<'t>(text: &str, target: &'t str) -> Result<(&'t str, u16), ValueError> {
    if target.contains('/') {
        return wrong(format!("{text:?} must not have a path"));
    }
    let (host, port) = target
        .rsplit_once(':')
        .filter(|(host, _)| !host.is_empty() && !host.ends_with(':'))
        .ok_or_else(|| ValueError(format!("{text:?} must have the form SCHEME://HOST:PORT")))?;
    let port = port.parse().map_err(|_| ValueError(format!("{text:?}: {port:?} is not a port")))?;
    let bare = match host.strip_prefix('[') {
        Some(inner) => match inner.strip_suffix(']') {
            Some(inner) => inner,
            None => return wrong(format!("{text:?}: the bracket of the address is not closed")),
        },
        None if host.contains(':') => {
            return wrong(format!("{text:?}: an IPv6 address stands in brackets, [{host}]"));
        }
        None => host,
    };
    Ok((bare, port))
}
