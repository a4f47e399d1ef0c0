//! The C++ shim, run paths for this crate's own tests and examples, and the version of libtorch that is compiled against.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    for variable in ["LIBTORCH", "LIBTORCH_LIB", "LIBTORCH_INCLUDE", "LIBTORCH_CXX11_ABI", "CUDA_HOME"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=shim");
    let folder = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
    let libtorch = folder("LIBTORCH");
    let include = folder("LIBTORCH_INCLUDE").or_else(|| libtorch.clone()).map(|folder| folder.join("include"));
    let lib = folder("LIBTORCH_LIB").or(libtorch).map(|folder| folder.join("lib"));

    let version = include.as_deref().and_then(header_version).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo:rustc-env=IMAGEGEN_LIBTORCH_VERSION={version}");
    if let Some(lib) = &lib {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    }

    // As torch-sys: the C++ library's older strings where LIBTORCH_CXX11_ABI=0 says that libtorch was compiled with them.
    let abi = std::env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".to_owned());
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").debug(false).opt_level(2).define("_GLIBCXX_USE_CXX11_ABI", abi.as_str());
    // Warnings are for this project's code, not for libtorch's headers.
    for folder in include.iter().flat_map(|include| [include.clone(), include.join("torch/csrc/api/include")]) {
        build.flag("-isystem").flag(folder);
    }
    build.clone().files(["shim/cpu.cpp", "shim/attention.cpp"]).compile("imagegen_shim");
    cuda_half(&build, lib.as_deref());
}

/// Makes the shared object of the CUDA half, or an empty file where CUDA's headers are missing: the program then works on a
/// CPU, and says what is missing when it is asked for a GPU.
fn cuda_half(build: &cc::Build, lib: Option<&Path>) {
    let target =
        PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("libimagegen_cuda_shim.so");
    let Some((lib, cuda)) = lib.and_then(|lib| Some((lib, Cuda::find(lib)?))) else {
        println!("cargo:warning=built without CUDA's headers or libtorch's CUDA part: the program cannot use a GPU");
        std::fs::write(&target, []).expect("OUT_DIR can be written");
        return;
    };
    let mut command: Command = build.get_compiler().to_command();
    for include in &cuda.includes {
        command.arg("-isystem").arg(include);
    }
    command.args(["-shared", "-fPIC", "shim/cuda.cpp", "-o"]).arg(&target).arg("-L").arg(lib);
    command.args(["-lc10", "-lc10_cuda", "-ltorch_cpu"]).arg(&cuda.runtime);
    // A name that libtorch does not have is an error here, not on the first machine with a GPU.
    command.args(["-Wl,--no-undefined", "-Wl,--unresolved-symbols=ignore-in-shared-libs", "-Wl,--as-needed", "-Wl,-s"]);
    let status = command.status().expect("the C++ compiler that was found can be started");
    assert!(status.success(), "{command:?} failed: {status}");
}

/// Headers and runtime of CUDA.
struct Cuda {
    includes: Vec<PathBuf>,
    /// libcudart.so
    runtime: PathBuf,
}

impl Cuda {
    /// Beside libtorch, where wheels put them, or in `CUDA_HOME`.
    fn find(lib: &Path) -> Option<Self> {
        if !lib.join("libc10_cuda.so").exists() {
            return None;
        }
        let wheels = lib.join("../../nvidia");
        let mut folders: Vec<PathBuf> =
            std::fs::read_dir(wheels).into_iter().flatten().flatten().map(|e| e.path()).collect();
        folders.extend(std::env::var_os("CUDA_HOME").map(PathBuf::from));
        folders.sort();
        let includes: Vec<PathBuf> =
            folders.iter().map(|folder| folder.join("include")).filter(|folder| folder.is_dir()).collect();
        let has = |header: &str| includes.iter().any(|include| include.join(header).exists());
        let runtime = folders.iter().flat_map(|folder| [folder.join("lib"), folder.join("lib64")]);
        let runtime = runtime.chain([lib.to_owned()]).find_map(|folder| runtime_in(&folder))?;
        (has("cuda_runtime_api.h") && has("crt/host_defines.h")).then_some(Self { includes, runtime })
    }
}

fn runtime_in(folder: &Path) -> Option<PathBuf> {
    let files = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    let is_runtime = |file: &PathBuf| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libcudart") && name.contains(".so")
    };
    files.filter(is_runtime).min()
}

/// `TORCH_VERSION` of the C++ headers, for example `2.5.1`.
fn header_version(include: &Path) -> Option<String> {
    // The second place is where newer versions keep it.
    ["torch/csrc/api/include/torch/version.h", "torch/headeronly/version.h"].iter().find_map(|header| {
        let text = std::fs::read_to_string(include.join(header)).ok()?;
        let (_, definition) = text.split_once("#define TORCH_VERSION ")?;
        definition.split('"').nth(1).map(str::to_owned)
    })
}
