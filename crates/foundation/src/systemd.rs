//! Telling the service manager how we are, by the `sd_notify` protocol.
//!
//! Invariant: without `NOTIFY_SOCKET` nothing happens, and no failure stops the process.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The service is up.
pub fn ready() {
    notify("READY=1");
}

/// The service is going down.
pub fn stopping() {
    notify("STOPPING=1");
}

fn notify(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) else { return };
    if let Err(error) = send(&socket, state) {
        tracing::warn!(%error, socket = %socket.display(), "could not notify the service manager");
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    // A leading @ means the abstract namespace, where names have no file.
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> Vec<u8> {
        let mut buffer = [0; 64];
        socket.set_read_timeout(Some(std::time::Duration::from_secs(5))).expect("a timeout");
        let len = socket.recv(&mut buffer).expect("a message");
        buffer[..len].to_vec()
    }

    #[test]
    fn a_message_reaches_a_socket_with_a_path() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        send(path.as_os_str(), "READY=1").expect("sent");
        assert_eq!(received(&socket), b"READY=1");
    }

    #[test]
    fn a_message_reaches_an_abstract_socket() {
        let name = format!("kubewharf-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let socket = UnixDatagram::bind_addr(&address).expect("a socket");
        send(OsStr::new(&format!("@{name}")), "STOPPING=1").expect("sent");
        assert_eq!(received(&socket), b"STOPPING=1");
    }
}
