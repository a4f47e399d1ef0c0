//! The operator's own TLS servers: connections in, requests to a handler, and an end without broken answers.

use std::{convert::Infallible, future::Future, io, pin::pin, sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::{
    net::{TcpListener, TcpStream},
    time,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::body::Body;
use tracing::{debug, warn};

/// A client that takes longer for the TLS handshake is none.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a silent client is asked whether it is still there, and how long it has for the answer.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));
/// How long open calls have to end when the process does.
const FLUSH: Duration = Duration::from_secs(5);
/// After the system has no file descriptor left, some connection has to close first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The certificates that the client of a connection shows, its own first. Empty: it shows none.
pub type Peer = Arc<[CertificateDer<'static>]>;

/// One listening port.
#[derive(Debug)]
pub struct Port {
    /// For the log.
    pub name: &'static str,
    /// Where connections come in.
    pub listener: TcpListener,
    /// How they are secured.
    pub tls: Arc<ServerConfig>,
    /// Ends the server: no new connections, and those that are there are closed after their last answer.
    pub stop: CancellationToken,
}

impl Port {
    /// Answers every request with `handler` until the stop.
    ///
    /// # Errors
    /// Never: one connection's trouble is not another's.
    pub async fn serve<H, F>(self, handler: H) -> Result<(), Infallible>
    where
        H: Fn(Peer, Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let connections = TaskTracker::new();
        while let Some(accepted) = self.stop.run_until_cancelled(self.listener.accept()).await {
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(port = self.name, %error, "A connection was not accepted.");
                    time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (name, handler) = (self.name, handler.clone());
            let serving = connection(stream, TlsAcceptor::from(self.tls.clone()), handler, self.stop.clone());
            connections.spawn(async move {
                if let Err(error) = serving.await {
                    debug!(port = name, %peer, %error, "A connection ended early.");
                }
            });
        }
        connections.close();
        connections.wait().await;
        Ok(())
    }
}

async fn connection<H, F>(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    handler: H,
    stop: CancellationToken,
) -> io::Result<()>
where
    H: Fn(Peer, Request<Incoming>) -> F,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    stream.set_nodelay(true)?;
    let stream = time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await??;
    let peer: Peer = stream.get_ref().1.peer_certificates().unwrap_or_default().iter().cloned().collect();
    let service = service_fn(move |request| {
        let answer = handler(peer.clone(), request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    let (interval, timeout) = KEEPALIVE;
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(interval).keep_alive_timeout(timeout);
    // Slow headers hold a connection no longer than a handshake.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE_TIMEOUT);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        ended = &mut connection => return ended.map_err(io::Error::other),
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    time::timeout(FLUSH, connection).await?.map_err(io::Error::other)
}
