//! What an allocator's words about a failed allocation tell.

use std::fmt::Write as _;

use crate::{admission::Bytes, engine::Stage};

/// Bytes that the failed allocation asked for, where the words say so.
///
/// Source: the texts of `CUDACachingAllocator.cpp` ("Tried to allocate 2.00 GiB"), `CUDAMallocAsyncAllocator.cpp`
/// ("Requested : 2.00 GiB") and `CPUAllocator.cpp` ("you tried to allocate 123 bytes") of libtorch 2.5.1.
#[must_use]
pub fn asked_bytes(words: &str) -> Option<u64> {
    let lower = words.to_ascii_lowercase();
    let after = |mark: &str| lower.find(mark).map(|at| lower[at + mark.len()..].trim_start_matches([' ', ':', '\t']));
    let rest = after("tried to allocate").or_else(|| after("requested"))?;
    let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
    let (number, unit) = rest.split_at(digits);
    let number: f64 = number.trim_end_matches('.').parse().ok()?;
    let unit = unit.trim_start();
    let scale =
        [("gib", 1_u64 << 30), ("gb", 1 << 30), ("mib", 1 << 20), ("mb", 1 << 20), ("kib", 1 << 10), ("kb", 1 << 10)];
    let scale = scale.into_iter().find(|(name, _)| unit.starts_with(name)).map_or(1, |(_, scale)| scale);
    Some((number * scale as f64) as u64)
}

/// What happens after an allocation of a batch failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The batch needs more than the table says: its entry rises to these bytes.
    Table(u64),
    /// The table is right, so there was less memory than the budget says: the device is asked again.
    Budget,
}

/// Which number was wrong, when a batch that is charged `charged_bytes` held `live_bytes` of activations and asked for
/// more.
#[must_use]
pub const fn blame(live_bytes: u64, asked_bytes: u64, charged_bytes: u64) -> Blame {
    let needed_bytes = live_bytes.saturating_add(asked_bytes);
    if needed_bytes > charged_bytes { Blame::Table(needed_bytes) } else { Blame::Budget }
}

/// The sentence for the caller of a request that failed for good.
#[must_use]
pub fn sentence(stage: Stage, asked_bytes: Option<u64>, free_bytes: u64, is_device_known: bool, words: &str) -> String {
    let mut sentence = format!("out of memory in {stage}");
    if let Some(asked_bytes) = asked_bytes {
        // Writing to a string cannot fail.
        let _ = write!(sentence, ": {} asked", Bytes(asked_bytes));
        if is_device_known {
            let _ = write!(sentence, ", {} free", Bytes(free_bytes));
        }
    } else {
        let _ = write!(sentence, ": {words}");
    }
    sentence
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB", Some(5 << 29))]
    #[case("CUDA out of memory. Tried to allocate 20.00 MiB. GPU", Some(20 << 20))]
    #[case("Allocation on device 0 would exceed allowed memory. (out of memory)\nCurrently allocated     : 1.00 GiB\nRequested               : 512.00 MiB\nDevice limit", Some(512 << 20))]
    #[case("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes. Error code 12", Some(4096))]
    #[case("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)", None)]
    #[case("Tried to allocate much", None)]
    fn words_of_allocators(#[case] words: &str, #[case] bytes: Option<u64>) {
        assert_eq!(asked_bytes(words), bytes);
    }

    #[test]
    fn a_batch_that_stayed_below_its_charge_is_not_to_blame() {
        assert_eq!(blame(60, 30, 100), Blame::Budget);
        assert_eq!(blame(60, 40, 100), Blame::Budget);
        assert_eq!(blame(60, 41, 100), Blame::Table(101));
    }

    #[test]
    fn the_sentence_has_the_numbers_there_are() {
        let words = |asked, is_known| sentence(Stage::Vae, asked, 1 << 20, is_known, "ALLOC_FAILED");
        assert_eq!(words(Some(1 << 30), true), "out of memory in vae: 1.00 GiB asked, 1.00 MiB free");
        assert_eq!(words(Some(1 << 30), false), "out of memory in vae: 1.00 GiB asked");
        assert_eq!(words(None, true), "out of memory in vae: ALLOC_FAILED");
    }
}
