//! One reconcile: five steps, one file each.

pub mod types;
