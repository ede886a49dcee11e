//! Values as Go and etcd write them: durations, truth values, URLs.

use std::time::Duration;

use kubewharf_foundation::listener::ListenUrl;

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
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || fraction.len() > 18 || whole.len() > 18
        {
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

/// URLs to listen at, separated by commas, each once.
pub(super) fn listen_urls(text: &str) -> Result<Vec<ListenUrl>, ValueError> {
    let mut urls = Vec::new();
    for item in list(text) {
        let url: ListenUrl =
            item.parse().map_err(|error: kubewharf_foundation::Error| ValueError(error.to_string()))?;
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
        if !["http://", "https://", "unix:", "unixs:"].iter().any(|scheme| item.starts_with(scheme)) {
            return wrong(format!("{item:?} is not a URL such as http://10.0.0.1:2379"));
        }
        if !urls.contains(&item) {
            urls.push(item);
        }
    }
    Ok(urls)
}
