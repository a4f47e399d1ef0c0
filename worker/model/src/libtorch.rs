//! libtorch as a library of the process: its CUDA half, its version, its threads.
//!
//! Binaries link the CPU half alone, so that they start on a machine without CUDA's libraries. [`open_cuda`] brings in the
//! CUDA half, which registers itself with the CPU half, and must come before the first other call into libtorch.
#![allow(unsafe_code, reason = "opening a library runs its initialisers; the one call is below")]

use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// Whether the CUDA half of libtorch is in the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CudaLibrary {
    /// It is, from this file.
    Opened(PathBuf),
    /// It is not; the process can use the CPU.
    Absent {
        /// What is missing, for a person.
        reason: String,
    },
}

/// Why libtorch's folder cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum LibtorchError {
    /// The list of mapped files cannot be read.
    #[error("cannot read /proc/self/maps to find libtorch")]
    Maps(#[source] std::io::Error),
    /// The CPU half is not in the process.
    #[error("libtorch_cpu.so is not loaded in this process, expected it to be linked in")]
    NotLoaded,
}

/// Opens `libtorch_cuda.so` beside the `libtorch_cpu.so` of this process, for the rest of its life. Calling it again is
/// harmless.
///
/// # Errors
/// When the folder of libtorch cannot be found. A CUDA half that is not there, or that lacks one of its own libraries, is
/// [`CudaLibrary::Absent`].
pub fn open_cuda() -> Result<CudaLibrary, LibtorchError> {
    let path = cpu_library()?.with_file_name("libtorch_cuda.so");
    if !path.exists() {
        return Ok(CudaLibrary::Absent { reason: format!("{} is not there", path.display()) });
    }
    // SAFETY: the file lies beside the libtorch that is already running in this process and belongs to the same build; its
    // initialisers register CUDA kernels with that one and start no threads. It is never closed, since libtorch keeps
    // pointers into it.
    match unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) } {
        Ok(library) => {
            std::mem::forget(library);
            Ok(CudaLibrary::Opened(path))
        }
        Err(error) => Ok(CudaLibrary::Absent { reason: format!("{} cannot be opened: {error}", path.display()) }),
    }
}

/// The `libtorch_cpu.so` of this process.
///
/// # Errors
/// When it cannot be found.
pub(crate) fn cpu_library() -> Result<PathBuf, LibtorchError> {
    let maps = std::fs::read_to_string("/proc/self/maps").map_err(LibtorchError::Maps)?;
    mapped_file(&maps, "libtorch_cpu.so").ok_or(LibtorchError::NotLoaded)
}

/// Version of libtorch that this program was compiled against, for example `2.5.1`. libtorch's symbols change with it, so
/// another one would not have been loaded.
#[must_use]
pub const fn version() -> &'static str {
    env!("IMAGEGEN_LIBTORCH_VERSION")
}

/// GPUs that libtorch can use; 0 without its CUDA half or without a driver.
#[must_use]
pub fn cuda_device_count() -> usize {
    usize::try_from(tch::Cuda::device_count()).unwrap_or(0)
}

/// Sets how many threads one operator of libtorch uses on the CPU, in the whole process.
///
/// With more than one, idle threads spin until there is work again, for as long as `GOMP_SPINCOUNT` said when the process
/// started. Where other work shares the processor, or a CPU limit counts the spinning, endless spinning makes an image take
/// many times as long; the worker's image sets a short one.
pub fn set_threads(threads: std::num::NonZeroUsize) {
    tch::set_num_threads(i32::try_from(threads.get()).unwrap_or(i32::MAX));
}

/// The file called `name` in the text of /proc/self/maps.
fn mapped_file(maps: &str, name: &str) -> Option<PathBuf> {
    let path = |line: &str| line.find('/').map(|start| Path::new(&line[start..]).to_owned());
    maps.lines().filter_map(path).find(|path| path.file_name().is_some_and(|file| file == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_mapped_file_whose_folder_has_a_blank() {
        let maps =
            "7f00-7f01 r-xp 00000000 00:01 7   /opt/lib torch/lib/libtorch_cpu.so\n7f02-7f03 rw-p 00000000 00:00 0\n";
        assert_eq!(mapped_file(maps, "libtorch_cpu.so"), Some(PathBuf::from("/opt/lib torch/lib/libtorch_cpu.so")));
        assert_eq!(mapped_file(maps, "torch_cpu.so"), None);
    }
}
