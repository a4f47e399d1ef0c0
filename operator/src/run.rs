//! Wires the operator: client, watches, election, certificates, HTTP page, all under one supervisor.

use std::{convert::Infallible, sync::Arc, time::Duration};

use anyhow::Context as _;
use futures::StreamExt as _;
use imagegen_telemetry::{
    http::{self, Page},
    supervise::{self, Supervisor},
};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Secret};
use kube::{
    Api, Client, Config,
    client::ClientBuilder,
    runtime::{
        Controller,
        controller::{self, Error as ControllerError},
        events::{Recorder, Reporter},
    },
};
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, sync::watch};
use tokio_stream::wrappers::WatchStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

use crate::{
    FIELD_MANAGER,
    api_calls::CountCalls,
    autoscale::reports::{Reports, identity},
    caches::{Caches, Guarded, watch},
    cli::RunArgs,
    fleets::Fleets,
    lease::{self, Candidate, Leadership},
    metrics::{Counts, Metrics},
    pki,
    reconcile::{
        self, Context,
        api_service::{self, MetricsApiState, Place},
        types::OperatorSettings,
    },
    serve,
};

/// Changes of one object within this time are one reconcile.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// A reconcile that runs when the stop comes ends within its own limit; this leaves room to give the Lease back.
const STOP_GRACE: Duration = Duration::from_secs(25);

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When the settings contradict each other, the API server's address is unknown, the HTTP port is taken, leadership is
/// lost, or a task ends that must not.
pub async fn run(args: RunArgs) -> anyhow::Result<()> {
    let timing = args.lease.timing()?;
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let config =
        Config::infer().await.context("no API server: neither a kubeconfig nor a service account was found")?;
    let client = ClientBuilder::try_from(config)?.with_layer(&CountCalls(metrics.clone())).build();
    let listener = TcpListener::bind(args.http_listen).await;
    let listener = listener.with_context(|| format!("--http-listen {} cannot be bound", args.http_listen))?;
    info!(version = env!("CARGO_PKG_VERSION"), namespaces = ?namespaces(&args), http = %args.http_listen, "Starting.");

    let mut supervisor = Supervisor::new();
    let stop = supervisor.stop_token();
    let (announcer, leadership) = lease::leadership();
    let (publish, authority) = watch::channel(None);
    let (publish_api, metrics_api) = watch::channel(MetricsApiState::NotWanted);
    let drained = CancellationToken::new();
    let writers = TaskTracker::new();

    let mut scopes = Vec::new();
    for namespace in namespaces(&args) {
        let (caches, controller) = watch(&client, namespace.as_deref());
        let context = Context::new(
            client.clone(),
            caches.clone(),
            settings(&args),
            leadership.clone(),
            authority.clone(),
            metrics.clone(),
            recorder(&client, &args.pod_name),
        );
        let context = Arc::new(context.with_metrics_api(metrics_api.clone()));
        let running = drive(controller, context, args.concurrency, stop.clone());
        supervisor.spawn(
            "controller",
            writers.track_future(async move {
                running.await;
                Ok::<_, Infallible>(())
            }),
        );
        scopes.push(caches);
    }
    writers.close();
    let (all_written, release) = (writers.clone(), drained.clone());
    let stopping = stop.clone();
    supervisor.spawn("drain", async move {
        stopping.cancelled().await;
        all_written.wait().await;
        release.cancel();
        Ok::<_, Infallible>(())
    });

    let leases: Api<Lease> = Api::namespaced(client.clone(), &args.namespace);
    let candidate =
        Candidate { api: leases, name: args.lease.lease_name.clone(), identity: args.pod_name.clone(), timing };
    supervisor.spawn("leader election", lease::run(candidate, announcer, stop.clone(), drained));
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &args.namespace);
    let service = args.serve.service_name.as_deref();
    let serving = service.map(|service| pki::serving::serving_name(service, &args.namespace));
    let (publish_identity, client_certificate) = watch::channel(None);
    let reading = identity::run(secrets.clone(), authority.clone(), publish_identity, stop.clone());
    supervisor.spawn("client certificate", reading);
    let certificates = pki::store::run(secrets, serving, publish, leadership.clone(), stop.clone());
    supervisor.spawn("certificates", certificates);
    if let Some(place) = api_service_place(&args) {
        let (scopes, leadership) = (scopes.clone(), leadership.clone());
        let tending = api_service::run(client.clone(), scopes, place, authority, leadership, publish_api, stop.clone());
        supervisor.spawn("APIService", tending);
    }
    let reports = Reports::default();
    for caches in &scopes {
        let streams = reports.clone().run(caches.clone(), client_certificate.clone(), stop.clone());
        supervisor.spawn("worker reports", streams);
    }
    let fleets = Fleets::new(scopes.clone().into(), reports);
    serve::start(&args, &client, fleets, metrics.clone(), &mut supervisor).await?;
    supervisor.spawn("leader gauge", watch_leadership(leadership.clone(), metrics, stop.clone()));

    let (synced, ready) = watch::channel(false);
    supervisor.spawn("cache sync", wait_for_caches(scopes.clone(), synced, stop.clone()));
    Metrics::register_counts(&mut registry, move || count(&scopes));
    let page = Page {
        registry: Arc::new(registry),
        live: Arc::new(|| Ok(())),
        ready: Arc::new(move || if *ready.borrow() { Ok(()) } else { Err("caches are not synced".to_owned()) }),
    };
    supervisor.spawn("http", http::serve(listener, page, stop.clone().cancelled_owned()));
    supervisor.spawn("signals", stop_on_signal(stop));
    supervisor.run(STOP_GRACE).await?;
    Ok(())
}

/// One entry for each set of caches: the listed namespaces, or `None` for all of them.
fn namespaces(args: &RunArgs) -> Vec<Option<String>> {
    let mut listed: Vec<_> =
        args.watch_namespaces.iter().map(|name| name.trim()).filter(|name| !name.is_empty()).collect();
    listed.sort_unstable();
    listed.dedup();
    if listed.is_empty() { vec![None] } else { listed.into_iter().map(|name| Some(name.to_owned())).collect() }
}

fn settings(args: &RunArgs) -> OperatorSettings {
    OperatorSettings {
        worker_image: args.worker_image.clone(),
        operator_namespace: args.namespace.clone(),
        allow_host_path: args.allow.allow_host_path,
        allow_privileged_pods: args.allow.allow_privileged_pods,
        metrics_api: args.serve.metrics_api_cluster_role.is_some(),
    }
}

/// Where the metrics API is, in an operator that may put it into the cluster.
fn api_service_place(args: &RunArgs) -> Option<Place> {
    Some(Place {
        namespace: args.namespace.clone(),
        service: args.serve.service_name.clone()?,
        cluster_role: args.serve.metrics_api_cluster_role.clone()?,
    })
}

fn recorder(client: &Client, pod: &str) -> Recorder {
    let reporter = Reporter { controller: FIELD_MANAGER.to_owned(), instance: Some(pod.to_owned()) };
    Recorder::new(client.clone(), reporter)
}

/// Runs one controller until `stop`. Before the caches are synced, and on a pod that does not lead, each reconcile returns
/// at once; the sync, becoming the leader, and a new certificate authority reconcile everything.
async fn drive(controller: Controller<Guarded>, context: Arc<Context>, concurrency: u16, stop: CancellationToken) {
    let gained = WatchStream::from_changes(context.leadership.receiver()).scan(false, |led, until| {
        let gained = until.is_some() && !*led;
        *led = until.is_some();
        std::future::ready(Some(gained))
    });
    let gained = gained.filter_map(|gained| std::future::ready(gained.then_some(())));
    let authority = WatchStream::from_changes(context.authority.clone()).map(|_| ());
    let metrics_api = WatchStream::from_changes(context.metrics_api.clone()).map(|_| ());
    let caches = context.caches.clone();
    let synced = futures::stream::once(async move { caches.synced().await });
    let config = controller::Config::default().debounce(DEBOUNCE).concurrency(concurrency);
    let results = controller
        .with_config(config)
        .reconcile_all_on(synced)
        .reconcile_all_on(gained)
        .reconcile_all_on(authority)
        .reconcile_all_on(metrics_api)
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(
            reconcile::reconcile,
            |object, failure, ctx| reconcile::error_policy(&object, failure, &ctx),
            context.clone(),
        );
    results
        .for_each(|result| {
            match result {
                Ok((object, action)) => debug!(%object, ?action, "Reconciled."),
                Err(ControllerError::ObjectNotFound(object)) => context.forget(&object),
                // Logged by the error policy, which knows more.
                Err(ControllerError::ReconcilerFailed(..)) => {}
                Err(ControllerError::QueueError(error)) => warn!(%error, "A watch failed; it is tried again."),
                Err(ControllerError::RunnerError(error)) => warn!(%error, "The controller could not start."),
            }
            std::future::ready(())
        })
        .await;
}

async fn wait_for_caches(
    scopes: Vec<Caches>,
    synced: watch::Sender<bool>,
    stop: CancellationToken,
) -> Result<(), Infallible> {
    tokio::select! {
        _ = futures::future::join_all(scopes.iter().map(Caches::synced)) => {}
        () = stop.cancelled() => return Ok(()),
    }
    info!("Caches are synced.");
    synced.send_replace(true);
    stop.cancelled().await;
    Ok(())
}

async fn watch_leadership(
    mut leadership: Leadership,
    metrics: Metrics,
    stop: CancellationToken,
) -> Result<(), Infallible> {
    metrics.leads(false);
    tokio::select! {
        () = leadership.gained() => metrics.leads(true),
        () = stop.cancelled() => return Ok(()),
    }
    // Leadership is only lost together with the process.
    stop.cancelled().await;
    metrics.leads(false);
    Ok(())
}

async fn stop_on_signal(stop: CancellationToken) -> std::io::Result<()> {
    tokio::select! {
        signal = supervise::terminated() => signal?,
        () = stop.cancelled() => {}
    }
    stop.cancel();
    Ok(())
}

fn count(scopes: &[Caches]) -> Counts {
    let mut counts = Counts::default();
    for object in scopes.iter().flat_map(|caches| caches.imagegens.state()) {
        let conditions = object.0.as_ref().ok().and_then(|ig| ig.status.as_ref()).map(|status| &status.conditions);
        let ready = conditions.and_then(|all| all.iter().find(|condition| condition.type_ == "Ready"));
        match ready.map(|condition| condition.status.as_str()) {
            Some("True") => counts.ready += 1,
            Some("False") => counts.not_ready += 1,
            _ => counts.unknown += 1,
        }
    }
    counts
}
