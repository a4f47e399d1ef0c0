//! Flow-matching Euler with static shift.
//!
//! Source: diffusers 0.42.1 `schedulers/scheduling_flow_match_euler_discrete.py`.

use tch::Tensor;

use crate::config::SchedulerConfig;

/// Sigmas and model times of one run, all in float32 as in the original.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Schedule {
    /// One a step, then the last one, 0. Strictly falling from 1.
    pub(crate) sigmas: Vec<f32>,
    /// One a step: what the transformer is told, 0 at pure noise and 1 at the picture.
    pub(crate) model_times: Vec<f32>,
}

impl Schedule {
    /// Source: `FlowMatchEulerDiscreteScheduler.set_timesteps` on the sigmas of `pipelines/z_image/pipeline_z_image.py`
    /// `get_default_z_image_sigmas`; model times by `ZImagePipeline.__call__`.
    pub(crate) fn new(config: SchedulerConfig, steps: u32) -> Self {
        let timestep = |sigma: f32| sigma * config.num_train_timesteps;
        let shifted = |sigma: f32| config.shift * sigma / (1.0 + (config.shift - 1.0) * sigma);
        let mut sigmas: Vec<f32> = linspace_to_one_step(steps).map(shifted).collect();
        // The pipeline writes 1000, whatever num_train_timesteps is.
        let model_times = sigmas.iter().map(|&sigma| (1000.0 - timestep(sigma)) / 1000.0).collect();
        sigmas.push(0.0);
        Self { sigmas, model_times }
    }

    /// Number of steps.
    pub(crate) const fn steps(&self) -> usize {
        self.model_times.len()
    }

    /// Latents after step `step`, from the latents before it and the model's output.
    ///
    /// Source: `FlowMatchEulerDiscreteScheduler.step`; the pipeline negates the model's output.
    pub(crate) fn advance(&self, latents: &Tensor, model_output: &Tensor, step: usize) -> Tensor {
        let dt = self.sigmas[step + 1] - self.sigmas[step];
        latents - model_output * f64::from(dt)
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

    #[test]
    fn eight_steps_of_the_turbo_checkpoint() {
        let schedule = Schedule::new(STATIC_SHIFT, 8);
        let expected = [1.0, 0.954_545, 0.9, 0.833_333, 0.75, 0.642_857, 0.5, 0.3, 0.0];
        assert_eq!(schedule.sigmas.len(), expected.len());
        for (sigma, expected) in schedule.sigmas.iter().zip(expected) {
            assert!((sigma - expected).abs() < 1e-6, "{sigma} {expected}");
        }
    }

    #[test]
    fn sigmas_fall_strictly_from_one_to_zero_and_times_mirror_them() {
        for steps in [1, 2, 3, 7, 8, 9, 50, 200] {
            let Schedule { sigmas, model_times } = Schedule::new(STATIC_SHIFT, steps);
            assert_eq!((sigmas[0], sigmas[sigmas.len() - 1]), (1.0, 0.0));
            assert!(sigmas.windows(2).all(|pair| pair[0] > pair[1]), "{sigmas:?}");
            assert!(model_times.iter().zip(&sigmas).all(|(time, sigma)| (time + sigma - 1.0).abs() < 1e-6));
        }
    }
}
