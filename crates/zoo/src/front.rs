//! Where clients connect, tenants' and administrators': TCP, TLS, HTTP/2 and HTTP/1.1.
//!
//! Invariant: everything that a client can make zoo hold before it is known who it is, is bounded in number and in time.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use kubewharf_foundation::Shutdown;
use kubewharf_foundation::tls::{Identity, ReloadingTls, identity};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::limits::{
    ACCEPT_PAUSE, CONNECTIONS_MAX, DRAIN_TIMEOUT, HANDSHAKE_TIMEOUT, HEAD_TIMEOUT, STREAMS_PER_CONNECTION_MAX,
};
use crate::proxy::Body;

/// Answers the requests of one connection.
pub(crate) trait Client: Send + Sync + 'static {
    /// Answers a request.
    fn answer<'a>(&'a self, request: Request<Incoming>) -> BoxFuture<'a, Response<Body>>;
}

/// Makes the client of a connection: from whom its certificate names, if it showed one, and its address.
pub(crate) type Connect = dyn Fn(Option<Identity>, SocketAddr) -> Arc<dyn Client> + Send + Sync;

/// A listener.
pub(crate) struct Front {
    pub(crate) connect: Box<Connect>,
    pub(crate) tls: Arc<ReloadingTls>,
    pub(crate) shutdown: Shutdown,
}

impl Front {
    /// Accepts connections until the shutdown; ends when the last of them has.
    pub(crate) async fn listen(self: Arc<Self>, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            // A place first: clients beyond the limit wait in the kernel's queue instead of in our memory.
            let place = tokio::select! {
                place = places.clone().acquire_owned() => place.expect("it is never closed"),
                () = self.shutdown.requested() => break,
                // Only so that those that have ended give back their memory.
                Some(_) = tasks.join_next() => continue,
            };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.shutdown.requested() => break,
            };
            match accepted {
                Ok((stream, address)) => {
                    let front = self.clone();
                    tasks.spawn(async move {
                        if let Err(error) = front.serve(stream, address).await {
                            tracing::debug!(%address, %error, "a connection failed");
                        }
                        drop(place);
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
        let ended = async { while tasks.join_next().await.is_some() {} };
        tokio::select! {
            () = ended => {}
            () = tokio::time::sleep(DRAIN_TIMEOUT) => {}
            () = self.shutdown.requested_now() => {}
        }
    }

    async fn serve(&self, stream: TcpStream, address: SocketAddr) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let acceptor = TlsAcceptor::from(self.tls.current());
        // Boxed: a handshake needs some kilobytes, which the connection would keep to its end.
        let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, Box::pin(acceptor.accept(stream))).await??;
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        // The handshake has verified who signed it, and that the client has its key.
        let identity = certificate.map(identity).transpose().map_err(io::Error::other)?;
        let client = (self.connect)(identity, address);
        let service = service_fn(move |request| {
            let client = client.clone();
            async move { Ok::<_, std::convert::Infallible>(client.answer(request).await) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).preserve_header_case(true);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
            .keep_alive_interval(Duration::from_secs(30));
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = self.shutdown.requested() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        result.map_err(io::Error::other)
    }
}
