//! TLS, tokens and the operator's port.

use std::{fs, path::Path, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use imagegen_proto::v1::{
    DrainRequest, GetModelRequest, ResumeRequest, WatchReportRequest, WorkerReport, WorkerState,
    admin_service_client::AdminServiceClient, image_service_client::ImageServiceClient,
};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::{
    Code, Request, Streaming,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::harness::{PATIENCE, Worker, apple, eventually, generate, listen, running};

/// The name that every server certificate here is for.
const NAME: &str = "turbo.default.imagegen.internal";

pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

pub(crate) struct Identity {
    certificate: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn issue(&self, purpose: ExtendedKeyUsagePurpose) -> Identity {
        let mut params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Identity { certificate, key: key.serialize_pem() }
    }

    fn server(&self) -> Identity {
        self.issue(ExtendedKeyUsagePurpose::ServerAuth)
    }

    pub(crate) fn client(&self) -> Identity {
        self.issue(ExtendedKeyUsagePurpose::ClientAuth)
    }
}

fn write(folder: &Path, identity: &Identity, authority: &Authority) {
    fs::write(folder.join("tls.crt"), &identity.certificate).unwrap();
    fs::write(folder.join("tls.key"), &identity.key).unwrap();
    fs::write(folder.join("ca.crt"), &authority.pem).unwrap();
}

/// A connection that trusts `authority`, and shows `identity`.
pub(crate) async fn connect(
    address: std::net::SocketAddr,
    authority: &Authority,
    identity: Option<&Identity>,
) -> Option<Channel> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(Identity { certificate, key }) => {
            let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let connector = tower::service_fn(move |_| {
        let connector = connector.clone();
        async move {
            let stream = TcpStream::connect(address).await?;
            let stream = connector.connect(ServerName::try_from(NAME).unwrap(), stream).await?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    let endpoint = Endpoint::from_static("http://worker").connect_timeout(PATIENCE);
    endpoint.connect_with_connector(connector).await.ok()
}

async fn answers(channel: Option<Channel>) -> bool {
    match channel {
        None => false,
        Some(channel) => ImageServiceClient::new(channel).get_model(GetModelRequest {}).await.is_ok(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_read_again_and_bad_ones_are_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (Authority::new(), Authority::new());
    write(folder.path(), &old.server(), &old);
    let worker = Worker::start("", &[&format!("--tls-dir={}", folder.path().display())]).await;
    let address = worker.addresses.public;
    let kept = connect(address, &old, None).await;
    eventually("it serves", || async { answers(kept.clone()).await }).await;
    assert!(connect(address, &new, None).await.is_none());

    fs::write(folder.path().join("tls.crt"), "half a certificate").unwrap();
    eventually("the error is counted", || async {
        worker.metric("imagegen_worker_reloads_total{result=\"error\"}").await >= 1.0
    })
    .await;
    assert!(answers(connect(address, &old, None).await).await);

    write(folder.path(), &new.server(), &new);
    eventually("the new certificate is shown", || async { answers(connect(address, &new, None).await).await }).await;
    assert!(connect(address, &old, None).await.is_none());
    assert!(answers(kept).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_text_to_a_tls_port_gets_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    write(folder.path(), &authority.server(), &authority);
    let worker = Worker::start("", &[&format!("--tls-dir={}", folder.path().display())]).await;
    let endpoint = Endpoint::from_shared(format!("http://{}", worker.addresses.public)).unwrap();
    let mut client = ImageServiceClient::new(endpoint.connect_lazy());
    assert!(client.get_model(GetModelRequest {}).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_asked_for_and_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    fs::write(&file, "old\n").unwrap();
    let worker = Worker::ready("", &[&format!("--token-file={}", file.display()), "--allow-insecure-token"]).await;
    let channel = worker.channel().await;
    let code = |token: Option<&str>| {
        let mut request = Request::new(GetModelRequest {});
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let mut client = ImageServiceClient::new(channel.clone());
        async move { client.get_model(request).await.map_or_else(|status| status.code(), |_| Code::Ok) }
    };
    assert_eq!(code(None).await, Code::Unauthenticated);
    assert_eq!(code(Some("new")).await, Code::Unauthenticated);
    assert_eq!(code(Some("old")).await, Code::Ok);
    let health = HealthClient::new(channel.clone()).check(HealthCheckRequest { service: String::new() }).await;
    assert!(health.is_ok(), "{health:?}");

    fs::write(&file, "new\n").unwrap();
    eventually("the new token is taken", || async { code(Some("new")).await == Code::Ok }).await;
    assert_eq!(code(Some("old")).await, Code::Unauthenticated);
}

pub(crate) async fn admin_worker(folder: &Path, script: &str) -> (Worker, Authority) {
    let authority = Authority::new();
    write(folder, &authority.server(), &authority);
    let worker = Worker::ready(script, &[&format!("--admin-tls-dir={}", folder.display())]).await;
    (worker, authority)
}

pub(crate) async fn next(reports: &mut Streaming<WorkerReport>, state: WorkerState) -> WorkerReport {
    let reached = async {
        loop {
            let report = reports.message().await.unwrap().unwrap();
            if report.state() == state {
                return report;
            }
        }
    };
    tokio::time::timeout(PATIENCE, reached).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_port_wants_a_certificate_of_its_authority() {
    let folder = tempfile::tempdir().unwrap();
    let (worker, authority) = admin_worker(folder.path(), "").await;
    let address = worker.addresses.admin.unwrap();
    let stranger = Authority::new();
    for identity in [None, Some(stranger.client()), Some(authority.server())] {
        // TLS 1.3 tells the client only with its first answer.
        let refused = match connect(address, &authority, identity.as_ref()).await {
            None => true,
            Some(channel) => AdminServiceClient::new(channel).watch_report(WatchReportRequest {}).await.is_err(),
        };
        assert!(refused);
    }
    let plain = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    assert!(AdminServiceClient::new(plain).watch_report(WatchReportRequest {}).await.is_err());
    let channel = connect(address, &authority, Some(&authority.client())).await.unwrap();
    assert!(AdminServiceClient::new(channel.clone()).watch_report(WatchReportRequest {}).await.is_ok());
    // Users' calls are not answered there.
    let status = ImageServiceClient::new(channel).get_model(GetModelRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_drains_and_resumes() {
    let folder = tempfile::tempdir().unwrap();
    let (worker, authority) = admin_worker(folder.path(), "step_seconds: 0.1").await;
    let channel = connect(worker.addresses.admin.unwrap(), &authority, Some(&authority.client())).await.unwrap();
    let mut admin = AdminServiceClient::new(channel);
    let mut reports = admin.watch_report(WatchReportRequest {}).await.unwrap().into_inner();
    next(&mut reports, WorkerState::Serving).await;
    let (mut client, connections) = worker.counting_client();
    let stream = running(&mut client, apple()).await;

    let drain = DrainRequest { id: "scale down 7".into(), ..DrainRequest::default() };
    let left = admin.drain(drain.clone()).await.unwrap().into_inner();
    assert_eq!((left.running, left.queued), (1, 0));
    let report = next(&mut reports, WorkerState::Draining).await;
    assert_eq!((report.drain_id.as_str(), report.running), ("scale down 7", 1));
    assert_eq!(listen(stream).await.unwrap().images.len(), 1);
    let report = next(&mut reports, WorkerState::Drained).await;
    assert_eq!((report.finished_total, report.running, report.queued), (1, 0, 0));
    // The connection from before the drain was told to go away; a call that meets its very end is cancelled.
    eventually("the worker itself refuses", || {
        let mut client = client.clone();
        async move { generate(&mut client, apple()).await.unwrap_err().code() == Code::Unavailable }
    })
    .await;
    assert_eq!(connections.load(std::sync::atomic::Ordering::Relaxed), 2);

    let other = admin.resume(ResumeRequest { id: "scale down 8".into() }).await.unwrap_err();
    assert_eq!(other.code(), Code::FailedPrecondition);
    admin.resume(ResumeRequest { id: drain.id.clone() }).await.unwrap();
    let report = next(&mut reports, WorkerState::Serving).await;
    assert_eq!((report.drain_id.as_str(), report.refused_total), ("", 1));
    generate(&mut client, apple()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_with_a_time_ends_what_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let (worker, authority) = admin_worker(folder.path(), "step_seconds: 0.1").await;
    let channel = connect(worker.addresses.admin.unwrap(), &authority, Some(&authority.client())).await.unwrap();
    let mut admin = AdminServiceClient::new(channel);
    let mut client = worker.client().await;
    let endless = imagegen_proto::v1::GenerateRequest { steps: Some(100), ..apple() };
    let stream = running(&mut client, endless).await;
    let timeout = Duration::from_millis(300);
    let drain = DrainRequest { id: "now".into(), timeout_seconds: timeout.as_secs_f64(), exit: false };
    admin.drain(drain).await.unwrap();
    assert_eq!(listen(stream).await.unwrap_err().code(), Code::Unavailable);
    let bad = admin.drain(DrainRequest::default()).await.unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument);
    worker.terminate().await;
    worker.ended().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recycle_drains_and_ends_the_process_well() {
    let folder = tempfile::tempdir().unwrap();
    let (worker, authority) = admin_worker(folder.path(), "step_seconds: 0.1").await;
    let channel = connect(worker.addresses.admin.unwrap(), &authority, Some(&authority.client())).await.unwrap();
    let mut admin = AdminServiceClient::new(channel);
    let mut client = worker.client().await;
    let stream = running(&mut client, apple()).await;
    let drain = DrainRequest { id: "recycle-7".into(), timeout_seconds: 60.0, exit: true };
    let left = admin.drain(drain.clone()).await.unwrap().into_inner();
    assert_eq!((left.running, left.queued), (1, 0));
    // Neither a repeat, nor another drain, nor a Resume, nor the kubelet's signal changes what was ordered.
    admin.drain(drain).await.unwrap();
    admin.drain(DrainRequest { id: "other".into(), ..DrainRequest::default() }).await.unwrap();
    let refused = admin.resume(ResumeRequest { id: "recycle-7".into() }).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let mut reports = admin.watch_report(WatchReportRequest {}).await.unwrap().into_inner();
    assert_eq!(next(&mut reports, WorkerState::Draining).await.drain_id, "recycle-7");
    worker.terminate().await;
    assert_eq!(listen(stream).await.unwrap().images.len(), 1);
    worker.ended().await.unwrap();
}
