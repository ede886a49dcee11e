//! Times, durations and ages as Kubernetes writes them.
//!
//! Invariant: what is written is read again as the same.

use std::fmt::Write;

/// The second in which Go's time begins. It is written as no time at all.
const ZERO: i64 = -62_135_596_800;
const DAY: i64 = 86_400;

/// A time in UTC with a number of digits of the second's fraction. None for no time, and for a year that has not four digits.
pub(crate) fn format(seconds: i64, nanos: i64, digits: usize) -> Option<String> {
    let (days, second) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    let (year, month, day) = civil(days);
    if seconds == ZERO || !(0..=9999).contains(&year) {
        return None;
    }
    let mut text =
        format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60);
    if digits > 0 {
        let fraction = format!("{nanos:09}");
        text.push('.');
        text.push_str(fraction.get(..digits)?);
    }
    text.push('Z');
    Some(text)
}

/// Seconds and nanoseconds of a time of RFC 3339.
pub(crate) fn parse(text: &str) -> Option<(i64, i64)> {
    let bytes = text.as_bytes();
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = text.get(from..to)?;
        digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if separators.iter().any(|(at, separator)| bytes.get(*at) != Some(separator)) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let days = days(year, month, day);
    // A day that there is not would be another's.
    if civil(days) != (year, month, day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut rest = text.get(19..)?;
    let mut nanos = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let length = fraction.bytes().take_while(u8::is_ascii_digit).count();
        if length == 0 {
            return None;
        }
        let kept = &fraction[..length.min(9)];
        nanos = kept.parse::<i64>().ok()? * 10i64.pow(9 - kept.len() as u32);
        rest = &fraction[length..];
    }
    let offset = match rest.as_bytes() {
        [b'Z'] => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let at = text.len() - 5;
            let (hours, minutes) = (number(at, at + 2)?, number(at + 3, at + 5)?);
            if hours > 24 || minutes > 59 {
                return None;
            }
            (hours * 3600 + minutes * 60) * if *sign == b'-' { -1 } else { 1 }
        }
        _ => return None,
    };
    Some((days * DAY + hour * 3600 + minute * 60 + second - offset, nanos))
}

/// Year, month and day of a day since 1970, in the calendar that goes on before its beginning.
fn civil(days: i64) -> (i64, i64, i64) {
    // Eras of 400 years, and years that begin in March, so that a leap day is the last.
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, of_year - (153 * from_march + 2) / 5 + 1)
}

/// The inverse of [`civil`].
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let from_march = (month + 9).rem_euclid(12);
    let of_year = (153 * from_march + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// A number of nanoseconds as Go writes a duration: `1h2m3.5s`, `1.5ms`.
pub(crate) fn format_duration(nanos: i64) -> String {
    let size = nanos.unsigned_abs();
    let mut text = String::from(if nanos < 0 { "-" } else { "" });
    let written = match size {
        0 => write!(text, "0s"),
        1..1_000 => write!(text, "{size}ns"),
        1_000..1_000_000 => write!(text, "{}µs", decimal(size, 1_000)),
        1_000_000..1_000_000_000 => write!(text, "{}ms", decimal(size, 1_000_000)),
        _ => {
            let minutes = size / 60_000_000_000;
            let seconds = decimal(size % 60_000_000_000, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => write!(text, "{seconds}s"),
                (0, minutes) => write!(text, "{minutes}m{seconds}s"),
                (hours, minutes) => write!(text, "{hours}h{minutes}m{seconds}s"),
            }
        }
    };
    written.expect("a text takes any text");
    text
}

/// A number in units, with no zeros at the end of its fraction.
fn decimal(value: u64, unit: u64) -> String {
    let digits = unit.ilog10() as usize;
    let text = format!("{}.{:0digits$}", value / unit, value % unit);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Nanoseconds of a duration as Go reads it.
pub(crate) fn parse_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut nanos = 0i128;
    while !rest.is_empty() || nanos == 0 {
        let digits = rest.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
        let (number, behind) = rest.split_at(digits);
        let letters = behind.bytes().take_while(|byte| !byte.is_ascii_digit() && *byte != b'.').count();
        let (unit, behind) = behind.split_at(letters);
        let unit: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || whole.len() > 18 || fraction.contains('.') {
            return None;
        }
        nanos += whole.parse::<i128>().unwrap_or(0) * unit;
        let fraction = &fraction[..fraction.len().min(18)];
        if !fraction.is_empty() {
            nanos += fraction.parse::<i128>().ok()? * unit / 10i128.pow(fraction.len() as u32);
        }
        rest = behind;
        if rest.is_empty() {
            break;
        }
    }
    i64::try_from(if negative { -nanos } else { nanos }).ok()
}

/// A time in UTC to the second, of so many seconds since 1970.
pub(crate) fn rfc3339(unix_seconds: u64) -> String {
    i64::try_from(unix_seconds).ok().and_then(|seconds| format(seconds, 0, 0)).unwrap_or_default()
}

/// Seconds since 1970 of a time of RFC 3339; none of one before.
pub(crate) fn parse_rfc3339(text: &str) -> Option<u64> {
    u64::try_from(parse(text)?.0).ok()
}

/// So many seconds in the two largest units that matter, as kubectl tells an age.
pub(crate) fn age(seconds: u64) -> String {
    let two = |large: u64, unit: &str, small: u64, small_unit: &str| {
        if small == 0 { format!("{large}{unit}") } else { format!("{large}{unit}{small}{small_unit}") }
    };
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let days = hours / 24;
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 192 => two(days, "d", hours % 24, "h"),
        () if days < 730 => format!("{days}d"),
        () if days < 8 * 365 => two(days / 365, "y", days % 365, "d"),
        () => format!("{}y", days / 365),
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:34:56Z", 951_827_696),
            ("2026-11-22T10:11:12Z", 1_795_342_272),
            ("1969-12-31T23:59:59Z", -1),
        ] {
            assert_eq!(parse(text), Some((seconds, 0)), "{text}");
            assert_eq!(format(seconds, 0, 0).as_deref(), Some(text));
        }
        assert_eq!(parse("2026-11-22T10:11:12.25+02:00"), Some((1_795_335_072, 250_000_000)));
        assert_eq!(format(0, 1_500, 6).as_deref(), Some("1970-01-01T00:00:00.000001Z"));
        assert_eq!(format(ZERO, 0, 0), None);
        for wrong in [
            "",
            "2026-02-29T00:00:00Z",
            "2026-01-01",
            "2026-01-01T00:00:00",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:00:00.Z",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn durations_are_gos() {
        for (text, nanos) in [
            ("0s", 0),
            ("1h2m3.5s", 3_723_500_000_000),
            ("10m0s", 600_000_000_000),
            ("1.5ms", 1_500_000),
            ("-2µs", -2_000),
            ("999ns", 999),
        ] {
            assert_eq!(parse_duration(text), Some(nanos), "{text}");
            assert_eq!(format_duration(nanos), text);
        }
        assert_eq!(parse_duration("1.5h"), Some(5_400_000_000_000));
        for wrong in ["", "1", "s", "1x", "-", "1..5s"] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn times_and_durations_come_back(seconds in -62_135_596_799i64..253_402_300_800, nanos in any::<i64>()) {
            let text = format(seconds, 0, 0).unwrap();
            prop_assert_eq!(parse(&text), Some((seconds, 0)));
            prop_assert_eq!(parse_duration(&format_duration(nanos)), Some(nanos));
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,30}", number in "[-+0-9.hmnsuµ:TZ]{0,30}") {
            for text in [text, number] {
                let _ = (parse(&text), parse_duration(&text));
            }
        }
    }

    #[test]
    fn times_are_written_as_rfc_3339_says() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_795_711_199), "2026-11-26T16:39:59Z");
    }

    #[test]
    fn times_that_are_written_can_be_read() {
        for seconds in (0..4_000_000_000).step_by(86_399 * 17) {
            assert_eq!(parse_rfc3339(&rfc3339(seconds)), Some(seconds));
        }
        assert_eq!(parse_rfc3339("2026-11-26"), None);
        assert_eq!(parse_rfc3339("2026-00-26T00:00:00Z"), None);
    }

    #[test]
    fn ages_are_told_as_kubectl_does() {
        let told = [
            (119, "119s"),
            (120, "2m"),
            (150, "2m30s"),
            (600, "10m"),
            (10_800, "3h"),
            (14_460, "4h1m"),
            (172_800, "2d"),
            (180_000, "2d2h"),
        ];
        for (seconds, text) in told {
            assert_eq!(age(seconds), text);
        }
    }
}
