//! Rules that use the predictions of earlier steps: a weighted sum of tensors, with weights that the sigmas alone decide.

use tch::Tensor;

/// The weights of all steps.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Multistep(pub(super) Vec<StepWeights>);

/// Weights of one step.
///
/// With the velocity `v` (the slope of the latents over sigma), the prediction is `latents + prediction × v`: of the picture
/// or of the noise, as the rule wants it. The base is the latents, or their correction by the new prediction.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct StepWeights {
    pub(super) prediction: f64,
    pub(super) corrector: Option<CorrectorWeights>,
    pub(super) next: NextWeights,
}

/// The corrected latents as a sum of what the last step started from and of predictions.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct CorrectorWeights {
    pub(super) last_base: f64,
    pub(super) prediction: f64,
    /// Of the last step and the one before it; 0 where that is not used.
    pub(super) earlier: [f64; 2],
}

/// The next latents as a sum.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct NextWeights {
    pub(super) base: f64,
    pub(super) velocity: f64,
    pub(super) prediction: f64,
    /// Of the last step's prediction.
    pub(super) earlier: f64,
}

/// What the steps so far leave to the next one; nothing before the first. Images lie along dimension 0.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// Newest first, at most two.
    predictions: Vec<Tensor>,
    last_base: Option<Tensor>,
    /// Latents before the last step.
    pub(super) before: Option<Tensor>,
}

impl History {
    /// That of the images that `part` takes out of the tensor of all of them.
    pub(crate) fn map(&self, part: impl Fn(&Tensor) -> Tensor) -> Self {
        Self {
            predictions: self.predictions.iter().map(&part).collect(),
            last_base: self.last_base.as_ref().map(&part),
            before: self.before.as_ref().map(&part),
        }
    }
}

impl Multistep {
    /// Latents after `step`, and the history with it.
    pub(super) fn advance(
        &self,
        latents: &Tensor,
        velocity: &Tensor,
        history: &History,
        step: usize,
    ) -> (Tensor, History) {
        let weights = &self.0[step];
        let prediction = latents + velocity * weights.prediction;
        let earlier = |index: usize| history.predictions.get(index);
        let base = match weights.corrector {
            None => latents.shallow_clone(),
            Some(corrector) => sum(&[
                (corrector.last_base, history.last_base.as_ref()),
                (corrector.prediction, Some(&prediction)),
                (corrector.earlier[0], earlier(0)),
                (corrector.earlier[1], earlier(1)),
            ]),
        };
        let next = sum(&[
            (weights.next.base, Some(&base)),
            (weights.next.velocity, Some(velocity)),
            (weights.next.prediction, Some(&prediction)),
            (weights.next.earlier, earlier(0)),
        ]);
        let newest = history.predictions.first().map(Tensor::shallow_clone);
        let predictions = std::iter::once(prediction).chain(newest).collect();
        (next, History { predictions, last_base: Some(base), before: None })
    }
}

/// Σ weight × tensor; terms of weight 0 are not read.
fn sum(terms: &[(f64, Option<&Tensor>)]) -> Tensor {
    let used = terms.iter().filter(|(weight, _)| *weight != 0.0);
    let products = used.map(|(weight, tensor)| tensor.expect("a rule asks only for steps that were taken") * *weight);
    products.reduce(|sum, product| sum + product).expect("no step ends at nothing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_history_of_some_images_is_theirs() {
        let images = |offset: i64| Tensor::arange(3, (tch::Kind::Float, tch::Device::Cpu)) + offset;
        let history =
            History { predictions: vec![images(0), images(10)], last_base: Some(images(20)), before: Some(images(30)) };
        let selected = history.map(|images| images.index_select(0, &Tensor::from_slice(&[2i64, 0])));
        let numbers = |tensor: &Tensor| Vec::<f32>::try_from(tensor).unwrap();
        assert_eq!(selected.predictions.iter().map(numbers).collect::<Vec<_>>(), [[2.0, 0.0], [12.0, 10.0]]);
        assert_eq!(numbers(&selected.last_base.unwrap()), [22.0, 20.0]);
        assert_eq!(numbers(&selected.before.unwrap()), [32.0, 30.0]);
    }
}
