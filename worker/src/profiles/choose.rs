//! Which profile a card gets, and whether this version can serve it.

use serde::Serialize;

use super::{
    Profile,
    memory::{GIB, LIMIT_RATIO},
};
use crate::{cli::ProfileChoice, gpu::GpuSample};

/// What of the device decides.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Card {
    pub(crate) name: String,
    pub(crate) total_bytes: u64,
    pub(crate) is_mig: bool,
}

impl Card {
    /// The card that a reading is of, where it tells name and memory.
    pub(crate) fn of(sample: &GpuSample) -> Option<Self> {
        sample.uuid.as_ref()?;
        Some(Self { name: sample.name.clone()?, total_bytes: sample.memory?.total_bytes, is_mig: sample.mig.is_some() })
    }
}

/// The profile in force.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Choice {
    pub(crate) profile: Option<Profile>,
    /// Why it is this one, or why there is none.
    pub(crate) why: String,
}

/// Why the profile cannot be served.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum ProfileError {
    #[error("--profile {name}: no profile has this name; expected auto, none, or one of {known}")]
    Unknown { name: String, known: String },
    #[error("--profile {name} is for a GPU, and the device is {device}; leave it out")]
    NoGpu { name: String, device: crate::device::Device },
    #[error(
        "--profile {name} needs {needs}, which this version does not have; choose another (imagegen-worker profiles lists them) or --profile none"
    )]
    NotYetSupported { name: String, needs: String },
    #[error(
        "--profile {name} is for {expected_gib} GiB or more, and the {card} has {found_gib:.1} GiB; choose a smaller one (imagegen-worker profiles lists them) or --profile none"
    )]
    TooSmall { name: String, expected_gib: f64, card: String, found_gib: f64 },
    #[error(
        "the model takes {weights_gib:.1} GiB in {precision}, and the {card} of {found_gib:.1} GiB may use {limit_gib:.1}; its profile {name} needs {needs}, which this version does not have: use a larger card, or --profile none to try it anyway"
    )]
    DoesNotFit {
        weights_gib: f64,
        precision: &'static str,
        card: String,
        found_gib: f64,
        limit_gib: f64,
        name: String,
        needs: String,
    },
}

/// The profile for a card. `parameters` are those of the checkpoint, where it is known.
///
/// # Errors
/// When a named profile is not there or not for this card, and when the card needs a feature that this version lacks and the
/// checkpoint does not fit without it.
pub(crate) fn choose(
    asked: &ProfileChoice,
    profiles: &[Profile],
    card: Option<&Card>,
    parameters: Option<u64>,
) -> Result<Choice, ProfileError> {
    match asked {
        ProfileChoice::None => Ok(Choice { profile: None, why: "--profile none".into() }),
        ProfileChoice::Named(name) => named(name, profiles, card),
        ProfileChoice::Auto => match card {
            None => Ok(Choice { profile: None, why: "the device is not a GPU that NVML knows".into() }),
            Some(card) => automatic(profiles, card, parameters),
        },
    }
}

fn named(name: &str, profiles: &[Profile], card: Option<&Card>) -> Result<Choice, ProfileError> {
    let Some(profile) = profiles.iter().find(|profile| profile.name == name) else {
        let known = profiles.iter().map(|profile| profile.name.as_str()).collect::<Vec<_>>().join(", ");
        return Err(ProfileError::Unknown { name: name.to_owned(), known });
    };
    let needs = profile.needs();
    if !needs.is_empty() {
        return Err(ProfileError::NotYetSupported { name: name.to_owned(), needs: sentence(&needs) });
    }
    if let Some(card) = card
        && gib(card) < profile.memory_gib
    {
        return Err(ProfileError::TooSmall {
            name: name.to_owned(),
            expected_gib: profile.memory_gib,
            card: card.name.clone(),
            found_gib: gib(card),
        });
    }
    Ok(Choice { profile: Some(profile.clone()), why: format!("--profile {name}") })
}

fn automatic(profiles: &[Profile], card: &Card, parameters: Option<u64>) -> Result<Choice, ProfileError> {
    let Some((profile, why)) = suited(profiles, card) else {
        let why = format!("the {} of {:.1} GiB is smaller than every profile", card.name, gib(card));
        return Ok(Choice { profile: None, why });
    };
    let needs = profile.needs();
    if needs.is_empty() {
        return Ok(Choice { profile: Some(profile.clone()), why });
    }
    #[expect(clippy::cast_precision_loss, reason = "parameters are far below 2^53")]
    let weights_gib = parameters.map(|parameters| parameters as f64 * 2.0 / GIB);
    let limit_gib = LIMIT_RATIO * gib(card);
    match weights_gib {
        Some(weights_gib) if weights_gib > limit_gib => Err(ProfileError::DoesNotFit {
            weights_gib,
            precision: "bfloat16",
            card: card.name.clone(),
            found_gib: gib(card),
            limit_gib,
            name: profile.name.clone(),
            needs: sentence(&needs),
        }),
        _ => {
            let why = format!(
                "{} needs {}, which this version does not have; its sizes are for the full Z-Image-Turbo",
                profile.name,
                sentence(&needs)
            );
            Ok(Choice { profile: None, why })
        }
    }
}

/// The profile of the card's name, otherwise that of its size.
fn suited<'a>(profiles: &'a [Profile], card: &Card) -> Option<(&'a Profile, String)> {
    let mut fitting: Vec<_> = profiles.iter().filter(|profile| profile.memory_gib <= gib(card)).collect();
    fitting.sort_by(|a, b| b.memory_gib.total_cmp(&a.memory_gib));
    let names = |profile: &&&Profile| profile.cards.iter().any(|part| contains_words(&card.name, part));
    if !card.is_mig
        && let Some(profile) = fitting.iter().find(names)
    {
        return Some((*profile, format!("NVML calls it {}, {:.1} GiB", card.name, gib(card))));
    }
    let what = if card.is_mig { "a MIG instance" } else { "a card without a profile of its own" };
    fitting.first().map(|profile| (*profile, format!("{what} of {:.1} GiB", gib(card))))
}

/// Whether the words of `part` follow each other in `name`.
fn contains_words(name: &str, part: &str) -> bool {
    let words = |text: &str| text.split([' ', '-']).map(str::to_lowercase).collect::<Vec<_>>();
    let (name, part) = (words(name), words(part));
    name.windows(part.len()).any(|window| window == part)
}

fn sentence(needs: &[super::Feature]) -> String {
    needs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

#[expect(clippy::cast_precision_loss, reason = "GiB of a card need no more digits")]
fn gib(card: &Card) -> f64 {
    card.total_bytes as f64 / GIB
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::profiles::all;

    /// Parameters of Z-Image-Turbo, and of a small model.
    const FULL: u64 = 10_200_000_000;
    const SMALL: u64 = 20_000_000;

    fn card(name: &str, mib: u64) -> Card {
        Card { name: name.into(), total_bytes: mib << 20, is_mig: name.contains(" MIG ") }
    }

    fn profile(choice: Result<Choice, ProfileError>) -> Option<String> {
        choice.unwrap().profile.map(|profile| profile.name)
    }

    // Names and memory as nvidia-smi shows them.
    #[rstest]
    #[case("NVIDIA H100 80GB HBM3", 81_559, Some("h100-80gb"))]
    #[case("NVIDIA H200", 143_771, Some("h200"))]
    #[case("NVIDIA A100-SXM4-80GB", 81_920, Some("a100-80gb"))]
    #[case("NVIDIA A100-SXM4-40GB", 40_960, Some("a100-40gb"))]
    #[case("NVIDIA L40S", 46_068, Some("l40s"))]
    #[case("NVIDIA GeForce RTX 4090", 24_564, Some("rtx-4090-24gb"))]
    #[case("NVIDIA GeForce RTX 3090", 24_576, Some("rtx-3090-24gb"))]
    #[case::an_unknown_card_goes_by_its_size("NVIDIA RTX A6000", 49_140, Some("l40s"))]
    #[case::a_slice_goes_by_its_size("NVIDIA H100 80GB HBM3 MIG 4g.40gb", 40_448, Some("a100-40gb"))]
    #[case::a_tiny_slice("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 9_856, None)]
    #[case::its_features_are_not_there("NVIDIA L4", 23_034, None)]
    fn the_profile_of_a_card(#[case] name: &str, #[case] mib: u64, #[case] expected: Option<&str>) {
        let chosen = choose(&ProfileChoice::Auto, &all(), Some(&card(name, mib)), Some(SMALL));
        assert_eq!(profile(chosen).as_deref(), expected);
    }

    #[rstest]
    #[case("NVIDIA L4", 23_034, "l4-24gb")]
    #[case("NVIDIA A10G", 23_028, "a10g-24gb")]
    #[case("Tesla T4", 15_360, "t4-16gb")]
    #[case("NVIDIA GeForce RTX 4080", 16_376, "rtx-4080-16gb")]
    #[case("NVIDIA GeForce RTX 4070 Ti", 12_282, "rtx-4070-ti-12gb")]
    #[case("NVIDIA GeForce RTX 4070 Ti SUPER", 16_376, "rtx-4080-16gb")]
    fn a_card_of_its_name(#[case] name: &str, #[case] mib: u64, #[case] expected: &str) {
        let profiles = all();
        let (profile, why) = suited(&profiles, &card(name, mib)).unwrap();
        assert_eq!(profile.name, expected);
        assert!(why.contains(name), "{why}");
    }

    #[test]
    fn the_full_model_is_refused_where_it_cannot_fit() {
        let card = card("NVIDIA GeForce RTX 4080", 16_376);
        let error = choose(&ProfileChoice::Auto, &all(), Some(&card), Some(FULL)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the model takes 19.0 GiB in bfloat16, and the NVIDIA GeForce RTX 4080 of 16.0 GiB may use 14.7; its profile \
             rtx-4080-16gb needs float8 weights of the transformer and float8 weights of the text encoder, which this version \
             does not have: use a larger card, or --profile none to try it anyway"
        );
    }

    #[rstest]
    #[case::unknown("h1000", None, "no profile has this name")]
    #[case::features("t4-16gb", None, "needs float8 weights of the transformer and int4 weights of the text encoder")]
    #[case::too_small_a_card(
        "h100-80gb",
        Some(card("NVIDIA L40S", 46_068)),
        "is for 79 GiB or more, and the NVIDIA L40S has 45.0 GiB"
    )]
    fn a_named_profile_is_refused(#[case] name: &str, #[case] card: Option<Card>, #[case] expected: &str) {
        let asked = ProfileChoice::Named(name.into());
        let error = choose(&asked, &all(), card.as_ref(), None).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn none_and_no_gpu() {
        let card = card("NVIDIA H100 80GB HBM3", 81_559);
        assert_eq!(profile(choose(&ProfileChoice::None, &all(), Some(&card), None)), None);
        assert_eq!(profile(choose(&ProfileChoice::Auto, &all(), None, None)), None);
        let named = ProfileChoice::Named("h100-80gb".into());
        assert_eq!(profile(choose(&named, &all(), Some(&card), None)).as_deref(), Some("h100-80gb"));
    }
}
