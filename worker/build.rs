//! Where the binary looks for libtorch: the folder it was built with, then the one of the container image.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-env-changed=LIBTORCH_LIB");
    println!("cargo:rerun-if-changed=build.rs");
    let built_with = std::env::var_os("LIBTORCH_LIB").or_else(|| std::env::var_os("LIBTORCH")).map(PathBuf::from);
    let folders =
        built_with.map(|folder| folder.join("lib")).into_iter().chain([PathBuf::from("/opt/libtorch/torch/lib")]);
    for folder in folders {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", folder.display());
    }
}
