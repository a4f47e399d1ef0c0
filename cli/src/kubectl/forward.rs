//! A tonic channel whose connections are port forwards through the API server.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::{io::DuplexStream, task::JoinSet};
use tokio_util::task::TaskTracker;
use tower::service_fn;

use super::{Error, cluster::Cluster, endpoints::Target, imagegen::ImageGen};
use crate::{
    channel,
    credentials::{Bearer, Trust},
    error::Error as TopError,
    session::{Session, Trouble},
};

/// A session with a ready worker of `object`. Every new connection chooses among the pods that are ready then, another
/// one each time, so that a retry does not go to the pod that just failed.
///
/// # Errors
/// [`Error::NotReady`] when no worker is ready now, and what [`channel::settings`] returns.
pub async fn open(
    cluster: Cluster,
    object: ImageGen,
    bearer: Bearer,
    trust: Option<Trust>,
    tasks: &TaskTracker,
) -> Result<Session, TopError> {
    // A person wants to hear at once that nothing is ready, and not after all retries.
    cluster.targets(&object).await?;
    let peer = format!("ImageGen {}/{}", cluster.namespace, object.name);
    let authority = format!("{}.{}.svc", object.name, cluster.namespace);
    let scheme = if trust.is_some() { "https" } else { "http" };
    let uri: Uri = format!("{scheme}://{authority}").parse().expect("two DNS labels and svc are a host name");
    let tls = trust.as_ref().map(|trust| channel::tls_config(trust, &authority));
    let settings = channel::settings(uri.clone(), uri, tls, &tasks.into())?;
    let trouble = Trouble::default();
    let dial = Arc::new(Dial {
        cluster,
        object,
        trouble: trouble.clone(),
        tasks: tasks.clone(),
        // Many short-lived clients must not all go to the first pod.
        attempts: AtomicUsize::new(rand::random::<u16>().into()),
    });
    let connector = service_fn(move |_: Uri| {
        let dial = Arc::clone(&dial);
        async move { dial.connect().await }
    });
    let channel = settings.connect_with_connector_lazy(connector);
    Ok(Session { channel, bearer, peer, trouble, background: JoinSet::new() })
}

struct Dial {
    cluster: Cluster,
    object: ImageGen,
    trouble: Trouble,
    tasks: TaskTracker,
    attempts: AtomicUsize,
}

impl Dial {
    async fn connect(&self) -> Result<TokioIo<DuplexStream>, Error> {
        let targets = self.cluster.targets(&self.object).await?;
        let target = &targets[self.attempts.fetch_add(1, Ordering::Relaxed) % targets.len()];
        let mut forwarder = self.cluster.forward(target).await?;
        let stream = forwarder.take_stream(target.port).ok_or_else(|| Error::NoPort(self.object.name.clone()))?;
        let told = forwarder.take_error(target.port).ok_or_else(|| Error::NoPort(self.object.name.clone()))?;
        let (trouble, Target { pod, .. }) = (self.trouble.clone(), target.clone());
        self.tasks.spawn(async move {
            // Either way the task of the port forward is in sight until the last bytes of a cancelled stream are sent.
            match told.await {
                Some(text) => {
                    trouble.set(format!("pod {pod}: {}", text.trim()));
                    forwarder.abort();
                }
                None => {
                    if let Err(error) = forwarder.join().await {
                        trouble.set_if_empty(format!("pod {pod}: {error}"));
                    }
                }
            }
        });
        Ok(TokioIo::new(stream))
    }
}
