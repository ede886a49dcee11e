//! Joins two streams of bytes.
//!
//! Invariant: bytes arrive in order and none is added or lost; when one side ends its half, the other side is told so and may go on with its
//! own; what is held is one buffer each way.
//!
//! A side that can't be written to any more, because it has closed its connection, may have sent something before, and its last words matter
//! most: how a command ended. So they are still passed on, and what the other side goes on sending is read and thrown away meanwhile, for a
//! connection that is closed with something unread is reset, which destroys what is still on its way to the other end.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

use crate::limits::{SPLICE_BYTES, SPLICE_LINGER};

/// Moves bytes both ways until both sides have ended, nothing has moved for `idle`, or one has broken and nothing more comes of it. What has
/// come to the client is counted in `bytes_to_client`.
pub(crate) async fn splice<A, B>(
    client: A,
    server: B,
    bytes_to_client: &AtomicU64,
    idle: Option<Duration>,
) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let (client_reads, client_writes) = tokio::io::split(client);
    let (server_reads, server_writes) = tokio::io::split(server);
    let bytes_to_server = AtomicU64::new(0);
    let progress = Progress { bytes: [&bytes_to_server, bytes_to_client], broken: Notify::new() };
    let both = async {
        let there = pump(client_reads, server_writes, &bytes_to_server, &progress.broken);
        let back = pump(server_reads, client_writes, bytes_to_client, &progress.broken);
        let (there, back) = tokio::join!(there, back);
        there.and(back)
    };
    let idled = async {
        match idle {
            Some(idle) => progress.stands_still(idle).await,
            None => std::future::pending().await,
        }
    };
    let broken = async {
        progress.broken.notified().await;
        progress.stands_still(SPLICE_LINGER).await;
    };
    tokio::select! {
        result = both => result,
        () = idled => Err(io::Error::new(io::ErrorKind::TimedOut, "nothing moved for too long")),
        () = broken => Err(io::Error::new(io::ErrorKind::BrokenPipe, "one side is gone, and the other one does not end")),
    }
}

/// What happens on the two ways.
struct Progress<'a> {
    bytes: [&'a AtomicU64; 2],
    /// One way has failed.
    broken: Notify,
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    bytes: &AtomicU64,
    broken: &Notify,
) -> io::Result<()> {
    let mut buffer = vec![0; SPLICE_BYTES];
    loop {
        let read = from.read(&mut buffer).await;
        let Ok(length @ 1..) = read else {
            if read.is_err() {
                broken.notify_one();
            }
            let ended = to.shutdown().await;
            return read.and(ended);
        };
        let written = match to.write_all(&buffer[..length]).await {
            Ok(()) => to.flush().await,
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            broken.notify_one();
            while let Ok(1..) = from.read(&mut buffer).await {}
            return Err(error);
        }
        bytes.fetch_add(length as u64, Ordering::Relaxed);
    }
}

impl Progress<'_> {
    /// Waits until nothing has moved for at least that time.
    async fn stands_still(&self, time: Duration) {
        let so_far = || self.bytes.map(|bytes| bytes.load(Ordering::Relaxed));
        let mut seen = so_far();
        loop {
            tokio::time::sleep(time).await;
            let now = so_far();
            if now == seen {
                return;
            }
            seen = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn joined(
        client: impl AsyncRead + AsyncWrite,
        server: impl AsyncRead + AsyncWrite,
        idle: Option<Duration>,
    ) -> io::Result<()> {
        splice(client, server, &AtomicU64::new(0), idle).await
    }

    #[tokio::test]
    async fn each_half_ends_by_itself_and_all_bytes_arrive() {
        let (mut client, client_end) = tokio::io::duplex(1000);
        let (mut server, server_end) = tokio::io::duplex(1000);
        let joined = tokio::spawn(joined(client_end, server_end, None));
        let sent: Vec<u8> = (0..200_000_u32).map(|number| number as u8).collect();
        let writer = {
            let sent = sent.clone();
            tokio::spawn(async move {
                client.write_all(&sent).await.unwrap();
                client.shutdown().await.unwrap();
                let mut back = Vec::new();
                client.read_to_end(&mut back).await.unwrap();
                back
            })
        };
        let mut received = Vec::new();
        server.read_to_end(&mut received).await.unwrap();
        assert!(received == sent);
        server.write_all(b"late answer").await.unwrap();
        server.shutdown().await.unwrap();
        assert_eq!(writer.await.unwrap(), b"late answer");
        joined.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_on_which_nothing_moves_ends() {
        let (_client, client_end) = tokio::io::duplex(1000);
        let (_server, server_end) = tokio::io::duplex(1000);
        let error = joined(client_end, server_end, Some(Duration::from_secs(5))).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn the_last_words_of_a_side_that_takes_nothing_more_are_passed_on() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pair = async || {
            let near = tokio::net::TcpStream::connect(address).await.unwrap();
            (near, listener.accept().await.unwrap().0)
        };
        let ((mut client, client_end), (mut server_end, mut server)) = (pair().await, pair().await);
        // The server says something and closes its connection without reading to the end, so that it is reset.
        server_end.write_all(b"a question").await.unwrap();
        server.readable().await.unwrap();
        let last_words: Vec<u8> = (0..40_000_u32).map(|number| number as u8).collect();
        server.write_all(&last_words).await.unwrap();
        drop(server);
        server_end.ready(tokio::io::Interest::ERROR).await.unwrap();
        // The client has not heard of it.
        client.write_all(b"more questions").await.unwrap();
        client_end.readable().await.unwrap();
        let joined = tokio::spawn(joined(client_end, server_end, None));
        let mut received = Vec::new();
        client.read_to_end(&mut received).await.unwrap();
        assert!(received == last_words, "{} bytes", received.len());
        drop(client);
        joined.await.unwrap().unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_that_goes_on_when_the_other_one_is_gone_is_let_go() {
        let (mut client, client_end) = tokio::io::duplex(1000);
        let (server, server_end) = tokio::io::duplex(1000);
        let joined = tokio::spawn(joined(client_end, server_end, None));
        drop(server);
        while client.write_all(&[7; 100]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(joined.await.unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
