//! Where clients connect, tenants' and administrators': TCP and TLS, and who the client is.
//!
//! Invariant: everything that a client can make zoo hold before it is known who it is, is bounded in number and in time.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use kubewharf_foundation::tls::{Identity, ReloadingTls, identity};
use kubewharf_front::places::Place;
use kubewharf_front::{ACCEPT_PAUSE, Addresses, Pause, Server, Service};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;

use crate::limits::CONNECTIONS_MAX;

/// Makes the client of a connection: from whom its certificate names, if it showed one, and what the connection holds.
pub(crate) type Connect<S> = dyn Fn(Option<Identity>, Stay) -> Arc<S> + Send + Sync;

/// What a connection holds for as long as it is open, also when it has become a stream.
#[derive(Clone)]
pub(crate) struct Stay {
    /// Who has connected.
    pub(crate) address: SocketAddr,
    may_pause: Arc<AtomicBool>,
    _places: Arc<(OwnedSemaphorePermit, Place<IpAddr>)>,
    server: Arc<Server>,
}

impl Stay {
    /// Waits until zoo has stopped and what was still open has had its time.
    pub(crate) async fn is_over(&self) {
        self.server.shutdown.requested().await;
        self.server.drain_is_over().await;
    }

    /// While it lives, an HTTP/1.1 client may take as long as it likes: it reads what streams.
    pub(crate) fn pause(&self) -> Pause {
        Pause::new(self.may_pause.clone())
    }
}

/// A listener.
pub(crate) struct Front<S> {
    pub(crate) connect: Box<Connect<S>>,
    pub(crate) tls: Arc<ReloadingTls>,
    pub(crate) addresses: Arc<Addresses>,
    pub(crate) server: Arc<Server>,
}

impl<S: Service> Front<S> {
    /// Accepts connections until the shutdown; ends when the last of them has.
    pub(crate) async fn listen(self: Arc<Self>, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            // A place first: clients beyond the limit wait in the kernel's queue instead of in our memory.
            let place = tokio::select! {
                place = places.clone().acquire_owned() => place.expect("it is never closed"),
                () = self.server.shutdown.requested() => break,
                // Only so that those that have ended give back their memory.
                Some(_) = tasks.join_next() => continue,
            };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.server.shutdown.requested() => break,
            };
            match accepted {
                Ok((stream, address)) => {
                    let Some(of_address) = self.addresses.enter(address.ip()) else {
                        self.addresses.tell_refusal(address.ip(), Instant::now());
                        continue;
                    };
                    let stay = Stay {
                        address,
                        may_pause: Arc::default(),
                        _places: Arc::new((place, of_address)),
                        server: self.server.clone(),
                    };
                    let front = self.clone();
                    tasks.spawn(async move {
                        if let Err(error) = front.serve(stream, stay).await {
                            tracing::debug!(%address, %error, "a connection failed");
                        }
                    });
                }
                Err(error) => {
                    // Mostly a lack of file descriptors: others end meanwhile.
                    tracing::warn!(%error, "no connection can be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        let ended = async {
            while tasks.join_next().await.is_some() {}
            // Streams that connections have become have left these tasks, but not their places.
            let all = u32::try_from(CONNECTIONS_MAX).expect("it is small");
            drop(places.acquire_many(all).await);
        };
        tokio::select! {
            () = ended => {}
            () = self.server.drain_is_over() => {}
        }
    }

    async fn serve(&self, stream: TcpStream, stay: Stay) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let acceptor = TlsAcceptor::from(self.tls.current());
        let accepts = acceptor.accept(self.server.outlet(stream, stay.may_pause.clone()));
        // Boxed: a handshake needs some kilobytes, which the connection would keep to its end.
        let stream = tokio::time::timeout(self.server.timeouts.handshake, Box::pin(accepts)).await??;
        // The handshake has verified who signed it, and that the client has its key.
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let identity = certificate.map(identity).transpose().map_err(io::Error::other)?;
        let client = (self.connect)(identity, stay);
        self.server.serve(stream, client).await
    }
}

#[cfg(test)]
mod tests;
