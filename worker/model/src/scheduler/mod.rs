//! Sigmas, and how a step gets from the model's output to the next latents.
//!
//! All schedulers run on the model's own sigmas and are told the same model times, so that each differs from Euler only in
//! its rule. The transformer was distilled at exactly these times.

mod multistep;
mod rules;

use imagegen_core::spec::SchedulerKind;
use tch::Tensor;

pub(crate) use self::multistep::History;
use self::multistep::Multistep;
use crate::config::SchedulerConfig;

/// Sigmas, model times and rule of one run; the numbers are float32 as in the original.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Schedule {
    /// One a step, then the last one, 0. Strictly falling from 1, or from just below it.
    pub(crate) sigmas: Vec<f32>,
    /// One a step: what the transformer is told, 0 at pure noise and 1 at the picture.
    pub(crate) model_times: Vec<f32>,
    rule: Rule,
}

#[derive(Debug, Clone, PartialEq)]
enum Rule {
    Euler,
    Heun,
    Multistep(Multistep),
}

impl Schedule {
    /// Source: `FlowMatchEulerDiscreteScheduler.set_timesteps` on the sigmas of `pipelines/z_image/pipeline_z_image.py`
    /// `get_default_z_image_sigmas`; model times by `ZImagePipeline.__call__`. The first sigma of multistep rules:
    /// `UniPCMultistepScheduler.set_timesteps`.
    pub(crate) fn new(config: SchedulerConfig, kind: SchedulerKind, steps: u32) -> Self {
        let timestep = |sigma: f32| sigma * config.num_train_timesteps;
        let shifted = |sigma: f32| config.shift * sigma / (1.0 + (config.shift - 1.0) * sigma);
        let mut sigmas: Vec<f32> = linspace_to_one_step(steps).map(shifted).collect();
        let rule: Option<fn(&[f32]) -> Multistep> = match kind {
            SchedulerKind::FlowMatchEuler | SchedulerKind::Heun => None,
            SchedulerKind::UniPc => Some(rules::unipc),
            SchedulerKind::Deis => Some(rules::deis),
            SchedulerKind::DpmSolverPlusPlus => Some(rules::dpm_solver_plus_plus),
        };
        if let (Some(_), Some(first)) = (rule, sigmas.first_mut()) {
            // Their rules take the logarithm of 1 - sigma.
            *first = first.min(1.0 - 1e-6);
        }
        // The pipeline writes 1000, whatever num_train_timesteps is.
        let model_times = sigmas.iter().map(|&sigma| (1000.0 - timestep(sigma)) / 1000.0).collect();
        sigmas.push(0.0);
        let rule = match rule {
            Some(table) => Rule::Multistep(table(&sigmas)),
            None if kind == SchedulerKind::Heun => Rule::Heun,
            None => Rule::Euler,
        };
        Self { sigmas, model_times, rule }
    }

    /// Number of steps.
    pub(crate) const fn steps(&self) -> usize {
        self.model_times.len()
    }

    /// Latents after step `step` and what the next step needs to know of this one, from the latents before it.
    /// `model` gives the transformer's output in float32 for latents at the model time of a step.
    ///
    /// Source: `FlowMatchEulerDiscreteScheduler.step`; the pipeline negates the model's output.
    pub(crate) fn advance(
        &self,
        latents: &Tensor,
        history: &History,
        step: usize,
        model: &dyn Fn(&Tensor, usize) -> Tensor,
    ) -> (Tensor, History) {
        let output = model(latents, step);
        let dt = f64::from(self.sigmas[step + 1] - self.sigmas[step]);
        let (next, mut history) = match &self.rule {
            Rule::Multistep(multistep) => multistep.advance(latents, &output.neg(), history, step),
            Rule::Heun if step + 1 < self.steps() => {
                let ahead = model(&(latents - &output * dt), step + 1);
                (latents - (output + ahead) * (0.5 * dt), History::default())
            }
            Rule::Euler | Rule::Heun => (latents - output * dt, History::default()),
        };
        history.before = Some(latents.shallow_clone());
        (next, history)
    }

    /// Where the last step points: latents of the picture as far as it can be told after `steps_done` steps.
    pub(crate) fn foresee(&self, latents: &Tensor, history: &History, steps_done: usize) -> Tensor {
        match (&history.before, steps_done.checked_sub(1)) {
            (Some(before), Some(last)) => {
                let rest = self.sigmas[steps_done] / (self.sigmas[last] - self.sigmas[steps_done]);
                latents + (latents - before) * f64::from(rest)
            }
            _ => latents.shallow_clone(),
        }
    }
}

/// `torch.linspace(1, 1 / steps, steps)`, which counts from the nearer end.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "torch computes in float32")]
fn linspace_to_one_step(steps: u32) -> impl Iterator<Item = f32> {
    let end = (1.0 / f64::from(steps)) as f32;
    let stride = if steps > 1 { (end - 1.0) / (steps - 1) as f32 } else { 0.0 };
    (0..steps).map(move |index| {
        if index < steps / 2 || steps == 1 {
            1.0 + stride * index as f32
        } else {
            end - stride * (steps - index - 1) as f32
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATIC_SHIFT: SchedulerConfig = SchedulerConfig { num_train_timesteps: 1000.0, shift: 3.0 };
    const KINDS: [SchedulerKind; 5] = [
        SchedulerKind::FlowMatchEuler,
        SchedulerKind::UniPc,
        SchedulerKind::Deis,
        SchedulerKind::DpmSolverPlusPlus,
        SchedulerKind::Heun,
    ];

    #[test]
    fn eight_steps_of_the_turbo_checkpoint() {
        let expected = [1.0, 0.954_545, 0.9, 0.833_333, 0.75, 0.642_857, 0.5, 0.3, 0.0];
        for kind in KINDS {
            let schedule = Schedule::new(STATIC_SHIFT, kind, 8);
            assert_eq!(schedule.sigmas.len(), expected.len());
            for (sigma, expected) in schedule.sigmas.iter().zip(expected) {
                assert!((sigma - expected).abs() < 2e-6, "{kind}: {sigma} {expected}");
            }
        }
    }

    #[test]
    fn sigmas_fall_strictly_from_one_to_zero_and_times_mirror_them() {
        for (steps, kind) in [1, 2, 3, 7, 8, 9, 50, 200].into_iter().flat_map(|steps| KINDS.map(|kind| (steps, kind))) {
            let Schedule { sigmas, model_times, .. } = Schedule::new(STATIC_SHIFT, kind, steps);
            assert!(sigmas[0] > 0.999_998 && sigmas[0] <= 1.0 && sigmas[sigmas.len() - 1] == 0.0);
            assert!(sigmas.windows(2).all(|pair| pair[0] > pair[1]), "{sigmas:?}");
            assert!(model_times.iter().zip(&sigmas).all(|(time, sigma)| (time + sigma - 1.0).abs() < 1e-6));
        }
    }

    /// Where the picture is the same at every sigma, the path is straight, and no rule may leave it.
    #[test]
    fn a_straight_path_ends_at_its_picture_with_every_rule_and_number_of_steps() {
        let noise = Tensor::from_slice(&[1.5f32, -0.25, 0.0]).view([1, 1, 1, 3]);
        let picture = Tensor::from_slice(&[0.5f32, 0.75, -1.0]).view([1, 1, 1, 3]);
        for (steps, kind) in [1, 2, 3, 8, 15, 100].into_iter().flat_map(|steps| KINDS.map(|kind| (steps, kind))) {
            let schedule = Schedule::new(STATIC_SHIFT, kind, steps);
            let (mut latents, mut history) = (noise.copy(), History::default());
            for step in 0..schedule.steps() {
                let model = |latents: &Tensor, step: usize| (&picture - latents) / f64::from(schedule.sigmas[step]);
                (latents, history) = schedule.advance(&latents, &history, step, &model);
                let foreseen = schedule.foresee(&latents, &history, step + 1);
                let difference = (foreseen - &picture).abs().max().double_value(&[]);
                assert!(difference < 1e-4, "{kind} with {steps} steps, after {step}: {difference:.1e}");
            }
            let difference = (latents - &picture).abs().max().double_value(&[]);
            assert!(difference < 1e-5, "{kind} with {steps} steps: {difference:.1e}");
        }
    }
}
