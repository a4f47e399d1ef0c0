//! The scaler as KEDA sees it: a gRPC client over TLS that trusts the operator's authority.

use std::{collections::BTreeMap, sync::Mutex};

use imagegen_proto::externalscaler::external_scaler_client::ExternalScalerClient;
use jiff::Timestamp;
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, sync::watch};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use super::*;
use crate::{
    autoscale::{
        fleet::Worker,
        samples::{TARGETS, busy, idle, ready},
    },
    crd::AutoscalingMode,
    pki::{
        cert::{Authority, Usage, new_ca},
        serving::{ServingCertificate, certified},
    },
    serving::Port,
};

const SERVICE: &str = "imagegen-operator.imagegen-system.svc";

type Workers = Arc<Mutex<Vec<Worker>>>;

/// A scaler for one ImageGen with these workers, and KEDA's connection to it.
async fn scaler(workers: Workers, stop: CancellationToken) -> ExternalScalerClient<Channel> {
    let authority = Authority::new(new_ca(Some(SERVICE), Timestamp::now()).unwrap(), &[]).unwrap();
    let leaf = authority.issue(SERVICE, Usage::Serving, Timestamp::now()).unwrap();
    let (publish, _) = watch::channel(Some(Arc::new(certified(&leaf).unwrap())));
    let tls = Arc::new(ServingCertificate::new(&publish).tls(None, &[b"h2"]).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let find: FindFleet = Arc::new(move |namespace, name| {
        if (namespace, name) != ("studio", "turbo") {
            return Err(Status::not_found("no such ImageGen"));
        }
        Ok(Fleet {
            namespace: namespace.into(),
            name: name.into(),
            labels: BTreeMap::new(),
            mode: AutoscalingMode::External,
            targets: TARGETS,
            max_step: 4,
            replicas: 1,
            workers: workers.lock().unwrap().clone(),
            pod_labels: BTreeMap::new(),
        })
    });
    let scaler = Scaler { find, metrics: Metrics::register(&mut Registry::default()), stop: stop.clone() };
    let port = Port { name: "keda", listener, tls, stop };
    tokio::task::spawn(port.serve(scaler.handler()));
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority.bundle())).domain_name(SERVICE);
    let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap().tls_config(tls).unwrap();
    ExternalScalerClient::new(endpoint.connect().await.unwrap())
}

fn scaled_object(namespace: &str) -> ScaledObjectRef {
    let metadata = [("imagegen", "turbo"), ("scalerAddress", "s:9090")];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned()));
    ScaledObjectRef { name: "turbo".into(), namespace: namespace.into(), scaler_metadata: metadata.into() }
}

fn metrics(name: &str) -> GetMetricsRequest {
    GetMetricsRequest { scaled_object_ref: Some(scaled_object("studio")), metric_name: name.into() }
}

#[tokio::test]
async fn keda_reads_target_total_and_activity() {
    let workers = Workers::default();
    let mut keda = scaler(workers.clone(), CancellationToken::new()).await;
    *workers.lock().unwrap() = vec![ready("p", busy(0.5, 0.0)), ready("q", busy(0.1, 40.0))];
    let spec = keda.get_metric_spec(scaled_object("studio")).await.unwrap().into_inner().metric_specs;
    assert_eq!((spec[0].metric_name.as_str(), spec[0].target_size_float), ("pressure_total", 0.75));
    let values = keda.get_metrics(metrics("pressure_total")).await.unwrap().into_inner().metric_values;
    assert_eq!((values.len(), values[0].metric_value_float), (1, 2.0));
    assert!(keda.is_active(scaled_object("studio")).await.unwrap().into_inner().result);

    let code = |result: Result<Response<GetMetricsResponse>, Status>| result.unwrap_err().code();
    assert_eq!(code(keda.get_metrics(metrics("other")).await), Code::InvalidArgument);
    workers.lock().unwrap().clear();
    assert_eq!(code(keda.get_metrics(metrics("pressure_total")).await), Code::Unavailable);
    let elsewhere = keda.is_active(scaled_object("elsewhere")).await.unwrap_err();
    assert_eq!(elsewhere.code(), Code::NotFound, "an ImageGen of another namespace is none of this ScaledObject's");
}

#[tokio::test]
async fn a_stream_says_every_change_and_ends_cleanly_at_the_stop() {
    let workers: Workers = Arc::new(Mutex::new(vec![ready("p", idle())]));
    let stop = CancellationToken::new();
    let mut keda = scaler(workers.clone(), stop.clone()).await;
    let mut stream = keda.stream_is_active(scaled_object("studio")).await.unwrap().into_inner();
    assert!(!stream.message().await.unwrap().unwrap().result);
    *workers.lock().unwrap() = vec![ready("p", busy(0.5, 0.0))];
    assert!(stream.message().await.unwrap().unwrap().result);
    *workers.lock().unwrap() = vec![ready("p", idle())];
    assert!(!stream.message().await.unwrap().unwrap().result);
    stop.cancel();
    assert!(stream.message().await.unwrap().is_none(), "an end without an error");
}
