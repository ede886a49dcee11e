//! Joins two streams of bytes.
//!
//! Invariant: bytes arrive in order and none is added or lost; when one side ends its half, the other side is told so and may go on with its
//! own; what is held is one buffer each way.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::limits::SPLICE_BYTES;

/// Moves bytes both ways until both sides have ended, one fails, or nothing has moved for `idle`.
pub(crate) async fn splice<A, B>(one: A, other: B, idle: Option<Duration>) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let (one_reads, one_writes) = tokio::io::split(one);
    let (other_reads, other_writes) = tokio::io::split(other);
    let moved = AtomicU64::new(0);
    let both = async {
        tokio::try_join!(pump(one_reads, other_writes, &moved), pump(other_reads, one_writes, &moved)).map(|_| ())
    };
    match idle {
        None => both.await,
        Some(idle) => tokio::select! {
            result = both => result,
            () = stands_still(&moved, idle) => Err(io::Error::new(io::ErrorKind::TimedOut, "nothing moved for too long")),
        },
    }
}

async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, moved: &AtomicU64) -> io::Result<()> {
    let mut buffer = vec![0; SPLICE_BYTES];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..length]).await?;
        to.flush().await?;
        moved.fetch_add(length as u64, Ordering::Relaxed);
    }
}

async fn stands_still(moved: &AtomicU64, idle: Duration) {
    let mut seen = moved.load(Ordering::Relaxed);
    loop {
        tokio::time::sleep(idle).await;
        let now = moved.load(Ordering::Relaxed);
        if now == seen {
            return;
        }
        seen = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_half_ends_by_itself_and_all_bytes_arrive() {
        let (mut client, client_end) = tokio::io::duplex(1000);
        let (mut server, server_end) = tokio::io::duplex(1000);
        let joined = tokio::spawn(splice(client_end, server_end, None));
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
        let error = splice(client_end, server_end, Some(Duration::from_secs(5))).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
