//! Durations as people write them: `90s`, `1m30s`, `250ms`.

use std::time::Duration;

/// Why a text is not a duration.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a duration is written in whole ms, s, m or h, for example 90s or 1m30s, found \"{0}\"")]
pub(crate) struct ParseDurationError(String);

/// The duration that `text` says, in the form `^([0-9]+(ms|s|m|h))+$`.
pub(crate) fn parse(text: &str) -> Result<Duration, ParseDurationError> {
    let invalid = || ParseDurationError(text.to_owned());
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|character: char| !character.is_ascii_digit()).ok_or_else(invalid)?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|character: char| character.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let milliseconds: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(invalid()),
        };
        let number: u64 = number.parse().map_err(|_| invalid())?;
        let part = Duration::from_millis(number.checked_mul(milliseconds).ok_or_else(invalid)?);
        total = total.checked_add(part).ok_or_else(invalid)?;
        rest = tail;
    }
    if text.is_empty() { Err(invalid()) } else { Ok(total) }
}

/// As [`parse`], for durations that must not be nothing.
pub(crate) fn parse_positive(text: &str) -> Result<Duration, ParseDurationError> {
    parse(text).and_then(
        |duration| {
            if duration.is_zero() { Err(ParseDurationError(text.to_owned())) } else { Ok(duration) }
        },
    )
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("250ms", 250)]
    #[case("60s", 60_000)]
    #[case("1m30s", 90_000)]
    #[case("2h5m1s9ms", 7_501_009)]
    #[case("0s", 0)]
    fn durations(#[case] text: &str, #[case] milliseconds: u64) {
        assert_eq!(parse(text), Ok(Duration::from_millis(milliseconds)));
    }

    #[rstest]
    #[case("")]
    #[case("60")]
    #[case("s")]
    #[case("1.5s")]
    #[case("-1s")]
    #[case("1d")]
    #[case("1s ")]
    #[case("99999999999999999999s")]
    #[case("18446744073709551615h")]
    fn not_durations(#[case] text: &str) {
        assert_eq!(parse(text), Err(ParseDurationError(text.to_owned())));
    }
}
