//! What names and labels may look like, as `pkg/api/validate/content` of apimachinery v0.36.3.
//!
//! Invariant: what is told to be valid is so for Kubernetes, and the texts of errors are its own.

/// The longest label of DNS, in bytes.
const DNS_LABEL_BYTES_MAX: usize = 63;
/// The longest name of DNS, in bytes.
const DNS_SUBDOMAIN_BYTES_MAX: usize = 253;
/// The longest name in a label's key, and the longest value, in bytes.
const LABEL_BYTES_MAX: usize = 63;

const LABEL_KEY_FORMAT: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
    alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE_FORMAT: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or \
    '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used \
    for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const DNS_SUBDOMAIN_FORMAT: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' \
    or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

/// As `IsLabelKey`: a name, or the prefix of a name, a slash and the name.
#[must_use]
pub fn is_label_key(key: &[u8]) -> bool {
    let (prefix, name) = match key.iter().position(|&byte| byte == b'/') {
        Some(slash) => (Some(&key[..slash]), &key[slash + 1..]),
        None => (None, key),
    };
    prefix.is_none_or(is_dns_subdomain) && !name.is_empty() && is_label_value(name)
}

/// What is wrong with a label's key; nothing if it is valid.
#[must_use]
pub fn label_key_errors(key: &str) -> Vec<String> {
    let (prefix, name) = match key.split_once('/') {
        Some((_, name)) if name.contains('/') => {
            return vec![format!(
                "a valid label key {LABEL_KEY_FORMAT} with an optional DNS subdomain prefix and '/' (e.g. \
                 'example.com/MyName')"
            )];
        }
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let mut errors = Vec::new();
    match prefix {
        None => {}
        Some("") => errors.push("prefix part must be non-empty".to_owned()),
        Some(prefix) => {
            errors.extend(dns_subdomain_errors(prefix).into_iter().map(|error| format!("prefix part {error}")));
        }
    }
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_BYTES_MAX {
        errors.push(format!("name part must be no more than {LABEL_BYTES_MAX} bytes"));
    }
    if name.is_empty() || !is_label_text(name.as_bytes()) {
        errors.push(format!("name part {LABEL_KEY_FORMAT}"));
    }
    errors
}

/// As `IsLabelValue`, and for one that is not empty what a name in a label's key may be.
#[must_use]
pub fn is_label_value(value: &[u8]) -> bool {
    value.len() <= LABEL_BYTES_MAX && (value.is_empty() || is_label_text(value))
}

/// What is wrong with a label's value; nothing if it is valid.
#[must_use]
pub fn label_value_errors(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > LABEL_BYTES_MAX {
        errors.push(format!("must be no more than {LABEL_BYTES_MAX} bytes"));
    }
    if !value.is_empty() && !is_label_text(value.as_bytes()) {
        errors.push(LABEL_VALUE_FORMAT.to_owned());
    }
    errors
}

/// A text of any length that begins and ends as a label must, and has its characters.
fn is_label_text(text: &[u8]) -> bool {
    let is_alphanumeric = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    is_alphanumeric(text.first())
        && is_alphanumeric(text.last())
        && text.iter().all(|&byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// As `IsDNS1123Label`: what a namespace's name may be.
#[must_use]
pub fn is_dns_label(name: &[u8]) -> bool {
    name.len() <= DNS_LABEL_BYTES_MAX && is_dns_text(name)
}

/// As `IsDNS1123Subdomain`: what most objects' names may be.
#[must_use]
pub fn is_dns_subdomain(name: &[u8]) -> bool {
    name.len() <= DNS_SUBDOMAIN_BYTES_MAX && name.split(|&byte| byte == b'.').all(is_dns_text)
}

/// What is wrong with a name of DNS; nothing if it is valid.
#[must_use]
pub fn dns_subdomain_errors(name: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if name.len() > DNS_SUBDOMAIN_BYTES_MAX {
        errors.push(format!("must be no more than {DNS_SUBDOMAIN_BYTES_MAX} bytes"));
    }
    if !name.as_bytes().split(|&byte| byte == b'.').all(is_dns_text) {
        errors.push(DNS_SUBDOMAIN_FORMAT.to_owned());
    }
    errors
}

fn is_dns_text(label: &[u8]) -> bool {
    let is_lower_alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    label.first().is_some_and(is_lower_alphanumeric)
        && label.last().is_some_and(is_lower_alphanumeric)
        && label.iter().all(|byte| is_lower_alphanumeric(byte) || *byte == b'-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_namespace_has_no_dots() {
        assert!(is_dns_label(b"kube-system") && !is_dns_label(b"a.b") && !is_dns_label(b"-a") && !is_dns_label(b""));
        assert!(is_dns_subdomain(b"a.b") && !is_dns_subdomain(b"a..b") && !is_dns_subdomain(b"A"));
        assert!(is_dns_label(&[b'a'; 63]) && !is_dns_label(&[b'a'; 64]));
        assert!(is_dns_subdomain(&[b'a'; 253]) && !is_dns_subdomain(&[b'a'; 254]));
    }

    proptest! {
        #[test]
        fn what_is_not_valid_has_errors(key in "[aA./_-]{0,8}|a{60,66}|a{252,254}/a") {
            prop_assert_eq!(is_label_key(key.as_bytes()), label_key_errors(&key).is_empty(), "{}", key);
            prop_assert_eq!(is_label_value(key.as_bytes()), label_value_errors(&key).is_empty(), "{}", key);
            prop_assert_eq!(is_dns_subdomain(key.as_bytes()), dns_subdomain_errors(&key).is_empty(), "{}", key);
        }
    }
}
