//! The ImageGen worker.
