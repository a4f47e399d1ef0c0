use std::collections::BTreeSet;

use imagegen_core::engine::Engine as _;
use imagegen_core::spec::{Guidance, ImageSpec, RgbImage, SchedulerKind, Size};

use super::*;
use crate::TorchEngine;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// A picture of the checkpoint, loaded in bfloat16.
fn picture(model_dir: &Path) -> RgbImage {
    let options = LoadOptions {
        precision: Precision::BFloat16,
        threads: std::num::NonZeroUsize::new(1),
        ..LoadOptions::new(model_dir)
    };
    let mut engine = TorchEngine::load(&options, &mut |_| {}).unwrap();
    let size = Size { width: 32, height: 32 };
    let spec = ImageSpec {
        prompt: "a red apple".to_owned(),
        negative_prompt: String::new(),
        latent_size: size,
        size,
        steps: 2,
        guidance: Guidance::OFF,
        seed: 7,
        scheduler: SchedulerKind::FlowMatchEuler,
    };
    let mut batch = engine.begin(&[spec]).unwrap();
    for _ in 0..2 {
        engine.step(&mut batch).unwrap();
    }
    engine.decode(&mut batch, 0).unwrap()
}

fn files(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            found.extend(files(&entry.path()).into_iter().map(|below| format!("{name}/{below}")));
        } else {
            found.insert(name);
        }
    }
    found
}

#[test]
fn a_copy_gives_the_same_picture_bit_by_bit_whether_in_one_file_or_many() {
    for name in ["tiny-a", "tiny-b"] {
        let (source, folder) = (fixture(name), tempfile::tempdir().unwrap());
        // A float32 copy first: its conversion is the one that loses bits.
        let (wide, half, sharded) =
            (folder.path().join("wide"), folder.path().join("half"), folder.path().join("sharded"));
        let written = convert(&source, &wide, Precision::Float32, &mut |_| {}).unwrap();
        assert_eq!(written.weight_files, 3);
        let mut seen = Vec::new();
        let halved = convert(&wide, &half, Precision::BFloat16, &mut |progress| seen.push(progress)).unwrap();
        assert_eq!(2 * halved.weight_bytes, written.weight_bytes);
        let last = seen.last().unwrap();
        assert_eq!((last.loaded_bytes, last.total_bytes), (written.weight_bytes, written.weight_bytes));
        let many = convert_in_shards(&wide, &sharded, Precision::BFloat16, 20_000, &mut |_| {}).unwrap();
        assert!(many.weight_files > 5 && many.weight_bytes == halved.weight_bytes, "{many:?}");

        let expected = picture(&source);
        for copy in [&wide, &half, &sharded] {
            assert_eq!(picture(copy), expected, "{name}: {}", copy.display());
        }
        assert_eq!(files(folder.path()).iter().filter(|name| name.contains(".part")).count(), 0);
    }
}

#[test]
fn every_file_is_in_the_checksums_and_settings_say_the_new_precision() {
    let (source, folder) = (fixture("tiny-b"), tempfile::tempdir().unwrap());
    let output = folder.path().join("copy");
    convert(&source, &output, Precision::Float32, &mut |_| {}).unwrap();
    let sums = fs::read_to_string(output.join(CHECKSUMS)).unwrap();
    let mut named = BTreeSet::from([CHECKSUMS.to_owned()]);
    for line in sums.lines() {
        let (sum, name) = line.split_once("  ").unwrap();
        assert_eq!(format!("{:x}", Sha256::digest(fs::read(output.join(name)).unwrap())), sum, "{name}");
        named.insert(name.to_owned());
        // Pods run as another user than the one who converts.
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(output.join(name)).unwrap().permissions());
        assert_eq!(mode & 0o444, 0o444, "{name} can be read by all");
    }
    assert_eq!(files(&output), named);
    let config: Value = serde_json::from_slice(&fs::read(output.join("text_encoder/config.json")).unwrap()).unwrap();
    assert_eq!(config["torch_dtype"], "float32");
    let tokenizer = "tokenizer/tokenizer.json";
    assert_eq!(fs::read(output.join(tokenizer)).unwrap(), fs::read(source.join(tokenizer)).unwrap());
}

#[test]
fn what_is_there_is_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let error = convert(&fixture("tiny-a"), folder.path(), Precision::BFloat16, &mut |_| {}).unwrap_err();
    assert!(matches!(error, ConvertError::Exists(_)), "{error}");
    assert_eq!(files(folder.path()).len(), 0);
}

#[test]
fn a_checkpoint_that_cannot_be_loaded_is_not_copied() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("copy");
    let error = convert(&folder.path().join("missing"), &output, Precision::BFloat16, &mut |_| {}).unwrap_err();
    assert!(matches!(error, ConvertError::Load(LoadError::Unreadable { .. })), "{error}");

    let broken = folder.path().join("broken");
    convert(&fixture("tiny-a"), &broken, Precision::BFloat16, &mut |_| {}).unwrap();
    fs::remove_file(broken.join("vae/diffusion_pytorch_model.safetensors")).unwrap();
    let error = convert(&broken, &output, Precision::BFloat16, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("vae/diffusion_pytorch_model.safetensors"), "{error}");
    assert!(!output.exists());
}

#[test]
fn a_place_that_cannot_be_written_to_is_named_and_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "not a folder").unwrap();
    let output = file.join("copy");
    let error = convert(&fixture("tiny-a"), &output, Precision::BFloat16, &mut |_| {}).unwrap_err();
    assert!(matches!(&error, ConvertError::Copy { path, .. } if path.starts_with(&file)), "{error}");
    assert_eq!(files(folder.path()), BTreeSet::from(["file".to_owned()]));
}

#[test]
fn a_failure_in_the_middle_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("copy");
    let shards = Shards::open(&fixture("tiny-a").join("vae"), "diffusion_pytorch_model").unwrap();
    let names = shards.grouped(Precision::BFloat16.kind(), u64::MAX).remove(0);
    let temporary = Temporary::new(&output).unwrap();
    fs::write(temporary.0.join("half"), "of a file").unwrap();
    // A folder that went away stands for a disk that takes no more.
    let path = temporary.0.join("vae").join("weights.safetensors");
    let error = shards.write(&names, Precision::BFloat16.kind(), &path, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("weights.safetensors"), "{error}");
    drop(temporary);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
