//! The C interface of `shim/shim.h`, and the shared object of its CUDA half.

use std::ffi::{CStr, c_char, c_void};

use imagegen_core::engine::AllocatorStats as Stats;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::{FailedAllocation, ShimError};

/// Null, or a text that lives until the same thread calls again.
pub(super) type Thrown = *const c_char;

/// `ig_allocator_stats`
#[repr(C)]
#[derive(Default)]
pub(super) struct AllocatorStats {
    allocated_bytes: u64,
    reserved_bytes: u64,
    active_bytes: u64,
    inactive_split_bytes: u64,
    peak_allocated_bytes: u64,
    peak_reserved_bytes: u64,
    alloc_retries: u64,
    out_of_memory: u64,
    device_allocations: u64,
    device_frees: u64,
    largest_free_block_bytes: u64,
}

impl From<AllocatorStats> for Stats {
    fn from(stats: AllocatorStats) -> Self {
        Self {
            allocated_bytes: stats.allocated_bytes,
            reserved_bytes: stats.reserved_bytes,
            active_bytes: stats.active_bytes,
            inactive_split_bytes: stats.inactive_split_bytes,
            peak_allocated_bytes: stats.peak_allocated_bytes,
            peak_reserved_bytes: stats.peak_reserved_bytes,
            alloc_retries: stats.alloc_retries,
            out_of_memory: stats.out_of_memory,
            device_allocations: stats.device_allocations,
            device_frees: stats.device_frees,
            largest_free_block_bytes: Some(stats.largest_free_block_bytes).filter(|&bytes| bytes != u64::MAX),
        }
    }
}

/// `ig_out_of_memory`
#[repr(C)]
#[derive(Default)]
pub(super) struct OutOfMemory {
    count: u64,
    asked_bytes: u64,
    free_bytes: u64,
}

impl From<OutOfMemory> for Option<FailedAllocation> {
    fn from(OutOfMemory { count, asked_bytes, free_bytes }: OutOfMemory) -> Self {
        (count > 0).then_some(FailedAllocation { count, asked_bytes, free_bytes })
    }
}

/// `ig_snapshot`
#[repr(C)]
#[derive(Default)]
pub(super) struct Snapshot {
    pub(super) segments: u64,
    pub(super) expandable_segments: u64,
    pub(super) blocks: u64,
    pub(super) free_blocks: u64,
    pub(super) total_bytes: u64,
    pub(super) allocated_bytes: u64,
    pub(super) active_bytes: u64,
    pub(super) largest_free_block_bytes: u64,
}

/// `ig_device`
#[repr(C)]
pub(super) struct Device {
    pub(super) name: [c_char; 256],
    pub(super) pci_bus_id: [c_char; 32],
    pub(super) uuid: [u8; 16],
    pub(super) total_bytes: u64,
    pub(super) major: i32,
    pub(super) minor: i32,
    pub(super) multiprocessors: i32,
}

unsafe extern "C" {
    pub(super) fn ig_cpu_stats(stats: *mut AllocatorStats);
    pub(super) fn ig_cpu_reset_peak();
    pub(super) fn ig_cpu_limit(bytes: u64);
    pub(super) fn ig_cpu_allocations() -> u64;
    pub(super) fn ig_cpu_fail_in(nth: u64);
    pub(super) fn ig_cpu_last_out_of_memory(last: *mut OutOfMemory);
    pub(super) fn ig_attention(
        backend: i32,
        query: *const c_void,
        key: *const c_void,
        value: *const c_void,
        causal: bool,
        scale: *const f64,
        output: *mut *mut c_void,
    ) -> Thrown;
}

/// The error in what a function of the shim returned.
pub(super) fn check(thrown: Thrown) -> Result<(), ShimError> {
    if thrown.is_null() {
        return Ok(());
    }
    // SAFETY: the shim returns null or a text with a terminator, which lives until this thread calls it again.
    let text = unsafe { CStr::from_ptr(thrown) };
    Err(ShimError(text.to_string_lossy().into_owned()))
}

/// The functions of the CUDA half under the names that they have there, without `ig_cuda_`.
macro_rules! cuda_functions {
    ($($name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        pub(super) struct CudaFunctions {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl CudaFunctions {
            /// Opens the shared object for the rest of the process's life.
            pub(super) fn open(path: &str) -> Result<Self, libloading::Error> {
                // SAFETY: the file is what build.rs made of shim/cuda.cpp for the libtorch of this process. Its initialisers
                // set a few zeros.
                let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }?;
                // SAFETY: each type below is that of the function of this name in shim/cuda.cpp.
                let functions = unsafe {
                    Self { $($name: *library.get(concat!("ig_cuda_", stringify!($name), "\0").as_bytes())?,)* }
                };
                std::mem::forget(library);
                Ok(functions)
            }
        }
    };
}

cuda_functions! {
    initialize: fn(i32) -> Thrown;
    stats: fn(i32, *mut AllocatorStats) -> Thrown;
    reset_peaks: fn(i32) -> Thrown;
    empty_cache: fn() -> Thrown;
    set_memory_fraction: fn(i32, f64) -> Thrown;
    settings: fn(*mut c_char, usize) -> Thrown;
    backend: fn(*mut c_char, usize) -> Thrown;
    snapshot: fn(i32, *mut Snapshot) -> Thrown;
    last_out_of_memory: fn(*mut OutOfMemory);
    memory: fn(i32, *mut u64, *mut u64) -> Thrown;
    synchronize: fn(i32) -> Thrown;
    current_stream: fn(i32, *mut *mut c_void) -> Thrown;
    event_create: fn(i32, *mut *mut c_void) -> Thrown;
    event_destroy: fn(*mut c_void);
    event_record: fn(i32, *mut c_void) -> Thrown;
    event_synchronize: fn(*mut c_void) -> Thrown;
    event_query: fn(*mut c_void, *mut bool) -> Thrown;
    event_elapsed: fn(*mut c_void, *mut c_void, *mut f32) -> Thrown;
    device: fn(i32, *mut Device) -> Thrown;
}
