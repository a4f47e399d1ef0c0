//! What the process links, and what it opens.
#![allow(clippy::unwrap_used, reason = "helpers of tests may fail loudly too")]

use std::process::Command;

use imagegen_model::libtorch::{CudaLibrary, open_cuda};

fn mapped(name: &str) -> bool {
    std::fs::read_to_string("/proc/self/maps").unwrap().lines().any(|line| line.ends_with(name))
}

#[test]
fn only_the_cpu_half_is_linked_and_the_cuda_half_is_opened_when_it_can_be() {
    let output = Command::new("readelf").arg("-d").arg(std::env::current_exe().unwrap()).output().unwrap();
    let dynamic = String::from_utf8(output.stdout).unwrap();
    let needed: Vec<&str> = dynamic.lines().filter(|line| line.contains("(NEEDED)")).collect();
    assert!(needed.iter().any(|line| line.contains("libtorch_cpu.so")), "{needed:?}");
    for unwanted in ["cuda", "cublas", "cudnn", "nccl"] {
        assert!(!needed.iter().any(|line| line.contains(unwanted)), "{needed:?}");
    }
    assert!(mapped("/libtorch_cpu.so") && !mapped("/libtorch_cuda.so"));

    match open_cuda().unwrap() {
        CudaLibrary::Opened(path) => {
            assert!(mapped("/libtorch_cuda.so"), "{}", path.display());
            assert_eq!(open_cuda().unwrap(), CudaLibrary::Opened(path), "again is harmless");
        }
        CudaLibrary::Absent { reason } => {
            assert!(reason.contains("libtorch_cuda.so"), "{reason}");
            // The process goes on as if nothing had been tried.
            assert_eq!(imagegen_model::libtorch::cuda_device_count(), 0);
        }
    }
    let sum = tch::Tensor::from_slice(&[1.0f32, 2.0]).sum(tch::Kind::Float);
    assert_eq!(f64::try_from(sum).unwrap(), 3.0);
    assert!(imagegen_model::libtorch::version().starts_with("2."), "{}", imagegen_model::libtorch::version());
}
