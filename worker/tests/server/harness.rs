//! A worker on free ports of this machine, and clients for it.

use std::{
    fs,
    future::Future,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use clap::{CommandFactory as _, FromArgMatches as _};
use hyper_util::rt::TokioIo;
use imagegen_proto::v1::{
    Accepted, GenerateEvent, GenerateRequest, Image, Progress, generate_event::Event,
    image_service_client::ImageServiceClient,
};
use imagegen_worker::{
    cli::{Cli, Command},
    run::{self, Addresses, Host, ServeError},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time,
};
use tokio_stream::StreamExt as _;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

/// Nothing here takes this long unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How often files are looked at in tests.
const RELOAD_EVERY: Duration = Duration::from_millis(20);

pub(crate) struct Worker {
    pub(crate) addresses: Addresses,
    _folder: TempDir,
    terminations: mpsc::Sender<()>,
    ended: JoinHandle<Result<(), ServeError>>,
}

impl Worker {
    /// Listens, and maybe still loads.
    pub(crate) async fn start(script: &str, flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (addresses, terminations, ended) = serve(folder.path(), script, flags);
        let addresses = time::timeout(PATIENCE, addresses).await.unwrap();
        let Ok(addresses) = addresses else { panic!("the server ended: {:?}", ended.await) };
        Self { addresses, _folder: folder, terminations, ended }
    }

    /// Serves.
    pub(crate) async fn ready(script: &str, flags: &[&str]) -> Self {
        let worker = Self::start(script, flags).await;
        worker.reaches(ServingStatus::Serving).await;
        worker
    }

    /// Waits until the health service says so.
    pub(crate) async fn reaches(&self, status: ServingStatus) {
        let mut health = HealthClient::new(self.channel().await);
        let request = HealthCheckRequest { service: "imagegen.v1.ImageService".into() };
        let mut changes = health.watch(request).await.unwrap().into_inner();
        let reached = async { while changes.message().await.unwrap().unwrap().status() != status {} };
        time::timeout(PATIENCE, reached).await.unwrap();
    }

    pub(crate) async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.addresses.public)).unwrap().connect().await.unwrap()
    }

    pub(crate) async fn client(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel().await).max_decoding_message_size(64 << 20)
    }

    /// A client that counts its connections.
    pub(crate) fn counting_client(&self) -> (ImageServiceClient<Channel>, Arc<AtomicUsize>) {
        let connections = Arc::new(AtomicUsize::new(0));
        let (count, address) = (Arc::clone(&connections), self.addresses.public);
        let connector = tower::service_fn(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            async move { TcpStream::connect(address).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://worker").connect_with_connector_lazy(connector);
        (ImageServiceClient::new(channel), connections)
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        get(self.addresses.http, path).await
    }

    /// The value of a metric, written as in the page; 0 when it is not there.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let (_, page) = self.get("/metrics").await;
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// As SIGTERM does.
    pub(crate) async fn terminate(&self) {
        self.terminations.send(()).await.unwrap();
    }

    pub(crate) async fn ended(self) -> Result<(), ServeError> {
        time::timeout(PATIENCE, self.ended).await.unwrap().unwrap()
    }
}

pub(crate) type Served = (oneshot::Receiver<Addresses>, mpsc::Sender<()>, JoinHandle<Result<(), ServeError>>);

/// Runs the server in this process. `flags` come after the defaults of the tests.
pub(crate) fn serve(folder: &Path, script: &str, flags: &[&str]) -> Served {
    let file = folder.join("script.yaml");
    fs::write(&file, script).unwrap();
    let engine = format!("--engine=scripted:{}", file.display());
    let defaults = [
        "imagegen-worker",
        "serve",
        &engine,
        "--development",
        "--listen=127.0.0.1:0",
        "--admin-listen=127.0.0.1:0",
        "--http-listen=127.0.0.1:0",
    ];
    let mut command = Cli::command().args_override_self(true);
    command.build();
    let matches = command.clone().try_get_matches_from(defaults.iter().chain(flags)).unwrap();
    let Command::Serve(args) = Cli::from_arg_matches(&matches).unwrap().command else { panic!("serve") };
    let settings =
        run::Settings::new(command.find_subcommand("serve").unwrap(), matches.subcommand_matches("serve").unwrap());
    let (terminations, receiver) = mpsc::channel(2);
    let (started, addresses) = oneshot::channel();
    let host = Host { terminations: receiver, started, reload_every: Some(RELOAD_EVERY) };
    (addresses, terminations, tokio::spawn(run::serve(*args, settings, host)))
}

/// A small picture of an apple.
pub(crate) fn apple() -> GenerateRequest {
    GenerateRequest {
        prompt: "a red apple".into(),
        width: Some(64),
        height: Some(32),
        steps: Some(4),
        seed: Some(7),
        ..GenerateRequest::default()
    }
}

/// What a stream said.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) accepted: Option<Accepted>,
    pub(crate) progress: Vec<Progress>,
    pub(crate) images: Vec<Image>,
    pub(crate) finished: Option<imagegen_proto::v1::Finished>,
    /// Names of the events in their order, progress left out.
    pub(crate) order: Vec<&'static str>,
}

impl Told {
    fn add(&mut self, event: GenerateEvent) {
        match event.event.unwrap() {
            Event::Starting(_) => self.order.push("starting"),
            Event::Accepted(accepted) => {
                self.order.push("accepted");
                self.accepted = Some(accepted);
            }
            Event::Progress(progress) => self.progress.push(progress),
            Event::Image(image) => {
                self.order.push("image");
                self.images.push(image);
            }
            Event::Finished(finished) => {
                self.order.push("finished");
                self.finished = Some(finished);
            }
        }
    }
}

/// Everything until the end.
pub(crate) async fn listen(mut stream: Streaming<GenerateEvent>) -> Result<Told, Status> {
    let all = async {
        let mut told = Told::default();
        while let Some(event) = stream.next().await {
            told.add(event?);
        }
        Ok(told)
    };
    time::timeout(PATIENCE, all).await.unwrap()
}

/// Makes the request and listens to its end.
pub(crate) async fn generate(
    client: &mut ImageServiceClient<Channel>,
    request: GenerateRequest,
) -> Result<Told, Status> {
    listen(client.generate(request).await?.into_inner()).await
}

/// Makes the request and listens until it is on the engine.
pub(crate) async fn running(
    client: &mut ImageServiceClient<Channel>,
    request: GenerateRequest,
) -> Streaming<GenerateEvent> {
    let mut stream = client.generate(request).await.unwrap().into_inner();
    let first_step =
        async { while !matches!(stream.message().await.unwrap().unwrap().event, Some(Event::Progress(_))) {} };
    time::timeout(PATIENCE, first_step).await.unwrap();
    stream
}

/// Makes the request and listens until it has its place.
pub(crate) async fn accepted(
    client: &mut ImageServiceClient<Channel>,
    request: GenerateRequest,
) -> (Streaming<GenerateEvent>, Accepted) {
    let mut stream = client.generate(request).await.unwrap().into_inner();
    let first = time::timeout(PATIENCE, stream.message()).await.unwrap().unwrap().unwrap();
    let Some(Event::Accepted(accepted)) = first.event else { panic!("{first:?}") };
    (stream, accepted)
}

/// Waits until the condition holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let holds = async {
        let mut ticks = time::interval(Duration::from_millis(10));
        while !condition().await {
            ticks.tick().await;
        }
    };
    assert!(time::timeout(PATIENCE, holds).await.is_ok(), "never happened: {what}");
}

/// Status and body of a page.
pub(crate) async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}
