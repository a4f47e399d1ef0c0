//! GPU profiles: settings that fit a card, from `deploy/profiles.yaml`.

mod checkpoint;
mod choose;
pub(crate) mod memory;
mod table;

use std::fmt;

use imagegen_core::bucket::Buckets;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use self::table::table;
pub(crate) use self::{
    checkpoint::parameters,
    choose::{Card, Choice, ProfileError, choose},
};

/// The file, as it was when the program was built.
const FILE: &str = include_str!("../../../deploy/profiles.yaml");

/// Settings that fit a card.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Profile {
    pub(crate) name: String,
    /// Parts of NVML's name for it, word by word.
    pub(crate) cards: Vec<String>,
    /// The least total memory of such a card.
    #[serde(rename = "memoryGiB")]
    pub(crate) memory_gib: f64,
    pub(crate) precision: Weights,
    pub(crate) text_encoder: TextEncoder,
    pub(crate) vae_tiling: VaeTiling,
    #[serde(deserialize_with = "parse_buckets", serialize_with = "write_buckets")]
    pub(crate) buckets: Buckets,
}

/// Numbers that weights are kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, strum::Display)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub(crate) enum Weights {
    Float32,
    BFloat16,
    Float8,
    Int4,
}

/// Where the text encoder's weights are, and in which numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TextEncoder {
    pub(crate) residency: Residency,
    pub(crate) weights: Weights,
}

/// Where weights wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, strum::Display)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub(crate) enum Residency {
    /// On the device.
    Resident,
    /// In host memory until they are needed.
    Offloaded,
}

/// How the VAE decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, strum::Display)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub(crate) enum VaeTiling {
    Never,
    Always,
}

/// Something that a profile asks for and this version does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Feature {
    Float8Transformer,
    Float8TextEncoder,
    Int4TextEncoder,
    TextEncoderOffload,
    TiledDecode,
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Float8Transformer => "float8 weights of the transformer",
            Self::Float8TextEncoder => "float8 weights of the text encoder",
            Self::Int4TextEncoder => "int4 weights of the text encoder",
            Self::TextEncoderOffload => "offloading of the text encoder",
            Self::TiledDecode => "tiled decoding",
        })
    }
}

impl Profile {
    /// What it asks for that this version does not have.
    pub(crate) fn needs(&self) -> Vec<Feature> {
        let TextEncoder { residency, weights } = self.text_encoder;
        let all = [
            (self.precision == Weights::Float8, Feature::Float8Transformer),
            (weights == Weights::Float8, Feature::Float8TextEncoder),
            (weights == Weights::Int4, Feature::Int4TextEncoder),
            (residency == Residency::Offloaded, Feature::TextEncoderOffload),
            (self.vae_tiling == VaeTiling::Always, Feature::TiledDecode),
        ];
        all.into_iter().filter(|(asked, _)| *asked).map(|(_, feature)| feature).collect()
    }

    /// The number format of the model, where this version has it.
    pub(crate) const fn precision(&self) -> Option<crate::device::Precision> {
        match self.precision {
            Weights::Float32 => Some(crate::device::Precision::Float32),
            Weights::BFloat16 => Some(crate::device::Precision::BFloat16),
            Weights::Float8 | Weights::Int4 => None,
        }
    }
}

/// All profiles, as a table or as JSON.
///
/// # Errors
/// When they cannot be written as JSON.
pub fn list(json: bool) -> Result<String, serde_json::Error> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Listed {
        #[serde(flatten)]
        profile: Profile,
        needs: Vec<Feature>,
        peak_gib: f64,
    }
    if !json {
        return Ok(table(&all()));
    }
    let listed = |profile: Profile| {
        let peak_gib = (memory::largest_peak_gib(&profile) * 10.0).round() / 10.0;
        Listed { needs: profile.needs(), peak_gib, profile }
    };
    Ok(serde_json::to_string_pretty(&all().into_iter().map(listed).collect::<Vec<_>>())? + "\n")
}

/// All profiles, in the order of the file: the most memory first.
#[expect(clippy::expect_used, reason = "the file is part of the program, and a test reads it")]
pub(crate) fn all() -> Vec<Profile> {
    #[derive(Deserialize)]
    struct File {
        profiles: Vec<Profile>,
    }
    serde_yaml::from_str::<File>(FILE).expect("deploy/profiles.yaml is tested").profiles
}

fn parse_buckets<'de, D: Deserializer<'de>>(from: D) -> Result<Buckets, D::Error> {
    Vec::<String>::deserialize(from)?.join(",").parse().map_err(D::Error::custom)
}

fn write_buckets<S: Serializer>(buckets: &Buckets, to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(buckets.as_slice().iter().map(ToString::to_string))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_valid_and_in_order() {
        let profiles = all();
        assert_eq!(profiles.len(), 12);
        assert!(profiles.is_sorted_by(|a, b| a.memory_gib >= b.memory_gib), "the most memory first");
        let mut names: Vec<_> = profiles.iter().map(|profile| &profile.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), profiles.len(), "a name stands once");
    }

    #[test]
    fn a_profile_says_what_it_needs() {
        let profiles = all();
        let needs = |name: &str| profiles.iter().find(|profile| profile.name == name).unwrap().needs();
        assert_eq!(needs("h100-80gb"), []);
        assert_eq!(
            needs("rtx-4070-ti-12gb"),
            [Feature::Float8Transformer, Feature::Float8TextEncoder, Feature::TextEncoderOffload, Feature::TiledDecode]
        );
    }
}
