//! One long-lived channel to all addresses of an endpoint.

use std::{collections::BTreeSet, future::Future, io, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use http::Uri;
use tokio::{
    net::TcpStream,
    sync::{Notify, mpsc},
    task::JoinSet,
    time,
};
use tokio_util::task::TaskTracker;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint as Peer, channel::Change};

use crate::{credentials::Trust, endpoint::Endpoint};

/// How long a TCP connection or a TLS handshake may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A peer that does not answer a ping within `KEEPALIVE_TIMEOUT` is taken for dead. Requests run for minutes without a
/// byte when previews are off and the queue is long, so pings are what finds a dead peer.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Cluster DNS caches for 5 to 30 s.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(10);

/// The least time between two resolutions, however often connections end.
const RESOLVE_PAUSE: Duration = Duration::from_secs(1);

/// Later changes that may wait for the channel, which takes them only while it has a call to place.
const LATER_CHANGES: usize = 64;

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name does not resolve.
    #[error("cannot resolve the host name {host}: check its spelling, and that it exists where this program runs")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// The name exists without addresses, as a headless Service without ready pods does.
    #[error("the host name {0} has no address: are there ready workers behind it?")]
    NoAddress(String),
    /// TLS cannot be set up from the given certificates or names.
    #[error("cannot set up TLS: are the certificates PEM, and the server name a host name?")]
    Tls(#[source] tonic::transport::Error),
}

/// Runs the channel's tasks where [`TaskTracker::wait`] sees their end: only then has a cancelled stream reached the
/// worker.
#[derive(Debug, Clone, Default)]
pub struct TrackedTasks {
    tracker: TaskTracker,
    /// Told at the end of each task: of a connection, or of the sending of a request.
    ended: Arc<Notify>,
}

impl From<&TaskTracker> for TrackedTasks {
    fn from(tracker: &TaskTracker) -> Self {
        Self { tracker: tracker.clone(), ended: Arc::default() }
    }
}

impl hyper::rt::Executor<Pin<Box<dyn Future<Output = ()> + Send>>> for TrackedTasks {
    fn execute(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        let ended = self.ended.clone();
        self.tracker.spawn(async move {
            task.await;
            ended.notify_one();
        });
    }
}

/// Resolves the host and returns a channel that balances over all its addresses, with the task that keeps them current:
/// it resolves again every 10 s, and soon after a connection ends, as workers that go or that shed load end them.
/// Connections are made when needed.
///
/// # Errors
/// When the name has no address, or TLS cannot be set up.
pub async fn connect(endpoint: &Endpoint, trust: &Trust, tasks: &TaskTracker) -> Result<(Channel, JoinSet<()>), Error> {
    let host = (endpoint.host.clone(), endpoint.port);
    let lookup = move || {
        let host = host.clone();
        async move { Ok(tokio::net::lookup_host(host).await?.collect()) }
    };
    connect_by(lookup, endpoint, trust, tasks).await
}

/// [`connect`] with a resolver.
async fn connect_by<F>(
    lookup: impl Fn() -> F + Send + 'static,
    endpoint: &Endpoint,
    trust: &Trust,
    tasks: &TaskTracker,
) -> Result<(Channel, JoinSet<()>), Error>
where
    F: Future<Output = io::Result<BTreeSet<SocketAddr>>> + Send,
{
    let tasks = TrackedTasks::from(tasks);
    let addresses = usable(resolved(endpoint, lookup().await)?).await;
    let (channel, changes) = Channel::balance_channel_with_executor(addresses.len() + LATER_CHANGES, tasks.clone());
    let mut known = BTreeSet::new();
    update(&mut known, addresses, &changes, |address| peer(endpoint, address, trust, &tasks)).await?;
    let (endpoint, trust) = (endpoint.clone(), trust.clone());
    let mut resolver = JoinSet::new();
    resolver.spawn(async move {
        loop {
            time::sleep(RESOLVE_PAUSE).await;
            let _ = time::timeout(RESOLVE_INTERVAL - RESOLVE_PAUSE, tasks.ended.notified()).await;
            // A resolver that fails for a while must not take the known addresses away.
            if let Ok(addresses) = resolved(&endpoint, lookup().await) {
                let peer = |address| peer(&endpoint, address, &trust, &tasks);
                let _ = update(&mut known, usable(addresses).await, &changes, peer).await;
            }
        }
    });
    Ok((channel, resolver))
}

/// The settings every connection to a worker has; `uri` is where it goes, `origin` what the request calls it.
///
/// # Errors
/// [`Error::Tls`].
pub fn settings(uri: Uri, origin: Uri, tls: Option<ClientTlsConfig>, tasks: &TrackedTasks) -> Result<Peer, Error> {
    let peer = Peer::from(uri)
        .origin(origin)
        .executor(tasks.clone())
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    match tls {
        Some(tls) => peer.tls_config(tls).map_err(Error::Tls),
        None => Ok(peer),
    }
}

/// TLS settings that expect a certificate for `host`, or for the name that `trust` gives.
#[must_use]
pub fn tls_config(trust: &Trust, host: &str) -> ClientTlsConfig {
    let config = ClientTlsConfig::new().domain_name(trust.server_name.as_deref().unwrap_or(host));
    match &trust.ca_pem {
        Some(pem) => config.ca_certificate(Certificate::from_pem(pem)),
        None => config.with_native_roots(),
    }
}

fn peer(endpoint: &Endpoint, address: SocketAddr, trust: &Trust, tasks: &TrackedTasks) -> Result<Peer, Error> {
    let origin: Uri = endpoint.to_string().parse().expect("an Endpoint was parsed from a URI");
    let uri: Uri = format!("{}://{address}", if endpoint.tls { "https" } else { "http" })
        .parse()
        .expect("a socket address is an authority");
    settings(uri, origin, endpoint.tls.then(|| tls_config(trust, &endpoint.host)), tasks)
}

fn resolved(endpoint: &Endpoint, found: io::Result<BTreeSet<SocketAddr>>) -> Result<BTreeSet<SocketAddr>, Error> {
    let found = found.map_err(|source| Error::Resolve { host: endpoint.host.clone(), source })?;
    if found.is_empty() { Err(Error::NoAddress(endpoint.host.clone())) } else { Ok(found) }
}

/// Where a name has addresses of both families, one of them is often not served (`localhost` is `::1` too): then only
/// addresses that accept a connection are used, or all if none does, so that the call says what is wrong.
async fn usable(addresses: BTreeSet<SocketAddr>) -> BTreeSet<SocketAddr> {
    let has_both = addresses.iter().any(SocketAddr::is_ipv4) && addresses.iter().any(SocketAddr::is_ipv6);
    if !has_both {
        return addresses;
    }
    let probes = addresses.iter().map(|&address| async move {
        matches!(time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await, Ok(Ok(_))).then_some(address)
    });
    let accepting: BTreeSet<SocketAddr> = futures::future::join_all(probes).await.into_iter().flatten().collect();
    if accepting.is_empty() { addresses } else { accepting }
}

/// Tells the channel what changed between `known` and `now`.
async fn update(
    known: &mut BTreeSet<SocketAddr>,
    now: BTreeSet<SocketAddr>,
    changes: &mpsc::Sender<Change<SocketAddr, Peer>>,
    peer: impl Fn(SocketAddr) -> Result<Peer, Error>,
) -> Result<(), Error> {
    for &address in now.difference(known) {
        // A closed channel has no calls left to balance.
        let _ = changes.send(Change::Insert(address, peer(address)?)).await;
    }
    for &address in known.difference(&now) {
        let _ = changes.send(Change::Remove(address)).await;
    }
    *known = now;
    Ok(())
}

#[cfg(test)]
mod tests;
