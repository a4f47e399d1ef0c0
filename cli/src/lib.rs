//! Client of ImageGen workers.
