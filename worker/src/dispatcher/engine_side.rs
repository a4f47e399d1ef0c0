//! The half of the dispatcher that the engine thread calls.

use std::sync::{Arc, PoisonError};

use imagegen_core::{
    engine::{CountTokens, EngineError, ModelInfo, Stage},
    eta::Work,
    request::Request,
    rules::{ModelLimits, Rules, RulesError},
};

use super::{Dispatcher, IDLE_BEAT, Job, Loaded};
use crate::{
    engine_thread::{EngineEvent, JobError, LoadProgress},
    snapshot::Phase,
};

impl Dispatcher {
    /// Part of the checkpoint is read.
    pub(crate) fn loading(&self, LoadProgress { loaded_bytes, total_bytes }: LoadProgress) {
        self.beat();
        let ratio = (loaded_bytes as f64 / total_bytes.max(1) as f64).clamp(0.0, 1.0);
        // In whole per cents: a report for each of thousands of tensors helps nobody.
        let ratio = (ratio * 100.0).floor() / 100.0;
        self.metrics.loading(loaded_bytes);
        self.update(|state| state.phase = Phase::Loading { ratio });
    }

    /// The model is ready to serve.
    pub(crate) fn loaded(&self, model: &ModelInfo, count_tokens: CountTokens) -> Result<(), RulesError> {
        let rules = Rules::new(self.settings.clone(), ModelLimits::from(model))?;
        self.metrics.loaded(model, self.epoch.elapsed());
        self.update(|state| {
            state.loaded = Some(Arc::new(Loaded { model: model.clone(), rules, count_tokens }));
            state.phase = Phase::Serving;
        });
        Ok(())
    }

    /// The job whose turn it is, once there is one; `None` when the thread should end.
    pub(crate) fn next_job(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            self.beat();
            if state.is_stopped {
                return None;
            }
            while let Some((waited, job)) = state.queue.pop(self.epoch.elapsed()) {
                if job.cancelled.is_cancelled() {
                    job.tell(EngineEvent::Ended(Err(JobError::Cancelled)));
                    continue;
                }
                state.running = Some(Work::of(&job.request));
                self.publish(&state);
                drop(state);
                let queue_seconds = waited.as_secs_f64();
                job.tell(EngineEvent::Started { queue_seconds });
                return Some(job);
            }
            self.publish(&state);
            state = self.work.wait_timeout(state, IDLE_BEAT).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The job that ran has left the device.
    pub(crate) fn job_ended(&self, job: &Job) {
        self.metrics.images_per_request.observe(f64::from(job.request.count));
        self.update(|state| state.running = None);
    }

    /// One call of the engine has returned.
    pub(crate) fn stage_done(&self, stage: Stage, seconds: f64, error: Option<&EngineError>) {
        self.beat();
        self.metrics.stage(stage, seconds, error);
    }

    /// One step of `images` images took this long. Returns the seconds for what is left.
    pub(crate) fn step_done(&self, request: &Request, images: usize, seconds: f64, left: Work) -> f64 {
        let mut state = self.lock();
        state.times.record_step(request.latent_size, request.calls_per_step(), images, seconds);
        state.running = Some(left);
        state.times.seconds(left).unwrap_or_default()
    }

    /// One image was decoded.
    pub(crate) fn image_done(&self, request: &Request, seconds: f64, left: Work) {
        let mut state = self.lock();
        state.times.record_decode(request.latent_size, seconds);
        state.running = Some(left);
    }

    /// No request can be served any more; all that are admitted end.
    pub(crate) fn fail(&self, reason: &str) {
        let waiting = self.update(|state| {
            if !matches!(state.phase, Phase::Failed { .. }) {
                state.phase = Phase::Failed { reason: reason.to_owned() };
            }
            state.queue.take_all()
        });
        drop(waiting);
        self.abort();
    }
}
