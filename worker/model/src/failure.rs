//! What a panic or an error text of libtorch means.

use std::any::Any;

use imagegen_core::engine::{EngineError, Stage};

/// The many faces of an allocation that failed.
const OUT_OF_MEMORY: [&str; 9] = [
    "out of memory",
    "would exceed allowed memory",
    // cuBLAS, cuSOLVER and cuDNN 8.
    "STATUS_ALLOC_FAILED",
    // cuDNN 9: ..._HOST_ALLOCATION_FAILED, ..._DEVICE_ALLOCATION_FAILED.
    "ALLOCATION_FAILED",
    // A handle is made at its first use, and then is all that cuBLAS allocates.
    "CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate",
    // The allocator's question to NVML, on machines where NVML is broken and on MIG instances. It is asked only when memory has
    // run out.
    "NVML_SUCCESS == r INTERNAL ASSERT FAILED",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "std::bad_alloc",
];

/// Errors of CUDA's libraries after which every further call of the process fails. Of CUDA errors, all do but [`HARMLESS`].
const STICKY: [&str; 5] = [
    "CUDA error",
    "CUDA driver error",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR",
];

/// CUDA errors about one call alone: nothing was started.
const HARMLESS: [&str; 9] = [
    "CUBLAS_STATUS_INVALID_VALUE",
    "CUBLAS_STATUS_NOT_SUPPORTED",
    "CUBLAS_STATUS_ARCH_MISMATCH",
    "CUDA error: invalid argument",
    "CUDA error: invalid configuration argument",
    "CUDA error: invalid device function",
    "CUDA error: invalid device ordinal",
    "CUDA error: no kernel image is available",
    "CUDA error: too many resources requested for launch",
];

/// The error that libtorch's words mean.
pub(crate) fn classify(stage: Stage, message: &str) -> EngineError {
    let detail = first_line(message);
    let says = |words: &[&str]| words.iter().any(|&words| message.contains(words));
    if says(&OUT_OF_MEMORY) {
        EngineError::OutOfMemory { stage, detail }
    } else if says(&STICKY) && !says(&HARMLESS) {
        EngineError::Fatal { stage, detail }
    } else {
        EngineError::Failed { stage, detail }
    }
}

/// The text of a panic.
pub(crate) fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("a panic without a text").to_owned()
}

/// What libtorch says before its C++ backtrace, without the wrapping of a failed `unwrap`.
fn first_line(message: &str) -> String {
    let message = message.split_once("Torch(\"").map_or(message, |(_, rest)| rest.trim_end_matches("\")"));
    let end = [
        "\\nException raised from",
        "\nException raised from",
        "\\nCUDA kernel errors might",
        "\nCUDA kernel errors might",
    ]
    .iter()
    .filter_map(|mark| message.find(mark))
    .min()
    .unwrap_or(message.len());
    message[..end].replace("\\n", " ").replace('\n', " ").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(message: &str) -> &'static str {
        match classify(Stage::Vae, message) {
            EngineError::OutOfMemory { .. } => "memory",
            EngineError::Failed { .. } => "failed",
            EngineError::Fatal { .. } => "fatal",
        }
    }

    #[test]
    fn every_wording_has_its_meaning() {
        let table = [
            ("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB", "memory"),
            ("CUDA error: out of memory", "memory"),
            ("CUDA driver error: out of memory", "memory"),
            ("Allocation on device 0 would exceed allowed memory. (out of memory)", "memory"),
            ("Requested allocation would exceed allowed memory", "memory"),
            ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "memory"),
            ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", "memory"),
            ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "memory"),
            ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", "memory"),
            ("NVML_SUCCESS == r INTERNAL ASSERT FAILED at \"CUDACachingAllocator.cpp\":838", "memory"),
            (
                "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried",
                "memory",
            ),
            (
                "CPU out of memory. Tried to allocate 64 bytes. The limit is 32 bytes, of which 0 bytes are free.",
                "memory",
            ),
            ("std::bad_alloc", "memory"),
            ("CUDA error: an illegal memory access was encountered", "fatal"),
            ("CUDA error: device-side assert triggered", "fatal"),
            ("CUDA error: uncorrectable ECC error encountered", "fatal"),
            ("CUDA error: unspecified launch failure", "fatal"),
            ("CUDA driver error: unspecified launch failure", "fatal"),
            ("CUDA error: an error that this program has never heard of", "fatal"),
            ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`", "fatal"),
            ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasSgemm`", "fatal"),
            ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", "fatal"),
            ("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasLtMatmul`", "failed"),
            ("CUDA error: invalid configuration argument", "failed"),
            ("CUDA error: no kernel image is available for execution on the device", "failed"),
            ("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED", "failed"),
            ("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", "failed"),
            ("a panic without a text", "failed"),
        ];
        for (message, meaning) in table {
            assert_eq!(kind(message), meaning, "{message}");
        }
    }

    #[test]
    fn the_detail_is_what_libtorch_said_first() {
        let panic = "called `Result::unwrap()` on an `Err` value: Torch(\"CUDA out of memory. Tried to allocate 2.00 GiB.\\n\
                     Exception raised from malloc at CUDACachingAllocator.cpp:1\\nframe #0: ...\")";
        let EngineError::OutOfMemory { detail, stage } = classify(Stage::Transformer, panic) else { panic!("memory") };
        assert_eq!(detail, "CUDA out of memory. Tried to allocate 2.00 GiB.");
        assert_eq!(stage, Stage::Transformer);
    }
}
