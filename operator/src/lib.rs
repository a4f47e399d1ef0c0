//! The ImageGen operator.
