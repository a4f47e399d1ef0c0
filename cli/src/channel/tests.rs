//! Load follows the addresses of a name.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use clap::Parser as _;
use futures::{Stream, StreamExt as _, stream};
use imagegen_proto::v1::{
    EstimateReply, Finished, GenerateEvent, GenerateRequest, GetModelRequest, Image, Model,
    generate_event::Event,
    image_service_server::{ImageService, ImageServiceServer},
};
use tokio::{net::TcpListener, sync::oneshot};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use super::*;
use crate::{
    args::{Cli, Command, Job},
    credentials::Bearer,
    generate,
    session::{Session, Trouble},
};

/// Nothing here takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Streams at a time on the one channel.
const STREAMS: usize = 16;

/// What all workers of a test saw.
#[derive(Default)]
struct Log {
    /// Seed and attempts of each request, by its id.
    requests: Mutex<HashMap<String, (Option<u32>, usize)>>,
    /// A repeat came with another seed.
    is_mixed_up: AtomicBool,
}

/// A worker that makes empty pictures and can be told to go.
struct Worker {
    address: SocketAddr,
    served: Arc<AtomicUsize>,
    drains: Arc<AtomicBool>,
    stop: Mutex<Option<oneshot::Sender<()>>>,
}

struct Service {
    served: Arc<AtomicUsize>,
    drains: Arc<AtomicBool>,
    log: Arc<Log>,
}

impl Worker {
    async fn start(log: &Arc<Log>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (served, drains) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let service = Service { served: served.clone(), drains: drains.clone(), log: log.clone() };
        let (stop, stopped) = oneshot::channel::<()>();
        let server = Server::builder().add_service(ImageServiceServer::new(service));
        tokio::spawn(server.serve_with_incoming_shutdown(TcpListenerStream::new(listener), async {
            let _ = stopped.await;
        }));
        Self { address, served, drains, stop: Mutex::new(Some(stop)) }
    }

    fn served(&self) -> usize {
        self.served.load(Ordering::SeqCst)
    }

    /// Refuses new calls, finishes what runs, says GOAWAY, and closes its port.
    fn drain(&self) {
        self.drains.store(true, Ordering::SeqCst);
        let _ = self.stop.lock().unwrap().take().unwrap().send(());
    }
}

type Events = Pin<Box<dyn Stream<Item = Result<GenerateEvent, Status>> + Send>>;

#[tonic::async_trait]
impl ImageService for Service {
    type GenerateStream = Events;

    async fn generate(&self, call: Request<GenerateRequest>) -> Result<Response<Events>, Status> {
        let GenerateRequest { request_id, seed, .. } = call.into_inner();
        let mut requests = self.log.requests.lock().unwrap();
        let (first, attempts) = requests.entry(request_id).or_insert((seed, 0));
        *attempts += 1;
        if *first != seed || seed.is_none() {
            self.log.is_mixed_up.store(true, Ordering::SeqCst);
        }
        drop(requests);
        if self.drains.load(Ordering::SeqCst) {
            return Err(Status::unavailable("draining"));
        }
        self.served.fetch_add(1, Ordering::SeqCst);
        let image = Image { mime: "image/png".into(), width: 64, height: 64, ..Image::default() };
        let events = [Event::Image(image), Event::Finished(Finished::default())];
        let events = events.map(|event| Ok(GenerateEvent { event: Some(event) }));
        // A step takes a moment, so that streams overlap.
        let work = stream::once(async { time::sleep(Duration::from_millis(5)).await })
            .flat_map(move |()| stream::iter(events.clone()));
        Ok(Response::new(work.boxed()))
    }

    async fn estimate(&self, _: Request<GenerateRequest>) -> Result<Response<EstimateReply>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn get_model(&self, _: Request<GetModelRequest>) -> Result<Response<Model>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

/// A name whose addresses a test changes.
#[derive(Clone, Default)]
struct Name(Arc<Mutex<BTreeSet<SocketAddr>>>);

impl Name {
    fn set(&self, workers: &[&Worker]) {
        *self.0.lock().unwrap() = workers.iter().map(|worker| worker.address).collect();
    }
}

/// `STREAMS` streams on one channel, each making one picture after the other until the test is over.
struct Load {
    tasks: JoinSet<()>,
    finished: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
    retried: Arc<AtomicUsize>,
    _resolver: JoinSet<()>,
}

impl Load {
    async fn start(name: &Name) -> Self {
        let name = name.clone();
        let lookup = move || std::future::ready(Ok(name.0.lock().unwrap().clone()));
        let endpoint: Endpoint = "http://workers:8500".parse().unwrap();
        let trust = Trust { ca_pem: None, server_name: None };
        let tracker = TaskTracker::new();
        let (channel, resolver) = connect_by(lookup, &endpoint, &trust, &tracker).await.unwrap();
        let (finished, over) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let retried = Arc::<AtomicUsize>::default();
        let mut tasks = JoinSet::new();
        for _ in 0..STREAMS {
            let (channel, finished, over, retried) = (channel.clone(), finished.clone(), over.clone(), retried.clone());
            tasks.spawn(async move {
                let folder = tempfile::tempdir().unwrap();
                while !over.load(Ordering::SeqCst) {
                    let channel = channel.clone();
                    let open = async |_: &mut _, _: &TaskTracker| Ok(session(channel));
                    let made = generate::make("an apple", &job(folder.path()), open).await.expect("no request fails");
                    retried.fetch_add(usize::from(made.attempts > 1), Ordering::SeqCst);
                    finished.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        Self { tasks, finished, over, retried, _resolver: resolver }
    }

    /// Waits for this many pictures more.
    async fn more(&self, count: usize) {
        let wanted = self.finished.load(Ordering::SeqCst) + count;
        eventually(|| self.finished.load(Ordering::SeqCst) >= wanted).await;
    }

    async fn end(mut self) -> usize {
        self.over.store(true, Ordering::SeqCst);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        self.retried.load(Ordering::SeqCst)
    }
}

fn session(channel: Channel) -> Session {
    Session {
        channel,
        bearer: Bearer::default(),
        peer: "workers".into(),
        trouble: Trouble::default(),
        background: JoinSet::new(),
    }
}

fn job(folder: &std::path::Path) -> Job {
    let output = folder.join("apple.png");
    let Command::Generate(args) =
        Cli::parse_from(["imagegen", "generate", "an apple", "--quiet", "--output", output.to_str().unwrap()]).command
    else {
        panic!("generate")
    };
    args.job
}

async fn eventually(holds: impl Fn() -> bool) {
    let mut ticks = time::interval(Duration::from_millis(5));
    let wait = async {
        while !holds() {
            ticks.tick().await;
        }
    };
    time::timeout(PATIENCE, wait).await.expect("it never happened");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_address_soon_gets_its_share() {
    let log = Arc::<Log>::default();
    let (first, second, newest) = (Worker::start(&log).await, Worker::start(&log).await, Worker::start(&log).await);
    let name = Name::default();
    name.set(&[&first, &second]);
    let load = Load::start(&name).await;
    load.more(100).await;
    assert_eq!(newest.served(), 0);

    name.set(&[&first, &second, &newest]);
    eventually(|| newest.served() > 0).await;
    let before = [&first, &second, &newest].map(Worker::served);
    load.more(600).await;
    let after = [&first, &second, &newest].map(Worker::served);
    let served: usize = after.iter().sum::<usize>() - before.iter().sum::<usize>();
    assert!((after[2] - before[2]) * 2 * 3 >= served, "{before:?} became {after:?}");
    load.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_fails_when_a_worker_drains_and_goes() {
    let log = Arc::<Log>::default();
    let (stays, goes) = (Worker::start(&log).await, Worker::start(&log).await);
    let name = Name::default();
    name.set(&[&stays, &goes]);
    let load = Load::start(&name).await;
    eventually(|| goes.served() > 20).await;

    // The name still has the address when the worker is gone already.
    goes.drain();
    load.more(100).await;
    name.set(&[&stays]);
    load.more(100).await;
    let retried = load.end().await;
    let repeats = log.requests.lock().unwrap().values().filter(|(_, attempts)| *attempts > 1).count();
    assert!(repeats <= retried, "{repeats} requests came again, {retried} were retried");
    assert!(!log.is_mixed_up.load(Ordering::SeqCst), "a repeat has the seed of the first attempt");
}

#[tokio::test]
async fn only_changed_addresses_are_told() {
    let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let (changes, mut told) = mpsc::channel(8);
    let mut known = BTreeSet::from([address(1), address(2)]);
    let peer = |_| Ok(Peer::from_static("http://x"));
    update(&mut known, BTreeSet::from([address(2), address(3)]), &changes, peer).await.unwrap();
    assert!(matches!(told.try_recv(), Ok(Change::Insert(added, _)) if added == address(3)));
    assert!(matches!(told.try_recv(), Ok(Change::Remove(gone)) if gone == address(1)));
    assert!(told.try_recv().is_err());
    assert_eq!(known, BTreeSet::from([address(2), address(3)]));
}
