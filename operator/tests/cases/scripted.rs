//! A worker's admin port that says what a test tells it to say, behind a pod that a test makes.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex},
};

use futures::Stream;
use imagegen_proto::v1::{
    AllocatorSnapshotReply, AllocatorSnapshotRequest, DrainReply, DrainRequest, ResumeReply, ResumeRequest, TrimReply,
    TrimRequest, WatchReportRequest, WorkerReport, WorkerState,
    admin_service_server::{AdminService, AdminServiceServer},
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Secret, ServiceAccount};
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::{net::TcpListener, sync::watch, task::AbortHandle};
use tokio_stream::{
    StreamExt as _,
    wrappers::{TcpListenerStream, WatchStream},
};
use tonic::{
    Request, Response, Status,
    transport::{Certificate, Identity, Server, ServerTlsConfig},
};

use super::World;

/// A ready pod and its worker. The worker ends when dropped; the pod stays.
pub(crate) struct ScriptedWorker {
    /// What the worker says.
    pub(crate) says: Arc<watch::Sender<WorkerReport>>,
    /// What it was told: `drain` or `resume`, and the name of the drain.
    pub(crate) told: Arc<Mutex<Vec<(&'static str, String)>>>,
    server: AbortHandle,
}

impl Drop for ScriptedWorker {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl ScriptedWorker {
    /// A worker of the ImageGen `turbo`, on a loopback address of its own: the admin port is the same for all.
    pub(crate) async fn start(world: &World, pod: &str, address: &str, report: WorkerReport) -> Self {
        let secret = world.until::<Secret>("turbo-admin-tls", "there", |_| true).await.data.unwrap();
        let part = |name: &str| secret[name].0.clone();
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(part("tls.crt"), part("tls.key")))
            .client_ca_root(Certificate::from_pem(part("ca.crt")));
        let says = Arc::new(watch::channel(report).0);
        let told = Arc::default();
        let service = AdminServiceServer::new(Script { says: says.clone(), told: Arc::clone(&told) });
        let listener = TcpListener::bind((address, 8501)).await.unwrap();
        let server = Server::builder().tls_config(tls).unwrap().add_service(service);
        let served = tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        make_pod(world, pod, address).await;
        Self { says, told, server: served.abort_handle() }
    }

    pub(crate) fn say(&self, report: WorkerReport) {
        self.says.send_replace(report);
    }
}

async fn make_pod(world: &World, name: &str, address: &str) {
    // No controller makes it here, and the API server refuses pods without.
    let account: ServiceAccount = serde_json::from_value(json!({"metadata": {"name": "default"}})).unwrap();
    let _ = world.api::<ServiceAccount>().create(&PostParams::default(), &account).await;
    let labels: BTreeMap<&str, &str> =
        [("imagegen.dev/name", "turbo"), ("app.kubernetes.io/managed-by", "imagegen-operator")].into();
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {"containers": [{"name": "worker", "image": "registry.invalid/w:1"}], "nodeName": "node"},
    }))
    .unwrap();
    world.api::<Pod>().create(&PostParams::default(), &pod).await.unwrap();
    let now = Timestamp::now().strftime("%FT%TZ").to_string();
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": now});
    let status = json!({"status": {
        "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
        "conditions": [condition("PodScheduled"), condition("Ready")],
    }});
    world.api::<Pod>().patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

/// A worker that serves and has nothing to do.
pub(crate) fn idle() -> WorkerReport {
    WorkerReport { state: WorkerState::Serving.into(), has_capacity: true, ..WorkerReport::default() }
}

/// A worker with a running batch and with this much work.
pub(crate) fn busy(memory_pressure: f64, wait_seconds: f64) -> WorkerReport {
    let queued = u32::from(wait_seconds > 0.0);
    let pressure = memory_pressure.max(0.75 * wait_seconds / 20.0);
    WorkerReport {
        running: 1,
        queued,
        memory_pressure,
        wait_seconds,
        backlog_seconds: wait_seconds,
        pressure,
        ..idle()
    }
}

struct Script {
    says: Arc<watch::Sender<WorkerReport>>,
    told: Arc<Mutex<Vec<(&'static str, String)>>>,
}

#[tonic::async_trait]
impl AdminService for Script {
    type WatchReportStream = Pin<Box<dyn Stream<Item = Result<WorkerReport, Status>> + Send>>;

    async fn watch_report(&self, _: Request<WatchReportRequest>) -> Result<Response<Self::WatchReportStream>, Status> {
        let says = self.says.subscribe();
        let again = futures::stream::unfold(says.clone(), async |says| {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            let report = says.borrow().clone();
            Some((report, says))
        });
        Ok(Response::new(Box::pin(WatchStream::new(says).merge(again).map(Ok))))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainReply>, Status> {
        let id = request.into_inner().id;
        self.told.lock().unwrap().push(("drain", id.clone()));
        // What runs ends at once.
        self.says.send_modify(|report| {
            report.state = WorkerState::Drained.into();
            report.drain_id = id;
        });
        Ok(Response::new(DrainReply::default()))
    }

    async fn resume(&self, request: Request<ResumeRequest>) -> Result<Response<ResumeReply>, Status> {
        let id = request.into_inner().id;
        self.told.lock().unwrap().push(("resume", id));
        self.says.send_modify(|report| {
            report.state = WorkerState::Serving.into();
            report.drain_id = String::new();
        });
        Ok(Response::new(ResumeReply::default()))
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
