//! What a worker allows and assumes: its settings, checked against the model that is loaded.

use crate::{
    bucket::{Bucket, Buckets},
    spec::{Size, UnknownName},
};

/// Upper bounds of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Width times height of one image.
    pub max_pixels: u64,
    /// Denoising steps.
    pub max_steps: u32,
    /// Images of one request.
    pub max_images_per_request: u32,
}

impl Limits {
    /// 2048², 100 steps, 8 images.
    pub const BUILT_IN: Self = Self { max_pixels: 2048 * 2048, max_steps: 100, max_images_per_request: 8 };
}

/// What a request gets that does not say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Defaults {
    /// Width and height.
    pub size: Size,
    /// Denoising steps.
    pub steps: u32,
    /// Guidance scale.
    pub guidance_scale: f64,
}

/// Steps that Z-Image-Turbo is distilled for.
pub const DEFAULT_STEPS: u32 = 8;

/// Guidance scale that Z-Image-Turbo is distilled for: off.
pub const DEFAULT_GUIDANCE_SCALE: f64 = 0.0;

/// Size of an image when neither request nor settings say, where the model can make it.
const DEFAULT_SIZE: Size = Size { width: 1024, height: 1024 };

/// Which size the latents are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, strum::Display, strum::EnumString, strum::VariantNames)]
#[strum(serialize_all = "kebab-case", parse_err_ty = UnknownName, parse_err_fn = UnknownName::of::<Self>)]
pub enum SizePolicy {
    /// The asked size, rounded up to the model's multiple: one seed, one picture, as in diffusers.
    #[default]
    Exact,
    /// The size of the bucket, then cropped: fewer distinct shapes, other pictures.
    Bucket,
}

/// What the rules need to know of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelLimits {
    /// Latents are made for sizes that are multiples of this many pixels.
    pub size_multiple: u32,
    /// Prompts are cut at this many tokens.
    pub max_prompt_tokens: u32,
    /// Largest width and height.
    pub max_size: Size,
}

impl From<&crate::engine::ModelInfo> for ModelLimits {
    fn from(model: &crate::engine::ModelInfo) -> Self {
        Self {
            size_multiple: model.size_multiple,
            max_prompt_tokens: model.max_prompt_tokens,
            max_size: model.max_size,
        }
    }
}

/// Settings as they were given; `None` where the model decides.
#[derive(Debug, Clone, PartialEq)]
pub struct RuleSettings {
    /// Upper bounds.
    pub limits: Limits,
    /// Default size.
    pub default_size: Option<Size>,
    /// Default steps.
    pub default_steps: u32,
    /// Default guidance scale.
    pub default_guidance_scale: f64,
    /// Size classes.
    pub buckets: Option<Buckets>,
    /// Size classes that suit the device, where `buckets` says nothing; those that model and limits do not allow are left out.
    pub suited_buckets: Option<Buckets>,
    /// Which size the latents are made for.
    pub size_policy: SizePolicy,
}

impl Default for RuleSettings {
    fn default() -> Self {
        Self {
            limits: Limits::BUILT_IN,
            default_size: None,
            default_steps: DEFAULT_STEPS,
            default_guidance_scale: DEFAULT_GUIDANCE_SCALE,
            buckets: None,
            suited_buckets: None,
            size_policy: SizePolicy::Exact,
        }
    }
}

/// Settings that fit each other and the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// Upper bounds.
    pub limits: Limits,
    /// What a request gets that does not say.
    pub defaults: Defaults,
    /// Size classes.
    pub buckets: Buckets,
    /// Which size the latents are made for.
    pub size_policy: SizePolicy,
    /// The model's own bounds.
    pub model: ModelLimits,
}

/// Why settings and model do not go together.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum RulesError {
    /// A bucket that the model cannot make.
    #[error("bucket {bucket} is larger than the model's largest size {max_size}; remove it from --buckets")]
    BucketTooLarge {
        /// The bucket.
        bucket: Bucket,
        /// What the model can.
        max_size: Size,
    },
    /// A bucket that is not made of whole latents.
    #[error("bucket {bucket}: both sides must be multiples of {multiple} pixels; change it in --buckets")]
    BucketNotAligned {
        /// The bucket.
        bucket: Bucket,
        /// The model's multiple.
        multiple: u32,
    },
    /// No request without a size could be served.
    #[error("the default size {size} {reason}; change --default-size, or the limit")]
    DefaultSize {
        /// The default size.
        size: Size,
        /// What it collides with.
        reason: String,
    },
    /// No request without steps could be served.
    #[error(
        "the default of {steps} steps is not between 1 and the limit of {max_steps}; change --default-steps or --max-steps"
    )]
    DefaultSteps {
        /// Default steps.
        steps: u32,
        /// The limit.
        max_steps: u32,
    },
    /// Guidance that no request could use.
    #[error("the default guidance scale {0} is not a finite number of at least 0; change --default-guidance-scale")]
    DefaultGuidance(f64),
}

impl Rules {
    /// The settings, completed from the model.
    ///
    /// # Errors
    /// A setting that the model or another setting contradicts.
    pub fn new(settings: RuleSettings, model: ModelLimits) -> Result<Self, RulesError> {
        let RuleSettings {
            limits,
            default_size,
            default_steps,
            default_guidance_scale,
            buckets,
            suited_buckets,
            size_policy,
        } = settings;
        if !(1..=limits.max_steps).contains(&default_steps) {
            return Err(RulesError::DefaultSteps { steps: default_steps, max_steps: limits.max_steps });
        }
        if !default_guidance_scale.is_finite() || default_guidance_scale < 0.0 {
            return Err(RulesError::DefaultGuidance(default_guidance_scale));
        }
        let buckets = buckets
            .or_else(|| suited_buckets?.within(model.max_size, limits.max_pixels))
            .unwrap_or_else(|| Buckets::built_in(model.max_size, limits.max_pixels));
        for &bucket in buckets.as_slice() {
            let Bucket { size, .. } = bucket;
            if size.width > model.max_size.width || size.height > model.max_size.height {
                return Err(RulesError::BucketTooLarge { bucket, max_size: model.max_size });
            }
            if size.rounded_up(model.size_multiple) != size {
                return Err(RulesError::BucketNotAligned { bucket, multiple: model.size_multiple });
            }
        }
        let allowed = |size: Size| {
            if size.pixels() > limits.max_pixels {
                return Err(format!("has {} pixels, more than the limit of {}", size.pixels(), limits.max_pixels));
            }
            buckets
                .covering(size)
                .map(|_| ())
                .ok_or_else(|| format!("is covered by no bucket; the largest is {}", buckets.largest().size))
        };
        let size = match default_size {
            Some(size) => {
                allowed(size).map_err(|reason| RulesError::DefaultSize { size, reason })?;
                size
            }
            None if allowed(DEFAULT_SIZE).is_ok() => DEFAULT_SIZE,
            None => {
                let fitting =
                    buckets.as_slice().iter().rev().filter(|bucket| bucket.size.pixels() <= limits.max_pixels);
                let fitting = fitting.max_by_key(|bucket| bucket.size.pixels());
                let largest = buckets.largest().size;
                fitting.map(|bucket| bucket.size).ok_or_else(|| RulesError::DefaultSize {
                    size: largest,
                    reason: format!("has more pixels than the limit of {}", limits.max_pixels),
                })?
            }
        };
        let defaults = Defaults { size, steps: default_steps, guidance_scale: default_guidance_scale };
        Ok(Self { limits, defaults, buckets, size_policy, model })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const SMALL: ModelLimits =
        ModelLimits { size_multiple: 16, max_prompt_tokens: 512, max_size: Size { width: 512, height: 512 } };

    #[test]
    fn the_default_size_is_one_that_the_model_can_make() {
        let large = ModelLimits { max_size: Size { width: 8192, height: 8192 }, ..SMALL };
        let size = |model, max_pixels| {
            let limits = Limits { max_pixels, ..Limits::BUILT_IN };
            Rules::new(RuleSettings { limits, ..RuleSettings::default() }, model).unwrap().defaults.size.to_string()
        };
        assert_eq!(size(large, 1 << 22), "1024x1024");
        assert_eq!(size(SMALL, 1 << 22), "512x512");
        assert_eq!(size(large, 600 * 1024), "768x768");
    }

    #[rstest]
    #[case::too_large("1024x1024@1", None, "larger than the model's largest size 512x512")]
    #[case::not_aligned("500x500", None, "multiples of 16 pixels")]
    #[case::default_not_covered("256x256", Some("512x512"), "covered by no bucket; the largest is 256x256")]
    fn settings_that_the_model_contradicts(
        #[case] buckets: &str,
        #[case] default_size: Option<&str>,
        #[case] sentence: &str,
    ) {
        let settings = RuleSettings {
            buckets: Some(buckets.parse().unwrap()),
            default_size: default_size.map(|size| size.parse().unwrap()),
            ..RuleSettings::default()
        };
        let error = Rules::new(settings, SMALL).unwrap_err().to_string();
        assert!(error.contains(sentence), "{error}");
    }

    #[rstest]
    #[case::within_the_model("1024x1024@2,512x512@4", None, "512x512@4,1024x1024@2")]
    #[case::beyond_the_model("4096x4096,512x512@4", None, "512x512@4")]
    #[case::all_beyond_the_model(
        "4096x4096",
        None,
        "512x512@1,768x768@1,576x1024@1,1024x576@1,1024x1024@1,1536x1536@1,2048x2048@1"
    )]
    #[case::buckets_that_were_set_win("1024x1024@2", Some("64x64"), "64x64@1")]
    fn buckets_that_suit_the_device(#[case] suited: &str, #[case] set: Option<&str>, #[case] expected: &str) {
        let settings = RuleSettings {
            suited_buckets: Some(suited.parse().unwrap()),
            buckets: set.map(|set| set.parse().unwrap()),
            ..RuleSettings::default()
        };
        let model =
            ModelLimits { max_size: Size { width: 2048, height: 2048 }, size_multiple: 16, max_prompt_tokens: 512 };
        let names =
            |rules: Rules| rules.buckets.as_slice().iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        assert_eq!(names(Rules::new(settings, model).unwrap()), expected);
    }

    #[test]
    fn defaults_must_be_within_the_limits() {
        let error = |settings| Rules::new(settings, SMALL).unwrap_err().to_string();
        let steps = RuleSettings { default_steps: 101, ..RuleSettings::default() };
        assert!(error(steps).contains("101 steps"));
        let guidance = RuleSettings { default_guidance_scale: f64::NAN, ..RuleSettings::default() };
        assert!(error(guidance).contains("NaN"));
        let limits = Limits { max_pixels: 100, ..Limits::BUILT_IN };
        let pixels = RuleSettings { limits, buckets: Some("64x64".parse().unwrap()), ..RuleSettings::default() };
        assert!(error(pixels).contains("limit of 100"));
    }
}
