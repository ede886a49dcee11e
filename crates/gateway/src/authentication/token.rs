//! Bearer tokens in a request: where kube-apiserver looks for them, and nowhere else.
//!
//! Invariant: reading changes nothing; what must not be forwarded is taken out by [`remove_websocket_token`], whoever
//! the user turned out to be. (The `Authorization` header is the proxy's to replace.)

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use http::header::{AUTHORIZATION, CONNECTION, Entry, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderValue};

/// What a WebSocket sub-protocol begins with that is a token.
const WEBSOCKET_PREFIX: &str = "base64url.bearer.authorization.k8s.io.";

/// As Go decodes: no padding, and the last bits may be anything.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone),
);

/// A token that is there and can't be right. Texts are kube-apiserver's; a client is not shown them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not UTF-8.
    #[error("invalid bearer token: it is not UTF-8")]
    NotText,
    /// Two sub-protocols are tokens.
    #[error("multiple base64.bearer.authorization tokens specified")]
    Several,
    /// The sub-protocol's token is not base64url without padding.
    #[error("invalid base64.bearer.authorization token encoding")]
    Encoding,
    /// There is no other sub-protocol, and so none that could be answered.
    #[error("missing additional subprotocol")]
    NoOtherProtocol,
}

/// The token of the `Authorization` header. Other schemes are none, and so is an empty token: nobody has asked to be
/// known by it.
///
/// # Errors
///
/// If the token is not text.
pub fn bearer(headers: &HeaderMap) -> Result<Option<&str>, TokenError> {
    let Some(value) = headers.get(AUTHORIZATION) else { return Ok(None) };
    let value = value.as_bytes().trim_ascii();
    let mut words = value.splitn(3, |byte| *byte == b' ');
    let (Some(scheme), Some(token)) = (words.next(), words.next()) else { return Ok(None) };
    if !scheme.eq_ignore_ascii_case(b"bearer") || token.is_empty() {
        return Ok(None);
    }
    std::str::from_utf8(token).map(Some).map_err(|_| TokenError::NotText)
}

/// Whether the request asks for an upgrade to WebSocket, as kube-apiserver understands it.
#[must_use]
pub fn is_websocket(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && headers
            .get_all(CONNECTION)
            .iter()
            .any(|value| value.as_bytes().windows(b"upgrade".len()).any(|piece| piece.eq_ignore_ascii_case(b"upgrade")))
}

/// The token among the sub-protocols of a WebSocket request; none in any other request.
///
/// # Errors
///
/// If there are several, if it can't be decoded, or if no other sub-protocol is offered.
pub fn websocket(headers: &HeaderMap) -> Result<Option<String>, TokenError> {
    if !headers.contains_key(SEC_WEBSOCKET_PROTOCOL) || !is_websocket(headers) {
        return Ok(None);
    }
    let mut encoded: Option<&[u8]> = None;
    let mut others = 0;
    for protocol in protocols(headers) {
        match protocol.strip_prefix(WEBSOCKET_PREFIX.as_bytes()) {
            Some(_) if encoded.is_some() => return Err(TokenError::Several),
            Some(token) => encoded = Some(token),
            None => others += 1,
        }
    }
    let Some(encoded) = encoded else { return Ok(None) };
    let token = BASE64.decode(encoded).map_err(|_| TokenError::Encoding)?;
    let token = String::from_utf8(token).map_err(|_| TokenError::NotText)?;
    if token.is_empty() {
        return Ok(None);
    }
    if others == 0 {
        return Err(TokenError::NoOtherProtocol);
    }
    Ok(Some(token))
}

/// Takes every token out of the sub-protocols, and joins the others to one header, as kube-apiserver does. A request
/// without such a token stays as it is.
pub fn remove_websocket_token(headers: &mut HeaderMap) {
    let is_token = |protocol: &[u8]| protocol.starts_with(WEBSOCKET_PREFIX.as_bytes());
    if !headers.contains_key(SEC_WEBSOCKET_PROTOCOL) || !protocols(headers).any(is_token) {
        return;
    }
    let others: Vec<&[u8]> = protocols(headers).filter(|protocol| !is_token(protocol)).collect();
    // Pieces of valid header values are one again when joined.
    let joined = HeaderValue::from_bytes(&others.join(&b","[..])).ok().filter(|joined| !joined.is_empty());
    if let Entry::Occupied(mut entry) = headers.entry(SEC_WEBSOCKET_PROTOCOL) {
        match joined {
            Some(joined) => {
                entry.insert(joined);
            }
            None => {
                entry.remove();
            }
        }
    }
}

fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).expect("a value"));
        }
        headers
    }

    #[test]
    fn bearer_tokens_are_found_where_kube_apiserver_finds_them() {
        for (value, token) in [
            ("Bearer abc", Some("abc")),
            ("bearer abc", Some("abc")),
            ("BEARER abc", Some("abc")),
            ("  Bearer abc  ", Some("abc")),
            ("Bearer abc def", Some("abc")),
            ("Bearer abc def ghi", Some("abc")),
            // An empty token is no token, also in front of a real one.
            ("Bearer  abc", None),
            ("Bearer", None),
            ("Bearer ", None),
            ("Bearer\tabc", None),
            ("Basic abc", None),
            ("abc", None),
            ("", None),
        ] {
            assert_eq!(bearer(&headers(&[("authorization", value)])), Ok(token), "{value:?}");
        }
        assert_eq!(bearer(&HeaderMap::new()), Ok(None));
        let two = headers(&[("authorization", "Basic x"), ("authorization", "Bearer abc")]);
        assert_eq!(bearer(&two), Ok(None), "only the first header counts");
        let mut odd = HeaderMap::new();
        odd.insert(AUTHORIZATION, HeaderValue::from_bytes(b"Bearer \xff").expect("allowed in HTTP"));
        assert_eq!(bearer(&odd), Err(TokenError::NotText));
    }

    fn upgrade(protocols: &[&str]) -> HeaderMap {
        let mut fields = vec![("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")];
        fields.extend(protocols.iter().map(|value| ("sec-websocket-protocol", *value)));
        headers(&fields)
    }

    #[test]
    fn websocket_tokens_are_found_and_refused_as_kube_apiserver_does() {
        let with = |encoded: &str| format!("{WEBSOCKET_PREFIX}{encoded}");
        let token = with("YWJj");
        let first = format!("{token} , v4.channel.k8s.io");
        let (padded, cut, loose, binary) = (with("YWJj="), with("Y"), with("YWK"), with("_w"));
        let cases: [(&[&str], _); 11] = [
            (&["v4.channel.k8s.io"], Ok(None)),
            (&["v4.channel.k8s.io", &token], Ok(Some("abc".to_owned()))),
            (&[&first], Ok(Some("abc".to_owned()))),
            (&[&token], Err(TokenError::NoOtherProtocol)),
            (&[&token, "a", &token], Err(TokenError::Several)),
            (&["a", &padded], Err(TokenError::Encoding)),
            (&["a", &cut], Err(TokenError::Encoding)),
            (&["a", &loose], Ok(Some("ab".to_owned()))),
            (&["a", &binary], Err(TokenError::NotText)),
            (&["a", WEBSOCKET_PREFIX], Ok(None)),
            (&[], Ok(None)),
        ];
        for (protocols, found) in cases {
            assert_eq!(websocket(&upgrade(protocols)), found, "{protocols:?}");
        }
        let plain = headers(&[("sec-websocket-protocol", &format!("a,{token}"))]);
        assert_eq!(websocket(&plain), Ok(None), "without an upgrade it is not looked at");
    }

    #[test]
    fn only_the_token_is_taken_out_of_the_protocols() {
        let token = format!("{WEBSOCKET_PREFIX}YWJj");
        let first = format!("{token},a");
        let cases: [(&[&str], &[&str]); 5] = [
            (&["a, b", "c"], &["a, b", "c"]),
            (&["a, b", &token, "c"], &["a,b,c"]),
            (&[&first], &["a"]),
            (&[&token], &[]),
            (&[&token, &token, "a"], &["a"]),
        ];
        for (before, after) in cases {
            let mut headers = upgrade(before);
            remove_websocket_token(&mut headers);
            let left: Vec<_> = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().collect();
            assert_eq!(left, after, "{before:?}");
        }
    }

    proptest! {
        #[test]
        fn no_header_makes_it_fail_and_no_token_is_left(values in proptest::collection::vec(
            proptest::collection::vec(prop_oneof![
                Just(WEBSOCKET_PREFIX.to_owned()), Just(",".to_owned()), Just(" ".to_owned()), "[ -~]{0,5}",
            ], 0..6), 0..4,
        )) {
            let values: Vec<String> = values.into_iter().map(|pieces| pieces.concat()).collect();
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            let mut headers = upgrade(&values);
            let _ = websocket(&headers);
            remove_websocket_token(&mut headers);
            prop_assert_eq!(websocket(&headers), Ok(None));
        }
    }
}
