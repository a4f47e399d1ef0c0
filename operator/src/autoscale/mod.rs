//! How many workers an ImageGen has: from the workers' reports to a number with a reason.

pub mod fleet;
