//! The device of a scripted engine: a caching allocator of numbers, with a cap that fails as a card does.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use imagegen_core::{
    engine::AllocatorStats,
    memory::{DeviceMemory, ReadDeviceMemory},
};

use super::script::ScriptedMemory;

/// Shared by the engine and whoever asks for the device's memory; without a script, nothing is known of it.
#[derive(Debug, Clone)]
pub struct ScriptedDevice(Option<Arc<Mutex<Device>>>);

#[derive(Debug)]
struct Device {
    script: ScriptedMemory,
    is_loaded: bool,
    foreign_bytes: u64,
    limit_bytes: u64,
    stats: AllocatorStats,
}

impl ScriptedDevice {
    /// An empty device.
    #[must_use]
    pub fn new(script: Option<ScriptedMemory>) -> Self {
        Self(script.map(|script| {
            let stats = AllocatorStats::default();
            let device = Device { script, is_loaded: false, foreign_bytes: 0, limit_bytes: u64::MAX, stats };
            Arc::new(Mutex::new(device))
        }))
    }

    /// Asks the device.
    #[must_use]
    pub fn reading(&self) -> ReadDeviceMemory {
        let own = self.clone();
        Arc::new(move || own.lock().map_or(DeviceMemory::UNKNOWN, |device| device.memory()))
    }

    pub(super) fn load(&self, weight_bytes: u64) {
        if let Some(mut device) = self.lock() {
            device.is_loaded = true;
            // What does not fit shows at the first batch.
            let _ = device.take(weight_bytes);
        }
    }

    /// The neighbours of this batch.
    pub(super) fn begin(&self, batch: u64) {
        if let Some(mut device) = self.lock() {
            let foreign = device.script.foreign.iter().rev().find(|foreign| foreign.from_batch <= batch);
            device.foreign_bytes = foreign.map_or(0, |foreign| foreign.bytes);
        }
    }

    /// Bytes of one step, and of decoding one image.
    pub(super) fn needs(&self, pixels: u64, images: u64) -> (u64, u64) {
        self.lock().map_or((0, 0), |device| {
            let bytes = |per_pixel: f64| (pixels as f64 * per_pixel) as u64;
            (images * bytes(device.script.bytes_per_pixel), bytes(device.script.decode_bytes_per_pixel))
        })
    }

    /// Takes these bytes, or says why not in the words of an allocator.
    pub(super) fn take(&self, bytes: u64) -> Result<(), String> {
        self.lock().map_or(Ok(()), |mut device| device.take(bytes))
    }

    pub(super) fn give(&self, bytes: u64) {
        if let Some(mut device) = self.lock() {
            device.stats.allocated_bytes = device.stats.allocated_bytes.saturating_sub(bytes);
        }
    }

    /// The part of a batch that is never given back.
    pub(super) fn leak(&self) {
        if let Some(mut device) = self.lock() {
            let bytes = device.script.leak_bytes;
            let _ = device.take(bytes);
        }
    }

    pub(super) fn stats(&self) -> AllocatorStats {
        self.lock().map_or_else(AllocatorStats::default, |device| device.stats)
    }

    pub(super) fn reset_peaks(&self) {
        if let Some(mut device) = self.lock() {
            device.stats.peak_allocated_bytes = device.stats.allocated_bytes;
            device.stats.peak_reserved_bytes = device.stats.reserved_bytes;
        }
    }

    pub(super) fn trim(&self) {
        if let Some(mut device) = self.lock() {
            device.trim();
        }
    }

    pub(super) fn limit(&self, bytes: u64) {
        if let Some(mut device) = self.lock() {
            device.limit_bytes = bytes;
        }
    }

    fn lock(&self) -> Option<MutexGuard<'_, Device>> {
        // Every change is complete before anything could panic.
        self.0.as_ref().map(|device| device.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Device {
    fn memory(&self) -> DeviceMemory {
        let own = if self.is_loaded { self.script.overhead_bytes } else { 0 };
        let used_bytes = own + self.stats.reserved_bytes + self.foreign_bytes;
        DeviceMemory { usable_total_bytes: self.script.total_bytes, used_bytes }
    }

    fn take(&mut self, bytes: u64) -> Result<(), String> {
        let allocated_bytes = self.stats.allocated_bytes + bytes;
        if allocated_bytes > self.stats.reserved_bytes {
            let others = self.memory().used_bytes - self.stats.reserved_bytes;
            let most = self.limit_bytes.min(self.script.total_bytes.saturating_sub(others));
            if allocated_bytes > most {
                self.stats.out_of_memory += 1;
                return Err(format!("out of memory. Tried to allocate {bytes} bytes; {most} bytes may be held"));
            }
            self.stats.reserved_bytes = allocated_bytes;
            self.stats.device_allocations += 1;
        }
        self.stats.allocated_bytes = allocated_bytes;
        self.stats.active_bytes = allocated_bytes;
        self.stats.peak_allocated_bytes = self.stats.peak_allocated_bytes.max(allocated_bytes);
        self.stats.peak_reserved_bytes = self.stats.peak_reserved_bytes.max(self.stats.reserved_bytes);
        Ok(())
    }

    fn trim(&mut self) {
        if self.stats.reserved_bytes > self.stats.allocated_bytes {
            self.stats.device_frees += 1;
        }
        self.stats.reserved_bytes = self.stats.allocated_bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> ScriptedDevice {
        let script =
            "{total_bytes: 1000, overhead_bytes: 50, bytes_per_pixel: 1, foreign: [{from_batch: 2, bytes: 300}]}";
        let device = ScriptedDevice::new(serde_yaml::from_str(script).unwrap());
        device.load(400);
        device
    }

    #[test]
    fn it_caches_until_it_is_trimmed() {
        let device = device();
        device.take(200).unwrap();
        device.give(200);
        let stats = device.stats();
        assert_eq!((stats.allocated_bytes, stats.reserved_bytes, stats.peak_allocated_bytes), (400, 600, 600));
        assert_eq!((device.reading())(), DeviceMemory { usable_total_bytes: 1000, used_bytes: 650 });
        device.trim();
        assert_eq!(device.stats().reserved_bytes, 400);
    }

    #[test]
    fn limit_and_neighbours_cap_it() {
        let device = device();
        assert!(device.take(550).is_ok());
        device.give(550);
        device.trim();
        device.begin(2);
        assert!(device.take(251).unwrap_err().contains("Tried to allocate 251 bytes"));
        assert!(device.take(250).is_ok());
        device.give(250);
        device.limit(500);
        device.trim();
        assert!(device.take(101).is_err());
        assert_eq!((device.stats().out_of_memory, device.stats().allocated_bytes), (2, 400));
    }

    #[test]
    fn without_a_script_nothing_is_known() {
        let device = ScriptedDevice::new(None);
        assert!(device.take(u64::MAX).is_ok());
        assert_eq!(((device.reading())(), device.stats()), (DeviceMemory::UNKNOWN, AllocatorStats::default()));
    }
}
