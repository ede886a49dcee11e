//! A bare TLS connection: for bytes that no client library would send, and for what comes after a protocol upgrade.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::error::{Error, Result};
use crate::pki::{Authority, Identity};

/// The connection.
#[derive(Debug)]
pub struct Connection {
    stream: StreamOwned<ClientConnection, TcpStream>,
}

impl Connection {
    /// Connects for HTTP/1.1 with a client's certificate to the server at that IP address, which `authority` has signed
    /// for. Reading fails when nothing comes `within` that time.
    ///
    /// # Errors
    /// When nobody listens there. TLS begins with the first byte that is written or read.
    pub fn open(address: SocketAddr, authority: &Authority, identity: &Identity, within: Duration) -> Result<Self> {
        Self::open_for("http/1.1", address, authority, Some(identity), within)
    }

    /// The same for any protocol of ALPN, such as `h2`, and with a certificate or without. Writing fails too when nothing
    /// is taken `within` that time.
    ///
    /// # Errors
    /// As [`Connection::open`].
    pub fn open_for(
        protocol: &str,
        address: SocketAddr,
        authority: &Authority,
        identity: Option<&Identity>,
        within: Duration,
    ) -> Result<Self> {
        Self::open_with_root(protocol, address, authority.certificate(), identity, within)
    }

    /// The same to a server whose authority is known by its certificate alone.
    ///
    /// # Errors
    /// As [`Connection::open`].
    pub fn open_with_root(
        protocol: &str,
        address: SocketAddr,
        root: &str,
        identity: Option<&Identity>,
        within: Duration,
    ) -> Result<Self> {
        let failed = |why: &dyn std::fmt::Display| Error::Request {
            what: format!("a TLS connection to {address}"),
            why: why.to_string(),
        };
        let certificate =
            |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate is PEM text");
        let mut roots = RootCertStore::empty();
        roots.add(certificate(root)).map_err(|error| failed(&error))?;
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(&error))?
            .with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes());
                let key = key.expect("a key is PEM text");
                let chain = vec![certificate(&identity.certificate)];
                builder.with_client_auth_cert(chain, key).map_err(|error| failed(&error))?
            }
        };
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let name = ServerName::from(address.ip());
        let client = ClientConnection::new(Arc::new(config), name).map_err(|error| failed(&error))?;
        let socket = TcpStream::connect(address).map_err(|error| failed(&error))?;
        socket
            .set_nodelay(true)
            .and_then(|()| socket.set_read_timeout(Some(within)))
            .and_then(|()| socket.set_write_timeout(Some(within)))
            .map_err(|error| failed(&error))?;
        Ok(Self { stream: StreamOwned::new(client, socket) })
    }

    /// Says that nothing more will be written. What the other side writes can still be read.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn end(&mut self) -> io::Result<()> {
        self.stream.conn.send_close_notify();
        self.stream.flush()
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
