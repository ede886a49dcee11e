//! The PROXY protocol, versions 1 and 2: a load balancer tells whose connection it passes on.
//!
//! Invariant: only peers that are configured are believed, and from them exactly one header is taken off the stream, not a byte more. A header
//! that is not right ends the connection: a guess would give a client another one's address.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::policy::{Block, Ranges};

/// The signature of version 2.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line of version 1, with its end.
const LINE_BYTES_MAX: usize = 107;
/// The longest header of version 2 that is read: addresses and what load balancers add to them.
const BYTES_MAX: usize = 4096;

/// Blocks of addresses whose PROXY headers are believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedPeers {
    blocks: Ranges,
}

impl TrustedPeers {
    /// These blocks.
    #[must_use]
    pub fn new(blocks: Vec<Block>) -> Self {
        Self { blocks: Ranges::new(blocks.into_iter()) }
    }

    /// Whether a peer is in one of them.
    #[must_use]
    pub fn contains(&self, peer: IpAddr) -> bool {
        self.blocks.contains(peer)
    }
}

/// Reads the header; `None` if the load balancer speaks for itself, as it does in its health checks.
///
/// # Errors
/// If there is no header, or it is wrong.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    // The shortest header of either version is longer than this.
    let mut start = [0; 12];
    stream.read_exact(&mut start).await?;
    if start == SIGNATURE {
        return version_2(stream).await;
    }
    if !start.starts_with(b"PROXY ") {
        return Err(wrong("there is none"));
    }
    let mut line = start.to_vec();
    while !line.ends_with(b"\r\n") {
        if line.len() == LINE_BYTES_MAX {
            return Err(wrong("its line does not end"));
        }
        // One by one, as what follows is the client's. It happens once a connection.
        line.push(stream.read_u8().await?);
    }
    line.truncate(line.len() - 2);
    version_1(std::str::from_utf8(&line).map_err(|_| wrong("its line is no text"))?)
}

fn version_1(line: &str) -> io::Result<Option<SocketAddr>> {
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        [_, "UNKNOWN", ..] => Ok(None),
        [_, family @ ("TCP4" | "TCP6"), source, _, port, _] => {
            let address: IpAddr = source.parse().map_err(|_| wrong("its source is no address"))?;
            if address.is_ipv4() != (family == "TCP4") {
                return Err(wrong("its source is not of its family"));
            }
            let port = port.parse().map_err(|_| wrong("its port is no number up to 65535"))?;
            Ok(Some(SocketAddr::new(address, port)))
        }
        _ => Err(wrong("its line is not complete")),
    }
}

async fn version_2(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let command = stream.read_u8().await?;
    let family = stream.read_u8().await?;
    let length = usize::from(stream.read_u16().await?);
    if length > BYTES_MAX {
        return Err(wrong("it is too long"));
    }
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).await?;
    match (command, family) {
        (0x20, _) => Ok(None),
        (0x21, 0x11) if length >= 12 => {
            let address = Ipv4Addr::new(rest[0], rest[1], rest[2], rest[3]);
            Ok(Some(SocketAddr::new(address.into(), u16::from_be_bytes([rest[8], rest[9]]))))
        }
        (0x21, 0x21) if length >= 36 => {
            let address: [u8; 16] = rest[..16].try_into().expect("of that length");
            Ok(Some(SocketAddr::new(Ipv6Addr::from(address).into(), u16::from_be_bytes([rest[32], rest[33]]))))
        }
        // Other families have no address that means anything here.
        (0x21, family) if family >> 4 == 0 || family >> 4 == 3 => Ok(None),
        _ => Err(wrong("its version, command or length is unknown")),
    }
}

fn wrong(problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the PROXY header: {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn reads(bytes: &[u8]) -> io::Result<(Option<SocketAddr>, Vec<u8>)> {
        let mut rest = bytes;
        let address = read(&mut rest).await?;
        Ok((address, rest.to_vec()))
    }

    fn version_2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = (rest.len() as u16).to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, rest, b"next"].concat()
    }

    #[tokio::test]
    async fn both_versions_tell_the_client_and_leave_the_rest() {
        let address = |text: &str| Some(text.parse::<SocketAddr>().unwrap());
        for (bytes, expected) in [
            (b"PROXY TCP4 192.0.2.1 10.0.0.1 5000 443\r\nnext".to_vec(), address("192.0.2.1:5000")),
            (b"PROXY TCP6 2001:db8::1 ::1 5000 443\r\nnext".to_vec(), address("[2001:db8::1]:5000")),
            (b"PROXY UNKNOWN\r\nnext".to_vec(), None),
            (version_2(0x20, 0, &[]), None),
            (version_2(0x21, 0x11, &[192, 0, 2, 1, 10, 0, 0, 1, 0x13, 0x88, 1, 0xbb, 9, 9]), address("192.0.2.1:5000")),
            (version_2(0x21, 0x31, &[0; 216]), None),
        ] {
            assert_eq!(reads(&bytes).await.unwrap(), (expected, b"next".to_vec()));
        }
    }

    #[tokio::test]
    async fn what_is_not_right_ends_the_connection() {
        for bytes in [
            &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..],
            b"PROXY TCP4 192.0.2.1\r\n.........",
            b"PROXY TCP4 2001:db8::1 ::1 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 70000 443\r\n",
            b"PROXY TCP",
            &[&b"PROXY "[..], &[b'x'; 200]].concat(),
            &version_2(0x22, 0x11, &[0; 12]),
            &version_2(0x21, 0x11, &[0; 4]),
        ] {
            reads(bytes).await.unwrap_err();
        }
    }

    #[test]
    fn peers_are_trusted_by_block() {
        let peers = TrustedPeers::new(["10.0.0.0/8", "::1", "192.0.2.7"].map(|block| block.parse().unwrap()).to_vec());
        for (peer, trusted) in
            [("10.1.2.3", true), ("::ffff:10.1.2.3", true), ("11.0.0.1", false), ("::1", true), ("192.0.2.8", false)]
        {
            assert_eq!(peers.contains(peer.parse().unwrap()), trusted, "{peer}");
        }
        assert!("10.0.0.0/33".parse::<Block>().is_err() && "x".parse::<Block>().is_err());
        let all: Block = "0.0.0.0/0".parse().unwrap();
        assert!(TrustedPeers::new(vec![all]).contains("203.0.113.9".parse().unwrap()));
        assert!(!TrustedPeers::new(vec![all]).contains("2001:db8::1".parse().unwrap()));
    }
}
