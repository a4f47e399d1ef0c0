//! Durations on the command line and in front of a person.

use std::time::Duration;

/// Why a text is not a duration.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a duration is written as numbers with units ms, s, m or h, for example 90s or 1m30s, found \"{0}\"")]
pub struct ParseDurationError(String);

/// Reads durations as Kubernetes writes them: `^([0-9]+(ms|s|m|h))+$`.
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

/// A waiting time in words that do not promise more precision than there is: `4 s`, `1 min 30 s`, `2 h 5 min`.
/// `None` when the number says nothing (0 means "not measured yet" on the wire).
#[must_use]
pub fn format_eta(eta_seconds: f64) -> Option<String> {
    if !eta_seconds.is_finite() || eta_seconds <= 0.0 {
        return None;
    }
    Some(match eta_seconds.ceil().min(1e9) as u64 {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        seconds => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    })
}

/// Seconds with one decimal, or whole milliseconds below one tenth of a second.
#[must_use]
pub fn format_seconds(seconds: f64) -> String {
    if seconds < 0.1 { format!("{:.0} ms", seconds * 1e3) } else { format!("{seconds:.1} s") }
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

    #[rstest]
    #[case::unmeasured(0.0, None)]
    #[case::not_a_number(f64::NAN, None)]
    #[case::infinite(f64::INFINITY, None)]
    #[case::short(0.2, Some("1 s"))]
    #[case::seconds(41.2, Some("42 s"))]
    #[case::minute(60.0, Some("1 min 0 s"))]
    #[case::minutes(125.0, Some("2 min 5 s"))]
    #[case::hours(7500.0, Some("2 h 5 min"))]
    fn waiting_times_are_in_words(#[case] eta_seconds: f64, #[case] words: Option<&str>) {
        assert_eq!(format_eta(eta_seconds).as_deref(), words);
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
