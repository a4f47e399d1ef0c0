//! A batch on its way through the engine: text encoder, steps, one image after the other. Between any two calls it may
//! lose images that nobody wants any more, and may be suspended for smaller work.

use std::{collections::BTreeMap, mem};

use imagegen_core::{
    engine::{Engine, EngineError, Stage},
    eta::Work,
    spec::RgbImage,
    table::Shape,
    turn::Candidate,
};

use super::{EngineEvent, JobError, timed, world::World};

/// One image of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Item {
    /// Names the request.
    pub(super) arrival: u64,
    /// Which of its images.
    pub(super) index: u32,
}

/// Images that are made together.
pub(super) struct Group<B> {
    /// Its turn is that of the request it was made for.
    pub(super) leader: Candidate,
    /// In the order of the engine's batch.
    pub(super) items: Vec<Item>,
    /// `None` before the text encoder.
    pub(super) batch: Option<B>,
    pub(super) steps: u32,
    pub(super) steps_done: u32,
    /// Images decoded or passed over.
    pub(super) decoded: usize,
    /// What it is charged as.
    pub(super) shape: Shape,
    /// An allocation of it failed before: it goes on alone, and fails if that happens again.
    pub(super) is_retry: bool,
}

impl<B> Group<B> {
    pub(super) const fn new(leader: Candidate, items: Vec<Item>, steps: u32, shape: Shape) -> Self {
        Self { leader, items, batch: None, steps, steps_done: 0, decoded: 0, shape, is_retry: false }
    }

    /// Nothing to do.
    pub(super) fn empty() -> Self {
        let leader = Candidate {
            priority: 0,
            deadline: None,
            arrival: 0,
            since: std::time::Duration::ZERO,
            total_seconds: 0.0,
            held_seconds: 0.0,
        };
        let size = imagegen_core::spec::Size { width: 1, height: 1 };
        Self::new(leader, Vec::new(), 0, Shape { size, batch: 0, caption_tokens: 0, is_guided: false })
    }
}

/// How far a batch came.
enum Outcome {
    Done,
    Suspended,
}

impl<E: Engine> World<'_, E> {
    /// Runs the batch until it is done, failed, or must let smaller work go first.
    ///
    /// # Errors
    /// [`EngineError::Fatal`].
    pub(super) fn make(&mut self, mut group: Group<E::Batch>) -> Result<(), EngineError> {
        self.engine.reset_peaks();
        self.dispatcher.charged(self.table.bytes(group.shape).unwrap_or_default());
        self.dispatcher.metrics.batch(group.items.len(), group.steps_done == 0 && !group.is_retry);
        let outcome = self.advance(&mut group);
        self.note_peaks(&group);
        let result = match outcome {
            Ok(Outcome::Done) => {
                drop(group);
                Ok(())
            }
            Ok(Outcome::Suspended) => {
                if let Some(batch) = &mut group.batch {
                    self.engine.suspend(batch);
                }
                self.dispatcher.metrics.suspensions.inc();
                self.paused.push(group);
                Ok(())
            }
            Err(error @ EngineError::OutOfMemory { .. }) => self.recover(group, &error),
            Err(error @ EngineError::Failed { .. }) => {
                let items = mem::take(&mut group.items);
                drop(group);
                self.fail(&items, &JobError::Engine(error));
                Ok(())
            }
            Err(error @ EngineError::Fatal { .. }) => {
                // Its destructors would talk to a dead device.
                mem::forget(group);
                Err(error)
            }
        };
        self.dispatcher.charged(0);
        if let Err(error) = &result {
            // First the state, so that whoever sees a job's end also sees that nothing will follow.
            self.dispatcher.fail(&error.to_string());
            let all: Vec<_> = self.started.keys().map(|&arrival| Item { arrival, index: 0 }).collect();
            self.fail(&all, &JobError::Engine(error.clone()));
        }
        result
    }

    fn advance(&mut self, group: &mut Group<E::Batch>) -> Result<Outcome, EngineError> {
        let mut has_advanced = false;
        loop {
            self.drop_unwanted();
            self.shrink(group)?;
            let is_wanted = |item: &Item| self.started.contains_key(&item.arrival);
            let Some(next) = group.items.iter().skip(group.decoded).position(is_wanted) else {
                return Ok(Outcome::Done);
            };
            if has_advanced && self.dispatcher.is_held_up_too_long(&group.leader) {
                return Ok(Outcome::Suspended);
            }
            has_advanced = true;
            let seconds = match &mut group.batch {
                None => self.begin(group)?,
                Some(_) if group.steps_done < group.steps => self.step(group)?,
                Some(_) => {
                    group.decoded += next;
                    self.decode(group)?
                }
            };
            self.dispatcher.passed(&group.leader, seconds);
            self.measure_now_and_then();
        }
    }

    /// Leaves out images that nobody wants, where a batch of what is left is warm.
    fn shrink(&mut self, group: &mut Group<E::Batch>) -> Result<(), EngineError> {
        let wanted: Vec<_> =
            (0..group.items.len()).filter(|&index| self.started.contains_key(&group.items[index].arrival)).collect();
        if wanted.is_empty() || wanted.len() == group.items.len() || group.steps_done == group.steps {
            return Ok(());
        }
        let smaller = Shape { batch: wanted.len() as u32, ..group.shape };
        if !self.table.is_empty() && !self.table.is_warm(smaller) {
            return Ok(());
        }
        if let Some(batch) = &mut group.batch {
            timed(Stage::Transformer, || self.engine.keep(batch, &wanted)).0?;
        }
        group.items = wanted.into_iter().map(|index| group.items[index]).collect();
        group.shape = smaller;
        Ok(())
    }

    fn begin(&mut self, group: &mut Group<E::Batch>) -> Result<f64, EngineError> {
        let spec = |item: &Item| Some(self.started.get(&item.arrival)?.job.request.spec(item.index));
        let specs: Vec<_> = group.items.iter().filter_map(spec).collect();
        group.items.retain(|item| self.started.contains_key(&item.arrival));
        let (batch, seconds) = self.call(Stage::TextEncoder, |engine| engine.begin(&specs))?;
        group.batch = Some(batch);
        self.for_each_request(group, |started, _| started.done.text_encoder_seconds += seconds);
        Ok(seconds)
    }

    fn step(&mut self, group: &mut Group<E::Batch>) -> Result<f64, EngineError> {
        let Some(batch) = &mut group.batch else { return Ok(0.0) };
        let ((), seconds) = self.call(Stage::Transformer, |engine| engine.step(batch))?;
        group.steps_done += 1;
        if let Some(item) = group.items.first()
            && let Some(started) = self.started.get(&item.arrival)
        {
            self.dispatcher.step_done(&started.job.request, group.items.len(), seconds);
        }
        let (dispatcher, step) = (self.dispatcher, group.steps_done);
        let mut previews = self.previews(group)?;
        self.for_each_request(group, |started, items| {
            started.done.transformer_seconds += seconds;
            started.image_steps_done += items.len() as u64;
            let request = &started.job.request;
            let left = Work::left(request, started.image_steps_done, started.images_done.into());
            let eta_seconds = dispatcher.left(started.candidate.arrival, left);
            let first_index = items.first().map_or(0, |item| item.index);
            let previews = items.iter().filter_map(|item| previews.remove(&(item.arrival, item.index))).collect();
            started.job.tell(EngineEvent::Step { first_index, step, eta_seconds, previews });
        });
        Ok(seconds)
    }

    /// The previews that are due after this step, by request and image.
    fn previews(&mut self, group: &mut Group<E::Batch>) -> Result<BTreeMap<(u64, u32), RgbImage>, EngineError> {
        let mut previews = BTreeMap::new();
        let step = group.steps_done;
        let Some(batch) = &mut group.batch else { return Ok(previews) };
        for (index, item) in group.items.iter().enumerate() {
            let started = self.started.get(&item.arrival);
            if started.is_some_and(|started| started.job.request.has_preview(step)) {
                let (preview, seconds) = self.call(Stage::Vae, |engine| engine.preview(batch, index))?;
                previews.insert((item.arrival, item.index), preview);
                if let Some(started) = self.started.get_mut(&item.arrival) {
                    started.done.vae_seconds += seconds;
                }
            }
        }
        Ok(previews)
    }

    /// The image at `decoded`.
    fn decode(&mut self, group: &mut Group<E::Batch>) -> Result<f64, EngineError> {
        let (Some(batch), Some(&item)) = (&mut group.batch, group.items.get(group.decoded)) else { return Ok(0.0) };
        let at = group.decoded;
        let (image, seconds) = self.call(Stage::Vae, |engine| engine.decode(batch, at))?;
        group.decoded += 1;
        // So that the end of the request has the peak of its last image.
        self.note_peaks(group);
        let mut is_done = false;
        if let Some(started) = self.started.get_mut(&item.arrival) {
            let request = &started.job.request;
            started.done.vae_seconds += seconds;
            started.images_done += 1;
            is_done = started.images_done == request.count;
            self.dispatcher.image_done(request.latent_size, seconds);
            let left = Work::left(request, started.image_steps_done, started.images_done.into());
            self.dispatcher.left(item.arrival, left);
            started.job.tell(EngineEvent::Image { index: item.index, image });
        }
        if is_done {
            if group
                .items
                .iter()
                .skip(group.decoded)
                .all(|other| !self.started.contains_key(&other.arrival) || other.arrival == item.arrival)
            {
                // Nothing is left to do with the batch: its memory is free before its last request ends.
                group.batch = None;
            }
            self.end(item.arrival, Ok(()));
        }
        Ok(seconds)
    }

    fn call<T>(
        &mut self,
        stage: Stage,
        work: impl FnOnce(&mut E) -> Result<T, EngineError>,
    ) -> Result<(T, f64), EngineError> {
        let (result, seconds) = timed(stage, || work(&mut self.engine));
        self.dispatcher.stage_done(stage, seconds, result.as_ref().err());
        Ok((result?, seconds))
    }

    /// Every request of the batch that is still wanted, with its images in the batch.
    fn for_each_request(
        &mut self,
        group: &Group<E::Batch>,
        mut change: impl FnMut(&mut super::world::Started, &[Item]),
    ) {
        let mut items = group.items.clone();
        items.sort_by_key(|item| (item.arrival, item.index));
        for items in items.chunk_by(|one, other| one.arrival == other.arrival) {
            if let Some(started) = items.first().and_then(|item| self.started.get_mut(&item.arrival)) {
                change(started, items);
            }
        }
    }

    fn note_peaks(&mut self, group: &Group<E::Batch>) {
        let peak_bytes = self.engine.allocator().peak_allocated_bytes;
        self.for_each_request(group, |started, _| started.done.peak_bytes = started.done.peak_bytes.max(peak_bytes));
    }

    /// Ends the requests of these images with the error.
    pub(super) fn fail(&mut self, items: &[Item], error: &JobError) {
        for item in items {
            self.end(item.arrival, Err(error.clone()));
        }
    }
}
