//! A way to the workers, and the bounds of everything done with it: a deadline, Ctrl-C and SIGTERM.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use imagegen_proto::v1::image_service_client::ImageServiceClient;
use tokio::{signal, task::JoinSet, time};
use tokio_util::task::TaskTracker;
use tonic::{Status, service::interceptor::InterceptedService, transport::Channel};
use tonic_health::pb::health_client::HealthClient;

use crate::{
    args::Worker,
    channel, credentials,
    credentials::Bearer,
    error::Error,
    explain::{Explanation, explain},
};

/// Largest message taken from a worker. A lossless 4096x4096 picture is at most 48 MiB of pixels.
const MAX_MESSAGE_BYTES: usize = 128 << 20;

/// How long a cancelled stream may take to reach the worker. Usually milliseconds.
const FAREWELL: Duration = Duration::from_secs(1);

/// A channel to workers, with what every call on it needs.
#[derive(Debug)]
pub struct Session {
    /// Connections are made when a call needs one.
    pub channel: Channel,
    /// The token, if there is one.
    pub bearer: Bearer,
    /// Names the workers in messages.
    pub peer: String,
    /// What the port forward said when it broke.
    pub trouble: Trouble,
    /// Tasks that end with the session.
    pub background: JoinSet<()>,
}

/// The last thing that went wrong beneath the channel, where only a task of the port forward hears of it.
#[derive(Debug, Clone, Default)]
pub struct Trouble(Arc<Mutex<Option<String>>>);

impl Trouble {
    /// Remembers `text`.
    pub fn set(&self, text: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
    }

    /// Remembers `text` unless there is something better.
    pub fn set_if_empty(&self, text: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(text);
    }

    /// What was remembered since the last call.
    #[must_use]
    pub fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Session {
    /// Resolves the endpoint of the command line.
    ///
    /// # Errors
    /// When the name does not resolve, or token or certificates cannot be used.
    pub async fn open(worker: &Worker, tasks: &TaskTracker) -> Result<Self, Error> {
        let bearer = Bearer::read(worker.security.token_file.as_deref())?;
        bearer.check(&worker.endpoint, worker.allow_insecure_token)?;
        let ca_pem = worker.security.ca_file.as_deref().map(credentials::read).transpose()?;
        let trust = credentials::Trust { ca_pem, server_name: worker.security.tls_server_name.clone() };
        let (channel, background) = channel::connect(&worker.endpoint, &trust, tasks).await?;
        let peer = worker.endpoint.to_string();
        Ok(Self { channel, bearer, peer, trouble: Trouble::default(), background })
    }

    /// What a failed call of this session means.
    #[must_use]
    pub fn explain(&self, status: &Status) -> Explanation {
        let explanation = explain(status, &self.peer);
        match self.trouble.take().filter(|_| explanation.status.is_none()) {
            None => explanation,
            Some(trouble) => Explanation {
                message: format!("the port forward to {} broke: {trouble}", self.peer),
                hint: "The pod may be starting or stopping; see its state with the status command.".to_owned(),
                ..explanation
            },
        }
    }

    /// A client of the image service.
    #[must_use]
    pub fn images(&self) -> ImageServiceClient<InterceptedService<Channel, Bearer>> {
        ImageServiceClient::with_interceptor(self.channel.clone(), self.bearer.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// A client of the health service, which asks for no token.
    #[must_use]
    pub fn health(&self) -> HealthClient<Channel> {
        HealthClient::new(self.channel.clone())
    }
}

/// Does `work` until it ends, `limit` passes, or a signal asks to stop. In the last two cases what `work` held is
/// dropped, which cancels its calls, and the workers are given a moment to hear of it.
///
/// # Errors
/// What `work` returns, [`Error::Deadline`], [`Error::Interrupted`] or [`Error::Terminated`].
pub async fn bounded<T>(limit: Duration, work: impl AsyncFnOnce(&TaskTracker) -> Result<T, Error>) -> Result<T, Error> {
    let tasks = TaskTracker::new();
    let stopped = tokio::select! {
        outcome = work(&tasks) => return outcome,
        () = time::sleep(limit) => Error::Deadline(limit),
        () = interrupted() => Error::Interrupted,
        () = terminated() => Error::Terminated,
    };
    tasks.close();
    // Past this the worker notices the closed connection instead.
    let _ = time::timeout(FAREWELL, tasks.wait()).await;
    Err(stopped)
}

async fn interrupted() {
    if signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(unix)]
async fn terminated() {
    match signal::unix::signal(signal::unix::SignalKind::terminate()) {
        Ok(mut signals) => {
            signals.recv().await;
        }
        Err(_) => std::future::pending().await,
    }
}

#[cfg(not(unix))]
async fn terminated() {
    std::future::pending().await
}
