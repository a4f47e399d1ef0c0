//! Between the messages of image.proto and the types of the core.

use imagegen_core::{
    request::{Choice, ImageFormat, RawRequest},
    spec::SchedulerKind,
};
use imagegen_proto::v1::{self, GenerateRequest};
use prost::Message as _;
use sha2::{Digest as _, Sha256};

/// The fields of a call, unchecked.
pub(crate) fn raw_request(request: GenerateRequest) -> RawRequest {
    RawRequest {
        format: format(request.format),
        scheduler: scheduler(request.scheduler),
        prompt: request.prompt,
        negative_prompt: request.negative_prompt,
        width: request.width,
        height: request.height,
        steps: request.steps,
        guidance_scale: request.guidance_scale.map(decimal),
        cfg_normalization: request.cfg_normalization.map(decimal),
        cfg_truncation: request.cfg_truncation.map(decimal),
        seed: request.seed,
        count: request.count,
        priority: request.priority,
        preview_every: request.preview_every,
        reproducible: request.reproducible,
        request_id: request.request_id,
    }
}

/// A digest of all fields, to tell a repeat of a request from another one with its id.
pub(crate) fn fingerprint(request: &GenerateRequest) -> [u8; 32] {
    Sha256::digest(request.encode_to_vec()).into()
}

/// Tells requests apart across workers without telling their ids.
pub(crate) fn request_key(id: &str) -> u64 {
    let [a, b, c, d, e, f, g, h, ..]: [u8; 32] = Sha256::digest(id).into();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// A size class as clients see it.
pub(crate) const fn bucket(bucket: imagegen_core::bucket::Bucket) -> v1::Bucket {
    v1::Bucket { width: bucket.size.width, height: bucket.size.height, max_batch: bucket.max_batch }
}

fn format(number: i32) -> Choice<ImageFormat> {
    match v1::ImageFormat::try_from(number) {
        Ok(v1::ImageFormat::Unspecified) => Ok(None),
        Ok(v1::ImageFormat::Png) => Ok(Some(ImageFormat::Png)),
        Ok(v1::ImageFormat::Jpeg) => Ok(Some(ImageFormat::Jpeg)),
        Ok(v1::ImageFormat::Webp) => Ok(Some(ImageFormat::Webp)),
        Err(_) => Err(number.to_string()),
    }
}

fn scheduler(number: i32) -> Choice<SchedulerKind> {
    match v1::Scheduler::try_from(number) {
        Ok(v1::Scheduler::Unspecified) => Ok(None),
        Ok(v1::Scheduler::FlowMatchEuler) => Ok(Some(SchedulerKind::FlowMatchEuler)),
        Ok(v1::Scheduler::Unipc) => Ok(Some(SchedulerKind::UniPc)),
        Ok(v1::Scheduler::Deis) => Ok(Some(SchedulerKind::Deis)),
        Ok(v1::Scheduler::DpmSolverPlusPlus) => Ok(Some(SchedulerKind::DpmSolverPlusPlus)),
        Ok(v1::Scheduler::Heun) => Ok(Some(SchedulerKind::Heun)),
        Err(_) => Err(number.to_string()),
    }
}

/// The number that the caller wrote: 1.1 travels as a float, and is 1.10000002 as a double. The shortest decimal that
/// is that float is what diffusers gets when a user writes it.
fn decimal(number: f32) -> f64 {
    number.to_string().parse().unwrap_or_else(|_| number.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_survive_the_wire() {
        for number in [0.0, 1.1, 3.5, 0.1, 7.25] {
            assert_eq!(decimal(number as f32), number);
        }
        assert!(decimal(f32::NAN).is_nan());
        assert_eq!(decimal(f32::INFINITY), f64::INFINITY);
    }

    #[test]
    fn every_scheduler_has_its_number() {
        let kinds = (0..6).map(scheduler).collect::<Result<Vec<_>, _>>().unwrap();
        let names: Vec<_> =
            kinds.into_iter().map(|kind| kind.map_or("absent".into(), |kind| kind.to_string())).collect();
        assert_eq!(names, ["absent", "flow-match-euler", "unipc", "deis", "dpm-solver++", "heun"]);
        assert_eq!(scheduler(6), Err("6".into()));
    }

    #[test]
    fn unknown_choices_keep_their_number() {
        let raw = raw_request(GenerateRequest { format: 17, scheduler: -1, ..GenerateRequest::default() });
        assert_eq!((raw.format, raw.scheduler), (Err("17".into()), Err("-1".into())));
    }

    #[test]
    fn the_fingerprint_sees_every_field() {
        let one = GenerateRequest { prompt: "a".into(), ..GenerateRequest::default() };
        let other = GenerateRequest { seed: Some(0), ..one.clone() };
        assert_eq!(fingerprint(&one), fingerprint(&one.clone()));
        assert_ne!(fingerprint(&one), fingerprint(&other));
    }
}
