//! A node for the pods of one ImageGen: they run at once, and their admin ports report what a test says.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    time::Duration,
};

use futures::Stream;
use imagegen_proto::v1::{
    AllocatorSnapshotReply, AllocatorSnapshotRequest, DrainReply, DrainRequest, ResumeReply, ResumeRequest, TrimReply,
    TrimRequest, WatchReportRequest, WorkerReport, WorkerState,
    admin_service_server::{AdminService, AdminServiceServer},
};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;
use tokio::{sync::watch, task::JoinHandle, time};
use tonic::{
    Request, Response, Status,
    transport::{Certificate, Identity, Server, ServerTlsConfig},
};

const ADMIN_PORT: u16 = 8501;

/// What all workers together have to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Work {
    /// This much, shared evenly.
    Seconds(f64),
    /// Nobody says anything.
    Silence,
}

/// Addresses on loopback that no other test has.
pub(crate) fn network() -> impl Fn(u8) -> Ipv4Addr + Clone {
    let (a, b) = (rand::random_range(1..=254), rand::random_range(1..=254));
    move |host| Ipv4Addr::new(127, a, b, host)
}

/// A running node, gone when dropped.
pub(crate) struct Node {
    work: watch::Sender<Work>,
    task: JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Node {
    /// Runs the pods of ImageGen `name` at the addresses of `network` from 10 on.
    pub(crate) fn start(
        client: Client,
        namespace: &str,
        name: &str,
        network: impl Fn(u8) -> Ipv4Addr + Send + 'static,
    ) -> Self {
        let (work, read) = watch::channel(Work::Seconds(0.0));
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        Self { work, task: tokio::spawn(run(client, namespace, name, network, read)) }
    }

    /// Changes what there is to do.
    pub(crate) fn work(&self, work: Work) {
        self.work.send_replace(work);
    }
}

async fn run(
    client: Client,
    namespace: String,
    name: String,
    network: impl Fn(u8) -> Ipv4Addr,
    work: watch::Receiver<Work>,
) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let secrets: Api<Secret> = Api::namespaced(client, &namespace);
    let (share, shares) = watch::channel(1);
    let mut workers: HashMap<String, JoinHandle<()>> = HashMap::new();
    let mut hosts = (10..=250).cycle();
    let mine = ListParams::default().labels(&format!("imagegen.dev/name={name}"));
    loop {
        time::sleep(Duration::from_millis(100)).await;
        let Ok(list) = pods.list(&mine).await else { continue };
        let alive: Vec<&Pod> = list.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect();
        share.send_replace(alive.len().max(1));
        workers.retain(|pod, worker| {
            let kept = alive.iter().any(|alive| alive.name_any() == *pod);
            if !kept {
                worker.abort();
            }
            kept
        });
        for pod in alive.iter().map(|pod| pod.name_any()) {
            if workers.contains_key(&pod) {
                continue;
            }
            let Ok(secret) = secrets.get(&format!("{name}-admin-tls")).await else { continue };
            let address = IpAddr::V4(network(hosts.next().unwrap()));
            let worker = Worker { work: work.clone(), shares: shares.clone(), drain_id: watch::Sender::default() };
            workers.insert(pod.clone(), tokio::spawn(worker.serve(SocketAddr::new(address, ADMIN_PORT), secret)));
            let condition = |kind: &str| json!({"type": kind, "status": "True"});
            let status = json!({"status": {
                "phase": "Running", "podIP": address.to_string(), "podIPs": [{"ip": address.to_string()}],
                "conditions": [condition("PodScheduled"), condition("Initialized"), condition("ContainersReady"), condition("Ready")],
                "containerStatuses": [{
                    "name": "worker", "image": "i", "imageID": "i", "containerID": "c://1", "ready": true, "started": true,
                    "restartCount": 0, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
                }],
            }});
            pods.patch_status(&pod, &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
        }
    }
}

#[derive(Clone)]
struct Worker {
    work: watch::Receiver<Work>,
    shares: watch::Receiver<usize>,
    /// Empty while it is not told to drain. What it has to do is done at once then.
    drain_id: watch::Sender<String>,
}

impl Worker {
    async fn serve(self, address: SocketAddr, secret: Secret) {
        let data = secret.data.unwrap();
        let part = |name: &str| data[name].0.clone();
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(part("tls.crt"), part("tls.key")))
            .client_ca_root(Certificate::from_pem(part("ca.crt")));
        let mut server = Server::builder().tls_config(tls).unwrap();
        server.add_service(AdminServiceServer::new(self)).serve(address).await.unwrap();
    }

    fn report(&self) -> Option<WorkerReport> {
        let Work::Seconds(total) = *self.work.borrow() else { return None };
        let wait_seconds = total / *self.shares.borrow() as f64;
        let busy = u32::from(total > 0.0);
        let drain_id = self.drain_id.borrow().clone();
        if !drain_id.is_empty() {
            return Some(WorkerReport { state: WorkerState::Drained.into(), drain_id, ..WorkerReport::default() });
        }
        Some(WorkerReport {
            state: WorkerState::Serving.into(),
            has_capacity: true,
            running: busy,
            queued: busy,
            memory_pressure: f64::from(busy) * 0.4,
            wait_seconds,
            backlog_seconds: wait_seconds,
            ..WorkerReport::default()
        })
    }
}

type Reports = Pin<Box<dyn Stream<Item = Result<WorkerReport, Status>> + Send>>;

#[tonic::async_trait]
impl AdminService for Worker {
    type WatchReportStream = Reports;

    async fn watch_report(&self, _request: Request<WatchReportRequest>) -> Result<Response<Reports>, Status> {
        let ticks = time::interval(Duration::from_millis(200));
        let reports = futures::stream::unfold((self.clone(), ticks), async |(worker, mut ticks)| {
            loop {
                ticks.tick().await;
                if let Some(report) = worker.report() {
                    return Some((Ok(report), (worker, ticks)));
                }
            }
        });
        Ok(Response::new(Box::pin(reports)))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainReply>, Status> {
        self.drain_id.send_replace(request.into_inner().id);
        Ok(Response::new(DrainReply::default()))
    }

    async fn resume(&self, _request: Request<ResumeRequest>) -> Result<Response<ResumeReply>, Status> {
        self.drain_id.send_replace(String::new());
        Ok(Response::new(ResumeReply::default()))
    }

    async fn trim(&self, _request: Request<TrimRequest>) -> Result<Response<TrimReply>, Status> {
        Err(Status::unimplemented("there is no allocator"))
    }

    async fn allocator_snapshot(
        &self,
        _request: Request<AllocatorSnapshotRequest>,
    ) -> Result<Response<AllocatorSnapshotReply>, Status> {
        Err(Status::unimplemented("there is no allocator"))
    }
}
