//! In whose name a request goes to a kube-apiserver.
//!
//! Invariant: no header that a kube-apiserver could take for an identity comes from a client. [`strip`] takes away every header that speaks
//! of one, in any spelling that HTTP allows and whatever follows the prefix, before [`IdentityHeaders::apply`] puts the gateway's own there;
//! and there is no request without a user's name, as an apiserver would take that for the gateway itself.

use http::header::{AUTHORIZATION, CONNECTION, FORWARDED, PROXY_AUTHORIZATION};
use http::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

use crate::User;

/// What the names of headers begin with that tell an identity, or where a request comes from. All header names are in lower case here.
const PREFIXES: [&str; 3] = ["impersonate-", "x-remote-", "x-forwarded-"];
/// Names that do so whole.
const NAMES: [&str; 3] = ["x-real-ip", "x-client-cert", "client-cert"];

/// A user whom no header can name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum IdentityError {
    /// There is no name.
    #[error("the user has no name")]
    NoName,
    /// Something of the user can't be a header: it has a line break or another control character in it.
    #[error("the user's {0} has a character that no header can carry")]
    Character(&'static str),
}

/// How a kube-apiserver is told who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The gateway's own credentials, and `Impersonate-*`: the apiserver checks that the gateway may.
    Impersonate,
    /// `X-Remote-*`: the apiserver believes the gateway's client certificate (`--requestheader-client-ca-file`).
    RequestHeader,
}

/// The headers that name a user, made once for each user of a connection.
#[derive(Clone, Debug)]
pub(crate) struct IdentityHeaders {
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl IdentityHeaders {
    /// The headers of a user.
    ///
    /// # Errors
    /// If the user has no name, or something that no header can carry.
    pub(crate) fn new(user: &User, mode: Mode) -> Result<Self, IdentityError> {
        if user.name.is_empty() {
            return Err(IdentityError::NoName);
        }
        let (name, uid, group, extra) = match mode {
            Mode::Impersonate => ("impersonate-user", "impersonate-uid", "impersonate-group", "impersonate-extra-"),
            Mode::RequestHeader => ("x-remote-user", "x-remote-uid", "x-remote-group", "x-remote-extra-"),
        };
        let mut headers = Vec::with_capacity(2 + user.groups.len() + user.extra.len());
        headers.push((HeaderName::from_static(name), value(&user.name, "name")?));
        if !user.uid.is_empty() {
            headers.push((HeaderName::from_static(uid), value(&user.uid, "UID")?));
        }
        for text in &user.groups {
            headers.push((HeaderName::from_static(group), value(text, "group")?));
        }
        for (key, values) in &user.extra {
            let name = HeaderName::try_from(format!("{extra}{}", escaped(key)))
                .map_err(|_| IdentityError::Character("extra's key"))?;
            for text in values {
                headers.push((name.clone(), value(text, "extra")?));
            }
        }
        Ok(Self { headers })
    }

    /// Puts them into a request's headers, which [`strip`] was applied to.
    pub(crate) fn apply(&self, headers: &mut HeaderMap) {
        debug_assert!(!headers.keys().any(tells_identity), "stripped before");
        headers.reserve(self.headers.len());
        for (name, value) in &self.headers {
            headers.append(name.clone(), value.clone());
        }
    }
}

/// Bytes above ASCII are carried as they are: Go takes header values for UTF-8. White space at the ends would be lost on the way, and with it
/// the difference between two users.
fn value(text: &str, what: &'static str) -> Result<HeaderValue, IdentityError> {
    let outer = text.as_bytes();
    let is_space = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_whitespace);
    if is_space(outer.first()) || is_space(outer.last()) {
        return Err(IdentityError::Character(what));
    }
    HeaderValue::from_bytes(outer).map_err(|_| IdentityError::Character(what))
}

/// The key of an extra as a part of a header's name: what a name can't have, upper case and `%` are written `%41`.
fn escaped(key: &str) -> String {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut escaped = String::with_capacity(key.len());
    for byte in key.bytes() {
        let stays = byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$&'*+-.^_`|~".contains(&byte);
        if stays {
            escaped.push(char::from(byte));
        } else {
            escaped.push('%');
            escaped.push(char::from(DIGITS[usize::from(byte >> 4)]));
            escaped.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
    escaped
}

/// Whether a header speaks of an identity.
pub(crate) fn tells_identity(name: &HeaderName) -> bool {
    let name = name.as_str();
    // Some servers take `_` for `-`; what would only there be an identity is not let through either.
    let same = |known: &str| {
        name.len() >= known.len()
            && name.bytes().zip(known.bytes()).all(|(byte, wanted)| byte == wanted || (byte == b'_' && wanted == b'-'))
    };
    match name.as_bytes().first() {
        Some(b'i' | b'x' | b'c') => {
            PREFIXES.iter().any(|prefix| same(prefix))
                || NAMES.iter().any(|known| name.len() == known.len() && same(known))
        }
        _ => false,
    }
}

/// Takes away what tells an identity, what belongs to one connection only (RFC 9110, section 7.6.1), and what `Connection` names.
pub(crate) fn strip(headers: &mut HeaderMap) {
    // `Connection` first: it may name headers that the gateway sets later, and must not touch those.
    let mut gone: SmallVec<[HeaderName; 8]> = SmallVec::new();
    for value in headers.get_all(CONNECTION) {
        let names = value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        gone.extend(names.filter_map(|name| HeaderName::from_bytes(name).ok()));
    }
    gone.extend(headers.keys().filter(|name| is_of_one_connection(name) || tells_identity(name)).cloned());
    for name in gone {
        headers.remove(name);
    }
}

fn is_of_one_connection(name: &HeaderName) -> bool {
    use http::header::{HOST, PROXY_AUTHENTICATE, TE, TRANSFER_ENCODING, UPGRADE};
    matches!(
        *name,
        CONNECTION
            | TE
            | TRANSFER_ENCODING
            | UPGRADE
            | HOST
            | AUTHORIZATION
            | PROXY_AUTHORIZATION
            | PROXY_AUTHENTICATE
            | FORWARDED
    ) || matches!(name.as_str(), "keep-alive" | "proxy-connection" | "http2-settings")
}

/// Takes away from a response what belongs to one connection only.
pub(crate) fn strip_response(headers: &mut HeaderMap) {
    let mut gone: SmallVec<[HeaderName; 4]> = SmallVec::new();
    for value in headers.get_all(CONNECTION) {
        let names = value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        gone.extend(names.filter_map(|name| HeaderName::from_bytes(name).ok()));
    }
    for name in
        [CONNECTION, http::header::TRANSFER_ENCODING, http::header::UPGRADE, HeaderName::from_static("keep-alive")]
    {
        if headers.contains_key(&name) {
            gone.push(name);
        }
    }
    for name in gone {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(list: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn user() -> User {
        User {
            name: "jürgen".into(),
            uid: "42".into(),
            groups: vec!["a".into(), "system:authenticated".into()],
            extra: vec![("example.org/Scope%s".into(), vec!["x y".into(), "z".into()])],
        }
    }

    #[test]
    fn a_user_is_named_with_everything() {
        let mut names = HeaderMap::new();
        IdentityHeaders::new(&user(), Mode::Impersonate).unwrap().apply(&mut names);
        assert_eq!(names["impersonate-user"].as_bytes(), "jürgen".as_bytes());
        assert_eq!(names["impersonate-uid"], "42");
        let groups: Vec<_> = names.get_all("impersonate-group").iter().collect();
        assert_eq!(groups, ["a", "system:authenticated"]);
        let extras: Vec<_> = names.get_all("impersonate-extra-example.org%2f%53cope%25s").iter().collect();
        assert_eq!(extras, ["x y", "z"]);
        let mut remote = HeaderMap::new();
        IdentityHeaders::new(&user(), Mode::RequestHeader).unwrap().apply(&mut remote);
        assert_eq!(remote["x-remote-user"].as_bytes(), "jürgen".as_bytes());
        assert_eq!(remote.get_all("x-remote-group").iter().count(), 2);
    }

    #[test]
    fn a_user_without_a_name_or_with_control_characters_is_refused() {
        assert_eq!(IdentityHeaders::new(&User::default(), Mode::Impersonate).unwrap_err(), IdentityError::NoName);
        for name in ["a\nb", "a\r\nImpersonate-User: admin", "\u{0}", " admin", "admin\t"] {
            let user = User { name: name.into(), ..User::default() };
            assert_eq!(IdentityHeaders::new(&user, Mode::Impersonate).unwrap_err(), IdentityError::Character("name"));
        }
    }

    #[test]
    fn what_connection_names_goes_before_the_gateway_names_the_user() {
        let mut inbound = headers(&[
            ("Connection", "close, X-Secret , impersonate-user,audit-id"),
            ("X-Secret", "1"),
            ("Audit-ID", "2"),
            ("IMPERSONATE-USER", "admin"),
            ("Impersonate_User", "admin"),
            ("impersonate-whatever-comes", "admin"),
            ("X-Remote-Extra-Scopes", "all"),
            ("x_forwarded-For", "1.2.3.4"),
            ("Authorization", "Bearer x"),
            ("Transfer-Encoding", "chunked"),
            ("Keep-Alive", "1"),
            ("Accept", "*/*"),
            ("X-Request-Id", "7"),
        ]);
        strip(&mut inbound);
        let mut left: Vec<_> = inbound.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "x-request-id"]);
    }

    /// Names that are near those which matter, and any others.
    fn name() -> impl Strategy<Value = HeaderName> {
        let near = "(?i)(impersonate|x-remote|x_remote|x-forwarded|forwarded|x-real|x-client|client|authorization|proxy|host)[-_.a-z0-9!#$%&'*+^`|~]{0,14}";
        let names = prop_oneof![near.prop_map(String::into_bytes), proptest::collection::vec(any::<u8>(), 1..20)];
        names.prop_filter_map("no name of a header", |name| HeaderName::from_bytes(&name).ok())
    }

    fn value_of_any() -> impl Strategy<Value = HeaderValue> {
        proptest::collection::vec(any::<u8>(), 0..20)
            .prop_filter_map("no value of a header", |value| HeaderValue::from_bytes(&value).ok())
    }

    fn user_of_any() -> impl Strategy<Value = User> {
        let text = || prop_oneof!["[ -~]{0,8}", "\\PC{0,6}", "[a\r\n\t \u{0}\u{7f}\u{80}]{0,4}"];
        let extra = proptest::collection::vec((text(), proptest::collection::vec(text(), 0..3)), 0..3);
        (text(), text(), proptest::collection::vec(text(), 0..4), extra).prop_map(|(name, uid, groups, extra)| User {
            name,
            uid,
            groups,
            extra,
        })
    }

    /// Another way to say it: spelt with dashes, no header begins like one that tells an identity.
    fn could_be_believed(name: &HeaderName) -> bool {
        let dashed = name.as_str().replace('_', "-");
        PREFIXES.iter().any(|prefix| dashed.starts_with(prefix))
            || NAMES.contains(&&*dashed)
            || dashed == "authorization"
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1024))]

        #[test]
        fn whatever_a_client_sends_only_the_user_of_the_gateway_is_told(
            sent in proptest::collection::vec((name(), value_of_any()), 0..12),
            nominated in proptest::collection::vec(prop_oneof![name().prop_map(|name| name.as_str().to_owned()), "[ ,;=a-z-]{0,12}"], 0..4),
            user in user_of_any(),
            mode in prop_oneof![Just(Mode::Impersonate), Just(Mode::RequestHeader)],
        ) {
            let mut map = HeaderMap::new();
            for (name, value) in &sent {
                map.append(name.clone(), value.clone());
            }
            if !nominated.is_empty() {
                map.append(CONNECTION, HeaderValue::from_str(&nominated.join(", ")).unwrap());
            }
            strip(&mut map);
            prop_assert!(!map.keys().any(could_be_believed), "{:?}", map);
            for name in nominated.iter().filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok()) {
                prop_assert!(!map.contains_key(&name), "{} was named by Connection", name);
            }
            let stripped = map.clone();
            strip(&mut map);
            prop_assert_eq!(&map, &stripped, "once is enough");
            let Ok(identity) = IdentityHeaders::new(&user, mode) else { return Ok(()) };
            identity.apply(&mut map);
            let told: Vec<_> = map.iter().filter(|(name, _)| could_be_believed(name)).collect();
            prop_assert_eq!(told.len(), identity.headers.len());
            let prefix = if mode == Mode::Impersonate { "impersonate-" } else { "x-remote-" };
            let values = |what: &str| -> Vec<&[u8]> {
                map.get_all(format!("{prefix}{what}")).iter().map(HeaderValue::as_bytes).collect()
            };
            prop_assert_eq!(values("user"), [user.name.as_bytes()]);
            prop_assert_eq!(values("group"), user.groups.iter().map(String::as_bytes).collect::<Vec<_>>());
            let uids: Vec<&[u8]> = if user.uid.is_empty() { Vec::new() } else { vec![user.uid.as_bytes()] };
            prop_assert_eq!(values("uid"), uids);
            // An apiserver sees these values line by line, and trims them.
            for (_, value) in told {
                let bytes = value.as_bytes();
                prop_assert!(bytes.trim_ascii() == bytes && !bytes.iter().any(|byte| b"\r\n\0".contains(byte)), "{:?}", value);
            }
        }
    }
}
