//! Whether a new status is worth a write.

use crate::crd::{ImageGenStatus, MemoryStatus};

/// A change of pressure below this is noise.
const PRESSURE_STEP: f64 = 0.05;

/// Whether `new` tells a reader something that `old` does not. Numbers in a sentence (a back-off that grows, an age)
/// and small moves of the load do not count: they go along with the next write that does.
pub fn changed_enough(old: &ImageGenStatus, new: &ImageGenStatus) -> bool {
    telling(old) != telling(new) || memory_changed(old.memory.as_ref(), new.memory.as_ref())
}

/// `status` without what changes all the time.
fn telling(status: &ImageGenStatus) -> ImageGenStatus {
    let mut status = ImageGenStatus { memory: None, demand: None, ..status.clone() };
    for condition in &mut status.conditions {
        condition.message.retain(|c| !c.is_ascii_digit());
    }
    for worker in &mut status.workers {
        worker.pressure = None;
    }
    status
}

fn memory_changed(old: Option<&MemoryStatus>, new: Option<&MemoryStatus>) -> bool {
    match (old, new) {
        (None, None) => false,
        (Some(old), Some(new)) => {
            (old.pressure - new.pressure).abs() >= PRESSURE_STEP
                || old.total_bytes != new.total_bytes
                || old.out_of_memory_total != new.out_of_memory_total
        }
        _ => true,
    }
}
