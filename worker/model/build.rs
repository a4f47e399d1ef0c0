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
    // The second place is where newer versions keep it.
    ["include/torch/csrc/api/include/torch/version.h", "include/torch/headeronly/version.h"].iter().find_map(|header| {
        let text = std::fs::read_to_string(libtorch.join(header)).ok()?;
        let (_, definition) = text.split_once("#define TORCH_VERSION ")?;
        definition.split('"').nth(1).map(str::to_owned)
    })
}
