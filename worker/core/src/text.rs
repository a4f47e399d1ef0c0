//! Which texts a prompt may hold.

/// Why a text cannot be a prompt.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TextError {
    /// Nothing but white space.
    #[error("is empty; say what to draw, in any language")]
    Empty,
    /// A control character other than tab and newline.
    #[error("has the control character U+{code_point:04X} at character {position}; only tab and newline are allowed")]
    Control {
        /// Its code point.
        code_point: u32,
        /// Characters before it.
        position: usize,
    },
    /// Bytes that are no text, for example a lone surrogate.
    #[error(
        "is not valid UTF-8: found byte 0x{byte:02X} after {valid_bytes} valid bytes (a lone surrogate or another encoding)"
    )]
    NotUtf8 {
        /// The first byte that does not belong.
        byte: u8,
        /// Bytes before it.
        valid_bytes: usize,
    },
}

/// The bytes as text.
///
/// # Errors
/// [`TextError::NotUtf8`].
pub fn decode(bytes: &[u8]) -> Result<&str, TextError> {
    std::str::from_utf8(bytes).map_err(|error| {
        let valid_bytes = error.valid_up_to();
        TextError::NotUtf8 { byte: bytes.get(valid_bytes).copied().unwrap_or_default(), valid_bytes }
    })
}

/// Passes texts without control characters other than tab and newline.
///
/// # Errors
/// [`TextError::Control`].
pub fn check_characters(text: &str) -> Result<(), TextError> {
    let bad = |(_, character): &(usize, char)| character.is_control() && !matches!(character, '\t' | '\n');
    match text.chars().enumerate().find(bad) {
        Some((position, character)) => Err(TextError::Control { code_point: character.into(), position }),
        None => Ok(()),
    }
}

/// Passes texts that a prompt may be.
///
/// # Errors
/// [`TextError::Empty`] and [`TextError::Control`].
pub fn check_prompt(text: &str) -> Result<(), TextError> {
    if text.trim().is_empty() { Err(TextError::Empty) } else { check_characters(text) }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::english("a red apple")]
    #[case::chinese("红苹果")]
    #[case::tab_and_newline("a red apple\n\ton a table")]
    #[case::emoji_with_joiners("👩‍🚀")]
    fn prompts(#[case] text: &str) {
        assert_eq!(check_prompt(text), Ok(()));
    }

    #[rstest]
    #[case::empty("", TextError::Empty)]
    #[case::blank(" \n\t", TextError::Empty)]
    #[case::nul("a\0b", TextError::Control { code_point: 0, position: 1 })]
    #[case::escape("红\u{1b}[0m", TextError::Control { code_point: 0x1b, position: 1 })]
    #[case::carriage_return("a\r\n", TextError::Control { code_point: 0x0d, position: 1 })]
    #[case::delete("\u{7f}", TextError::Control { code_point: 0x7f, position: 0 })]
    #[case::second_control_block("a\u{85}b", TextError::Control { code_point: 0x85, position: 1 })]
    fn not_prompts(#[case] text: &str, #[case] error: TextError) {
        assert_eq!(check_prompt(text), Err(error));
    }

    #[rstest]
    #[case::lone_surrogate(b"a \xED\xA0\x80", TextError::NotUtf8 { byte: 0xED, valid_bytes: 2 })]
    #[case::latin_1(b"caf\xE9", TextError::NotUtf8 { byte: 0xE9, valid_bytes: 3 })]
    fn not_text(#[case] bytes: &[u8], #[case] error: TextError) {
        assert_eq!(decode(bytes), Err(error));
    }
}
