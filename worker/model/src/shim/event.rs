//! Points in a stream of a GPU.

use std::ffi::c_void;

use super::ShimError;
use super::ffi::{CudaFunctions, check};

/// A point in a stream.
pub struct Event {
    functions: &'static CudaFunctions,
    device: i32,
    event: *mut c_void,
}

// SAFETY: CUDA's runtime lets any thread use an event; this is the only handle of it.
unsafe impl Send for Event {}

impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "event of cuda:{}", self.device)
    }
}

impl Event {
    /// The owner of `event`, which CUDA made on `device`.
    pub(super) const fn new(functions: &'static CudaFunctions, device: i32, event: *mut c_void) -> Self {
        Self { functions, device, event }
    }

    /// Puts it behind all work that this thread gave to the device, in place of where it was.
    ///
    /// # Errors
    /// When the device is broken.
    pub fn record(&self) -> Result<(), ShimError> {
        // SAFETY: the event lives.
        check(unsafe { (self.functions.event_record)(self.device, self.event) })
    }

    /// Waits until the device gets there; at once for one that was never recorded.
    ///
    /// # Errors
    /// What went wrong in the work before it.
    pub fn synchronize(&self) -> Result<(), ShimError> {
        // SAFETY: the event lives.
        check(unsafe { (self.functions.event_synchronize)(self.event) })
    }

    /// Whether the device got there.
    ///
    /// # Errors
    /// What went wrong in the work before it.
    pub fn is_done(&self) -> Result<bool, ShimError> {
        let mut done = false;
        // SAFETY: the event lives; the flag is written.
        check(unsafe { (self.functions.event_query)(self.event, &raw mut done) })?;
        Ok(done)
    }

    /// Seconds of the device from here to `end`. Both must be done.
    ///
    /// # Errors
    /// When one is not done or was never recorded.
    pub fn seconds_until(&self, end: &Self) -> Result<f64, ShimError> {
        let mut milliseconds = 0.0;
        // SAFETY: the events live; the number is written.
        check(unsafe { (self.functions.event_elapsed)(self.event, end.event, &raw mut milliseconds) })?;
        Ok(f64::from(milliseconds) / 1000.0)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event lives until here. CUDA frees it once the device is past it.
        unsafe { (self.functions.event_destroy)(self.event) }
    }
}
