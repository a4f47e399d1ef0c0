//! The thread that owns the engine: loads it, then makes one request after the other.

use std::{
    any::Any,
    mem::ManuallyDrop,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::Instant,
};

use imagegen_core::{
    engine::{Engine, EngineError, Stage},
    eta::Work,
    spec::RgbImage,
};
use tokio::sync::oneshot;
use tracing::{error, info};

use crate::dispatcher::{Dispatcher, Job};

/// How much of the checkpoint is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes read so far.
    pub loaded_bytes: u64,
    /// Bytes of all files that are needed.
    pub total_bytes: u64,
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
    Ended(Result<StageSeconds, JobError>),
}

/// Seconds of one job by stage.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct StageSeconds {
    pub(crate) text_encoder: f64,
    pub(crate) transformer: f64,
    pub(crate) vae: f64,
}

/// Why a job has no pictures.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JobError {
    #[error("cancelled")]
    Cancelled,
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Starts the thread. The receiver gets its end.
///
/// # Errors
/// When the system has no thread for it.
pub(crate) fn spawn<E, F, L>(
    load: F,
    dispatcher: Arc<Dispatcher>,
) -> Result<oneshot::Receiver<Result<(), EngineEnd>>, EngineEnd>
where
    E: Engine + 'static,
    F: FnOnce(&mut dyn FnMut(LoadProgress)) -> Result<E, L> + Send + 'static,
    L: std::fmt::Display,
{
    let (ended, end) = oneshot::channel();
    let body = move || {
        let result = catch_unwind(AssertUnwindSafe(|| run(load, &dispatcher)));
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
    dispatcher: &Dispatcher,
) -> Result<(), EngineEnd> {
    let start = Instant::now();
    let engine =
        load(&mut |progress| dispatcher.loading(progress)).map_err(|error| EngineEnd::Load(error.to_string()))?;
    // Dropped only on a clean end: destructors that talk to a dead device would hang or abort.
    let mut engine = ManuallyDrop::new(engine);
    dispatcher.loaded(engine.model(), engine.count_tokens()).map_err(|error| EngineEnd::Load(error.to_string()))?;
    let model = engine.model();
    info!(
        model = model.name,
        device = model.device,
        precision = model.precision,
        weight_bytes = model.weight_bytes,
        seconds = start.elapsed().as_secs_f64(),
        "The model is loaded."
    );
    while let Some(job) = dispatcher.next_job() {
        let result = make(&mut *engine, &job, dispatcher);
        let fatal = match &result {
            Err(JobError::Engine(error @ EngineError::Fatal { .. })) => Some(error.clone()),
            _ => None,
        };
        if let Some(error) = &fatal {
            // First the state, so that whoever sees the job's end also sees that nothing will follow.
            dispatcher.fail(&error.to_string());
        }
        dispatcher.job_ended(&job);
        job.tell(EngineEvent::Ended(result));
        if let Some(error) = fatal {
            return Err(EngineEnd::Fatal(error));
        }
    }
    ManuallyDrop::into_inner(engine);
    Ok(())
}

fn make<E: Engine>(engine: &mut E, job: &Job, dispatcher: &Dispatcher) -> Result<StageSeconds, JobError> {
    let request = &job.request;
    let specs = request.specs();
    let mut seconds = StageSeconds::default();
    let mut images_done = 0;
    for specs in specs.chunks(request.batch_size() as usize) {
        job.check()?;
        let (batch, taken) = timed(dispatcher, Stage::TextEncoder, || engine.begin(specs))?;
        seconds.text_encoder += taken;
        let mut batch = ManuallyDrop::new(batch);
        let made = make_batch(engine, &mut batch, job, dispatcher, images_done, specs.len(), &mut seconds);
        if !matches!(made, Err(JobError::Engine(EngineError::Fatal { .. }))) {
            ManuallyDrop::into_inner(batch);
        }
        made?;
        images_done += specs.len() as u32;
    }
    Ok(seconds)
}

fn make_batch<E: Engine>(
    engine: &mut E,
    batch: &mut E::Batch,
    job: &Job,
    dispatcher: &Dispatcher,
    first_index: u32,
    images: usize,
    seconds: &mut StageSeconds,
) -> Result<(), JobError> {
    let request = &job.request;
    let steps_before = u64::from(first_index) * u64::from(request.steps);
    for step in 1..=request.steps {
        job.check()?;
        let ((), taken) = timed(dispatcher, Stage::Transformer, || engine.step(batch))?;
        seconds.transformer += taken;
        let left = Work::left(request, steps_before + u64::from(step) * images as u64, first_index.into());
        let eta_seconds = dispatcher.step_done(request, images, taken, left);
        let wanted = if request.has_preview(step) { images } else { 0 };
        let preview = |index| timed(dispatcher, Stage::Vae, || engine.preview(batch, index));
        let previews = (0..wanted).map(preview).collect::<Result<Vec<_>, _>>()?;
        seconds.vae += previews.iter().map(|(_, taken)| taken).sum::<f64>();
        let previews = previews.into_iter().map(|(preview, _)| preview).collect();
        job.tell(EngineEvent::Step { first_index, step, eta_seconds, previews });
    }
    for offset in 0..images {
        job.check()?;
        let (image, taken) = timed(dispatcher, Stage::Vae, || engine.decode(batch, offset))?;
        seconds.vae += taken;
        let index = first_index + offset as u32;
        let left = Work::left(request, steps_before + u64::from(request.steps) * images as u64, u64::from(index) + 1);
        dispatcher.image_done(request, taken, left);
        job.tell(EngineEvent::Image { index, image });
    }
    Ok(())
}

/// The result and its seconds. A panic of the engine becomes an error: it fails one request, not the process.
fn timed<T>(
    dispatcher: &Dispatcher,
    stage: Stage,
    work: impl FnOnce() -> Result<T, EngineError>,
) -> Result<(T, f64), EngineError> {
    let start = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
        Err(EngineError::Failed { stage, detail: format!("panicked: {}", message(payload.as_ref())) })
    });
    let taken = start.elapsed().as_secs_f64();
    dispatcher.stage_done(stage, taken, result.as_ref().err());
    Ok((result?, taken))
}

fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message")
}
