//! How long work will take, from the steps that were timed so far.

use std::collections::BTreeMap;

use crate::{request::Request, spec::Size};

/// Share of a new measurement in the running mean: the last five or so decide.
const NEW_SHARE: f64 = 0.3;

/// What is left to do of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Size the latents are made for.
    pub latent_size: Size,
    /// Transformer calls of a step.
    pub calls_per_step: u32,
    /// Steps left, counted once for each image.
    pub image_steps: u64,
    /// Images left to decode.
    pub images: u64,
}

impl Work {
    /// All of a request.
    #[must_use]
    pub fn of(request: &Request) -> Self {
        Self::left(request, 0, 0)
    }

    /// What is left after `image_steps_done` steps, counted once for each image, and `images_done` whole images.
    #[must_use]
    pub fn left(request: &Request, image_steps_done: u64, images_done: u64) -> Self {
        let all = u64::from(request.count) * u64::from(request.steps);
        Self {
            latent_size: request.latent_size,
            calls_per_step: request.calls_per_step(),
            image_steps: all.saturating_sub(image_steps_done),
            images: u64::from(request.count).saturating_sub(images_done),
        }
    }
}

/// Running means of seconds per image, by latent size and transformer calls.
#[derive(Debug, Clone, Default)]
pub struct StepTimes {
    steps: BTreeMap<(Size, u32), f64>,
    decodes: BTreeMap<Size, f64>,
}

impl StepTimes {
    /// Notes one step of `images` images that took `seconds` in all.
    pub fn record_step(&mut self, latent_size: Size, calls_per_step: u32, images: usize, seconds: f64) {
        let seconds = seconds / images.max(1) as f64;
        update(self.steps.entry((latent_size, calls_per_step)).or_insert(seconds), seconds);
    }

    /// Notes one decoded image.
    pub fn record_decode(&mut self, latent_size: Size, seconds: f64) {
        update(self.decodes.entry(latent_size).or_insert(seconds), seconds);
    }

    /// Seconds for the work; `None` before the first measurement of any size.
    #[must_use]
    pub fn seconds(&self, work: Work) -> Option<f64> {
        let step = self.step_seconds(work.latent_size, work.calls_per_step)?;
        let nearest = nearest(self.decodes.iter().map(|(size, seconds)| (*size, *seconds)), work.latent_size);
        let decode = nearest.map_or(0.0, |(size, seconds)| scaled(seconds, size, work.latent_size));
        Some(step * work.image_steps as f64 + decode * work.images as f64)
    }

    /// Seconds for all of the work, one after the other; 0 before the first measurement.
    pub fn total_seconds(&self, work: impl IntoIterator<Item = Work>) -> f64 {
        work.into_iter().filter_map(|work| self.seconds(work)).sum()
    }

    fn step_seconds(&self, latent_size: Size, calls_per_step: u32) -> Option<f64> {
        if let Some(seconds) = self.steps.get(&(latent_size, calls_per_step)) {
            return Some(*seconds);
        }
        // A size not seen yet: the nearest one, in proportion to pixels and transformer calls. Attention grows faster
        // than that, so the first estimate of a larger size is low; it is right from its first step on.
        let per_call = self.steps.iter().map(|((size, calls), seconds)| (*size, seconds / f64::from(*calls)));
        let (size, seconds) = nearest(per_call, latent_size)?;
        Some(scaled(seconds, size, latent_size) * f64::from(calls_per_step))
    }
}

fn update(mean: &mut f64, seconds: f64) {
    *mean += NEW_SHARE * (seconds - *mean);
}

fn nearest(measured: impl Iterator<Item = (Size, f64)>, wanted: Size) -> Option<(Size, f64)> {
    measured.min_by_key(|(size, _)| size.pixels().abs_diff(wanted.pixels()))
}

fn scaled(seconds: f64, from: Size, to: Size) -> f64 {
    seconds * to.pixels() as f64 / from.pixels().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Size = Size { width: 256, height: 256 };
    const LARGE: Size = Size { width: 512, height: 512 };

    fn work(latent_size: Size, calls_per_step: u32, image_steps: u64, images: u64) -> Work {
        Work { latent_size, calls_per_step, image_steps, images }
    }

    #[test]
    fn nothing_is_said_before_the_first_measurement() {
        let times = StepTimes::default();
        assert_eq!(times.seconds(work(SMALL, 1, 8, 1)), None);
        assert_eq!(times.total_seconds([work(SMALL, 1, 8, 1)]), 0.0);
    }

    #[test]
    fn measured_sizes_are_exact_and_others_in_proportion() {
        let mut times = StepTimes::default();
        times.record_step(SMALL, 1, 2, 1.0);
        times.record_decode(SMALL, 0.25);
        assert_eq!(times.seconds(work(SMALL, 1, 8, 1)), Some(4.25));
        assert_eq!(times.seconds(work(SMALL, 2, 8, 1)), Some(8.25));
        assert_eq!(times.seconds(work(LARGE, 1, 8, 1)), Some(17.0));
        assert_eq!(times.total_seconds([work(SMALL, 1, 2, 0), work(SMALL, 1, 4, 0)]), 3.0);
    }

    #[test]
    fn the_mean_follows_what_is_seen() {
        let mut times = StepTimes::default();
        for seconds in [1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0] {
            times.record_step(SMALL, 1, 1, seconds);
        }
        let seconds = times.seconds(work(SMALL, 1, 1, 0)).unwrap();
        assert!((1.9..2.0).contains(&seconds), "{seconds}");
    }
}
