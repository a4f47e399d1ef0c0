//! What Z-Image-Turbo takes on a card: a model of bytes, for choosing settings before anything is measured. The worker's own
//! table, measured at warm-up, decides what runs.

use imagegen_core::bucket::Bucket;

use super::{Profile, Residency, TextEncoder, Weights};
use crate::device::VaeTiling;

pub(crate) const GIB: f64 = 1_073_741_824.0;

/// Share of the memory that is planned with, as `memoryLimitRatio` in the resource.
pub(crate) const LIMIT_RATIO: f64 = 0.92;

/// 30 + 2 modulated blocks of 180,910,336, 2 unmodulated ones, embedders and the last layer. Source: the shapes in diffusers'
/// `transformer_z_image.py`.
const TRANSFORMER_PARAMETERS: f64 = 6_154_908_736.0;

/// 151,936 tokens of 2,560 numbers.
const EMBEDDING_PARAMETERS: f64 = 388_956_160.0;

/// Layers 1 to 35 of Qwen3-4B, 100,930,816 each. The last one, the norm after it and lm_head are not loaded.
const TEXT_ENCODER_PARAMETERS: f64 = 3_532_578_560.0;

/// The VAE's decoder: 16 latent channels, block_out_channels 128, 256, 512, 512. The encoder is not loaded.
const DECODER_PARAMETERS: f64 = 49_545_475.0;

/// What both stages take beside what grows with the pixels.
const ACTIVATION_BASE_GIB: f64 = 0.5;

/// The VAE's decode of one image, for each mebipixel (1024²); images of a batch are decoded one by one. Source: peaks of the
/// diffusers pipeline on an H100 in bfloat16, less its weights of 19.1 GiB: 1.1 at 512², 2.9 at 1024², 10.0 at 2048² (GiB),
/// where this decode is the peak.
const DECODE_GIB_PER_MEBIPIXEL: f64 = 2.37;

/// The transformer, for each mebipixel of a whole batch: at most this. Source: the same pipeline with a compiled
/// channels-last VAE, whose decode takes less: 1.7 at 1024², 5.5 at 2048² and for four images at 1024².
const TRANSFORMER_GIB_PER_MEBIPIXEL: f64 = 1.25;

/// A tile of the decode: 1024² pixels, `sample_size` in the VAE's config.json.
const TILE_MEBIPIXELS: f64 = 1.0;

/// From this size on `auto` decodes in tiles, as `worker/model/src/vae` has it.
const AUTO_TILES_MEBIPIXELS: f64 = 4.0;

/// CUDA's context: 526 MiB on an H100 with driver 580, what NVML counts as used after `cuCtxCreate`. The worker measures the
/// real number, with libraries, when it starts.
const OVERHEAD_GIB: f64 = 0.52;

/// Bytes of a parameter; int4 has a 16-bit scale for each group of 64.
const fn bytes(weights: Weights) -> f64 {
    match weights {
        Weights::Float32 => 4.0,
        Weights::BFloat16 => 2.0,
        Weights::Float8 => 1.0,
        Weights::Int4 => 0.5 + 2.0 / 64.0,
    }
}

fn transformer_gib(precision: Weights) -> f64 {
    TRANSFORMER_PARAMETERS * bytes(precision) / GIB
}

/// Embeddings are looked up, not multiplied, and stay in 16 bits where the layers are smaller.
fn text_encoder_gib(weights: Weights) -> f64 {
    let embedding = bytes(weights).max(2.0);
    (EMBEDDING_PARAMETERS * embedding + TEXT_ENCODER_PARAMETERS * bytes(weights)) / GIB
}

fn decoder_gib(precision: Weights) -> f64 {
    DECODER_PARAMETERS * bytes(precision).max(2.0) / GIB
}

/// Peak of the activations of a full batch of a size class.
pub(crate) fn activation_gib(bucket: Bucket, tiling: VaeTiling) -> f64 {
    let image = mebipixels(bucket.size.pixels());
    let is_tiled = match tiling {
        VaeTiling::Never => false,
        VaeTiling::Auto => image >= AUTO_TILES_MEBIPIXELS,
        VaeTiling::Always => true,
    };
    let decoded = if is_tiled { image.min(TILE_MEBIPIXELS) } else { image };
    transformer_activation_gib(image * f64::from(bucket.max_batch)).max(decode_activation_gib(decoded))
}

fn transformer_activation_gib(batch_mebipixels: f64) -> f64 {
    TRANSFORMER_GIB_PER_MEBIPIXEL.mul_add(batch_mebipixels, ACTIVATION_BASE_GIB)
}

fn decode_activation_gib(image_mebipixels: f64) -> f64 {
    DECODE_GIB_PER_MEBIPIXEL.mul_add(image_mebipixels, ACTIVATION_BASE_GIB)
}

#[expect(clippy::cast_precision_loss, reason = "pixels of an image are far below 2^53")]
fn mebipixels(pixels: u64) -> f64 {
    pixels as f64 / f64::from(1 << 20)
}

/// The most that a profile takes at any moment, with a full batch of this class.
pub(crate) fn peak_gib(profile: &Profile, bucket: Bucket) -> f64 {
    let TextEncoder { residency, weights } = profile.text_encoder;
    let always = transformer_gib(profile.precision) + decoder_gib(profile.precision) + OVERHEAD_GIB;
    let (text_encoder, activation) = (text_encoder_gib(weights), activation_gib(bucket, profile.vae_tiling));
    match residency {
        Residency::Resident => always + text_encoder + activation,
        // The text encoder is gone when the image begins.
        Residency::Offloaded => always + f64::max(text_encoder + ACTIVATION_BASE_GIB, activation),
    }
}

/// The size class that takes the most.
pub(crate) fn largest_peak_gib(profile: &Profile) -> f64 {
    profile.buckets.as_slice().iter().map(|&bucket| peak_gib(profile, bucket)).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::profiles::all;

    #[test]
    fn every_profile_fits_its_card() {
        for profile in all() {
            let limit = LIMIT_RATIO * profile.memory_gib;
            for &bucket in profile.buckets.as_slice() {
                let peak = peak_gib(&profile, bucket);
                assert!(peak <= limit, "{} {bucket}: takes {peak:.2} GiB of {limit:.2}", profile.name);
            }
        }
    }

    /// All weights in one precision, everything resident.
    fn weights_gib(precision: Weights) -> f64 {
        transformer_gib(precision) + text_encoder_gib(precision) + decoder_gib(precision)
    }

    #[test]
    fn the_model_in_bfloat16_does_not_go_on_16_gb() {
        assert!((18.5..19.2).contains(&weights_gib(Weights::BFloat16)), "{}", weights_gib(Weights::BFloat16));
        assert!(weights_gib(Weights::BFloat16) > LIMIT_RATIO * 16.0);
        let small = all().into_iter().filter(|profile| profile.memory_gib < 16.5);
        assert!(small.into_iter().all(|profile| !profile.needs().is_empty()));
    }

    /// Measured peaks of the diffusers pipeline, GiB: its 19.1 of weights and the activations.
    #[rstest]
    #[case::decode_512(decode_activation_gib(0.25), 20.2)]
    #[case::decode_1024(decode_activation_gib(1.0), 22.0)]
    #[case::decode_2048(decode_activation_gib(4.0), 29.1)]
    #[case::transformer_1024(transformer_activation_gib(1.0), 20.8)]
    #[case::transformer_2048(transformer_activation_gib(4.0), 24.6)]
    fn the_formulas_meet_the_measurements(#[case] activation_gib: f64, #[case] measured: f64) {
        let computed = 19.1 + activation_gib;
        assert!((computed - measured).abs() < 0.2, "computed {computed:.2}, measured {measured}");
    }

    #[rstest]
    #[case::untiled(VaeTiling::Never, "2048x2048@1", decode_activation_gib(4.0))]
    #[case::large_enough_for_tiles(VaeTiling::Auto, "2048x2048@1", transformer_activation_gib(4.0))]
    #[case::too_small_for_tiles(VaeTiling::Auto, "1536x1536@1", decode_activation_gib(2.25))]
    #[case::tiles_as_large_as_the_image(VaeTiling::Always, "1024x1024@1", decode_activation_gib(1.0))]
    #[case::a_batch_is_decoded_one_by_one(VaeTiling::Never, "1024x1024@4", transformer_activation_gib(4.0))]
    fn the_larger_stage_counts(#[case] tiling: VaeTiling, #[case] bucket: &str, #[case] expected: f64) {
        assert!((activation_gib(bucket.parse().unwrap(), tiling) - expected).abs() < 1e-9);
    }
}
