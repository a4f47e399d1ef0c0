//! Contracts between crates, and between the code and what users read. All of it lies in `tests/`.
