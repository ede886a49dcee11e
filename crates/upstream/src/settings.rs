//! What an upstream is told. Plain values: whoever reads configuration fills them in.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use http::HeaderValue;
use http::uri::{Authority, PathAndQuery, Scheme, Uri};

use crate::balance::EndpointId;
use crate::error::SettingsError;
use crate::tls::ClientTls;

/// One cluster of kube-apiservers.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamSettings {
    /// The cluster's name, for logs. It can't be changed by an update.
    pub cluster: String,
    /// The kube-apiservers. If two have the same address, the first counts.
    pub endpoints: Vec<EndpointSettings>,
    /// How https endpoints are trusted, and what they are shown. Needed if any endpoint is https.
    pub tls: Option<ClientTls>,
    /// This client's own token; it goes with every request.
    pub bearer_token: Option<BearerToken>,
    /// Connections.
    pub pool: PoolSettings,
    /// Probes and ejections.
    pub health: HealthSettings,
    /// How long an endpoint that has come back takes to its full share of requests; zero for at once.
    pub slow_start: Duration,
}

impl UpstreamSettings {
    /// Settings without endpoints, with the default of everything else.
    pub fn new(cluster: impl Into<String>) -> Self {
        Self {
            cluster: cluster.into(),
            endpoints: Vec::new(),
            tls: None,
            bearer_token: None,
            pool: PoolSettings::default(),
            health: HealthSettings::default(),
            slow_start: Duration::from_secs(10),
        }
    }
}

/// One kube-apiserver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSettings {
    /// Where it is.
    pub address: Address,
    /// True: it gets no request, and is not probed.
    pub disabled: bool,
    /// Its share, relative to the other endpoints' weights. Zero: only if nothing else is left.
    pub weight: u32,
}

impl EndpointSettings {
    /// An endpoint with the weight 1.
    #[must_use]
    pub fn new(address: Address) -> Self {
        Self { address, disabled: false, weight: 1 }
    }
}

/// Where an endpoint is: `https://host:port`, or `http://host:port` for HTTP/2 without TLS ("prior knowledge").
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// TLS or not.
    pub https: bool,
    /// A name or an IP address, without brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

impl Address {
    /// The identity of an endpoint at this address: the same in every process and after every reload.
    #[must_use]
    pub fn id(&self) -> EndpointId {
        EndpointId::of_url(&self.to_string())
    }

    pub(crate) fn scheme(&self) -> Scheme {
        if self.https { Scheme::HTTPS } else { Scheme::HTTP }
    }

    pub(crate) fn authority(&self) -> Option<Authority> {
        self.host_and_port().parse().ok()
    }

    fn host_and_port(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}://{}", if self.https { "https" } else { "http" }, self.host_and_port())
    }
}

impl FromStr for Address {
    type Err = SettingsError;

    fn from_str(url: &str) -> Result<Self, SettingsError> {
        let wrong = |problem| SettingsError::Endpoint { url: url.to_owned(), problem };
        let uri: Uri = url.parse().map_err(|_| wrong("it is no URL; write https://host:port"))?;
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong("its scheme is not https or http; write https://host:port")),
        };
        let authority = uri.authority().ok_or_else(|| wrong("it has no host; write https://host:port"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("a user in the URL is not supported; give credentials apart from it"));
        }
        if uri.path() != "/" || uri.query().is_some() {
            return Err(wrong("it has a path or a query; write https://host:port"));
        }
        let host = authority.host();
        let port = match authority.as_str().strip_prefix(host).and_then(|rest| rest.strip_prefix(':')) {
            Some(port) => port.parse().map_err(|_| wrong("its port is not a number from 1 to 65535"))?,
            None if https => 443,
            None => 80,
        };
        if port == 0 {
            return Err(wrong("its port is not a number from 1 to 65535"));
        }
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(wrong("it has no host; write https://host:port"));
        }
        Ok(Self { https, host: host.to_ascii_lowercase(), port })
    }
}

/// A bearer token. Its text is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct BearerToken {
    header: HeaderValue,
}

impl BearerToken {
    /// Takes the token alone; white space around it, as files have it, is dropped.
    pub fn new(token: &str) -> Result<Self, SettingsError> {
        let token = token.trim();
        if token.is_empty() || token.contains(char::is_whitespace) {
            return Err(SettingsError::Token);
        }
        // Not marked as sensitive: that would keep it out of HPACK's table, so that each request would carry, and
        // encode, a kilobyte. HPACK gives away only whole values to who can guess them, which nobody can with a token.
        let header = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| SettingsError::Token)?;
        Ok(Self { header })
    }

    pub(crate) fn header(&self) -> &HeaderValue {
        &self.header
    }
}

impl fmt::Debug for BearerToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("BearerToken(..)")
    }
}

/// How connections are opened, filled and watched over.
///
/// The window of a connection is always the sum of its streams' windows, so that a client that stops reading stops its
/// own stream and no other. Windows are also what a slow reader can make this process hold: one window for each such
/// stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSettings {
    /// Streams in flight on a connection, unless the endpoint allows fewer. kube-apiserver allows 100 (250 before
    /// 1.28); the rest is air for streams that are being cut.
    pub streams_max: u32,
    /// Connections that ordinary requests are spread over before these are filled up. A connection is served by one
    /// thread at a time, so this should be the number of threads.
    pub spread: u32,
    /// Connections of one class to one endpoint.
    pub connections_max: u32,
    /// Window of a stream for an ordinary request, in bytes: 256 KiB covers nearly every object and most pages of
    /// lists, at 1 ms it lets 256 MB/s through.
    pub short_window_bytes: u32,
    /// Window of a watch, in bytes. Watches are many and each is small.
    pub watch_window_bytes: u32,
    /// Window of a stream for long bodies, in bytes.
    pub bulk_window_bytes: u32,
    /// The most that name resolution, TCP, TLS and the HTTP/2 settings of one connection may take together.
    pub dial_timeout: Duration,
    /// The most that a request waits for a connection or a free stream. The dial goes on without it.
    pub wait_max: Duration,
    /// A connection that has had no stream for this long is closed, except the last one for ordinary requests.
    pub idle_timeout: Duration,
    /// The connection is pinged when a request has been waiting and no frame has come for this long (at most twice this
    /// long).
    pub ping_after: Duration,
    /// If nothing at all has come this long after a ping, the connection gets no new streams, the endpoint counts as
    /// hung, and requests that may be repeated are given up. `ping_after` twice and this must be below a second
    /// together.
    pub ping_timeout: Duration,
    /// If nothing at all has come this long after a ping, the connection is cut, and with it what can't be repeated.
    pub cut_timeout: Duration,
    /// Time between pings while streams are in flight, but none waits for its response: watches.
    pub keepalive_interval: Duration,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self {
            streams_max: 90,
            spread: std::thread::available_parallelism().map_or(2, |threads| threads.get().min(4) as u32),
            connections_max: 1024,
            short_window_bytes: 256 << 10,
            watch_window_bytes: 128 << 10,
            bulk_window_bytes: 512 << 10,
            dial_timeout: Duration::from_secs(5),
            wait_max: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(60),
            ping_after: Duration::from_millis(200),
            ping_timeout: Duration::from_millis(500),
            cut_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(5),
        }
    }
}

/// When an endpoint is taken out of rotation, and when it comes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthSettings {
    /// What is asked for; an answer of 500 or more means "not ready". Answers below 500 do not: an endpoint that
    /// refuses this client's credentials, or is asked too often, works.
    pub path: PathAndQuery,
    /// Time between two probes of an endpoint in rotation. Zero: no probes; endpoints then come back by time alone.
    pub interval: Duration,
    /// The most that a probe may take.
    pub timeout: Duration,
    /// Bad outcomes of requests, among the last 16, that eject an endpoint. Zero: never.
    pub failures_max: u32,
    /// How long the first ejection for bad outcomes lasts; each further one lasts twice as long.
    pub ejection_min: Duration,
    /// The longest ejection. An endpoint that was well for twice this long begins again with the shortest.
    pub ejection_max: Duration,
}

impl Default for HealthSettings {
    fn default() -> Self {
        Self {
            path: PathAndQuery::from_static("/readyz"),
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            failures_max: 3,
            ejection_min: Duration::from_secs(3),
            ejection_max: Duration::from_secs(60),
        }
    }
}

/// What a stream is for. Each class has its own connections, so that none waits behind another's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// An ordinary request.
    Short,
    /// A watch: long, small, many.
    Watch,
    /// A long body, either way.
    Bulk,
}

impl Class {
    /// All classes.
    pub const ALL: [Self; 3] = [Self::Short, Self::Watch, Self::Bulk];

    pub(crate) fn index(self) -> usize {
        match self {
            Self::Short => 0,
            Self::Watch => 1,
            Self::Bulk => 2,
        }
    }
}

impl PoolSettings {
    pub(crate) fn window_bytes(&self, class: Class) -> u32 {
        match class {
            Class::Short => self.short_window_bytes,
            Class::Watch => self.watch_window_bytes,
            Class::Bulk => self.bulk_window_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown_alike() {
        for (url, shown) in [
            ("https://10.0.0.1:6443", "https://10.0.0.1:6443"),
            ("https://API.example.com/", "https://api.example.com:443"),
            ("http://[::1]:8080", "http://[::1]:8080"),
            ("http://a", "http://a:80"),
        ] {
            let address: Address = url.parse().expect(url);
            assert_eq!(address.to_string(), shown);
            assert_eq!(shown.parse::<Address>().expect(shown), address);
            assert!(address.authority().is_some(), "{url}");
        }
    }

    #[test]
    fn a_malformed_address_is_named_with_its_problem() {
        for (url, problem) in [
            ("10.0.0.1:6443", "https://host:port"),
            ("a", "https://host:port"),
            ("ftp://a:1", "scheme"),
            ("https://user@a:1", "user"),
            ("https://a:1/path", "path"),
            ("https://a:1/?q", "path or a query"),
            ("https://a:0", "port"),
            ("https://a:", "port"),
            ("https://a:99999", "port"),
            ("https://:1", "host"),
            ("", "https://host:port"),
        ] {
            let text = url.parse::<Address>().expect_err(url).to_string();
            assert!(text.contains(problem) && text.contains(url), "{text}");
        }
    }

    #[test]
    fn a_token_is_a_header_and_is_never_shown() {
        let token = BearerToken::new(" secret\n").expect("a token");
        assert_eq!(token.header(), "Bearer secret");
        assert!(!format!("{token:?}").contains("secret"));
        for bad in ["", " ", "a b", "a\nb", "a\u{7f}"] {
            assert_eq!(BearerToken::new(bad), Err(SettingsError::Token), "{bad:?}");
        }
    }
}
