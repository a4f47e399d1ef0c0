//! Weights of DEIS, DPM-Solver++ and UniPC, all of second order, from sigmas.
//!
//! In flow matching, latents are `alpha × picture + sigma × noise` with `alpha = 1 - sigma`. The first and the last step of
//! each rule is of first order, which for latents of this form is the Euler step.

use super::multistep::{CorrectorWeights, Multistep, NextWeights, StepWeights};

/// One point of the schedule.
#[derive(Clone, Copy)]
struct Point {
    sigma: f64,
    alpha: f64,
    /// Half of the logarithm of the signal-to-noise ratio; infinite at sigma 0.
    lambda: f64,
}

impl Point {
    fn new(sigma: f32) -> Self {
        let sigma = f64::from(sigma);
        let alpha = 1.0 - sigma;
        Self { sigma, alpha, lambda: (alpha / sigma).ln() }
    }
}

/// The points around one step, and whether it is of second order.
struct Step {
    /// Where the step ends.
    to: Point,
    /// Where it starts.
    from: Point,
    /// Where the step before it started.
    before: Option<Point>,
}

/// Second order wherever there is a step before and one after.
fn steps(sigmas: &[f32]) -> impl Iterator<Item = Step> {
    let last = sigmas.len().saturating_sub(2);
    let point = |index: usize| Point::new(sigmas[index]);
    (0..=last).map(move |index| Step {
        to: point(index + 1),
        from: point(index),
        before: (index > 0 && index < last).then(|| point(index - 1)),
    })
}

fn euler(from: Point, to: Point) -> NextWeights {
    NextWeights { base: 1.0, velocity: to.sigma - from.sigma, ..NextWeights::default() }
}

/// Source: diffusers 0.42.1 `schedulers/scheduling_deis_multistep.py` `DEISMultistepScheduler` with `solver_order` 2,
/// `deis_first_order_update`, `multistep_deis_second_order_update`. The class returns NaN at sigma 0 from 15 steps on,
/// where it would use second order; here the last step is always of first order.
pub(super) fn deis(sigmas: &[f32]) -> Multistep {
    let weights = |Step { to, from, before }: Step| {
        let next = before.map_or_else(
            || euler(from, to),
            |before| {
                let rho = |point: Point| point.sigma / point.alpha;
                // Integral of (ln t - ln c) / (ln b - ln c) over t.
                let integral = |t: f64, b: f64, c: f64| t * (t.ln() - c.ln() - 1.0) / (b.ln() - c.ln());
                let weight = |b: f64, c: f64| to.alpha * (integral(rho(to), b, c) - integral(rho(from), b, c));
                NextWeights {
                    base: to.alpha / from.alpha,
                    velocity: 0.0,
                    prediction: weight(rho(from), rho(before)),
                    earlier: weight(rho(before), rho(from)),
                }
            },
        );
        // Of the noise.
        StepWeights { prediction: from.alpha, corrector: None, next }
    };
    Multistep(steps(sigmas).map(weights).collect())
}

/// Source: diffusers 0.42.1 `schedulers/scheduling_dpmsolver_multistep.py` `DPMSolverMultistepScheduler` with
/// `algorithm_type` "dpmsolver++", `solver_type` "midpoint", `solver_order` 2, `final_sigmas_type` "zero":
/// `dpm_solver_first_order_update`, `multistep_dpm_solver_second_order_update`.
pub(super) fn dpm_solver_plus_plus(sigmas: &[f32]) -> Multistep {
    let weights = |Step { to, from, before }: Step| {
        let next = before.map_or_else(
            || euler(from, to),
            |before| {
                let h = to.lambda - from.lambda;
                let ratio = (from.lambda - before.lambda) / h;
                let first = -to.alpha * (-h).exp_m1();
                let second = 0.5 * first / ratio;
                NextWeights { base: to.sigma / from.sigma, velocity: 0.0, prediction: first + second, earlier: -second }
            },
        );
        // Of the picture.
        StepWeights { prediction: -from.sigma, corrector: None, next }
    };
    Multistep(steps(sigmas).map(weights).collect())
}

/// Source: diffusers 0.42.1 `schedulers/scheduling_unipc_multistep.py` `UniPCMultistepScheduler` with `predict_x0`,
/// `solver_type` "bh2", `solver_order` 2: `multistep_uni_p_bh_update`, `multistep_uni_c_bh_update`.
pub(super) fn unipc(sigmas: &[f32]) -> Multistep {
    let mut last: Option<Step> = None;
    let mut weights = Vec::new();
    for step in steps(sigmas) {
        let corrector = last.as_ref().map(corrector);
        weights.push(StepWeights { prediction: -step.from.sigma, corrector, next: predictor(&step) });
        last = Some(step);
    }
    Multistep(weights)
}

fn predictor(Step { to, from, before }: &Step) -> NextWeights {
    let h = to.lambda - from.lambda;
    let first = -to.alpha * (-h).exp_m1();
    let second = before.map_or(0.0, |before| 0.5 * first * h / (before.lambda - from.lambda));
    NextWeights { base: to.sigma / from.sigma, velocity: 0.0, prediction: first - second, earlier: second }
}

/// Corrects the latents at the end of `last`, once the prediction there is known. Of the order of that step.
fn corrector(Step { to, from, before }: &Step) -> CorrectorWeights {
    let h = to.lambda - from.lambda;
    let phi = (-h).exp_m1();
    let first = -to.alpha * phi;
    let last_base = to.sigma / from.sigma;
    let Some(before) = before else {
        return CorrectorWeights { last_base, prediction: 0.5 * first, earlier: [0.5 * first, 0.0] };
    };
    let ratio = (before.lambda - from.lambda) / h;
    // The two conditions of order 2, solved.
    let phi_2 = phi / -h - 1.0;
    let (b1, b2) = (phi_2 / phi, 2.0 * (phi_2 / -h - 0.5) / phi);
    let rho_earlier = (b1 - b2) / (1.0 - ratio);
    let rho_new = b1 - rho_earlier;
    let older = first * rho_earlier / ratio;
    CorrectorWeights { last_base, prediction: first * rho_new, earlier: [first * (1.0 - rho_new) - older, older] }
}
