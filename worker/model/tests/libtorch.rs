//! What the process links, and what it opens.
#![allow(clippy::unwrap_used, reason = "helpers of tests may fail loudly too")]

use std::path::{Path, PathBuf};
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

/// Set for the process that has a CUDA half beside its CPU half: the folder of both.
const FOLDER: &str = "IMAGEGEN_TEST_LIBTORCH_FOLDER";

#[test]
fn the_cuda_half_that_lies_beside_the_cpu_half_is_opened() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        let cuda = Path::new(&folder).join("libtorch_cuda.so");
        assert!(!mapped("/libtorch_cuda.so"));
        assert_eq!(open_cuda().unwrap(), CudaLibrary::Opened(cuda));
        assert!(mapped("/libtorch_cuda.so"));
        return;
    }
    // A library of that name which needs nothing stands in for the real one, whose own libraries are not on every machine.
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("libtorch-with-cuda");
    std::fs::create_dir_all(&folder).unwrap();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let cpu =
        maps.lines().find_map(|line| Some(&line[line.find('/')?..]).filter(|file| file.ends_with("/libtorch_cpu.so")));
    let cpu = Path::new(cpu.unwrap());
    let linked = folder.join("libtorch_cpu.so");
    if !linked.exists() {
        std::fs::hard_link(cpu, &linked).or_else(|_| std::fs::copy(cpu, &linked).map(drop)).unwrap();
    }
    let source = folder.join("stub.c");
    std::fs::write(&source, "int imagegen_test_stub;\n").unwrap();
    let compiled =
        Command::new("cc").args(["-shared", "-o"]).arg(folder.join("libtorch_cuda.so")).arg(&source).status().unwrap();
    assert!(compiled.success());

    let lib = cpu.parent().unwrap();
    let nvidia = std::fs::read_dir(lib.join("../../nvidia")).unwrap().map(|entry| entry.unwrap().path().join("lib"));
    let path = std::env::join_paths([folder.clone(), lib.to_owned()].into_iter().chain(nvidia)).unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_cuda_half_that_lies_beside_the_cpu_half_is_opened", "--nocapture"])
        .env("LD_LIBRARY_PATH", path)
        .env(FOLDER, folder.canonicalize().unwrap())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout) + String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success() && said.contains("1 passed"), "{said}");
}
