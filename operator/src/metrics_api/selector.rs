//! Label selectors, as they stand in a query.

use kube::core::{Expression, Selector};

/// The selector in a query parameter; nothing selects everything.
///
/// # Errors
/// A sentence about the requirement that cannot be read.
pub fn parse(text: &str) -> Result<Selector, String> {
    requirements(text).into_iter().map(str::trim).filter(|part| !part.is_empty()).map(requirement).collect()
}

/// Splits at commas, except for those inside of parentheses.
fn requirements(text: &str) -> Vec<&str> {
    let mut inside = false;
    text.split(|letter| {
        inside = match letter {
            '(' => true,
            ')' => false,
            _ => inside,
        };
        letter == ',' && !inside
    })
    .collect()
}

fn requirement(text: &str) -> Result<Expression, String> {
    let unreadable = || {
        format!(
            "the label selector {text:?} cannot be read: expected key, !key, key=value, key!=value, \
             key in (a, b) or key notin (a, b)"
        )
    };
    let key = |text: &str| {
        let text = text.trim();
        let fits = |letter: char| letter.is_ascii_alphanumeric() || "-_./".contains(letter);
        (!text.is_empty() && text.chars().all(fits)).then(|| text.to_owned()).ok_or_else(unreadable)
    };
    let value = |text: &str| {
        let text = text.trim();
        let fits = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
        text.chars().all(fits).then(|| text.to_owned()).ok_or_else(unreadable)
    };
    if let Some(list) = text.strip_suffix(')') {
        let (head, list) = list.split_once('(').ok_or_else(unreadable)?;
        let values = list.split(',').map(value).collect::<Result<_, _>>()?;
        let (name, operator) = head.trim().rsplit_once(char::is_whitespace).ok_or_else(unreadable)?;
        return match operator {
            "in" => Ok(Expression::In(key(name)?, values)),
            "notin" => Ok(Expression::NotIn(key(name)?, values)),
            _ => Err(unreadable()),
        };
    }
    if let Some((name, wanted)) = text.split_once("!=") {
        return Ok(Expression::NotEqual(key(name)?, value(wanted)?));
    }
    if let Some((name, wanted)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return Ok(Expression::Equal(key(name)?, value(wanted)?));
    }
    match text.strip_prefix('!') {
        Some(name) => Ok(Expression::DoesNotExist(key(name)?)),
        None => Ok(Expression::Exists(key(text)?)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kube::core::SelectorExt as _;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::everything("", true)]
    #[case::equal("app=a", true)]
    #[case::equal_twice("app==a", true)]
    #[case::another_value("app=b", false)]
    #[case::not_equal("app!=b", true)]
    #[case::in_a_list("app in (b, a)", true)]
    #[case::not_in_a_list("app notin (b,c)", true)]
    #[case::there("imagegen.dev/name", true)]
    #[case::not_there("!app", false)]
    #[case::all_of_several("app in (a,b),tier!=x,imagegen.dev/name=turbo", true)]
    #[case::one_of_several_fails("app in (a,b),tier=x", false)]
    fn a_selector_selects(#[case] text: &str, #[case] selected: bool) {
        let labels = [("app", "a"), ("imagegen.dev/name", "turbo")].map(|(key, value)| (key.into(), value.into()));
        assert_eq!(parse(text).unwrap().matches(&BTreeMap::from(labels)), selected);
    }

    #[rstest]
    #[case::another_operator("app > 3")]
    #[case::no_key("=a")]
    #[case::an_open_list("app in (a")]
    #[case::a_list_without_operator("app (a)")]
    #[case::a_value_with_a_blank("app=a b")]
    fn what_cannot_be_read_is_named(#[case] text: &str) {
        assert!(parse(text).unwrap_err().contains(text));
    }
}
