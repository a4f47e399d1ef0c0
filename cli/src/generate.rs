//! `generate`: one request, attempted until it succeeds, cannot succeed, or time is up.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use imagegen_proto::v1::{GenerateRequest, Image, Timings, generate_event::Event};
use serde::Serialize;
use tokio::time;
use tokio_util::task::TaskTracker;
use tonic::{Request, Status};

use crate::{
    args::Job,
    display::Display,
    error::Error,
    exit::Class,
    explain::Explanation,
    files,
    output::Plan,
    request,
    retry::{Retry, wait_before_retry},
    session::{Session, bounded},
    time::format_seconds,
};

/// A picture on the disk, as `--json` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Saved {
    index: u32,
    path: PathBuf,
    mime: String,
    width: u32,
    height: u32,
    bytes: usize,
    seed: u32,
}

/// What the worker has done of a request, over all attempts.
#[derive(Debug, Default)]
struct Made {
    request_id: String,
    seed: u32,
    warnings: Vec<String>,
    images: BTreeMap<u32, Saved>,
    timings: Timings,
    peak_bytes: u64,
    attempts: u32,
}

/// How an attempt ended without the request being done.
enum Failed {
    Call(Box<Explanation>),
    Final(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// Makes the pictures and prints what was saved. `open` finds the workers; it is called when the output is known to be
/// writable.
///
/// # Errors
/// Everything in [`Error`].
pub async fn generate(
    prompt: &str,
    job: &Job,
    open: impl AsyncFnOnce(&mut Display, &TaskTracker) -> Result<Session, Error>,
) -> Result<(), Error> {
    let output_is_folder = job.output.as_deref().is_some_and(std::path::Path::is_dir);
    let plan = Plan::new(job.output.as_deref(), output_is_folder, job.format, prompt, job.count)?;
    for path in plan.paths.iter().chain(&job.preview) {
        files::check_writable(path)?;
    }
    let id = uuid::Uuid::new_v4().to_string();
    let request = request::build(prompt, job, plan.format, rand::random(), &id);
    let mut made = Made { request_id: request.request_id.clone(), seed: request.seed.unwrap_or(0), ..Made::default() };
    let mut display = Display::new(job.count, job.json || job.quiet);
    let started = Instant::now();
    let work = async |tasks: &TaskTracker| {
        let session = open(&mut display, tasks).await?;
        attempt_until_done(&session, &request, job, &plan, &mut display, &mut made, started + job.timeout).await
    };
    bounded(job.timeout, work).await?;
    display.finish(&summary(&made, started.elapsed()));
    let text = if job.json { to_json(&made).to_string() } else { names(&made) };
    // A reader that has gone away does not undo the saved pictures.
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(())
}

async fn attempt_until_done(
    session: &Session,
    request: &GenerateRequest,
    job: &Job,
    plan: &Plan,
    display: &mut Display,
    made: &mut Made,
    deadline: Instant,
) -> Result<(), Error> {
    loop {
        made.attempts += 1;
        let remaining = deadline.saturating_duration_since(Instant::now());
        let explanation = match attempt(session, request, job, plan, display, made, remaining).await {
            Ok(()) => return Ok(()),
            Err(Failed::Final(error)) => return Err(error),
            Err(Failed::Call(explanation)) => explanation,
        };
        let remaining = deadline.saturating_duration_since(Instant::now());
        let wait = wait_before_retry(explanation.retry, made.attempts, job.retries, remaining, rand::random());
        let Some(wait) = wait else {
            return Err(Error::Call(explanation));
        };
        display.note(&format!(
            "{}; trying again in {} ({} of {})",
            explanation.message,
            format_seconds(wait.as_secs_f64()),
            made.attempts,
            job.retries
        ));
        time::sleep(wait).await;
    }
}

async fn attempt(
    session: &Session,
    request: &GenerateRequest,
    job: &Job,
    plan: &Plan,
    display: &mut Display,
    made: &mut Made,
    remaining: Duration,
) -> Result<(), Failed> {
    let failed = |status: Status| Failed::Call(Box::new(session.explain(&status)));
    let mut call = Request::new(request.clone());
    call.set_timeout(remaining);
    display.phase(&format!("Asking {}", session.peer));
    let mut events = session.images().generate(call).await.map_err(failed)?.into_inner();
    while let Some(event) = events.message().await.map_err(failed)? {
        match event.event {
            Some(Event::Starting(starting)) => display.starting(&starting),
            Some(Event::Accepted(accepted)) => {
                display.accepted(&accepted);
                for warning in &accepted.warnings {
                    if !made.warnings.contains(warning) {
                        display.note(&format!("warning: {warning}"));
                        made.warnings.push(warning.clone());
                    }
                }
                made.request_id = accepted.request_id;
                made.seed = accepted.seed;
            }
            Some(Event::Progress(progress)) => {
                display.progress(&progress);
                if let (Some(path), false) = (&job.preview, progress.preview.is_empty()) {
                    files::write_whole(path, &progress.preview).map_err(Error::from)?;
                }
            }
            Some(Event::Image(image)) => save(image, plan, made)?,
            Some(Event::Finished(finished)) => {
                made.timings = finished.timings.unwrap_or_default();
                made.peak_bytes = finished.peak_bytes;
                let (found, expected) = (made.images.len() as u32, plan.paths.len() as u32);
                return if found == expected { Ok(()) } else { Err(Error::PicturesMissing { expected, found }.into()) };
            }
            // A newer worker may tell more than this client understands.
            None => {}
        }
    }
    Err(Failed::Call(Box::new(Explanation {
        class: Class::Unavailable,
        status: None,
        message: format!("{} ended the stream before the request was done", session.peer),
        violations: Vec::new(),
        hint: "The worker may be stopping; try again.".to_owned(),
        retry: Retry::After(None),
    })))
}

/// Writes a picture, unless an earlier attempt did: same seed, same picture.
fn save(image: Image, plan: &Plan, made: &mut Made) -> Result<(), Error> {
    let count = plan.paths.len() as u32;
    let path = plan.paths.get(image.index as usize).ok_or(Error::UnknownPicture { index: image.index, count })?;
    if made.images.contains_key(&image.index) {
        return Ok(());
    }
    files::write_whole(path, &image.data)?;
    let saved = Saved {
        index: image.index,
        path: path.clone(),
        mime: image.mime,
        width: image.width,
        height: image.height,
        bytes: image.data.len(),
        seed: image.seed,
    };
    made.images.insert(saved.index, saved);
    Ok(())
}

fn names(made: &Made) -> String {
    made.images.values().map(|saved| saved.path.display().to_string()).collect::<Vec<_>>().join("\n")
}

fn summary(made: &Made, elapsed: Duration) -> String {
    let Some(first) = made.images.values().next() else { return String::new() };
    let pictures = match made.images.len() {
        1 => "1 picture".to_owned(),
        n => format!("{n} pictures"),
    };
    format!(
        "Saved {pictures} of {}x{} in {}, seed {}",
        first.width,
        first.height,
        format_seconds(elapsed.as_secs_f64()),
        made.seed
    )
}

fn to_json(made: &Made) -> serde_json::Value {
    let Timings {
        queue_seconds,
        text_encoder_seconds,
        transformer_seconds,
        vae_seconds,
        encode_seconds,
        total_seconds,
    } = made.timings;
    serde_json::json!({
        "request_id": made.request_id,
        "seed": made.seed,
        "images": made.images.values().collect::<Vec<_>>(),
        "warnings": made.warnings,
        "attempts": made.attempts,
        "timings": {
            "queue_seconds": queue_seconds,
            "text_encoder_seconds": text_encoder_seconds,
            "transformer_seconds": transformer_seconds,
            "vae_seconds": vae_seconds,
            "encode_seconds": encode_seconds,
            "total_seconds": total_seconds,
        },
        "peak_bytes": made.peak_bytes,
    })
}
