//! The strategies of CUDA's caching allocator, the text that libtorch reads them from, and whether it took what was meant.

use std::collections::BTreeMap;
use std::fmt;

/// The variable that libtorch reads when it is loaded.
pub const VARIABLE: &str = "PYTORCH_CUDA_ALLOC_CONF";

/// How fragmentation is kept low; exactly one at a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Allocator {
    /// Segments that grow in place.
    ExpandableSegments,
    /// Large blocks are never split.
    MaxSplitSize(MaxSplitSize),
    /// The driver's own pool; it tells less about itself.
    CudaMallocAsync,
}

/// Settings of [`Allocator::MaxSplitSize`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MaxSplitSize {
    /// Largest block that is split, in MiB; above 20.
    pub max_split_size_mib: u32,
    /// Steps between powers of two that sizes are rounded up to; none: sizes stay.
    pub roundup_power2_divisions: Option<u32>,
    /// Share of the memory limit above which cached blocks are collected; in (0, 1).
    pub garbage_collection_threshold: f64,
}

/// The names of the strategies, on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::Display, strum::EnumString, strum::VariantNames)]
#[strum(serialize_all = "kebab-case")]
pub enum Strategy {
    /// [`Allocator::ExpandableSegments`]
    ExpandableSegments,
    /// [`Allocator::MaxSplitSize`]
    MaxSplitSize,
    /// [`Allocator::CudaMallocAsync`]
    CudaMallocAsync,
}

/// A strategy with settings that may be absent, as flags and manifests have them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AllocatorChoice {
    /// The strategy.
    pub strategy: Strategy,
    /// See [`MaxSplitSize`].
    pub max_split_size_mib: Option<u32>,
    /// See [`MaxSplitSize`].
    pub roundup_power2_divisions: Option<u32>,
    /// See [`MaxSplitSize`].
    pub garbage_collection_threshold: Option<f64>,
}

impl MaxSplitSize {
    /// Where nobody says otherwise.
    pub const BUILT_IN: Self =
        Self { max_split_size_mib: 256, roundup_power2_divisions: None, garbage_collection_threshold: 0.8 };
}

impl AllocatorChoice {
    /// `strategy` with the built-in settings.
    #[must_use]
    pub const fn of(strategy: Strategy) -> Self {
        Self { strategy, max_split_size_mib: None, roundup_power2_divisions: None, garbage_collection_threshold: None }
    }

    /// The strategy with all settings filled in.
    ///
    /// # Errors
    /// The sentence for the user: settings of another strategy, or out of range.
    pub fn resolve(self) -> Result<Allocator, String> {
        let Self { strategy, max_split_size_mib: size, roundup_power2_divisions: divisions, .. } = self;
        let threshold = self.garbage_collection_threshold;
        if strategy != Strategy::MaxSplitSize && (size.is_some() || divisions.is_some() || threshold.is_some()) {
            return Err(format!(
                "a largest block to split, rounding and a collection threshold belong to the strategy {} and do nothing with {strategy}",
                Strategy::MaxSplitSize
            ));
        }
        if let Some(size) = size.filter(|&size| size <= 20) {
            return Err(format!("the largest block to split must be above 20 MiB, found {size} MiB"));
        }
        if let Some(divisions) = divisions.filter(|divisions| !divisions.is_power_of_two() || *divisions > 64) {
            return Err(format!("sizes are rounded in a power of two of steps, from 1 to 64, found {divisions}"));
        }
        if let Some(threshold) = threshold.filter(|&threshold| !(threshold > 0.0 && threshold < 1.0)) {
            return Err(format!("the collection threshold lies between 0 and 1, found {threshold}"));
        }
        let built_in = MaxSplitSize::BUILT_IN;
        Ok(match strategy {
            Strategy::ExpandableSegments => Allocator::ExpandableSegments,
            Strategy::CudaMallocAsync => Allocator::CudaMallocAsync,
            Strategy::MaxSplitSize => Allocator::MaxSplitSize(MaxSplitSize {
                max_split_size_mib: size.unwrap_or(built_in.max_split_size_mib),
                roundup_power2_divisions: divisions.or(built_in.roundup_power2_divisions),
                garbage_collection_threshold: threshold.unwrap_or(built_in.garbage_collection_threshold),
            }),
        })
    }
}

impl Allocator {
    /// The built-in strategy for a GPU resource: expandable segments fail on MIG instances.
    #[must_use]
    pub fn built_in(gpu_resource: &str) -> Self {
        let device = gpu_resource.rsplit('/').next().unwrap_or_default();
        if device.starts_with("mig-") { Self::MaxSplitSize(MaxSplitSize::BUILT_IN) } else { Self::ExpandableSegments }
    }

    /// Its name.
    #[must_use]
    pub const fn strategy(&self) -> Strategy {
        match self {
            Self::ExpandableSegments => Strategy::ExpandableSegments,
            Self::MaxSplitSize(_) => Strategy::MaxSplitSize,
            Self::CudaMallocAsync => Strategy::CudaMallocAsync,
        }
    }

    /// The allocator that `text`, in libtorch's notation, asks for; `None` when it asks for nothing.
    ///
    /// # Errors
    /// The sentence for the user: the text is not in that notation, or mixes strategies.
    pub fn parse(text: &str) -> Result<Option<Self>, String> {
        let options = options(text)?;
        let get = |key: &str| options.get(key).map(String::as_str);
        let is_async = match get("backend") {
            None | Some("native") => false,
            Some("cudaMallocAsync") => true,
            Some(other) => return Err(format!("backend is native or cudaMallocAsync, found \"{other}\"")),
        };
        let expandable = match get("expandable_segments") {
            None | Some("False") => false,
            Some("True") => true,
            Some(other) => return Err(format!("expandable_segments is True or False, found \"{other}\"")),
        };
        let settings: Vec<&str> = MAX_SPLIT_OPTIONS.into_iter().filter(|key| options.contains_key(*key)).collect();
        match (is_async, expandable, settings.as_slice()) {
            (true, true, _) => {
                Err("expandable_segments has no effect with backend:cudaMallocAsync; leave one out".into())
            }
            (true, false, []) => Ok(Some(Self::CudaMallocAsync)),
            (true, false, settings) => {
                Err(format!("{} is ignored with backend:cudaMallocAsync; leave one out", settings.join(" and ")))
            }
            (false, true, []) => Ok(Some(Self::ExpandableSegments)),
            (false, true, settings) => {
                let settings = settings.join(" and ");
                Err(format!(
                    "{settings} together with expandable_segments makes the pool grow without need; leave one out"
                ))
            }
            (false, false, []) => Ok(None),
            (false, false, _) => max_split(&get).map(Self::MaxSplitSize).map(Some),
        }
    }
}

/// As libtorch reads it from [`VARIABLE`].
impl fmt::Display for Allocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ExpandableSegments => f.write_str("expandable_segments:True"),
            Self::CudaMallocAsync => f.write_str("backend:cudaMallocAsync"),
            Self::MaxSplitSize(settings) => {
                write!(f, "max_split_size_mb:{}", settings.max_split_size_mib)?;
                if let Some(divisions) = settings.roundup_power2_divisions {
                    write!(f, ",roundup_power2_divisions:{divisions}")?;
                }
                write!(f, ",garbage_collection_threshold:{}", settings.garbage_collection_threshold)
            }
        }
    }
}

const MAX_SPLIT_OPTIONS: [&str; 3] = ["max_split_size_mb", "roundup_power2_divisions", "garbage_collection_threshold"];

fn max_split<'a>(get: &impl Fn(&str) -> Option<&'a str>) -> Result<MaxSplitSize, String> {
    fn number<T: std::str::FromStr>(key: &str, text: Option<&str>) -> Result<Option<T>, String> {
        let invalid = |text| format!("{key} is a number, found \"{text}\"");
        text.map(|text| text.parse().map_err(|_| invalid(text))).transpose()
    }
    let [size, divisions, threshold] = MAX_SPLIT_OPTIONS.map(|key| (key, get(key)));
    let missing = |key: &str| format!("{key} is missing beside the other settings of its strategy");
    Ok(MaxSplitSize {
        max_split_size_mib: number(size.0, size.1)?.ok_or_else(|| missing(size.0))?,
        roundup_power2_divisions: number(divisions.0, divisions.1)?,
        garbage_collection_threshold: number(threshold.0, threshold.1)?.ok_or_else(|| missing(threshold.0))?,
    })
}

/// Options by name. A list in brackets is one value.
fn options(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut depth = 0_usize;
    let split = text.split(|character: char| {
        depth = match character {
            '[' => depth + 1,
            ']' => depth.saturating_sub(1),
            _ => depth,
        };
        character == ',' && depth == 0
    });
    let option = |text: &str| {
        let (key, value) = text.split_once(':').ok_or_else(|| format!("expected option:value, found \"{text}\""))?;
        Ok((key.trim().to_owned(), value.trim().to_owned()))
    };
    split.map(str::trim).filter(|option| !option.is_empty()).map(option).collect()
}

/// What libtorch's allocator says of itself once it is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken<'a> {
    /// `native` or `cudaMallocAsync`.
    pub backend: &'a str,
    /// The text of settings that it read.
    pub settings: &'a str,
}

/// The allocator that the environment asks for, which must be the one that is `configured`, where there is one. `variable` is
/// the value of [`VARIABLE`].
///
/// # Errors
/// The sentence for the user.
pub fn check_environment(configured: Option<Allocator>, variable: Option<&str>) -> Result<Option<Allocator>, String> {
    let asked = Allocator::parse(variable.unwrap_or_default())
        .map_err(|conflict| format!("{VARIABLE}={}: {conflict}", variable.unwrap_or_default()))?;
    match configured {
        Some(configured) if asked != Some(configured) => {
            let found = variable.map_or_else(|| "is not set".to_owned(), |value| format!("is \"{value}\""));
            Err(format!(
                "the allocator {} is configured, but {VARIABLE} {found}; libtorch reads it when it is loaded, so start the worker with {VARIABLE}={configured}",
                configured.strategy()
            ))
        }
        _ => Ok(asked),
    }
}

/// Whether libtorch took what the environment `asked` for.
///
/// # Errors
/// The sentence for the user.
pub fn check_taken(asked: Option<Allocator>, taken: Taken<'_>) -> Result<(), String> {
    let Taken { backend, settings } = taken;
    let wanted = if asked == Some(Allocator::CudaMallocAsync) { "cudaMallocAsync" } else { "native" };
    if backend != wanted {
        return Err(format!("libtorch runs the allocator backend {backend}, but {VARIABLE} asks for {wanted}"));
    }
    match Allocator::parse(settings) {
        Ok(found) if found == asked => Ok(()),
        _ => {
            let asked = asked.map_or_else(|| "nothing".to_owned(), |asked| format!("\"{asked}\""));
            Err(format!("libtorch's allocator took the settings \"{settings}\", but {VARIABLE} asks for {asked}"))
        }
    }
}

#[cfg(test)]
#[path = "allocator_tests.rs"]
mod tests;
