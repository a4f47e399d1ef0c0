//! From the fields of a call to a request in which everything is checked and filled in.

pub use crate::violation::Violation;
use crate::{
    bucket::Bucket,
    geometry::{self, TooLarge},
    rules::Rules,
    spec::{Guidance, ImageSpec, SchedulerKind, Size},
    text,
    violation::Violations,
};

/// File format of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, strum::Display, strum::EnumString, strum::VariantArray)]
#[strum(serialize_all = "lowercase")]
pub enum ImageFormat {
    /// Lossless.
    #[default]
    Png,
    /// Quality 90.
    Jpeg,
    /// Lossless.
    Webp,
}

impl ImageFormat {
    /// Media type.
    #[must_use]
    pub const fn mime(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Webp => "image/webp",
        }
    }
}

/// A value of a closed list: absent, known, or what was found instead.
pub type Choice<T> = Result<Option<T>, String>;

/// The fields of a call, unchecked.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "each field is documented in image.proto")]
pub struct RawRequest {
    pub prompt: String,
    pub negative_prompt: String,
    pub width: Option<u32>,
    pub height: Option<u32>,
    pub steps: Option<u32>,
    pub guidance_scale: Option<f64>,
    pub cfg_normalization: Option<f64>,
    pub cfg_truncation: Option<f64>,
    pub seed: Option<u32>,
    pub count: Option<u32>,
    pub format: Choice<ImageFormat>,
    pub scheduler: Choice<SchedulerKind>,
    pub priority: i32,
    pub preview_every: u32,
    pub reproducible: bool,
    pub request_id: String,
}

impl Default for RawRequest {
    fn default() -> Self {
        Self {
            prompt: String::new(),
            negative_prompt: String::new(),
            width: None,
            height: None,
            steps: None,
            guidance_scale: None,
            cfg_normalization: None,
            cfg_truncation: None,
            seed: None,
            count: None,
            format: Ok(None),
            scheduler: Ok(None),
            priority: 0,
            preview_every: 0,
            reproducible: false,
            request_id: String::new(),
        }
    }
}

/// A request that can be made as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Not empty.
    pub prompt: String,
    /// Empty unless guidance is on.
    pub negative_prompt: String,
    /// Size of each picture.
    pub size: Size,
    /// Size the latents are made for.
    pub latent_size: Size,
    /// What each image is charged as.
    pub bucket: Bucket,
    /// At least 1.
    pub steps: u32,
    /// Guidance.
    pub guidance: Guidance,
    /// Seed of image 0.
    pub seed: u32,
    /// Images, at least 1.
    pub count: u32,
    /// Format of the pictures.
    pub format: ImageFormat,
    /// Scheduler.
    pub scheduler: SchedulerKind,
    /// Higher starts first.
    pub priority: i32,
    /// A preview every so many steps; 0 for none.
    pub preview_every: u32,
    /// Each image is made alone.
    pub reproducible: bool,
    /// The caller's id; empty when it gave none.
    pub request_id: String,
    /// Tokens of the longer of both prompts with the chat template, as the engine cuts them.
    pub caption_tokens: u32,
    /// Sentences about what was changed.
    pub warnings: Vec<String>,
}

impl Request {
    /// Seed of image `index`, wrapping at 2^32.
    #[must_use]
    pub const fn image_seed(&self, index: u32) -> u32 {
        self.seed.wrapping_add(index)
    }

    /// Image `index`.
    #[must_use]
    pub fn spec(&self, index: u32) -> ImageSpec {
        ImageSpec {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            latent_size: self.latent_size,
            size: self.size,
            steps: self.steps,
            guidance: self.guidance,
            seed: self.image_seed(index),
            scheduler: self.scheduler,
        }
    }

    /// The images to be made, in order.
    #[must_use]
    pub fn specs(&self) -> Vec<ImageSpec> {
        (0..self.count).map(|index| self.spec(index)).collect()
    }

    /// Images of this request that are made together, at least 1.
    #[must_use]
    pub const fn batch_size(&self) -> u32 {
        if self.reproducible || self.bucket.max_batch == 0 { 1 } else { self.bucket.max_batch }
    }

    /// Whether a preview is due once `step` steps are done. Not at the end, where the picture itself follows.
    #[must_use]
    pub const fn has_preview(&self, step: u32) -> bool {
        self.preview_every > 0 && step < self.steps && step.is_multiple_of(self.preview_every)
    }

    /// Whether a step runs the transformer on prompt and negative prompt.
    #[must_use]
    pub fn is_guided(&self) -> bool {
        self.guidance.scale > 0.0
    }

    /// Transformer calls of a step.
    #[must_use]
    pub fn calls_per_step(&self) -> u32 {
        let branches = if self.is_guided() { 2 } else { 1 };
        if self.scheduler == SchedulerKind::Heun { 2 * branches } else { branches }
    }
}

/// Why a request cannot be made by this worker, now or later.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Fields that are wrong; all of them.
    #[error("{}", sentence(.0))]
    Invalid(Vec<Violation>),
    /// Larger than every bucket.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
}

fn sentence(violations: &[Violation]) -> String {
    let parts: Vec<_> =
        violations.iter().map(|Violation { field, description }| format!("{field} {description}")).collect();
    parts.join("; ")
}

/// Range of `priority`.
const PRIORITIES: std::ops::RangeInclusive<i32> = -100..=100;

/// The checked request. `random_seed` is used where the call has no seed; `count_tokens` counts as the engine does.
///
/// # Errors
/// Every field that is wrong at once, or that no bucket covers the size.
pub fn parse(
    raw: RawRequest,
    rules: &Rules,
    random_seed: u32,
    count_tokens: &dyn Fn(&str) -> Result<usize, String>,
) -> Result<Request, RequestError> {
    let mut violations = Violations::default();
    let mut warnings = Vec::new();

    violations.text("prompt", text::check_prompt(&raw.prompt));
    violations.text("negative_prompt", text::check_characters(&raw.negative_prompt));
    let size = Size {
        width: raw.width.unwrap_or(rules.defaults.size.width),
        height: raw.height.unwrap_or(rules.defaults.size.height),
    };
    violations.size(size, rules);
    let steps = raw.steps.unwrap_or(rules.defaults.steps);
    violations.range("steps", steps, 1, rules.limits.max_steps);
    let count = raw.count.unwrap_or(1);
    violations.range("count", count, 1, rules.limits.max_images_per_request);
    let guidance = guidance(&raw, rules, &mut violations, &mut warnings);
    let format = violations.choice("format", raw.format).unwrap_or_default();
    let scheduler = violations.choice("scheduler", raw.scheduler).unwrap_or_default();
    warnings.extend(scheduler.warning().map(str::to_owned));
    if !PRIORITIES.contains(&raw.priority) {
        violations.add("priority", format!("must be -100 to 100, found {}", raw.priority));
    }
    violations.request_id(&raw.request_id);
    let mut caption_tokens = 0;
    if violations.is_empty() {
        let max_tokens = rules.model.max_prompt_tokens;
        let mut count = |field, text: &str| match count_tokens(text) {
            Ok(tokens) => Some(tokens).inspect(|&tokens| caption_tokens = caption_tokens.max(tokens)),
            Err(reason) => {
                violations.add(field, format!("cannot be turned into tokens: {reason}"));
                None
            }
        };
        warnings.extend(count("prompt", &raw.prompt).and_then(|tokens| cut_warning(tokens, max_tokens)));
        if guidance.scale > 0.0 {
            count("negative_prompt", &raw.negative_prompt);
        }
    }
    violations.into_result()?;

    let plan = geometry::plan(size, rules)?;
    warnings.extend(plan.warning);
    Ok(Request {
        prompt: raw.prompt,
        negative_prompt: raw.negative_prompt,
        size,
        latent_size: plan.latent_size,
        bucket: plan.bucket,
        steps,
        guidance,
        seed: raw.seed.unwrap_or(random_seed),
        count,
        format,
        scheduler,
        priority: raw.priority,
        preview_every: raw.preview_every,
        reproducible: raw.reproducible,
        request_id: raw.request_id,
        caption_tokens: u32::try_from(caption_tokens).unwrap_or(u32::MAX).min(rules.model.max_prompt_tokens),
        warnings,
    })
}

fn cut_warning(tokens: usize, max_tokens: u32) -> Option<String> {
    let cut = tokens.checked_sub(max_tokens as usize).filter(|&cut| cut > 0)?;
    Some(format!(
        "The prompt has {tokens} tokens with the chat template: cut at {max_tokens}, the last {cut} are ignored."
    ))
}

fn guidance(raw: &RawRequest, rules: &Rules, violations: &mut Violations, warnings: &mut Vec<String>) -> Guidance {
    let scale = raw.guidance_scale.unwrap_or(rules.defaults.guidance_scale);
    let normalization = raw.cfg_normalization.unwrap_or(Guidance::OFF.normalization);
    let truncation = raw.cfg_truncation.unwrap_or(Guidance::OFF.truncation);
    violations.at_least_0("guidance_scale", scale);
    violations.at_least_0("cfg_normalization", normalization);
    if !(0.0..=1.0).contains(&truncation) {
        violations.add("cfg_truncation", format!("must be a number from 0 to 1, found {truncation}"));
    }
    if scale > 0.0 {
        return Guidance { scale, normalization, truncation };
    }
    if !raw.negative_prompt.is_empty() {
        violations.add("negative_prompt", "needs guidance_scale above 0; without guidance it has no effect".into());
    }
    for (field, changed) in [("cfg_normalization", normalization > 0.0), ("cfg_truncation", truncation < 1.0)] {
        if changed {
            warnings.push(format!("{field} has no effect while guidance_scale is 0."));
        }
    }
    Guidance::OFF
}

#[cfg(test)]
impl Request {
    /// A request that tests change.
    pub(crate) fn example() -> Self {
        let model = crate::rules::ModelLimits {
            size_multiple: 16,
            max_prompt_tokens: 512,
            max_size: Size { width: 2048, height: 2048 },
        };
        let rules = Rules::new(crate::rules::RuleSettings::default(), model).unwrap();
        let raw = RawRequest { prompt: "a red apple".into(), ..RawRequest::default() };
        parse(raw, &rules, 0, &|text| Ok(text.split_whitespace().count())).unwrap()
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
