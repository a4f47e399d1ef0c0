//! Run paths for this crate's own tests and examples, and the version of libtorch that is compiled against.

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-env-changed=LIBTORCH_LIB");
    println!("cargo:rerun-if-changed=build.rs");
    let libtorch = std::env::var_os("LIBTORCH").map(PathBuf::from);
    let version = libtorch.as_deref().and_then(header_version).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo:rustc-env=IMAGEGEN_LIBTORCH_VERSION={version}");
    if let Some(folder) = std::env::var_os("LIBTORCH_LIB").map(PathBuf::from).or(libtorch) {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", folder.join("lib").display());
    }
}

/// `TORCH_VERSION` of the C++ headers, for example `2.5.1`.
fn header_version(libtorch: &Path) -> Option<String> {
    let header = libtorch.join("include/torch/csrc/api/include/torch/version.h");
    println!("cargo:rerun-if-changed={}", header.display());
    let text = std::fs::read_to_string(header).ok()?;
    let line = text.lines().find(|line| line.starts_with("#define TORCH_VERSION "))?;
    line.split('"').nth(1).map(str::to_owned)
}
