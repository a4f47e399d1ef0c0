//! Z-Image in libtorch.
