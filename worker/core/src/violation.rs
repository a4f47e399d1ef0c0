//! Fields that are wrong, collected so that a caller learns of all of them at once.

use crate::{
    request::{Choice, RequestError},
    rules::Rules,
    spec::Size,
    text,
};

/// One field that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Name of the field in image.proto.
    pub field: &'static str,
    /// What was expected and what was found.
    pub description: String,
}

/// Longest `request_id`.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// All that is wrong with one call.
#[derive(Default)]
pub(crate) struct Violations(Vec<Violation>);

impl Violations {
    pub(crate) fn add(&mut self, field: &'static str, description: String) {
        self.0.push(Violation { field, description });
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn into_result(self) -> Result<(), RequestError> {
        if self.0.is_empty() { Ok(()) } else { Err(RequestError::Invalid(self.0)) }
    }

    pub(crate) fn text(&mut self, field: &'static str, result: Result<(), text::TextError>) {
        if let Err(error) = result {
            self.add(field, error.to_string());
        }
    }

    pub(crate) fn range(&mut self, field: &'static str, found: u32, min: u32, max: u32) {
        if !(min..=max).contains(&found) {
            self.add(field, format!("must be {min} to {max}, found {found}"));
        }
    }

    pub(crate) fn at_least_0(&mut self, field: &'static str, found: f64) {
        if !found.is_finite() || found < 0.0 {
            self.add(field, format!("must be a finite number of at least 0, found {found}"));
        }
    }

    pub(crate) fn choice<T>(&mut self, field: &'static str, choice: Choice<T>) -> Option<T> {
        choice.unwrap_or_else(|found| {
            self.add(field, format!("is none of the known values, found {found}"));
            None
        })
    }

    pub(crate) fn size(&mut self, size: Size, rules: &Rules) {
        let before = self.0.len();
        let max_size = rules.model.max_size;
        for (field, found, max) in [("width", size.width, max_size.width), ("height", size.height, max_size.height)] {
            if !(1..=max).contains(&found) {
                self.add(field, format!("must be 1 to {max} pixels, the model's largest, found {found}"));
            }
        }
        if self.0.len() == before && size.pixels() > rules.limits.max_pixels {
            let (found, max) = (size.pixels(), rules.limits.max_pixels);
            self.add("width", format!("times height must be at most {max} pixels, found {size} = {found} pixels"));
        }
    }

    pub(crate) fn request_id(&mut self, id: &str) {
        if id.len() > MAX_REQUEST_ID_BYTES {
            self.add("request_id", format!("must be at most {MAX_REQUEST_ID_BYTES} characters, found {}", id.len()));
        } else if !id.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
            self.add("request_id", "must be printable ASCII".into());
        }
    }
}
