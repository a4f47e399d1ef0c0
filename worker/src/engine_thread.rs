//! The thread that owns the engine: loads it, measures what batches cost, then makes one batch after the other.

use std::{
    any::Any,
    mem::ManuallyDrop,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::Arc,
    thread,
    time::Instant,
};

use imagegen_core::{
    engine::{Engine, EngineError, Stage},
    memory::ReadDeviceMemory,
    spec::RgbImage,
    table::TableKey,
    trim,
};
use tokio::sync::oneshot;
use tracing::{error, info};

use self::world::World;
use crate::dispatcher::Dispatcher;

mod group;
mod memory;
mod recover;
mod warm_up;
mod world;

/// How much of the checkpoint is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes read so far.
    pub loaded_bytes: u64,
    /// Bytes of all files that are needed.
    pub total_bytes: u64,
}

/// Share of what is to do before serving that loading is, where a warm-up follows.
const LOAD_SHARE: f64 = 0.9;

/// What the thread needs to know besides the engine.
pub(crate) struct Setup {
    /// Asks the device.
    pub(crate) device: ReadDeviceMemory,
    /// Share of the device that may be used, 0 to 1.
    pub(crate) limit_ratio: f64,
    /// When cached blocks are given back.
    pub(crate) trim: trim::Policy,
    /// Measure what batches cost before serving; absent: nothing is known about memory, and nothing is refused for it.
    pub(crate) warm_up: Option<WarmUp>,
}

/// How costs are measured.
pub(crate) struct WarmUp {
    /// Where measured costs are kept.
    pub(crate) cache: Option<PathBuf>,
    /// What they depend on, besides the engine and the size classes.
    pub(crate) key: TableKey,
}

/// Why the thread ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineEnd {
    #[error("the model could not be loaded: {0}")]
    Load(String),
    #[error("the engine needs a new process: {0}")]
    Fatal(EngineError),
    #[error("the engine thread panicked; its message stands above")]
    Panicked,
    #[error("the engine thread could not be started: {0}")]
    Spawn(std::io::Error),
}

/// What the engine tells about a job.
#[derive(Debug)]
pub(crate) enum EngineEvent {
    /// Its turn has come.
    Started { queue_seconds: f64 },
    /// A step of the images from `first_index` on is done.
    /// With `previews`, one for each of them.
    Step { first_index: u32, step: u32, eta_seconds: f64, previews: Vec<RgbImage> },
    /// A picture.
    Image { index: u32, image: RgbImage },
    /// Nothing more comes.
    Ended(Result<Done, JobError>),
}

/// What a job took.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Done {
    pub(crate) text_encoder_seconds: f64,
    pub(crate) transformer_seconds: f64,
    pub(crate) vae_seconds: f64,
    /// Most bytes of live tensors while it ran.
    pub(crate) peak_bytes: u64,
}

/// Why a job has no pictures.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum JobError {
    #[error("cancelled")]
    Cancelled,
    /// Again, although it was alone on the device.
    #[error("{sentence}")]
    OutOfMemory { stage: Stage, sentence: String },
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Starts the thread. The receiver gets its end. `warm` is called once, after the warm-up.
///
/// # Errors
/// When the system has no thread for it.
pub(crate) fn spawn<E, F, L>(
    load: F,
    warm: fn(&mut E),
    setup: Setup,
    dispatcher: Arc<Dispatcher>,
) -> Result<oneshot::Receiver<Result<(), EngineEnd>>, EngineEnd>
where
    E: Engine + 'static,
    F: FnOnce(&mut dyn FnMut(LoadProgress)) -> Result<E, L> + Send + 'static,
    L: std::fmt::Display,
{
    let (ended, end) = oneshot::channel();
    let body = move || {
        let result = catch_unwind(AssertUnwindSafe(|| run(load, warm, &setup, &dispatcher)));
        let result = result.unwrap_or_else(|payload| {
            error!(panic = message(payload.as_ref()), "The engine thread panicked.");
            Err(EngineEnd::Panicked)
        });
        if let Err(end) = &result {
            dispatcher.fail(&end.to_string());
        }
        // The receiver is gone only when the process is ending anyway.
        let _ = ended.send(result);
    };
    thread::Builder::new().name("engine".into()).spawn(body).map_err(EngineEnd::Spawn)?;
    Ok(end)
}

fn run<E: Engine, L: std::fmt::Display>(
    load: impl FnOnce(&mut dyn FnMut(LoadProgress)) -> Result<E, L>,
    warm: fn(&mut E),
    setup: &Setup,
    dispatcher: &Dispatcher,
) -> Result<(), EngineEnd> {
    let start = Instant::now();
    let before = (setup.device)();
    let share = if setup.warm_up.is_some() { LOAD_SHARE } else { 1.0 };
    let engine = load(&mut |progress| dispatcher.loading(progress, share));
    let engine = engine.map_err(|error| EngineEnd::Load(error.to_string()))?;
    // Dropped only on a clean end: destructors that talk to a dead device would hang or abort.
    let mut world = ManuallyDrop::new(World::new(engine, setup, dispatcher));
    let model = world.engine.model().clone();
    info!(
        model = model.name,
        device = model.device,
        precision = model.precision,
        weight_bytes = model.weight_bytes,
        seconds = start.elapsed().as_secs_f64(),
        "The model is loaded."
    );
    let rules = dispatcher.rules(&model).map_err(|error| EngineEnd::Load(error.to_string()))?;
    if let Some(warm_up) = &setup.warm_up {
        world.warm_up(warm_up, &rules.buckets, before)?;
    }
    warm(&mut world.engine);
    let (count_tokens, table) = (world.engine.count_tokens(), world.table.clone());
    world.measure();
    dispatcher.loaded(&model, rules, count_tokens, table);
    world.serve().map_err(EngineEnd::Fatal)?;
    drop(ManuallyDrop::into_inner(world));
    Ok(())
}

/// The result of one call of the engine and its seconds. A panic becomes an error: it fails one batch, not the process.
fn timed<T>(stage: Stage, work: impl FnOnce() -> Result<T, EngineError>) -> (Result<T, EngineError>, f64) {
    let start = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
        Err(EngineError::Failed { stage, detail: format!("panicked: {}", message(payload.as_ref())) })
    });
    (result, start.elapsed().as_secs_f64())
}

fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message")
}
