//! Addresses of the loopback network that no other process takes.
//!
//! Each process that starts servers has a host address of its own, made of its process number, and hands each port of
//! that host out once. So two test programs that look for free ports at the same time cannot meet, and neither can
//! the outgoing connections of other programs, which leave from 127.0.0.1.
//!
//! Invariant: within a process, no two calls of [`free_port`] return the same port.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{LazyLock, Mutex, PoisonError};

static HANDED_OUT: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);

static HOST: LazyLock<IpAddr> = LazyLock::new(|| {
    let pid = std::process::id();
    // Process numbers have 22 bits on Linux. The second byte is never 0, so this is never 127.0.0.1.
    let own = Ipv4Addr::new(127, 64 | (pid >> 16 & 63) as u8, (pid >> 8) as u8, pid as u8);
    // Not every system routes all of 127/8 to itself; where it does not, all share the one address.
    let usable = TcpListener::bind((own, 0)).is_ok();
    IpAddr::V4(if usable { own } else { Ipv4Addr::LOCALHOST })
});

/// The host address of this process in the loopback network.
pub fn host() -> IpAddr {
    *HOST
}

/// An address at [`host`] whose port is free and is not handed out again.
///
/// # Panics
/// When the host has no free port left.
pub fn free_port() -> SocketAddr {
    let mut handed_out = HANDED_OUT.lock().unwrap_or_else(PoisonError::into_inner);
    // The listeners of refused ports stay open until a fresh one is found, or the system would offer them again.
    let mut refused = Vec::new();
    loop {
        let listener = TcpListener::bind((host(), 0)).expect("a host address of one's own has free ports");
        let address = listener.local_addr().expect("a bound socket has an address");
        if handed_out.insert(address.port()) {
            return address;
        }
        refused.push(listener);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_handed_out_once_and_can_be_bound() {
        let addresses: HashSet<SocketAddr> = (0..200).map(|_| free_port()).collect();
        assert_eq!(addresses.len(), 200);
        let listeners: Vec<_> = addresses.iter().map(TcpListener::bind).collect();
        assert!(listeners.iter().all(Result::is_ok));
    }

    #[test]
    fn the_host_is_of_the_loopback_network() {
        assert!(host().is_loopback());
    }
}
