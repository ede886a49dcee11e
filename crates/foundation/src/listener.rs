//! URLs to listen on: `http://host:port`, `https://host:port`, `unix://path`, `unixs://path`.
//!
//! Invariant: what is parsed can be shown again as the same URL, and a bound address never takes over a socket file that
//! somebody still serves.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpSocket, UnixListener, lookup_host};

use crate::Error;

/// How many connections the kernel may hold that were not accepted yet. The kernel's own limit is `somaxconn`.
const BACKLOG: u32 = 4096;

/// After so long a silence, and then as often, the kernel asks whether the other end of a connection is still there; about
/// nine questions without an answer end the connection. As etcd's listeners.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// An address to listen on, and whether to speak TLS there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ListenUrl {
    tls: bool,
    target: Target,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Target {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// A socket that listens.
#[derive(Debug)]
pub enum Bound {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix(UnixListener),
}

impl Bound {
    /// The address in use; `None` for a Unix socket.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }
}

impl ListenUrl {
    /// Whether the URL asks for TLS.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Listens. Needs a Tokio runtime. Port 0 takes any free port; see [`Bound::address`].
    pub async fn bind(&self) -> Result<Bound, Error> {
        self.try_bind().await.map_err(|source| Error::Listen { url: self.to_string(), source })
    }

    async fn try_bind(&self) -> io::Result<Bound> {
        match &self.target {
            Target::Tcp { host, port } => bind_tcp(host, *port).await.map(Bound::Tcp),
            Target::Unix(path) => {
                remove_if_dead(path)?;
                UnixListener::bind(path).map(Bound::Unix)
            }
        }
    }
}

/// Listens on all of these, or none.
pub async fn bind_all(urls: &[ListenUrl]) -> Result<Vec<(ListenUrl, Bound)>, Error> {
    let mut bound = Vec::with_capacity(urls.len());
    for url in urls {
        bound.push((url.clone(), url.bind().await?));
    }
    Ok(bound)
}

async fn bind_tcp(host: &str, port: u16) -> io::Result<TcpListener> {
    let mut addresses: Vec<SocketAddr> = lookup_host((host, port)).await?.collect();
    // One address of a name is listened on, IPv4 first, as in Go.
    addresses.sort_by_key(SocketAddr::is_ipv6);
    let address = *addresses.first().ok_or(io::ErrorKind::AddrNotAvailable)?;
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    // Connections have it from the socket that they are accepted from.
    SockRef::from(&socket).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Removes a socket file that nobody listens on, as a killed process leaves it.
fn remove_if_dead(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    if !is_socket {
        return Ok(());
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        _ => Ok(()),
    }
}

impl FromStr for ListenUrl {
    type Err = Error;

    fn from_str(url: &str) -> Result<Self, Error> {
        let problem = |problem| Error::Url { url: url.to_owned(), problem };
        let (scheme, rest) = url.split_once("://").ok_or(problem("it has no scheme such as http://"))?;
        let (tls, unix) = match scheme {
            "http" => (false, false),
            "https" => (true, false),
            "unix" => (false, true),
            "unixs" => (true, true),
            _ => return Err(problem("the scheme is not http, https, unix or unixs")),
        };
        if unix {
            if rest.is_empty() {
                return Err(problem("it has no path"));
            }
            return Ok(Self { tls, target: Target::Unix(PathBuf::from(rest)) });
        }
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#', '@']) {
            return Err(problem("it must be no more than a host and a port"));
        }
        let (host, port) = authority.rsplit_once(':').ok_or(problem("it has no port"))?;
        let port = port.parse().map_err(|_| problem("the port is not a number up to 65535"))?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(host) => {
                host.parse::<std::net::Ipv6Addr>().map_err(|_| problem("not an IPv6 address in the brackets"))?;
                host
            }
            None if host.contains(':') => return Err(problem("an IPv6 address must be in brackets")),
            None => host,
        };
        if host.is_empty() {
            return Err(problem("it has no host; 0.0.0.0 is every IPv4 address, [::] every address"));
        }
        Ok(Self { tls, target: Target::Tcp { host: host.to_owned(), port } })
    }
}

impl fmt::Display for ListenUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secure = if self.tls { "s" } else { "" };
        match &self.target {
            Target::Tcp { host, port } if host.parse::<IpAddr>().is_ok_and(|address| address.is_ipv6()) => {
                write!(formatter, "http{secure}://[{host}]:{port}")
            }
            Target::Tcp { host, port } => write!(formatter, "http{secure}://{host}:{port}"),
            Target::Unix(path) => write!(formatter, "unix{secure}://{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_shown_as_they_were_given() {
        for url in ["http://127.0.0.1:2379", "https://[::1]:0", "http://localhost:80", "unix:///run/x", "unixs://a:1"] {
            let parsed: ListenUrl = url.parse().expect(url);
            assert_eq!(parsed.to_string(), url);
            assert_eq!(parsed.is_tls(), url.starts_with("https") || url.starts_with("unixs"));
        }
        let slash: ListenUrl = "http://0.0.0.0:1/".parse().expect("a trailing slash is harmless");
        assert_eq!(slash.to_string(), "http://0.0.0.0:1");
    }

    #[test]
    fn a_malformed_url_is_named_with_its_problem() {
        for (url, problem) in [
            ("127.0.0.1:2379", "no scheme"),
            ("ftp://127.0.0.1:1", "not http"),
            ("http://127.0.0.1", "no port"),
            ("http://127.0.0.1:x", "not a number"),
            ("http://127.0.0.1:70000", "not a number"),
            ("http://:2379", "no host"),
            ("http://::1:2379", "brackets"),
            ("http://[1.2.3.4]:2379", "brackets"),
            ("http://a:1/path", "no more than"),
            ("unix://", "no path"),
        ] {
            let text = url.parse::<ListenUrl>().expect_err(url).to_string();
            assert!(text.contains(problem) && text.contains(url), "{text}");
        }
    }

    #[tokio::test]
    async fn tcp_addresses_are_bound_and_a_taken_one_is_named() {
        let any: ListenUrl = "http://localhost:0".parse().expect("a URL");
        let bound = any.bind().await.expect("bound");
        let address = bound.address().expect("an address");
        let taken: ListenUrl = format!("https://{address}").parse().expect("a URL");
        let error = bind_all(&[any, taken.clone()]).await.expect_err("taken");
        assert!(error.to_string().contains(&taken.to_string()), "{error}");
    }

    #[tokio::test]
    async fn the_kernel_looks_after_silent_connections() {
        let any: ListenUrl = "http://127.0.0.1:0".parse().expect("a URL");
        let Bound::Tcp(listener) = any.bind().await.expect("bound") else { panic!("a TCP socket") };
        let _client = tokio::net::TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connected");
        let (accepted, _) = listener.accept().await.expect("accepted");
        let socket = SockRef::from(&accepted);
        assert!(socket.keepalive().expect("a setting"));
        assert_eq!(socket.tcp_keepalive_time().expect("a setting"), KEEPALIVE);
        assert_eq!(socket.tcp_keepalive_interval().expect("a setting"), KEEPALIVE);
    }

    #[tokio::test]
    async fn a_dead_socket_file_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let url: ListenUrl = format!("unix://{}", directory.path().join("socket").display()).parse().expect("a URL");
        let first = url.bind().await.expect("bound");
        url.bind().await.expect_err("still served");
        drop(first);
        url.bind().await.expect("the file was left by the first");
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("precious");
        std::fs::write(&path, "data").expect("written");
        let url: ListenUrl = format!("unix://{}", path.display()).parse().expect("a URL");
        url.bind().await.expect_err("a file is in the way");
        assert_eq!(std::fs::read(&path).expect("still there"), b"data");
    }
}
