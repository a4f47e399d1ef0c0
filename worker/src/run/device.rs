//! Binds the worker to its device before anything listens: which card it is, and the profile that suits it.

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
};

use imagegen_core::memory::{DeviceMemory, ReadDeviceMemory};
use tracing::info;

use super::ServeError;
use crate::{
    cli::ProfileChoice,
    device::Device,
    gpu::{ProbeOptions, sampler::Sampler},
    profiles::{self, Card, Profile, ProfileError},
};

/// The device and what follows from it.
pub(super) struct Bound {
    pub(super) sampler: Sampler,
    pub(super) profile: Option<Profile>,
}

/// Reads the device once, and chooses the profile.
///
/// # Errors
/// When it is another card than the settings name, and when the profile cannot be served on it.
pub(super) async fn bind(
    options: &ProbeOptions,
    asked: &ProfileChoice,
    model: Option<&Path>,
) -> Result<Bound, ServeError> {
    let wrong = |error: &dyn std::fmt::Display| ServeError::Settings(error.to_string());
    let sampler = Sampler::new(options.probe()).await.map_err(|error| wrong(&error))?;
    let sample = sampler.subscribe().borrow().clone();
    options.check(&sample).map_err(|error| wrong(&error))?;
    if let ProfileChoice::Named(name) = asked
        && options.device == Device::Cpu
    {
        return Err(wrong(&ProfileError::NoGpu { name: name.clone(), device: options.device }));
    }
    // A checkpoint that cannot be read is for the engine to tell, in all its ways.
    let parameters = model.and_then(|model| profiles::parameters(model).ok());
    let choice = profiles::choose(asked, &profiles::all(), Card::of(&sample).as_ref(), parameters)
        .map_err(|error| wrong(&error))?;
    info!(
        gpu = sample.name,
        uuid = sample.uuid,
        profile = choice.profile.as_ref().map(|profile| &*profile.name),
        why = choice.why,
        "Bound to the device."
    );
    Ok(Bound { sampler, profile: choice.profile })
}

/// Asks the device itself, each time: the numbers must fit those of the allocator, which are of this moment.
pub(super) fn reading(options: &ProbeOptions) -> ReadDeviceMemory {
    let probe = Mutex::new(options.probe());
    std::sync::Arc::new(move || {
        let sample = probe.lock().unwrap_or_else(PoisonError::into_inner).sample();
        sample.memory.map_or(DeviceMemory::UNKNOWN, |memory| DeviceMemory {
            usable_total_bytes: memory.usable_total_bytes(),
            used_bytes: memory.used_bytes,
        })
    })
}
