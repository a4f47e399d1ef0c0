//! A `libnvidia-ml.so.1` that answers from a JSON file, read again at every call: a test rewrites the file while the program
//! under test runs. README.md says how to use it with a worker, in a pod and beside libtorch.

mod answers;
mod exports;
mod install;

pub use answers::{Device, Memory, MigDevice, Process, State, Utilization};
pub use install::FakeNvml;
