//! Fields, and values of them, that this version does not serve. They are refused, never ignored.

use super::refuse;
use crate::{
    crd::{AutoscalingMode, ImageGenSpec, Precision, Reason, Residency, TextEncoderWeights},
    reconcile::types::Refusal,
};

/// Everything in `spec` that is not served yet, with what to do instead.
pub(super) fn check(spec: &ImageGenSpec) -> Vec<Refusal> {
    let worker = &spec.worker;
    let autoscaling = spec.autoscaling.as_ref();
    let text_encoder = worker.text_encoder.as_ref();
    let to_zero = autoscaling.is_some_and(|a| a.mode == AutoscalingMode::Operator && a.min_replicas == Some(0));
    let residency = text_encoder.and_then(|t| t.residency).filter(|residency| *residency == Residency::Offloaded);
    let weights = text_encoder.and_then(|t| t.weights);
    let small_weights = weights.filter(|weights| *weights != TextEncoderWeights::BFloat16);
    let mixed =
        weights == Some(TextEncoderWeights::BFloat16) && super::settings::precision(spec).value != Precision::BFloat16;

    let table: Vec<(bool, &str, String)> = vec![
        (
            spec.model.source.hugging_face.is_some(),
            "model.source.huggingFace",
            "downloads from the Hugging Face Hub are not there yet: put the checkpoint into a claim (persistentVolumeClaim) or an OCI image (image)".into(),
        ),
        (
            worker.gpu.as_ref().is_some_and(|gpu| gpu.claim.is_some()),
            "worker.gpu.claim",
            "dynamic resource allocation is not there yet: use worker.gpu.resource with the resource of a device plugin".into(),
        ),
        (
            residency.is_some(),
            "worker.textEncoder.residency",
            "offloading the text encoder is not there yet: leave the field out or set Resident".into(),
        ),
        (
            small_weights.is_some(),
            "worker.textEncoder.weights",
            format!("{} is not there yet: leave the field out", small_weights.map_or_else(String::new, |w| w.to_string())),
        ),
        (
            mixed,
            "worker.textEncoder.weights",
            "a text encoder in another number format than the model is not there yet: leave the field out, or set model.precision: BFloat16".into(),
        ),
        (
            to_zero,
            "autoscaling.minReplicas",
            "0 is not there yet in mode Operator, since nothing would bring the first worker back: set at least 1; suspend: true stops all workers".into(),
        ),
        (
            autoscaling.is_some_and(|a| a.scale_to_zero.is_some()),
            "autoscaling.scaleToZero",
            "scaling to zero by itself is not there yet: leave the field out; replicas: 0 stops all workers".into(),
        ),
    ];
    let refused = table.into_iter().filter(|(found, ..)| *found);
    refused.map(|(_, field, message)| refuse(Reason::NotYetSupported, field, message)).collect()
}
