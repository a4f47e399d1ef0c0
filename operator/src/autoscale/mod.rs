//! How many workers an ImageGen has: from the workers' reports to a number with a reason.
//!
//! ```text
//! pods + reports -fleet-> Worker* -load(pure)-> Load -decide(pure: load, spec, history, now)-> Decision -effects-> size
//! ```

pub mod decide;
pub mod fleet;
pub mod history;
pub mod load;
pub mod reports;
pub mod spec;

#[cfg(test)]
pub(crate) mod samples;
