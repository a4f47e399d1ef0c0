//! Compiles the `.proto` files without a system `protoc` and writes the descriptor set that reflection serves.
use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

/// What workers serve, and reflection shows.
const WORKER: [&str; 2] = ["imagegen/v1/image.proto", "imagegen/v1/admin.proto"];
/// What the operator serves to KEDA.
const KEDA: [&str; 1] = ["keda/externalscaler.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile(WORKER, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    tonic_prost_build::configure().compile_fds(protox::compile(KEDA, ["."])?)?;
    for file in WORKER.into_iter().chain(KEDA) {
        println!("cargo:rerun-if-changed={file}");
    }
    Ok(())
}
