//! Against a worker's admin port in this process, with real certificates of the operator's own authority.

use std::{pin::Pin, time::Duration};

use futures::Stream;
use imagegen_proto::v1::{
    AllocatorSnapshotReply, AllocatorSnapshotRequest, DrainReply, DrainRequest, ResumeReply, ResumeRequest, TrimReply,
    TrimRequest, WatchReportRequest, WorkerReport, WorkerState,
    admin_service_server::{AdminService, AdminServiceServer},
};
use jiff::Timestamp;
use rstest::rstest;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_stream::{
    StreamExt as _,
    wrappers::{TcpListenerStream, WatchStream},
};
use tonic::{
    Request, Response, Status,
    transport::{Certificate, Server, ServerTlsConfig},
};

use super::*;
use crate::{
    autoscale::fleet::{STALE_AFTER, Standing},
    pki::{
        OPERATOR_NAME,
        cert::{Authority, Usage, new_ca},
        worker_name,
    },
};

/// Longer than any wait of a test that passes.
const PATIENCE: Duration = Duration::from_secs(30);

fn authority() -> Authority {
    Authority::new(new_ca(None, Timestamp::now()).unwrap(), &[]).unwrap()
}

fn identity(authority: &Authority) -> Arc<Identity> {
    let leaf = authority.issue(OPERATOR_NAME, Usage::Client, Timestamp::now()).unwrap();
    Arc::new(Identity::new(leaf, authority.bundle().to_owned()))
}

fn report(pressure: f64) -> WorkerReport {
    WorkerReport { state: WorkerState::Serving.into(), has_capacity: true, pressure, ..WorkerReport::default() }
}

/// A worker that says what it is told to say.
#[derive(Clone)]
struct Scripted(watch::Receiver<WorkerReport>);

#[tonic::async_trait]
impl AdminService for Scripted {
    type WatchReportStream = Pin<Box<dyn Stream<Item = Result<WorkerReport, Status>> + Send>>;

    async fn watch_report(&self, _: Request<WatchReportRequest>) -> Result<Response<Self::WatchReportStream>, Status> {
        Ok(Response::new(Box::pin(WatchStream::new(self.0.clone()).map(Ok))))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainReply>, Status> {
        Err(Status::failed_precondition(request.into_inner().id))
    }

    async fn resume(&self, _: Request<ResumeRequest>) -> Result<Response<ResumeReply>, Status> {
        Ok(Response::new(ResumeReply {}))
    }

    async fn trim(&self, _: Request<TrimRequest>) -> Result<Response<TrimReply>, Status> {
        Err(Status::unimplemented("not part of this script"))
    }

    async fn allocator_snapshot(
        &self,
        _: Request<AllocatorSnapshotRequest>,
    ) -> Result<Response<AllocatorSnapshotReply>, Status> {
        Err(Status::unimplemented("not part of this script"))
    }
}

struct World {
    reports: Reports,
    target: Target,
    identity: watch::Sender<Option<Arc<Identity>>>,
    task: tokio::task::JoinHandle<()>,
    stop: CancellationToken,
}

impl World {
    /// Streams from `address`, as the pod `turbo-1` of the ImageGen `images/turbo`.
    fn new(address: SocketAddr, identity: Arc<Identity>) -> Self {
        let (reports, stop) = (Reports::default(), CancellationToken::new());
        let key: Key = ("images".into(), "turbo".into());
        let target = Target { imagegen: key.clone(), pod: "turbo-1".into(), uid: Some("u1".into()), address };
        {
            let mut state = reports.state();
            let link = Link { target: target.clone(), report: None, channel: None, stop: stop.clone() };
            state.links.insert(("images".into(), "turbo-1".into()), link);
            state.fleets.insert(key, vec![Arc::new(ready_pod("turbo-1"))]);
        }
        let (sender, receiver) = watch::channel(Some(identity));
        let task = tokio::spawn(stream::hold(reports.clone(), target.clone(), receiver, stop.clone()));
        Self { reports, target, identity: sender, task, stop }
    }

    /// Waits for a report with this pressure.
    async fn hears(&self, pressure: f64) {
        let heard = async {
            loop {
                self.reports.changed().await;
                let fleet = self.reports.fleet("images", "turbo", Moment::now());
                if fleet[0].seen.as_ref().is_some_and(|seen| (seen.report.pressure - pressure).abs() < 1e-9) {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, heard).await.expect("the report comes");
    }
}

fn ready_pod(name: &str) -> Pod {
    let time = Timestamp::now().to_string();
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "images", "uid": "u1", "labels": {NAME_LABEL: "turbo"}},
        "status": {"phase": "Running", "podIP": "127.0.0.1", "conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": time},
            {"type": "Ready", "status": "True", "lastTransitionTime": time},
        ]},
    }))
    .unwrap()
}

struct AdminPort {
    address: SocketAddr,
    say: watch::Sender<WorkerReport>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
}

impl AdminPort {
    async fn open(address: &str, authority: &Authority, name: &str) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let leaf = authority.issue(name, Usage::Server, Timestamp::now()).unwrap();
        let tls = ServerTlsConfig::new()
            .identity(tonic::transport::Identity::from_pem(leaf.cert, leaf.key))
            .client_ca_root(Certificate::from_pem(authority.bundle()));
        let (say, said) = watch::channel(report(0.5));
        let stop = CancellationToken::new();
        let server = Server::builder().tls_config(tls).unwrap().add_service(AdminServiceServer::new(Scripted(said)));
        let ended = stop.clone().cancelled_owned();
        let incoming = TcpListenerStream::new(listener);
        let task = tokio::spawn(async move {
            // Not graceful: what a crash looks like.
            tokio::select! {
                served = server.serve_with_incoming(incoming) => served,
                () = ended => Ok(()),
            }
        });
        Self { address, say, stop, task }
    }

    async fn close(self) -> SocketAddr {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
        self.address
    }
}

#[tokio::test]
async fn reports_come_with_their_age_and_outlive_a_connection() {
    let authority = authority();
    let name = worker_name("turbo", "images");
    let port = AdminPort::open("127.0.0.1:0", &authority, &name).await;
    let world = World::new(port.address, identity(&authority));
    world.hears(0.5).await;
    port.say.send_replace(report(0.9));
    world.hears(0.9).await;
    assert!(world.reports.admin("images", "turbo-1").is_some());

    let now = Moment::now();
    let later = Moment { monotonic: now.monotonic + STALE_AFTER + Duration::from_secs(1), ..now };
    assert!(world.reports.fleet("images", "turbo", now)[0].report().is_some());
    assert_eq!(world.reports.fleet("images", "turbo", now)[0].standing, Standing::Ready);
    assert!(world.reports.fleet("images", "turbo", later)[0].report().is_none(), "a stale report says nothing");

    // The pod's container restarts: the address is the same.
    let address = port.close().await;
    let port = AdminPort::open(&address.to_string(), &authority, &name).await;
    port.say.send_replace(report(0.1));
    world.hears(0.1).await;

    world.stop.cancel();
    world.task.await.unwrap();
    assert_eq!(world.reports.open_streams().get(), 0);
    assert!(world.reports.admin("images", "turbo-1").is_none());
}

#[tokio::test]
async fn a_drain_goes_through_the_same_channel() {
    let authority = authority();
    let port = AdminPort::open("127.0.0.1:0", &authority, &worker_name("turbo", "images")).await;
    let world = World::new(port.address, identity(&authority));
    world.hears(0.5).await;
    let mut admin = world.reports.admin("images", "turbo-1").unwrap();
    let answer = admin.drain(DrainRequest { id: "d1".into(), timeout_seconds: 1.0, exit: false }).await.unwrap_err();
    assert_eq!(answer.message(), "d1");
    admin.resume(ResumeRequest { id: "d1".into() }).await.unwrap();
}

#[rstest]
#[case::another_imagegen("other.images.imagegen.internal")]
#[case::the_operator(OPERATOR_NAME)]
#[tokio::test]
async fn a_worker_with_a_certificate_for_another_name_is_not_believed(#[case] name: &str) {
    let authority = authority();
    let port = AdminPort::open("127.0.0.1:0", &authority, name).await;
    let world = World::new(port.address, identity(&authority));
    let mut heard = false;
    let ended = stream::once(&world.reports, &world.target, &identity(&authority), &mut heard).await;
    assert!(!heard);
    assert!(ended.to_string().contains("not valid for name"), "{ended}");
}

#[tokio::test]
async fn a_new_certificate_is_used_for_the_next_connection() {
    let (old, new) = (authority(), authority());
    let name = worker_name("turbo", "images");
    let port = AdminPort::open("127.0.0.1:0", &old, &name).await;
    let world = World::new(port.address, identity(&old));
    world.hears(0.5).await;

    let address = port.close().await;
    world.identity.send_replace(Some(identity(&new)));
    let port = AdminPort::open(&address.to_string(), &new, &name).await;
    port.say.send_replace(report(0.7));
    world.hears(0.7).await;
}

#[tokio::test]
async fn pods_come_and_go() {
    let (reports, stop, mut ours) = (Reports::default(), CancellationToken::new(), HashSet::new());
    let fresh = reports.update(vec![Arc::new(ready_pod("a")), Arc::new(ready_pod("b"))], &mut ours, &stop);
    assert_eq!(fresh.len(), 2);
    assert_eq!(reports.changed().await.len(), 1);
    assert_eq!(reports.fleet("images", "turbo", Moment::now()).len(), 2);

    let mut moved = ready_pod("a");
    moved.status.as_mut().unwrap().pod_ip = Some("127.0.0.2".into());
    moved.metadata.resource_version = Some("2".into());
    let again = reports.update(vec![Arc::new(moved), Arc::new(ready_pod("b"))], &mut ours, &stop);
    assert_eq!(again.iter().map(|(target, _)| target.pod.as_str()).collect::<Vec<_>>(), ["a"]);
    let old = fresh.iter().find(|(target, _)| target.pod == "a").unwrap();
    assert!(old.1.is_cancelled(), "the stream to the old address ends");

    assert!(reports.update(Vec::new(), &mut ours, &stop).is_empty());
    assert!(reports.fleet("images", "turbo", Moment::now()).is_empty());
    assert!(again[0].1.is_cancelled());
    assert_eq!(reports.state().links.len(), 0);
}
