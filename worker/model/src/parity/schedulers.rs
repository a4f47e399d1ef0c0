//! Every rule against its class in diffusers, step by step on the same velocities.

use std::cell::RefCell;

use imagegen_core::spec::SchedulerKind;
use tch::Tensor;

use super::{relative_difference, tensors};
use crate::config::SchedulerConfig;
use crate::scheduler::{History, Schedule};

const TOLERANCE: f64 = 1e-5;

#[test]
fn every_step_of_every_rule() {
    let expected = tensors("schedulers.safetensors");
    let mut compared = 0;
    for (key, start) in expected.iter().filter_map(|(key, start)| Some((key.strip_suffix(".start")?, start))) {
        let (name, steps) = key.split_once('.').unwrap();
        let (kind, steps): (SchedulerKind, u32) = (name.parse().unwrap(), steps.parse().unwrap());
        let get = |leaf: &str| &expected[&format!("{key}.{leaf}")];
        let schedule = Schedule::new(SchedulerConfig { num_train_timesteps: 1000.0, shift: 3.0 }, kind, steps);
        let sigmas = Tensor::from_slice(&schedule.sigmas);
        assert!(relative_difference(&sigmas, get("sigmas")) <= 1e-6, "{key}: {:?}", schedule.sigmas);

        // The pipeline negates the model's output.
        let velocities = get("velocities").neg().unbind(0);
        let calls = RefCell::new(velocities.iter());
        let model = |_: &Tensor, _: usize| calls.borrow_mut().next().unwrap().shallow_clone();
        // Heun's class counts its two calls as two steps; the first gives no latents that are kept.
        let samples = get("samples").unbind(0);
        let is_kept = |index: usize| kind != SchedulerKind::Heun || index % 2 == 1 || index + 1 == samples.len();
        let kept = samples.iter().enumerate().filter(|(index, _)| is_kept(*index));
        let (mut latents, mut history) = (start.copy(), History::default());
        for (step, (_, sample)) in kept.enumerate() {
            (latents, history) = schedule.advance(&latents, &history, step, &model);
            let difference = relative_difference(&latents, sample);
            assert!(difference <= TOLERANCE, "{key}, step {step}: {difference:.2e}");
            compared += 1;
        }
    }
    // Five numbers of steps, 34 steps in all, four classes; DEIS lacks one step.
    assert_eq!(compared, 4 * 34 - 1);
}
