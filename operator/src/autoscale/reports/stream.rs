//! One worker's stream, opened again and again for as long as its pod is there.

use std::{sync::Arc, time::Duration};

use imagegen_proto::v1::{WatchReportRequest, admin_service_client::AdminServiceClient};
use tokio::{
    sync::watch,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tracing::debug;

use super::{Reports, Target, identity::Identity};
use crate::{autoscale::fleet::STALE_AFTER, pki};

/// The first and the longest wait between two tries. A worker opens its admin port before it loads the model, so the
/// longest one bounds what is missed of a start.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Until the connection stands and the first report is there.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Half of HTTP/2's default: a report takes a few hundred bytes, and a thousand streams their windows.
const WINDOW_BYTES: u32 = 32 * 1024;

/// Holds the stream of `target` until `stop`.
pub(super) async fn hold(
    reports: Reports,
    target: Target,
    mut identity: watch::Receiver<Option<Arc<Identity>>>,
    stop: CancellationToken,
) {
    let held = async {
        let mut wait = FIRST_WAIT;
        loop {
            // Ends with the operator only.
            let Ok(newest) = identity.wait_for(Option::is_some).await.map(|identity| identity.clone()) else { return };
            let Some(newest) = newest else { return };
            let mut heard = false;
            let ended = once(&reports, &target, &newest, &mut heard).await;
            wait = if heard { FIRST_WAIT } else { (wait * 2).min(LONGEST_WAIT) };
            let (pod, reason) = (&target.pod, ended.to_string());
            debug!(pod, namespace = target.imagegen.0, reason, "The stream of a worker's reports ended.");
            time::sleep(wait.mul_f64(rand::random_range(0.8..1.2))).await;
        }
    };
    tokio::select! {
        () = held => {}
        () = stop.cancelled() => {}
    }
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("no connection: {}", chain(.0))]
    Connect(#[from] tonic::transport::Error),
    #[error("{0}")]
    Status(Box<tonic::Status>),
    #[error("nothing came for {} s", .0.as_secs_f64())]
    Silent(Duration),
    #[error("the worker ended it")]
    Finished,
}

impl From<tonic::Status> for Ended {
    fn from(status: tonic::Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// Opens the stream and reads it to its end. `heard` says whether a report came.
pub(super) async fn once(reports: &Reports, target: &Target, identity: &Identity, heard: &mut bool) -> Ended {
    match time::timeout(CONNECT_LIMIT, connect(target, identity)).await {
        Err(_) => Ended::Silent(CONNECT_LIMIT),
        Ok(Err(error)) => error.into(),
        Ok(Ok(channel)) => {
            // Dropped, and with it counted as closed, also when the task is stopped.
            let _open = Open::new(reports, target, channel.clone());
            read(reports, target, channel, heard).await.err().unwrap_or(Ended::Finished)
        }
    }
}

async fn connect(target: &Target, identity: &Identity) -> Result<Channel, tonic::transport::Error> {
    let (namespace, name) = &target.imagegen;
    Endpoint::from_shared(format!("https://{}", target.address))?
        .tls_config(identity.tls(&pki::worker_name(name, namespace)))?
        .connect_timeout(CONNECT_LIMIT)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES * 2)
        .buffer_size(8)
        .connect()
        .await
}

async fn read(reports: &Reports, target: &Target, channel: Channel, heard: &mut bool) -> Result<(), Ended> {
    let mut client = AdminServiceClient::new(channel);
    let opened = time::timeout(CONNECT_LIMIT, client.watch_report(WatchReportRequest {})).await;
    let mut stream = opened.map_err(|_| Ended::Silent(CONNECT_LIMIT))??.into_inner();
    loop {
        // A worker reports every second: one that is silent for this long hangs, or its node is gone.
        let next = time::timeout(STALE_AFTER, stream.message()).await.map_err(|_| Ended::Silent(STALE_AFTER))?;
        let Some(report) = next? else { return Ok(()) };
        reports.arrived(target, report, Instant::now());
        *heard = true;
    }
}

/// An open stream.
struct Open<'a> {
    reports: &'a Reports,
    target: &'a Target,
}

impl<'a> Open<'a> {
    fn new(reports: &'a Reports, target: &'a Target, channel: Channel) -> Self {
        reports.opened(target, channel);
        Self { reports, target }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.reports.closed(self.target);
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
