//! What Z-Image-Turbo takes on a card: a model of bytes, for choosing settings before anything is measured. The worker's own
//! table, measured at warm-up, decides what runs.

use imagegen_core::bucket::Bucket;

use super::{Profile, Residency, TextEncoder, VaeTiling, Weights};

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

/// Activations at their peak: this much, and the slope below for each mebipixel (1024²) of a batch. Source: peaks of the
/// diffusers pipeline on an H100 in bfloat16, less its weights of 19.1 GiB: 1.1 at 512², 2.9 at 1024², 10.0 at 2048² and 8.5
/// for four images at 1024² (GiB). Those come from the untiled VAE decode.
const ACTIVATION_BASE_GIB: f64 = 0.5;
const ACTIVATION_GIB_PER_MEBIPIXEL: f64 = 2.37;

/// The same with a VAE decode that takes less than the transformer: peaks of the same pipeline with a compiled channels-last
/// VAE, 1.7 at 1024², 5.5 at 2048² and for four images at 1024².
const TILED_GIB_PER_MEBIPIXEL: f64 = 1.25;

/// An allowance for CUDA's context and libraries. The worker measures the real number when it starts.
const OVERHEAD_GIB: f64 = 0.5;

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
    let pixels = bucket.size.pixels() * u64::from(bucket.max_batch);
    let slope = match tiling {
        VaeTiling::Never => ACTIVATION_GIB_PER_MEBIPIXEL,
        VaeTiling::Always => TILED_GIB_PER_MEBIPIXEL,
    };
    #[expect(clippy::cast_precision_loss, reason = "pixels of a batch are far below 2^53")]
    let mebipixels = pixels as f64 / f64::from(1 << 20);
    slope.mul_add(mebipixels, ACTIVATION_BASE_GIB)
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
    #[case::square_512("512x512@1", VaeTiling::Never, 20.2)]
    #[case::square_1024("1024x1024@1", VaeTiling::Never, 22.0)]
    #[case::square_2048("2048x2048@1", VaeTiling::Never, 29.1)]
    #[case::small_vae_1024("1024x1024@1", VaeTiling::Always, 20.8)]
    #[case::small_vae_1024_x4("1024x1024@4", VaeTiling::Always, 24.6)]
    #[case::small_vae_2048("2048x2048@1", VaeTiling::Always, 24.6)]
    fn the_formula_meets_the_measurements(#[case] bucket: &str, #[case] tiling: VaeTiling, #[case] measured: f64) {
        let computed = 19.1 + activation_gib(bucket.parse().unwrap(), tiling);
        assert!((computed - measured).abs() < 0.2, "computed {computed:.2}, measured {measured}");
    }

    #[test]
    fn a_batch_takes_no_more_than_the_formula_says() {
        let computed = 19.1 + activation_gib("1024x1024@4".parse().unwrap(), VaeTiling::Never);
        assert!(computed >= 27.6, "{computed}");
    }
}
