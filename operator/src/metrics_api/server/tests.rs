//! The server over real TLS: who is let in, and what everybody else is told.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
};

use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use k8s_openapi::api::{authorization::v1::SubjectAccessReview, core::v1::ConfigMap};
use kube::Client;
use prometheus_client::registry::Registry;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rstest::rstest;
use rustls::{ClientConfig, RootCertStore, sign::CertifiedKey};
use rustls_pki_types::{PrivateKeyDer, ServerName, pem::PemObject as _};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    autoscale::samples::{busy, ready},
    fleets::Fleet,
    metrics_api::value,
    pki::{
        KeyedCert,
        cert::{Authority, Usage, new_ca},
        serving::{ServingCertificate, certified},
    },
    serving::Port,
};

const SERVICE: &str = "imagegen-operator.imagegen-system.svc";
const VALUES: &str =
    "/apis/custom.metrics.k8s.io/v1beta2/namespaces/studio/imagegens.imagegen.dev/turbo/pressure_total";
const ALLOWED: &str = "system:serviceaccount:kube-system:horizontal-pod-autoscaler";

/// An authority as a cluster has one for its front proxy.
struct Signer {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Signer {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::from_ca_cert_pem(&pem, key).unwrap(), pem }
    }

    fn client(&self, common_name: &str) -> KeyedCert {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, common_name);
        let key = KeyPair::generate().unwrap();
        KeyedCert { cert: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }
}

/// What the cluster says, and a server that believes it.
struct World {
    front_proxy: Signer,
    publish_front_proxy: watch::Sender<Option<Arc<FrontProxy>>>,
    publish_certificate: watch::Sender<Option<Arc<CertifiedKey>>>,
    authority: Authority,
    address: SocketAddr,
    reviews: Arc<AtomicUsize>,
    stop: CancellationToken,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn config(front_proxy: &Signer) -> FrontProxy {
    let entries = [
        ("requestheader-client-ca-file", front_proxy.pem.as_str()),
        ("requestheader-allowed-names", r#"["front-proxy-client"]"#),
        ("requestheader-username-headers", r#"["X-Remote-User"]"#),
        ("requestheader-group-headers", r#"["X-Remote-Group"]"#),
    ];
    let data = entries.map(|(key, value)| (key.to_owned(), value.to_owned()));
    FrontProxy::read(&ConfigMap { data: Some(data.into()), ..ConfigMap::default() }).unwrap()
}

/// An API server that knows nothing but who may read metrics.
fn authorizer(reviews: Arc<AtomicUsize>) -> Client {
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        reviews.fetch_add(1, Ordering::Relaxed);
        async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let mut review: SubjectAccessReview = serde_json::from_slice(&body).unwrap();
            let asked = review.spec.resource_attributes.clone();
            let metric = asked.as_ref().and_then(|asked| asked.subresource.clone());
            let path = review.spec.non_resource_attributes.is_some();
            let allowed = review.spec.user.as_deref() == Some(ALLOWED) && (path || metric.is_some());
            review.status = serde_json::from_value(json!({"allowed": allowed})).unwrap();
            let body = serde_json::to_vec(&review).unwrap();
            Ok::<_, std::convert::Infallible>(Response::new(kube::client::Body::from(body)))
        }
    });
    Client::new(service, "default")
}

impl World {
    async fn new() -> Self {
        let front_proxy = Signer::new();
        let authority = Authority::new(new_ca(Some(SERVICE), Timestamp::now()).unwrap(), &[]).unwrap();
        let leaf = authority.issue(SERVICE, Usage::Serving, Timestamp::now()).unwrap();
        let (publish_certificate, _) = watch::channel(Some(Arc::new(certified(&leaf).unwrap())));
        let certificate = ServingCertificate::new(&publish_certificate);
        let (publish_front_proxy, read) = watch::channel(Some(Arc::new(config(&front_proxy))));
        let reviews = Arc::new(AtomicUsize::new(0));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let tls = certificate.tls(Some(AnyClient::verifier()), &[b"h2", b"http/1.1"]).unwrap();
        let port = Port { name: "test", listener, tls: Arc::new(tls), stop: stop.clone() };
        let fleet = Fleet {
            namespace: "studio".into(),
            name: "turbo".into(),
            labels: BTreeMap::new(),
            mode: crate::crd::AutoscalingMode::HorizontalPodAutoscaler,
            targets: crate::autoscale::samples::TARGETS,
            max_step: 4,
            replicas: 1,
            workers: vec![ready("p", busy(0.5, 0.0))],
            pod_labels: BTreeMap::new(),
        };
        let api = MetricsApi {
            front_proxy: read,
            access: Arc::new(Access::new(authorizer(reviews.clone()))),
            values: Arc::new(move |query| value::select(std::slice::from_ref(&fleet), query)),
            metrics: Metrics::register(&mut Registry::default()),
        };
        tokio::task::spawn(port.serve(move |peer, request| api.clone().answer(peer, request)));
        Self { front_proxy, publish_front_proxy, publish_certificate, authority, address, reviews, stop }
    }

    /// Asks as a client with this certificate, and returns the status code and the body.
    async fn ask(&self, identity: Option<&KeyedCert>, path: &str, headers: &[(&str, &str)]) -> (u16, Value) {
        self.try_ask(self.authority.bundle(), identity, path, headers).await.unwrap()
    }

    async fn try_ask(
        &self,
        trusted: &str,
        identity: Option<&KeyedCert>,
        path: &str,
        headers: &[(&str, &str)],
    ) -> std::io::Result<(u16, Value)> {
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(trusted.as_bytes()) {
            roots.add(authority.unwrap()).unwrap();
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(leaf) => {
                let chain = vec![CertificateDer::from_pem_slice(leaf.cert.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        let stream = TcpStream::connect(self.address).await?;
        let stream =
            TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(SERVICE).unwrap(), stream).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::task::spawn(connection);
        let mut request = Request::get(path).header("host", SERVICE);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        Ok((status, serde_json::from_slice(&body).unwrap()))
    }

    async fn ask_as(&self, user: &str, path: &str) -> (u16, Value) {
        let proxy = self.front_proxy.client("front-proxy-client");
        self.ask(Some(&proxy), path, &[("x-remote-user", user), ("x-remote-group", "system:authenticated")]).await
    }
}

fn is_status(body: &Value, code: u16, reason: &str) {
    assert_eq!((body["kind"].as_str(), body["apiVersion"].as_str()), (Some("Status"), Some("v1")), "{body}");
    assert_eq!((body["code"].as_u64(), body["reason"].as_str()), (Some(u64::from(code)), Some(reason)), "{body}");
}

#[tokio::test]
async fn the_api_server_reads_a_value_for_someone_who_may() {
    let world = World::new().await;
    let (code, body) = world.ask_as(ALLOWED, VALUES).await;
    assert_eq!((code, body["items"][0]["value"].as_str()), (200, Some("500m")), "{body}");
    let proxy = world.front_proxy.client("front-proxy-client");
    let table =
        [("x-remote-user", ALLOWED), ("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")];
    let (code, body) = world.ask(Some(&proxy), VALUES, &table).await;
    assert_eq!((code, body["kind"].as_str(), body["rows"][0]["cells"][2].as_str()), (200, Some("Table"), Some("500m")));
    for (path, kind) in [
        ("/apis", "APIGroupList"),
        ("/apis/custom.metrics.k8s.io", "APIGroup"),
        ("/apis/custom.metrics.k8s.io/v1beta2", "APIResourceList"),
    ] {
        let (code, body) = world.ask_as(ALLOWED, path).await;
        assert_eq!((code, body["kind"].as_str()), (200, Some(kind)));
    }
}

#[tokio::test]
async fn whoever_the_api_server_does_not_vouch_for_is_nobody() {
    let world = World::new().await;
    let stranger = Signer::new().client("front-proxy-client");
    let other_name = world.front_proxy.client("kubelet");
    let proxy = world.front_proxy.client("front-proxy-client");
    let claims = [("x-remote-user", ALLOWED), ("x-remote-group", "system:masters")];
    for (case, identity, headers) in [
        ("no certificate but a header", None, &claims[..]),
        ("a certificate of another authority", Some(&stranger), &claims[..]),
        ("a name that is not allowed", Some(&other_name), &claims[..]),
        ("no header", Some(&proxy), &[]),
    ] {
        for path in [VALUES, "/apis/custom.metrics.k8s.io/v1beta2", "/nothing"] {
            let (code, body) = world.ask(identity, path, headers).await;
            assert_eq!(code, 401, "{case} at {path}: {body}");
            is_status(&body, 401, "Unauthorized");
        }
    }
    assert_eq!(world.reviews.load(Ordering::Relaxed), 0, "nobody's rights were asked for");
    world.publish_front_proxy.send_replace(None);
    assert_eq!(world.ask(Some(&proxy), VALUES, &claims).await.0, 401, "before anything is known, nobody is known");
}

#[tokio::test]
async fn whoever_may_not_is_told_so() {
    let world = World::new().await;
    let (code, body) = world.ask_as("system:anonymous", VALUES).await;
    assert_eq!(code, 403);
    is_status(&body, 403, "Forbidden");
    let message = body["message"].as_str().unwrap();
    assert!(
        message.contains("system:anonymous") && message.contains("imagegens.imagegen.dev/pressure_total"),
        "{message}"
    );
    assert_eq!(world.ask_as("system:anonymous", "/apis/custom.metrics.k8s.io/v1beta2").await.0, 403);
}

#[rstest]
#[case::an_unknown_metric("imagegens.imagegen.dev/turbo/happiness")]
#[case::an_unknown_object("imagegens.imagegen.dev/other/pressure")]
#[case::an_unknown_resource("deployments.apps/turbo/pressure")]
#[tokio::test]
async fn what_is_not_there_is_a_status_object(#[case] rest: &str) {
    let world = World::new().await;
    let path = format!("/apis/custom.metrics.k8s.io/v1beta2/namespaces/studio/{rest}");
    let (code, body) = world.ask_as(ALLOWED, &path).await;
    assert_eq!(code, 404, "{body}");
    is_status(&body, 404, "NotFound");
    let elsewhere = VALUES.replace("studio", "elsewhere");
    is_status(&world.ask_as(ALLOWED, &elsewhere).await.1, 404, "NotFound");
}

#[tokio::test]
async fn an_answer_of_the_authorizer_counts_for_a_while() {
    let world = World::new().await;
    for _ in 0..5 {
        assert_eq!(world.ask_as(ALLOWED, VALUES).await.0, 200);
    }
    assert_eq!(world.reviews.load(Ordering::Relaxed), 1);
    assert_eq!(world.ask_as(ALLOWED, &VALUES.replace("pressure_total", "pressure")).await.0, 200);
    assert_eq!(world.reviews.load(Ordering::Relaxed), 2, "another metric is another question");
}

#[tokio::test]
async fn the_front_proxys_authority_is_followed() {
    let world = World::new().await;
    assert_eq!(world.ask_as(ALLOWED, VALUES).await.0, 200);
    let next = Signer::new();
    world.publish_front_proxy.send_replace(Some(Arc::new(config(&next))));
    assert_eq!(world.ask_as(ALLOWED, VALUES).await.0, 401, "the old one no longer counts");
    let proxy = next.client("front-proxy-client");
    assert_eq!(world.ask(Some(&proxy), VALUES, &[("x-remote-user", ALLOWED)]).await.0, 200);
}

#[tokio::test]
async fn no_read_fails_while_the_authority_is_rotated_under_load() {
    let world = World::new().await;
    let proxy = world.front_proxy.client("front-proxy-client");
    let headers = [("x-remote-user", ALLOWED)];
    let next = Authority::new(new_ca(Some(SERVICE), Timestamp::now()).unwrap(), &[]).unwrap();
    // The APIService gets both authorities before the new one signs, and loses the old one after that.
    let both = format!("{}{}", world.authority.bundle(), next.bundle());
    let (rotated, reads) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let readers = futures::future::join_all((0..4).map(async |_| {
        for _ in 0..25 {
            let trusted = if rotated.load(Ordering::Relaxed) < 2 { both.as_str() } else { next.bundle() };
            assert_eq!(world.try_ask(trusted, Some(&proxy), VALUES, &headers).await.unwrap().0, 200);
            reads.fetch_add(1, Ordering::Relaxed);
        }
    }));
    let rotation = async {
        for step in 0..3 {
            while reads.load(Ordering::Relaxed) < 20 * (step + 1) {
                tokio::task::yield_now().await;
            }
            let signer = if step == 0 { &world.authority } else { &next };
            let leaf = signer.issue(SERVICE, Usage::Serving, Timestamp::now()).unwrap();
            world.publish_certificate.send_replace(Some(Arc::new(certified(&leaf).unwrap())));
            rotated.store(step, Ordering::Relaxed);
        }
    };
    tokio::join!(readers, rotation);
    world.try_ask(world.authority.bundle(), Some(&proxy), VALUES, &headers).await.unwrap_err();
}
