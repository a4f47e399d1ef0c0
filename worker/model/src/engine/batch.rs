//! Images that are being made together, and what their steps need.

use imagegen_core::engine::{EngineError, Stage};
use imagegen_core::spec::{Guidance, Size};
use tch::Tensor;

use crate::guidance::BatchGuidance;
use crate::scheduler::{History, Schedule};
use crate::shim::ShimError;
use crate::shim::cuda::{Cuda, Event};
use crate::transformer::{Conditioning, Grid, Modulations, Transformer};

/// Images that are being made together, of one latent size, schedule and kind of guidance.
#[derive(Debug)]
pub struct TorchBatch {
    pub(super) images: Vec<Image>,
    /// `[B, latent_channels, h, w]`, float32.
    pub(crate) latents: Tensor,
    pub(super) schedule: Schedule,
    /// What the schedule remembers of the steps done.
    pub(super) history: History,
    pub(super) grid: Grid,
    pub(super) steps_done: usize,
    /// Made by the first step, and again by the first one after it was dropped.
    prepared: Option<Prepared>,
    pub(super) pace: Pace,
}

/// What a batch keeps of one image beside its latents.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) size: Size,
    pub(super) guidance: Guidance,
    /// Caption features of the prompt, `[tokens, cap_feat_dim]`.
    pub(super) caption: Tensor,
    /// The same of the negative prompt; only with guidance.
    pub(super) negative: Option<Tensor>,
}

/// What follows from caption features and schedule.
#[derive(Debug)]
pub(super) struct Prepared {
    /// The prompts, for steps without guidance.
    plain: Option<Conditioning>,
    /// The prompts, then the negative prompts.
    guided: Option<(Conditioning, BatchGuidance)>,
    modulations: Modulations,
}

/// Keeps the host at most one step ahead of the device, so that progress and cancellation are true.
#[derive(Debug)]
pub(super) enum Pace {
    /// The CPU does each operator at once.
    Immediate,
    /// The ends of the last two steps, the older first.
    Events(Cuda, Vec<Event>),
}

impl TorchBatch {
    pub(super) fn new(images: Vec<Image>, latents: Tensor, schedule: Schedule, grid: Grid, pace: Pace) -> Self {
        Self { images, latents, schedule, history: History::default(), grid, steps_done: 0, prepared: None, pace }
    }

    /// Size of the picture of image `index`.
    pub(super) fn size(&self, index: usize) -> Result<Size, EngineError> {
        self.images.get(index).map(|image| image.size).ok_or_else(|| EngineError::Failed {
            stage: Stage::Vae,
            detail: format!("image {index} of a batch of {}", self.images.len()),
        })
    }

    /// Latents and history after one more step.
    pub(super) fn advanced(&mut self, transformer: &Transformer) -> (Tensor, History) {
        let Self { images, latents, schedule, history, grid, steps_done, prepared, .. } = self;
        let prepared =
            prepared.get_or_insert_with(|| Prepared::new(images, schedule, *grid, latents.device(), transformer));
        let model =
            |latents: &Tensor, step: usize| prepared.forward(transformer, latents, step).to_kind(tch::Kind::Float);
        schedule.advance(latents, history, *steps_done, &model)
    }

    /// Drops what [`Self::advanced`] can make again.
    pub(super) fn forget(&mut self) {
        self.prepared = None;
    }

    /// Images in the order of `indices`, which are all there.
    pub(super) fn keep(&mut self, indices: &[usize]) {
        let rows: Vec<i64> = indices.iter().map(|&index| i64::try_from(index).unwrap_or(i64::MAX)).collect();
        let rows = Tensor::from_slice(&rows).to_device(self.latents.device());
        let select = |tensor: &Tensor| tensor.index_select(0, &rows);
        (self.latents, self.history) = (select(&self.latents), self.history.map(select));
        self.images = indices.iter().map(|&index| self.images[index].shallow_clone()).collect();
        self.forget();
    }

    /// The images one by one. Takes no memory: the parts are views of the same latents.
    pub(super) fn split(mut self) -> Vec<Self> {
        self.forget();
        let alone = |(index, image)| {
            let part = |tensor: &Tensor| tensor.narrow(0, index, 1);
            Self {
                history: self.history.map(part),
                steps_done: self.steps_done,
                ..Self::new(vec![image], part(&self.latents), self.schedule.clone(), self.grid, self.pace.fresh())
            }
        };
        (0..).zip(self.images).map(alone).collect()
    }
}

impl Image {
    fn shallow_clone(&self) -> Self {
        Self {
            caption: self.caption.shallow_clone(),
            negative: self.negative.as_ref().map(Tensor::shallow_clone),
            ..*self
        }
    }
}

impl Prepared {
    fn new(images: &[Image], schedule: &Schedule, grid: Grid, device: tch::Device, transformer: &Transformer) -> Self {
        let guidances: Vec<Guidance> = images.iter().map(|image| image.guidance).collect();
        let guidance = BatchGuidance::new(&guidances, schedule, device);
        let negative = images.iter().filter_map(|image| image.negative.as_ref()).filter(|_| guidance.is_some());
        let captions: Vec<Tensor> =
            images.iter().map(|image| &image.caption).chain(negative).map(Tensor::shallow_clone).collect();
        let all = transformer.condition(&captions, grid);
        let (plain, guided) = match guidance {
            None => (Some(all), None),
            Some(guidance) => (guidance.pauses().then(|| all.first(images.len())), Some((all, guidance))),
        };
        Self { plain, guided, modulations: transformer.modulate(&schedule.model_times) }
    }

    /// The model's output for `latents` at `step`, guided where guidance is active.
    fn forward(&self, transformer: &Transformer, latents: &Tensor, step: usize) -> Tensor {
        let guided = self.guided.as_ref().filter(|(_, guidance)| guidance.is_active(step));
        match (guided, &self.plain) {
            (Some((conditioning, guidance)), _) => {
                let twice = Tensor::cat(&[latents, latents], 0);
                guidance.apply(&transformer.forward(&twice, conditioning, &self.modulations, step), step)
            }
            (None, Some(conditioning)) => transformer.forward(latents, conditioning, &self.modulations, step),
            (None, None) => unreachable!("a batch without guidance at some step has its plain conditioning"),
        }
    }
}

impl Pace {
    pub(super) const fn new(cuda: Option<Cuda>) -> Self {
        match cuda {
            None => Self::Immediate,
            Some(cuda) => Self::Events(cuda, Vec::new()),
        }
    }

    const fn fresh(&self) -> Self {
        match self {
            Self::Immediate => Self::Immediate,
            Self::Events(cuda, _) => Self::Events(*cuda, Vec::new()),
        }
    }

    /// Waits until the device has done all steps but the last one that was enqueued.
    pub(super) fn wait(&self) -> Result<(), ShimError> {
        match self {
            Self::Events(_, ends) if ends.len() == 2 => ends[0].synchronize(),
            _ => Ok(()),
        }
    }

    /// Says that all of a step is enqueued.
    pub(super) fn enqueued(&mut self) -> Result<(), ShimError> {
        let Self::Events(cuda, ends) = self else { return Ok(()) };
        let end = if ends.len() < 2 { cuda.event()? } else { ends.remove(0) };
        end.record()?;
        ends.push(end);
        Ok(())
    }
}
