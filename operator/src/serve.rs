//! Wires what the operator serves to autoscalers: the metrics API and the KEDA scaler, with one certificate.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use imagegen_telemetry::supervise::Supervisor;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client};
use tokio::{net::TcpListener, sync::watch};
use tonic::Status;

use crate::{
    cli::RunArgs,
    fleets::Fleets,
    keda::server::{FindFleet, Scaler},
    metrics::Metrics,
    metrics_api::{
        access::Access,
        front_proxy,
        server::{AnyClient, MetricsApi, values_of},
    },
    pki::serving::{self, ServingCertificate},
    serving::Port,
};

const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// Starts the servers that the flags ask for. Every operator pod has them, whether it leads or not.
///
/// # Errors
/// When a port is taken.
pub(crate) async fn start(
    args: &RunArgs,
    client: &Client,
    fleets: Fleets,
    metrics: Metrics,
    supervisor: &mut Supervisor,
) -> anyhow::Result<()> {
    if args.serve.service_name.is_none() {
        return Ok(());
    }
    let stop = supervisor.stop_token();
    let (publish, _) = watch::channel(None);
    let certificate = ServingCertificate::new(&publish);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &args.namespace);
    supervisor.spawn("serving certificate", serving::follow(secrets, publish, stop.clone()));

    let port = Port {
        name: "keda",
        listener: bind("--keda-listen", args.serve.keda_listen).await?,
        tls: Arc::new(certificate.tls(None, &[HTTP2])?),
        stop: stop.clone(),
    };
    let scaler = Scaler { find: found_in(fleets.clone()), metrics: metrics.clone(), stop: stop.clone() };
    supervisor.spawn("KEDA scaler", port.serve(scaler.handler()));

    if args.serve.metrics_api_cluster_role.is_none() {
        return Ok(());
    }
    let (publish, front_proxy) = watch::channel(None);
    let configs: Api<ConfigMap> = Api::namespaced(client.clone(), front_proxy::CONFIG_NAMESPACE);
    supervisor.spawn("front proxy", front_proxy::follow(configs, publish, stop.clone()));
    let port = Port {
        name: "metrics API",
        listener: bind("--metrics-api-listen", args.serve.metrics_api_listen).await?,
        tls: Arc::new(certificate.tls(Some(AnyClient::verifier()), &[HTTP2, HTTP1])?),
        stop,
    };
    let access = Arc::new(Access::new(client.clone()));
    let api = MetricsApi { front_proxy, access, values: values_of(fleets), metrics };
    supervisor.spawn("metrics API", port.serve(move |peer, request| api.clone().answer(peer, request)));
    Ok(())
}

async fn bind(flag: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("{flag} {address} cannot be bound"))
}

fn found_in(fleets: Fleets) -> FindFleet {
    Arc::new(move |namespace, name| {
        if !fleets.are_synced() {
            return Err(Status::unavailable("the operator has just started and does not know all workers yet"));
        }
        fleets.get(namespace, name).ok_or_else(|| {
            Status::not_found(format!("there is no ImageGen {namespace}/{name} that this operator serves"))
        })
    })
}
