//! What a handler can know about a call besides its messages.

use std::any::Any;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use http::{HeaderMap, Uri};
use rustls_pki_types::CertificateDer;

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerAddress {
    /// A TCP client.
    Tcp(SocketAddr),
    /// A client of a Unix socket.
    Unix,
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(formatter),
            Self::Unix => formatter.write_str("@"),
        }
    }
}

/// The other end of a connection; all its calls share it.
#[derive(Debug)]
pub struct Peer {
    address: PeerAddress,
    certificates: Vec<CertificateDer<'static>>,
    memo: OnceLock<Box<dyn Any + Send + Sync>>,
}

impl Peer {
    pub(crate) fn new(address: PeerAddress, certificates: Vec<CertificateDer<'static>>) -> Self {
        Self { address, certificates, memo: OnceLock::new() }
    }

    /// The remote address.
    pub fn address(&self) -> PeerAddress {
        self.address
    }

    /// The verified certificate chain of a TLS client, its own first; empty without one.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// A value that is made once a connection, such as the name in the certificate. `None` if an earlier call on this
    /// connection made one of another type.
    pub fn memo<T: Any + Send + Sync>(&self, make: impl FnOnce(&Self) -> T) -> Option<&T> {
        self.memo.get_or_init(|| Box::new(make(self))).downcast_ref()
    }
}

/// The surroundings of a call.
#[derive(Debug)]
pub struct CallContext {
    pub(crate) headers: HeaderMap,
    pub(crate) uri: Uri,
    pub(crate) peer: Arc<Peer>,
    pub(crate) deadline: Option<Instant>,
}

impl CallContext {
    /// The client.
    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// When the client stops waiting, from `grpc-timeout`. The crate answers DeadlineExceeded by itself then.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The request's metadata and other headers.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// The first value of a metadata key, if it is there and printable. The key must be lower case.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.headers.get(key)?.to_str().ok()
    }

    /// The host that the client asked for; may be empty.
    pub fn authority(&self) -> &str {
        self.uri.authority().map_or("", |authority| authority.as_str())
    }

    /// The path of the method.
    pub fn path(&self) -> &str {
        self.uri.path()
    }
}

/// The time that a client gives its call; a malformed value is an error.
pub(crate) fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, ()> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let value = value.as_bytes();
    let (&unit, digits) = value.split_last().ok_or(())?;
    if digits.is_empty() || digits.len() > 8 {
        return Err(());
    }
    let mut amount = 0u64;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return Err(());
        }
        amount = amount * 10 + u64::from(digit - b'0');
    }
    Ok(Some(match unit {
        b'H' => Duration::from_secs(amount * 3600),
        b'M' => Duration::from_secs(amount * 60),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        b'u' => Duration::from_micros(amount),
        b'n' => Duration::from_nanos(amount),
        _ => return Err(()),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn timeouts_have_up_to_eight_digits_and_a_unit() {
        let parse = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", HeaderValue::from_static(text));
            timeout(&headers)
        };
        assert_eq!(timeout(&HeaderMap::new()), Ok(None));
        assert_eq!(parse("99999999n"), Ok(Some(Duration::from_nanos(99_999_999))));
        assert_eq!(parse("5S"), Ok(Some(Duration::from_secs(5))));
        assert_eq!(parse("2H"), Ok(Some(Duration::from_secs(7200))));
        for wrong in ["", "S", "5", "5s", "-5S", "123456789S"] {
            assert_eq!(parse(wrong), Err(()), "{wrong}");
        }
    }

    #[test]
    fn a_memo_is_made_once() {
        let peer = Peer::new(PeerAddress::Unix, Vec::new());
        assert_eq!(peer.memo(|_| 7u32), Some(&7));
        assert_eq!(peer.memo(|_| 8u32), Some(&7));
        assert_eq!(peer.memo(|_| "other"), None);
    }
}
