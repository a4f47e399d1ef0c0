//! Classifier-free guidance.
//!
//! Source: diffusers 0.42.1 `pipelines/z_image/pipeline_z_image.py` `ZImagePipeline.__call__`.

use imagegen_core::spec::Guidance;
use tch::{Device, Kind, Tensor};

use crate::scheduler::Schedule;

/// Guidance of the images of one batch over all steps, on the device, so that no step has to upload or read anything.
#[derive(Debug)]
pub(crate) struct BatchGuidance {
    /// Whether any image is guided, by step.
    active: Vec<bool>,
    /// `[steps, B, 1, 1, 1]`; 0 where an image's guidance is truncated.
    scales: Tensor,
    /// Largest norm as a multiple of the positive one's, `[steps, B, 1, 1, 1]`; infinite without a cap and where an image's
    /// guidance is truncated. `None` when no image has a cap.
    norm_limits: Option<Tensor>,
}

impl BatchGuidance {
    /// `None` when no image is guided at any step.
    #[allow(clippy::cast_possible_truncation, reason = "the original multiplies float32 tensors")]
    pub(crate) fn new(images: &[Guidance], schedule: &Schedule, device: Device) -> Option<Self> {
        let count = i64::try_from(images.len()).unwrap_or(i64::MAX);
        let scale = |image: &Guidance, time: f32| {
            let truncated = image.truncation <= 1.0 && f64::from(time) > image.truncation;
            if truncated { 0.0 } else { image.scale as f32 }
        };
        let scales: Vec<Vec<f32>> =
            schedule.model_times.iter().map(|&time| images.iter().map(|image| scale(image, time)).collect()).collect();
        let active: Vec<bool> = scales.iter().map(|scales| scales.iter().any(|&scale| scale > 0.0)).collect();
        if !active.contains(&true) {
            return None;
        }
        let limit = |(image, &scale): (&Guidance, &f32)| {
            if image.normalization > 0.0 && scale > 0.0 { image.normalization as f32 } else { f32::INFINITY }
        };
        let limits: Vec<f32> = scales.iter().flat_map(|scales| images.iter().zip(scales).map(limit)).collect();
        let upload = |values: &[f32]| Tensor::from_slice(values).view([-1, count, 1, 1, 1]).to_device(device);
        Some(Self {
            active,
            scales: upload(&scales.concat()),
            norm_limits: limits.iter().any(|limit| limit.is_finite()).then(|| upload(&limits)),
        })
    }

    /// Whether any image is guided at `step`.
    pub(crate) fn is_active(&self, step: usize) -> bool {
        self.active[step]
    }

    /// Whether some step is without any guided image.
    pub(crate) fn pauses(&self) -> bool {
        self.active.contains(&false)
    }

    /// Positive and negative model outputs, `[2 B, C, H, W]`, to the guided ones, `[B, C, H, W]` in float32.
    pub(crate) fn apply(&self, model_output: &Tensor, step: usize) -> Tensor {
        let halves = model_output.to_kind(Kind::Float).chunk(2, 0);
        let (positive, negative) = (&halves[0], &halves[1]);
        let at_step = |all: &Tensor| all.select(0, i64::try_from(step).unwrap_or(i64::MAX));
        let guided = positive + (positive - negative) * at_step(&self.scales);
        let Some(limits) = self.norm_limits.as_ref().map(at_step) else { return guided };
        let norm = |x: &Tensor| x.norm_scalaropt_dim(2.0, [1, 2, 3].as_slice(), true);
        let (largest, found) = (norm(positive) * limits, norm(&guided));
        let capped = (&largest / &found).where_self(&found.gt_tensor(&largest), &found.ones_like());
        guided * capped
    }
}

#[cfg(test)]
mod tests {
    use imagegen_core::spec::SchedulerKind;

    use super::*;
    use crate::config::SchedulerConfig;

    fn schedule() -> Schedule {
        Schedule::new(SchedulerConfig { num_train_timesteps: 1000.0, shift: 3.0 }, SchedulerKind::FlowMatchEuler, 8)
    }

    #[test]
    fn no_scale_means_no_guidance() {
        assert!(BatchGuidance::new(&[Guidance::OFF], &schedule(), Device::Cpu).is_none());
    }

    #[test]
    fn truncation_is_strict_and_per_image() {
        let image = |truncation| Guidance { scale: 4.0, normalization: 0.0, truncation };
        // The fifth model time is exactly 0.25.
        let guidance = BatchGuidance::new(&[image(0.25), image(0.0)], &schedule(), Device::Cpu).unwrap();
        assert_eq!(guidance.active, [true, true, true, true, true, false, false, false]);
        assert!(guidance.pauses());
        let scales = Vec::<Vec<f32>>::try_from(guidance.scales.view([8, 2])).unwrap();
        assert_eq!(scales[4], [4.0, 0.0]);
        assert_eq!(scales[0], [4.0, 4.0]);
    }

    #[test]
    fn a_cap_binds_only_where_it_is_exceeded() {
        let guidance = |normalization| {
            let image = Guidance { scale: 1.0, normalization, truncation: 1.0 };
            BatchGuidance::new(&[image], &schedule(), Device::Cpu).unwrap()
        };
        let outputs = Tensor::from_slice(&[3.0f32, 4.0, 0.0, 0.0]).view([2, 2, 1, 1]);
        let guided =
            |normalization| Vec::<f32>::try_from(guidance(normalization).apply(&outputs, 0).view([-1])).unwrap();
        assert_eq!(guided(0.0), [6.0, 8.0]);
        assert_eq!(guided(1.0), [3.0, 4.0]);
        assert_eq!(guided(1.5), [4.5, 6.0]);
        assert_eq!(guided(9.0), [6.0, 8.0]);
    }
}
