//! Follows one admitted request from the engine thread to its call: encodes the pictures, and gives it its end.

use std::{sync::Arc, time::Instant};

use imagegen_core::{
    engine::EngineError,
    request::{ImageFormat, Request},
    spec::{RgbImage, Size},
};
use imagegen_proto::v1::{Accepted, Finished, Image, Progress, Timings, generate_event::Event};
use tokio::task::spawn_blocking;
use tracing::{debug, error, warn};
use uuid::Uuid;

use crate::{
    call::Call,
    calls::Calls,
    dispatcher::{Admitted, Dispatcher},
    encode::encode,
    engine_thread::{Done, EngineEvent, JobError},
    snapshot::Phase,
    status::Refusal,
    wire,
};

/// What a request needs on its way.
pub(crate) struct Driver {
    pub(crate) call: Arc<Call>,
    pub(crate) request: Arc<Request>,
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) calls: Arc<Calls>,
}

impl Driver {
    /// Tells the call what the client gets first.
    pub(crate) fn accept(&self, admitted: &Admitted) {
        self.call.tell(Event::Accepted(Accepted {
            request_id: self.call.id.clone(),
            seed: self.request.seed,
            bucket: Some(wire::bucket(self.request.bucket)),
            queue_position: u32::try_from(admitted.position).unwrap_or(u32::MAX),
            eta_seconds: admitted.eta_seconds,
            warnings: self.request.warnings.clone(),
        }));
    }

    /// Runs until the call has its end.
    pub(crate) async fn run(self, admitted: Admitted) {
        // Whatever happens in between, the streams end and a drain is not held up.
        let end = EndGuard(self);
        let outcome = end.0.follow(admitted).await;
        end.0.finish(outcome);
    }

    async fn follow(&self, admitted: Admitted) -> Result<Event, Refusal> {
        let start = Instant::now();
        let Admitted { ticket, mut events, mut aborts, .. } = admitted;
        let max_wait = self.dispatcher.max_wait();
        let (mut queue_seconds, mut encode_seconds) = (None, 0.0);
        loop {
            let event = tokio::select! {
                biased;
                () = self.call.abandoned.cancelled() => {
                    self.dispatcher.leave_queue(ticket);
                    return Err(Refusal::Cancelled);
                }
                event = events.recv() => event,
                _ = aborts.changed() => None,
                () = tokio::time::sleep_until((start + max_wait).into()), if queue_seconds.is_none() => {
                    if self.dispatcher.leave_overdue(ticket, wire::request_key(&self.call.id)) {
                        return Err(Refusal::QueueTimeout { waited: max_wait, retry: self.dispatcher.retry_after() });
                    }
                    // Its turn came in this very moment, or comes within the rounding of two clocks.
                    tokio::task::yield_now().await;
                    continue;
                }
            };
            match event {
                Some(EngineEvent::Started { queue_seconds: seconds }) => {
                    self.dispatcher.metrics.queue_wait.observe(seconds);
                    queue_seconds = Some(seconds);
                }
                Some(EngineEvent::Step { first_index, step, eta_seconds, previews }) => {
                    let steps = self.request.steps;
                    let progress = |index, preview| Progress { index, step, steps, eta_seconds, preview };
                    if previews.is_empty() {
                        self.call.tell(Event::Progress(progress(first_index, Vec::new())));
                    }
                    for (index, preview) in (first_index..).zip(previews) {
                        let preview = self.encode(preview, ImageFormat::Png).await?;
                        self.call.tell(Event::Progress(progress(index, preview)));
                    }
                }
                Some(EngineEvent::Image { index, image }) => {
                    let encoding = Instant::now();
                    let Size { width, height } = image.size;
                    let format = self.request.format;
                    let data = self.encode(image, format).await?;
                    let (mime, seed) = (format.mime().into(), self.request.image_seed(index));
                    self.call.tell(Event::Image(Image { index, data, mime, width, height, seed }));
                    let seconds = encoding.elapsed().as_secs_f64();
                    self.dispatcher.metrics.encoded(seconds);
                    encode_seconds += seconds;
                }
                Some(EngineEvent::Ended(result)) => {
                    let done = result.map_err(|error| self.refusal(error))?;
                    let Done { text_encoder_seconds, transformer_seconds, vae_seconds, peak_bytes } = done;
                    let total_seconds = start.elapsed().as_secs_f64();
                    self.dispatcher.metrics.generated(total_seconds - queue_seconds.unwrap_or_default());
                    let timings = Timings {
                        queue_seconds: queue_seconds.unwrap_or_default(),
                        text_encoder_seconds,
                        transformer_seconds,
                        vae_seconds,
                        encode_seconds,
                        total_seconds,
                    };
                    return Ok(Event::Finished(Finished { timings: Some(timings), peak_bytes }));
                }
                None => {
                    self.call.abandoned.cancel();
                    self.dispatcher.leave_queue(ticket);
                    return Err(match self.dispatcher.snapshot().phase {
                        Phase::Failed { reason } => Refusal::Failed { reason },
                        _ => Refusal::DrainTimeout,
                    });
                }
            }
        }
    }

    async fn encode(&self, image: RgbImage, format: ImageFormat) -> Result<Vec<u8>, Refusal> {
        match spawn_blocking(move || encode(&image, format)).await {
            Ok(Ok(data)) => Ok(data),
            Ok(Err(error)) => Err(self.internal(&format!("encoding as {format}: {error}"))),
            Err(error) => Err(self.internal(&format!("encoding as {format}: {error}"))),
        }
    }

    fn refusal(&self, error: JobError) -> Refusal {
        match error {
            JobError::Cancelled => Refusal::Cancelled,
            JobError::Engine(EngineError::Fatal { .. }) => Refusal::Failed { reason: error.to_string() },
            JobError::OutOfMemory { stage, sentence } => {
                warn!(request_id = self.call.id, %stage, sentence, "A request ran out of device memory.");
                Refusal::OutOfMemory { stage, sentence, retry: self.dispatcher.retry_after() }
            }
            JobError::Engine(error) => self.internal(&error.to_string()),
        }
    }

    /// The client gets an id, the log the detail.
    fn internal(&self, detail: &str) -> Refusal {
        let id = Uuid::new_v4().to_string();
        error!(error_id = id, request_id = self.call.id, detail, "A request failed.");
        Refusal::Internal { id }
    }

    fn finish(&self, outcome: Result<Event, Refusal>) {
        let code = outcome.as_ref().map_or_else(Refusal::code, |_| tonic::Code::Ok);
        let is_success = outcome.is_ok();
        let end = match outcome {
            Ok(finished) => {
                self.call.tell(finished);
                Ok(())
            }
            Err(refusal) => {
                self.dispatcher.metrics.refused_late(&refusal);
                Err(refusal)
            }
        };
        if self.call.end(end) {
            debug!(request_id = self.call.id, ?code, "A request has ended.");
            self.dispatcher.metrics.ended(code);
            self.calls.ended(&self.call, is_success);
            self.dispatcher.closed();
        }
    }
}

struct EndGuard(Driver);

impl Drop for EndGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let refusal = self.0.internal("the task of the request panicked");
            self.0.finish(Err(refusal));
        } else {
            // Does nothing when the call has its end; otherwise the task was dropped with its runtime.
            self.0.finish(Err(Refusal::DrainTimeout));
        }
    }
}
