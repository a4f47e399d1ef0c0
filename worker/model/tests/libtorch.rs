//! What the process links, and what it opens.
#![allow(clippy::unwrap_used, reason = "helpers of tests may fail loudly too")]

use std::path::{Path, PathBuf};
use std::process::Command;

use imagegen_model::libtorch::{CudaLibrary, open_cuda};
use imagegen_model::shim::cuda::Cuda;

fn mapped(name: &str) -> bool {
    std::fs::read_to_string("/proc/self/maps").unwrap().lines().any(|line| line.ends_with(name))
}

/// The shim's CUDA half in the list of mapped files.
const SHIM: &str = "/memfd:imagegen_cuda_shim (deleted)";

/// Names that `file` asks other libraries for.
fn undefined(file: &Path) -> Vec<String> {
    let output = Command::new("readelf").args(["--wide", "--dyn-syms"]).arg(file).output().unwrap();
    let symbols = String::from_utf8(output.stdout).unwrap();
    let name = |line: &str| line.split_once(" UND ").map(|(_, name)| name.trim().to_owned());
    symbols.lines().filter_map(name).filter(|name| !name.is_empty()).collect()
}

/// Capturing a graph pins the memory of a pool and forbids what the allocator does when memory runs out. libtorch itself can do
/// it, but only when one of these is called.
#[test]
fn nothing_here_can_capture_a_graph() {
    let shim = Path::new(env!("OUT_DIR")).join("libimagegen_cuda_shim.so");
    let ours = [std::env::current_exe().unwrap(), shim];
    for file in ours.iter().filter(|file| std::fs::metadata(file).unwrap().len() > 0) {
        let names = undefined(file);
        assert!(names.iter().any(|name| name.contains("3c10") || name.contains("2at")), "{names:?}");
        for word in ["Capture", "cudaGraph", "cuGraph", "CUDAGraph", "AllocateToPool"] {
            let found: Vec<_> = names.iter().filter(|name| name.contains(word)).collect();
            assert!(found.is_empty(), "{}: {found:?}", file.display());
        }
    }
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
    assert!(!mapped(SHIM), "the shim's CUDA half is opened after libtorch's alone");

    match open_cuda().unwrap() {
        CudaLibrary::Opened(path) => {
            assert!(mapped("/libtorch_cuda.so"), "{}", path.display());
            assert_eq!(open_cuda().unwrap(), CudaLibrary::Opened(path), "again is harmless");
        }
        CudaLibrary::Absent { reason } => {
            assert!(reason.contains("libtorch_cuda.so"), "{reason}");
            // The process goes on as if nothing had been tried.
            assert_eq!(imagegen_model::libtorch::cuda_device_count(), 0);
            let error = Cuda::open(0).unwrap_err().to_string();
            assert!(error.contains("cannot be opened") || error.contains("CUDA's headers"), "{error}");
            assert!(!mapped(SHIM));
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
