//! Durations as users write them: `90s`, `1h30m`, `250ms`.

use std::{borrow::Cow, fmt, time};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// What a duration looks like. CEL's and Go's own notation, without fractions.
pub const DURATION_PATTERN: &str = "^([0-9]+(ms|s|m|h))+$";

/// A duration in the text that a user wrote. It is kept as text, so that what is shown is what was applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Duration(String);

/// A text that is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a duration: write whole numbers with the units ms, s, m and h, for example 90s or 1h30m")]
pub struct DurationError(String);

impl Duration {
    /// Takes `text` as it is; [`Duration::parse`] tells whether it is a duration.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The length of time that the text stands for.
    pub fn parse(&self) -> Result<time::Duration, DurationError> {
        let error = || DurationError(self.0.clone());
        let mut rest = self.0.as_str();
        let mut total = time::Duration::ZERO;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?;
            let count: u64 = rest[..digits].parse().map_err(|_| error())?;
            rest = &rest[digits..];
            let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
            let unit_milliseconds = match &rest[..letters] {
                "ms" => 1,
                "s" => 1_000,
                "m" => 60_000,
                "h" => 3_600_000,
                _ => return Err(error()),
            };
            rest = &rest[letters..];
            let milliseconds = count.checked_mul(unit_milliseconds).ok_or_else(error)?;
            total = total.checked_add(time::Duration::from_millis(milliseconds)).ok_or_else(error)?;
        }
        if self.0.is_empty() { Err(error()) } else { Ok(total) }
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": DURATION_PATTERN, "minLength": 2, "maxLength": 16 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_sums_of_whole_units() {
        for (text, milliseconds) in [
            ("0s", Some(0)),
            ("250ms", Some(250)),
            ("90s", Some(90_000)),
            ("1h30m", Some(5_400_000)),
            ("1m1ms", Some(60_001)),
        ] {
            assert_eq!(Duration::new(text).parse().ok(), milliseconds.map(time::Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_named_in_the_error() {
        for text in ["", "s", "10", "1.5s", "-1s", "1d", "1s ", "1ss", "99999999999999999999s", "9999999999999999999h"]
        {
            let error = Duration::new(text).parse().expect_err(text);
            assert!(error.to_string().starts_with(&format!("{text:?}")), "{error}");
        }
    }
}
