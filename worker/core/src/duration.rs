//! Durations as people write them: `90s`, `1m30s`, `250ms`.

use std::time::Duration;

/// Why a text is not a duration.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("a duration is written as whole numbers with units ms, s, m or h, for example 90s or 1m30s, found \"{0}\"")]
pub struct ParseDurationError(String);

/// Reads durations of the form `^([0-9]+(ms|s|m|h))+$`.
///
/// # Errors
/// When the text does not match, or names more milliseconds than 64 bits hold.
pub fn parse_duration(text: &str) -> Result<Duration, ParseDurationError> {
    let invalid = || ParseDurationError(text.to_owned());
    let mut rest = text;
    let mut total_ms: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(invalid)?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let unit_ms: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(invalid()),
        };
        let number: u64 = number.parse().map_err(|_| invalid())?;
        total_ms = number.checked_mul(unit_ms).and_then(|ms| total_ms.checked_add(ms)).ok_or_else(invalid)?;
        rest = tail;
    }
    if text.is_empty() { Err(invalid()) } else { Ok(Duration::from_millis(total_ms)) }
}

/// As [`parse_duration`], for durations that must not be nothing.
///
/// # Errors
/// As [`parse_duration`], and for zero.
pub fn parse_positive_duration(text: &str) -> Result<Duration, ParseDurationError> {
    let duration = parse_duration(text)?;
    if duration.is_zero() { Err(ParseDurationError(text.to_owned())) } else { Ok(duration) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::seconds("90s", 90_000)]
    #[case::mixed("1m30s", 90_000)]
    #[case::milliseconds("250ms", 250)]
    #[case::hours("2h", 7_200_000)]
    #[case::unordered("1s1h", 3_601_000)]
    fn durations_are_read(#[case] text: &str, #[case] milliseconds: u64) {
        assert_eq!(parse_duration(text), Ok(Duration::from_millis(milliseconds)));
    }

    #[rstest]
    #[case::nothing("")]
    #[case::no_unit("90")]
    #[case::no_number("s")]
    #[case::unknown_unit("3d")]
    #[case::fraction("1.5s")]
    #[case::negative("-1s")]
    #[case::space("1 s")]
    #[case::overflow("99999999999999999999s")]
    #[case::overflow_in_unit("18446744073709551615h")]
    fn other_texts_are_refused(#[case] text: &str) {
        assert_eq!(parse_duration(text), Err(ParseDurationError(text.to_owned())));
    }

    #[test]
    fn nothing_is_not_positive() {
        assert_eq!(parse_duration("0s"), Ok(Duration::ZERO));
        assert_eq!(parse_positive_duration("0h0ms"), Err(ParseDurationError("0h0ms".to_owned())));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "[0-9msh.]{0,24}") {
            let _ = parse_duration(&text);
        }

        #[test]
        fn a_sum_of_parts_is_their_sum(hours in 0u64..100, seconds in 0u64..100_000) {
            prop_assert_eq!(parse_duration(&format!("{hours}h{seconds}s")), Ok(Duration::from_secs(hours * 3600 + seconds)));
        }
    }
}
