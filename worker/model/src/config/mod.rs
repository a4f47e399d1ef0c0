//! The configuration files of a checkpoint, parsed strictly: no field that changes a result has a default here.

mod file;
mod model_index;
mod scheduler;
mod text_encoder;
mod transformer;
mod vae;

pub(crate) use file::ConfigFile;
pub(crate) use model_index::ModelIndex;
pub(crate) use scheduler::SchedulerConfig;
pub(crate) use text_encoder::TextEncoderConfig;
pub(crate) use transformer::TransformerConfig;
pub(crate) use vae::VaeConfig;
