//! One image to be made, as the engine sees it: every field checked, every default filled in.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Width and height in pixels. Written as `1024x576`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Size {
    /// Pixels from left to right.
    pub width: u32,
    /// Pixels from top to bottom.
    pub height: u32,
}

impl Size {
    /// Width times height.
    #[must_use]
    pub const fn pixels(self) -> u64 {
        self.width as u64 * self.height as u64
    }

    /// Both sides rounded up to a multiple of `multiple` pixels (of at least 1).
    #[must_use]
    pub const fn rounded_up(self, multiple: u32) -> Self {
        Self { width: self.width.next_multiple_of(multiple), height: self.height.next_multiple_of(multiple) }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

/// Why a text is not a [`Size`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a size is written WIDTHxHEIGHT in pixels, for example 1024x576, found \"{0}\"")]
pub struct ParseSizeError(String);

impl std::str::FromStr for Size {
    type Err = ParseSizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || ParseSizeError(text.to_owned());
        let (width, height) = text.split_once(['x', 'X']).ok_or_else(invalid)?;
        let side = |side: &str| side.parse::<u32>().ok().filter(|&pixels| pixels > 0).ok_or_else(invalid);
        Ok(Self { width: side(width)?, height: side(height)? })
    }
}

/// Classifier-free guidance. `scale` 0 means one transformer call a step, above 0 two.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guidance {
    /// The prediction is `positive + scale * (positive - negative)`. Finite, at least 0.
    pub scale: f64,
    /// The guided prediction's norm is at most this multiple of the positive one's, per image; 0 for no cap.
    pub normalization: f64,
    /// Guidance is off in steps where `1 - sigma` exceeds this; 1 keeps it on.
    pub truncation: f64,
}

impl Guidance {
    /// One transformer call a step, as Z-Image-Turbo wants it.
    pub const OFF: Self = Self { scale: 0.0, normalization: 0.0, truncation: 1.0 };
}

/// A name that is none of a closed list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found \"{found}\"")]
pub struct UnknownName {
    expected: String,
    found: String,
}

impl UnknownName {
    pub(crate) fn of<T: strum::VariantNames>(found: &str) -> Self {
        Self { expected: T::VARIANTS.join(" or "), found: found.to_owned() }
    }
}

/// How sigmas become latents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, strum::Display, strum::EnumString, strum::VariantNames)]
#[strum(serialize_all = "kebab-case", parse_err_ty = UnknownName, parse_err_fn = UnknownName::of::<Self>)]
pub enum SchedulerKind {
    /// Flow-matching Euler with static shift, the model's own.
    #[default]
    FlowMatchEuler,
    /// UniPC of second order (B2, on predictions of the picture).
    #[strum(serialize = "unipc")]
    UniPc,
    /// DEIS of second order.
    Deis,
    /// Multistep DPM-Solver++ of second order (midpoint).
    #[strum(serialize = "dpm-solver++")]
    DpmSolverPlusPlus,
    /// Heun: two transformer calls in each step but the last.
    Heun,
}

impl SchedulerKind {
    /// What a caller should know who asks for one that is advised against.
    #[must_use]
    pub const fn warning(self) -> Option<&'static str> {
        match self {
            Self::Heun => Some(
                "The heun scheduler is advised against: it runs the transformer twice a step, at no gain over as many \
                 steps of flow-match-euler.",
            ),
            Self::FlowMatchEuler | Self::UniPc | Self::Deis | Self::DpmSolverPlusPlus => None,
        }
    }
}

/// One image to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageSpec {
    /// Not empty. Cut by the engine at the model's token limit.
    pub prompt: String,
    /// Only with guidance; empty is the same as absent in diffusers.
    pub negative_prompt: String,
    /// Size the latents are made for: both sides a multiple of the model's size multiple.
    pub latent_size: Size,
    /// Size of the picture: the top left part of the decoded one, at most `latent_size`.
    pub size: Size,
    /// Denoising steps, at least 1.
    pub steps: u32,
    /// Guidance, [`Guidance::OFF`] for one transformer call a step.
    pub guidance: Guidance,
    /// Seed of torch's CPU generator.
    pub seed: u32,
    /// Scheduler.
    pub scheduler: SchedulerKind,
}

/// A decoded picture: 8-bit RGB, row by row, no padding. `data.len() == 3 * width * height`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RgbImage {
    /// Width and height in pixels.
    pub size: Size,
    /// `[height, width, 3]`, row-major.
    pub data: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        let known = ["flow-match-euler", "unipc", "deis", "dpm-solver++", "heun"];
        for name in known {
            assert_eq!(name.parse::<SchedulerKind>().unwrap().to_string(), name);
        }
        let error = "dpm++-2m".parse::<SchedulerKind>().unwrap_err();
        assert_eq!(error.to_string(), format!("expected {}, found \"dpm++-2m\"", known.join(" or ")));
    }
}
