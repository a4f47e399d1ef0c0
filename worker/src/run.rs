//! `serve`: puts the parts together, and takes them down in order.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use imagegen_core::{
    memory::ReadDeviceMemory,
    pressure::Targets,
    rules::{Limits, RuleSettings},
    table::TableKey,
    trim,
};
use imagegen_proto::{
    FILE_DESCRIPTOR_SET,
    v1::{admin_service_server::AdminServiceServer, image_service_server::ImageServiceServer},
};
use imagegen_telemetry::{
    http::{self, Page},
    supervise::Supervisor,
};
use rustls::ServerConfig;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
};
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tracing::info;

use crate::{
    admin::Admin,
    auth::Tokens,
    calls::Calls,
    cli::{EngineChoice, ServeArgs},
    connections::{Age, FLUSH, Handler, Port},
    device::EngineSettings,
    dispatcher::{Dispatcher, QueueSettings},
    engine_thread::{self, EngineEnd, Setup, WarmUp},
    gpu::{ProbeOptions, sampler},
    health, metrics,
    reload::{Parse, Reloading},
    scripted::{Script, ScriptedDevice, ScriptedEngine},
    service::Service,
    settings, table_cache, tls,
};

mod device;
mod error;
mod life;

pub use self::error::ServeError;
pub use crate::settings::Settings;

/// Largest message that a client may send: a prompt of a million characters is a mistake.
const MAX_REQUEST_BYTES: usize = 1 << 20;

/// How often certificates and tokens are looked at.
const RELOAD_EVERY: Duration = Duration::from_secs(2);

/// What a running server listens on.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// ImageService.
    pub public: SocketAddr,
    /// AdminService, when it is served.
    pub admin: Option<SocketAddr>,
    /// Metrics and probes.
    pub http: SocketAddr,
}

/// What the caller of [`serve`] brings.
#[derive(Debug)]
pub struct Host {
    /// The first message drains, the second ends at once.
    pub terminations: mpsc::Receiver<()>,
    /// Gets the addresses once all ports listen.
    pub started: oneshot::Sender<Addresses>,
    /// How often certificates and tokens are looked at; absent: every few seconds.
    pub reload_every: Option<Duration>,
}

/// Serves until it is told to stop and everything admitted is done.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve(args: ServeArgs, mut settings: Settings, host: Host) -> Result<(), ServeError> {
    // Without `..`: a flag that nothing reads does not compile.
    let ServeArgs {
        model,
        precision,
        vae_tiling,
        device,
        profile,
        gpu_uuid,
        nvml_library,
        threads,
        allocator,
        listen,
        admin_listen,
        http_listen,
        admin_tls_dir,
        tls_dir,
        token_file,
        allow_insecure_token,
        max_connection_age,
        max_connection_age_grace,
        default_size,
        default_steps,
        default_guidance_scale,
        buckets,
        size_policy,
        queue_capacity,
        queue_max_wait,
        queue_max_holdup,
        max_pixels,
        max_steps,
        max_images_per_request,
        memory_limit_ratio,
        trim_interval,
        trim_above,
        table_cache,
        target_memory_pressure,
        target_queue_wait,
        drain_timeout,
        stall_timeout,
        engine,
        random_weights,
        development,
    } = args;
    check_engine(&engine, random_weights, development).map_err(ServeError::Settings)?;
    let variable = std::env::var(imagegen_core::allocator::VARIABLE).ok();
    let allocator = allocator.asked(device, variable.as_deref()).map_err(ServeError::Settings)?;
    if token_file.is_some() && tls_dir.is_none() && !allow_insecure_token {
        return Err(ServeError::Settings(
            "--token-file without --tls-dir sends tokens in plain text; add --tls-dir, or --allow-insecure-token where \
             something else protects the network"
                .into(),
        ));
    }
    let queue_max_holdup = queue_max_holdup.unwrap_or_else(|| settings::default_holdup(queue_max_wait));
    if queue_max_holdup >= queue_max_wait {
        return Err(ServeError::Settings(format!(
            "--queue-max-holdup of {} s must be shorter than --queue-max-wait of {} s: a request that was held up for so \
             long would be refused before its turn",
            queue_max_holdup.as_secs_f64(),
            queue_max_wait.as_secs_f64()
        )));
    }
    let options = ProbeOptions { device, library: nvml_library, gpu_uuid };
    let device::Bound { sampler, profile } = device::bind(&options, &profile, model.as_deref()).await?;
    let vae_tiling = match &profile {
        Some(profile) if settings.is_open("vae-tiling") => profile.vae_tiling,
        _ => vae_tiling,
    };
    settings.fill_in(profile.as_ref());
    let precision = precision.or_else(|| profile.as_ref()?.precision());
    let suited_buckets = profile.map(|profile| profile.buckets);
    let limits = Limits { max_pixels, max_steps, max_images_per_request };
    let rules = RuleSettings {
        limits,
        default_size,
        default_steps,
        default_guidance_scale,
        buckets,
        suited_buckets,
        size_policy,
    };
    let gpu = sampler.subscribe();
    let (registry, metrics) = metrics::registry(&sampler);
    let queue = QueueSettings {
        capacity: queue_capacity,
        max_wait: queue_max_wait,
        max_holdup: queue_max_holdup,
        targets: Targets { memory_pressure: target_memory_pressure, queue_wait: target_queue_wait },
    };
    let dispatcher = Arc::new(Dispatcher::new(rules, &queue, metrics.clone()));
    let mut supervisor = Supervisor::new();
    let stop = supervisor.stop_token();
    let reload_every = host.reload_every.unwrap_or(RELOAD_EVERY);

    let mut follow = Follow { supervisor: &mut supervisor, metrics: &metrics, every: reload_every };
    let public_tls = follow.tls("public certificates", tls_dir.as_deref(), tls::public_paths, tls::public)?;
    let admin_tls = follow.tls("admin certificates", admin_tls_dir.as_deref(), tls::mutual_paths, tls::mutual)?;
    let tokens = match token_file {
        Some(file) => Some(follow.add("tokens", Reloading::load(vec![file], Tokens::parse)?)),
        None => None,
    };

    let public_listener = bind(listen).await?;
    let http_listener = bind(http_listen).await?;
    let admin_listener = match admin_tls {
        Some(tls) => Some((bind(admin_listen).await?, tls)),
        None => None,
    };
    let addresses = Addresses {
        public: local(&public_listener, listen)?,
        admin: admin_listener.as_ref().map(|(listener, _)| local(listener, admin_listen)).transpose()?,
        http: local(&http_listener, http_listen)?,
    };

    let drivers = TaskTracker::new();
    let (exits, ordered_exits) = mpsc::channel(1);
    let service = Service {
        dispatcher: Arc::clone(&dispatcher),
        calls: Arc::new(Calls::default()),
        drivers: drivers.clone(),
        settings: Arc::new(settings),
        queue_capacity: u32::try_from(queue_capacity).unwrap_or(u32::MAX),
    };
    let (reporter, health_service) = tonic_health::server::health_reporter();
    health::report(&reporter, false).await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name("imagegen.v1.ImageService")
        .with_service_name("grpc.health.v1.Health")
        .with_service_name("grpc.reflection.v1.ServerReflection")
        .build_v1()
        .map_err(|error| ServeError::Settings(format!("the descriptors of this build are damaged: {error}")))?;
    let routes = Routes::new(ImageServiceServer::new(service).max_decoding_message_size(MAX_REQUEST_BYTES))
        .add_service(health_service)
        .add_service(reflection);
    let public = Port {
        name: "public",
        listener: public_listener,
        tls: public_tls,
        handler: Handler { routes: routes.prepare(), tokens, metrics: metrics.clone() },
        age: Some(Age { max: max_connection_age, grace: max_connection_age_grace }),
        drains: Some(dispatcher.subscribe()),
        stop: stop.clone(),
    };
    supervisor.spawn("public gRPC server", public.serve());
    if let Some((listener, tls)) = admin_listener {
        let admin = Admin {
            dispatcher: Arc::clone(&dispatcher),
            drain_timeout,
            timers: drivers.clone(),
            exits,
            stop: stop.clone(),
            gpu: matches!(device, crate::device::Device::Cuda(_)).then(|| gpu.clone()),
        };
        let routes = Routes::new(AdminServiceServer::new(admin)).prepare();
        let handler = Handler { routes, tokens: None, metrics: metrics.clone() };
        let port =
            Port { name: "admin", listener, tls: Some(tls), handler, age: None, drains: None, stop: stop.clone() };
        supervisor.spawn("admin gRPC server", port.serve());
    }
    supervisor.spawn("device readings", sampler.run(sampler::EVERY, stop.clone()));
    supervisor.spawn("health", health::follow(Arc::clone(&dispatcher), reporter, stop.clone()));
    let (live, ready) = (Arc::clone(&dispatcher), dispatcher.subscribe());
    let page = Page {
        registry,
        live: Arc::new(move || live.live(stall_timeout)),
        ready: Arc::new(move || ready.borrow().ready()),
    };
    supervisor.spawn("HTTP server", http::serve(http_listener, page, stop.clone().cancelled_owned()));

    let policy = trim::Policy { interval: trim_interval, above: trim_above };
    let table_cache = table_cache_folder(table_cache)?;
    let setup = |device: ReadDeviceMemory, key: Option<TableKey>| Setup {
        device,
        limit_ratio: memory_limit_ratio,
        trim: policy,
        warm_up: key.map(|key| WarmUp { cache: table_cache, key }),
    };
    let engine_end = match engine {
        EngineChoice::Scripted(file) => {
            let script = Script::read(&file)?;
            let device = ScriptedDevice::new(script.memory.clone());
            let key = script.memory.as_ref().map(|memory| TableKey::of([("memory", format!("{memory:?}"))]));
            let setup = setup(device.reading(), key);
            let load = move |progress: &mut dyn FnMut(_)| ScriptedEngine::load(script, device, progress);
            engine_thread::spawn(load, ScriptedEngine::warm, setup, Arc::clone(&dispatcher))
        }
        EngineChoice::Torch => {
            let engine = EngineSettings { precision, vae_tiling, device, threads, allocator, random_weights };
            // A processor would take minutes for what a GPU does in seconds, at every start.
            let is_measured = matches!(device, crate::device::Device::Cuda(_));
            let key = is_measured.then(|| table_cache::key(model.as_deref(), &engine, &gpu.borrow()));
            let setup = setup(device::reading(&options), key);
            torch_engine(model, engine, setup, &dispatcher)?
        }
    };
    let engine_end = engine_end.map_err(|end| ServeError::Engine(end.to_string()))?;
    supervisor.spawn("engine", life::follow_engine(engine_end, stop.clone()));

    info!(
        public = %addresses.public,
        admin = addresses.admin.map(tracing::field::display),
        http = %addresses.http,
        version = env!("CARGO_PKG_VERSION"),
        "Listening."
    );
    // Whoever asked for the addresses may have stopped waiting.
    let _ = host.started.send(addresses);

    let life = life::end_of_life(Arc::clone(&dispatcher), host.terminations, ordered_exits, drain_timeout, stop);
    // Ports flush first, so the tasks as a whole have a little longer.
    let (tasks, drained) = tokio::join!(supervisor.run(FLUSH + Duration::from_secs(3)), life);
    tasks.map_err(error::of_task)?;
    drained
}

/// Where measured costs are kept. A folder that was asked for must be usable; the default one may be absent.
fn table_cache_folder(asked: Option<PathBuf>) -> Result<Option<PathBuf>, ServeError> {
    let is_usable = |folder: &Path| tempfile_in(folder).is_ok();
    match asked {
        Some(folder) => match tempfile_in(&folder) {
            Ok(()) => Ok(Some(folder)),
            Err(error) => {
                Err(ServeError::Settings(format!("--table-cache {}: cannot be written: {error}", folder.display())))
            }
        },
        None => Ok(Some(PathBuf::from(table_cache::DEFAULT_FOLDER)).filter(|folder| is_usable(folder))),
    }
}

/// Whether a file can be made there, by making one.
fn tempfile_in(folder: &Path) -> std::io::Result<()> {
    let file = folder.join(format!(".{}.probe", std::process::id()));
    std::fs::write(&file, [])?;
    std::fs::remove_file(&file)
}

/// Refuses engines that are not for production.
///
/// # Errors
/// The sentence for the user.
pub(crate) fn check_engine(engine: &EngineChoice, random_weights: bool, development: bool) -> Result<(), String> {
    match engine {
        EngineChoice::Torch if random_weights && !development => {
            Err("--random-weights makes noise instead of pictures; add --development to allow it".into())
        }
        EngineChoice::Scripted(_) if random_weights => {
            Err("--random-weights has no meaning with --engine scripted:FILE, which has no weights".into())
        }
        EngineChoice::Scripted(_) if !development => {
            Err("--engine scripted:FILE paints gradients instead of pictures; add --development to allow it".into())
        }
        EngineChoice::Scripted(_) => Ok(()),
        EngineChoice::Torch if cfg!(feature = "torch") => Ok(()),
        EngineChoice::Torch => {
            Err("this binary was built without libtorch (feature torch); use --engine scripted:FILE".into())
        }
    }
}

type EngineStart = Result<oneshot::Receiver<Result<(), EngineEnd>>, EngineEnd>;

#[cfg(feature = "torch")]
fn torch_engine(
    model: Option<PathBuf>,
    settings: EngineSettings,
    setup: Setup,
    dispatcher: &Arc<Dispatcher>,
) -> Result<EngineStart, ServeError> {
    let options = crate::torch::options(model, settings).map_err(ServeError::Settings)?;
    let load = move |progress: &mut dyn FnMut(_)| crate::torch::load(&options, progress);
    Ok(engine_thread::spawn(load, |_| (), setup, Arc::clone(dispatcher)))
}

#[cfg(not(feature = "torch"))]
fn torch_engine(
    _model: Option<PathBuf>,
    _settings: EngineSettings,
    _setup: Setup,
    _dispatcher: &Arc<Dispatcher>,
) -> Result<EngineStart, ServeError> {
    check_engine(&EngineChoice::Torch, false, false).map_err(ServeError::Settings)?;
    Err(ServeError::Settings("no engine".into()))
}

async fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })
}

fn local(listener: &TcpListener, address: SocketAddr) -> Result<SocketAddr, ServeError> {
    listener.local_addr().map_err(|source| ServeError::Listen { address, source })
}

/// Starts the tasks that keep values at their files.
struct Follow<'a> {
    supervisor: &'a mut Supervisor,
    metrics: &'a metrics::Metrics,
    every: Duration,
}

impl Follow<'_> {
    fn add<T: Send + Sync + 'static>(&mut self, name: &'static str, files: Reloading<T>) -> watch::Receiver<Arc<T>> {
        let current = files.subscribe();
        let task = files.follow(self.every, self.metrics.reloads.clone(), self.supervisor.stop_token());
        self.supervisor.spawn(name, task);
        current
    }

    fn tls(
        &mut self,
        name: &'static str,
        folder: Option<&Path>,
        paths: fn(&Path) -> Vec<PathBuf>,
        parse: Parse<ServerConfig>,
    ) -> Result<Option<watch::Receiver<Arc<ServerConfig>>>, ServeError> {
        let Some(folder) = folder else { return Ok(None) };
        Ok(Some(self.add(name, Reloading::load(paths(folder), parse)?)))
    }
}
