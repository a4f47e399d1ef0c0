//! A worker that answers from a script, on a port of its own.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream};
use imagegen_proto::v1::{
    Accepted, Bucket, EstimateReply, Finished, GenerateEvent, GenerateRequest, GetModelRequest, Image, Limits, Model,
    Progress, Timings,
    generate_event::Event,
    image_service_server::{ImageService, ImageServiceServer},
};
use std::pin::Pin;
use tokio::runtime::Runtime;
use tonic::{
    Request, Response, Status,
    transport::{Identity, Server, ServerTlsConfig},
};

/// Longest time a test waits for something that should happen at once.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What the worker does with one call of Generate.
pub enum Reply {
    /// All pictures, one step each, and these warnings.
    Pictures(&'static [&'static str]),
    /// Accepted and one picture, then the stream breaks with this status.
    BreaksAfterOne(Status),
    /// Accepted and one picture, then the end, although more were asked for.
    FinishesAfterOne,
    /// Accepted, then nothing for as long as the client stays.
    Hangs,
    /// No stream at all.
    Refuses(Status),
}

/// What the worker saw.
#[derive(Debug)]
pub enum Seen {
    /// A call of Generate, with its `authorization` header and deadline.
    Generate { request: GenerateRequest, authorization: Option<String>, has_deadline: bool },
    /// The client left a hanging stream.
    Cancelled,
}

pub struct Worker {
    pub address: SocketAddr,
    seen: mpsc::Receiver<Seen>,
    _runtime: Runtime,
}

impl Worker {
    pub fn start(script: impl IntoIterator<Item = Reply>) -> Self {
        Self::start_with(script, None)
    }

    pub fn start_with(script: impl IntoIterator<Item = Reply>, identity: Option<Identity>) -> Self {
        let runtime = Runtime::new().unwrap();
        let (sender, seen) = mpsc::channel();
        let service =
            Scripted { script: Arc::new(Mutex::new(script.into_iter().collect())), seen: Arc::new(Mutex::new(sender)) };
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            let (health, health_service) = tonic_health::server::health_reporter();
            health.set_serving::<ImageServiceServer<Scripted>>().await;
            let mut server = Server::builder();
            if let Some(identity) = identity {
                server = server.tls_config(ServerTlsConfig::new().identity(identity)).unwrap();
            }
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            server
                .add_service(health_service)
                .add_service(ImageServiceServer::new(service))
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
        Self { address, seen, _runtime: runtime }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn next(&self) -> Seen {
        self.seen.recv_timeout(PATIENCE).expect("the worker should have seen something by now")
    }

    pub fn next_request(&self) -> GenerateRequest {
        match self.next() {
            Seen::Generate { request, .. } => request,
            Seen::Cancelled => panic!("expected a request, found a cancelled stream"),
        }
    }
}

struct Scripted {
    script: Arc<Mutex<VecDeque<Reply>>>,
    seen: Arc<Mutex<mpsc::Sender<Seen>>>,
}

/// Tells of its end.
struct Guard(mpsc::Sender<Seen>);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.send(Seen::Cancelled);
    }
}

type Events = Pin<Box<dyn Stream<Item = Result<GenerateEvent, Status>> + Send>>;

fn event(event: Event) -> Result<GenerateEvent, Status> {
    Ok(GenerateEvent { event: Some(event) })
}

fn accepted(request: &GenerateRequest, warnings: &[&str]) -> Result<GenerateEvent, Status> {
    event(Event::Accepted(Accepted {
        request_id: request.request_id.clone(),
        seed: request.seed.unwrap_or(0),
        warnings: warnings.iter().map(ToString::to_string).collect(),
        ..Accepted::default()
    }))
}

/// One step, with a preview where it is asked for, then the picture: its bytes are its index.
fn picture(request: &GenerateRequest, index: u32) -> [Result<GenerateEvent, Status>; 2] {
    let preview = if request.preview_every == 1 { format!("preview {index}").into_bytes() } else { Vec::new() };
    [
        event(Event::Progress(Progress { index, step: 1, steps: 1, eta_seconds: 0.5, preview })),
        event(Event::Image(Image {
            index,
            data: format!("picture {index}").into_bytes(),
            mime: "image/png".to_owned(),
            width: request.width.unwrap_or(64),
            height: request.height.unwrap_or(64),
            seed: request.seed.unwrap_or(0).wrapping_add(index),
        })),
    ]
}

fn finished() -> Result<GenerateEvent, Status> {
    let timings = Timings { total_seconds: 0.5, ..Timings::default() };
    event(Event::Finished(Finished { timings: Some(timings), peak_bytes: 1024 }))
}

#[tonic::async_trait]
impl ImageService for Scripted {
    type GenerateStream = Events;

    async fn generate(&self, call: Request<GenerateRequest>) -> Result<Response<Events>, Status> {
        let header = |name| call.metadata().get(name).map(|value| value.to_str().unwrap().to_owned());
        let (authorization, has_deadline) = (header("authorization"), header("grpc-timeout").is_some());
        let request = call.into_inner();
        let sender = self.seen.lock().unwrap().clone();
        let _ = sender.send(Seen::Generate { request: request.clone(), authorization, has_deadline });
        let reply = self.script.lock().unwrap().pop_front().expect("the script has a reply for every call");
        let events: Events = match reply {
            Reply::Refuses(status) => return Err(status),
            Reply::Pictures(warnings) => {
                let mut events = vec![accepted(&request, warnings)];
                events.extend((0..request.count.unwrap_or(1)).flat_map(|index| picture(&request, index)));
                events.push(finished());
                stream::iter(events).boxed()
            }
            Reply::BreaksAfterOne(status) => {
                let mut events = vec![accepted(&request, &[])];
                events.extend(picture(&request, 0));
                events.push(Err(status));
                stream::iter(events).boxed()
            }
            Reply::FinishesAfterOne => {
                let mut events = vec![accepted(&request, &[])];
                events.extend(picture(&request, 0));
                events.push(finished());
                stream::iter(events).boxed()
            }
            Reply::Hangs => {
                let guard = Guard(sender);
                let silence = stream::once(async move {
                    let _guard = guard;
                    std::future::pending().await
                });
                stream::iter([accepted(&request, &[])]).chain(silence).boxed()
            }
        };
        Ok(Response::new(events))
    }

    async fn estimate(&self, _: Request<GenerateRequest>) -> Result<Response<EstimateReply>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn get_model(&self, _: Request<GetModelRequest>) -> Result<Response<Model>, Status> {
        Ok(Response::new(Model {
            name: "emoji-zimage".to_owned(),
            pipeline: "ZImagePipeline".to_owned(),
            precision: "float32".to_owned(),
            device: "cpu".to_owned(),
            limits: Some(Limits { max_steps: 50, ..Limits::default() }),
            buckets: vec![Bucket { width: 256, height: 256, max_batch: 4 }],
            size_multiple: 16,
            ready: true,
            ..Model::default()
        }))
    }
}
