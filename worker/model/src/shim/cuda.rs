//! The allocator, stream and events of a GPU, and what CUDA says of it.

use std::ffi::{CStr, c_char, c_void};
use std::ptr;
use std::sync::OnceLock;

use imagegen_core::engine::AllocatorStats;

pub use super::event::Event;
use super::{FailedAllocation, ShimError, ffi};

/// The shared object that build.rs made; empty when it could not.
static LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libimagegen_cuda_shim.so"));

/// A GPU that libtorch can use.
#[derive(Clone, Copy)]
pub struct Cuda {
    functions: &'static ffi::CudaFunctions,
    index: i32,
}

/// What CUDA says of a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CudaDevice {
    /// For example `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// As NVML writes it: `GPU-` and 32 hexadecimal digits in five groups. On a MIG instance the prefix is `MIG-`, which CUDA
    /// does not tell.
    pub uuid: String,
    /// `domain:bus:device.function`.
    pub pci_bus_id: String,
    /// Memory of the device, or of the MIG instance.
    pub total_bytes: u64,
    /// Compute capability, for example (9, 0).
    pub compute_capability: (i32, i32),
    /// Streaming multiprocessors.
    pub multiprocessors: i32,
}

/// Free and total memory of a GPU, as CUDA sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaMemory {
    /// Free for everybody.
    pub free_bytes: u64,
    /// In all.
    pub total_bytes: u64,
}

/// What the caching allocator holds, summed over its segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AllocatorSnapshot {
    /// Pieces from the driver.
    pub segments: u64,
    /// Those of them that grow.
    pub expandable_segments: u64,
    /// Parts of segments.
    pub blocks: u64,
    /// Those of them that nobody uses.
    pub free_blocks: u64,
    /// Bytes of all segments.
    pub total_bytes: u64,
    /// Bytes of live tensors.
    pub allocated_bytes: u64,
    /// Bytes of live tensors and of blocks that a stream still uses.
    pub active_bytes: u64,
    /// Largest free block.
    pub largest_free_block_bytes: u64,
}

/// A stream of CUDA, as its runtime and its driver know it (`cudaStream_t`, `CUstream`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamHandle(pub *mut c_void);

impl std::fmt::Debug for Cuda {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cuda:{}", self.index)
    }
}

impl Cuda {
    /// GPU `index`, made ready. [`open_cuda`](crate::libtorch::open_cuda) must have opened libtorch's CUDA half before.
    ///
    /// # Errors
    /// When this program carries no CUDA half, libtorch's is not there or is another one, or the GPU does not work.
    pub fn open(index: usize) -> Result<Self, ShimError> {
        static FUNCTIONS: OnceLock<Result<ffi::CudaFunctions, ShimError>> = OnceLock::new();
        let functions = FUNCTIONS.get_or_init(open_library).as_ref().map_err(Clone::clone)?;
        let index = i32::try_from(index).map_err(|_| ShimError(format!("there is no GPU {index}")))?;
        // SAFETY: takes a number.
        ffi::check(unsafe { (functions.initialize)(index) })?;
        Ok(Self { functions, index })
    }

    /// What the allocator holds.
    ///
    /// # Errors
    /// When the device is broken.
    pub fn stats(self) -> Result<AllocatorStats, ShimError> {
        let mut stats = ffi::AllocatorStats::default();
        // SAFETY: it writes the struct that it is given.
        ffi::check(unsafe { (self.functions.stats)(self.index, &raw mut stats) })?;
        Ok(stats.into())
    }

    /// Starts new peaks at what is held now.
    ///
    /// # Errors
    /// When the device is broken.
    pub fn reset_peaks(self) -> Result<(), ShimError> {
        // SAFETY: takes a number.
        ffi::check(unsafe { (self.functions.reset_peaks)(self.index) })
    }

    /// Waits for the device and gives all free blocks back to the driver.
    ///
    /// # Errors
    /// When the device is broken.
    pub fn empty_cache(self) -> Result<(), ShimError> {
        // SAFETY: takes nothing.
        ffi::check(unsafe { (self.functions.empty_cache)() })
    }

    /// Most that the allocator may hold, as a part of the device's memory, 0 to 1. What is held already stays.
    ///
    /// # Errors
    /// When the device is broken.
    pub fn set_memory_fraction(self, fraction: f64) -> Result<(), ShimError> {
        // SAFETY: takes numbers.
        ffi::check(unsafe { (self.functions.set_memory_fraction)(self.index, fraction.clamp(0.0, 1.0)) })
    }

    /// The text of settings that the allocator took last, for example from `PYTORCH_CUDA_ALLOC_CONF`.
    ///
    /// # Errors
    /// When the text cannot be read.
    pub fn allocator_settings(self) -> Result<String, ShimError> {
        text(self.functions.settings)
    }

    /// `native` or `cudaMallocAsync`.
    ///
    /// # Errors
    /// When the name cannot be read.
    pub fn allocator_backend(self) -> Result<String, ShimError> {
        text(self.functions.backend)
    }

    /// What the allocator's segments hold.
    ///
    /// # Errors
    /// Under `cudaMallocAsync`, which keeps no list of them.
    pub fn snapshot(self) -> Result<AllocatorSnapshot, ShimError> {
        let mut found = ffi::Snapshot::default();
        // SAFETY: it writes the struct that it is given.
        ffi::check(unsafe { (self.functions.snapshot)(self.index, &raw mut found) })?;
        Ok(AllocatorSnapshot {
            segments: found.segments,
            expandable_segments: found.expandable_segments,
            blocks: found.blocks,
            free_blocks: found.free_blocks,
            total_bytes: found.total_bytes,
            allocated_bytes: found.allocated_bytes,
            active_bytes: found.active_bytes,
            largest_free_block_bytes: found.largest_free_block_bytes,
        })
    }

    /// The last allocation that failed, on any GPU of this process. Not seen are those of `cudaMallocAsync`, of CUDA's libraries, and
    /// those after which NVML could not be asked, as on a MIG instance.
    #[must_use]
    pub fn last_failure(self) -> Option<FailedAllocation> {
        let mut last = ffi::OutOfMemory::default();
        // SAFETY: it writes the struct that it is given.
        unsafe { (self.functions.last_out_of_memory)(&raw mut last) };
        last.into()
    }

    /// Memory of the device.
    ///
    /// # Errors
    /// When the device is broken.
    pub fn memory(self) -> Result<CudaMemory, ShimError> {
        let (mut free_bytes, mut total_bytes) = (0, 0);
        // SAFETY: it writes the two numbers.
        ffi::check(unsafe { (self.functions.memory)(self.index, &raw mut free_bytes, &raw mut total_bytes) })?;
        Ok(CudaMemory { free_bytes, total_bytes })
    }

    /// Waits until the device has done all that it was given.
    ///
    /// # Errors
    /// What went wrong in work that was still running.
    pub fn synchronize(self) -> Result<(), ShimError> {
        // SAFETY: takes a number.
        ffi::check(unsafe { (self.functions.synchronize)(self.index) })
    }

    /// The stream that libtorch's operators of this thread go to. Valid for the rest of the process.
    ///
    /// # Errors
    /// When the device is broken.
    pub fn current_stream(self) -> Result<StreamHandle, ShimError> {
        let mut stream = ptr::null_mut();
        // SAFETY: it writes the pointer.
        ffi::check(unsafe { (self.functions.current_stream)(self.index, &raw mut stream) })?;
        Ok(StreamHandle(stream))
    }

    /// A new event, not recorded yet.
    ///
    /// # Errors
    /// When the device is broken.
    pub fn event(self) -> Result<Event, ShimError> {
        let mut event = ptr::null_mut();
        // SAFETY: it writes the pointer.
        ffi::check(unsafe { (self.functions.event_create)(self.index, &raw mut event) })?;
        Ok(Event::new(self.functions, self.index, event))
    }

    /// What CUDA says of the GPU.
    ///
    /// # Errors
    /// When the device is broken.
    pub fn device(self) -> Result<CudaDevice, ShimError> {
        let mut device = ffi::Device {
            name: [0; 256],
            pci_bus_id: [0; 32],
            uuid: [0; 16],
            total_bytes: 0,
            major: 0,
            minor: 0,
            multiprocessors: 0,
        };
        // SAFETY: it writes the struct that it is given.
        ffi::check(unsafe { (self.functions.device)(self.index, &raw mut device) })?;
        Ok(CudaDevice {
            name: until_nul(&device.name),
            uuid: uuid_text(device.uuid),
            pci_bus_id: until_nul(&device.pci_bus_id),
            total_bytes: device.total_bytes,
            compute_capability: (device.major, device.minor),
            multiprocessors: device.multiprocessors,
        })
    }
}

/// Opens the shared object out of memory: no file has to be found at run time, and a read-only root does no harm.
fn open_library() -> Result<ffi::CudaFunctions, ShimError> {
    use std::io::Write as _;
    use std::os::fd::AsRawFd as _;

    if LIBRARY.is_empty() {
        return Err(ShimError(
            "this program was built without CUDA's headers, so it cannot use a GPU; run deploy/scripts/libtorch.sh and build \
             again"
                .to_owned(),
        ));
    }
    let unusable = |what: &str, error: &dyn std::fmt::Display| ShimError(format!("{what}: {error}"));
    let file = rustix::fs::memfd_create("imagegen_cuda_shim", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|error| unusable("no file in memory for the CUDA half of this program", &error))?;
    let mut file = std::fs::File::from(file);
    file.write_all(LIBRARY)
        .map_err(|error| unusable("the CUDA half of this program does not fit in memory", &error))?;
    ffi::CudaFunctions::open(&format!("/proc/self/fd/{}", file.as_raw_fd()))
        .map_err(|error| unusable("the CUDA half of this program cannot be opened", &error))
}

/// The text that `write` writes.
fn text(write: unsafe extern "C" fn(*mut c_char, usize) -> ffi::Thrown) -> Result<String, ShimError> {
    let mut buffer: [c_char; 1024] = [0; 1024];
    // SAFETY: it writes at most this many characters, a terminator included.
    ffi::check(unsafe { write(buffer.as_mut_ptr(), buffer.len()) })?;
    Ok(until_nul(&buffer))
}

fn until_nul(buffer: &[c_char]) -> String {
    let bytes: Vec<u8> = buffer.iter().map(|&character| character.cast_unsigned()).collect();
    CStr::from_bytes_until_nul(&bytes).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}

fn uuid_text(uuid: [u8; 16]) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let [a, b, c, d, e] = [&uuid[..4], &uuid[4..6], &uuid[6..8], &uuid[8..10], &uuid[10..]].map(hex);
    format!("GPU-{a}-{b}-{c}-{d}-{e}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_written_as_nvml_does() {
        let uuid = [0xde, 0xad, 0xbe, 0xef, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0xff];
        assert_eq!(uuid_text(uuid), "GPU-deadbeef-0102-0304-0506-0708090a0bff");
    }
}
