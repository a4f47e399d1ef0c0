//! Options of `PYTORCH_CUDA_ALLOC_CONF` that do not go together. Source: `CUDAAllocatorConfig.cpp` of libtorch 2.5.1;
//! pytorch#193400 for the growth.

use super::Finding;

const ABOUT: &str = "allocator";

/// Options that libtorch 2.5.1 knows.
const KNOWN: [&str; 9] = [
    "backend",
    "max_split_size_mb",
    "garbage_collection_threshold",
    "roundup_power2_divisions",
    "expandable_segments",
    "release_lock_on_cudamalloc",
    "pinned_use_cuda_host_register",
    "pinned_num_register_threads",
    "roundup_bypass_threshold_mb",
];

/// What is wrong with a value of the variable.
pub(super) fn findings(text: &str) -> Vec<Finding> {
    let options = parse(text);
    let get = |name: &str| options.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let is_async = get("backend") == Some("cudaMallocAsync");
    let expandable = get("expandable_segments") == Some("True");
    let mut found = Vec::new();

    for (name, _) in options.iter().filter(|(name, _)| !KNOWN.contains(&name.as_str())) {
        found.push(
            Finding::error(ABOUT, format!("{name:?} is no option of libtorch's allocator, which then does not start"))
                .change(format!("remove {name} from PYTORCH_CUDA_ALLOC_CONF")),
        );
    }
    if let Some(size) = get("max_split_size_mb")
        && size.parse::<u64>().ok().is_none_or(|megabytes| megabytes <= 20)
    {
        found.push(
            Finding::error(
                ABOUT,
                format!("max_split_size_mb:{size} is refused by libtorch; expected a number above 20"),
            )
            .change("set max_split_size_mb:128 or more, or leave it out"),
        );
    }
    if let Some(threshold) = get("garbage_collection_threshold")
        && threshold.parse::<f64>().ok().is_none_or(|ratio| ratio <= 0.0 || ratio >= 1.0)
    {
        found.push(
            Finding::error(
                ABOUT,
                format!(
                    "garbage_collection_threshold:{threshold} is refused by libtorch; expected a number between 0 and 1"
                ),
            )
            .change("set garbage_collection_threshold:0.8, or leave it out"),
        );
    }
    if expandable && get("max_split_size_mb").is_some() {
        found.push(
            Finding::error(
                ABOUT,
                "expandable_segments and max_split_size_mb together: reserved memory grows without bound",
            )
            .change("keep one of the two")
            .command("export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"),
        );
    }
    if expandable && get("garbage_collection_threshold").is_some() {
        found.push(
            Finding::warning(ABOUT, "garbage_collection_threshold does nothing for expandable segments")
                .change("keep one of the two")
                .command("export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"),
        );
    }
    let ignored =
        ["max_split_size_mb", "garbage_collection_threshold", "roundup_power2_divisions", "expandable_segments"];
    for name in ignored.into_iter().filter(|name| is_async && get(name).is_some()) {
        found.push(
            Finding::warning(ABOUT, format!("{name} does nothing with backend:cudaMallocAsync"))
                .change("keep one of the two")
                .command("export PYTORCH_CUDA_ALLOC_CONF=backend:cudaMallocAsync"),
        );
    }
    found
}

/// Names and values. A comma inside brackets belongs to the value.
pub(super) fn parse(text: &str) -> Vec<(String, String)> {
    let mut parts = vec![String::new()];
    let mut depth = 0_u32;
    for character in text.chars().filter(|character| !character.is_whitespace()) {
        match character {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if character == ',' && depth == 0 {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(character);
        }
    }
    let option = |part: String| match part.split_once(':') {
        Some((name, value)) => (name.to_owned(), value.to_owned()),
        None => (part, String::new()),
    };
    parts.into_iter().filter(|part| !part.is_empty()).map(option).collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::Level::{self, Error, Warning};

    #[rstest]
    #[case::nothing("", &[])]
    #[case::expandable("expandable_segments:True", &[])]
    #[case::split_size("max_split_size_mb:128,roundup_power2_divisions:[256:1,512:2,>:4],garbage_collection_threshold:0.8", &[])]
    #[case::asynchronous("backend:cudaMallocAsync", &[])]
    #[case::expandable_switched_off("expandable_segments:False,max_split_size_mb:128", &[])]
    #[case::expandable_and_split_size("expandable_segments:True,max_split_size_mb:128", &[Error])]
    #[case::expandable_and_collection("expandable_segments:True,garbage_collection_threshold:0.8", &[Warning])]
    #[case::asynchronous_and_split_size("backend:cudaMallocAsync,max_split_size_mb:128", &[Warning])]
    #[case::asynchronous_and_all("backend:cudaMallocAsync,garbage_collection_threshold:0.5,roundup_power2_divisions:4,expandable_segments:True", &[Warning, Warning, Warning, Warning])]
    #[case::too_small_a_split_size("max_split_size_mb:20", &[Error])]
    #[case::no_number("max_split_size_mb:big", &[Error])]
    #[case::threshold_out_of_range("garbage_collection_threshold:1.5", &[Error])]
    #[case::unknown_option("expandable_segment:True", &[Error])]
    #[case::spaces("expandable_segments: True , max_split_size_mb: 64", &[Error])]
    fn conflicts(#[case] text: &str, #[case] expected: &[Level]) {
        let found = findings(text);
        assert_eq!(found.iter().map(|finding| finding.level).collect::<Vec<_>>(), expected, "{found:#?}");
        assert!(found.iter().all(|finding| finding.change.is_some()));
    }
}
