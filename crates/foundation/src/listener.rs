//! Addresses to listen on, as etcd writes them: `http://host:port`, `https://host:port`, `unix://path`, `unixs://path`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// A URL to listen on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ListenUrl {
    /// Whether clients speak TLS.
    pub tls: bool,
    /// Where.
    pub target: ListenTarget,
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ListenTarget {
    /// A host name or address, and a port; port 0 lets the system choose.
    Tcp(String),
    /// A socket in the file system.
    Unix(PathBuf),
}

/// A URL that can't be listened on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("can't listen on {url:?}: {reason}")]
pub struct ListenUrlError {
    url: String,
    reason: &'static str,
}

impl FromStr for ListenUrl {
    type Err = ListenUrlError;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        let wrong = |reason| ListenUrlError { url: url.to_owned(), reason };
        let (scheme, rest) =
            url.split_once("://").ok_or_else(|| wrong("write it as http://host:port, https://host:port or unix://path"))?;
        let (tls, tcp) = match scheme {
            "http" => (false, true),
            "https" => (true, true),
            "unix" => (false, false),
            "unixs" => (true, false),
            _ => return Err(wrong("the scheme must be http, https, unix or unixs")),
        };
        if !tcp {
            if rest.is_empty() {
                return Err(wrong("the path of the socket is missing"));
            }
            return Ok(Self { tls, target: ListenTarget::Unix(PathBuf::from(rest)) });
        }
        let address = rest.strip_suffix('/').unwrap_or(rest);
        if address.contains('/') {
            return Err(wrong("a path has no meaning here"));
        }
        let (host, port) = address.rsplit_once(':').ok_or_else(|| wrong("the port is missing"))?;
        if host.is_empty() || port.parse::<u16>().is_err() {
            return Err(wrong("write the address as host:port"));
        }
        Ok(Self { tls, target: ListenTarget::Tcp(address.to_owned()) })
    }
}

impl fmt::Display for ListenUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.target, self.tls) {
            (ListenTarget::Tcp(address), false) => write!(formatter, "http://{address}"),
            (ListenTarget::Tcp(address), true) => write!(formatter, "https://{address}"),
            (ListenTarget::Unix(path), false) => write!(formatter, "unix://{}", path.display()),
            (ListenTarget::Unix(path), true) => write!(formatter, "unixs://{}", path.display()),
        }
    }
}

/// A bound listener.
#[derive(Debug)]
pub enum Bound {
    /// On TCP, with the address that it got.
    Tcp(tokio::net::TcpListener, SocketAddr),
    /// On a Unix socket.
    Unix(tokio::net::UnixListener),
}

impl ListenUrl {
    /// Binds it. A left-over socket file that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// With the URL in the text, if the address can't be had.
    pub async fn bind(&self) -> std::io::Result<Bound> {
        let context = |error: std::io::Error| std::io::Error::new(error.kind(), format!("can't listen on {self}: {error}"));
        match &self.target {
            ListenTarget::Tcp(address) => {
                let listener = tokio::net::TcpListener::bind(address.as_str()).await.map_err(context)?;
                let address = listener.local_addr().map_err(context)?;
                Ok(Bound::Tcp(listener, address))
            }
            ListenTarget::Unix(path) => {
                let refused = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused;
                if tokio::net::UnixStream::connect(path).await.is_err_and(|error| refused(&error)) {
                    std::fs::remove_file(path).map_err(context)?;
                }
                Ok(Bound::Unix(tokio::net::UnixListener::bind(path).map_err(context)?))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_written_alike() {
        for url in ["http://127.0.0.1:2379", "https://[::1]:0", "unix:///run/etcd.sock", "unixs://localhost:17"] {
            assert_eq!(url.parse::<ListenUrl>().unwrap().to_string(), url);
        }
        assert!("http://localhost:1/".parse::<ListenUrl>().is_ok());
        for url in ["127.0.0.1:2379", "ftp://a:1", "http://a", "http://:1", "http://a:b", "http://a:1/b", "unix://"] {
            let error = url.parse::<ListenUrl>().unwrap_err().to_string();
            assert!(error.contains(url), "{error}");
        }
    }

    #[tokio::test]
    async fn a_left_over_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let url: ListenUrl = format!("unix://{}", folder.path().join("socket").display()).parse().unwrap();
        drop(url.bind().await.unwrap());
        let live = url.bind().await.unwrap();
        let error = url.bind().await.unwrap_err();
        assert!(error.to_string().contains("unix://"), "{error}");
        drop(live);
    }
}
