//! Accepts connections and serves each on its own task: TLS that follows its files, tokens, age, and going away.

use std::{convert::Infallible, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
    time,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Status, body::Body, service::Routes};
use tower::ServiceExt as _;
use tracing::{debug, warn};

use crate::{
    auth::Tokens,
    metrics::Metrics,
    snapshot::Snapshot,
    status::{self, Refusal},
};

/// A client that takes longer for the TLS handshake is none.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a silent client is asked whether it is still there, and how long it has for the answer. A client whose
/// machine died holds up no queue for longer than both together.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));

/// How long open streams have to send their last bytes when the process ends.
pub(crate) const FLUSH: Duration = Duration::from_secs(2);

/// After the system has no file descriptor left, some connection has to close first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long connections live.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Age {
    /// Plus or minus 10 %, drawn for each connection; zero for no limit.
    pub(crate) max: Duration,
    /// For what runs at that age.
    pub(crate) grace: Duration,
}

/// One listening port.
pub(crate) struct Port {
    pub(crate) name: &'static str,
    pub(crate) listener: TcpListener,
    pub(crate) tls: Option<watch::Receiver<Arc<ServerConfig>>>,
    pub(crate) handler: Handler,
    pub(crate) age: Option<Age>,
    /// Connections go away when a drain begins; absent: they stay.
    pub(crate) drains: Option<watch::Receiver<Snapshot>>,
    pub(crate) stop: CancellationToken,
}

/// What answers calls.
#[derive(Clone)]
pub(crate) struct Handler {
    pub(crate) routes: Routes,
    pub(crate) tokens: Option<watch::Receiver<Arc<Tokens>>>,
    pub(crate) metrics: Metrics,
}

impl Port {
    /// Serves until `stop`, then gives open streams [`FLUSH`] for their end.
    pub(crate) async fn serve(self) -> Result<(), Infallible> {
        let port = Arc::new(self);
        let connections = TaskTracker::new();
        while let Some(accepted) = port.stop.run_until_cancelled(port.listener.accept()).await {
            match accepted {
                Ok((stream, peer)) => drop(connections.spawn(Arc::clone(&port).connection(stream, peer))),
                Err(error) => {
                    warn!(port = port.name, %error, "A connection was not accepted.");
                    time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        connections.close();
        connections.wait().await;
        Ok(())
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        let open = self.handler.metrics.connections.get_or_create_owned(&[("port", self.name)]);
        open.inc();
        if let Err(error) = self.connection_io(stream).await {
            debug!(port = self.name, %peer, %error, "A connection ended early.");
        }
        open.dec();
    }

    async fn connection_io(&self, stream: TcpStream) -> io::Result<()> {
        // Progress events are small and must not wait for more.
        stream.set_nodelay(true)?;
        let Some(tls) = &self.tls else { return self.serve_connection(stream).await };
        let config = Arc::clone(&tls.borrow());
        let stream = time::timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(stream)).await??;
        self.serve_connection(stream).await
    }

    async fn serve_connection(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> io::Result<()> {
        let handler = &self.handler;
        let service = service_fn(move |request| handler.clone().answer(request));
        let (interval, timeout) = KEEPALIVE;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).keep_alive_interval(interval).keep_alive_timeout(timeout);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let grace = tokio::select! {
            ended = &mut connection => return ended.map_err(io::Error::other),
            grace = self.goes_away() => grace,
        };
        connection.as_mut().graceful_shutdown();
        let last_bytes = async {
            self.stop.cancelled().await;
            time::sleep(FLUSH).await;
        };
        tokio::select! {
            ended = &mut connection => ended.map_err(io::Error::other),
            () = time::sleep(grace) => Err(io::Error::new(io::ErrorKind::TimedOut, "requests outlived the connection's grace")),
            () = last_bytes => Err(io::Error::new(io::ErrorKind::TimedOut, "streams were open when the process ended")),
        }
    }

    /// Completes when no new calls should come on this connection, with the time that those on it have.
    async fn goes_away(&self) -> Duration {
        let Age { max, grace } = self.age.unwrap_or(Age { max: Duration::ZERO, grace: Duration::MAX });
        let age = max.mul_f64(rand::random_range(0.9..1.1));
        let aged = async { if max.is_zero() { std::future::pending().await } else { time::sleep(age).await } };
        tokio::select! {
            () = aged => grace,
            () = drain_begins(self.drains.clone()) => grace,
            () = self.stop.cancelled() => FLUSH,
        }
    }
}

/// A connection that came while draining is there for its refusals; only the next drain sends it away.
async fn drain_begins(drains: Option<watch::Receiver<Snapshot>>) {
    if let Some(mut drains) = drains
        && drains.wait_for(|snapshot| !snapshot.is_draining()).await.is_ok()
        && drains.wait_for(Snapshot::is_draining).await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

impl Handler {
    async fn answer(self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let allowed = self.tokens.as_ref().map(|tokens| Arc::clone(&tokens.borrow()));
        if allowed.is_some_and(|tokens| !tokens.allow(request.uri().path(), request.headers())) {
            self.metrics.refused(&Refusal::Unauthenticated);
            return Ok(Status::from(Refusal::Unauthenticated).into_http());
        }
        let response = self.routes.oneshot(request.map(Body::new)).await?;
        Ok(match Status::from_header_map(response.headers()).as_ref().and_then(status::of_decode_failure) {
            Some(status) => status.into_http(),
            None => response,
        })
    }
}
